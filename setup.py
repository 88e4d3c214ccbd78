"""Builds the extension trtseg._core; everything else is in pyproject.toml.

TRTSEG_CUDA=auto|0|1        compile the CUDA ops: if there is an nvcc that can (default), never, or always
TRTSEG_CUDA_ARCHS=90,120    GPU architectures, for a quicker build than for all that nvcc knows
TRTSEG_WERROR=1             warnings are errors: for tests, as the next compiler will have new ones
MAX_JOBS=4                  object files to compile at a time
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, has_flag
from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, ExecError

# Turing, Ampere, Orin, Ada, Hopper, Blackwell and Thor, as far as nvcc knows them.
# The newest also as PTX, for GPUs to come.
CUDA_ARCHS = (75, 80, 86, 87, 89, 90, 100, 110, 120)

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
    "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra",
    "--threads=2",
]
if os.environ.get("TRTSEG_WERROR") == "1":
    CXX_FLAGS += ["-Werror"]
    NVCC_FLAGS += ["-Werror=all-warnings", "-Xcompiler=-Werror"]
CSRC = Path("csrc")
# Flags of single files. They run only where the processor has these instructions, for which they ask. The nets' FP32
# convolutions promise no bits.
IS_X86 = platform.machine() in ("x86_64", "AMD64")
AVX2 = ["-mavx2", "-mfma"] if IS_X86 else []
AVX512 = ["-mavx512f", "-mavx512vl"] if IS_X86 else []
AVX512_VNNI = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"] if IS_X86 else []
AVX_VNNI = ["-mavxvnni"] if IS_X86 else []
IS_ARM64 = platform.machine() == "aarch64" and sys.maxsize > 2**32
ASIMDDP = ["-march=armv8.2-a+dotprod"] if IS_ARM64 else []
I8MM = ["-march=armv8.2-a+i8mm"] if IS_ARM64 else []
# A file does without one of these that the compiler does not know, as GCC before 11.
NEW_FLAGS = AVX_VNNI + ASIMDDP + I8MM
FILE_FLAGS = {
    "conv.cpp": ["-ffp-contract=fast", *AVX2],
    "conv_avx512.cpp": ["-ffp-contract=fast", *AVX512],
    "conv_int8_avx2.cpp": AVX2,
    "conv_int8_avx512_vnni.cpp": AVX512_VNNI,
    "conv_int8_avx_vnni.cpp": [*AVX2, *AVX_VNNI],
    "conv_int8_asimddp.cpp": ASIMDDP,
    "conv_int8_i8mm.cpp": I8MM,
}
CUDA_SOURCES = ("ops_cuda.cu", "graph_cuda.cu")  # only where there is an nvcc

# What they need of a toolkit and of its host compiler: C++17, and launches with a configuration (CUDA 11.8).
PROBE = """#include <cuda_runtime.h>
__global__ void kernel(int) {}
void launch() {
  cudaLaunchConfig_t config{};
  if constexpr (sizeof(int) == 4) cudaLaunchKernelEx(&config, kernel, 1);
}
"""


INSTALL = "install the CUDA toolkit (12.8 or newer) and set CUDA_HOME to its folder"


class NoCuda(Exception):
    """Why the CUDA ops cannot be built here, and what to do."""


def listed(numbers, comma=", "):
    return comma.join(str(n) for n in numbers)


def find_nvcc():
    """Return the path of nvcc: in CUDA_HOME if that is set, else on PATH or in /usr/local/cuda; or None."""
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin"] if home else [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    found = (shutil.which("nvcc", path=place) for place in places)
    return next((Path(nvcc).resolve() for nvcc in found if nvcc), None)


def ask(nvcc, *arguments):
    """Return what nvcc prints."""
    try:
        done = subprocess.run([nvcc, *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise NoCuda(f"{nvcc} cannot be run ({error.strerror}): {INSTALL}.") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["no message"]
        why = next((line for line in lines if re.search("error|fatal", line)), lines[-1])
        raise NoCuda(
            f"{nvcc} fails ({why.strip()}): {INSTALL}; the host compiler must be one that it supports."
        )
    return done.stdout + done.stderr


def wanted_archs():
    """Return the architectures that TRTSEG_CUDA_ARCHS names, e.g. [75, 80], or None."""
    text = os.environ.get("TRTSEG_CUDA_ARCHS")
    if text is None:
        return None
    archs = [a.strip() for a in text.split(",") if a.strip()]
    if not archs or not all(re.fullmatch(r"\d{2,3}", a) for a in archs):
        sys.exit(f"TRTSEG_CUDA_ARCHS: got {text!r}, expected numbers such as 90 or 86,90.")
    return sorted({int(a) for a in archs})


def choose_archs(nvcc, version):
    """Return the architectures to compile for, sorted: those that are wanted, or those of ours that nvcc knows."""
    wanted = wanted_archs()
    known = {int(a) for a in re.findall(r"^compute_(\d+)$", ask(nvcc, "--list-gpu-arch"), re.MULTILINE)}
    unknown = [a for a in wanted or () if a not in known]
    if unknown:
        sys.exit(
            f"TRTSEG_CUDA_ARCHS: got {unknown[0]}, which {nvcc} (CUDA {version}) does not know, expected some of "
            f"{listed(sorted(known)) or 'none'}; install a CUDA toolkit that knows it."
        )
    archs = wanted or [a for a in CUDA_ARCHS if a in known]
    if not archs:
        raise NoCuda(f"{nvcc} (CUDA {version}) knows none of sm_{listed(CUDA_ARCHS)}: {INSTALL}.")
    return archs


def find_cudart(nvcc):
    """Return the path of the static runtime, from nvcc itself: that may be a wrapper that lies anywhere."""
    for folder in re.findall(r'-L"?([^"\s]+)', ask(nvcc, "--dryrun", "x.o", "-o", "x")):
        library = Path(folder) / "libcudart_static.a"
        if library.exists():
            return str(library)
    raise NoCuda(
        f"{nvcc} has no libcudart_static.a: install the whole CUDA toolkit, with its development files."
    )


@dataclass(frozen=True)
class Toolkit:
    """What compiles the CUDA ops."""

    nvcc: Path
    version: str  # e.g. "13.0"
    archs: list[int]
    cudart: str

    @classmethod
    def find(cls):
        """Return the one to use, which has compiled a small file; raise NoCuda if there is none."""
        nvcc = find_nvcc()
        if nvcc is None:
            raise NoCuda(
                "there is no nvcc in CUDA_HOME or, if that is not set, on PATH or in /usr/local/cuda: "
                f"{INSTALL}."
            )
        wanted_archs()  # a typo there comes before what is wrong with nvcc
        release = re.search(r"release (\d+\.\d+)", ask(nvcc, "--version"))
        version = release[1] if release else "unknown"
        archs, cudart = choose_archs(nvcc, version), find_cudart(nvcc)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cu")
            source.write_text(PROBE)
            ask(nvcc, *NVCC_FLAGS, f"-arch=compute_{archs[0]}", "-c", source, "-o", source.with_suffix(".o"))
        return cls(nvcc, version, archs, cudart)

    def compile(self, source, target):
        """Make machine code for each architecture, and PTX of the newest."""
        last = self.archs[-1]
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in self.archs]
        targets.append(f"-gencode=arch=compute_{last},code=compute_{last}")
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [self.nvcc, *NVCC_FLAGS, *targets, "-c", source, "-o", target]
        if subprocess.run(command, check=False).returncode != 0:
            raise CompileError(f"nvcc failed on {source}, see above; TRTSEG_CUDA=0 builds without CUDA")
        return str(target)


def cuda_decision():
    """Return (Toolkit or None, why), as TRTSEG_CUDA says."""
    wish = os.environ.get("TRTSEG_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"TRTSEG_CUDA: got {wish!r}, expected auto, 0 or 1.")
    if wish == "0":
        return None, "TRTSEG_CUDA=0"
    try:
        cuda = Toolkit.find()
    except NoCuda as why:
        if wish == "1":
            sys.exit(f"TRTSEG_CUDA=1, but {why}")
        return None, str(why).rstrip(".")
    return cuda, f"{cuda.nvcc}, CUDA {cuda.version}, sm_{listed(cuda.archs)}"


def max_jobs():
    """Return how many files to compile at a time."""
    text = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    if not text.isdecimal():
        sys.exit(f"MAX_JOBS: got {text!r}, expected a number.")
    return max(1, int(text))


def what_is_missing(program):
    """Return what the machine lacks to compile C++ for Python with `program`, and what to do; or None."""
    if shutil.which(program) is None:
        return (
            f"there is no C++ compiler {program}; install g++ (Debian, Ubuntu: apt install g++; Fedora: dnf "
            "install gcc-c++) or clang, or name yours: CC=clang CXX=clang++"
        )
    folder = sysconfig.get_path("include")
    if not Path(folder, "Python.h").exists():
        return (
            f"there is no Python.h in {folder}; install the headers of this Python "
            "(Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)"
        )
    return None


class BuildExt(build_ext):
    """Compiles the CUDA sources with nvcc beside the C++ files, the objects in parallel."""

    def finalize_options(self):
        super().finalize_options()
        self.force = True  # what is there may have been built with other settings

    def build_extension(self, ext):
        cuda, why = cuda_decision()
        print(f"trtseg: building {'with' if cuda else 'without'} CUDA ({why})", file=sys.stderr, flush=True)
        if cuda:
            ext.define_macros += [
                ("TRTSEG_CUDA", "1"),
                ("TRTSEG_CUDA_VERSION", f'"{cuda.version}"'),
                ("TRTSEG_CUDA_ARCHS", f'"{listed(cuda.archs, ",")}"'),
            ]
            ext.libraries += ["dl", "rt"]
            # The runtime is linked in and its symbols stay inside: other modules bring their own.
            ext.extra_link_args += [cuda.cudart, "-Wl,--exclude-libs,libcudart_static.a"]
        cuda_sources = [CSRC / name for name in CUDA_SOURCES] if cuda else []
        objects_folder = Path(self.build_temp)
        compile_one = self.compiler.compile
        unknown = [flag for flag in NEW_FLAGS if not has_flag(self.compiler, flag)]
        with ThreadPoolExecutor(max_jobs()) as pool:
            cuda_objects = [
                pool.submit(cuda.compile, s, objects_folder / s.with_suffix(".o")) for s in cuda_sources
            ]

            def compile_cxx(source, *, extra_postargs, **kwargs):
                own = [flag for flag in FILE_FLAGS.get(Path(source).name, []) if flag not in unknown]
                return compile_one([source], extra_postargs=[*extra_postargs, *own], **kwargs)

            def compile_all(sources, **kwargs):
                objects = [o for one in pool.map(lambda s: compile_cxx(s, **kwargs), sources) for o in one]
                return objects + [o.result() for o in cuda_objects]

            self.compiler.compile = compile_all
            try:
                super().build_extension(ext)
            except (CompileError, ExecError, OSError) as error:
                missing = what_is_missing(self.compiler.compiler_so_cxx[0])
                if missing is None:
                    raise
                raise CompileError(missing) from error
            finally:
                self.compiler.compile = compile_one


core = Pybind11Extension(
    "trtseg._core",
    [
        str(CSRC / name)
        for name in (
            "bind_arrays.cpp",
            "bind_host.cpp",
            "bind_net.cpp",
            "bindings.cpp",
            "conv.cpp",
            "conv_avx512.cpp",
            "conv_int8.cpp",
            "conv_int8_asimddp.cpp",
            "conv_int8_avx2.cpp",
            "conv_int8_avx512_vnni.cpp",
            "conv_int8_avx_vnni.cpp",
            "conv_int8_i8mm.cpp",
            "net.cpp",
            "net_fp32.cpp",
            "net_int8.cpp",
            "net_plan.cpp",
            "ops.cpp",
            "ops_cpu.cpp",
        )
    ],
    depends=[str(p) for p in sorted(CSRC.glob("*.[ch]*"))],
    include_dirs=[str(CSRC)],
    extra_compile_args=CXX_FLAGS,
    extra_link_args=["-pthread"],
    cxx_std=17,
)

setup(ext_modules=[core], cmdclass={"build_ext": BuildExt})
