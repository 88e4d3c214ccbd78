#!/usr/bin/env bash
# Our kernels on a GPU under a tool of compute-sanitizer: tests/gpu/sanitize.sh PYTHON TOOL
#
# The tools are memcheck, racecheck, initcheck and synccheck. Kernels of PyTorch are not looked at: they read memory that
# they have not written, knowingly. Left out is what must fail or must race to show that it can, what counts memory, and
# the same kernels on the default stream, which would take as long again.
set -eu
cd "$(dirname "$0")/../.."
export TRTSEG_REQUIRE_CUDA=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 PATH=$PATH:/usr/local/cuda/bin
exec compute-sanitizer --tool "$2" --kernel-name kns=trtseg --error-exitcode 1 "$1" -m pytest \
  tests/gpu/test_ops_cuda.py tests/gpu/test_graph.py tests/gpu/test_cascade_cuda.py \
  -k 'not default-stream and not more_slices and not memory and not waiting_for_the_gpu and not orders_two_streams'
