"""Builds the extension trtseg._core; everything else is in pyproject.toml.

TRTSEG_CUDA=auto|0|1        compile the CUDA ops: if nvcc is found (default), never, or always
TRTSEG_CUDA_ARCHS=90,120    GPU architectures, for a quicker build than for all of them
MAX_JOBS=4                  object files to compile at a time
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

# Turing, Ampere, Ada, Hopper, Blackwell; the newest also as PTX, for GPUs to come.
CUDA_ARCHS = ("75", "80", "86", "89", "90", "100", "120")

# The ops promise the same bits on every device: no contraction, no fast-math.
# (Python's own flags may bring -fwrapv, which keeps loops with int indices from being vectorised.)
CXX_FLAGS = [
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-wrapv",
    "-Wall",
    "-Wextra",
]
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fmad=false",
    "-prec-div=true",
    "-prec-sqrt=true",
    "-ftz=false",
    "-Werror=all-warnings",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra,-Werror",
    "--threads=2",
]
CSRC = Path("csrc")


def find_nvcc():
    """Return the path of nvcc: in CUDA_HOME if that is set, else on PATH or in /usr/local/cuda; or None."""
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin"] if home else [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    found = (shutil.which("nvcc", path=place) for place in places)
    return next((Path(nvcc).resolve() for nvcc in found if nvcc), None)


def cuda_decision():
    """Return (nvcc or None, why), as TRTSEG_CUDA says."""
    wish = os.environ.get("TRTSEG_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"TRTSEG_CUDA: got {wish!r}, expected auto, 0 or 1.")
    if wish == "0":
        return None, "TRTSEG_CUDA=0"
    nvcc = find_nvcc()
    if nvcc is None and wish == "1":
        sys.exit(
            "TRTSEG_CUDA=1, but there is no nvcc in CUDA_HOME or, if that is not set, on PATH or in "
            "/usr/local/cuda: install the CUDA toolkit (12.8 or newer) and set CUDA_HOME to its folder."
        )
    return nvcc, f"nvcc is {nvcc}" if nvcc else "no nvcc found"


def cuda_archs():
    """Return the architectures to compile for, sorted, e.g. ("75", "80")."""
    text = os.environ.get("TRTSEG_CUDA_ARCHS", ",".join(CUDA_ARCHS))
    archs = [a.strip() for a in text.split(",") if a.strip()]
    if not archs or not all(re.fullmatch(r"\d{2,3}[af]?", a) for a in archs):
        sys.exit(f"TRTSEG_CUDA_ARCHS: got {text!r}, expected numbers such as 90 or 86,90.")
    return sorted(archs, key=lambda a: int(a.rstrip("af")))


def cuda_version(nvcc):
    """Return nvcc's release, e.g. "13.0"."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+\.\d+)", text)
    return release[1] if release else "unknown"


def cudart(nvcc):
    """Return the path of the static runtime, from nvcc itself: that may be a wrapper that lies anywhere."""
    dryrun = subprocess.run([nvcc, "--dryrun", "x.o", "-o", "x"], capture_output=True, text=True, check=True)
    for folder in re.findall(r'-L"?([^"\s]+)', dryrun.stderr):
        library = Path(folder) / "libcudart_static.a"
        if library.exists():
            return str(library)
    return sys.exit(
        f"{nvcc} has no libcudart_static.a: install the whole CUDA toolkit, or set TRTSEG_CUDA=0."
    )


def max_jobs():
    """Return how many files to compile at a time."""
    text = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    if not text.isdecimal():
        sys.exit(f"MAX_JOBS: got {text!r}, expected a number.")
    return max(1, int(text))


class BuildExt(build_ext):
    """Compiles ops_cuda.cu with nvcc beside the C++ files, the objects in parallel."""

    def finalize_options(self):
        super().finalize_options()
        self.force = True  # what is there may have been built with other settings

    def build_extension(self, ext):
        nvcc, why = cuda_decision()
        archs = cuda_archs() if nvcc else ()
        print(f"trtseg: building {'with' if nvcc else 'without'} CUDA ({why})", file=sys.stderr, flush=True)
        if nvcc:
            ext.define_macros += [
                ("TRTSEG_CUDA", "1"),
                ("TRTSEG_CUDA_VERSION", f'"{cuda_version(nvcc)}"'),
                ("TRTSEG_CUDA_ARCHS", f'"{",".join(archs)}"'),
            ]
            ext.libraries += ["dl", "rt"]
            # The runtime is linked in and its symbols stay inside: other modules bring their own.
            ext.extra_link_args += [cudart(nvcc), "-Wl,--exclude-libs,libcudart_static.a"]
        compile_one = self.compiler.compile
        with ThreadPoolExecutor(max_jobs()) as pool:
            cuda_objects = [pool.submit(self.compile_cuda, nvcc, archs)] if nvcc else []

            def compile_all(sources, **kwargs):
                objects = [o for one in pool.map(lambda s: compile_one([s], **kwargs), sources) for o in one]
                return objects + [o.result() for o in cuda_objects]

            self.compiler.compile = compile_all
            try:
                super().build_extension(ext)
            finally:
                self.compiler.compile = compile_one

    def compile_cuda(self, nvcc, archs):
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        targets.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        target = Path(self.build_temp) / CSRC / "ops_cuda.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([nvcc, *NVCC_FLAGS, *targets, "-c", CSRC / "ops_cuda.cu", "-o", target], check=True)
        return str(target)


core = Pybind11Extension(
    "trtseg._core",
    [str(CSRC / name) for name in ("bindings.cpp", "ops.cpp", "ops_cpu.cpp")],
    depends=[str(p) for p in sorted(CSRC.glob("*.[ch]*"))],
    include_dirs=[str(CSRC)],
    extra_compile_args=CXX_FLAGS,
    extra_link_args=["-pthread"],
    cxx_std=17,
)

setup(ext_modules=[core], cmdclass={"build_ext": BuildExt})
