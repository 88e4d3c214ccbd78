"""The pipeline on the CPU: ops and engines, chunk by chunk, in buffers that are allocated once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtseg import _core
from trtseg.engines import Engine
from trtseg.fit import Fit

#: Slices a chunk: enough to keep every core busy in the fused ops, few enough to stay in the cache.
CHUNK = 16

Timings = dict[str, float]


class Cascade:
    """The nets of a model with their buffers; one thread at a time may run it.

    Parameters
    ----------
    engines : sequence of Engine
        ``(liver, tumour)``, or one ``one-step`` engine.
    """

    def __init__(self, *engines: Engine) -> None:
        first, last = engines[0], engines[-1]
        height, width = first.spec.size
        self._engines = engines
        self._hu = np.empty((CHUNK, height, width), np.int16)
        self._x1 = np.empty((CHUNK, 1, height, width), first.dtype)
        self._l1 = np.empty((CHUNK, first.spec.channels, height, width), first.dtype)
        self._liver_pixels = np.empty(CHUNK, np.int32)
        self._counts = np.empty((CHUNK, 2), np.int32)
        if len(engines) == 2:
            self._x2 = np.empty((CHUNK, 1, height, width), last.dtype)
            self._l2 = np.zeros((CHUNK, 1, height, width), last.dtype)

    @property
    def precision(self) -> str:
        """Arithmetic of the nets."""
        return self._engines[0].precision

    @property
    def provenance(self) -> dict[str, Any]:
        """What else a result tells of the engines: on the CPU nothing."""
        return {}

    def run(
        self,
        hu: NDArray[np.int16],
        spacing: tuple[float, float],
        out: NDArray[np.uint8] | None = None,
        *,
        stream: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> tuple[NDArray[np.uint8], Timings]:
        """Label slices.

        Parameters
        ----------
        hu : int16 [Z, Y, X]
            The CT in HU, in canonical order.
        spacing : (float, float)
            Millimetres between rows and between columns.
        out : uint8 [Z, Y, X], optional
            Where the labels go; made if it is not given.
        stream : int
            Not used: the CPU has none.
        progress : callable, optional
            Is told the fraction that is done, after each chunk.

        Returns
        -------
        labels : uint8 [Z, Y, X]
            0 background, 1 liver, 2 tumour.
        timings : dict
            Seconds in each stage.
        """
        slices = len(hu)
        fit = self._engines[0].spec.fit_volume(hu, spacing)
        labels = np.empty(hu.shape, np.uint8) if out is None else out
        timings: Timings = {}
        for start in range(0, slices, CHUNK):
            stop = min(start + CHUNK, slices)
            chunk = hu[start:stop], labels[start:stop]
            if len(self._engines) == 2:
                self._two_nets(*chunk, fit, timings)
            else:
                self._one_net(*chunk, fit, timings)
            if progress is not None:
                progress(stop / slices)
        return labels, timings

    def _two_nets(self, hu: NDArray[np.int16], labels: NDArray[np.uint8], fit: Fit, timings: Timings) -> None:
        """``prepare``, liver net, ``gate``, tumour net, ``label`` for at most `CHUNK` slices ``[n, Y, X]``."""
        liver, tumour = self._engines
        n = len(hu)
        hu_net, x1, l1, x2, l2 = (b[:n] for b in (self._hu, self._x1, self._l1, self._x2, self._l2))
        t1, t2 = liver.spec.logit_threshold, tumour.spec.logit_threshold
        with _timed(timings, "prepare"):
            _core.prepare(hu, fit, liver.spec.window, hu_net, x1)
        with _timed(timings, "liver net"):
            liver.run(x1, l1)
        with _timed(timings, "gate"):
            _core.gate(l1, hu_net, t1, tumour.spec.window, x2, self._liver_pixels[:n])
        with _timed(timings, "tumour net"):
            # `label` never looks at the tumour logits of a slice without liver: leaving them out changes nothing
            for first, last in _runs(self._liver_pixels[:n] > 0):
                tumour.run(x2[first:last], l2[first:last])
        with _timed(timings, "label"):
            _core.label(l1, l2, (t1, t2), fit, labels, self._counts[:n])

    def _one_net(self, hu: NDArray[np.int16], labels: NDArray[np.uint8], fit: Fit, timings: Timings) -> None:
        """``prepare``, net, ``label3`` for at most `CHUNK` slices ``[n, Y, X]``."""
        (net,) = self._engines
        n = len(hu)
        with _timed(timings, "prepare"):
            _core.prepare(hu, fit, net.spec.window, self._hu[:n], self._x1[:n])
        with _timed(timings, "one-step net"):
            net.run(self._x1[:n], self._l1[:n])
        with _timed(timings, "label"):
            _core.label3(self._l1[:n], fit, labels, self._counts[:n])


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First index and end of each run of true values."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


@contextmanager
def _timed(timings: Timings, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - start
