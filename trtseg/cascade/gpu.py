"""The pipeline on a GPU: chunks of slices in lanes that work side by side, each launched as CUDA graphs.

A lane (`trtseg.cascade.lane`) is a stream with buffers and engine contexts of its own, so lanes share nothing that is
written and need no order among them: while one copies, the other computes. The nets of the shipped model run in two
graphs a chunk, cut at the gate: the first ends with the number of liver pixels, and the host reads it and launches the
second with the tumour net or without. Until then the other lane has work, so that nobody waits for the answer.
"""

from __future__ import annotations

import logging
import time
import traceback
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from trtseg.cascade.lane import Hu, Labels, Lane
from trtseg.cuda import dlpack
from trtseg.cuda.arrays import CudaArray
from trtseg.cuda.device import Device, Resources, errors, to_host
from trtseg.engines.base import GpuEngine
from trtseg.errors import DeviceError, OutOfMemoryError, TrtsegError
from trtseg.fit import Fit

if TYPE_CHECKING:
    from trtseg.engines.nvidia.nets import GpuNets

log = logging.getLogger("trtseg")

LANES = 2


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
        What a result tells of the GPU and the engines: of those that ran last, where there is no memory for any. Once
        slices have run, ``cuda_graphs`` tells whether these or single steps were launched.
    """

    precision: str
    provenance: dict[str, Any]

    def __init__(self, device: Device, open_nets: Callable[[int], GpuNets], batch: int) -> None:
        self._device, self._open = device, open_nets
        self._fit: Fit | None = None
        self._nets: list[GpuNets] = []  # one, or none
        self._contexts: list[tuple[GpuEngine, ...]] = []
        self._lanes: list[Lane] = []
        self._lost: str | None = None
        self._told = False  # that there are no graphs
        weakref.finalize(self, _release, device, self._nets, self._contexts, self._lanes)
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
        hu: Hu,
        spacing: tuple[float, float],
        out: Labels | None = None,
        *,
        stream: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> tuple[Labels, dict[str, float]]:
        """Label slices; see `trtseg.cascade.cpu.Cascade.run`.

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
            self._use(self._batch)
        fit = self._place(hu, spacing)
        named = (array.stream for array in (hu, labels) if isinstance(array, CudaArray))
        streams = tuple(dict.fromkeys((stream, *(other for other in named if other is not None))))
        try:
            with self._device, errors():
                self._run(hu, labels, fit, streams, progress)
        except BaseException:
            self._recover()
            raise
        return labels, {"cascade on the GPU": time.perf_counter() - start}

    def _place(self, hu: Hu, spacing: tuple[float, float]) -> Fit:
        """How the slices lie on the nets' grid. Where that depends on what slices on the GPU show, they are copied."""
        spec = self._contexts[0][0].spec
        if not isinstance(hu, CudaArray):
            return spec.fit_volume(hu, spacing)
        if spec.fit != "body":
            return spec.fit_slice((hu.shape[1], hu.shape[2]), spacing)
        with self._device:
            return spec.fit_volume(to_host(hu), spacing)

    def _run(
        self,
        hu: Hu,
        labels: Labels,
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
                if self._batch == 1:
                    raise
                why = str(error)
            # Here the error is gone, and with it all memory that it referred to.
            self._use(self._halved(self._batch, why))

    def _drive(
        self,
        hu: Hu,
        labels: Labels,
        streams: tuple[int, ...],
        progress: Callable[[float], None] | None,
    ) -> None:
        """Keep every lane busy: a chunk starts, then the one before it, whose gate is open by now, goes on."""
        batch, slices = self._batch, len(hu)
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
            self._lanes.append(Lane(self._device, engines, fit, self._batch))
            self._lanes[-1].warm_up()
        graphs = all(lane.record() for lane in self._lanes)
        if not graphs and not self._told:
            self._told = True
            log.warning(
                "an engine cannot be recorded in a CUDA graph: each step is launched by itself, slower"
            )
        self.provenance = {**self._nets[0].provenance, "cuda_graphs": graphs}
        self._fit = fit
        self._nets[0].keep_compiled()

    def _close_lanes(self) -> None:
        self._fit = None
        while self._lanes:
            self._lanes.pop(0).close()

    def _use(self, batch: int) -> None:
        """Open the nets for a batch size, or for the largest one below it for which there is memory."""
        with self._device:  # what TensorRT frees, it frees where it is current
            while True:
                self._contexts.clear()
                self._nets.clear()  # before there are others
                try:
                    self._nets.append(self._open(batch))
                    self._contexts.extend([self._nets[0].contexts() for _ in range(LANES)])
                    break
                except BaseException as error:
                    traceback.clear_frames(error.__traceback__)  # they hold engines, too
                    self._nets.clear()
                    if batch == 1 or not isinstance(error, OutOfMemoryError):
                        raise
                    why = str(error)
                batch = self._halved(batch, why)
        self._batch = batch
        self.precision = ", ".join(dict.fromkeys(engine.precision for engine in self._contexts[0]))
        self.provenance = self._nets[0].provenance

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


def _release(
    device: Device, nets: list[GpuNets], contexts: list[tuple[GpuEngine, ...]], lanes: list[Lane]
) -> None:
    """Give back what a cascade holds to which nobody refers any more, on whatever thread that is."""
    try:
        with device:
            contexts.clear()  # lanes have theirs still
            while lanes:
                lanes.pop(0).close()
            nets.clear()
    except TrtsegError as error:  # the context is lost, and all that is in it
        log.warning("GPU memory could not be given back (%s)", error)
