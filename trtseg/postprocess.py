"""What a liver looks like: clean a label map ``[Z, Y, X]`` (0 background, 1 liver, 2 tumour) in place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from trtseg.components import (
    Array,
    Components,
    bounding_box,
    check_labels,
    count_voxels,
    is_background,
    is_liver,
    is_tumour,
)
from trtseg.errors import ArgumentError


@dataclass(frozen=True)
class PostProcess:
    """Which steps are applied to the labels, in this order.

    Attributes
    ----------
    largest_liver : bool
        Keep the largest 26-connected component of liver and tumour together; the rest becomes background.
    fill_holes : bool
        Background that the liver encloses completely in 3-D becomes liver.
    min_tumour_ml : float
        26-connected tumour components below this many millilitres become liver; 0 keeps every one.
    """

    largest_liver: bool = True
    fill_holes: bool = True
    min_tumour_ml: float = 0.1

    def __post_init__(self) -> None:
        for name in ("largest_liver", "fill_holes"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(f"{name}: got {getattr(self, name)!r}; expected True or False")
        limit = self.min_tumour_ml
        if not isinstance(limit, Real) or not math.isfinite(limit) or limit < 0:
            raise ArgumentError(f"min_tumour_ml: got {limit!r}; expected millilitres, 0 or more")


def postprocess(labels: Array, voxel_ml: float, steps: PostProcess) -> dict[str, Any]:
    """Apply ``steps`` to ``labels`` in place.

    Parameters
    ----------
    labels : ndarray of uint8, [Z, Y, X]
        Changed in place; must be writeable.
    voxel_ml : float
        Volume of a voxel in millilitres.
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
        If ``labels`` is not a writeable uint8 volume of labels 0 to 2, or ``voxel_ml`` is not positive.
    """
    check_labels(labels)
    if not labels.flags.writeable:
        raise ArgumentError("labels: got a read-only array; it is changed in place: pass a copy")
    if not (math.isfinite(voxel_ml) and voxel_ml > 0):
        raise ArgumentError(f"voxel_ml: got {voxel_ml}; expected a positive volume in millilitres")
    crop = labels[bounding_box(labels)]
    report: dict[str, Any] = {"largest_liver": "off", "fill_holes": "off", "min_tumour_ml": "off"}
    if steps.largest_liver:
        report["largest_liver"] = _keep_largest(crop, voxel_ml)
        crop = crop[bounding_box(crop)]
    if steps.fill_holes:
        report["fill_holes"] = _fill_holes(crop, voxel_ml)
    if steps.min_tumour_ml > 0:
        report["min_tumour_ml"] = _drop_small_tumours(crop, voxel_ml, steps.min_tumour_ml)
    report["liver_voxels"], report["tumour_voxels"] = count_voxels(crop)
    return report


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
