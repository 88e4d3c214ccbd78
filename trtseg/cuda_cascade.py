"""The pipeline on a GPU: chunks of slices in lanes that work side by side, each launched as CUDA graphs.

A `Lane` is a stream with buffers and engine contexts of its own, so lanes share nothing that is written and need no
order among them: while one copies, the other computes. The nets of the shipped model run in two graphs a chunk, cut at
the gate: the first ends with the number of liver pixels, and the host reads it and launches the second with the tumour
net or without. Until then the other lane has work, so that nobody waits for the answer.
"""

from __future__ import annotations

import gc
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trtseg import _core, dlpack
from trtseg.cuda import CudaArray, Device, Resources, download, errors, upload
from trtseg.engines import Engine
from trtseg.errors import DeviceError, OutOfMemoryError, TrtsegError
from trtseg.fit import Fit

if TYPE_CHECKING:
    from trtseg.engines.nvidia import GpuNets

log = logging.getLogger("trtseg")

LANES = 2

# On the host or on the GPU.
_Hu = NDArray[np.int16] | CudaArray
_Labels = Any  # uint8


class Lane:
    """One chunk at a time on its way through the nets.

    Parameters
    ----------
    device : Device
        Where; it must be current in every call.
    engines : tuple of Engine
        ``(liver, tumour)``, or one ``one-step`` engine; no other lane uses them.
    fit : Fit
        Of the slices, which all have one shape.
    batch : int
        Slices in each run of the engines: the most that a chunk has.
    """

    def __init__(self, device: Device, engines: tuple[Engine, ...], fit: Fit, batch: int) -> None:
        first, last = engines[0], engines[-1]
        self._engines, self._fit = engines, fit
        self.resources = own = Resources(device)
        self._stream, self._done, self._order = own.stream(), own.event(), _core.Event()
        self._hu_host = own.pinned((batch, *fit.native), np.int16)
        self._labels_host = own.pinned((batch, *fit.native), np.uint8)
        self._hu = own.array((batch, *fit.native), np.int16)
        self._hu_net = own.array((batch, *fit.net), np.int16)
        self._x1 = own.array((batch, 1, *fit.net), first.dtype)
        self._l1 = own.array((batch, first.spec.channels, *fit.net), first.dtype)
        self._labels = own.array((batch, *fit.native), np.uint8)
        self._counts = own.array((batch, 2), np.int32)
        if len(engines) == 2:
            self._x2 = own.array((batch, 1, *fit.net), last.dtype)
            self._l2 = own.array((batch, 1, *fit.net), last.dtype)
            self._pixels = own.array((batch,), np.int32)
            self._pixels_host = own.pinned((batch,), np.int32)
        self._graphs: dict[str, _core.Graph] = {}
        self._out: _Labels | None = None

    def warm_up(self) -> None:
        """Run all once: what is set up at the first run cannot be captured; and all rows hold numbers from now on."""
        for step in (self._upload, self._first_net, self._tumour_net, self._download):
            step()
        self._stream.synchronize()

    @property
    def busy(self) -> bool:
        """Whether a chunk is on its way."""
        return self._out is not None

    def start(self, hu: _Hu, out: _Labels, after: tuple[int, ...]) -> None:
        """Take a chunk ``[n, Y, X]`` in, and launch it as far as the gate.

        ``out`` ``[n, Y, X]`` gets the labels. ``after`` are the streams whose work makes ``hu`` and last used ``out``,
        where these are on the GPU.
        """
        self._out = out
        stream = self._stream.handle
        if isinstance(hu, CudaArray) or isinstance(out, CudaArray):
            for other in after:
                self._order.wait_for(stream, other)
        if isinstance(hu, CudaArray):
            n, window = len(hu), self._engines[0].spec.window
            _core.prepare(hu, self._fit, window, self._hu_net[:n], self._x1[:n], stream=stream)
            self._launch("net", self._first_net)
        else:
            self._done.synchronize()  # the last chunk may not have been copied yet
            self._hu_host[: len(hu)] = hu
            self._launch("upload, net", self._upload, self._first_net)
        self._done.record(self._stream)

    def go_on(self) -> None:
        """Launch the rest; waits for the gate."""
        out = self._out
        assert out is not None
        steps: dict[str, Callable[[], None]] = {}
        if len(self._engines) == 2:
            self._done.synchronize()
            if self._pixels_host[: len(out)].any():
                steps["tumour net"] = self._tumour_net
        if isinstance(out, CudaArray):
            if steps:
                self._launch("tumour net", self._tumour_net)
            self._label(out, len(out))
        else:
            steps["labels"] = self._download
            self._launch(", ".join(steps), *steps.values())
        self._done.record(self._stream)

    def finish(self, before: tuple[int, ...]) -> None:
        """Hand the labels over: on the host now, on the GPU to what the streams ``before`` are given from now on."""
        out, self._out = self._out, None
        assert out is not None
        if isinstance(out, CudaArray):
            for other in before:
                self._order.wait_for(other, self._stream.handle)
            return
        self._done.synchronize()
        out[:] = self._labels_host[: len(out)]

    def close(self) -> None:
        """Wait for what is on its way, then give back graphs, what they run, and the memory that this works on."""
        self.resources.synchronize()  # labels that stay on the GPU may not be there yet
        self._graphs.clear()
        self._engines = ()
        self.resources.free()
        del self._stream, self._done  # the last references: PyCUDA leaks them where the device is not current

    def _launch(self, name: str, *steps: Callable[[], None]) -> None:
        """Launch the graph of some steps, captured at their first time."""
        stream = self._stream.handle
        if name not in self._graphs:

            def enqueue() -> None:
                for step in steps:
                    step()

            with _garbage_stays():
                self._graphs[name] = _core.Graph.capture(stream, enqueue)
        self._graphs[name].launch(stream)

    # ---- What graphs are made of; each enqueues on the lane's stream. ----

    def _upload(self) -> None:
        upload(self._hu, self._hu_host, self._stream)
        window = self._engines[0].spec.window
        _core.prepare(self._hu, self._fit, window, self._hu_net, self._x1, stream=self._stream.handle)

    def _first_net(self) -> None:
        first, last, stream = self._engines[0], self._engines[-1], self._stream.handle
        first.run(self._x1, self._l1, stream)
        if len(self._engines) == 2:
            threshold, window = first.spec.logit_threshold, last.spec.window
            _core.gate(self._l1, self._hu_net, threshold, window, self._x2, self._pixels, stream=stream)
            download(self._pixels_host, self._pixels, self._stream)

    def _tumour_net(self) -> None:
        if len(self._engines) == 2:
            self._engines[1].run(self._x2, self._l2, self._stream.handle)

    def _label(self, out: CudaArray, n: int) -> None:
        stream, counts = self._stream.handle, self._counts[:n]
        if len(self._engines) == 2:
            thresholds = (self._engines[0].spec.logit_threshold, self._engines[1].spec.logit_threshold)
            # `label` never looks at the tumour logits of a slice without liver: old ones change nothing
            _core.label(self._l1[:n], self._l2[:n], thresholds, self._fit, out, counts, stream=stream)
        else:
            _core.label3(self._l1[:n], self._fit, out, counts, stream=stream)

    def _download(self) -> None:
        self._label(self._labels, len(self._labels))
        download(self._labels_host, self._labels, self._stream)


@contextmanager
def _garbage_stays() -> Iterator[None]:
    """No garbage collection: it may wait for the GPU, which a thread must not do while it records a graph."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class CudaCascade:
    """The nets of a model on a GPU with their lanes; one thread at a time may run it.

    Parameters
    ----------
    device : Device
        Where.
    open_nets : callable
        Gives the nets for a number of slices a run: `trtseg.engines.nvidia.open_nets` but for that number.
    batch : int
        Slices in each run. Where the GPU has too little memory for it, half of it is tried, and so on down to 1.

    Attributes
    ----------
    precision : str
        Arithmetic of the nets, of each if they differ.
    provenance : dict
        What a result tells of the GPU and the engines: of those that ran last, where there is no memory for any.
    """

    precision: str
    provenance: dict[str, Any]

    def __init__(self, device: Device, open_nets: Callable[[int], GpuNets], batch: int) -> None:
        self._device, self._open = device, open_nets
        self._fit: Fit | None = None
        self._contexts: list[tuple[Engine, ...]] = []
        self._lanes: list[Lane] = []
        self._lost: str | None = None
        weakref.finalize(self, _release, device, self._contexts, self._lanes)
        with device:
            self._own = Resources(device)
            self._handover = self._own.stream().handle
        self._use(batch)

    def view(self, array: Any, name: str, dtype: DTypeLike) -> CudaArray:
        """Another library's slices ``[Z, Y, X]`` on this GPU, as they are: no copy, no conversion."""
        if hasattr(array, "__cuda_array_interface__"):
            return CudaArray.of(array, name, dtype, 3)
        with self._device:
            return dlpack.view(array, name, dtype, 3, device=self._device.index, stream=self._handover)

    def run(
        self,
        hu: _Hu,
        spacing: tuple[float, float],
        out: _Labels | None = None,
        *,
        stream: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> tuple[_Labels, dict[str, float]]:
        """Label slices; see `trtseg.cascade.Cascade.run`.

        Parameters
        ----------
        hu : int16 [Z, Y, X]
            The CT in HU, on the host or on the GPU.
        spacing : (float, float)
            Millimetres between rows and between columns.
        out : uint8 [Z, Y, X], optional
            Where the labels go, on the host (the default) or on the GPU.
        stream : int
            Stream on which arrays on the GPU are made and will be used, beside those that they name themselves.
        progress : callable, optional
            Is told the fraction that is done, after each chunk.
        """
        labels = np.empty(hu.shape, np.uint8) if out is None else out
        if self._lost is not None:
            raise DeviceError(
                f"CUDA failed in an earlier call and its context is lost ({self._lost}); start a new process"
            )
        start = time.perf_counter()
        if not self._contexts:  # there was no memory for them
            self._use(self._nets.batch)
        fit = self._contexts[0][0].spec.fit_slice((hu.shape[1], hu.shape[2]), spacing)
        named = (array.stream for array in (hu, labels) if isinstance(array, CudaArray))
        streams = tuple(dict.fromkeys((stream, *(other for other in named if other is not None))))
        try:
            with self._device, errors():
                self._run(hu, labels, fit, streams, progress)
        except BaseException:
            self._recover()
            raise
        return labels, {"cascade on the GPU": time.perf_counter() - start}

    def _run(
        self,
        hu: _Hu,
        labels: _Labels,
        fit: Fit,
        streams: tuple[int, ...],
        progress: Callable[[float], None] | None,
    ) -> None:
        while True:
            try:
                self._prepare_lanes(fit)
                return self._drive(hu, labels, streams, progress)
            except OutOfMemoryError as error:
                self._close_lanes()
                if self._nets.batch == 1:
                    raise
                why = str(error)
            # Here the error is gone, and with it all memory that it referred to.
            self._use(self._halved(self._nets.batch, why))

    def _drive(
        self,
        hu: _Hu,
        labels: _Labels,
        streams: tuple[int, ...],
        progress: Callable[[float], None] | None,
    ) -> None:
        """Keep every lane busy: a chunk starts, then the one before it, whose gate is open by now, goes on."""
        batch, slices = self._nets.batch, len(hu)
        started: list[Lane] = []
        for number, first in enumerate(range(0, slices, batch)):
            lane = self._lanes[number % LANES]
            if lane.busy:
                lane.finish(streams)
                if progress is not None:
                    progress((first - (LANES - 1) * batch) / slices)
            lane.start(hu[first : first + batch], labels[first : first + batch], streams)
            started.append(lane)
            if len(started) == LANES:
                started.pop(0).go_on()
        for lane in started:
            lane.go_on()
        chunks = -(-slices // batch)
        for number in range(chunks, chunks + LANES):  # the oldest first
            if self._lanes[number % LANES].busy:
                self._lanes[number % LANES].finish(streams)
        if progress is not None:
            progress(1.0)

    def _prepare_lanes(self, fit: Fit) -> None:
        if self._fit == fit and self._lanes:
            return
        self._close_lanes()
        for engines in self._contexts:
            self._lanes.append(Lane(self._device, engines, fit, self._nets.batch))
            self._lanes[-1].warm_up()
        self._fit = fit
        self._nets.keep_compiled()

    def _close_lanes(self) -> None:
        self._fit = None
        while self._lanes:
            self._lanes.pop(0).close()

    def _use(self, batch: int) -> None:
        """Open the nets for a batch size, or for the largest one below it for which there is memory."""
        self._contexts.clear()
        while True:
            try:
                self._nets = self._open(batch)
                with self._device:
                    contexts = [self._nets.contexts() for _ in range(LANES)]
                break
            except OutOfMemoryError as error:
                if batch == 1:
                    raise
                why = str(error)
            batch = self._halved(batch, why)
        self._contexts.extend(contexts)
        self.precision = ", ".join(dict.fromkeys(engine.precision for engine in contexts[0]))
        self.provenance = self._nets.provenance

    def _halved(self, batch: int, why: str) -> int:
        log.warning("%s; going on with %d slices a run instead of %d", why, batch // 2, batch)
        return batch // 2

    def _recover(self) -> None:
        """After an error: give back what the lanes hold, and find out whether the context is still good."""
        try:
            with self._device:
                self._close_lanes()
                self._own.synchronize()
        except TrtsegError as error:
            self._lost = str(error)
            self._lanes.clear()


def _release(device: Device, contexts: list[tuple[Engine, ...]], lanes: list[Lane]) -> None:
    """Give back what a cascade holds to which nobody refers any more, on whatever thread that is."""
    try:
        with device:
            contexts.clear()  # lanes have theirs still
            while lanes:
                lanes.pop(0).close()
    except TrtsegError as error:  # the context is lost, and all that is in it
        log.warning("GPU memory could not be given back (%s)", error)
