"""Distances between the surfaces of two masks, in millimetres.

Conventions, because tools differ in each of them:

- A voxel of a mask lies on its surface if at least one of the six face neighbours is outside the mask; beyond the
  volume every voxel is outside. MedPy and MONAI do the same. LiTS's script asks for the 18 neighbours that share a face
  or an edge, which makes surfaces thicker and averages lower: ``neighbours=18`` gives the numbers of LiTS.
- Distances are Euclidean, from voxel centre to voxel centre, with the voxel spacing; every surface voxel counts once.
  The library surface-distance weighs surface elements between the voxels by their area instead: an average of 1.7 mm
  and not 2.2 mm for a liver dilated by two voxels.
- ASSD, RMSD and MSD pool the distances of both directions, from the prediction to the truth and back, as LiTS does. The
  larger surface has more weight.
- HD95 is the larger of the two directed 95th percentiles, as in MONAI and surface-distance: it is the Hausdorff
  distance with percentiles in place of maxima, and a small surface that is far off cannot hide behind a large surface.
  MedPy takes the percentile of all distances pooled, which is mostly smaller. Percentiles are interpolated linearly.
- With an empty mask there is no distance: NaN, also if both masks are empty. LiTS's script writes 9001 instead (in
  earlier versions infinity) and averages it, so that a single missed liver decides the mean. Means of trtseg leave NaN
  out and say how often they did.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trtseg.errors import ArgumentError
from trtseg.labels.components import bounding_box
from trtseg.metrics.checks import Array, check_masks, check_steps, needs


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces in mm; see the module for the conventions.

    Attributes
    ----------
    to_truth : ndarray of float64
        From each surface voxel of the prediction to the nearest surface voxel of the truth, in no particular
        order. Empty if either mask is empty.
    to_prediction : ndarray of float64
        From each surface voxel of the truth to the nearest surface voxel of the prediction. Empty likewise.
    """

    to_truth: Array
    to_prediction: Array

    @property
    def assd(self) -> float:
        """Average symmetric surface distance; NaN if a mask is empty."""
        return float(self._pooled.mean()) if self._defined else math.nan

    @property
    def rmsd(self) -> float:
        """Root mean square symmetric surface distance; NaN if a mask is empty."""
        return math.sqrt(float(np.square(self._pooled).mean())) if self._defined else math.nan

    @property
    def msd(self) -> float:
        """Maximum symmetric surface distance, the Hausdorff distance; NaN if a mask is empty."""
        return float(self._pooled.max()) if self._defined else math.nan

    @property
    def hd95(self) -> float:
        """Larger of the two directed 95th percentiles; NaN if a mask is empty."""
        if not self._defined:
            return math.nan
        return float(max(np.percentile(self.to_truth, 95), np.percentile(self.to_prediction, 95)))

    @property
    def _pooled(self) -> Array:
        return np.concatenate([self.to_truth, self.to_prediction])

    @property
    def _defined(self) -> bool:
        return bool(self.to_truth.size and self.to_prediction.size)


def surface_distances(
    prediction: Array,
    truth: Array,
    spacing: Sequence[float] | Array,
    *,
    neighbours: Literal[6, 18] = 6,
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks, in both directions.

    Parameters
    ----------
    prediction, truth : ndarray of bool, [Z, Y, X]
        Masks on the same grid.
    spacing : (float, float, float), or ndarray, 3x3
        mm from voxel to voxel ``(sz, sy, sx)`` where the axes are at right angles. For a sheared grid (gantry tilt) a
        row in mm each for the steps along z, y and x.
    neighbours : 6 or 18
        A voxel lies inside the surface if all these neighbours are in the mask.

    Raises
    ------
    ArgumentError
        If the masks are no volumes of the same shape, or the spacing is not positive, or its steps lie in a plane.
    """
    check_masks(prediction, truth, volumes=True)
    steps = check_steps(spacing)
    if neighbours not in (6, 18):
        raise ArgumentError(f"neighbours: got {neighbours!r}; expected 6 or 18")
    nothing = np.zeros(0)
    if not prediction.any() or not truth.any():
        return SurfaceDistances(nothing, nothing)
    box = bounding_box((prediction | truth).view(np.uint8))
    ours, theirs = (_surface(mask[box], neighbours) for mask in (prediction, truth))
    trees = needs("scipy.spatial")
    directed = []
    for start, end in ((ours, theirs), (theirs, ours)):
        # Voxels on both surfaces have distance 0: most voxels of a good segmentation.
        points = np.argwhere(start & ~end) @ steps
        distances = np.zeros(int(np.count_nonzero(start)))
        if len(points):
            # Plain splits: a tree of grid points is balanced enough, and takes a fraction of the time to build.
            tree = trees.KDTree(np.argwhere(end) @ steps, balanced_tree=False, compact_nodes=False)
            distances[: len(points)] = tree.query(points)[0]
        directed.append(distances)
    return SurfaceDistances(*directed)


def _surface(mask: Array, neighbours: int) -> Array:
    """Mask of the voxels of ``mask`` with a neighbour outside the mask; beyond the array every voxel is outside."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    reach = 1 if neighbours == 6 else 2  # the largest sum of steps: faces, or faces and edges
    for step in itertools.product((-1, 0, 1), repeat=3):
        if 0 < sum(map(abs, step)) <= reach:
            inside &= padded[tuple(slice(1 + d, 1 + d + n) for d, n in zip(step, mask.shape, strict=True))]
    surface: Array = mask & ~inside
    return surface
