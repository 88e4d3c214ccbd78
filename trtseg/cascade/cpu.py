"""The cascade on the CPU: ops and engines, chunk by chunk, in buffers that are allocated once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trtseg import _core
from trtseg.body import Hu, on_threads
from trtseg.cascade.base import (
    CHUNK,
    Done,
    Labels,
    Logits,
    Timings,
    check_slices,
    ended,
    keep_logits,
    run_volume,
)
from trtseg.cuda.arrays import CudaArray
from trtseg.engines import CpuEngine
from trtseg.errors import ArgumentError, DeviceError
from trtseg.fit import Fit


class CpuCascade:
    """The nets of a model with their buffers; see `trtseg.cascade.base` for its methods.

    Parameters
    ----------
    engines : sequence of CpuEngine
        ``(liver, tumour)``, or a single ``one-step`` engine.
    threads : int
        Threads of the ops; 0: one for each processor that this process may use.
    """

    def __init__(self, *engines: CpuEngine, threads: int = 0) -> None:
        first, last = engines[0], engines[-1]
        height, width = first.spec.size
        self.precisions = {engine.spec.role: engine.precision for engine in engines}
        runtimes = {engine.runtime: None for engine in engines}  # in order
        self.provenance: dict[str, Any] = {"runtime": ", ".join(runtimes)}
        #: Slices that all engines compute at a time.
        self.side_by_side = min(engine.side_by_side for engine in engines)
        self._engines, self._threads = engines, threads
        self._feed: _Feed | None = None
        self._hu = np.empty((CHUNK, height, width), np.int16)
        self._x1 = np.empty((CHUNK, 1, height, width), first.dtype)
        self._l1 = np.empty((CHUNK, first.spec.channels, height, width), first.dtype)
        self._liver_pixels = np.empty(CHUNK, np.int32)
        self._counts = np.empty((CHUNK, 2), np.int32)
        if len(engines) == 2:
            self._x2 = np.empty((CHUNK, 1, height, width), last.dtype)
            self._l2 = np.zeros((CHUNK, 1, height, width), last.dtype)

    def view(self, array: Any, name: str, dtype: DTypeLike) -> CudaArray:
        """Refuse an array on a GPU."""
        raise ArgumentError(
            f"{name}: got an array on a GPU, but this Segmenter runs on the CPU; make it with device='cuda'"
        )

    def place(self, hu: Hu, spacing: tuple[float, float], *, stream: int = 0) -> Fit:
        """Place slices on the nets' grid; the CPU has no streams."""
        if not self._engines:
            raise DeviceError("cascade: got slices for a cascade that is closed; open another")
        return self._engines[0].spec.fit_volume(hu, spacing, on_threads(self._threads))

    def begin(self, fit: Fit, *, stream: int = 0, logits: Logits | None = None) -> _Feed:
        """Begin a feed of slices; the CPU has no streams."""
        if not self._engines:
            raise DeviceError("cascade: got slices for a cascade that is closed; open another")
        self._feed = _Feed(self, fit, logits)
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
        feed = self.begin(fit or self.place(hu, spacing), logits=logits)
        return run_volume(feed, hu, out, done), feed.timings

    def stages(self, hu: NDArray[np.int16], spacing: tuple[float, float]) -> Timings:
        """Seconds in each stage of a chunk."""
        return self.run(hu, spacing)[1]

    def close(self) -> None:
        """Let engines and buffers go."""
        self._feed, self._engines = None, ()
        for name in ("_hu", "_x1", "_l1", "_x2", "_l2"):
            self.__dict__.pop(name, None)

    def _label(self, hu: NDArray[np.int16], labels: NDArray[np.uint8], feed: _Feed) -> None:
        """Label at most `CHUNK` slices ``[n, Y, X]``."""
        if len(self._engines) == 2:
            self._two_nets(hu, labels, feed)
        else:
            self._one_net(hu, labels, feed.fit, feed.timings)

    def _two_nets(self, hu: NDArray[np.int16], labels: NDArray[np.uint8], feed: _Feed) -> None:
        """``prepare``, liver net, ``gate``, tumour net, ``label``."""
        liver, tumour = self._engines
        n, fit, timings = len(hu), feed.fit, feed.timings
        hu_net, x1, l1, x2, l2 = (b[:n] for b in (self._hu, self._x1, self._l1, self._x2, self._l2))
        t1, t2 = liver.spec.logit_threshold, tumour.spec.logit_threshold
        with _timed(timings, "prepare"):
            _core.prepare(hu, fit, liver.spec.window, hu_net, x1, threads=self._threads)
        with _timed(timings, "liver net"):
            liver.run(x1, l1)
        with _timed(timings, "gate"):
            pixels = self._liver_pixels[:n]
            _core.gate(l1, hu_net, t1, tumour.spec.window, x2, pixels, threads=self._threads)
        with _timed(timings, "tumour net"):
            # `label` interpolates, and looks at tumour logits only where one of four pixels is liver: all others may be
            # left out, and slices without liver skipped, which is exact.
            wanted = with_neighbours(l1[:, 0] > t1)
            for first, last in _runs(pixels > 0):
                tumour.run(x2[first:last], l2[first:last], wanted=wanted[first:last])
            if feed.logits is not None:
                keep_logits(feed.logits, feed.first, l2, pixels)
        with _timed(timings, "label"):
            _core.label(l1, l2, (t1, t2), fit, labels, self._counts[:n], threads=self._threads)

    def _one_net(self, hu: NDArray[np.int16], labels: NDArray[np.uint8], fit: Fit, timings: Timings) -> None:
        """``prepare``, net, ``label3``."""
        (net,) = self._engines
        n = len(hu)
        with _timed(timings, "prepare"):
            _core.prepare(hu, fit, net.spec.window, self._hu[:n], self._x1[:n], threads=self._threads)
        with _timed(timings, "one-step net"):
            net.run(self._x1[:n], self._l1[:n])
        with _timed(timings, "label"):
            _core.label3(self._l1[:n], fit, labels, self._counts[:n], threads=self._threads)


class _Feed:
    """A feed of `CpuCascade`: every push returns the labels of its slices."""

    def __init__(self, cascade: CpuCascade, fit: Fit, logits: Logits | None) -> None:
        self._cascade, self.fit, self.logits = cascade, fit, logits
        self.first = 0  # number of the next slice
        self.timings: Timings = {}

    def push(self, hu: Any, out: Any = None) -> list[tuple[int, NDArray[np.uint8]]]:
        """Label the next slices."""
        if self._cascade._feed is not self:
            raise ended()
        check_slices(hu, out, self.fit.native)
        labels = np.empty(hu.shape, np.uint8) if out is None else out
        pieces = []
        try:
            for first in range(0, len(hu), CHUNK):
                piece = labels[first : first + CHUNK]
                self._cascade._label(hu[first : first + CHUNK], piece, self)
                pieces.append((self.first, piece))
                self.first += len(piece)
        except BaseException:
            self.close()
            raise
        return pieces

    def finish(self) -> list[tuple[int, NDArray[np.uint8]]]:
        """End the feed; no labels are left."""
        if self._cascade._feed is not self:
            raise ended()
        self.close()
        return []

    def close(self) -> None:
        """End the feed."""
        if self._cascade._feed is self:
            self._cascade._feed = None


def with_neighbours(liver: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of ``liver`` ``[n, H, W]``, and their eight neighbours."""
    near = liver.copy()
    for axis in (1, 2):
        before, after = near.swapaxes(1, axis), near.copy().swapaxes(1, axis)
        before[:, 1:] |= after[:, :-1]
        before[:, :-1] |= after[:, 1:]
    return near


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First index and end of each run of true values."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


@contextmanager
def _timed(timings: Timings, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - start
