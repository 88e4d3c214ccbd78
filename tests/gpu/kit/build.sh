#!/usr/bin/env bash
# make gpu-kit: collect what an offline GPU machine needs to test trtseg, in build/gpu-kit/.
#
# Run it where there is a network, nvcc and g++; no GPU is needed. It makes the extension and a PyCUDA wheel for one
# Python and one kind of GPU, and fetches the packages that such a machine usually lacks. PyTorch with CUDA, NumPy,
# pytest, onnx and ONNX Runtime are expected to be there.
#
#   KIT_PYTHON=python3.12   a Python of the same minor version as the one on the GPU machine, with headers
#   KIT_ARCHS=90            compute capability of the GPU, as for TRTSEG_CUDA_ARCHS
#   KIT_RTX=1               TensorRT-RTX too (95 MB; GeForce and RTX GPUs, not Hopper)
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${KIT_PYTHON:-python3.12} archs=${KIT_ARCHS:-90} kit=build/gpu-kit work=build/gpu-kit-work
rm -rf "$kit" "$work" && mkdir -p "$kit/wheels" "$work/stub"
"$python" -m venv "$work/venv" && py=$PWD/$work/venv/bin/python
"$py" -m pip install -q setuptools wheel 'pybind11>=3.0' numpy

cp -r csrc setup.py pyproject.toml README.md LICENSE trtseg "$work/"
rm -f "$work"/trtseg/_core*.so
(cd "$work" && TRTSEG_CUDA=1 TRTSEG_CUDA_ARCHS=$archs "$py" setup.py -q build_ext --inplace)
strip "$work"/trtseg/_core*.so && cp "$work"/trtseg/_core*.so "$kit/"

# PyCUDA links against the driver's library, which this machine need not have: a stub with its symbols stands in.
"$py" -m pip download -q --no-deps --no-binary pycuda -d "$work" 'pycuda>=2026.1'
tar -C "$work" -xf "$work"/pycuda-*.tar.gz && source=$(echo "$PWD/$work"/pycuda-*/)
grep -rhoE '\bcu[A-Z][A-Za-z0-9]+' "$source"/src/cpp "$source"/src/wrapper | sort -u |
  sed 's/.*/int &(void){return 100;} int &_v2(void){return 100;}/' > "$work/stub/stub.c"
gcc -w -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$work/stub/libcuda.so" "$work/stub/stub.c"
home=${CUDA_HOME:-$(dirname "$(dirname "$(command -v nvcc)")")}
[ -f "$home/include/cuda.h" ] || home=/usr/local/cuda
cat > "$source/siteconf.py" <<P
CUDA_ROOT = "$home"
CUDA_INC_DIR = ["$home/include"]
CUDA_ENABLE_CURAND = CUDA_ENABLE_GL = False
USE_SHIPPED_BOOST = True
CUDADRV_LIB_DIR = ["$PWD/$work/stub"]
CUDADRV_LIBNAME = ["cuda"]
CXXFLAGS = ["-g0"]
LDFLAGS = ["-Wl,--no-as-needed"]
P
(cd "$source" && "$py" -m pip wheel -q --no-deps --no-build-isolation -w "$OLDPWD/$kit/wheels" .)

"$py" -m pip download -q --no-deps --only-binary=:all: -d "$kit/wheels" isal nibabel platformdirs \
  nvidia-cudnn-frontend==1.18.0  # the version that ran on an H100
"$py" -m pip download -q --only-binary=:all: -d "$kit/wheels" typer rich  # the command, with what it needs in turn
if [ "${KIT_RTX:-0}" = 1 ]; then
  # not with download: the first of them is a source package
  "$py" -m pip wheel -q --no-deps -w "$kit/wheels" tensorrt-rtx-cu13 tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs
fi
cp tests/gpu/kit/run.sh "$kit/"
du -cb "$kit"/*.* "$kit"/wheels/* | sort -n | awk '{printf "%9.1f MB  %s\n", $1 / 1e6, $2}'
echo "Copy the repository with $kit/ to the GPU machine, and there: bash $kit/run.sh"
