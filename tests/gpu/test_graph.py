"""CUDA graphs, and streams that wait for one another, with PyTorch."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from graph_cases import CASES, Chain
from test_ops_cuda import TorchBackend

from trtseg import _core
from trtseg.errors import DeviceError

pytestmark = pytest.mark.gpu
LONG = 200_000_000  # GPU cycles, some 0.1 s


@dataclass
class Stream:
    """A stream as graph_cases.py wants it."""

    handle: int
    synchronize: Callable[[], None]


class GraphBackend(TorchBackend):
    """Works on the current stream, which is not the default stream."""

    def fill(self, array: Any, values: np.ndarray) -> None:
        import torch

        array.copy_(torch.from_numpy(values))

    def stream(self) -> Stream:
        import torch

        stream = torch.cuda.Stream()
        return Stream(stream.cuda_stream, stream.synchronize)


@pytest.fixture
def backend():
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        yield GraphBackend({"stream": stream.cuda_stream})


@pytest.mark.parametrize("case", CASES)
def test_graph(backend, case):
    CASES[case](backend)


def test_waiting_for_the_gpu_cannot_be_recorded(backend):
    import torch

    chain = Chain(backend)

    def enqueue() -> None:
        chain.enqueue()
        with contextlib.suppress(RuntimeError):  # even if nobody looks at it
            torch.cuda.current_stream().synchronize()

    with pytest.raises(DeviceError, match="cudaErrorStreamCaptureInvalidated"):
        _core.Graph.capture(chain.stream, enqueue)
    chain.check_that_it_works()


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


@pytest.mark.usefixtures("second_gpu")
def test_a_graph_of_another_gpu(backend):
    import torch

    with torch.cuda.device(1):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            chain = Chain(GraphBackend({"stream": stream.cuda_stream}))
            graph = chain.capture()
            chain.fill(1)
            torch.cuda.synchronize(1)
    graph.launch(chain.stream)  # GPU 0 is current
    torch.cuda.synchronize(1)
    chain.check()
    del graph
    Chain(backend).check_that_it_works()
