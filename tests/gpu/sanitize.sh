#!/usr/bin/env bash
# Our kernels on a GPU under a tool of compute-sanitizer: tests/gpu/sanitize.sh PYTHON TOOL
#
# The tools are memcheck, racecheck, initcheck and synccheck. What they say of PyTorch's kernels is not asked. Left out is
# what must fail or must race to show that it can, what counts memory, and the same kernels on the default stream, which
# would take as long again.
set -u
cd "$(dirname "$0")/../.." || exit 1
export TRTSEG_REQUIRE_CUDA=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 PATH=$PATH:/usr/local/cuda/bin
tests=("$1" -m pytest tests/gpu/test_ops_cuda.py tests/gpu/test_graph.py tests/gpu/test_cascade_cuda.py
  -k 'not default-stream and not more_slices and not memory and not waiting_for_the_gpu and not orders_two_streams')
if [ "$2" != initcheck ]; then
  exec compute-sanitizer --tool "$2" --kernel-name kns=trtseg --error-exitcode 1 "${tests[@]}"
fi
# Our kernels read what others have written, which initcheck knows only if it looks at all kernels.
log=$(mktemp)
report() {  # also where the time is over
  grep -v '^====' "$log"
  grep -B 1 -A 3 -E "$ours" "$log" | head -n 200
  rm -f "$log"
}
ours='^=+ +at .*trtseg'
trap report EXIT
compute-sanitizer --tool initcheck --show-backtrace no --print-limit 0 "${tests[@]}" > "$log" 2>&1
code=$?
grep -q -E "$ours" "$log" && code=1
exit $code
