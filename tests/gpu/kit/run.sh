#!/usr/bin/env bash
# On the offline GPU machine: install the kit for this run only, then tests, benchmark and sanitizers, in the order of
# their worth. Logs and JSON go to $OUT (default: gpu-results/). All steps end within ten minutes.
#
#   RUNTIME=torch     which runtime the benchmark takes: torch, tensorrt, tensorrt-rtx or auto
#   STEPS="tests bench 8bit sanitize"
set -u
kit=$(cd "$(dirname "$0")" && pwd) && cd "$kit/../.." || exit 1
export OUT=${OUT:-$PWD/gpu-results} TRTSEG_REQUIRE_CUDA=1 PYTHONUNBUFFERED=1
site=$(mktemp -d) && export PYTHONPATH=$site:$PWD TRTSEG_CACHE=$site/cache
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) && cp "$kit"/_core*.so trtseg/
python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$kit"/wheels/*.whl || exit 1
failed=0
step() {  # NAME SECONDS COMMAND...
  local name=$1 begin=$SECONDS code; shift
  timeout -k 5 "$@" > "$OUT/$name.log" 2>&1; code=$?
  echo "$name: exit code $code after $((SECONDS - begin)) s"
  [ $code = 0 ] || { tail -n 20 "$OUT/$name.log"; return 1; }
}
step machine 20 bash -c 'nvidia-smi; nproc; python3 -V; python3 -c "from trtseg import _core; print(_core.build_info())"' ||
  failed=1
for part in ${STEPS:-tests bench 8bit sanitize}; do
  case $part in
    tests) step tests 190 python3 -m pytest -v tests/gpu || failed=1 ;;
    # 30 volumes: those of PyTorch vary too much for ten
    bench)
      step bench 150 python3 -m benchmarks.gpu --runtime "${RUNTIME:-torch}" --compile --repeats 30 --runs 1000 \
        --json "$OUT/benchmark.json" || failed=1 ;;
    8bit) step 8bit 60 python3 -m benchmarks.gpu_8bit --json "$OUT/8bit.json" || failed=1 ;;
    sanitize)  # all at a time: what takes long is the host's part
      running=() logs=$(mktemp -d)
      for tool in memcheck racecheck initcheck synccheck; do
        OUT=$logs step "$tool" 120 tests/gpu/sanitize.sh python3 "$tool" & running+=($!)
      done
      for one in "${running[@]}"; do wait "$one" || failed=1; done
      (cd "$logs" && tail -n +1 {mem,race,init,sync}check.log > "$OUT/sanitize.log") && rm -r "$logs" ;;
  esac
done
rm -rf "$site"
exit $failed
