"""The CUDA cascade on the GPU that played.cpp plays: cascade.py CASE, one of cascade_cases.py or of those here."""

import gc
import logging
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import played_pycuda as played
import pytest

played.install()
from cascade_cases import (  # noqa: E402
    BATCH,
    CASES,
    LIVER,
    SPACING,
    TUMOUR,
    Hooked,
    Nets,
    cascade,
    ct,
    expected,
    in_threads,
    logits,
    nines,
)
from producer import Producer  # noqa: E402

from trtseg import _core  # noqa: E402
from trtseg.cascade.gpu import CudaCascade  # noqa: E402
from trtseg.cuda.arrays import CudaArray  # noqa: E402
from trtseg.cuda.device import Resources, open_device, upload  # noqa: E402
from trtseg.errors import DeviceError, OutOfMemoryError  # noqa: E402
from trtseg.spec import ModelSpec  # noqa: E402


@dataclass
class NumPyEngine:
    """A net whose work waits in the stream like a kernel's."""

    spec: ModelSpec
    batch: int
    runs: Counter[str]
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.float16))
    device: str = "cuda:0"
    precision: str = "fp16"

    def capturable(self, stream: int) -> bool:
        return True

    def run(self, src: CudaArray, dst: CudaArray, stream: int = 0) -> None:
        assert src.shape == (self.batch, 1, *self.spec.size)
        assert dst.shape == (self.batch, self.spec.channels, *self.spec.size)

        def work() -> None:
            self.runs[self.spec.role] += 1
            x = played.device_array(src.address, src.shape, src.dtype)
            played.device_array(dst.address, dst.shape, dst.dtype)[:] = logits(self.spec.role, x)

        played.enqueue(stream, work)


@dataclass
class PlayedStream:
    """A stream of a caller."""

    own: Resources
    stream: Any

    @property
    def handle(self) -> int:
        return self.stream.handle

    def made_late(self, array: np.ndarray) -> CudaArray:
        made = self.own.array(array.shape, array.dtype)

        def make() -> None:
            played.device_array(made.address, made.shape, made.dtype)[:] = array

        played.enqueue(self.handle, make)
        return made

    def offered(self, array: np.ndarray) -> Producer:
        made = self.made_late(array)
        return Producer(
            made.address, made.shape, made.dtype, wait=lambda stream: _core.wait_for(stream, self.handle)
        )

    def fill(self, array: CudaArray, value: int) -> None:
        def use() -> None:
            played.device_array(array.address, array.shape, array.dtype)[:] = value

        played.enqueue(self.handle, use)

    def read(self, array: CudaArray) -> np.ndarray:
        copy = np.zeros(array.shape, array.dtype)

        def use() -> None:
            copy[:] = played.device_array(array.address, array.shape, array.dtype)

        played.enqueue(self.handle, use)
        self.stream.synchronize()
        return copy


class Backend:
    """What cascade_cases.py asks for."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()  # of the nets, by role

    def engine(self, spec: ModelSpec, batch: int) -> NumPyEngine:
        return NumPyEngine(spec, batch, self.runs)

    def orders(self) -> Iterator[str]:
        for order in ("lazy", "eager", "others-first"):
            played.schedule(order)
            yield order

    @contextmanager
    def stream(self) -> Iterator[PlayedStream]:
        with open_device(0) as device:
            own = Resources(device)
            made = PlayedStream(own, own.stream())
            yield made
            own.free()
            del made.stream  # the last reference, where the device is current


BACKEND = Backend()


def free_bytes() -> int:
    with open_device(0):
        return played.mem_get_info()[0]


def skipping() -> None:
    """The tumour net runs once for each chunk with liver, and not for the others."""
    one, hu = cascade(BACKEND), ct(24)
    one.run(hu[:1], SPACING)
    BACKEND.runs.clear()
    one.run(hu, SPACING)
    assert BACKEND.runs == {"liver": 6, "tumour": 4}
    BACKEND.runs.clear()
    one.run(hu[6:8], SPACING)
    one.run(hu[8:10], SPACING)  # less than a chunk, without: what the last one left must not count
    assert BACKEND.runs == {"liver": 2, "tumour": 1}


def out_of_memory() -> None:
    """Half the slices a run, and half of that, with the same labels, and it says so."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("trtseg").addHandler(handler)
    hu = ct(21)
    limits = {}
    for batch in (16, 8, 4):
        gc.collect()
        free = free_bytes()
        one = cascade(BACKEND, batch, context_bytes=1000)
        one.run(hu, SPACING)
        limits[batch] = free - free_bytes()
        del one
    gc.collect()
    assert played.live()["device"] == 0, played.live()
    played.memory(limits[4] + 20_000)
    one = cascade(BACKEND, 16, context_bytes=1000)
    labels, _ = one.run(hu, SPACING)
    assert (labels == expected(hu)).all()
    assert one.provenance == {"batch": 4, "cuda_graphs": True}
    assert [text.partition(";")[2] for text in said] == [
        " going on with 8 slices a run instead of 16",
        " going on with 4 slices a run instead of 8",
    ], said
    del one
    gc.collect()
    played.memory(limits[4])
    one = cascade(BACKEND, 2, context_bytes=1000)
    played.memory(3000)
    with pytest.raises(OutOfMemoryError):
        one.run(hu, SPACING)
    played.memory(8 << 30)
    labels, _ = one.run(hu, SPACING)  # as if nothing had been
    assert (labels == expected(hu)).all()
    del one
    gc.collect()
    played.memory(3000)
    with pytest.raises(OutOfMemoryError, match=r"too little free memory|cudaErrorMemoryAllocation"):
        cascade(BACKEND, 16, context_bytes=1000).run(hu, SPACING)


def errors() -> None:
    """Whatever call fails: an error of ours, everything given back, and the next call works."""
    hu = ct(11)
    one = cascade(BACKEND)
    one.run(hu, SPACING)
    played.reset()
    one.run(hu, SPACING)
    in_steady_state = played.calls()
    cascade(BACKEND).run(hu, SPACING)
    for calls, make in ((in_steady_state, lambda: one), (in_steady_state, lambda: cascade(BACKEND))):
        for n in range(1, calls + 1, max(1, calls // 40)):
            used = make()
            played.reset()
            played.fail_call(n, 1)  # invalid value
            try:
                labels, _ = used.run(hu, SPACING)
                assert (labels == expected(hu)).all()
            except DeviceError as error:
                what = str(error)
                assert "invalid argument" in what, what  # some calls may fail and do no harm
            played.reset()
            labels, _ = used.run(hu, SPACING)
            assert (labels == expected(hu)).all(), n


def lost() -> None:
    """An error that ends the context: the call says it, and so do the next ones."""
    hu, one = ct(11), cascade(BACKEND)
    one.run(hu, SPACING)
    played.fail_work(7)
    for text in ("illegal memory access", "context is lost", "context is lost"):
        with pytest.raises(DeviceError, match=text):
            one.run(hu, SPACING)
    played.reset()
    one = cascade(BACKEND)
    with BACKEND.stream() as stream:
        array = stream.own.array((1,), np.int16)
        played.fail_work(1)
        with pytest.raises(played.LogicError, match="illegal memory access"):
            stream.read(array)  # what others do
        for text in ("illegal memory access", "context is lost", "context is lost"):
            with pytest.raises(DeviceError, match=text):
                one.run(hu, SPACING)


def nothing_is_left() -> None:
    """All memory, streams, events and graphs are given back; a second run makes nothing new."""
    hu, one = ct(11), cascade(BACKEND)
    with BACKEND.stream() as stream:
        source, out, seen = stream.made_late(hu), stream.made_late(nines(hu)), []
        for _ in range(2):
            one.run(hu, SPACING)
            one.run(source, SPACING)
            one.run(source, SPACING, out, stream=stream.handle)
            seen.append((played.live(), played.made()))
        assert seen[0] == seen[1]
        assert seen[0][0]["launchable"] > 0
    del one
    gc.collect()
    assert set(played.live().values()) == {0}, played.live()


def memory_outlives_its_work() -> None:
    """Nobody waits for a copy, and nobody refers to its memory any more."""

    def work() -> None:
        with open_device(0) as device:
            own = Resources(device)
            stream, array, host = own.stream(), own.array((4,), np.int16), own.pinned((4,), np.int16)
            upload(array, host, stream)
            del stream

    work()
    in_threads(work)
    assert set(played.live().values()) == {0}, played.live()
    with open_device(0) as device:
        device.synchronize()


def in_order() -> None:
    """Graphs go first, then the engines that they run, then the memory of both: the device is current, somewhere."""
    seen, freed = [], []

    def note() -> None:
        played.mem_get_info()  # raises where no context is current
        live = played.live()
        seen.append((live["launchable"], live["device"] > 0))

    class Noting(Backend):
        def engine(self, spec: ModelSpec, batch: int) -> NumPyEngine:
            engine = super().engine(spec, batch)
            weakref.finalize(engine, note)
            return engine

    def free(allocation: played.DeviceAllocation, free: Any = played.DeviceAllocation.free) -> None:
        freed.append(played.live()["launchable"])
        free(allocation)

    played.DeviceAllocation.free = free  # type: ignore[method-assign]
    hu, other = ct(BATCH), np.ascontiguousarray(ct(BATCH)[:, ::2])
    for drop in (list.clear, lambda last: in_threads(last.clear)):
        last = [cascade(Noting())]
        last[0].run(hu, SPACING)
        assert played.live()["launchable"] == 8  # four a lane: one lane goes after the other
        last[0].run(other, SPACING)
        assert set(freed) == {4, 0}, freed
        assert seen == []
        drop(last)
        assert seen == [(4, True)] * 2 + [(0, True)] * 2, seen
        assert set(freed) == {4, 0}, freed
        assert set(played.live().values()) == {0}, played.live()
        seen.clear()
        freed.clear()


def beside_a_recording() -> None:
    """A cascade goes while another one records a graph: on another thread, or as garbage, wherever that is found."""
    hu, gone = ct(BATCH), []

    def on_another_thread() -> None:
        if gone and not gc.isenabled():  # while one records
            in_threads(gone.clear)

    def as_garbage() -> None:
        if gone and not gc.isenabled():
            gone.clear()
            gc.set_threshold(1)
            assert len([[] for _ in range(100)]) == 100
            gc.set_threshold(1_000_000)

    gc.set_threshold(1_000_000)
    for hook in (on_another_thread, as_garbage):
        one, other = cascade(Hooked(BACKEND, hook)), cascade(BACKEND)
        with BACKEND.stream() as stream:
            source, out = stream.made_late(hu), stream.made_late(nines(hu))
            other.run(source, SPACING, out, stream=stream.handle)
            ring = [other]
            if hook is as_garbage:
                ring.append(ring)
            gone.append(ring)
            del other, ring
            labels, _ = one.run(ct(2 * BATCH), SPACING)
            assert gone == []
            assert (labels == expected(ct(2 * BATCH))).all()
            assert (stream.read(out) == expected(hu)).all()
        del one
        gc.collect()
        assert set(played.live().values()) == {0}, played.live()


def no_memory_for_contexts() -> None:
    """What a result tells is of the nets that ran last."""
    hu, one = ct(5), cascade(BACKEND, 2, context_bytes=1000)
    one.run(hu, SPACING)
    played.memory(500)  # less than one takes
    with pytest.raises(OutOfMemoryError):
        one.run(np.ascontiguousarray(hu[:, ::2]), SPACING)
    assert one.precision == "fp16"
    assert one.provenance["batch"] == 2
    played.memory(8 << 30)
    labels, _ = one.run(hu, SPACING)
    assert (labels == expected(hu)).all()
    assert one.precision == "fp16"


def recordings_overlap() -> None:
    """One thread begins to record while another does, and still records when that is done."""
    hu, begun, done = ct(BATCH), threading.Event(), threading.Event()
    calls, collected = Counter[str](), []
    first_runs = 4  # of two nets in two lanes: later runs are recorded

    def first() -> None:
        calls["first"] += 1
        if calls["first"] == first_runs + 1:
            second.start()
            assert begun.wait(60)

    def other() -> None:
        calls["other"] += 1
        if calls["other"] == first_runs + 1:
            begun.set()
            assert done.wait(60)
            collected.append(gc.isenabled())

    one, two = cascade(Hooked(BACKEND, first)), cascade(Hooked(BACKEND, other))
    second = threading.Thread(target=lambda: two.run(hu, SPACING))
    assert gc.isenabled()
    one.run(hu, SPACING)
    done.set()
    second.join()
    assert collected == [False]
    assert gc.isenabled()
    gc.disable()  # who has no use for it is left alone
    cascade(BACKEND).run(hu, SPACING)
    assert not gc.isenabled()
    gc.enable()


def all_is_ready_after_the_first_slice() -> None:
    """No engine is asked to run again, since all graphs are there and on the GPU, whatever comes."""
    asked, hu = [], ct(3 * BATCH)
    one = cascade(Hooked(BACKEND, lambda: asked.append(1)))
    air = np.full((1, *hu.shape[1:]), -1000, np.int16)
    one.run(air, SPACING)
    # The first run in both lanes, the two graphs of each net once in both, and the slice, which has no liver.
    assert BACKEND.runs == {"liver": 2 + 4 + 1, "tumour": 2 + 4}
    asked.clear()
    there, made = played.live(), played.made()
    assert (one.run(hu, SPACING)[0] == expected(hu)).all()
    with BACKEND.stream() as stream:
        for source in (hu, stream.made_late(hu)):
            out = stream.made_late(nines(hu))
            one.run(source, SPACING, out, stream=stream.handle)
            assert (stream.read(out) == expected(hu)).all()
        one.run(source, SPACING)
        assert played.made() == made + 4  # that stream, and its arrays
    assert asked == []
    assert played.live() == there


def without_graphs() -> None:
    """An engine that cannot be recorded: steps are launched one by one, with the same labels; one warning tells it."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("trtseg").addHandler(handler)

    class Unrecordable(Backend):
        def engine(self, spec: ModelSpec, batch: int) -> NumPyEngine:
            engine = super().engine(spec, batch)
            engine.capturable = lambda stream: spec.role != "tumour"  # type: ignore[method-assign]
            return engine

    hu, one = ct(2 * BATCH + 3), cascade(Unrecordable())
    other = np.ascontiguousarray(hu[:, ::2])
    for order in BACKEND.orders():
        for volume in (hu, other):
            assert (one.run(volume, SPACING)[0] == expected(volume)).all(), order
        with BACKEND.stream() as stream:
            source, out = stream.made_late(hu), stream.made_late(nines(hu))
            one.run(source, SPACING, out, stream=stream.handle)
            assert (stream.read(out) == expected(hu)).all(), order
    assert played.live()["launchable"] == 0
    assert one.provenance == {"batch": BATCH, "cuda_graphs": False}
    assert said == ["an engine cannot be recorded in a CUDA graph: each step is launched by itself, slower"]


def nets_go_where_the_device_is_current() -> None:
    """Before others are opened, also where there is no memory for these; and with the cascade, on whatever thread."""
    opened, there = [], weakref.WeakSet()

    def note(batch: int) -> None:
        played.mem_get_info()  # raises where no context is current
        gone.append(batch)

    def open_nets(batch: int) -> Nets:
        assert not there, "old weights are still there"
        opened.append(batch)
        nets = Nets(BACKEND, batch, (LIVER, TUMOUR), 1000)
        there.add(nets)
        weakref.finalize(nets, note, batch)
        return nets

    for drop in (list.clear, lambda last: in_threads(last.clear)):
        gone: list[int] = []
        opened.clear()
        played.memory(40_000)
        last = [CudaCascade(open_device(0), open_nets, 32)]  # there is no memory for its contexts ...
        assert opened == [32, 16]
        played.memory(8 << 30)
        last[0].run(ct(1), SPACING)
        played.memory(60_000)
        with pytest.raises(OutOfMemoryError):  # ... nor for the buffers of large slices
            last[0].run(np.full((1, 300, 300), -1000, np.int16), SPACING)
        assert opened == [32, 16, 8, 4, 2, 1]
        assert gone == [32, 16, 8, 4, 2]
        played.memory(8 << 30)
        drop(last)
        assert gone == [32, 16, 8, 4, 2, 1]
    played.memory(100)
    with pytest.raises(OutOfMemoryError):
        CudaCascade(open_device(0), open_nets, 2)
    assert gone[-2:] == [2, 1]


def ends_in_mid_use() -> None:
    """The process ends with all there is: cascades that have run, and work that nobody waits for."""
    global kept
    hu, one = ct(BATCH), cascade(BACKEND)
    one.run(hu, SPACING)
    own = Resources(open_device(0).__enter__())
    stream, array, host = own.stream(), own.array((4,), np.int16), own.pinned((4,), np.int16)
    upload(array, host, stream)
    open_device(0).__exit__()
    kept = one, own, stream, array, host


case = sys.argv[1]
if case in CASES:
    CASES[case](BACKEND)
    gc.collect()
    assert set(played.live().values()) == {0}, played.live()
else:
    globals()[case]()
