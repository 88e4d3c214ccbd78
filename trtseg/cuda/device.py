"""GPUs: contexts, memory, streams and events, by PyCUDA. Launches and graphs are in the extension.

The context is the GPU's primary one, which PyTorch, CuPy and the CUDA runtime use too: trtseg uses their arrays without
a copy. Functions that need a context are called inside ``with device:``, on any thread.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trtseg import _core
from trtseg.cuda.arrays import CudaArray
from trtseg.errors import DeviceError, OutOfMemoryError, TrtsegError

log = logging.getLogger("trtseg")

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered with the legacy default stream of other libraries


class _Errors:
    """Turns PyCUDA's errors into trtseg's; without state, so that threads may share it."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None or issubclass(kind, TrtsegError):
            return
        import pycuda.driver as driver

        if issubclass(kind, driver.MemoryError):
            raise OutOfMemoryError(f"the GPU has too little free memory ({error})") from error
        if issubclass(kind, driver.Error):
            raise DeviceError(f"CUDA: {error}; check the GPU with nvidia-smi") from error


_ERRORS = _Errors()


def errors() -> _Errors:
    """Context in which PyCUDA's errors become a DeviceError or an OutOfMemoryError."""
    return _ERRORS


class Stream:
    """A queue of work that neither waits for the default stream nor makes the default stream wait.

    Attributes
    ----------
    handle : int
        The stream as the extension and other libraries know it.
    """

    def __init__(self) -> None:
        import pycuda.driver as driver

        with errors():
            self._stream: Any = driver.Stream(_NON_BLOCKING)
        self.handle = int(self._stream.handle)

    def synchronize(self) -> None:
        """Wait for the work on this stream, and for no other: another thread may be recording a graph."""
        with errors():
            self._stream.synchronize()

    def close(self) -> None:
        """Destroy the stream; its device is current."""
        self._stream = None  # PyCUDA destroys a stream with the last reference to it


class Event:
    """A point in a stream. ``timed`` events can be subtracted; the others are cheaper."""

    def __init__(self, *, timed: bool = False) -> None:
        import pycuda.driver as driver

        with errors():
            flags = driver.event_flags.DEFAULT if timed else driver.event_flags.DISABLE_TIMING
            self._event: Any = driver.Event(flags)

    def record(self, stream: Stream) -> None:
        """Move the event to the end of the work that is on a stream now."""
        with errors():
            self._event.record(stream._stream)

    def synchronize(self) -> None:
        """Wait until the stream has come to this point."""
        with errors():
            self._event.synchronize()

    def seconds_since(self, start: Event) -> float:
        """GPU time between two timed events that the stream has passed."""
        with errors():
            return float(self._event.time_since(start._event)) / 1e3

    def close(self) -> None:
        """Destroy the event; its device is current."""
        self._event = None  # PyCUDA destroys an event with the last reference to it


class Resources:
    """Memory, streams and events of a GPU that are given back together, by `close` or at the end of ``with``.

    They are made inside ``with device:``. `close` may be called anywhere, also twice, and waits for the streams first.
    Whoever makes a Resources closes it: PyCUDA leaks memory that it releases where the device is not current.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._held = ExitStack()
        self._streams: list[Stream] = []

    def __enter__(self) -> Resources:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def array(self, shape: Sequence[int], dtype: DTypeLike) -> CudaArray:
        """GPU memory, with any contents."""
        import pycuda.driver as driver

        with errors():
            allocation = driver.mem_alloc(max(math.prod(shape) * np.dtype(dtype).itemsize, 1))
        self._held.callback(allocation.free)
        return CudaArray(int(allocation), shape, dtype, self)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Page-locked host memory, set to 0, from which a GPU copies without the CPU."""
        import pycuda.driver as driver

        with errors():
            array: NDArray[Any] = driver.pagelocked_empty(tuple(shape), np.dtype(dtype))
        self._held.callback(array.base.free)  # type: ignore[union-attr]
        array.fill(0)
        return array

    def stream(self) -> Stream:
        """A new stream."""
        self._streams.append(Stream())
        self._held.callback(self._streams[-1].close)
        return self._streams[-1]

    def event(self, *, timed: bool = False) -> Event:
        """A new event."""
        event = Event(timed=timed)
        self._held.callback(event.close)
        return event

    def synchronize(self) -> None:
        """Wait for the work on these streams."""
        for stream in self._streams:
            stream.synchronize()

    def close(self) -> None:
        """Give everything back, on whatever thread; where the context is lost, a log message says so."""
        streams, self._streams = self._streams, []
        try:
            with self._device, errors(), self._held:  # everything goes, also where a stream has failed
                for stream in streams:
                    stream.synchronize()
        except TrtsegError as error:
            log.warning("GPU memory could not be given back (%s)", error)


class Device:
    """A GPU whose primary context is held; current on this thread inside ``with device:``. Made by `open_device`.

    Attributes
    ----------
    index : int
        Number of the GPU, as the driver counts.
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
        # The context is never destroyed, also not while Python ends. PyCUDA's destructor treats a primary context as a
        # context of PyCUDA's own; the driver refuses that, with a warning on stderr. A proper release would take the
        # context from objects of other libraries that are destroyed later. The driver frees it with the process.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._context))
        self._pop = driver.Context.pop

    def __enter__(self) -> Device:
        with errors():
            self._context.push()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with errors():
            self._pop()


@functools.cache
def open_device(index: int) -> Device:
    """The only `Device` of a GPU: PyCUDA frees memory only in the context object in which it was made.

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


def upload(dst: CudaArray, src: NDArray[Any], stream: Stream) -> None:
    """Enqueue a copy of a pinned array to the GPU; sizes are equal."""
    import pycuda.driver as driver

    assert dst.nbytes == src.nbytes
    with errors():
        driver.memcpy_htod_async(dst.address, src, stream._stream)


def download(dst: NDArray[Any], src: CudaArray, stream: Stream) -> None:
    """Enqueue a copy from the GPU into a pinned array; sizes are equal."""
    import pycuda.driver as driver

    assert dst.nbytes == src.nbytes
    with errors():
        driver.memcpy_dtoh_async(dst, src.address, stream._stream)


class OneOutput:
    """Runs ops that have one small output, one at a time, and brings the output to the host; its device is current.

    Parameters
    ----------
    own : Resources
        Gives memory and events, which it keeps.
    stream : Stream
        Where the ops run.
    """

    def __init__(self, own: Resources, stream: Stream) -> None:
        self._own, self._stream, self._order = own, stream, _core.Event()
        self._memory, self._host = CudaArray(0, (0,), np.uint8), np.empty(0, np.uint8)

    def wait_for(self, streams: Iterable[int]) -> None:
        """Let ops wait for what is enqueued on other streams so far."""
        for other in streams:
            self._order.wait_for(self._stream.handle, other)

    def run(self, op: Callable[..., None], shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Call an op with an array of this shape and dtype, and its stream; wait, and return the array on the host."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if nbytes > self._host.nbytes:  # the first time mostly: 4 KiB hold the samples of a CT
            size = max(4096, 2 * nbytes)
            self._memory, self._host = self._own.array((size,), np.uint8), self._own.pinned((size,), np.uint8)
        op(CudaArray(self._memory.address, shape, dtype), stream=self._stream.handle)
        download(self._host[:nbytes], self._memory[:nbytes], self._stream)
        self._stream.synchronize()
        return self._host[:nbytes].copy().view(dtype).reshape(shape)
