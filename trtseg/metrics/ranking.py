"""How well probabilities rank pixels, before any threshold: ROC curve, AUC, and the threshold that a curve suggests.

The paper restricts the ROC of the tumour net to pixels whose probability lies in [0.01, 0.99]: nearly all pixels are
far from any tumour and get a probability near 0, and with these pixels every AUC is close to 1. But the restricted AUCs
of two models are taken over different pixels, and the AUC of a sure model over few. So a restricted AUC needs the share
of the pixels that remain and the full AUC beside it. Take FP32 probabilities: in FP16 many are equal or 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trtseg.errors import ArgumentError
from trtseg.metrics.checks import Array, check_same_shape, needs

#: Probabilities, both included, over which the paper's restricted ROC is drawn.
PAPER_BAND = (0.01, 0.99)


@dataclass(frozen=True, eq=False)
class Roc:
    """A ROC curve, its area, and the threshold that it suggests.

    Attributes
    ----------
    auc : float
        Area under the curve: how likely a random tumour pixel has a higher probability than a random other
        pixel, ties counted as half. NaN unless there are pixels of both classes.
    share : float
        Fraction of all pixels that the curve counts: 1 without a band. NaN if there was no pixel at all.
    threshold : float
        The t in [0, 1] for which ``probability > t`` has the largest Youden index J = true positive rate - false
        positive rate: the middle between the two probabilities that t parts. If several have the largest J, t is
        the threshold nearest to 0.5. NaN if the AUC is NaN.
    youden : float
        J at the threshold. NaN if the AUC is NaN.
    false_positive_rate, true_positive_rate : ndarray of float64
        The corners of the curve, from (0, 0) to (1, 1); empty if the AUC is NaN.
    """

    auc: float
    share: float
    threshold: float
    youden: float
    false_positive_rate: Array
    true_positive_rate: Array


def roc(probability: Array, truth: Array, band: tuple[float, float] | None = None) -> Roc:
    """Draw the ROC curve of probabilities against the truth.

    Twenty million pixels take about 7 s and 50 bytes each.

    Parameters
    ----------
    probability : ndarray of float
        In [0, 1], any shape.
    truth : ndarray of bool
        Whether the pixel is tumour; the same shape.
    band : (float, float), optional
        Only pixels with a probability in this range, both ends included, count: `PAPER_BAND`.

    Returns
    -------
    Roc
        Undefined numbers are NaN: a curve needs a tumour pixel and another pixel.

    Raises
    ------
    ArgumentError
        If an argument is of another type or shape, or a probability is NaN or outside [0, 1].
    """
    _check(probability, truth, band)
    scores, positive = probability.reshape(-1), truth.reshape(-1)
    share = 1.0 if scores.size else math.nan
    if band is not None and scores.size:
        kept = (scores >= band[0]) & (scores <= band[1])
        share = int(np.count_nonzero(kept)) / scores.size
        scores, positive = scores[kept], positive[kept]
    tumour = int(np.count_nonzero(positive))
    other = positive.size - tumour
    if not tumour or not other:
        return Roc(math.nan, share, math.nan, math.nan, np.zeros(0), np.zeros(0))
    metrics = needs("sklearn.metrics")
    # All points are kept, since thresholds lie in the middle between neighbours.
    fpr, tpr, scores = metrics.roc_curve(positive, scores, drop_intermediate=False)
    auc = float(metrics.auc(fpr, tpr))
    # Counts instead of rates: equal indices must compare as equal. Exact below 3e9 pixels.
    found, wrong = np.rint(tpr * tumour).astype(np.int64), np.rint(fpr * other).astype(np.int64)
    youden = found * other - wrong * tumour
    # Point i counts the pixels of at least scores[i]. They are above any t from scores[i + 1] to below scores[i].
    middles = (np.append(1.0, scores[1:]) + np.append(scores[1:], 0.0)) / 2
    best = middles[youden == youden.max()]
    threshold = float(best[np.argmin(np.abs(best - 0.5))])
    corner = np.ones(len(fpr), bool)
    corner[1:-1] = (np.diff(found, 2) != 0) | (np.diff(wrong, 2) != 0)
    return Roc(auc, share, threshold, float(youden.max()) / (tumour * other), fpr[corner], tpr[corner])


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often pixels of a probability are tumour, in bins of equal width over [0, 1].

    Attributes
    ----------
    probability, observed : ndarray of float64
        Mean probability in each bin, and the share of its pixels that are tumour; NaN where a bin is empty.
    pixels : ndarray of int64
        Number of pixels in each bin.
    error : float
        Expected calibration error: the mean difference of the two, weighted by pixels (Naeini et al., AAAI 2015). NaN
        without a pixel.
    """

    probability: Array
    observed: Array
    pixels: Array
    error: float


def reliability(probability: Array, truth: Array, bins: int = 10) -> Reliability:
    """Compare probabilities with how often they come true.

    Parameters
    ----------
    probability : ndarray of float
        In [0, 1], any shape.
    truth : ndarray of bool
        Whether the pixel is tumour; the same shape.
    bins : int
        Number of bins; each includes its lower end, the last both.

    Raises
    ------
    ArgumentError
        If an argument is of another type or shape, or a probability is NaN or outside [0, 1].
    """
    _check(probability, truth, None)
    p, positive = probability.reshape(-1).astype(np.float64), truth.reshape(-1)
    which = np.minimum((p * bins).astype(np.int64), bins - 1)
    pixels, sums, hits = (np.bincount(which, w, bins) for w in (None, p, positive))
    with np.errstate(invalid="ignore"):
        mean, observed = sums / pixels, hits / pixels
    error = float(np.abs(sums - hits).sum() / p.size) if p.size else math.nan
    return Reliability(mean, observed, pixels.astype(np.int64), error)


def _check(probability: Array, truth: Array, band: tuple[float, float] | None) -> None:
    for name, array, kind, wanted in (
        ("probability", probability, "f", "floats in [0, 1]"),
        ("truth", truth, "b", "a boolean mask, such as labels == 2"),
    ):
        if not isinstance(array, np.ndarray) or array.dtype.kind != kind:
            got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise ArgumentError(f"{name}: got {got}; expected an array of {wanted}")
    check_same_shape(probability, truth)
    if probability.size and not (probability.min() >= 0 and probability.max() <= 1):  # NaN is neither
        raise ArgumentError(
            f"probability: got values from {probability.min()} to {probability.max()}; expected [0, 1], "
            "apply the sigmoid to logits"
        )
    if band is not None and not 0 <= band[0] < band[1] <= 1:
        raise ArgumentError(f"band: got {band}; expected two rising numbers in [0, 1], such as (0.01, 0.99)")
