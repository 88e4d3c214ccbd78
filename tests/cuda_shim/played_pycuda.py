"""Stands in for ``pycuda.driver``: the part that trtseg uses, on the GPU that played.cpp plays.

`install` makes this module the one that ``import pycuda.driver`` finds. It is stricter than PyCUDA: no default stream,
no copy from or to pageable memory, and whatever goes where no context is current is noted in `misused`. The functions
at the end rule the game.
"""

import ctypes
import importlib.machinery
import itertools
import sys
import threading
import traceback
import types
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


def _call(name: str, *arguments: Any) -> None:
    code = getattr(_cuda, name)(*arguments)
    if code != 0:
        text = f"{name} failed: {_cuda.cudaGetErrorString(code).decode()}"
        raise (MemoryError if code == 2 else LogicError)(text)


# ---- Contexts, memory, streams and events --------------------------------------------------------------------------

_stack = threading.local()

#: What was freed, dropped or used where it must not be.
misused: list[str] = []


class Context:
    """The primary context."""

    def push(self) -> None:
        _stack.depth = depth() + 1

    @staticmethod
    def pop() -> None:
        _current("Context.pop")
        _stack.depth -= 1


def depth() -> int:
    """How often this thread has made the context current."""
    return getattr(_stack, "depth", 0)


def _current(name: str) -> None:
    if not depth():
        raise LogicError(f"{name} failed: no context is current")


class Device:
    """The only GPU."""

    capability = (9, 0)  # tests may change it

    def __init__(self, index: int) -> None:
        assert index == 0

    @staticmethod
    def count() -> int:
        return 1

    def name(self) -> str:
        return "Played GPU"

    def compute_capability(self) -> tuple[int, int]:
        return self.capability

    def retain_primary_context(self) -> Context:
        return Context()


def init() -> None: ...


class _Owned:
    """A handle that is destroyed once, where the context is current."""

    _destroy: str
    handle: int | None = None

    def _make(self, function: str, *arguments: Any) -> None:
        _current(function)
        handle = ctypes.c_void_p()
        _call(function, ctypes.byref(handle), *arguments)
        self.handle = handle.value

    def free(self) -> None:
        handle, self.handle = self.handle, None
        if handle is None:
            return
        if not depth():
            misused.append(f"{type(self).__name__}: went where no context was current")
        getattr(_cuda, self._destroy)(ctypes.c_void_p(handle))

    __del__ = free


class DeviceAllocation(_Owned):
    """Memory of the GPU."""

    _destroy = "cudaFree"

    def __init__(self, nbytes: int) -> None:
        self._make("cudaMalloc", ctypes.c_size_t(nbytes))
        self._address = self.handle

    def __int__(self) -> int:
        return self._address

    __index__ = __int__


class PagelockedHostAllocation(_Owned):
    """Memory of the host that a GPU can copy while the host goes on."""

    _destroy = "cudaFreeHost"

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._make("cudaMallocHost", ctypes.c_size_t(nbytes))
        self.__array_interface__ = _interface(self.handle, shape, dtype)


def _interface(address: int, shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
    return {"data": (address, False), "shape": shape, "typestr": dtype.str, "version": 3}


mem_alloc = DeviceAllocation


def mem_get_info() -> tuple[int, int]:
    _current("mem_get_info")
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.asarray(PagelockedHostAllocation(shape, np.dtype(dtype)))


class Stream(_Owned):
    """A queue of work."""

    _destroy = "cudaStreamDestroy"

    def __init__(self, flags: int = 0) -> None:
        self._make("cudaStreamCreateWithFlags", flags)

    def synchronize(self) -> None:
        _current("Stream.synchronize")
        _call("cudaStreamSynchronize", ctypes.c_void_p(self.handle))


class event_flags:
    """Flags of `Event`."""

    DEFAULT, DISABLE_TIMING = 0, 2


class Event(_Owned):
    """A place in a stream."""

    _destroy = "cudaEventDestroy"

    def __init__(self, flags: int = 0) -> None:
        self._make("cudaEventCreateWithFlags", flags)

    def record(self, stream: Stream) -> "Event":
        _current("Event.record")
        _call("cudaEventRecord", ctypes.c_void_p(self.handle), ctypes.c_void_p(stream.handle))
        return self

    def synchronize(self) -> "Event":
        _current("Event.synchronize")
        _call("cudaEventSynchronize", ctypes.c_void_p(self.handle))
        return self

    def time_since(self, start: "Event") -> float:
        ms = ctypes.c_float()
        events = ctypes.c_void_p(start.handle), ctypes.c_void_p(self.handle)
        _call("cudaEventElapsedTime", ctypes.byref(ms), *events)
        return ms.value


def _copy(to: int, source: int, nbytes: int, kind: int, stream: Stream) -> None:
    _current("a copy")
    addresses = ctypes.c_void_p(to), ctypes.c_void_p(source)
    _call("cudaMemcpyAsync", *addresses, ctypes.c_size_t(nbytes), kind, ctypes.c_void_p(stream.handle))


def memcpy_htod_async(dest: Any, src: np.ndarray, stream: Stream) -> None:
    assert src.flags.c_contiguous
    _copy(int(dest), src.ctypes.data, src.nbytes, 1, stream)


def memcpy_dtoh_async(dest: np.ndarray, src: Any, stream: Stream) -> None:
    assert dest.flags.c_contiguous
    _copy(dest.ctypes.data, int(src), dest.nbytes, 2, stream)


# ---- The game ------------------------------------------------------------------------------------------------------

_keys = itertools.count(1)
_functions: dict[int, Callable[[], None]] = {}


def _call_function(key: int) -> int:
    try:
        _functions[key]()
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _release_function(key: int, functions: dict[int, Callable[[], None]] = _functions) -> None:
    functions.pop(key, None)


_callbacks = (
    ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_long)(_call_function),
    ctypes.CFUNCTYPE(None, ctypes.c_long)(_release_function),
)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_callbacks))  # work that is enqueued when Python ends needs them
_cuda.played_python(*_callbacks)


def install() -> types.ModuleType:
    """Make this module the one that ``import pycuda.driver`` finds; return it."""
    driver = sys.modules[__name__]
    package = types.ModuleType("pycuda")
    package.__spec__ = importlib.machinery.ModuleSpec("pycuda", None, is_package=True)  # for find_spec
    package.driver, package.__path__ = driver, []
    sys.modules["pycuda"], sys.modules["pycuda.driver"] = package, driver
    return driver


def enqueue(stream: int, function: Callable[[], None]) -> None:
    """Put a function into the stream with that handle: called when the GPU gets there; if it raises, the GPU fails."""
    key = next(_keys)
    _functions[key] = function
    _call("played_enqueue", ctypes.c_void_p(stream), ctypes.c_long(key))


def schedule(name: str) -> None:
    """Choose an order for work that nobody has ordered: 'lazy' (the default), 'eager' or 'others-first'."""
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


def fail_call(n: int) -> None:
    """Let the n-th call of the runtime from now on fail."""
    _cuda.played_fail_call(ctypes.c_long(n))


def fail_work(n: int) -> None:
    """Let the n-th piece of work from now on read an illegal address: the host hears of it when it waits."""
    _cuda.played_fail_work(ctypes.c_long(n))


def reset() -> None:
    """Forget errors, limits and work that has not run; allocations stay."""
    _cuda.played_reset()


def live() -> dict[str, int]:
    """How many there are of each thing that has to be freed."""
    counts = (ctypes.c_long * 6)()
    _cuda.played_live(counts)
    return dict(zip(("device", "pinned", "streams", "events", "graphs", "launchable"), counts, strict=True))


def device_array(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory of the GPU as NumPy sees it: for functions in streams only."""
    return np.asarray(types.SimpleNamespace(__array_interface__=_interface(address, shape, np.dtype(dtype))))
