"""What a liver looks like: clean a label map ``[Z, Y, X]`` (0 background, 1 liver, 2 tumour) in place."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from trtseg.errors import ArgumentError
from trtseg.labels.components import (
    Array,
    Components,
    bounding_box,
    check_labels,
    count_voxels,
    is_tumour,
)
from trtseg.labels.holes import find_holes
from trtseg.volume import ROUNDING


@dataclass(frozen=True)
class PostProcess:
    """Which steps are applied to the labels, in this order.

    Attributes
    ----------
    median_mm : float
        A voxel becomes the median of its column over the slices up to this many millimetres above and below it; 0, or
        slices further apart, change nothing. The nets see one slice at a time; what they say of a single one does not
        count if its neighbours all say something else.
    largest_liver : bool
        Keep the largest 26-connected component of liver and tumour together; the rest becomes background.
    fill_holes : bool
        Background that the liver encloses completely in 3-D becomes liver.
    min_tumour_ml : float
        26-connected tumour components below this many millilitres become liver; 0 keeps every one.

    Raises
    ------
    ArgumentError
        A step is neither on nor off, or a size is negative, infinite or no number.
    """

    median_mm: float = 4.0
    largest_liver: bool = True
    fill_holes: bool = True
    min_tumour_ml: float = 0.1

    def __post_init__(self) -> None:
        for name in ("largest_liver", "fill_holes"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"{name}: got {getattr(self, name)!r}; expected True or False")
        for name, unit in (("median_mm", "millimetres"), ("min_tumour_ml", "millilitres")):
            value = getattr(self, name)
            try:
                number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
            except OverflowError:  # 10**400
                number = math.inf
            if not 0 <= number < math.inf:
                raise ArgumentError(f"{name}: got {value!r}; expected {unit}, 0 or more")
            object.__setattr__(self, name, number)  # 4 and np.float32(4) are the same step as 4.0

    def reach(self, slice_mm: float) -> int:
        """How many slices above and below a slice change it, with slices so far apart."""
        # As much reach as slices allow, although headers round the distance of slices; counts fit a byte.
        return min(math.floor(self.median_mm / slice_mm * (1 + ROUNDING)), 127)


def postprocess(labels: Array, voxel_ml: float, slice_mm: float, steps: PostProcess) -> dict[str, Any]:
    """Apply ``steps`` to ``labels`` in place.

    Parameters
    ----------
    labels : ndarray of uint8, [Z, Y, X]
        Changed in place; must be writeable.
    voxel_ml : float
        Volume of a voxel in millilitres.
    slice_mm : float
        Millimetres from slice to slice.
    steps : PostProcess
        What to do.

    Returns
    -------
    dict
        What each step did (``"off"`` for a step that was not asked for), and the voxel counts afterwards:
        ``liver_voxels`` (labels 1 and 2) and ``tumour_voxels``. It can be stored as JSON.

    Raises
    ------
    ArgumentError
        If ``labels`` is not a writeable uint8 volume of labels 0 to 2, or a size is not positive.
    """
    check_labels(labels)
    if not labels.flags.writeable:
        raise ArgumentError("labels: got a read-only array; it is changed in place: pass a copy")
    for name, value, what in (
        ("voxel_ml", voxel_ml, "volume in mL"),
        ("slice_mm", slice_mm, "distance in mm"),
    ):
        if not (math.isfinite(value) and value > 0):
            raise ArgumentError(f"{name}: got {value}; expected a positive {what}")
    report: dict[str, Any] = dict.fromkeys(vars(steps), "off")
    if steps.median_mm > 0:
        report["median_mm"] = _median(labels, steps.reach(slice_mm))
    crop = labels[bounding_box(labels)]
    if steps.largest_liver or steps.fill_holes:
        parts = Components(crop)
        kept = np.ones(parts.count + 1, bool)
        if steps.largest_liver:
            report["largest_liver"] = _keep_largest(parts, kept, voxel_ml)
        if steps.fill_holes:
            report["fill_holes"] = _fill_holes(crop, parts, kept, voxel_ml)
    if steps.min_tumour_ml > 0:
        report["min_tumour_ml"] = _drop_small_tumours(crop, voxel_ml, steps.min_tumour_ml)
    report["liver_voxels"], report["tumour_voxels"] = count_voxels(crop)
    return report


def _median(labels: Array, reach: int) -> dict[str, Any]:
    """Median along z, ``labels`` ``[Z, Y, X]`` in place; beyond the first and last slice there are copies of them."""
    z, y, x = bounding_box(labels)
    crop = labels[max(z.start - reach, 0) : z.stop + reach, y, x]
    changed, last = 0, len(crop) - 1
    if reach and crop.size:
        window = deque(crop[min(max(i, 0), last)].copy() for i in range(-reach, reach + 1))
        # For each label, how many slices of the window reach it: the median is what more than half of them do.
        none = np.zeros(crop.shape[1:], np.uint8)
        counts = [sum((_reaches(plane, label) for plane in window), start=none) for label in (1, 2)]
        for i, plane in enumerate(crop):
            median = _reaches(counts[0], reach + 1) + _reaches(counts[1], reach + 1)
            changed += int(np.count_nonzero(median != window[reach]))
            window.append(crop[min(i + 1 + reach, last)].copy())  # before ``plane`` is overwritten
            leaving = window.popleft()
            for label, count in zip((1, 2), counts, strict=True):
                count += _reaches(window[-1], label)
                count -= _reaches(leaving, label)
            plane[...] = median
    return {"slices": 2 * reach + 1, "changed_voxels": changed}


def _reaches(plane: Array, label: int) -> Array:
    """1 where a label, or a count, is at least ``label``, else 0."""
    return np.greater_equal(plane, label).view(np.uint8)


def _keep_largest(parts: Components, kept: Array, voxel_ml: float) -> dict[str, Any]:
    """Remove all components but the largest; ``kept[component]`` becomes false for what was removed."""
    kept[:] = np.arange(parts.count + 1) == parts.sizes().argmax()
    removed = parts.paint(~kept, 0)
    return {
        "components": parts.count,
        "removed_components": max(0, parts.count - 1),
        "removed_voxels": removed,
        "removed_ml": removed * voxel_ml,
    }


def _fill_holes(crop: Array, parts: Components, kept: Array, voxel_ml: float) -> dict[str, Any]:
    holes = find_holes(parts.runs.of(kept[parts.runs.component]), crop.shape)
    filled = holes.paint(crop, 1)
    return {
        "filled_holes": int(holes.component.max(initial=0)),
        "filled_voxels": filled,
        "filled_ml": filled * voxel_ml,
    }


def _drop_small_tumours(crop: Array, voxel_ml: float, min_ml: float) -> dict[str, Any]:
    tumours = Components(crop[bounding_box(crop, 2)], is_tumour)
    sizes = tumours.sizes()
    # Exactly the limit stays, although the quotient of two decimal fractions is seldom exact in binary.
    small = sizes < math.ceil(min_ml / voxel_ml * (1 - 1e-12))
    small[0] = False
    relabelled = tumours.paint(small, 1)
    return {
        "limit_ml": float(min_ml),
        "components": tumours.count,
        "relabelled_components": int(np.count_nonzero(small)),
        "relabelled_voxels": relabelled,
        "relabelled_ml": relabelled * voxel_ml,
    }
