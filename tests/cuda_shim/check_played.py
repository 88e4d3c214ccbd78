"""That the played GPU finds the faults that it is there to find."""

from collections.abc import Callable
from contextlib import suppress

import numpy as np
import played_pycuda
import pytest

from trtseg import _core
from trtseg.errors import DeviceError

cuda = played_pycuda.install()


class Copier:
    """A number in pinned memory, one on the GPU, another in pinned memory."""

    def __init__(self) -> None:
        self.stream, self.gpu = cuda.Stream(1), cuda.mem_alloc(4)
        self.source, self.result = (cuda.pagelocked_empty((1,), np.int32) for _ in range(2))
        self.source[0] = self.result[0] = 0

    def upload(self, number: int) -> None:
        self.source[0] = number
        cuda.memcpy_htod_async(self.gpu, self.source, self.stream)

    def download(self) -> None:
        cuda.memcpy_dtoh_async(self.result, int(self.gpu), self.stream)


def nothing_runs_before_the_host_waits() -> None:
    c, event = Copier(), cuda.Event()
    c.upload(1)
    c.download()
    event.record(c.stream)
    c.upload(2)
    c.download()
    assert c.result[0] == 0
    event.synchronize()
    assert c.result[0] == 2  # the first copy read the memory when it ran


def streams_run_in_the_wrong_order_without_an_event() -> None:
    for wait in (True, False):
        a, b = Copier(), Copier()
        a.upload(1)
        if wait:
            _core.Event().wait_for(b.stream.handle, a.stream.handle)
        cuda.memcpy_dtoh_async(b.result, int(a.gpu), b.stream)
        b.stream.synchronize()
        assert (b.result[0] == 1) == wait


def memory_that_is_overwritten_too_early() -> None:
    for schedule, expected in (("lazy", 1), ("others-first", 2)):
        cuda.schedule(schedule)
        c, other = Copier(), cuda.Stream(1)
        c.upload(1)
        c.stream.synchronize()
        c.download()
        c.source[0] = 2
        cuda.memcpy_htod_async(c.gpu, c.source, other)  # waits for no reader
        c.stream.synchronize()
        assert c.result[0] == expected
        other.synchronize()


def a_result_that_is_read_too_late() -> None:
    for schedule, expected in (("lazy", 1), ("eager", 2)):
        cuda.schedule(schedule)
        c = Copier()
        c.upload(1)
        c.download()
        c.stream.synchronize()
        c.upload(2)
        c.download()
        assert c.result[0] == expected
        c.stream.synchronize()


def memory_that_is_freed_too_early_or_nowhere() -> None:
    c = Copier()
    c.upload(1)
    c.gpu.free()
    with pytest.raises(cuda.LogicError, match="cudaStreamSynchronize failed: cudaErrorIllegalAddress"):
        c.stream.synchronize()
    cuda.reset()
    context.pop()
    del c
    # Python 3.14 clears attributes in another order.
    kinds = *2 * ["PagelockedHostAllocation"], "Stream"
    assert sorted(cuda.misused) == [f"{kind}: went where no context was current" for kind in kinds]
    context.push()


def waits_during_a_capture() -> None:
    c, other = Copier(), cuda.Stream(1)
    for wait in (c.stream.synchronize, other.synchronize, lambda: cuda.mem_alloc(1)):
        with pytest.raises(cuda.LogicError, match="cudaErrorStreamCaptureUnsupported"):
            _core.Graph.capture(c.stream.handle, wait)

        def unseen(wait: Callable[[], object] = wait) -> None:
            with suppress(cuda.LogicError):
                wait()

        with pytest.raises(DeviceError, match="cudaErrorStreamCaptureInvalidated"):
            _core.Graph.capture(c.stream.handle, unseen)


context = cuda.Device(0).retain_primary_context()
context.push()
for case in (
    nothing_runs_before_the_host_waits,
    streams_run_in_the_wrong_order_without_an_event,
    memory_that_is_overwritten_too_early,
    a_result_that_is_read_too_late,
    memory_that_is_freed_too_early_or_nowhere,
    waits_during_a_capture,
):
    print(case.__name__, flush=True)
    case()
    cuda.reset()
