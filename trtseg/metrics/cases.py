"""Compare segmentations with the truth: every metric of a case, and the summary over a set of cases.

Liver is label >= 1, since a tumour is part of the liver, and tumour is label 2.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtseg.errors import ArgumentError
from trtseg.labels.components import (
    Array,
    Components,
    bounding_box,
    check_labels,
    count_voxels,
    is_liver,
    is_tumour,
)
from trtseg.metrics.checks import check_same_shape, check_steps
from trtseg.metrics.detection import LesionScores, burden_errors, score_lesions, tumour_burden
from trtseg.metrics.overlap import Overlap, global_dice, overlap
from trtseg.metrics.surface import SurfaceDistances, surface_distances
from trtseg.volume import voxel_ml

#: The meaning of each number in a line, to be stored beside the numbers.
CONVENTIONS = {
    "regions": "liver is label >= 1, tumour is label 2",
    "ml": "volume of a region; that of the liver includes its tumours",
    "empty": "Dice and IoU are 1, VOE and RVD 0 if both masks are empty; what is undefined is null, left out of means "
    "and counted",
    "mean": "over the cases in which a metric is defined, each with the same weight; ±, sd: standard deviation over "
    "these cases, with n - 1; undefined for fewer than two",
    "rvd": "(predicted - true) / true volume",
    "rand_index": "over pairs of voxels, background included; the same for a mask and its inverse",
    "surface": "mm between surface voxels (6 neighbours); ASSD, RMSD, MSD: both directions pooled; "
    "HD95: the larger of the two directed 95th percentiles",
    "lesions": "26-connected components; detected: IoU above 0.5, one to one; counts are pooled over cases",
    "detected_lesions": "mean over the matched pairs of all cases, each lesion alone against its match; the sign of "
    "RVD is kept; null if none is detected",
    "burden": "tumour voxels / liver voxels",
    "predicted_tumour": "what the prediction calls tumour, right or wrong, and in how many 26-connected components; "
    "also where the truth does not know tumours",
}


@dataclass(frozen=True)
class RegionScores:
    """How one region, liver or tumour, was segmented in one case."""

    overlap: Overlap
    surface: SurfaceDistances

    def values(self) -> dict[str, float]:
        """Return every metric by name; distances in mm, NaN where undefined."""
        o, s = self.overlap, self.surface
        return {
            "dice": o.dice,
            "iou": o.iou,
            "voe": o.voe,
            "rvd": o.rvd,
            "accuracy": o.accuracy,
            "rand_index": o.rand_index,
            "assd": s.assd,
            "rmsd": s.rmsd,
            "msd": s.msd,
            "hd95": s.hd95,
        }


@dataclass(frozen=True)
class CaseScores:
    """All metrics of one case.

    Attributes
    ----------
    name : str
        Name of the case.
    liver : RegionScores
        Scores of labels 1 and 2 together.
    predicted_ml : float
        Volume of the predicted tumours, label 2, in mL, right or wrong.
    predicted_lesions : int
        Number of connected components of the predicted tumours.
    tumour : RegionScores or None
        Scores of label 2; None if the truth does not know tumours.
    lesions : LesionScores or None
        Which tumours were found; None if the truth does not know tumours.
    burden : (float, float) or None
        Predicted and true tumour burden; None if the truth does not know tumours.
    warnings : tuple of str
        Why volumes and distances may be wrong.
    voxel_ml : float
        Volume of a voxel in mL.
    """

    name: str
    liver: RegionScores
    predicted_ml: float
    predicted_lesions: int
    tumour: RegionScores | None = None
    lesions: LesionScores | None = None
    burden: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()
    voxel_ml: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return all scores in the types of JSON; undefined numbers are None."""
        result: dict[str, Any] = {
            "name": self.name,
            "liver": _region_dict(self.liver, self.voxel_ml),
            "predicted_tumour": {"ml": self.predicted_ml, "lesions": self.predicted_lesions},
        }
        if self.tumour is not None:
            result["tumour"] = _region_dict(self.tumour, self.voxel_ml)
        if self.lesions is not None:
            result["lesions"] = _lesions_dict(self.lesions)
        if self.burden is not None:
            result["burden"] = {"predicted": _json(self.burden[0]), "true": _json(self.burden[1])}
        return result | ({"warnings": [*self.warnings]} if self.warnings else {})


@dataclass(frozen=True)
class Mean:
    """A mean over the cases in which a metric is defined.

    Attributes
    ----------
    value : float
        The mean; NaN if the metric is undefined in every case.
    cases, undefined : int
        Number of cases in which the metric is defined, and of cases in which it is not.
    sd : float
        Standard deviation over the same cases, with one case less as the divisor; NaN for fewer than two.
    """

    value: float
    cases: int
    undefined: int
    sd: float = math.nan


@dataclass(frozen=True)
class RegionSummary:
    """How one region was segmented over a set: the mean of each metric over cases, and the Dice of all voxels."""

    means: dict[str, Mean]
    dice_global: float


@dataclass(frozen=True)
class SetScores:
    """All metrics of a set of cases.

    Attributes
    ----------
    cases : tuple of CaseScores
        In the order given.
    liver : RegionSummary
        Over all cases.
    tumour : RegionSummary or None
        Over the cases whose truth knows tumours; None without such a case.
    lesions : LesionScores or None
        The lesions of the same cases together; None without such a case.
    burden_rmse, burden_max : float
        Root mean square and largest error of the tumour burden, over the cases in which the burden is defined;
        NaN without such a case.
    burden_cases : int
        Number of cases in which the burden is defined.
    """

    cases: tuple[CaseScores, ...]
    liver: RegionSummary
    tumour: RegionSummary | None
    lesions: LesionScores | None
    burden_rmse: float
    burden_max: float
    burden_cases: int

    def to_dict(self) -> dict[str, Any]:
        """Return all scores in the types of JSON; undefined numbers are None."""
        summary: dict[str, Any] = {"cases": len(self.cases), "liver": _summary_dict(self.liver)}
        if self.tumour is not None and self.lesions is not None:
            summary["tumour"] = _summary_dict(self.tumour)
            summary["lesions"] = _lesions_dict(self.lesions)
            summary["burden"] = {
                "rmse": _json(self.burden_rmse),
                "max_error": _json(self.burden_max),
                "cases": self.burden_cases,
            }
        return {
            "conventions": CONVENTIONS,
            "summary": summary,
            "cases": [case.to_dict() for case in self.cases],
        }


def evaluate_case(
    prediction: Array,
    truth: Array,
    spacing: Sequence[float] | Array,
    *,
    name: str = "case",
    liver_only: bool = False,
) -> CaseScores:
    """Compare the labels of one case with the truth.

    Parameters
    ----------
    prediction, truth : ndarray of uint8, [Z, Y, X]
        Labels on one grid: 0 background, 1 liver, 2 tumour.
    spacing : (float, float, float), or ndarray, 3x3
        mm from voxel to voxel ``(sz, sy, sx)``, or the steps of a sheared grid, see
        `trtseg.metrics.surface.surface_distances`.
    name : str
        Name of the case.
    liver_only : bool
        The truth does not know tumours, so that its lack of label 2 says nothing: only the liver is scored.
        Predicted tumours are measured all the same.

    Raises
    ------
    ArgumentError
        If the labels are no uint8 volumes of the same shape, hold another label, the spacing is not positive, or its
        steps lie in a plane.
    TrtsegError
        If SciPy is not installed.

    Examples
    --------
    >>> scores = evaluate_case(predicted, true, (5.0, 0.8, 0.8))  # doctest: +SKIP
    >>> scores.liver.overlap.dice, scores.liver.surface.assd, scores.lesions.recall  # doctest: +SKIP
    """
    for argument, labels in (("prediction", prediction), ("truth", truth)):
        try:
            check_labels(labels)
        except ArgumentError as error:
            raise ArgumentError(f"{argument}: {error}") from None
    check_same_shape(prediction, truth)
    steps = check_steps(spacing)
    box = bounding_box(np.maximum(prediction, truth))
    everything = truth.size
    prediction, truth = prediction[box], truth[box]
    around = Overlap(0, 0, 0, everything - truth.size)  # background in both
    liver = _region(prediction, truth, is_liver, around, steps)
    _, voxels = count_voxels(prediction)
    size = voxel_ml(steps)
    ml = voxels * size
    if liver_only:
        lesions = Components(prediction[bounding_box(prediction, 2)], is_tumour).count
        return CaseScores(name, liver, ml, lesions, voxel_ml=size)
    matched = score_lesions(is_tumour(prediction), is_tumour(truth), steps)
    return CaseScores(
        name,
        liver,
        ml,
        matched.predicted,
        _region(prediction, truth, is_tumour, around, steps),
        matched,
        (tumour_burden(prediction), tumour_burden(truth)),
        voxel_ml=size,
    )


def evaluate_set(cases: Iterable[CaseScores]) -> SetScores:
    """Summarise cases: means over cases, Dice over all voxels, pooled lesions, errors of the tumour burden.

    Raises
    ------
    ArgumentError
        If there is no case.
    """
    scored = tuple(cases)
    if not scored:
        raise ArgumentError("cases: got none; expected at least one case")
    tumours = [case.tumour for case in scored if case.tumour is not None]
    lesions = [case.lesions for case in scored if case.lesions is not None]
    burdens = [case.burden for case in scored if case.burden is not None]
    rmse, largest = burden_errors(burdens)
    return SetScores(
        cases=scored,
        liver=_summary([case.liver for case in scored]),
        tumour=_summary(tumours) if tumours else None,
        lesions=sum(lesions, LesionScores(0, 0, 0, 0)) if lesions else None,
        burden_rmse=rmse,
        burden_max=largest,
        burden_cases=sum(not math.isnan(predicted + true) for predicted, true in burdens),
    )


def _region(
    prediction: Array,
    truth: Array,
    mask_of: Callable[[Array], Array],
    around: Overlap,
    steps: Array,
) -> RegionScores:
    ours, theirs = mask_of(prediction), mask_of(truth)
    return RegionScores(overlap(ours, theirs) + around, surface_distances(ours, theirs, steps))


def _summary(regions: Sequence[RegionScores]) -> RegionSummary:
    rows = [region.values() for region in regions]
    means = {}
    for metric in rows[0]:
        values = [row[metric] for row in rows]
        defined = [value for value in values if not math.isnan(value)]
        mean = math.fsum(defined) / len(defined) if defined else math.nan
        sd = statistics.stdev(defined) if len(defined) > 1 else math.nan
        means[metric] = Mean(mean, len(defined), len(values) - len(defined), sd)
    return RegionSummary(means, global_dice(region.overlap for region in regions))


def _region_dict(region: RegionScores, voxel_ml: float) -> dict[str, Any]:
    o = region.overlap
    values = {metric: _json(value) for metric, value in region.values().items()}
    ml = {"predicted": _json(o.predicted * voxel_ml), "true": _json(o.true * voxel_ml)}
    return {**values, "ml": ml, "voxels": {"tp": o.tp, "fp": o.fp, "fn": o.fn, "tn": o.tn}}


def _summary_dict(summary: RegionSummary) -> dict[str, Any]:
    means = {
        metric: {
            "mean": _json(mean.value),
            "sd": _json(mean.sd),
            "cases": mean.cases,
            "undefined": mean.undefined,
        }
        for metric, mean in summary.means.items()
    }
    return {**means, "dice_global": summary.dice_global}


def _lesions_dict(lesions: LesionScores) -> dict[str, Any]:
    counts = {
        "true": lesions.true,
        "predicted": lesions.predicted,
        "detected": lesions.detected,
        "touched": lesions.touched,
    }
    rates = {name: _json(getattr(lesions, name)) for name in ("precision", "recall", "f1", "recall_any")}
    means = {f"mean_{metric}": _json(mean) for metric, mean in lesions.means().items()}
    return {**counts, **rates, **means}


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
