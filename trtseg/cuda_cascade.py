"""The pipeline on a GPU: chunks of slices in lanes that work side by side, each launched as CUDA graphs.

A `Lane` is a stream with buffers and engine contexts of its own, so lanes share nothing that is written and need no
order among them: while one copies, the other computes. The nets of the shipped model run in two graphs a chunk, cut at
the gate: the first ends with the number of liver pixels, and the host reads it and launches the second with the tumour
net or without. Until then the other lane has work, so that nobody waits for the answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trtseg import _core
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
        self._stream, self._done = own.stream(), own.event()
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
        # What is loaded and set up at the first run cannot be captured; and all rows hold numbers from now on.
        for step in (self._upload, self._first_net, self._tumour_net, self._download):
            step()
        self._stream.synchronize()

    @property
    def busy(self) -> bool:
        """Whether a chunk is on its way."""
        return self._out is not None

    def start(self, hu: _Hu, out: _Labels, after: int) -> None:
        """Take a chunk ``[n, Y, X]`` in, and launch it as far as the gate.

        ``out`` ``[n, Y, X]`` gets the labels. ``after`` is the stream whose work makes ``hu`` and last used ``out``,
        where these are on the GPU.
        """
        self._out = out
        stream = self._stream.handle
        if isinstance(hu, CudaArray) or isinstance(out, CudaArray):
            _core.wait_for(stream, after)
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

    def finish(self, before: int) -> None:
        """Hand the labels over: on the host now, on the GPU to whatever stream ``before`` is given from now on."""
        out, self._out = self._out, None
        assert out is not None
        if isinstance(out, CudaArray):
            _core.wait_for(before, self._stream.handle)
            return
        self._done.synchronize()
        out[:] = self._labels_host[: len(out)]

    def _launch(self, name: str, *steps: Callable[[], None]) -> None:
        """Launch the graph of some steps, captured at their first time."""
        stream = self._stream.handle
        if name not in self._graphs:

            def enqueue() -> None:
                for step in steps:
                    step()

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
    """

    def __init__(self, device: Device, open_nets: Callable[[int], GpuNets], batch: int) -> None:
        self._device, self._open = device, open_nets
        self._fit: Fit | None = None
        self._lanes: list[Lane] = []
        self._lost: str | None = None
        self._use(batch)

    @property
    def precision(self) -> str:
        """Arithmetic of the nets, of each if they differ."""
        return ", ".join(dict.fromkeys(engine.precision for engine in self._contexts[0]))

    @property
    def provenance(self) -> dict[str, Any]:
        """What a result tells of the GPU and the engines."""
        return self._nets.provenance

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
            Stream on which arrays on the GPU are made and will be used.
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
        try:
            with self._device, errors():
                self._run(hu, labels, fit, stream, progress)
        except BaseException:
            self._recover()
            raise
        return labels, {"cascade on the GPU": time.perf_counter() - start}

    def _run(
        self, hu: _Hu, labels: _Labels, fit: Fit, stream: int, progress: Callable[[float], None] | None
    ) -> None:
        while True:
            try:
                self._prepare_lanes(fit)
                return self._drive(hu, labels, stream, progress)
            except OutOfMemoryError as error:
                self._close_lanes()
                if self._nets.batch == 1:
                    raise
                why = str(error)
            # Here the error is gone, and with it all memory that it referred to.
            self._use(self._halved(self._nets.batch, why))

    def _drive(self, hu: _Hu, labels: _Labels, stream: int, progress: Callable[[float], None] | None) -> None:
        """Keep every lane busy: a chunk starts, then the one before it, whose gate is open by now, goes on."""
        batch, slices = self._nets.batch, len(hu)
        started: list[Lane] = []
        for number, first in enumerate(range(0, slices, batch)):
            lane = self._lanes[number % LANES]
            if lane.busy:
                lane.finish(stream)
                if progress is not None:
                    progress((first - (LANES - 1) * batch) / slices)
            lane.start(hu[first : first + batch], labels[first : first + batch], stream)
            started.append(lane)
            if len(started) == LANES:
                started.pop(0).go_on()
        for lane in started:
            lane.go_on()
        chunks = -(-slices // batch)
        for number in range(chunks, chunks + LANES):  # the oldest first
            if self._lanes[number % LANES].busy:
                self._lanes[number % LANES].finish(stream)
        if progress is not None:
            progress(1.0)

    def _prepare_lanes(self, fit: Fit) -> None:
        if self._fit == fit and self._lanes:
            return
        self._close_lanes()
        self._lanes = [Lane(self._device, engines, fit, self._nets.batch) for engines in self._contexts]
        self._fit = fit
        self._nets.keep_compiled()

    def _close_lanes(self) -> None:
        lanes, self._lanes, self._fit = self._lanes, [], None
        if lanes:
            self._device.synchronize()  # labels that stay on the GPU may not be there yet
        for lane in lanes:
            lane.resources.free()

    def _use(self, batch: int) -> None:
        """Open the nets for a batch size, or for the largest one below it for which there is memory."""
        while True:
            self._contexts: list[tuple[Engine, ...]] = []
            try:
                self._nets = self._open(batch)
                with self._device:
                    self._contexts = [self._nets.contexts() for _ in range(LANES)]
                return
            except OutOfMemoryError as error:
                if batch == 1:
                    raise
                why = str(error)
            batch = self._halved(batch, why)

    def _halved(self, batch: int, why: str) -> int:
        log.warning("%s; going on with %d slices a run instead of %d", why, batch // 2, batch)
        return batch // 2

    def _recover(self) -> None:
        """After an error: give back what the lanes hold, and find out whether the context is still good."""
        try:
            with self._device:
                self._device.synchronize()
                self._close_lanes()
        except TrtsegError as error:
            self._lost = str(error)
            self._lanes = []
