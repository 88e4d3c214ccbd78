"""CUDA graphs, and streams that wait for one another: with PyTorch the cases of tests/cuda_shim/run.py."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from op_cases import GEOMETRIES, WINDOW, WINDOW2, logits, slices

from trtseg import _core, reference
from trtseg.errors import ArgumentError, DeviceError

pytestmark = pytest.mark.gpu
LONG = 200_000_000  # GPU cycles, some 0.1 s


@dataclass
class Chunk:
    """Two slices through prepare, gate and label, on a stream of their own."""

    fit = GEOMETRIES["anisotropic-odd"]
    l1 = logits((2, 1, *fit.net), np.float16)

    def __post_init__(self) -> None:
        import torch

        self.stream = torch.cuda.Stream()
        self.hu = torch.zeros((2, *self.fit.native), dtype=torch.int16, device="cuda")
        self.d_l1 = torch.from_numpy(self.l1).cuda()
        self.arrays = [torch.from_numpy(np.zeros(a.shape, a.dtype)).cuda() for a in self.expected()]
        self.enqueue()  # kernels are loaded at their first launch, which a capture might not like
        torch.cuda.synchronize()

    def enqueue(self) -> None:
        stream = self.stream.cuda_stream
        hu_net, x1, x2, liver_voxels, labels, counts = self.arrays
        _core.prepare(self.hu, self.fit, WINDOW, hu_net, x1, stream=stream)
        _core.gate(self.d_l1, hu_net, 0.0, WINDOW2, x2, liver_voxels, stream=stream)
        _core.label(self.d_l1, self.d_l1, (0.0, 1.0), self.fit, labels, counts, stream=stream)

    def expected(self) -> tuple[np.ndarray, ...]:
        hu_net, x1 = reference.prepare(self.hu.cpu().numpy(), self.fit, WINDOW, np.float16)
        x2, liver_voxels = reference.gate(self.l1, hu_net, 0.0, WINDOW2, np.float16)
        return (hu_net, x1, x2, liver_voxels, *reference.label(self.l1, self.l1, (0.0, 1.0), self.fit))

    def fill(self, seed: int) -> None:
        import torch

        with torch.cuda.stream(self.stream):
            self.hu.copy_(torch.from_numpy(slices(2, self.fit.native, seed)))
        self.stream.synchronize()

    def check(self) -> None:
        import torch

        torch.cuda.synchronize()
        for array, expected in zip(self.arrays, self.expected(), strict=True):
            assert array.cpu().numpy().tobytes() == expected.tobytes()

    def clear(self) -> None:
        import torch

        for array in self.arrays:
            array.zero_()
        torch.cuda.synchronize()


@pytest.fixture
def chunk() -> Chunk:
    return Chunk()


def capture(chunk: Chunk) -> _core.Graph:
    return _core.Graph.capture(chunk.stream.cuda_stream, chunk.enqueue)


def check_that_it_works(chunk: Chunk) -> None:
    """The stream can be used, and recorded, as if nothing had been."""
    chunk.fill(11)
    chunk.enqueue()
    chunk.check()
    graph = capture(chunk)
    chunk.fill(12)
    graph.launch(chunk.stream.cuda_stream)
    chunk.check()


def test_replayed_on_new_data(chunk):
    chunk.clear()
    graph = capture(chunk)
    assert graph.nodes == 1 + 2 + 2  # gate and label clear their counters
    assert not any(array.any() for array in chunk.arrays)  # it has been recorded, not run
    for seed in (1, 2, 2):  # counters must start from 0 each time
        chunk.fill(seed)
        graph.launch(chunk.stream.cuda_stream)
        chunk.check()


def test_launched_on_another_stream_and_thread(chunk):
    import torch

    graph, other = capture(chunk), torch.cuda.Stream()
    chunk.fill(1)
    thread = threading.Thread(target=graph.launch, args=(other.cuda_stream,))
    thread.start()
    thread.join()
    chunk.check()


def test_an_empty_graph_does_nothing(chunk):
    graph = _core.Graph.capture(chunk.stream.cuda_stream, lambda: None)
    assert graph.nodes == 0
    graph.launch(chunk.stream.cuda_stream)
    check_that_it_works(chunk)


def test_an_exception_leaves_as_it_is_and_nothing_behind(chunk):
    thrown = RuntimeError("mine")

    def enqueue() -> None:
        chunk.enqueue()
        raise thrown

    for _ in range(2):
        with pytest.raises(RuntimeError) as caught:
            _core.Graph.capture(chunk.stream.cuda_stream, enqueue)
        assert caught.value is thrown
    check_that_it_works(chunk)


def test_waiting_for_the_gpu_cannot_be_recorded(chunk):
    def enqueue() -> None:
        chunk.enqueue()
        with contextlib.suppress(RuntimeError):  # even if nobody looks at it
            chunk.stream.synchronize()

    with pytest.raises(DeviceError, match="cudaErrorStreamCaptureInvalidated"):
        _core.Graph.capture(chunk.stream.cuda_stream, enqueue)
    check_that_it_works(chunk)


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_default_stream_cannot_be_recorded(stream):
    with pytest.raises(ArgumentError, match="stream: got the default stream, expected one of your own: "):
        _core.Graph.capture(stream, lambda: None)


def test_many_graphs_come_and_go(chunk):
    import torch

    for seed in range(100):
        graph = capture(chunk)
        chunk.fill(seed)
        graph.launch(chunk.stream.cuda_stream)
        torch.cuda.synchronize()
        del graph
    chunk.check()


def late_copy(source: Any, target: Any, wait: Callable[[int, int], None] | None) -> None:
    """One stream writes source after a long time, another one copies it to target."""
    import torch

    writer, reader = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(writer):
        torch.cuda._sleep(LONG)
        source.fill_(1)
    if wait is not None:
        wait(reader.cuda_stream, writer.cuda_stream)
    with torch.cuda.stream(reader):
        target.copy_(source)
    torch.cuda.synchronize()


@pytest.mark.parametrize("wait", [True, False])
def test_an_event_orders_two_streams_any_number_of_times(wait):
    import torch

    event = _core.Event()
    late_copy(
        *(torch.zeros(1000, dtype=torch.int32, device="cuda") for _ in range(2)), event.wait_for
    )  # loads kernels
    for _ in range(3):
        source, target = (torch.zeros(1000, dtype=torch.int32, device="cuda") for _ in range(2))
        torch.cuda.synchronize()
        late_copy(source, target, event.wait_for if wait else None)
        assert bool(target.all()) == wait  # without it the copy comes too early: the test can fail


def test_an_event_may_be_used_again_before_a_wait_is_over():
    import torch

    event, streams = _core.Event(), [torch.cuda.Stream() for _ in range(4)]
    arrays = torch.zeros((4, 1000), dtype=torch.int32, device="cuda")
    torch.cuda.synchronize()
    for n, stream in enumerate(streams):
        with torch.cuda.stream(stream):
            if n == 0:
                torch.cuda._sleep(LONG)
                arrays[0].fill_(1)
            else:
                event.wait_for(stream.cuda_stream, streams[n - 1].cuda_stream)
                arrays[n].copy_(arrays[n - 1])
    torch.cuda.synchronize()
    assert arrays.all()


def test_an_event_takes_the_default_stream():
    import torch

    source, target = (torch.zeros(1000, dtype=torch.int32, device="cuda") for _ in range(2))
    reader = torch.cuda.Stream()
    torch.cuda._sleep(LONG)
    source.fill_(1)
    _core.Event().wait_for(reader.cuda_stream, torch.cuda.current_stream().cuda_stream)
    with torch.cuda.stream(reader):
        target.copy_(source)
    torch.cuda.synchronize()
    assert target.all()


@pytest.mark.parametrize("join", [True, False])
def test_a_second_stream_is_recorded_too_and_must_be_waited_for(chunk, join):
    import torch

    first, second = chunk.stream, torch.cuda.Stream()
    x, y = torch.zeros(1000, device="cuda"), torch.zeros(1000, device="cuda")

    def enqueue() -> None:
        with torch.cuda.stream(first):
            x.add_(1)
        _core.Event().wait_for(second.cuda_stream, first.cuda_stream)
        with torch.cuda.stream(second):
            y.add_(x)
        if join:
            _core.Event().wait_for(first.cuda_stream, second.cuda_stream)
        with torch.cuda.stream(first):
            x.add_(x if join else 1)

    torch.cuda.synchronize()
    enqueue()
    torch.cuda.synchronize()
    if join:
        graph = _core.Graph.capture(first.cuda_stream, enqueue)
        assert graph.nodes == 3
        x.zero_()
        y.zero_()
        torch.cuda.synchronize()
        for _ in range(2):
            graph.launch(first.cuda_stream)
        torch.cuda.synchronize()
        assert (x == 6).all()  # (0 + 1) * 2, (2 + 1) * 2
        assert (y == 4).all()  # 1 + 3
    else:
        with pytest.raises(DeviceError, match="cudaErrorStreamCaptureUnjoined"):
            _core.Graph.capture(first.cuda_stream, enqueue)
    check_that_it_works(chunk)


def test_a_graph_of_another_gpu(chunk):
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("optional: there is one GPU only")
    with torch.cuda.device(1):
        other = Chunk()
        graph = capture(other)
    other.fill(1)
    graph.launch(other.stream.cuda_stream)  # GPU 0 is current
    torch.cuda.synchronize(1)
    other.check()
    del graph
    check_that_it_works(chunk)
