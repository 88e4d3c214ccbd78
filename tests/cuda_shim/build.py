"""Builds trtseg._core with the shim instead of CUDA and runs scripts with it, under AddressSanitizer and UBSan.

An interpreter that does not know of them has to be started with their library, so each script is a process of its own.
The fixture `shim` (tests/conftest.py) is a `Shim`.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

SHIM = Path(__file__).resolve().parent
CSRC = SHIM.parents[1] / "csrc"

# The flags on which the bits depend are those of setup.py. What is not under test is compiled fast.
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", f"-I{CSRC}"]
MACROS = ["-DTRTSEG_CUDA=1", '-DTRTSEG_CUDA_VERSION="shim"', '-DTRTSEG_CUDA_ARCHS="shim"']
CUDA_FLAGS = ["-O1", "-g1", "-Wall", "-Wextra", f"-I{SHIM}", "-x", "c++"]
IS_X86 = platform.machine() in ("x86_64", "AMD64")
AVX2 = ["-mavx2", "-mfma"] if IS_X86 else []
AVX512 = ["-mavx512f", "-mavx512vl"] if IS_X86 else []
AVX512_VNNI = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"] if IS_X86 else []
# Elsewhere arm_neon.h stands in for the instructions of Arm.
IS_ARM64 = platform.machine() == "aarch64"
PLAYED = ["-D__ARM_NEON", f"-I{SHIM}"]
ASIMDDP = ["-march=armv8.2-a+dotprod"] if IS_ARM64 else [*PLAYED, "-D__ARM_FEATURE_DOTPROD"]
I8MM = ["-march=armv8.2-a+i8mm"] if IS_ARM64 else [*PLAYED, "-D__ARM_FEATURE_MATMUL_INT8"]
NET_FLAGS = {
    "conv.cpp": AVX2,
    "conv_avx512.cpp": AVX512,
    "conv_int8.cpp": [],
    "conv_int8_avx2.cpp": AVX2,
    "conv_int8_avx512_vnni.cpp": AVX512_VNNI,
    # What this computes with AVX-512 is the same, and more processors run it.
    "conv_int8_avx_vnni.cpp": [*AVX2, *AVX512_VNNI],
    "conv_int8_asimddp.cpp": ASIMDDP,
    "conv_int8_i8mm.cpp": I8MM,
    "net.cpp": [],
    "net_fp32.cpp": [],
    "net_int8.cpp": [],
    "net_plan.cpp": [],
}
BINDINGS = ("bind_arrays.cpp", "bind_host.cpp", "bind_net.cpp")  # which bindings.cpp brings together
SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]


def execute(command: list, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def compile_with(gxx: str, *arguments) -> None:
    done = execute([gxx, *arguments])
    assert done.returncode == 0, done.stderr


@dataclass
class Shim:
    """The built module and how to start an interpreter that can load it."""

    module: Path
    environment: dict[str, str]
    unwatched: str | None  # why there are no sanitizers

    def run_script(
        self, script: Path | str, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess:
        """Run a script for which trtseg._core is this module, and which can import what lies in tests/cuda_shim."""
        command = [sys.executable, SHIM / "start.py", self.module, script, *arguments]
        return execute(command, env=self.environment | environment)


def sanitizer_environment(gxx: str) -> dict[str, str]:
    """Have an interpreter start with the library of AddressSanitizer and, for exceptions, that of C++."""
    libraries = [
        execute([gxx, f"-print-file-name={name}"]).stdout.strip() for name in ("libasan.so", "libstdc++.so.6")
    ]
    # Python keeps memory until it ends, which is no leak.
    return {**os.environ, "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}


def why_no_sanitizers(gxx: str, folder: Path) -> str | None:
    """Try them on nothing: they may not be installed, or not get on with the kernel or the interpreter."""
    library = folder / "empty.so"
    done = execute([gxx, *SANITIZE, "-shared", "-x", "c++", os.devnull, "-o", library])
    if done.returncode != 0:
        return "g++ has no AddressSanitizer and UBSan"
    script = f"import ctypes, numpy; ctypes.CDLL({str(library)!r})"
    try:
        done = execute([sys.executable, "-c", script], env=sanitizer_environment(gxx))
    except subprocess.TimeoutExpired:
        return "Python hangs under AddressSanitizer"
    return f"Python fails under AddressSanitizer: {done.stderr[-300:]}" if done.returncode != 0 else None


def build_shim(folder: Path, cores: set[int], *, watched: bool = True) -> Shim:
    """Build the module in a folder, or skip the test with the reason why that cannot be; ``watched``: by sanitizers.

    The compilers run on ``cores``: a worker has one, but the other worker may wait for the same module.
    """
    gxx = shutil.which("g++")
    if gxx is None:
        pytest.skip("there is no g++ to compile the kernels with")
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")
    headers = sysconfig.get_path("include")
    if not Path(headers, "Python.h").is_file():
        pytest.skip("Python's headers are not installed")
    unwatched = why_no_sanitizers(gxx, folder) if watched else "they were not asked for"
    sanitize = SANITIZE if unwatched is None else []
    rest = ["-O0", f"-I{pybind11.get_include()}", f"-I{headers}", *MACROS]
    # All bindings at once: most of the time goes into the headers of pybind11.
    others = [word for name in BINDINGS for word in ("-include", CSRC / name)]
    flags = {CSRC / "bindings.cpp": [*rest, *others], CSRC / "ops.cpp": rest, CSRC / "ops_cpu.cpp": rest}
    flags |= {CSRC / name: ["-O1", "-g1", *own, *sanitize] for name, own in NET_FLAGS.items()}
    cuda = [*CUDA_FLAGS, *sanitize]
    flags |= dict.fromkeys((CSRC / "ops_cuda.cu", CSRC / "graph_cuda.cu"), cuda)
    flags[SHIM / "played.cpp"] = ["-O0"]

    module = folder / ("_core.so" if unwatched is None else "_core_unwatched.so")

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.name}{'.watched' if flags[source][-1:] == SANITIZE[-1:] else ''}.o"
        if not target.exists():
            compile_with(gxx, *FLAGS, *flags[source], "-c", source, "-o", target)
        return target

    def use_cores() -> None:
        os.sched_setaffinity(0, cores)  # of this thread, and of what it starts

    with (folder / "lock").open("w") as lock, ThreadPoolExecutor(2, initializer=use_cores) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects = list(pool.map(compile_one, flags))
        if not module.exists():
            compile_with(gxx, "-shared", "-pthread", *sanitize, *objects, "-o", module)
    environment = sanitizer_environment(gxx) if unwatched is None else dict(os.environ)
    return Shim(module, environment, unwatched)
