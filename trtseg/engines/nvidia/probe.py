"""What this machine has for GPU engines: driver, GPUs and runtimes. Nothing is imported and no GPU is taken for it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Any

from trtseg.engines.nvidia.runtime import INSTALL, MODULES, NAMES, TITLES, too_old

#: Compute capabilities that TensorRT-RTX 1.7 names, for a look without importing it.
RTX_CAPABILITIES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")

# Module -> the distributions that provide it.
_DISTRIBUTIONS = {
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "torch": ("torch",),
    "pycuda": ("pycuda",),
}
# CUdevice_attribute and CUresult in cuda.h
_MAJOR, _MINOR, _NO_DEVICE = 75, 76, 100


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver numbers them: index, name, compute capability (``sm_89``) and memory in bytes."""

    index: int
    name: str
    sm: str
    memory: int

    def __str__(self) -> str:
        return f"{self.name} ({self.sm})"


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver.

    Attributes
    ----------
    version : str or None
        Of the driver, as ``580.65.06``.
    cuda : str or None
        The newest CUDA that it runs, as ``13.0``.
    gpus : tuple of Gpu
        Those that this process may use (``CUDA_VISIBLE_DEVICES``).
    problem : str or None
        Why there is no GPU, if there is none.
    """

    version: str | None
    cuda: str | None
    gpus: tuple[Gpu, ...]
    problem: str | None


@dataclass(frozen=True)
class Ability:
    """Whether a runtime can do something here.

    Attributes
    ----------
    runtime, version : str, str or None
        Which, and what is installed of it.
    where : str
        The GPU, or ``no GPU``, or ``cpu``.
    task : str
        ``build`` or ``run``.
    works : bool or None
        None: not known.
    detail : str
        What it is good for, or why it does not work and what to do.
    """

    runtime: str
    version: str | None
    where: str
    task: str
    works: bool | None
    detail: str


def find_driver() -> Driver:
    """Ask the driver's own libraries; without a driver there is a reason in ``problem``."""
    try:
        cuda: Any = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver(None, None, (), "there is no NVIDIA driver (libcuda.so.1 is not found)")
    number = ctypes.c_int()
    newest = None
    if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0 and number.value > 0:
        newest = f"{number.value // 1000}.{number.value % 1000 // 10}"
    version = _driver_version()
    code = cuda.cuInit(0)
    if code == _NO_DEVICE:
        return Driver(version, newest, (), "the NVIDIA driver sees no GPU")
    if code != 0:
        return Driver(version, newest, (), f"the NVIDIA driver does not start (CUDA error {code})")
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_gpu(cuda, index) for index in range(count.value))
    return Driver(version, newest, gpus, None if gpus else "the NVIDIA driver sees no GPU")


def _gpu(cuda: Any, index: int) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        numbers.append(number.value)
    return Gpu(index, name.value.decode(errors="replace"), f"sm_{numbers[0]}{numbers[1]}", memory.value)


def _driver_version() -> str | None:
    """Version of the driver itself, which only its management library tells."""
    try:
        nvml: Any = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    text = ctypes.create_string_buffer(96)
    failed = nvml.nvmlSystemGetDriverVersion(text, len(text))
    nvml.nvmlShutdown()
    return None if failed else text.value.decode(errors="replace")


def installed(module: str) -> str | None:
    """Version of an installed package, found without importing it; None if it is not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    for name in _DISTRIBUTIONS[module]:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown version"


def why_stale(name: str, version: str) -> str | None:
    """Why engines of that version of a runtime cannot be used here, or None: a runtime loads only its own engines."""
    here = installed(MODULES[name])
    return None if here == version else f"stale: {TITLES[name]} here is {here or 'not installed'}"


def abilities(driver: Driver, *, ops_on_cuda: bool) -> list[Ability]:
    """Each runtime on each GPU: whether it can build engines here, and whether it can run them.

    Parameters
    ----------
    driver : Driver
        What `find_driver` found.
    ops_on_cuda : bool
        Whether the extension was built with CUDA.
    """
    found = []
    for name in NAMES:
        version = installed(MODULES[name])
        for gpu in driver.gpus or (None,):
            where = f"{gpu.index}: {gpu}" if gpu else "no GPU"
            problem = _missing(name, version)
            build = (False, problem) if problem else _can_build(name, gpu, driver)
            run = (False, problem) if problem else _can_run(name, gpu, driver, ops_on_cuda)
            found.append(Ability(name, version, where, "build", *build))
            found.append(Ability(name, version, where, "run", *run))
    return found


def compiled_for(archs: str, sm: str) -> bool:
    """Whether CUDA code for ``archs``, as ``"75,90"``, of which the last is there as PTX too, runs on ``sm_86``.

    Machine code runs on the GPUs of its generation from its own version on, PTX on all from its version on.
    """
    built, here = [int(n) for n in archs.split(",") if n], int(sm.removeprefix("sm_"))
    return any(n <= here and (n // 10 == here // 10 or n == built[-1]) for n in built)


def _missing(name: str, version: str | None) -> str | None:
    return f"not installed: {INSTALL[name]}" if version is None else too_old(name, version)


def _can_build(name: str, gpu: Gpu | None, driver: Driver) -> tuple[bool, str]:
    if name == "torch":
        return False, "it builds none: nets are run as they are"
    if name == "tensorrt-rtx":
        return True, f"for {', '.join(RTX_CAPABILITIES)} and portable; needs no GPU"
    if gpu is None:
        return False, f"{TITLES[name]} builds only for the GPU it runs on, and {driver.problem}"
    return True, "for this GPU"


def _can_run(name: str, gpu: Gpu | None, driver: Driver, ops_on_cuda: bool) -> tuple[bool | None, str]:
    if gpu is None:
        return False, str(driver.problem)
    if not ops_on_cuda:
        return False, "trtseg's own operations were built without CUDA: install trtseg again where nvcc is"
    if installed("pycuda") is None:
        return False, 'PyCUDA is not installed: pip install "trtseg[cuda]"'
    if name == "tensorrt-rtx" and gpu.sm not in RTX_CAPABILITIES:
        return None, f"NVIDIA does not list {gpu.sm} for {TITLES[name]}; use {TITLES['tensorrt']} there"
    return True, "all that it needs is here"
