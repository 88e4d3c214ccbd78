"""The CUDA cascade on the GPU that played.cpp plays: cascade.py CASE..., of cascade_cases.py or of those here."""

import gc
import logging
import sys
import traceback
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import played_pycuda as played
import pytest

played.install()
from cascade_cases import CASES  # noqa: E402
from cascade_nets import (  # noqa: E402
    BATCH,
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
    opened,
)
from producer import Producer  # noqa: E402

from trtseg import _core  # noqa: E402
from trtseg.cascade import gpu  # noqa: E402
from trtseg.cascade.gpu import CudaCascade  # noqa: E402
from trtseg.cuda.arrays import CudaArray  # noqa: E402
from trtseg.cuda.device import Resources, Stream, open_device  # noqa: E402
from trtseg.errors import ArgumentError, DeviceError, OutOfMemoryError  # noqa: E402
from trtseg.spec import ModelSpec  # noqa: E402

SAID: list[str] = []  # by the log
_handler = logging.Handler()
_handler.emit = lambda record: SAID.append(record.getMessage())  # type: ignore[method-assign]
logging.getLogger("trtseg").addHandler(_handler)


@dataclass
class NumPyEngine:
    """A net whose work waits in the stream like a kernel's."""

    spec: ModelSpec
    batch: int
    runs: Counter[str]
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.float16))
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
    stream: Stream

    @property
    def handle(self) -> int:
        return self.stream.handle

    def made_late(self, array: np.ndarray) -> CudaArray:
        made = self.own.array(array.shape, array.dtype)
        self.fill(made, array)
        return made

    def offered(self, array: np.ndarray) -> Producer:
        made = self.made_late(array)
        return Producer(
            made.address,
            made.shape,
            made.dtype,
            wait=lambda stream: _core.Event().wait_for(stream, self.handle),
        )

    def fill(self, array: CudaArray, value: Any) -> None:
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

    dtype = np.float16

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
        with open_device(0) as device, Resources(device) as own:
            yield PlayedStream(own, own.stream())


BACKEND = Backend()


def skipping() -> None:
    """The tumour net runs once for each chunk with liver, and not for the others."""
    hu = ct(24)
    with opened(BACKEND) as one:
        one.run(hu[:1], SPACING)
        for volumes, runs in (((hu,), (6, 4)), ((hu[6:8], hu[8:10]), (2, 1))):
            BACKEND.runs.clear()
            for volume in volumes:
                one.run(volume, SPACING)
            assert BACKEND.runs == {"liver": runs[0], "tumour": runs[1]}


def the_host_copies_while_the_gpu_works() -> None:
    """Before the host waits for a chunk and copies the next one in, the chunk between has its second half launched."""
    hu = ct(2 * BATCH + 1)
    with opened(BACKEND) as one:
        one.run(hu[:1], SPACING)
        feed = one.begin(one.place(hu, SPACING))
        BACKEND.runs.clear()
        played.schedule("eager")  # work runs as soon as it is launched
        assert feed.push(hu[: 2 * BATCH]) == []
        assert BACKEND.runs == {"liver": 2, "tumour": 1}
        ((first, labels),) = feed.push(hu[2 * BATCH :])
        assert BACKEND.runs == {"liver": 2, "tumour": 2}
        assert first == 0
        assert (labels == expected(hu[:BATCH])).all()
        feed.finish()
        assert BACKEND.runs == {"liver": 3, "tumour": 2}  # the last slice has no liver


def the_host_copies_beside_chunks_without_liver() -> None:
    """A chunk is copied in before the host waits for the chunk before it, where the oldest chunk has no liver."""
    air, liver = np.full((BATCH, *ct(1).shape[1:]), -1000, np.int16), ct(2 * BATCH)[BATCH:]
    copied, copy = [], _core.copy
    with opened(BACKEND) as one:
        one.run(air, SPACING)
        feed, chunks = one.begin(one.place(liver, SPACING)), (air, air, liver, liver, air)
        BACKEND.runs.clear()
        _core.copy = lambda *given: (copied.append(BACKEND.runs["liver"]), copy(*given))
        try:
            for chunk in chunks:
                feed.push(chunk)
            copied_in = copied[:]
            feed.finish()
        finally:
            _core.copy = copy
    # Nets that had run, because somebody waited for them, at each copy: to the GPU, and of the labels of chunk 2.
    assert copied_in == [0, 0, 1, 2, 4, 4], copied_in


def three_lanes() -> None:
    """They give the labels of two: `benchmarks.gpu` compares their times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "LANES", 3)
        for batch in (1, BATCH):
            with opened(BACKEND, batch) as one:
                for order in BACKEND.orders():
                    for slices in (1, 3 * BATCH, 7 * BATCH + 3):
                        hu = ct(slices)
                        assert (one.run(hu, SPACING)[0] == expected(hu)).all(), (order, slices)
                        assert len(one._lanes) == 3


def threads_on_the_host() -> None:
    """Whoever copies, clears or searches the patient on the host has the threads that were asked for."""
    seen: list[tuple[str, int]] = []

    def noted(name: str) -> Any:
        call = getattr(_core, name)

        def noting(*given: Any, **options: Any) -> Any:
            seen.append((name, options["threads"] if "threads" in options else given[-1]))
            return call(*given, **options)

        return noting

    names = ("copy", "clear", "Chunk", "frame", "thick")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(_core, name, noted(name))
        liver = replace(LIVER, fit="body", pixel_mm=2.0)
        hu = np.concatenate([ct(BATCH), np.full_like(ct(BATCH), -1000)])
        nets = Nets(BACKEND, BATCH, (liver, TUMOUR), 0)
        with closing(CudaCascade(open_device(0), lambda _: nets, BATCH, 3)) as one:
            one.run(hu, SPACING)
    assert set(seen) == {(name, 3) for name in names}, set(seen)


def out_of_memory() -> None:
    """Half the slices a run, and half of that, with the same labels, and the log says so; at last an error."""
    hu, limits = ct(21), {}
    for batch in (16, 8, 4):
        with opened(BACKEND, batch, context_bytes=1000) as one, open_device(0):
            one.run(hu, SPACING)
            limits[batch] = (8 << 30) - played.mem_get_info()[0]
    played.memory((limits[4] + limits[8]) // 2)
    with opened(BACKEND, 16, context_bytes=1000) as one:
        assert (one.run(hu, SPACING)[0] == expected(hu)).all()
        assert one.provenance == {"batch": 4, "cuda_graphs": True}
    assert [text.partition(";")[2] for text in SAID] == [
        " going on with 8 slices a run instead of 16",
        " going on with 4 slices a run instead of 8",
    ], SAID
    with (
        opened(BACKEND, 16, context_bytes=1000) as one,
        pytest.raises(ArgumentError, match="hu: got 16 slices; expected from 1 to 4, the batch"),
    ):
        one.stages(hu[:16], SPACING)
    for batch, limit in ((2, 3000), (2, 500)):  # too little for lanes, and for contexts
        played.memory(limits[4])
        with opened(BACKEND, batch, context_bytes=1000) as one:
            played.memory(limit)
            with pytest.raises(OutOfMemoryError):
                one.run(hu, SPACING)
            played.memory(8 << 30)
            assert (one.run(hu, SPACING)[0] == expected(hu)).all()  # as if nothing had been
    played.memory(100)
    with pytest.raises(OutOfMemoryError, match="too little free memory"):
        cascade(BACKEND, 16, context_bytes=1000)


def errors() -> None:
    """Whatever call fails: an error of ours, everything given back, and the next call works."""
    hu, failed = ct(11), 0
    with opened(BACKEND) as kept:
        calls = []
        for _ in range(2):  # the first run sets up
            played.reset()
            kept.run(hu, SPACING)
            calls.append(played.calls())
        for one, last in ((None, calls[0]), (kept, calls[1])):
            for n in range(1, last + 1, max(1, last // 50)):
                used = cascade(BACKEND) if one is None else one
                played.reset()
                played.fail_call(n)
                try:
                    labels = used.run(hu, SPACING)[0]
                    assert (labels == expected(hu)).all()  # some calls may fail and do no harm
                except DeviceError as error:
                    assert "cudaErrorInvalidValue" in str(error)  # noqa: PT017
                    failed += 1
                    with open_device(0):  # frames of the stand-in hold streams; PyCUDA has none
                        for one_of_them in (error, error.__cause__ or error):
                            traceback.clear_frames(one_of_them.__traceback__)
                played.reset()
                assert (used.run(hu, SPACING)[0] == expected(hu)).all(), n
                if one is None:
                    used.close()
    assert failed > 60


def lost() -> None:
    """An error that ends the context: the call says it, and so do the next ones."""
    hu, one = ct(11), cascade(BACKEND)
    one.run(hu, SPACING)
    played.fail_work(7)
    for text in ("cudaErrorIllegalAddress", "context is lost", "context is lost"):
        with pytest.raises(DeviceError, match=text):
            one.run(hu, SPACING)
    one.close()
    assert "could not be given back" in SAID[-1]
    played.reset()


def ready_after_the_first_slice() -> None:
    """No engine is asked to run again and nothing is made, since all graphs are there and on the GPU."""
    asked, hu = [], ct(3 * BATCH)
    BACKEND.runs.clear()
    with opened(Hooked(BACKEND, lambda: asked.append(1))) as one, BACKEND.stream() as stream:
        one.run(np.full((1, *hu.shape[1:]), -1000, np.int16), SPACING)
        # The first run in both lanes, the two graphs of each net once in both, and the slice, which has no liver.
        assert BACKEND.runs == {"liver": 2 + 4 + 1, "tumour": 2 + 4}
        asked.clear()
        source, out = stream.made_late(hu), stream.made_late(nines(hu))
        there = played.live(), played.made()
        assert there[0]["launchable"] == 8
        assert (one.run(hu, SPACING)[0] == expected(hu)).all()
        for given in (hu, source):
            one.run(given, SPACING, out, stream=stream.handle)
            assert (stream.read(out) == expected(hu)).all()
        one.run(source, SPACING)
        assert (played.live(), played.made()) == there
    assert asked == []


def closed_in_order() -> None:
    """Graphs go first, then the engines that they run, then the nets; also before smaller nets are opened."""
    seen: list[tuple[str, int, int]] = []

    class Noted(Nets):
        def __init__(self, batch: int) -> None:
            super().__init__(BACKEND, batch, (LIVER, TUMOUR), 1000)
            self.batch = batch
            seen.append(("opened", batch, 0))

        def contexts(self) -> tuple[Any, ...]:
            engines = super().contexts()
            for engine in engines:
                engine.close = lambda close=engine.close: (self.note("engine"), close())
            return engines

        def note(self, what: str) -> None:
            played.mem_get_info()  # raises where no context is current
            seen.append((what, self.batch, played.live()["launchable"]))

        def close(self) -> None:
            self.note("nets")

    def gone(batch: int) -> list[tuple[str, int, int]]:
        return [*[("engine", batch, 0)] * 4, ("nets", batch, 0)]

    one = CudaCascade(open_device(0), Noted, 4)
    one.run(ct(5), SPACING)
    assert played.live()["launchable"] == 8
    played.memory(60_000)
    with pytest.raises(OutOfMemoryError):  # there is no memory for the buffers of large slices
        one.run(np.full((1, 300, 300), -1000, np.int16), SPACING)
    assert seen == [("opened", 4, 0), *gone(4), ("opened", 2, 0), *gone(2), ("opened", 1, 0)]
    seen.clear()
    in_threads(one.close)
    assert seen == gone(1)


def closed_gives_no_stream() -> None:
    """A closed cascade gives its stream, which is gone, to nobody."""
    with BACKEND.stream() as stream:
        offered = stream.offered(ct(3))
        with opened(BACKEND) as one:
            one.run(ct(3), SPACING)
        with pytest.raises(DeviceError, match="cascade: got slices for a cascade that is closed"):
            one.view(offered, "hu", np.int16)
        assert offered.streams == []


def beside_a_recording() -> None:
    """A cascade goes while another one records a graph: on another thread, or as garbage, wherever that is found."""
    hu, gone = ct(BATCH), []

    def on_another_thread() -> None:
        if gone and not gc.isenabled():  # while a graph is recorded
            in_threads(gone.pop().close)

    def as_garbage() -> None:
        if gone and not gc.isenabled():
            ring: list[Any] = [[]]
            ring[0].append(ring)
            other = gone.pop()
            weakref.finalize(Holder(ring), other.close)
            del other, ring
            gc.set_threshold(1)
            assert len([[] for _ in range(100)]) == 100
            gc.set_threshold(1_000_000)

    class Holder:
        """Garbage that is part of a ring."""

        def __init__(self, ring: list[Any]) -> None:
            self.ring = ring
            ring.append(self)

    gc.set_threshold(1_000_000)
    for hook in (on_another_thread, as_garbage):
        other = cascade(BACKEND)
        with opened(Hooked(BACKEND, hook)) as one, BACKEND.stream() as stream:
            source, out = stream.made_late(hu), stream.made_late(nines(hu))
            other.run(source, SPACING, out, stream=stream.handle)
            gone.append(other)
            del other
            assert (one.run(ct(2 * BATCH), SPACING)[0] == expected(ct(2 * BATCH))).all()
            assert gone == []
            assert (stream.read(out) == expected(hu)).all()
        gc.collect()
        assert set(played.live().values()) == {0}, played.live()


for name in sys.argv[1:]:
    print(name, flush=True)
    CASES[name](BACKEND) if name in CASES else globals()[name]()
    if name != "lost":
        assert set(played.live().values()) == {0}, played.live()
        assert not played.misused, Counter(played.misused)
    played.reset()
    SAID.clear()
