"""Stands in for ``pycuda.driver``: as much of it as trtseg uses, on the GPU that played.cpp plays.

`install` makes it what ``import pycuda.driver`` finds. Stricter than PyCUDA: no default stream, no copy from or to
memory of the host that is not page-locked, no copy that leaves its allocation. The functions at the end rule the game.
"""

import atexit
import ctypes
import importlib.machinery
import itertools
import os
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from trtseg import _core

_cuda = ctypes.CDLL(_core.__file__)
_cuda.cudaGetErrorString.restype = ctypes.c_char_p


class Error(Exception):
    """Base of PyCUDA's errors."""


class MemoryError(Error):
    """Out of memory."""


class LogicError(Error):
    """A call that makes no sense, or a broken context."""


class LaunchError(Error):
    """A kernel failed."""


class RuntimeError(Error):
    """What is asked for is not there, or not ready."""


_CLASSES = {2: MemoryError, 100: RuntimeError, 600: RuntimeError, 701: LaunchError, 702: LaunchError}
_CLASSES |= {703: LaunchError, 719: LaunchError, 999: Error}
_NOT_READY = 600


def _fail(name: str, code: int, message: str = "") -> Error:
    text = f"{name} failed: {_cuda.cudaGetErrorString(code).decode()}"
    return _CLASSES.get(code, LogicError)(f"{text} - {message}" if message else text)


def _call(name: str, code: int) -> None:
    if code != 0:
        raise _fail(name, code) from (_raised[0] if code == _LAUNCH_FAILED and _raised else None)


# ---- Contexts ----------------------------------------------------------------------------------------------------


class _Stack(threading.local):
    """The contexts of a thread. PyCUDA aborts the process when a thread ends with one of them current."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.end = _End(self.contexts)


class _End:
    def __init__(self, contexts: list["Context"]) -> None:
        self.contexts = contexts
        if threading.current_thread() is threading.main_thread():
            atexit.register(self.__del__)

    def __del__(self) -> None:
        if not self.contexts:
            return
        os.write(2, b"played PyCUDA: a thread ended with a current context; use Context.pop()\n")
        os.abort()


class Context:
    """The primary context, as retained once."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._valid = True

    def __del__(
        self, thread: Callable[[], int] = threading.get_ident, write: Callable[..., int] = os.write
    ) -> None:
        """As PyCUDA has it: the destructor calls what gives back a context of one's own, not a primary one."""
        if self._valid and thread() == self._thread:
            text = b"a clean-up operation failed (dead context maybe?)\ncuCtxDetach failed: invalid device context\n"
            write(2, b"PyCUDA WARNING: " + text)

    def push(self) -> None:
        _stack.contexts.append(self)

    def detach(self) -> None:
        if not self._valid:
            raise LogicError(
                "context::detach failed: invalid device context - cannot detach from invalid context"
            )
        self._valid = False
        if self in _stack.contexts:
            _stack.contexts.remove(self)

    @staticmethod
    def pop() -> None:
        if not _stack.contexts:
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        _stack.contexts.pop()

    @staticmethod
    def synchronize() -> None:
        _current("cuCtxSynchronize")
        _call("cuCtxSynchronize", _cuda.cudaDeviceSynchronize())


def _current(name: str) -> Context:
    """Return the context that is current in this thread."""
    while _stack.contexts and not _stack.contexts[-1]._valid:
        _stack.contexts.pop()
    if not _stack.contexts:
        raise LogicError(f"{name} failed: invalid device context")
    return _stack.contexts[-1]


class _Owned:
    """What belongs to a context: it can be cleaned up where that is current, or in the thread that retained it."""

    _destroy: tuple[str, str]  # the driver's name of the function, and ours
    handle: int | None = None

    def __init__(self) -> None:
        self._context = _current(type(self).__name__)

    def _clean_up(self) -> None:
        handle, self.handle = self.handle, None
        kind = type(self).__name__
        if handle is None or not self._context._valid:
            return
        here = bool(_stack.contexts) and _stack.contexts[-1] is self._context
        if not here and threading.get_ident() != self._context._thread:
            warnings.warn(
                f"{kind} in out-of-thread context could not be cleaned up", UserWarning, stacklevel=3
            )
            return
        name, function = self._destroy
        code = getattr(_cuda, function)(ctypes.c_void_p(handle))
        if code:
            message = (
                f"PyCUDA WARNING: a clean-up operation failed (dead context maybe?)\n{_fail(name, code)}\n"
            )
            sys.stderr.write(message)

    def __del__(self) -> None:
        self._clean_up()


class Device:
    """The one GPU there is."""

    capability = (9, 0)  # tests may change it

    def __init__(self, index: int) -> None:
        if not _initialized:
            raise LogicError("cuDeviceGet failed: initialization error")
        if index != 0:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")

    @staticmethod
    def count() -> int:
        if not _initialized:
            raise LogicError("cuDeviceGetCount failed: initialization error")
        return 1

    def name(self) -> str:
        return "Played GPU"

    def compute_capability(self) -> tuple[int, int]:
        return self.capability

    def retain_primary_context(self) -> Context:
        return Context()


def init(flags: int = 0) -> None:
    _initialized.append(True)


# ---- Memory ------------------------------------------------------------------------------------------------------


class DeviceAllocation(_Owned):
    """Memory of the GPU."""

    _destroy = ("cuMemFree", "cudaFree")

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        address = ctypes.c_void_p()
        _call("cuMemAlloc", _cuda.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(nbytes)))
        self.handle, self._address = address.value, address.value

    def __int__(self) -> int:
        return self._address

    __index__ = __int__

    def free(self) -> None:
        if self.handle is None:
            raise LogicError("device_allocation::free failed: invalid resource handle")
        self._clean_up()


class PagelockedHostAllocation(_Owned):
    """Memory of the host that a GPU can copy from and to while the host goes on."""

    _destroy = ("cuMemFreeHost", "cudaFreeHost")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        super().__init__()
        address = ctypes.c_void_p()
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        _call("cuMemHostAlloc", _cuda.cudaMallocHost(ctypes.byref(address), ctypes.c_size_t(nbytes)))
        self.handle = address.value
        self.__array_interface__ = {
            "data": (address.value, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }

    def free(self) -> None:
        if self.handle is None:
            raise LogicError("pagelocked_host_allocation::free failed: invalid resource handle")
        self._clean_up()


def mem_alloc(nbytes: int) -> DeviceAllocation:
    return DeviceAllocation(nbytes)


def mem_get_info() -> tuple[int, int]:
    _current("cuMemGetInfo")
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call("cuMemGetInfo", _cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)))
    return free.value, total.value


def pagelocked_empty(
    shape: int | tuple[int, ...], dtype: Any, order: str = "C", mem_flags: int = 0
) -> np.ndarray:
    if order != "C" or mem_flags != 0:
        raise NotImplementedError("only order C and no flags are played")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return np.asarray(PagelockedHostAllocation(shape, np.dtype(dtype)))


# ---- Streams and events ------------------------------------------------------------------------------------------


class Stream(_Owned):
    """A queue of work."""

    _destroy = ("cuStreamDestroy", "cudaStreamDestroy")

    def __init__(self, flags: int = 0) -> None:
        super().__init__()
        handle = ctypes.c_void_p()
        _call("cuStreamCreate", _cuda.cudaStreamCreateWithFlags(ctypes.byref(handle), flags))
        self.handle = handle.value

    def synchronize(self) -> None:
        _current("cuStreamSynchronize")
        _call("cuStreamSynchronize", _cuda.cudaStreamSynchronize(ctypes.c_void_p(self.handle)))

    def is_done(self) -> bool:
        _current("cuStreamQuery")
        return _is_ready("cuStreamQuery", _cuda.cudaStreamQuery(ctypes.c_void_p(self.handle)))

    def wait_for_event(self, event: "Event") -> None:
        _current("cuStreamWaitEvent")
        code = _cuda.cudaStreamWaitEvent(_handle(self), ctypes.c_void_p(event.handle), 0)
        _call("cuStreamWaitEvent", code)


class event_flags:
    """Flags of `Event`."""

    DEFAULT = 0
    BLOCKING_SYNC = 1
    DISABLE_TIMING = 2


class Event(_Owned):
    """A place in a stream."""

    _destroy = ("cuEventDestroy", "cudaEventDestroy")

    def __init__(self, flags: int = 0) -> None:
        super().__init__()
        handle = ctypes.c_void_p()
        _call("cuEventCreate", _cuda.cudaEventCreateWithFlags(ctypes.byref(handle), flags))
        self.handle = handle.value

    def record(self, stream: Stream | None = None) -> "Event":
        _current("cuEventRecord")
        _call("cuEventRecord", _cuda.cudaEventRecord(ctypes.c_void_p(self.handle), _handle(stream)))
        return self

    def synchronize(self) -> "Event":
        _current("cuEventSynchronize")
        _call("cuEventSynchronize", _cuda.cudaEventSynchronize(ctypes.c_void_p(self.handle)))
        return self

    def query(self) -> bool:
        _current("cuEventQuery")
        return _is_ready("cuEventQuery", _cuda.cudaEventQuery(ctypes.c_void_p(self.handle)))

    def time_since(self, start: "Event") -> float:
        _current("cuEventElapsedTime")
        ms, handles = ctypes.c_float(), (ctypes.c_void_p(start.handle), ctypes.c_void_p(self.handle))
        _call("cuEventElapsedTime", _cuda.cudaEventElapsedTime(ctypes.byref(ms), *handles))
        return ms.value


def _is_ready(name: str, code: int) -> bool:
    if code != _NOT_READY:
        _call(name, code)
    return code == 0


def _handle(stream: Stream | None) -> ctypes.c_void_p:
    if stream is None:
        raise LogicError("got no stream, which is the default stream; pass one")
    return ctypes.c_void_p(stream.handle)


def _host(name: str, array: np.ndarray) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    """Return address and size of an array in page-locked memory."""
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise ValueError(f"{name}: ndarray is not contiguous")
    attributes = (ctypes.c_int * 2)()
    address = ctypes.c_void_p(array.ctypes.data)
    _call(name, _cuda.cudaPointerGetAttributes(attributes, address))
    if array.nbytes and attributes[0] != 1:
        raise LogicError(
            f"{name}: got pageable memory: that copy would not be asynchronous; pagelocked_empty"
        )
    return address, ctypes.c_size_t(array.nbytes)


def _copy(name: str, to: Any, source: Any, nbytes: ctypes.c_size_t, kind: int, stream: Stream | None) -> None:
    _current(name)
    _call(name, _cuda.cudaMemcpyAsync(to, source, nbytes, kind, _handle(stream)))


def memset_d8(dest: Any, data: int, size: int) -> None:
    """Enqueue in the legacy default stream, as the driver does: streams that do not block run past it."""
    _current("cuMemsetD8")
    _call("cuMemsetD8", _cuda.cudaMemset(ctypes.c_void_p(int(dest)), data, ctypes.c_size_t(size)))


def memset_d8_async(dest: Any, data: int, size: int, stream: Stream | None = None) -> None:
    _current("cuMemsetD8Async")
    arguments = ctypes.c_void_p(int(dest)), data, ctypes.c_size_t(size), _handle(stream)
    _call("cuMemsetD8Async", _cuda.cudaMemsetAsync(*arguments))


def memcpy_htod_async(dest: Any, src: np.ndarray, stream: Stream | None = None) -> None:
    address, nbytes = _host("cuMemcpyHtoDAsync", src)
    _copy("cuMemcpyHtoDAsync", ctypes.c_void_p(int(dest)), address, nbytes, 1, stream)


def memcpy_dtoh_async(dest: np.ndarray, src: Any, stream: Stream | None = None) -> None:
    if not dest.flags.writeable:
        raise ValueError("cuMemcpyDtoHAsync: buffer source array is read-only")
    address, nbytes = _host("cuMemcpyDtoHAsync", dest)
    _copy("cuMemcpyDtoHAsync", address, ctypes.c_void_p(int(src)), nbytes, 2, stream)


def memcpy_dtod_async(dest: Any, src: Any, size: int, stream: Stream | None = None) -> None:
    addresses = ctypes.c_void_p(int(dest)), ctypes.c_void_p(int(src))
    _copy("cuMemcpyDtoDAsync", *addresses, ctypes.c_size_t(size), 3, stream)


# ---- The game ----------------------------------------------------------------------------------------------------

_LAUNCH_FAILED = 719
_initialized: list[bool] = []
_stack = _Stack()
_keys = itertools.count(1)
_functions: dict[int, Callable[[], None]] = {}
_raised: list[BaseException] = []


def _call_function(key: int) -> int:
    try:
        _functions[key]()
    except BaseException as error:
        traceback.print_exc()
        _raised.append(error)
        return 1
    return 0


def _release_function(key: int, functions: dict[int, Callable[[], None]] = _functions) -> None:
    functions.pop(key, None)


_callbacks = (
    ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_long)(_call_function),
    ctypes.CFUNCTYPE(None, ctypes.c_long)(_release_function),
)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_callbacks))  # what is still enqueued when Python ends needs them
_cuda.played_python(*_callbacks)


def install() -> types.ModuleType:
    """Make this module what ``import pycuda.driver`` finds; return it."""
    driver = sys.modules[__name__]
    package = types.ModuleType("pycuda")
    package.__spec__ = importlib.machinery.ModuleSpec("pycuda", None, is_package=True)  # for find_spec
    package.driver, package.VERSION_TEXT, package.__path__ = driver, "2026.1", []
    sys.modules["pycuda"], sys.modules["pycuda.driver"] = package, driver
    return driver


def enqueue(stream: int, function: Callable[[], None]) -> None:
    """Put a function into the stream with that handle: called when the GPU gets there; if it raises, the GPU fails."""
    key = next(_keys)
    _functions[key] = function
    _call("enqueue", _cuda.played_enqueue(ctypes.c_void_p(stream), ctypes.c_long(key)))


def schedule(name: str) -> None:
    """Choose an order of what nobody has ordered: 'lazy' (the default), 'eager' or 'others-first'; see played.cpp."""
    _cuda.played_schedule(("lazy", "eager", "others-first").index(name))


def memory(total: int) -> None:
    """Set how many bytes the GPU has."""
    _cuda.played_memory(ctypes.c_size_t(total))


def calls() -> int:
    """How many calls of the runtime were made since the last `reset`."""
    return _cuda.played_calls()


def made() -> int:
    """How many things that have to be freed were made so far."""
    return _cuda.played_made()


def fail_call(n: int, code: int = 700) -> None:
    """Let the n-th call of the runtime from now on fail; with 700, an illegal address, all calls after it, too."""
    _cuda.played_fail_call(ctypes.c_long(n), code)


def fail_work(n: int, code: int = 700) -> None:
    """Let the n-th piece of work that the GPU runs from now on fail: the host hears of it when it waits."""
    _cuda.played_fail_work(ctypes.c_long(n), code)


def reset() -> None:
    """Forget errors, limits and work that has not run; what is allocated stays."""
    _raised.clear()
    _cuda.played_reset()


def live() -> dict[str, int]:
    """How many there are of each thing that has to be freed."""
    counts = (ctypes.c_long * 6)()
    _cuda.played_live(counts)
    return dict(zip(("device", "pinned", "streams", "events", "graphs", "launchable"), counts, strict=True))


def device_array(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory of the GPU as NumPy sees it: for functions in streams only."""
    dtype = np.dtype(dtype)
    interface = {"data": (address, False), "shape": shape, "typestr": dtype.str, "version": 3}
    return np.asarray(types.SimpleNamespace(__array_interface__=interface))
