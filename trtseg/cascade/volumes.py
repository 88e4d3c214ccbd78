"""Label a volume: all its slices, or with a search only those near the liver.

The search labels every k-th slice first, and then all slices near those with liver. A slice that is labelled gets the
labels that it has without the search; all others are background. So the search can lose a part of the liver that none
of the first slices shows and that lies more than ``k`` slices from the rest. If none of the first slices shows liver,
all slices are labelled.
"""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from trtseg.cascade.base import CHUNK, Cascade, Logits, Progress, Timings
from trtseg.errors import ArgumentError
from trtseg.labels.components import is_tumour
from trtseg.labels.postprocess import PostProcess
from trtseg.labels.probability import TumourLogits
from trtseg.volume import ROUNDING, Volume

#: mm between the first slices of a search, at least and at most. Livers of adults are higher than the most. The least
#: is more than the median over slices of the default post-processing reaches: a part of the liver that is connected
#: after the median has no gap of ``k`` slices before, so that all its slices are labelled once one of them is found.
SEARCH_MM = (10.0, 50.0)
_NOWHERE = 1 << 30, 1 << 30  # beyond every row and column


def check_search(mm: float) -> float:
    """Return ``mm``, or raise an ArgumentError."""
    low, high = SEARCH_MM
    if not isinstance(mm, Real) or isinstance(mm, bool) or not (mm == 0 or low <= mm <= high):
        raise ArgumentError(
            f"search_mm: got {mm!r}; expected 0 (label all slices), or {low:g} to {high:g} mm between the slices that "
            "are labelled first"
        )
    return float(mm)


def label_volume(
    cascade: Cascade,
    volume: Volume,
    progress: Progress | None,
    search_mm: float = 0.0,
    steps: PostProcess | None = None,
) -> tuple[NDArray[np.uint8], TumourLogits, Timings, int]:
    """Label a volume and keep its tumour logits.

    Parameters
    ----------
    cascade, volume, progress
        What labels what, and who is told; with a search, the fraction jumps to 1 at the end.
    search_mm : float
        Search for the liver on slices so far apart; 0 labels all slices.
    steps : PostProcess, optional
        Keep of the logits what the probabilities of lesions can need after these steps; by default keep all.

    Returns
    -------
    labels : uint8 [Z, Y, X]
        0 background, 1 liver, 2 tumour.
    logits : TumourLogits
        Of the slices with liver.
    timings : dict
        Seconds in each stage.
    labelled : int
        How many slices went through the nets.
    """
    hu, plane = volume.array, volume.spacing[1:]
    logits = TumourLogits(cascade.place(hu, plane))
    labels = np.zeros(hu.shape, np.uint8)
    needed = None if steps is None else _Needed(labels, logits, steps.reach(volume.spacing[0]))
    if search_mm:
        # As many slices as fit, at least one, although headers round the distance of slices.
        k = max(1, math.floor(search_mm / volume.spacing[0] * (1 + ROUNDING)))
        timings, labelled = _near_liver(cascade, hu, k, labels, logits, progress)
        if needed is not None:
            needed.keep(len(hu))
    else:

        def note(done: int) -> None:
            if needed is not None:
                needed.keep(done)
            if progress is not None:
                progress("segmenting", done / len(hu))

        _, timings = cascade.run(hu, plane, labels, fit=logits.fit, logits=logits.planes, done=note)
        labelled = len(hu)
    return labels, logits, timings, labelled


class _Needed:
    """Drops the logits that no lesion can need, slice by slice.

    The median over slices makes tumours only inside the box of the tumours within ``reach`` slices, which is kept.
    """

    def __init__(self, labels: NDArray[np.uint8], logits: TumourLogits, reach: int) -> None:
        self._labels, self._logits, self._reach = labels, logits, reach
        self._starts: list[tuple[int, int]] = []  # of the box of tumours in each slice, (row, column)
        self._stops: list[tuple[int, int]] = []
        self._next = 0

    def keep(self, done: int) -> None:
        """Go on, now that the first ``done`` slices have their labels."""
        for z in range(len(self._starts), done):
            rows, columns = np.divmod(np.flatnonzero(is_tumour(self._labels[z])), self._labels.shape[2])
            self._starts.append((rows[0], columns.min()) if rows.size else _NOWHERE)
            self._stops.append((rows[-1] + 1, columns.max() + 1) if rows.size else (0, 0))
        end = done if done == len(self._labels) else done - self._reach
        for z in range(self._next, end):
            near = slice(max(0, z - self._reach), z + self._reach + 1)
            starts, stops = np.min(self._starts[near], axis=0), np.max(self._stops[near], axis=0)
            self._logits.narrow(z, *map(slice, starts.tolist(), stops.tolist()))
        self._next = max(self._next, end)


def _near_liver(
    cascade: Cascade,
    hu: NDArray[np.int16],
    k: int,
    labels: NDArray[np.uint8],
    logits: TumourLogits,
    progress: Progress | None,
) -> tuple[Timings, int]:
    """Label every ``k``-th slice and the last; then all within ``k`` slices of one with liver, until there are none."""
    timings = Timings()
    is_done, has_liver = np.zeros((2, len(hu)), bool)
    numbers = sorted({*range(0, len(hu), k), len(hu) - 1})
    while numbers:
        kept = Logits()
        feed = cascade.begin(logits.fit, logits=kept)
        try:
            for at in range(0, len(numbers), CHUNK):
                now = numbers[at : at + CHUNK]
                pieces = feed.push(hu[now])
                is_done[now] = True
                if at + CHUNK >= len(numbers):
                    pieces += feed.finish()
                for first, piece in pieces:
                    labels[numbers[first : first + len(piece)]] = piece
                if progress is not None:
                    progress("segmenting", float(is_done.mean()))
        finally:
            feed.close()
        logits.planes.update((numbers[number], plane) for number, plane in kept.items())
        for stage, seconds in feed.timings.items():
            timings[stage] = timings.get(stage, 0.0) + seconds
        has_liver[numbers] = [labels[z].any() for z in numbers]
        left = np.flatnonzero(~is_done).tolist()
        if has_liver.any():
            left = [z for z in left if has_liver[max(0, z - k) : z + k + 1].any()]
        numbers = left
    if progress is not None and not is_done.all():
        progress("segmenting", 1.0)
    return timings, int(is_done.sum())
