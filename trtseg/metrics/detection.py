"""Which lesions were found, and how much of the liver is tumour.

A lesion is a 26-connected component of label 2, as everywhere in trtseg. A lesion of the truth is detected if a
predicted lesion has an IoU above 0.5 with it. Two lesions that overlap so much are each other's only such partner,
because each has more than half of the union: the matching is one to one, and there is nothing to choose.

LiTS's script differs. Its components are 6-connected, and it merges lesions before it asks for an IoU above 0.5: all
lesions of the truth that the same prediction spans, and all predicted lesions that touch the same lesion of the truth.
All parts of a merged lesion count as found or as missed together. So LiTS finds a lesion that was predicted in two
halves, and trtseg misses it. Of two lesions predicted as a single lesion, LiTS finds both; trtseg finds neither, or
the larger if it has most of the prediction.

How well the detected lesions were segmented is a mean over the matched pairs, as in LiTS. The mean over a set of cases
takes the pairs of all cases, so that a case with many lesions has more weight. Each pair is compared alone, without the
lesions around it. RVD keeps its sign, so lesions drawn too large and too small cancel out in its mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trtseg.labels.components import Components, bounding_box, check_labels, count_voxels
from trtseg.metrics.checks import Array, check_masks, check_steps
from trtseg.metrics.overlap import Overlap
from trtseg.metrics.surface import SurfaceDistances, surface_distances

# Metrics averaged over the detected lesions. Accuracy and Rand index count the background, and a lesion has none.
_OVERLAP = ("dice", "iou", "voe", "rvd")
_SURFACE = ("assd", "rmsd", "msd", "hd95")


@dataclass(frozen=True)
class LesionScores:
    """Lesions of a case, or of several cases: counts add up, as in LiTS.

    Attributes
    ----------
    true, predicted : int
        Lesions of the truth and of the prediction.
    detected : int
        Lesions of the truth that match a predicted lesion. The number of predicted lesions that match is equal.
    touched : int
        Lesions of the truth that share at least one voxel with the prediction.
    overlaps : tuple of Overlap
        Overlap of each detected lesion with its match; ``tn`` is 0, since voxels around the two do not count.
    surfaces : tuple of SurfaceDistances
        Distances of the same pairs in the same order.
    """

    true: int
    predicted: int
    detected: int
    touched: int
    overlaps: tuple[Overlap, ...] = ()
    surfaces: tuple[SurfaceDistances, ...] = ()

    def __add__(self, other: LesionScores) -> LesionScores:
        return LesionScores(
            self.true + other.true,
            self.predicted + other.predicted,
            self.detected + other.detected,
            self.touched + other.touched,
            self.overlaps + other.overlaps,
            self.surfaces + other.surfaces,
        )

    @property
    def precision(self) -> float:
        """Fraction of the predicted lesions that match a lesion of the truth; NaN if no lesion is predicted."""
        return _ratio(self.detected, self.predicted)

    @property
    def recall(self) -> float:
        """Fraction of the lesions of the truth that are detected; NaN if the truth has no lesion."""
        return _ratio(self.detected, self.true)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN); NaN if there is no lesion at all."""
        return _ratio(2 * self.detected, self.predicted + self.true)

    @property
    def recall_any(self) -> float:
        """Recall if a single voxel in common is enough; NaN if the truth has no lesion."""
        return _ratio(self.touched, self.true)

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the detected lesions, distances in mm; NaN if none is detected."""
        values = {name: [getattr(pair, name) for pair in self.overlaps] for name in _OVERLAP}
        values |= {name: [getattr(pair, name) for pair in self.surfaces] for name in _SURFACE}
        return {name: _ratio(math.fsum(each), len(each)) for name, each in values.items()}


def score_lesions(prediction: Array, truth: Array, spacing: Sequence[float] | Array) -> LesionScores:
    """Match the lesions of a prediction with those of the truth.

    Parameters
    ----------
    prediction, truth : ndarray of bool, [Z, Y, X]
        Masks of the tumours on the same grid.
    spacing : (float, float, float), or ndarray, 3x3
        mm from voxel to voxel ``(sz, sy, sx)``, or the steps of a sheared grid, see
        `trtseg.metrics.surface.surface_distances`.

    Returns
    -------
    LesionScores
        The detected lesions come in the order of the truth, feet to head.

    Raises
    ------
    ArgumentError
        If the masks are no volumes of the same shape, or the spacing is not positive, or its steps lie in a plane.
    """
    check_masks(prediction, truth, volumes=True)
    steps = check_steps(spacing)
    box = bounding_box((prediction | truth).view(np.uint8))
    prediction, truth = prediction[box], truth[box]
    ours, theirs = _Lesions(prediction), _Lesions(truth)
    # For each voxel in both masks: its lesion in the truth, and its lesion in the prediction.
    pairs = np.stack([theirs.number[prediction[truth]], ours.number[truth[prediction]]])
    pairs, common = np.unique(pairs, axis=1, return_counts=True)
    overlaps, surfaces = [], []
    for t, p, both in zip(*pairs.tolist(), common.tolist(), strict=True):
        predicted, true = int(ours.sizes[p]), int(theirs.sizes[t])
        if 3 * both > predicted + true:  # both / (predicted + true - both) > 1 / 2, in integers
            overlaps.append(Overlap(both, predicted - both, true - both, 0))
            surfaces.append(surface_distances(*_boxed(ours.voxels(p), theirs.voxels(t)), steps))
    return LesionScores(
        true=theirs.count,
        predicted=ours.count,
        detected=len(overlaps),
        touched=len(set(pairs[0].tolist())),
        overlaps=tuple(overlaps),
        surfaces=tuple(surfaces),
    )


def tumour_burden(labels: Array) -> float:
    """Tumour voxels (label 2) as a fraction of the liver's (labels 1 and 2); NaN without a liver.

    Parameters
    ----------
    labels : ndarray of uint8, [Z, Y, X]
        0 background, 1 liver, 2 tumour.
    """
    check_labels(labels)
    liver, tumour = count_voxels(labels)
    return _ratio(tumour, liver)


def burden_errors(burdens: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Root mean square and largest error of the tumour burden over cases.

    Parameters
    ----------
    burdens : iterable of (float, float)
        Predicted and true burden of each case. A case is left out if either is NaN; LiTS's script takes 9001
        for the burden without a liver instead.

    Returns
    -------
    (float, float)
        RMSE and largest absolute error, as fractions of the liver; NaN if no case is left. (The largest error of
        LiTS's script is signed, the truth less the prediction.)
    """
    errors = [predicted - true for predicted, true in burdens if not math.isnan(predicted - true)]
    if not errors:
        return math.nan, math.nan
    return math.sqrt(math.fsum(e * e for e in errors) / len(errors)), max(map(abs, errors))


class _Lesions:
    """Components of a mask; ``number`` has the component of each voxel of the mask, in raster order, from 1."""

    def __init__(self, mask: Array) -> None:
        components = Components(mask)
        self._runs = components.runs  # in raster order too
        self.count, self.sizes = components.count, components.sizes()
        self.number: Array = np.repeat(self._runs.component, self._runs.lengths)

    def voxels(self, component: int) -> Array:
        """Indices ``[n, 3]`` of the voxels of a component."""
        _, *place = self._runs.of(self._runs.component == component).voxels()
        return np.stack(place, axis=1)


def _boxed(a: Array, b: Array) -> tuple[Array, Array]:
    """Paint two sets of voxels ``[n, 3]`` as masks on the smallest box that holds both."""
    low = np.minimum(a.min(axis=0), b.min(axis=0))
    shape = np.maximum(a.max(axis=0), b.max(axis=0)) - low + 1
    masks = np.zeros((2, *shape), bool)
    for mask, voxels in zip(masks, (a, b), strict=True):
        mask[tuple((voxels - low).T)] = True
    return masks[0], masks[1]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
