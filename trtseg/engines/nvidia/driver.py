"""The NVIDIA driver and its GPUs, asked through the driver's own libraries, without a package and without a context."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

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
        Version of the driver, as ``580.65.06``.
    cuda : str or None
        The newest CUDA that the driver runs, as ``13.0``.
    gpus : tuple of Gpu
        The GPUs that this process may use (``CUDA_VISIBLE_DEVICES``).
    problem : str or None
        Why there is no GPU, if there is none.
    """

    version: str | None
    cuda: str | None
    gpus: tuple[Gpu, ...]
    problem: str | None


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
