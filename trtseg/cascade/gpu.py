"""The cascade on a GPU: chunks of slices in lanes that work side by side, each launched as CUDA graphs.

A lane (`trtseg.cascade.lane`) has a stream, buffers and engine contexts of its own. Lanes share nothing that is
written, so they need no order among them: while the host copies for one lane, the GPU computes in the other. A chunk of
the shipped model is two graphs, cut at the gate. The first graph ends with the number of liver pixels; the host reads
it and launches the second graph, with the tumour net or without.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trtseg.body import Hu, on_threads
from trtseg.cascade.base import Done, Labels, Logits, Progress, Timings, check_slices, ended, run_volume
from trtseg.cascade.lane import Lane
from trtseg.cuda import dlpack
from trtseg.cuda.arrays import CudaArray
from trtseg.cuda.device import Device, OneOutput, Resources, errors, open_device
from trtseg.engines.base import GpuEngine
from trtseg.errors import ArgumentError, DeviceError, OutOfMemoryError, TrtsegError
from trtseg.fit import Fit

if TYPE_CHECKING:
    from trtseg.engines.nvidia.nets import GpuNets
    from trtseg.models import ModelFiles

log = logging.getLogger("trtseg")

LANES = 2


class CudaCascade:
    """The nets of a model on a GPU with their lanes; see `trtseg.cascade.base` for its methods.

    Parameters
    ----------
    device : Device
        Where.
    open_nets : callable
        Opens the nets for a batch: `trtseg.engines.nvidia.nets.open_nets` with its other arguments given.
    batch : int
        Slices in each run of an engine. Where the GPU has too little memory, half of it is tried, and so on down to 1.
    threads : int
        Of copies and operations on the host; 0: one for each processor.

    Attributes
    ----------
    precisions : dict
        Arithmetic of each net, by its role.
    provenance : dict
        What a result tells of the GPU and the engines that ran last. Once slices have run, ``cuda_graphs`` tells
        whether graphs or single steps were launched.
    """

    precisions: dict[str, str]
    provenance: dict[str, Any]

    def __init__(
        self, device: Device, open_nets: Callable[[int], GpuNets], batch: int, threads: int = 0
    ) -> None:
        self._device, self._open, self._threads = device, open_nets, threads
        self._nets: GpuNets | None = None
        self._contexts: list[tuple[GpuEngine, ...]] = []  # of each lane
        self._opened = ExitStack()  # closes contexts and nets
        self._lanes: list[Lane] = []
        self._fit: Fit | None = None  # of the lanes
        self._feed: CudaFeed | None = None
        self._unusable: str | None = None
        self._told = False  # that there are no graphs
        self._own = Resources(device)
        self._found: OneOutput | None = None  # where the patient is, of slices on the GPU
        with ExitStack() as stack:
            stack.callback(self._own.close)
            with device:
                self._handover = self._own.stream()
            self._open_nets(batch)
            stack.pop_all()

    def view(self, array: Any, name: str, dtype: DTypeLike) -> CudaArray:
        """View another library's slices ``[Z, Y, X]`` on this GPU."""
        self._check_usable()
        if hasattr(array, "__cuda_array_interface__"):
            return CudaArray.of(array, name, dtype, 3)
        with self._device:
            return dlpack.view(array, name, dtype, 3, device=self._device.index, stream=self._handover.handle)

    def place(self, hu: Hu, spacing: tuple[float, float], *, stream: int = 0) -> Fit:
        """Place slices on the nets' grid; the patient is searched where the slices are."""
        self._check_usable()
        if not self._contexts:  # there was no memory for them
            self._open_nets(self._batch)
        spec = self._contexts[0][0].spec
        if not isinstance(hu, CudaArray):
            return spec.fit_volume(hu, spacing, on_threads(self._threads))
        guess = spec.fit_slice((hu.shape[1], hu.shape[2]), spacing)  # which checks them, too
        if spec.fit != "body":
            return guess
        with self._working():
            self._found = self._found or OneOutput(self._own, self._handover)
            self._found.wait_for({stream, stream if hu.stream is None else hu.stream})
            return spec.fit_volume(hu, spacing, self._found.run)

    def begin(self, fit: Fit, *, stream: int = 0, logits: Logits | None = None) -> CudaFeed:
        """Begin a feed of slices; makes lanes where the last feed had another placement."""
        self._check_usable()
        if self._feed is not None:
            self._feed.close()
        if fit != self._fit or not self._lanes:
            if not self._contexts:  # there was no memory for them
                self._open_nets(self._batch)
            with self._working():
                self._make_lanes(fit)
        self._feed = CudaFeed(self, self._lanes, fit.native, self._batch, stream, logits)
        return self._feed

    def run(
        self,
        hu: Hu,
        spacing: tuple[float, float],
        out: Labels | None = None,
        *,
        fit: Fit | None = None,
        stream: int = 0,
        logits: Logits | None = None,
        done: Done | None = None,
    ) -> tuple[Labels, Timings]:
        """Label a volume ``[Z, Y, X]``."""
        fit = fit or self.place(hu, spacing, stream=stream)
        feed = self.begin(fit, stream=stream, logits=logits)
        labels = run_volume(feed, hu, out, done)
        return labels, feed.timings

    def stages(self, hu: NDArray[np.int16], spacing: tuple[float, float]) -> Timings:
        """Seconds in each stage of a chunk, launched step by step without graphs; its tumour net runs in any case."""
        self.begin(self.place(hu, spacing)).close()  # which may halve the batch
        if not 1 <= len(hu) <= self._batch:
            raise ArgumentError(f"hu: got {len(hu)} slices; expected from 1 to {self._batch}, the batch")
        with self._working():
            return self._lanes[0].stages(hu)

    def close(self) -> None:
        """Give back lanes, engines and nets, on whatever thread; labels that are on their way to the GPU get there."""
        self._feed = None
        self._unusable = self._unusable or "cascade: got slices for a cascade that is closed; open another"
        try:
            with self._device, ExitStack() as stack:
                self._found = None
                for close in (self._own.close, self._close_nets, self._close_lanes):  # the last one first
                    stack.callback(close)
        except TrtsegError as error:  # the context is lost, and everything in it
            log.warning("GPU memory could not be given back (%s)", error)

    def _check_usable(self) -> None:
        if self._unusable is not None:
            raise DeviceError(self._unusable)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """The GPU is current; after an error the feed has ended, and the next one gets new lanes."""
        try:
            with self._device, errors():
                yield
        except BaseException:
            self._recover()
            raise

    def _make_lanes(self, fit: Fit) -> None:
        """Make lanes for slices, with half the batch where there is too little memory."""
        while True:
            self._close_lanes()
            try:
                for engines in self._contexts:
                    self._lanes.append(Lane(self._device, engines, fit, self._batch, self._threads))
                    self._lanes[-1].warm_up()
                graphs = all(lane.record() for lane in self._lanes)
                break
            except OutOfMemoryError as error:
                if self._batch == 1:
                    raise
                why = str(error)
            self._close_lanes()
            self._open_nets(self._halved(self._batch, why))
        if not graphs and not self._told:
            self._told = True
            log.warning(
                "an engine cannot be recorded in a CUDA graph: each step is launched by itself, slower"
            )
        assert self._nets is not None
        self.provenance = {**self._nets.provenance, "cuda_graphs": graphs}
        self._fit = fit
        self._nets.keep_compiled()

    def _close_lanes(self) -> None:
        self._fit = None
        while self._lanes:
            self._lanes.pop(0).close()

    def _open_nets(self, batch: int) -> None:
        """Open the nets for a batch, or for the largest half of a half of it for which there is memory."""
        with self._device:
            while True:
                self._close_nets()  # before there are others
                try:
                    with ExitStack() as stack:
                        nets = self._open(batch)
                        stack.callback(nets.close)
                        contexts: list[tuple[GpuEngine, ...]] = []
                        for _ in range(LANES):
                            contexts.append(nets.contexts())
                            for engine in contexts[-1]:
                                stack.callback(engine.close)
                        self._opened = stack.pop_all()
                    break
                except OutOfMemoryError as error:
                    if batch == 1:
                        raise
                    why = str(error)
                batch = self._halved(batch, why)
        self._nets, self._contexts, self._batch = nets, contexts, batch
        self.precisions = {engine.spec.role: engine.precision for engine in contexts[0]}
        self.provenance = nets.provenance

    def _close_nets(self) -> None:
        self._nets, self._contexts = None, []
        self._opened.close()

    def _halved(self, batch: int, why: str) -> int:
        log.warning("%s; going on with %d slices a run instead of %d", why, batch // 2, batch)
        return batch // 2

    def _recover(self) -> None:
        """After an error: give back the lanes, and find out whether the context is still good."""
        self._feed = None
        try:
            with self._device:
                self._close_lanes()
                self._own.synchronize()
        except TrtsegError as error:
            self._unusable = (
                f"CUDA failed in an earlier call and its context is lost ({error}); start a new process"
            )
            self._lanes.clear()


class CudaFeed:
    """A feed of `CudaCascade`.

    The order of calls keeps the GPU busy while the host copies the labels of the oldest chunk out, and a new chunk in:

    - The oldest chunk has liver: before that, the chunk between goes on to its second half, which the GPU runs.
    - The oldest chunk has no liver, or there is none: nothing of it is awaited, and the GPU runs the first half of the
      chunk between, which goes on afterwards.
    """

    def __init__(
        self,
        cascade: CudaCascade,
        lanes: list[Lane],
        shape: tuple[int, int],
        batch: int,
        stream: int,
        logits: Logits | None,
    ) -> None:
        self._cascade, self._shape, self._batch, self._stream = cascade, shape, batch, stream
        self._lanes = tuple(lanes)
        self._free, self._running = deque(lanes), deque[Lane]()  # the oldest first
        for lane in lanes:
            lane.logits = logits
        self._filling: Lane | None = None
        self._at_gate: Lane | None = None  # the newest that runs, while its second half is not launched
        self._first = 0  # number of the next slice
        self._places: tuple[bool, bool] | None = None  # whether slices and labels are on the GPU
        self.timings: Timings = {"cascade on the GPU": 0.0}  # that the caller has spent in the feed

    def push(self, hu: Hu, out: Labels | None = None) -> list[tuple[int, Labels]]:
        """Take the next slices; labels on the GPU are there for the streams that the feed and the arrays name."""
        if self._cascade._feed is not self:
            raise ended()
        check_slices(hu, out, self._shape)
        places = isinstance(hu, CudaArray), isinstance(out, CudaArray)
        if self._places not in (None, places):
            raise ArgumentError(
                "hu, out: got arrays on another device than in the last push; use one in a feed"
            )
        self._places = places
        with self._working() as pieces:
            if self._batch == len(hu) == 1 and isinstance(hu, np.ndarray) and not places[1]:
                labels = np.empty(hu.shape, np.uint8) if out is None else out
                if self._free[0].run(hu, labels, self._first):
                    pieces.append((self._first, labels))
                    self._first += 1
                    return pieces
            named = (array.stream for array in (hu, out) if isinstance(array, CudaArray))
            streams = tuple(dict.fromkeys((self._stream, *(s for s in named if s is not None))))
            taken = 0
            while taken < len(hu):
                lane = self._filling = self._filling or self._next_lane(pieces)
                rows = slice(taken, min(taken + lane.free, len(hu)))
                lane.take(hu[rows], None if out is None else out[rows], self._first, streams)
                self._go_on()
                self._first += rows.stop - taken
                taken = rows.stop
                if lane.free == 0:
                    self._start(lane)
            if self._batch == 1:
                self._drain(pieces)
        return pieces

    def finish(self) -> list[tuple[int, Labels]]:
        """End the feed, with a last chunk that may be smaller than a batch."""
        if self._cascade._feed is not self:
            raise ended()
        with self._working() as pieces:
            if self._filling is not None:
                self._start(self._filling)
            self._drain(pieces)
        self._end()
        return pieces

    def close(self) -> None:
        """End the feed; waits for the chunks that are on their way and forgets them."""
        if self._cascade._feed is not self:
            return
        with self._working():
            for lane in self._lanes:
                lane.drop()
        self._end()

    def _end(self) -> None:
        self._cascade._feed = None
        for lane in self._lanes:
            lane.logits = None

    @contextmanager
    def _working(self) -> Iterator[list[tuple[int, Labels]]]:
        start = time.perf_counter()
        with self._cascade._working():
            yield []
        self.timings["cascade on the GPU"] += time.perf_counter() - start

    def _next_lane(self, pieces: list[tuple[int, Labels]]) -> Lane:
        if not self._free:
            if not self._running[0].empty:
                self._go_on()
            self._finish_oldest(pieces)
        return self._free.popleft()

    def _start(self, lane: Lane) -> None:
        lane.start()
        self._filling, self._at_gate = None, lane
        self._running.append(lane)

    def _go_on(self) -> None:
        if self._at_gate is not None:
            self._at_gate.go_on()
            self._at_gate = None

    def _finish_oldest(self, pieces: list[tuple[int, Labels]]) -> None:
        pieces += self._running[0].finish()
        self._free.append(self._running.popleft())

    def _drain(self, pieces: list[tuple[int, Labels]]) -> None:
        self._go_on()
        while self._running:
            self._finish_oldest(pieces)


def open_cuda_cascade(
    files: ModelFiles,
    device: str,
    precision: str,
    runtime: str,
    batch: int,
    threads: int,
    progress: Progress | None,
) -> CudaCascade:
    """Open the GPU ``cuda:N``, and the cascade of a model there; see `trtseg.Segmenter` for the arguments."""
    from trtseg.engines.nvidia.nets import open_nets

    gpu = open_device(int(device.removeprefix("cuda:")))

    def opened(slices: int) -> GpuNets:
        return open_nets(files, gpu, slices, precision=precision, runtime=runtime, progress=progress)

    return CudaCascade(gpu, opened, batch, threads)
