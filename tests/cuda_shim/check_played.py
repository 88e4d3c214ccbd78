"""That the played GPU and the played PyCUDA find what they are there to find."""

import gc
import importlib.util
import threading
import time
from collections.abc import Callable

import numpy as np
import played_pycuda
import pytest

from trtseg import _core
from trtseg.errors import DeviceError

played_pycuda.install()
import pycuda.driver as cuda  # noqa: E402

NON_BLOCKING = 1


class Copier:
    """A number in pinned memory, one on the GPU, another pinned one."""

    def __init__(self, flags: int = NON_BLOCKING) -> None:
        self.stream, self.gpu = cuda.Stream(flags), cuda.mem_alloc(4)
        self.source, self.result = cuda.pagelocked_empty(1, np.int32), cuda.pagelocked_empty((1,), np.int32)
        self.source[0] = self.result[0] = 0

    def upload(self, number: int) -> None:
        self.source[0] = number
        cuda.memcpy_htod_async(self.gpu, self.source, self.stream)

    def download(self) -> None:
        cuda.memcpy_dtoh_async(self.result, int(self.gpu), self.stream)

    def value(self) -> int:
        self.stream.synchronize()
        return int(self.result[0])


def nothing_runs_before_it_is_waited_for() -> None:
    c, event = Copier(), cuda.Event()
    c.upload(1)
    c.download()
    event.record(c.stream)
    c.upload(2)
    c.download()
    assert c.result[0] == 0
    event.synchronize()
    assert c.result[0] == 2  # the first copy read what was there when it ran
    c.source[0] = 3
    assert c.value() == 3


def a_look_ends_some_time() -> None:
    c, event = Copier(), cuda.Event(cuda.event_flags.BLOCKING_SYNC | cuda.event_flags.DISABLE_TIMING)
    assert event.query()
    assert c.stream.is_done()
    for look in (event.query, c.stream.is_done):
        c.upload(1)
        c.download()
        event.record(c.stream)
        looks = [look()]
        while not looks[-1]:
            looks.append(look())
        assert len(looks) == 3


def times() -> None:
    stream, start, end = cuda.Stream(), cuda.Event(), cuda.Event()
    with pytest.raises(cuda.LogicError, match="cuEventElapsedTime failed: invalid resource handle"):
        end.time_since(start)
    assert start.record(stream) is start
    cuda.enqueue(stream.handle, lambda: time.sleep(0.02))
    end.record(stream)
    with pytest.raises(cuda.RuntimeError, match="cuEventElapsedTime failed: device not ready"):
        end.time_since(start)
    end.synchronize()
    assert 20 <= end.time_since(start) < 2000
    untimed = cuda.Event(cuda.event_flags.DISABLE_TIMING).record(stream).synchronize()
    with pytest.raises(cuda.LogicError, match="invalid resource handle"):
        untimed.time_since(start)


def events_order_streams() -> None:
    for wait in (True, False):
        a, b = Copier(), Copier()
        a.upload(1)
        event = cuda.Event().record(a.stream)
        if wait:
            b.stream.wait_for_event(event)
        del event
        cuda.memcpy_dtod_async(b.gpu, a.gpu, 4, b.stream)
        b.download()
        assert (b.value() == 1) == wait


def overwritten_too_early() -> None:
    """An upload that does not wait for the work that still reads the memory: found with others-first."""
    for schedule, expected in (("lazy", 1), ("others-first", 2)):
        cuda.schedule(schedule)
        c, uploads = Copier(), cuda.Stream(NON_BLOCKING)
        c.upload(1)
        c.stream.synchronize()
        c.download()
        c.source[0] = 2
        cuda.memcpy_htod_async(c.gpu, c.source, uploads)
        assert c.value() == expected
        uploads.synchronize()


def read_too_late() -> None:
    """A result of which the host thinks that it stays until it waits again: found with eager."""
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


def the_legacy_stream_orders_only_those_that_block() -> None:
    for flags, expected in ((0, 0), (NON_BLOCKING, 5)):
        c = Copier(flags)
        c.upload(5)
        c.stream.synchronize()
        cuda.memset_d8(int(c.gpu), 0, 4)
        c.download()
        assert c.value() == expected
    c.upload(7)
    cuda.memset_d8_async(int(c.gpu), 1, 4, c.stream)
    c.download()
    assert c.value() == 0x01010101


def memory_is_counted_and_limited() -> None:
    there = cuda.live()
    cuda.memory(100)
    assert cuda.mem_get_info() == (100, 100)
    first, second = cuda.mem_alloc(60), cuda.mem_alloc(40)
    assert cuda.mem_get_info() == (0, 100)
    with pytest.raises(cuda.MemoryError, match="cuMemAlloc failed: out of memory"):
        cuda.mem_alloc(1)
    with pytest.raises(cuda.LogicError, match="cuMemAlloc failed: invalid argument"):
        cuda.mem_alloc(0)
    assert np.isnan(cuda.device_array(int(first), (15,), np.float32)).all()
    first.free()
    with pytest.raises(cuda.LogicError, match="device_allocation::free failed"):
        first.free()
    assert cuda.mem_get_info() == (60, 100)
    del second
    assert cuda.live() == there
    made = cuda.made()
    pinned = cuda.pagelocked_empty((2, 3), np.float16)
    assert cuda.made() == made + 1
    assert pinned.shape == (2, 3)
    assert pinned.flags.writeable
    assert cuda.live() == {**there, "pinned": there["pinned"] + 1}
    part = pinned[1:]
    del pinned
    assert cuda.live()["pinned"] == there["pinned"] + 1
    del part
    assert cuda.live() == there
    pinned = cuda.pagelocked_empty(2, np.int8)
    pinned.base.free()
    assert cuda.live() == there


def copies_stay_in_their_memory() -> None:
    stream, gpu = cuda.Stream(), cuda.mem_alloc(8)
    pinned = cuda.pagelocked_empty(3, np.int32)
    for call in (cuda.memcpy_htod_async, lambda a, b, s: cuda.memcpy_dtoh_async(b, a, s)):
        with pytest.raises(cuda.LogicError, match="got pageable memory"):
            call(gpu, np.zeros(2, np.int32), stream)
        with pytest.raises(cuda.LogicError, match="invalid argument"):
            call(gpu, pinned, stream)
        with pytest.raises(cuda.LogicError, match="invalid argument"):
            call(int(gpu) + 4, pinned[:2], stream)
        with pytest.raises(ValueError, match="not contiguous"):
            call(gpu, pinned[::2], stream)
        with pytest.raises(cuda.LogicError, match="got no stream"):
            call(gpu, pinned[:2], None)
        call(int(gpu) + 4, pinned[:1], stream)
        call(gpu, pinned[:0], stream)
    with pytest.raises(cuda.LogicError, match="invalid argument"):
        cuda.memcpy_dtod_async(gpu, int(gpu) + 4, 5, stream)
    pinned.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        cuda.memcpy_dtoh_async(pinned[:2], gpu, stream)
    stream.synchronize()


def freed_too_early() -> None:
    c = Copier()
    c.upload(1)
    c.gpu.free()
    with pytest.raises(cuda.LogicError, match="cuStreamSynchronize failed: an illegal memory access"):
        c.stream.synchronize()
    with pytest.raises(cuda.LogicError, match="illegal memory access"):
        cuda.mem_alloc(1)
    cuda.reset()
    assert cuda.mem_alloc(1)


def a_function_that_raises_breaks_the_gpu() -> None:
    stream, after = cuda.Stream(), []
    cuda.enqueue(stream.handle, lambda: 1 // 0)
    cuda.enqueue(stream.handle, lambda: after.append(1))
    with pytest.raises(cuda.LaunchError, match="unspecified launch failure") as caught:
        stream.synchronize()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(cuda.LaunchError, match="unspecified launch failure"):
        cuda.Context.synchronize()
    assert not after


def errors_on_demand() -> None:
    stream = cuda.Stream()
    cuda.fail_call(2, 2)
    kept = [cuda.mem_alloc(1)]
    with pytest.raises(cuda.MemoryError, match="out of memory"):
        cuda.mem_alloc(1)
    kept.append(cuda.mem_alloc(1))  # it is over
    cuda.fail_work(2)
    for _ in range(3):
        cuda.enqueue(stream.handle, lambda: None)
    with pytest.raises(cuda.LogicError, match="illegal memory access"):
        stream.synchronize()
    with pytest.raises(cuda.LogicError, match="illegal memory access"):  # stays
        stream.synchronize()


def other_threads_may_wait_for_a_stream_but_not_for_the_gpu_during_a_capture() -> None:
    recorded, other, failures = cuda.Stream(NON_BLOCKING), cuda.Stream(NON_BLOCKING), []

    def call_in_thread(call: Callable[[], None]) -> None:
        def work() -> None:
            context.push()
            try:
                call()
            except cuda.LogicError as error:
                failures.append(str(error))
            cuda.Context.pop()

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    _core.Graph.capture(recorded.handle, lambda: call_in_thread(other.synchronize))
    assert not failures
    for call in (recorded.synchronize, cuda.Context.synchronize):
        with pytest.raises(DeviceError, match="cudaErrorStreamCaptureInvalidated"):
            _core.Graph.capture(recorded.handle, lambda call=call: call_in_thread(call))
        assert "operation not permitted when stream is capturing" in failures.pop()


def calls_need_a_context() -> None:
    c, event = Copier(), cuda.Event()
    context.push()
    cuda.Context.pop()  # one is left
    c.upload(1)
    cuda.Context.pop()
    message = "invalid device context"
    calls = [c.stream.synchronize, c.stream.is_done, c.download, event.query, event.synchronize]
    calls += [cuda.Stream, cuda.Event, cuda.mem_get_info, cuda.Context.synchronize, cuda.Context.pop]
    calls += [lambda: cuda.mem_alloc(1), lambda: cuda.pagelocked_empty(1, np.int8)]
    for call in calls:
        with pytest.raises(cuda.LogicError, match=message):
            call()
    context.push()


def cleaning_up_needs_a_context_or_the_thread() -> None:
    there = cuda.live()
    with_context, without = cuda.mem_alloc(1), cuda.mem_alloc(1)

    def clean_up() -> None:
        context.push()
        with_context.free()
        cuda.Context.pop()
        with pytest.warns(UserWarning, match="out-of-thread context could not be cleaned up"):
            without.free()

    thread = threading.Thread(target=clean_up)
    thread.start()
    thread.join()
    assert cuda.live() == {**there, "device": there["device"] + 1}  # as PyCUDA leaks it


def it_passes_for_pycuda() -> None:
    assert importlib.util.find_spec("pycuda") is not None
    assert cuda is played_pycuda
    for error in (cuda.MemoryError, cuda.LogicError, cuda.LaunchError, cuda.RuntimeError):
        assert error.__bases__ == (cuda.Error,)
    assert cuda.Device.count() == 1
    gpu = cuda.Device(0)
    assert gpu.name() == "Played GPU"
    assert gpu.compute_capability() == (9, 0)
    with pytest.raises(cuda.LogicError, match="invalid device ordinal"):
        cuda.Device(1)
    other = gpu.retain_primary_context()
    other.push()
    other.detach()
    assert cuda.mem_alloc(1)  # in the first context
    with pytest.raises(cuda.LogicError, match="cannot detach from invalid context"):
        other.detach()


CASES = (
    nothing_runs_before_it_is_waited_for,
    a_look_ends_some_time,
    times,
    events_order_streams,
    overwritten_too_early,
    read_too_late,
    the_legacy_stream_orders_only_those_that_block,
    memory_is_counted_and_limited,
    copies_stay_in_their_memory,
    freed_too_early,
    a_function_that_raises_breaks_the_gpu,
    errors_on_demand,
    other_threads_may_wait_for_a_stream_but_not_for_the_gpu_during_a_capture,
    calls_need_a_context,
    cleaning_up_needs_a_context_or_the_thread,
    it_passes_for_pycuda,
)
with pytest.raises(cuda.LogicError, match="initialization error"):
    cuda.Device.count()
cuda.init()
context = cuda.Device(0).retain_primary_context()
context.push()
try:
    for case in CASES:
        print(case.__name__, flush=True)
        case()
        cuda.reset()
        gc.collect()
finally:
    cuda.Context.pop()
