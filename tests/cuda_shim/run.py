"""Cases of op_cases.py, and of graphs and streams, on a module that was built with the shim: run.py CASE."""

import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import numpy as np
import op_cases
import played_pycuda as cuda
import pytest

from trtseg import _core, reference
from trtseg.errors import ArgumentError, DeviceError, OutOfMemoryError
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
    """Copy to an allocation of its own, so that AddressSanitizer sees what is read or written beside it."""
    if array.size == 0:
        return GpuArray(array, None)
    owner = cuda.mem_alloc(array.nbytes)
    copy = cuda.device_array(int(owner), array.shape, array.dtype)
    copy[...] = array
    return GpuArray(copy, owner)


@dataclass
class ShimBackend:
    """Arrays of the played GPU, which works when they are read."""

    stream: cuda.Stream = field(default_factory=lambda: cuda.Stream(1))
    inputs: list[GpuArray] = field(default_factory=list)  # of work that may not have run
    step: int = 61

    @property
    def options(self) -> dict[str, Any]:
        return {"stream": self.stream.handle}

    def put(self, array: np.ndarray) -> GpuArray:
        self.inputs.append(on_gpu(array))
        return self.inputs[-1]

    def buffer(self, nbytes: int) -> GpuArray:
        return on_gpu(np.full(nbytes, op_cases.GUARD_BYTE, np.uint8))

    def view(self, buffer: GpuArray, dtype: np.dtype, shape: tuple[int, ...]) -> GpuArray:
        return GpuArray(buffer.array.view(dtype).reshape(shape), buffer.owner)

    def get(self, array: GpuArray) -> np.ndarray:
        self.stream.synchronize()
        self.inputs.clear()
        return np.array(array.array)


# ---- The ops -----------------------------------------------------------------------------------------------------


def equals_oracle(op: str) -> None:
    backend, case = ShimBackend(), getattr(op_cases, f"case_{op}")
    dtypes = list(product(DTYPES, DTYPES) if op == "gate" else product(DTYPES))
    for geometry, n, dtype in product(op_cases.GEOMETRIES, (0, 1, 3), dtypes):
        try:
            case(backend, geometry, n, *dtype)
        except AssertionError as error:
            where = f"{geometry}, {n} slices, {', '.join(d.__name__ for d in dtype)}"
            raise AssertionError(f"{where}: {error}") from error


def skipping() -> None:
    for dtype in DTYPES:
        op_cases.case_skipped_slices(ShimBackend(), dtype)


def half() -> None:
    op_cases.case_to_half(ShimBackend())
    op_cases.case_from_half(ShimBackend())


class TooShort(GpuArray):
    """15 elements that claim to be 16."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**super().__cuda_array_interface__, "shape": (1, 4, 4)}


def read_behind_the_end() -> None:
    """AddressSanitizer must end this process."""
    backend = ShimBackend()
    short = backend.put(np.zeros(15, np.int16))
    hu_net, x1 = on_gpu(np.zeros((1, 4, 4), np.int16)), on_gpu(np.zeros((1, 1, 4, 4), np.float32))
    hu = TooShort(short.array, short.owner)
    _core.prepare(hu, Fit.identity((4, 4)), op_cases.WINDOW, hu_net, x1, **backend.options)
    backend.get(x1)


def memory_of_the_host() -> None:
    hu, x1 = on_gpu(np.zeros((1, 4, 4), np.int16)), on_gpu(np.zeros((1, 1, 4, 4), np.float32))
    host = GpuArray(np.zeros((1, 4, 4), np.int16), None)
    with pytest.raises(ArgumentError, match="hu_net: got an address that is not GPU memory"):
        _core.prepare(hu, Fit.identity((4, 4)), op_cases.WINDOW, host, x1, **ShimBackend().options)


# ---- Graphs ------------------------------------------------------------------------------------------------------


@dataclass
class Chunk:
    """Two slices through copy in, prepare, gate, label, copy out: what a cascade with the nets left out enqueues."""

    fit = op_cases.GEOMETRIES["anisotropic-odd"]
    l1 = op_cases.logits((2, 1, *fit.net), np.float32)
    names = ("hu_net", "x1", "x2", "liver_voxels", "labels", "counts")

    def __post_init__(self) -> None:
        self.stream = cuda.Stream(1)
        self.source = cuda.pagelocked_empty((2, *self.fit.native), np.int16)
        self.arrays = [on_gpu(np.zeros_like(a)) for a in self.expected()]
        self.results = [cuda.pagelocked_empty(a.array.shape, a.array.dtype) for a in self.arrays]
        self.d_hu, self.d_l1 = on_gpu(np.zeros_like(self.source)), on_gpu(self.l1)

    def enqueue(self) -> None:
        self.upload(self.stream)
        self.compute()

    def upload(self, stream: cuda.Stream) -> None:
        cuda.memcpy_htod_async(int(self.d_hu.owner), self.source, stream)

    def compute(self) -> None:
        stream = self.stream.handle
        hu_net, x1, x2, liver_voxels, labels, counts = self.arrays
        _core.prepare(self.d_hu, self.fit, op_cases.WINDOW, hu_net, x1, stream=stream)
        _core.gate(self.d_l1, hu_net, 0.0, op_cases.WINDOW2, x2, liver_voxels, stream=stream)
        _core.label(self.d_l1, self.d_l1, (0.0, 1.0), self.fit, labels, counts, stream=stream)
        for result, array in zip(self.results, self.arrays, strict=True):
            cuda.memcpy_dtoh_async(result, int(array.owner), self.stream)

    def expected(self) -> tuple[np.ndarray, ...]:
        hu_net, x1 = reference.prepare(self.source, self.fit, op_cases.WINDOW, np.float32)
        x2, liver_voxels = reference.gate(self.l1, hu_net, 0.0, op_cases.WINDOW2, np.float32)
        return (hu_net, x1, x2, liver_voxels, *reference.label(self.l1, self.l1, (0.0, 1.0), self.fit))

    def fill(self, seed: int) -> None:
        self.source[...] = op_cases.slices(2, self.fit.native, seed)

    def check(self) -> None:
        for name, result, expected in zip(self.names, self.results, self.expected(), strict=True):
            assert result.tobytes() == expected.tobytes(), name


def replay() -> None:
    chunk = Chunk()
    graph = _core.Graph.capture(chunk.stream.handle, chunk.enqueue)
    assert graph.nodes == 1 + 1 + 2 + 2 + 6  # gate and label clear their counters
    for seed in (1, 2):
        chunk.fill(seed)
        graph.launch(chunk.stream.handle)
        before = [r.tobytes() for r in chunk.results]
        assert before != [e.tobytes() for e in chunk.expected()]  # nothing has run
        chunk.stream.synchronize()
        chunk.check()
    other = cuda.Stream(1)
    chunk.fill(3)
    graph.launch(other.handle)
    other.synchronize()
    chunk.check()


def empty() -> None:
    stream = cuda.Stream(1)
    graph = _core.Graph.capture(stream.handle, lambda: None)
    assert graph.nodes == 0
    graph.launch(stream.handle)
    stream.synchronize()


def raising() -> None:
    """An exception of the callable leaves as it is, and nothing behind."""
    chunk, thrown = Chunk(), RuntimeError("mine")

    def enqueue() -> None:
        chunk.enqueue()
        raise thrown

    there = cuda.live()
    for _ in range(2):
        with pytest.raises(RuntimeError) as caught:
            _core.Graph.capture(chunk.stream.handle, enqueue)
        assert caught.value is thrown
        assert cuda.live() == there
    chunk.fill(1)
    chunk.enqueue()
    chunk.stream.synchronize()
    chunk.check()


def blocking() -> None:
    """What waits for the GPU cannot be recorded, even if nobody looks at the error."""
    chunk, event = Chunk(), cuda.Event()
    event.record(chunk.stream)
    calls = {
        "cuStreamSynchronize": chunk.stream.synchronize,
        "cuStreamQuery": chunk.stream.is_done,
        "cuCtxSynchronize": cuda.Context.synchronize,
        "cuEventSynchronize": event.synchronize,
        "cuMemAlloc": lambda: cuda.mem_alloc(16),
        "cuMemHostAlloc": lambda: cuda.pagelocked_empty(16, np.uint8),
    }
    for name, call in calls.items():
        not_permitted = f"{name} failed: operation not permitted when stream is capturing"
        with pytest.raises(cuda.LogicError, match=not_permitted):
            _core.Graph.capture(chunk.stream.handle, call)

        def unseen(call: Callable[[], Any] = call) -> None:
            with suppress(cuda.LogicError):
                call()

        with pytest.raises(DeviceError, match="cudaErrorStreamCaptureInvalidated"):
            _core.Graph.capture(chunk.stream.handle, unseen)
    chunk.fill(1)
    graph = _core.Graph.capture(chunk.stream.handle, chunk.enqueue)
    graph.launch(chunk.stream.handle)
    chunk.stream.synchronize()
    chunk.check()


def default_streams() -> None:
    for stream in (0, 1, 2):
        with pytest.raises(ArgumentError, match="stream: got the default stream, expected one of your own: "):
            _core.Graph.capture(stream, lambda: None)


def forked() -> None:
    """A second stream that waits for the first one is recorded too; it must be waited for."""
    first, second, order = cuda.Stream(1), cuda.Stream(1), []

    def enqueue(*, join: bool = True) -> None:
        cuda.enqueue(first.handle, lambda: order.append("before"))
        _core.wait_for(second.handle, first.handle)
        cuda.enqueue(second.handle, lambda: order.append("beside"))
        if join:
            _core.wait_for(first.handle, second.handle)
        cuda.enqueue(first.handle, lambda: order.append("after"))

    graph = _core.Graph.capture(first.handle, enqueue)
    assert graph.nodes == 3
    for _ in range(2):
        graph.launch(second.handle)
    second.synchronize()
    assert order == ["before", "beside", "after"] * 2
    there = cuda.live()
    with pytest.raises(DeviceError, match="cudaErrorStreamCaptureUnjoined"):
        _core.Graph.capture(first.handle, lambda: enqueue(join=False))
    assert cuda.live() == there
    enqueue()
    first.synchronize()
    assert len(order) == 9


def waiting() -> None:
    """wait_for orders two streams, with an event of its own or a used one; without it the order is wrong."""
    event = _core.Event()
    ways = (_core.wait_for, event.wait_for, event.wait_for, None)
    for schedule, wait in product(("lazy", "eager", "others-first"), ways):
        cuda.schedule(schedule)
        chunk, uploads = Chunk(), cuda.Stream(1)
        chunk.fill(1)
        chunk.upload(uploads)
        if wait:
            wait(chunk.stream.handle, uploads.handle)
        chunk.compute()
        chunk.stream.synchronize()
        right = chunk.results[0].tobytes() == chunk.expected()[0].tobytes()
        assert right == (wait is not None or schedule != "lazy"), (schedule, wait)
        uploads.synchronize()


def one_event() -> None:
    """A wait is for what was enqueued by then, also where the event is used again before it is over."""
    event, streams, order = _core.Event(), [cuda.Stream(1) for _ in range(4)], []
    before = cuda.made()
    for number, stream in enumerate(streams):
        cuda.enqueue(stream.handle, lambda number=number: order.append(number))
    for first, second in pairwise(streams):
        event.wait_for(second.handle, first.handle)
    streams[-1].synchronize()
    assert order == [3, 2, 1, 0]  # as late as it may be
    event.wait_for(streams[0].handle, streams[0].handle)
    assert cuda.made() == before


def freeing() -> None:
    chunk = Chunk()
    there = cuda.live()
    function = lambda: None  # noqa: E731
    alive = weakref.ref(function)

    def enqueue(function: Callable[[], None] = function) -> None:
        chunk.enqueue()
        cuda.enqueue(chunk.stream.handle, function)

    graphs = [_core.Graph.capture(chunk.stream.handle, enqueue) for _ in range(3)]
    del function, enqueue
    assert cuda.live() == {**there, "launchable": 3}
    for graph in graphs:
        graph.launch(chunk.stream.handle)
    del graph
    chunk.stream.synchronize()
    assert alive() is not None
    graphs.clear()
    assert cuda.live() == there
    assert alive() is None


def failing_calls() -> None:
    """Each call of the runtime may fail: the right error, nothing left over, and it works the next time."""
    chunk = Chunk()
    kinds = {2: (OutOfMemoryError, cuda.MemoryError), 400: (DeviceError, cuda.LogicError)}
    there = cuda.live()

    def graph_and_launch() -> None:
        graph = _core.Graph.capture(chunk.stream.handle, lambda: None)
        graph.launch(chunk.stream.handle)
        _core.wait_for(chunk.stream.handle, chunk.stream.handle)
        _core.Event().wait_for(chunk.stream.handle, chunk.stream.handle)
        cuda.Context.synchronize()

    cuda.reset()
    graph_and_launch()
    calls, told = cuda.calls(), 0
    for code, n in product(kinds, range(1, calls + 1)):
        cuda.fail_call(n, code)
        error = None
        try:
            graph_and_launch()
        except (DeviceError, cuda.Error) as caught:
            error = type(caught)
        assert error is None or error in kinds[code], (n, error)
        told += error is not None
        cuda.reset()
        cuda.Context.synchronize()
        assert cuda.live() == there, n
        graph_and_launch()
    clean_ups = 7  # a graph, two events, and what is launchable; these three on their GPU
    assert told == 2 * (calls - clean_ups)


def illegal_address() -> None:
    """After that error all calls fail, and what is left can still be let go."""
    chunk, event = Chunk(), _core.Event()
    graph = _core.Graph.capture(chunk.stream.handle, chunk.enqueue)
    cuda.fail_work(3)
    graph.launch(chunk.stream.handle)
    with pytest.raises(cuda.LogicError, match="cuStreamSynchronize failed: an illegal memory access"):
        chunk.stream.synchronize()
    with pytest.raises(DeviceError, match="cudaErrorIllegalAddress"):
        graph.launch(chunk.stream.handle)
    with pytest.raises(DeviceError, match="cudaErrorIllegalAddress"):
        _core.wait_for(chunk.stream.handle, chunk.stream.handle)
    with pytest.raises(DeviceError, match="cudaErrorIllegalAddress"):
        event.wait_for(chunk.stream.handle, chunk.stream.handle)
    with pytest.raises(DeviceError, match="cudaErrorIllegalAddress"):
        _core.Graph.capture(chunk.stream.handle, chunk.enqueue)
    del graph, event
    assert cuda.live()["launchable"] == 0


def threads() -> None:
    """Several threads record, launch and wait at a time."""
    failures = []

    def work(seed: int) -> None:
        context.push()
        try:
            chunk = Chunk()
            graph = _core.Graph.capture(chunk.stream.handle, chunk.enqueue)
            for i in range(3):
                chunk.fill(10 * seed + i)
                cuda.enqueue(chunk.stream.handle, lambda: None)
                graph.launch(chunk.stream.handle)
                chunk.stream.synchronize()
                chunk.check()
            del graph, chunk
        except BaseException as error:
            failures.append(error)
        cuda.Context.pop()

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, failures


OTHERS = [skipping, half, read_behind_the_end, memory_of_the_host, replay, empty, raising, blocking, forked]
OTHERS += [default_streams, waiting, one_event, freeing, failing_calls, illegal_address, threads]
CASES = {f.__name__.replace("_", "-"): f for f in OTHERS}
cuda.init()
context = cuda.Device(0).retain_primary_context()
context.push()
case = sys.argv[1]
try:
    CASES[case]() if case in CASES else equals_oracle(case)
finally:
    cuda.Context.pop()
