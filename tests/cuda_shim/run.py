"""Cases of op_cases.py and graph_cases.py, and those here, on a module that was built with the shim: run.py CASE..."""

import gc
import sys
import types
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import graph_cases
import numpy as np
import op_cases
import played_pycuda as cuda
import pytest

from trtseg import _core
from trtseg.errors import ArgumentError, DeviceError
from trtseg.fit import Fit

DTYPES = (np.float32, np.float16)


@dataclass
class GpuArray:
    """Memory of the played GPU, and who owns it."""

    array: np.ndarray
    owner: Any

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.array.__array_interface__, "version": 3}

    def __getitem__(self, key: Any) -> "GpuArray":
        return GpuArray(self.array[key], self.owner)


def on_gpu(array: np.ndarray) -> GpuArray:
    """Copy to an allocation of its own, so that AddressSanitizer sees reads and writes beside it."""
    if array.size == 0:
        return GpuArray(array, None)
    owner = cuda.mem_alloc(array.nbytes)
    copy = cuda.device_array(int(owner), array.shape, array.dtype)
    copy[...] = array
    return GpuArray(copy, owner)


@dataclass
class ShimBackend:
    """Arrays of the played GPU, which works when they are read."""

    queue: cuda.Stream = field(default_factory=lambda: cuda.Stream(1))
    inputs: list[GpuArray] = field(default_factory=list)  # of work that may not have run
    step: int = 61

    @property
    def options(self) -> dict[str, Any]:
        return {"stream": self.queue.handle}

    def put(self, array: np.ndarray) -> GpuArray:
        self.inputs.append(on_gpu(array))
        return self.inputs[-1]

    def buffer(self, nbytes: int) -> GpuArray:
        return on_gpu(np.full(nbytes, op_cases.GUARD_BYTE, np.uint8))

    def view(self, buffer: GpuArray, dtype: np.dtype, shape: tuple[int, ...]) -> GpuArray:
        return GpuArray(buffer.array.view(dtype).reshape(shape), buffer.owner)

    def get(self, array: GpuArray) -> np.ndarray:
        self.queue.synchronize()
        self.inputs.clear()
        return np.array(array.array)

    def fill(self, array: GpuArray, values: np.ndarray) -> None:
        self.queue.synchronize()
        array.array[...] = values

    def stream(self) -> cuda.Stream:
        return cuda.Stream(1)


# ---- The ops -------------------------------------------------------------------------------------------------------


def equals_oracle(op: str) -> None:
    backend, case = ShimBackend(), getattr(op_cases, f"case_{op}")
    dtypes = list(product(DTYPES, DTYPES) if op == "gate" else product(DTYPES))
    for geometry, n, dtype in product(op_cases.GEOMETRIES, (0, 3), dtypes):
        try:
            case(backend, geometry, n, *dtype)
        except AssertionError as error:
            where = f"{geometry}, {n} slices, {', '.join(d.__name__ for d in dtype)}"
            raise AssertionError(f"{where}: {error}") from error


def frame() -> None:
    op_cases.case_frame(ShimBackend())


def thick() -> None:
    for search, n in product(op_cases.SEARCHES, (0, 1, 5)):
        op_cases.case_thick(ShimBackend(), search, n)


def skipping() -> None:
    for dtype in DTYPES:
        op_cases.case_skipped_slices(ShimBackend(), dtype)


def half() -> None:
    op_cases.case_to_half(ShimBackend())
    op_cases.case_from_half(ShimBackend())


def read_behind_the_end() -> None:
    """15 elements that claim to be 16: AddressSanitizer must end this process."""
    backend = ShimBackend()
    short = backend.put(np.zeros(15, np.int16))
    interface = {**short.__cuda_array_interface__, "shape": (1, 4, 4)}
    hu = types.SimpleNamespace(__cuda_array_interface__=interface, owner=short)
    hu_net, x1 = on_gpu(np.zeros((1, 4, 4), np.int16)), on_gpu(np.zeros((1, 1, 4, 4), np.float32))
    _core.prepare(hu, Fit.identity((4, 4)), op_cases.WINDOW, hu_net, x1, **backend.options)
    backend.get(x1)


def memory_of_the_host() -> None:
    hu, x1 = on_gpu(np.zeros((1, 4, 4), np.int16)), on_gpu(np.zeros((1, 1, 4, 4), np.float32))
    host = GpuArray(np.zeros((1, 4, 4), np.int16), None)
    with pytest.raises(ArgumentError, match="hu_net: got an address that is not GPU memory"):
        _core.prepare(hu, Fit.identity((4, 4)), op_cases.WINDOW, host, x1, **ShimBackend().options)


# ---- Graphs and events: besides graph_cases.py ------------------------------------------------------------


def one_event() -> None:
    """A stream waits for the work that was enqueued by then, also where the event is used again meanwhile."""
    event, streams, order = _core.Event(), [cuda.Stream(1) for _ in range(4)], []
    before = cuda.made()
    for number, stream in enumerate(streams):
        if number:
            event.wait_for(stream.handle, streams[number - 1].handle)
        cuda.enqueue(stream.handle, lambda number=number: order.append(number))
    streams[-1].synchronize()
    assert order == [0, 1, 2, 3]
    assert cuda.made() == before


def chunk() -> None:
    """A chunk from host to host in one call: copied, launched, waited for; without liver the rest is not launched."""
    stream, runs = cuda.Stream(1), []
    hu, labels = cuda.pagelocked_empty((2, 3), np.int16), cuda.pagelocked_empty((2, 3), np.uint8)
    pixels = cuda.pagelocked_empty((2,), np.int32)

    def first() -> None:
        runs.append("first")
        pixels[:] = (hu > 0).sum(1)

    def rest() -> None:
        runs.append("rest")
        labels[:] = hu % 100

    graphs = [
        _core.Graph.capture(stream.handle, lambda w=w: cuda.enqueue(stream.handle, w)) for w in (first, rest)
    ]
    for counts in (pixels, None):
        one = _core.Chunk(stream.handle, hu, graphs[0], counts, graphs[1], labels)
        for given in (np.array([[1, 2, 3], [0, 0, 107]], np.int16), np.zeros((2, 3), np.int16)):
            out = np.full((2, 3), 9, np.uint8)
            given.flags.writeable = False
            one.run(given, out)
            assert (out == given % 100).all()
            empty = counts is not None and not given.any()
            assert runs == ["first"] + ([] if empty else ["rest"])
            runs.clear()
    for wrong in ((given[:1], out), (given.astype(np.int32), out), (given, out[:1]), (given, given)):
        with pytest.raises(ArgumentError, match=r"^(hu|out): got "):
            one.run(*wrong)
    assert runs == []
    cuda.fail_work(2)
    with pytest.raises(DeviceError, match="cudaErrorIllegalAddress"):
        one.run(given, out)


context = cuda.Device(0).retain_primary_context()
context.push()
for name in sys.argv[1:]:
    print(name, flush=True)
    cuda.reset()
    there = cuda.live()
    if name in graph_cases.CASES:
        graph_cases.CASES[name](ShimBackend())
    else:
        case = globals().get(name)
        case() if case else equals_oracle(name)
    gc.collect()
    assert cuda.live() == there
