#!/usr/bin/env bash
# On the offline GPU machine: install the kit for this run only, then tests, sanitizer and benchmark, in the order of
# their worth. Logs and JSON go to $OUT (default: gpu-results/).
#
#   RUNTIME=torch     which runtime the benchmark takes: torch, tensorrt, tensorrt-rtx or auto
#   STEPS="tests bench sanitize"
set -u
kit=$(cd "$(dirname "$0")" && pwd) && cd "$kit/../.." || exit 1
export OUT=${OUT:-$PWD/gpu-results} TRTSEG_REQUIRE_CUDA=1 PYTHONUNBUFFERED=1
site=$(mktemp -d) && export PYTHONPATH=$site:$PWD TRTSEG_CACHE=$site/cache
mkdir -p "$OUT" && cp "$kit"/_core*.so trtseg/
python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$kit"/wheels/*.whl || exit 1
failed=0
step() {  # NAME SECONDS COMMAND...
  local name=$1 begin=$SECONDS code; shift
  timeout -k 5 "$@" > "$OUT/$name.log" 2>&1; code=$?
  echo "$name: exit code $code after $((SECONDS - begin)) s"
  [ $code = 0 ] || { failed=1; tail -n 20 "$OUT/$name.log"; }
}
step machine 30 bash -c 'nvidia-smi; nproc; python3 -V; python3 -c "from trtseg import _core; print(_core.build_info())"'
for part in ${STEPS:-tests bench}; do
  case $part in
    tests) step tests 240 python3 -m pytest -v tests/gpu ;;
    bench) step bench 150 python3 -m benchmarks.gpu --runtime "${RUNTIME:-torch}" --json "$OUT/benchmark.json" ;;
    sanitize) step sanitize 200 make sanitize-gpu GPU_PYTHON=python3 ;;
  esac
done
rm -rf "$site"
exit $failed
