"""Lay the liver of a label map on that of another, by a shift alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trtseg.labels.components import Array, bounding_box, count_voxels
from trtseg.volume import voxel_ml

_CELL_MM = 4.0  # of the grid on which the livers are laid on each other
_STEPS_MM = (2.0, 1.0, 0.5, 0.25)  # by which the place is found from there on,
_SAMPLE = 50_000  # with so many voxels of the later liver


@dataclass(frozen=True)
class Placed:
    """A label map, uint8 ``[Z, Y, X]``, and the affine that says where it lies: voxel ``(x, y, z)`` to RAS mm."""

    labels: Array
    affine: Array

    def ml(self, which: int) -> float:
        """Volume of the liver (0) or of the tumours (1)."""
        return count_voxels(self.labels)[which] * voxel_ml(self.affine)

    def places(self, numbers: Array) -> Array:
        """Places of all voxels of a mask, RAS mm, [n, 3]."""
        box = bounding_box(numbers)
        z, y, x = np.nonzero(numbers[box])
        index = np.stack([x + box[2].start, y + box[1].start, z + box[0].start], axis=1)
        return index.astype(float) @ self.affine[:3, :3].T + self.affine[:3, 3]


def find_shift(before: Placed, after: Placed) -> tuple[Array, float]:
    """Find the shift in RAS mm of the later liver with the largest overlap, and the Dice of the livers then."""
    cell = max(_CELL_MM, *(float(np.linalg.norm(s.affine[:3, i])) for s in (before, after) for i in range(3)))
    places = [scan.places(scan.labels) for scan in (before, after)]
    grids, corners = [], []
    for scan, at in zip((before, after), places, strict=True):
        corner = np.floor(at.min(axis=0) / cell) - 1
        index = np.floor(at / cell - corner).astype(int)
        shape = index.max(axis=0) + 2
        count = np.bincount(np.ravel_multi_index(tuple(index.T), shape), minlength=int(np.prod(shape)))
        full = cell**3 / (1000 * voxel_ml(scan.affine))
        grids.append(np.minimum(count.reshape(shape) / full, 1.0))
        corners.append(corner)
    size = [a + b for a, b in zip(grids[0].shape, grids[1].shape, strict=True)]
    spectra = [np.fft.rfftn(grid, size, axes=(0, 1, 2)) for grid in grids]
    overlap = np.fft.irfftn(spectra[0] * np.conj(spectra[1]), size, axes=(0, 1, 2))
    peak = np.unravel_index(int(overlap.argmax()), overlap.shape)
    best = float(overlap[peak])
    offset = np.array([n - size[a] if n > grids[0].shape[a] else n for a, n in enumerate(peak)], float)
    for axis, step in enumerate(np.eye(3, dtype=int)):  # between the cells: the top of a parabola
        low, high = (float(overlap[tuple((np.array(peak) + by * step) % size)]) for by in (-1, 1))
        if low + high < 2 * best:
            offset[axis] += (low - high) / (2 * (low + high - 2 * best))
    shift = _refined(before, places[1], (offset + corners[0] - corners[1]) * cell)
    under = look_up(before, before.labels, places[1] + shift) > 0
    shared = int(np.count_nonzero(under)) * voxel_ml(after.affine)
    return shift, min(2 * shared / (before.ml(0) + after.ml(0)), 1.0)


def _refined(before: Placed, places: Array, shift: Array) -> Array:
    """Move places of the later liver on in ever smaller steps, as long as more of them lie in the earlier."""
    places = places[:: max(1, len(places) // _SAMPLE)]

    def shared(by: Array) -> int:
        return int(np.count_nonzero(look_up(before, before.labels, places + by)))

    best = shared(shift)
    for step in _STEPS_MM:
        ways = [sign * step * axis for axis in np.eye(3) for sign in (1, -1)]
        while found := next(((n, shift + way) for way in ways if (n := shared(shift + way)) > best), None):
            best, shift = found
    return shift


def look_up(scan: Placed, values: Array, places: Array) -> Array:
    """Values on the grid of a scan at the voxels next to places, RAS mm; 0 outside the grid."""
    to_index = np.linalg.inv(scan.affine)
    x, y, z = np.rint(places @ to_index[:3, :3].T + to_index[:3, 3]).astype(int).T
    depth, rows, columns = values.shape
    inside = (z >= 0) & (y >= 0) & (x >= 0) & (z < depth) & (y < rows) & (x < columns)
    found = np.zeros(len(places), values.dtype)
    found[inside] = values[z[inside], y[inside], x[inside]]
    return found
