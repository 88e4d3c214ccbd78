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
    is_background,
    is_liver,
    is_tumour,
)
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
            if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
                raise ArgumentError(f"{name}: got {value!r}; expected {unit}, 0 or more")

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
    report: dict[str, Any] = dict.fromkeys(
        ("median_mm", "largest_liver", "fill_holes", "min_tumour_ml"), "off"
    )
    if steps.median_mm > 0:
        report["median_mm"] = _median(labels, steps.reach(slice_mm))
    crop = labels[bounding_box(labels)]
    if steps.largest_liver:
        report["largest_liver"] = _keep_largest(crop, voxel_ml)
        crop = crop[bounding_box(crop)]
    if steps.fill_holes:
        report["fill_holes"] = _fill_holes(crop, voxel_ml)
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
        # For each label, how many slices of the window reach it: the median is what more than half of them do.
        window = [crop[min(max(i, 0), last)] for i in range(-reach, reach + 1)]
        counts = [sum((plane >= label).view(np.uint8) for plane in window) for label in (1, 2)]
        before = deque(
            [crop[0].copy()] * (reach + 1), maxlen=reach + 1
        )  # planes as they were when they entered
        for i, plane in enumerate(crop):
            before.append(plane.copy())
            median = sum((count > reach).view(np.uint8) for count in counts)
            changed += int(np.count_nonzero(median != plane))
            entering, leaving = crop[min(i + 1 + reach, last)], before[0]
            for label, count in zip((1, 2), counts, strict=True):
                count += (entering >= label).view(np.uint8) - (leaving >= label).view(np.uint8)
            plane[...] = median
    return {"slices": 2 * reach + 1, "changed_voxels": changed}


def _keep_largest(crop: Array, voxel_ml: float) -> dict[str, Any]:
    parts = Components(crop, is_liver, 26)
    removed = 0
    if parts.count > 1:
        removed = parts.paint(np.arange(parts.count + 1) != parts.sizes().argmax(), 0)
    return {
        "components": parts.count,
        "removed_components": max(0, parts.count - 1),
        "removed_voxels": removed,
        "removed_ml": removed * voxel_ml,
    }


def _fill_holes(crop: Array, voxel_ml: float) -> dict[str, Any]:
    # The crop is the liver's bounding box: beyond its faces lies background, or the volume's border. So the
    # background that reaches a face is open, and all other background is enclosed.
    gaps = Components(crop, is_background, 6)
    enclosed = ~gaps.on_faces
    enclosed[0] = False
    filled = gaps.paint(enclosed, 1)
    return {
        "filled_holes": int(np.count_nonzero(enclosed)),
        "filled_voxels": filled,
        "filled_ml": filled * voxel_ml,
    }


def _drop_small_tumours(crop: Array, voxel_ml: float, min_ml: float) -> dict[str, Any]:
    tumours = Components(crop[bounding_box(crop, 2)], is_tumour, 26)
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
