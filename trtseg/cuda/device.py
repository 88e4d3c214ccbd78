"""GPUs: contexts, memory, streams and events, on PyCUDA. Launches and graphs are in the extension.

The context is the GPU's primary one, which PyTorch, CuPy and the CUDA runtime use too: their arrays go in as they are.
All that needs a context is called inside ``with device:``, on any thread.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trtseg.cuda.arrays import CudaArray
from trtseg.errors import DeviceError, OutOfMemoryError, TrtsegError

log = logging.getLogger("trtseg")

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered with the legacy default stream of other libraries


class Resources:
    """Memory, streams and events of a GPU that are given back together: by `free`, or when nobody refers to this.

    All is made inside ``with device:``. PyCUDA leaks what it releases without a current context, so this sees to it
    that there is one, on whatever thread that happens; and that the work on these streams has ended.
    """

    def __init__(self, device: Device) -> None:
        self._held: list[Any] = []
        self.free = weakref.finalize(self, _release, device, self._held)

    def array(self, shape: Sequence[int], dtype: DTypeLike) -> CudaArray:
        """GPU memory, with anything in it."""
        import pycuda.driver as driver

        with errors():
            allocation = driver.mem_alloc(max(math.prod(shape) * np.dtype(dtype).itemsize, 1))
        self._held.append(allocation)
        return CudaArray(int(allocation), shape, dtype, self)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Page-locked host memory, set to 0, from which a GPU copies without the CPU."""
        import pycuda.driver as driver

        with errors():
            array: NDArray[Any] = driver.pagelocked_empty(tuple(shape), np.dtype(dtype))
        array.fill(0)
        self._held.append(array.base)
        return array

    def stream(self) -> Any:
        """A PyCUDA stream, that neither waits for the default stream nor makes it wait."""
        import pycuda.driver as driver

        with errors():
            self._held.append(driver.Stream(_NON_BLOCKING))
        return self._held[-1]

    def event(self) -> Any:
        """A PyCUDA event without a time, which makes it cheap."""
        import pycuda.driver as driver

        with errors():
            self._held.append(driver.Event(driver.event_flags.DISABLE_TIMING))
        return self._held[-1]

    def synchronize(self) -> None:
        """Wait for the work on its streams, and not for the whole GPU: another thread may be recording a graph."""
        _synchronize(self._held)


def _synchronize(held: list[Any]) -> None:
    import pycuda.driver as driver

    with errors():
        for one in held:
            if isinstance(one, driver.Stream):
                one.synchronize()


def _release(device: Device, held: list[Any]) -> None:
    try:
        with device:
            _synchronize(held)
            while held:
                one = held.pop()
                if hasattr(one, "free"):
                    one.free()
                del one  # a stream or an event goes with its last reference
    except TrtsegError as error:  # the context is lost, and all that is in it
        log.warning("GPU memory could not be given back (%s)", error)


class Device:
    """A GPU whose primary context is held; current on this thread inside ``with device:``. Made by `open_device`.

    Attributes
    ----------
    index : int
        As the driver numbers them.
    name, sm : str
        ``NVIDIA H100 80GB HBM3`` and ``sm_90``.
    """

    def __init__(self, index: int) -> None:
        import pycuda.driver as driver

        with errors():
            driver.init()
            count = driver.Device.count()
            if index >= count:
                raise DeviceError(f"device: got 'cuda:{index}', but there are {count} GPUs, counted from 0")
            gpu = driver.Device(index)
            self.index, self.name = index, gpu.name()
            self.sm = "sm_{}{}".format(*gpu.compute_capability())
            self._context = gpu.retain_primary_context()
        # Kept for good, also while Python ends: PyCUDA's destructor treats a primary context as one of its own, and the
        # driver refuses that, with a warning on stderr. To release it properly would take it from what is destroyed
        # later, by other libraries too. It goes with the process.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._context))

    def __enter__(self) -> Device:
        with errors():
            self._context.push()
        return self

    def __exit__(self, *_: object) -> None:
        import pycuda.driver as driver

        with errors():
            driver.Context.pop()

    def synchronize(self) -> None:
        """Wait for all work on the GPU; a DeviceError if some of it failed."""
        import pycuda.driver as driver

        with errors():
            driver.Context.synchronize()


@functools.cache
def open_device(index: int) -> Device:
    """The one `Device` of that number: PyCUDA frees memory only in the context object that it was made in.

    Raises
    ------
    DeviceError
        PyCUDA is not installed or does not load, or there is no such GPU.
    """
    try:
        import pycuda.driver  # noqa: F401
    except ModuleNotFoundError as error:
        raise DeviceError(
            "device: got 'cuda', but PyCUDA is not installed: pip install \"trtseg[cuda]\""
        ) from error
    except ImportError as error:  # a driver or a toolkit that does not fit
        raise DeviceError(
            f"device: got 'cuda', but PyCUDA does not load ({error}); install it again: "
            'pip install --no-cache-dir --force-reinstall "trtseg[cuda]"'
        ) from error
    return Device(index)


@contextmanager
def errors() -> Iterator[None]:
    """PyCUDA's errors as trtseg's."""
    import pycuda.driver as driver

    try:
        yield
    except driver.MemoryError as error:
        raise OutOfMemoryError(f"the GPU has too little free memory ({error})") from error
    except driver.Error as error:
        raise DeviceError(f"CUDA: {error}; check the GPU with nvidia-smi") from error


def upload(dst: CudaArray, src: NDArray[Any], stream: Any) -> None:
    """Enqueue a copy of a pinned array to the GPU; sizes are equal."""
    import pycuda.driver as driver

    assert dst.nbytes == src.nbytes
    with errors():
        driver.memcpy_htod_async(dst.address, src, stream)


def download(dst: NDArray[Any], src: CudaArray, stream: Any) -> None:
    """Enqueue a copy from the GPU into a pinned array; sizes are equal."""
    import pycuda.driver as driver

    assert dst.nbytes == src.nbytes
    with errors():
        driver.memcpy_dtoh_async(dst, src.address, stream)


def to_host(src: CudaArray) -> NDArray[Any]:
    """Copy an array from the GPU, after all work that was enqueued there."""
    import pycuda.driver as driver

    dst = np.empty(src.shape, src.dtype)
    with errors():
        driver.Context.synchronize()
        driver.memcpy_dtoh(dst, src.address)
    return dst
