"""Metrics that follow from counting voxels: Dice, IoU, volume differences, accuracy, Rand index."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trtseg.metrics.checks import Array, check_masks


@dataclass(frozen=True)
class Overlap:
    """The 2x2 table of a mask against the truth, and what follows from it; tables of several cases add up.

    Attributes
    ----------
    tp, fp, fn, tn : int
        Voxels that are in both masks, in the prediction only, in the truth only, and in neither.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def predicted(self) -> int:
        """Voxels of the prediction."""
        return self.tp + self.fp

    @property
    def true(self) -> int:
        """Voxels of the truth."""
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

        0 if both masks are empty; NaN if only the truth is. LiTS's script has the two masks the other way
        round: (true - predicted) / predicted.
        """
        if not self.true:
            return math.nan if self.predicted else 0.0
        return (self.predicted - self.true) / self.true

    @property
    def accuracy(self) -> float:
        """Pixel accuracy, (TP + TN) / all; it counts the background, and so it is high for small objects."""
        n = self.tp + self.fp + self.fn + self.tn
        return (self.tp + self.tn) / n if n else 1.0

    @property
    def rand_index(self) -> float:
        """Rand index over pairs of pixels: the fraction of pairs on which prediction and truth agree.

        The masks are seen as partitions of the pixels into two classes. They agree on a pair if both put its
        pixels into one class, or both into different ones. So they disagree exactly if one pixel of the pair is
        labelled rightly and the other is not: of n pixels with e = FP + FN errors, on e (n - e) pairs of
        n (n - 1) / 2. No pair is ever looked at, and the integers are exact.

        It does not matter which class is called the object: the index is the same for a mask and its inverse,
        and a prediction that is wrong everywhere scores 1. No class is left out, the background counts; with
        fewer than two pixels it is 1.
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
        Masks of one shape, of any number of axes.

    Raises
    ------
    ArgumentError
        If they are no masks of one shape.

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
    """Dice over all cases as if they were one: twice the sum of intersections over the sum of sizes.

    Large objects weigh more in it than in the mean over cases. 1 if nothing is anywhere.
    """
    return sum(cases, Overlap(0, 0, 0, 0)).dice
