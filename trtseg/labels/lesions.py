"""Measure the lesions of a label map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trtseg.errors import ArgumentError
from trtseg.labels.components import Array, Components, Runs, bounding_box, check_labels, is_tumour, stretches
from trtseg.volume import voxel_ml


@dataclass(frozen=True)
class Lesion:
    """One 26-connected component of label 2.

    Attributes
    ----------
    volume_ml : float
        Voxels times the volume of a voxel.
    voxels : int
        Size.
    centroid : (float, float, float)
        Mean of the voxel centres, RAS mm.
    slices : (int, int)
        First and last axial slice, both included; index on the canonical grid: from 0, feet to head.
    diameter_mm : float
        Longest in-plane diameter: the largest distance between two voxel centres of the lesion that lie on
        one axial slice, over all slices; 0 for a lesion of at most one voxel a slice.
    """

    volume_ml: float
    voxels: int
    centroid: tuple[float, float, float]
    slices: tuple[int, int]
    diameter_mm: float


def lesions(labels: Array, affine: Array) -> tuple[Lesion, ...]:
    """Measure every 26-connected component of label 2.

    Parameters
    ----------
    labels : ndarray of uint8, [Z, Y, X]
        Label map; not changed.
    affine : ndarray, 4x4
        Voxel ``(x, y, z)`` to RAS mm.

    Returns
    -------
    tuple of Lesion
        Largest first; of equal size, the one that is found first (feet to head) first.
    """
    check_labels(labels)
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ArgumentError(f"affine: got {affine.tolist()}; expected an invertible 4x4 matrix to mm")
    box = bounding_box(labels, 2)
    origin = np.array([box[2].start, box[1].start, box[0].start])
    tumours = Components(labels[box], is_tumour, 26)
    n = tumours.count + 1
    voxels, sums = np.zeros(n), np.zeros((n, 3))
    first, last, longest = np.full(n, labels.shape[0]), np.zeros(n, int), np.zeros(n)
    for runs in tumours.runs():
        size = runs.last - runs.first + 1
        voxels += np.bincount(runs.component, size, n)
        for axis, centre in enumerate(((runs.first + runs.last) / 2, runs.y, runs.z)):
            sums[:, axis] += np.bincount(runs.component, size * centre, n)
        np.minimum.at(first, runs.component, runs.z)
        np.maximum.at(last, runs.component, runs.z)
        _longest_in_plane(runs, affine, longest)
    ml = voxel_ml(affine)
    found = []
    for i in sorted(range(1, n), key=lambda i: -voxels[i]):
        x, y, z = (affine[:3, :3] @ (sums[i] / voxels[i] + origin) + affine[:3, 3]).tolist()
        slices = (int(first[i] + origin[2]), int(last[i] + origin[2]))
        found.append(Lesion(float(voxels[i]) * ml, int(voxels[i]), (x, y, z), slices, float(longest[i])))
    return tuple(found)


def _longest_in_plane(runs: Runs, affine: Array, longest: Array) -> None:
    """Raise ``longest[component]`` to the largest in-plane distance in mm between two voxel centres."""
    if not runs.z.size:
        return
    order = np.argsort(runs.component, kind="stable")  # now by component, slice, row
    component, z, y = runs.component[order], runs.z[order], runs.y[order]
    # The two voxels farthest apart are corners of the convex hull, so the ends of every row are enough.
    row = stretches(component, z, y)
    left = np.minimum.reduceat(runs.first[order], row)
    right = np.maximum.reduceat(runs.last[order], row)
    component, z, y = component[row], z[row], y[row]
    # u, v: orthogonal coordinates in the plane, in mm, also when the affine shears it.
    along_x, along_y = affine[:3, 0], affine[:3, 1]
    mm = math.sqrt(along_x @ along_x)
    shear = float(along_x @ along_y) / mm
    v = y * math.sqrt(max(0.0, float(along_y @ along_y) - shear * shear))
    u = np.stack([left, right]) * mm + y * shear
    group = stretches(component, z)
    width = np.maximum.reduceat(u.max(axis=0), group) - np.minimum.reduceat(u.min(axis=0), group)
    height = np.maximum.reduceat(v, group) - np.minimum.reduceat(v, group)
    bound = np.hypot(width, height)
    one_row = height == 0
    np.maximum.at(longest, component[group][one_row], bound[one_row])
    ends = np.append(group[1:], len(v))
    for g in np.argsort(-bound, kind="stable").tolist():  # widest first: most of the rest need no look
        owner = component[group[g]]
        if bound[g] > longest[owner]:
            rows = slice(group[g], ends[g])
            points = np.concatenate([u[0, rows], u[1, rows]]) + 1j * np.tile(v[rows], 2)
            for point in range(0, len(points), 256):
                farthest = float(np.abs(points[point : point + 256, None] - points).max())
                longest[owner] = max(longest[owner], farthest)
