"""GPUs: contexts, memory, streams and events, on PyCUDA. Launches and graphs are in the extension.

The context is the GPU's primary one, which PyTorch, CuPy and the CUDA runtime use too: their arrays go in as they are.
All that needs a context is called inside ``with device:``, on any thread.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import operator
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trtseg.errors import ArgumentError, DeviceError, OutOfMemoryError, TrtsegError

log = logging.getLogger("trtseg")

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: not ordered with the legacy default stream of other libraries


class CudaArray:
    """A C-contiguous array in GPU memory that somebody else owns; ops and other libraries read its interface.

    Attributes
    ----------
    address : int
        Of the first element.
    shape : tuple of int
        Extent of each axis.
    dtype : numpy.dtype
        Type of the elements.
    owner : object
        Keeps the memory alive.
    stream : int or None
        Whoever uses the array waits for this stream, where others may still be making it.
    read_only : bool
        Nobody may write into it.
    """

    def __init__(
        self,
        address: int,
        shape: Sequence[int],
        dtype: DTypeLike,
        owner: Any = None,
        *,
        stream: int | None = None,
        read_only: bool = False,
    ) -> None:
        self.address, self.shape, self.dtype, self.owner = address, tuple(shape), np.dtype(dtype), owner
        self.stream, self.read_only = stream, read_only

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, self.read_only),
            "version": 3,
            "strides": None,
            "stream": self.stream,
        }

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> CudaArray:
        """Some neighbours along the first axis, without a copy."""
        first, last, step = rows.indices(len(self))
        if step != 1:
            raise ArgumentError(f"step: got {step}; only neighbours can be taken from a CudaArray, use 1")
        stride = self.nbytes // max(len(self), 1)
        return CudaArray(
            self.address + first * stride,
            (max(last - first, 0), *self.shape[1:]),
            self.dtype,
            self.owner,
            stream=self.stream,
            read_only=self.read_only,
        )

    @classmethod
    def of(cls, array: Any, name: str, dtype: DTypeLike, ndim: int) -> CudaArray:
        """Another library's array, as it is: no copy, no conversion.

        Parameters
        ----------
        array : object with ``__cuda_array_interface__``
            PyTorch, CuPy, PyCUDA, JAX, ...; kept alive by the result.
        name : str
            Of the argument, for messages.
        dtype, ndim : dtype, int
            What it must have. It must also be C-contiguous.
        """
        try:
            interface = array.__cuda_array_interface__
            got, shape = str(np.dtype(interface["typestr"])), tuple(map(operator.index, interface["shape"]))
            address, read_only = operator.index(interface["data"][0]), bool(interface["data"][1])
            strides, stream = interface.get("strides"), interface.get("stream")
            if strides is not None:
                strides = tuple(operator.index(stride) for stride, _ in zip(strides, shape, strict=True))
            if stream is not None:
                stream = operator.index(stream)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"{name}: got a malformed __cuda_array_interface__ ({error!r}); expected version 2 or 3 of it, "
                "update the library that made the array"
            ) from error
        check_layout(name, got, address, shape, strides, dtype, ndim)
        return cls(address, shape, dtype, array, stream=stream, read_only=read_only)


def check_layout(
    name: str,
    got: str,
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    dtype: DTypeLike,
    ndim: int,
) -> None:
    """Raise an ArgumentError unless that is a C-contiguous array of ``ndim`` axes, and ``got`` names ``dtype``.

    ``strides`` are in bytes, or None for a C-contiguous array.
    """
    expected = np.dtype(dtype)
    if got != str(expected) or len(shape) != ndim or min(shape, default=0) < 0:
        raise ArgumentError(f"{name}: got {got} of shape {shape}; expected {expected} with {ndim} axes")
    if 0 in shape:
        return
    if address == 0:
        raise ArgumentError(f"{name}: got a null pointer; expected the address of GPU memory, allocate it")
    wanted = [math.prod(shape[axis + 1 :]) * expected.itemsize for axis in range(ndim)]
    # along an axis of one element any stride will do
    if strides is not None and any(n > 1 and a != b for n, a, b in zip(shape, strides, wanted, strict=True)):
        raise ArgumentError(
            f"{name}: got an array that is not C-contiguous, expected one that is; make it contiguous "
            "(PyTorch: .contiguous(), CuPy: cupy.ascontiguousarray)"
        )


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
