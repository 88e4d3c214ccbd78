"""A lane: stream, buffers and CUDA graphs for one chunk of slices at a time on its way through the nets on a GPU."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trtseg import _core
from trtseg.body import Hu
from trtseg.cascade.base import Labels, Logits, Timings, keep_logits
from trtseg.cuda.arrays import CudaArray
from trtseg.cuda.device import Device, Resources, download, upload
from trtseg.engines.base import GpuEngine
from trtseg.fit import Fit

_Step = Callable[[], None]


class _Part(NamedTuple):
    """Neighbouring slices of a chunk that were taken together."""

    first: int  # number of the first slice in its feed
    rows: slice  # of the lane's buffers
    out: Labels | None
    streams: tuple[int, ...]  # that use `out` afterwards, if it is on the GPU


class Lane:
    """Takes a chunk through the nets in four calls: `take` until the chunk is full, `start`, `go_on`, `finish`.

    `start` launches the first half, which ends with the number of liver pixels of each slice. `go_on` waits for these
    and launches the second half, with the tumour net or without. A lane is warmed up before it is used. Without graphs
    (`record`) the steps of a half are launched one by one.

    Parameters
    ----------
    device : Device
        Where; it must be current in every call.
    engines : tuple of GpuEngine
        ``(liver, tumour)``, or a single ``one-step`` engine; no other lane uses them.
    fit : Fit
        Of the slices, which all have one shape.
    batch : int
        Slices in each run of the engines: the most that a chunk has.
    threads : int
        That copy on the host; 0: one for each processor.

    Attributes
    ----------
    logits : dict or None
        Gets the tumour logits of slices with liver, as `trtseg.cascade.base.Cascade.begin` has it; None: they stay on
        the GPU. It changes only while the lane has no chunk.
    empty : bool
        After `go_on`: no slice of the chunk has liver, and all its labels are 0.
    """

    def __init__(
        self, device: Device, engines: tuple[GpuEngine, ...], fit: Fit, batch: int, threads: int = 0
    ) -> None:
        first, last = engines[0], engines[-1]
        self._threads = threads
        self._device, self._engines, self._fit, self._batch = device, engines, fit, batch
        self.logits: Logits | None = None
        self._parts: list[_Part] = []
        self._filled = 0
        self.empty = False
        self._graphs: dict[str, _core.Graph] = {}
        self._chunk: _core.Chunk | None = None
        with ExitStack() as stack:
            self._own = own = stack.enter_context(Resources(device))
            self._stream, self._done, self._order = own.stream(), own.event(), _core.Event()
            self._hu_host = own.pinned((batch, *fit.native), np.int16)
            self._labels_host = own.pinned((batch, *fit.native), np.uint8)
            self._hu = own.array((batch, *fit.native), np.int16)
            self._hu_net = own.array((batch, *fit.net), np.int16)
            self._x1 = own.array((batch, 1, *fit.net), first.dtype)
            self._l1 = own.array((batch, first.spec.channels, *fit.net), first.dtype)
            self._labels = own.array((batch, *fit.native), np.uint8)
            self._counts = own.array((batch, 2), np.int32)
            self._pixels_host: NDArray[np.int32] | None = None
            if len(engines) == 2:
                self._x2 = own.array((batch, 1, *fit.net), last.dtype)
                self._l2 = own.array((batch, 1, *fit.net), last.dtype)
                self._l2_host = own.pinned((batch, 1, *fit.net), last.dtype)
                self._pixels = own.array((batch,), np.int32)
                self._pixels_host = own.pinned((batch,), np.int32)
            stack.pop_all()

    def warm_up(self) -> None:
        """Run every step once: a graph cannot hold the set-up of a first run. All rows hold numbers from now on."""
        _call(self._steps().values())
        self._stream.synchronize()

    def record(self) -> bool:
        """Make all graphs, so that none is made while slices come in; False, and none, where an engine forbids it."""
        stream = self._stream.handle
        if not all(engine.capturable(stream) for engine in self._engines):
            return False
        for name, steps in self._halves().items():
            with _no_garbage_collection:
                self._graphs[name] = _core.Graph.capture(stream, partial(_call, steps))
        # The first launch takes a graph to the GPU; any numbers in the buffers will do.
        for graph in self._graphs.values():
            graph.launch(stream)
        self._stream.synchronize()
        first, second = self._graphs["first, from host"], self._graphs["second, to host"]
        pixels, labels, threads = self._pixels_host, self._labels_host, self._threads
        self._chunk = _core.Chunk(stream, self._hu_host, first, pixels, second, labels, threads)
        return True

    @property
    def free(self) -> int:
        """How many slices the chunk can still take."""
        return self._batch - self._filled

    def take(self, hu: Hu, out: Labels | None, first: int, streams: tuple[int, ...]) -> None:
        """Add slices ``[n, Y, X]`` to the chunk, at most `free`.

        ``out`` ``[n, Y, X]`` gets the labels; None stands for a new array on the host. ``first`` is the number of the
        first slice. ``streams`` make ``hu`` and used ``out`` last, where these are on the GPU.
        """
        rows, stream = slice(self._filled, self._filled + len(hu)), self._stream.handle
        if isinstance(hu, CudaArray) or isinstance(out, CudaArray):
            for other in streams:
                self._order.wait_for(stream, other)
        if isinstance(hu, CudaArray):
            window = self._engines[0].spec.window
            _core.prepare(hu, self._fit, window, self._hu_net[rows], self._x1[rows], stream=stream)
        else:
            if not self._parts:
                self._done.synchronize()  # the chunk before may still be on its way from the pinned memory to the GPU
            _core.copy(self._hu_host[rows], hu, self._threads)
        self._parts.append(_Part(first, rows, out, streams))
        self._filled = rows.stop
        self._from_host = not isinstance(hu, CudaArray)

    def start(self) -> None:
        """Launch the first half of the chunk."""
        self._launch("first, from host" if self._from_host else "first")
        self._done.record(self._stream)

    def go_on(self) -> None:
        """Wait for the first half, and launch the second."""
        if self._pixels_host is not None:
            self._done.synchronize()
            self.empty = not self._pixels_host[: self._filled].any()
        if isinstance(self._parts[0].out, CudaArray):
            if not self.empty:
                self._launch("second")
            for part in self._parts:
                self._label(part.out, part.rows)
        elif not self.empty:
            self._launch("second, to host")
        if self._keeps_logits():
            download(self._l2_host, self._l2, self._stream)
        self._done.record(self._stream)

    def finish(self) -> list[tuple[int, Labels]]:
        """Number of the first slice and labels of each part; labels on the GPU are there for streams told of them."""
        parts, self._parts, self._filled = self._parts, [], 0
        if self._keeps_logits():
            self._done.synchronize()
            for part in parts:
                self._keep(part.first, part.rows)
        if isinstance(parts[0].out, CudaArray):
            for other in dict.fromkeys(other for part in parts for other in part.streams):
                self._order.wait_for(other, self._stream.handle)
            return [(part.first, part.out) for part in parts]
        if not self.empty:
            self._done.synchronize()
        pieces = []
        for part in parts:
            source = self._labels_host[part.rows]
            out = np.empty(source.shape, np.uint8) if part.out is None else part.out
            if self.empty:
                _core.clear(out, self._threads)
            else:
                _core.copy(out, source, self._threads)
            pieces.append((part.first, out))
        return pieces

    def run(self, hu: NDArray[np.int16], out: NDArray[np.uint8], first: int = 0) -> bool:
        """Label a whole chunk ``[batch, Y, X]`` on the host in one call; False, and no labels, where that cannot be.

        ``first`` is the number of the first slice.
        """
        if self._chunk is None or self._parts:
            return False
        self._done.synchronize()  # as in `take`
        self._chunk.run(hu, out)
        self.empty = self._pixels_host is not None and not self._pixels_host.any()
        if self._keeps_logits():
            download(self._l2_host, self._l2, self._stream)
            self._stream.synchronize()
            self._keep(first, slice(0, self._batch))
        return True

    def drop(self) -> None:
        """Wait for the chunk and forget it."""
        self._stream.synchronize()
        self._parts, self._filled = [], 0

    def stages(self, hu: NDArray[np.int16], repeats: int = 30) -> Timings:
        """Median seconds of each step for slices on the host ``[n, Y, X]``, launched one by one.

        All repeats are enqueued before the host waits: an event that found the GPU idle would measure the launch.
        """
        self._done.synchronize()  # as in `take`
        out, host = np.empty(hu.shape, np.uint8), (self._hu_host[: len(hu)], self._labels_host[: len(hu)])
        into = [_seconds(partial(_core.copy, host[0], hu, self._threads)) for _ in range(repeats)]
        steps, warm = self._steps(), 3
        with Resources(self._device) as own:
            marks = [[own.event(timed=True) for _ in range(len(steps) + 1)] for _ in range(repeats + warm)]
            for events in marks:
                events[0].record(self._stream)
                for event, step in zip(events[1:], steps.values(), strict=True):
                    step()
                    event.record(self._stream)
            self._stream.synchronize()
            times = [[e.seconds_since(s) for s, e in pairwise(m)] for m in marks[warm:]]
        out_of = [_seconds(partial(_core.copy, out, host[1], self._threads)) for _ in range(repeats)]
        on_gpu = dict(zip(steps, map(statistics.median, zip(*times, strict=True)), strict=True))
        into_pinned = {"copy into pinned memory": statistics.median(into)}
        return into_pinned | on_gpu | {"copy out of pinned memory": statistics.median(out_of)}

    def close(self) -> None:
        """Wait for the chunk, then give back graphs and the memory on which they work."""
        self._own.synchronize()  # labels that stay on the GPU may not be there yet
        self._chunk, self._parts, self._engines = None, [], ()
        self._graphs.clear()
        self._own.close()

    def _keeps_logits(self) -> bool:
        """Whether the chunk has tumour logits, and somebody wants them."""
        return self.logits is not None and self._pixels_host is not None and not self.empty

    def _keep(self, first: int, rows: slice) -> None:
        assert self.logits is not None
        assert self._pixels_host is not None
        keep_logits(self.logits, first, self._l2_host[rows], self._pixels_host[rows])

    def _launch(self, name: str) -> None:
        if self._graphs:
            if name in self._graphs:
                self._graphs[name].launch(self._stream.handle)
        else:
            _call(self._halves().get(name, ()))

    def _halves(self) -> dict[str, tuple[_Step, ...]]:
        """Steps that are launched together, as a graph; a half without steps is left out."""
        steps = self._steps()
        names, works = list(steps), tuple(steps.values())
        cut = names.index("tumour net" if "tumour net" in steps else "label")
        halves = {
            "first, from host": works[:cut],
            "first": works[names.index("prepare") + 1 : cut],
            "second": works[cut : names.index("label")],
            "second, to host": works[cut:],
        }
        return {name: half for name, half in halves.items() if half}

    def _steps(self) -> dict[str, _Step]:
        """The steps of a whole chunk, in order, by name; each enqueues its work on the lane's stream."""
        first, last, stream = self._engines[0], self._engines[-1], self._stream.handle
        window, threshold = first.spec.window, first.spec.logit_threshold
        steps: dict[str, _Step] = {
            "copy to the GPU": partial(upload, self._hu, self._hu_host, self._stream),
            "prepare": partial(
                _core.prepare, self._hu, self._fit, window, self._hu_net, self._x1, stream=stream
            ),
            f"{first.spec.role} net": partial(first.run, self._x1, self._l1, stream),
        }
        if self._pixels_host is not None:
            gate = self._l1, self._hu_net, threshold, last.spec.window, self._x2, self._pixels
            steps["gate"] = partial(_core.gate, *gate, stream=stream)
            steps["copy of the liver pixels"] = partial(
                download, self._pixels_host, self._pixels, self._stream
            )
            steps["tumour net"] = partial(last.run, self._x2, self._l2, stream)
        steps["label"] = partial(self._label, self._labels, slice(0, self._batch))
        steps["copy to the host"] = partial(download, self._labels_host, self._labels, self._stream)
        return steps

    def _label(self, out: Labels, rows: slice) -> None:
        stream, counts = self._stream.handle, self._counts[rows]
        if self._pixels_host is not None:
            thresholds = (self._engines[0].spec.logit_threshold, self._engines[1].spec.logit_threshold)
            # `label` never looks at the tumour logits of a slice without liver, so old logits there change nothing
            _core.label(self._l1[rows], self._l2[rows], thresholds, self._fit, out, counts, stream=stream)
        else:
            _core.label3(self._l1[rows], self._fit, out, counts, stream=stream)


def _call(steps: Iterable[_Step]) -> None:
    for step in steps:
        step()


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class _NoGarbageCollection:
    """Keeps Python's garbage collector off while a thread records a graph.

    Garbage may be a Segmenter that nobody closed. Its end waits for the GPU, which no thread may do while it records.
    The collector is off for the whole process, so it comes back when the last recording thread has left.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._was_on = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._was_on:
                gc.enable()


_no_garbage_collection = _NoGarbageCollection()
