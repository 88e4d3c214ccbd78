"""Metrics that follow from counts of voxels: Dice, IoU, volume differences, accuracy, Rand index."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trtseg.metrics.checks import Array, check_masks


@dataclass(frozen=True)
class Overlap:
    """The 2x2 table of a mask against the truth, and the metrics that follow from it; tables of cases add up.

    Attributes
    ----------
    tp, fp, fn, tn : int
        Voxels that are in both masks, in the prediction only, in the truth only, and in neither mask.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def predicted(self) -> int:
        """Number of voxels of the prediction."""
        return self.tp + self.fp

    @property
    def true(self) -> int:
        """Number of voxels of the truth."""
        return self.tp + self.fn

    @property
    def dice(self) -> float:
        """Dice coefficient, 2 TP / (2 TP + FP + FN); 1 if both masks are empty, as LiTS scores tumours."""
        sizes = self.predicted + self.true
        return 2 * self.tp / sizes if sizes else 1.0

    @property
    def iou(self) -> float:
        """Intersection over union (Jaccard index), TP / (TP + FP + FN); 1 if both masks are empty."""
        union = self.tp + self.fp + self.fn
        return self.tp / union if union else 1.0

    @property
    def voe(self) -> float:
        """Volumetric overlap error, 1 - IoU."""
        return 1.0 - self.iou

    @property
    def rvd(self) -> float:
        """Relative volume difference, (predicted - true) / true: positive where too much was segmented.

        0 if both masks are empty; NaN if only the truth is empty. LiTS's script has the two masks the other
        way round: (true - predicted) / predicted.
        """
        if not self.true:
            return math.nan if self.predicted else 0.0
        return (self.predicted - self.true) / self.true

    @property
    def accuracy(self) -> float:
        """Pixel accuracy, (TP + TN) / all; the background counts, so that small objects give high values."""
        n = self.tp + self.fp + self.fn + self.tn
        return (self.tp + self.tn) / n if n else 1.0

    @property
    def rand_index(self) -> float:
        """Rand index over pairs of pixels: the fraction of pairs on which prediction and truth agree.

        Each mask divides the pixels into two classes. The masks agree on a pair if both put its pixels into
        the same class, or both into different classes. So they disagree exactly on pairs of a pixel that is
        labelled rightly and a pixel that is labelled wrongly: with e = FP + FN errors among n pixels, on
        e (n - e) of the n (n - 1) / 2 pairs. The pairs need not be visited, and the integers are exact.

        Which class is called the object does not matter: the index is the same for a mask and its inverse,
        and a prediction that is wrong everywhere scores 1. The background counts as a class. With fewer than
        two pixels the index is 1.
        """
        n = self.tp + self.fp + self.fn + self.tn
        errors = self.fp + self.fn
        pairs = n * (n - 1) // 2
        return (pairs - errors * (n - errors)) / pairs if pairs else 1.0


def overlap(prediction: Array, truth: Array) -> Overlap:
    """Count how two masks overlap.

    Parameters
    ----------
    prediction, truth : ndarray of bool
        Masks of the same shape, of any number of axes.

    Raises
    ------
    ArgumentError
        If the arguments are no masks of the same shape.

    Examples
    --------
    >>> overlap(np.array([True, True, False]), np.array([True, False, False])).dice
    0.6666666666666666
    """
    check_masks(prediction, truth)
    tp = int(np.count_nonzero(prediction & truth))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return Overlap(tp, fp, fn, truth.size - tp - fp - fn)


def global_dice(cases: Iterable[Overlap]) -> float:
    """Dice of all cases taken as a single case: twice the sum of intersections over the sum of sizes.

    Large objects weigh more here than in the mean over cases. 1 if all masks are empty.
    """
    return sum(cases, Overlap(0, 0, 0, 0)).dice
