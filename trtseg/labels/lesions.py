"""Measure the lesions of a label map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trtseg.errors import ArgumentError
from trtseg.labels.components import Array, Components, Runs, bounding_box, check_labels, is_tumour, stretches
from trtseg.labels.probability import TumourLogits
from trtseg.volume import voxel_ml

Line = tuple[tuple[float, float], tuple[float, float]]

# Lengths whose ratio is above this are equal: a header of float32, or of six decimals, rounds by less. On square pixels
# different pairs of voxels differ by more, up to 700 pixels apart; others may be of lengths that nobody tells apart.
_EQUAL = 1 - 1e-6


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
    short_mm : float
        Longest diameter perpendicular to that one, on the same slice: the longest chord, at a right angle to it, of the
        convex hull of the lesion's voxel centres. Where several pairs of voxels are equally far apart, it is that with
        the longest perpendicular that counts, and of these the one on the lowest slice.
    diameter_slice : int
        The slice of both diameters.
    axes : tuple
        Both diameters as lines on that slice, to draw them: two ends ``(y, x)`` of the longest, two of the other, in
        voxels of the canonical grid.
    probability : float or None
        Mean over the voxels of the tumour net's probability, 0 where it did not run; None if that is not known. It says
        how sure the net is that there is a tumour, and nothing of whether the tumour is malignant.
    """

    volume_ml: float
    voxels: int
    centroid: tuple[float, float, float]
    slices: tuple[int, int]
    diameter_mm: float
    short_mm: float
    diameter_slice: int
    axes: tuple[Line, Line] = (((0.0, 0.0), (0.0, 0.0)),) * 2
    probability: float | None = None


@dataclass(frozen=True)
class _Pair:
    """Two voxels of a component on one slice that are farther apart than others."""

    mm: float
    z: int
    # Ends of the rows on that slice, mm + mm * 1j.
    points: Array
    ends: tuple[int, int]  # indices of the two points

    def lines(self) -> tuple[tuple[complex, complex], tuple[complex, complex]]:
        """Ends of the diameter, and of the longest perpendicular to it."""
        i, j = self.ends
        long = complex(self.points[i]), complex(self.points[j])
        return long, _across(self.points, i, j) if self.mm > 0 else long

    def short(self) -> float:
        """Length of the longest perpendicular."""
        _, (start, end) = self.lines()
        return abs(end - start)


class _Longest:
    """The longest diameters of a component that have been found so far; many are equal, since voxels lie on a grid."""

    def __init__(self) -> None:
        self.mm = 0.0
        self._pairs: list[_Pair] = []

    def reaches(self, mm: float) -> bool:
        """Whether so long a diameter is at least equal to the longest."""
        return mm >= self.mm * _EQUAL

    def add(self, pair: _Pair) -> None:
        """Take a diameter that `reaches`."""
        self.mm = max(self.mm, pair.mm)
        self._pairs.append(pair)

    def widest(self) -> _Pair:
        """Of equal diameters that with the longest perpendicular, of these the lowest."""
        equal = [pair for pair in self._pairs if self.reaches(pair.mm)]
        if len(equal) == 1:
            return equal[0]
        known: dict[tuple[bytes, tuple[int, int]], float] = {}  # slices may be alike, as those of a cylinder
        shorts = []
        for pair in equal:
            key = pair.points.tobytes(), pair.ends
            shorts.append(known[key] if key in known else known.setdefault(key, pair.short()))
        # A short axis is a difference of numbers as large as the long one, and rounds by as much: 0 is rarely 0.
        least = max(shorts) - self.mm * (1 - _EQUAL)
        widest = (pair for pair, mm in zip(equal, shorts, strict=True) if mm >= least)
        return min(widest, key=lambda pair: (pair.z, pair.ends))


def lesions(labels: Array, affine: Array, logits: TumourLogits | None = None) -> tuple[Lesion, ...]:
    """Measure every 26-connected component of label 2.

    Parameters
    ----------
    labels : ndarray of uint8, [Z, Y, X]
        Label map; not changed.
    affine : ndarray, 4x4
        Voxel ``(x, y, z)`` to RAS mm.
    logits : TumourLogits, optional
        What the tumour net said, for the probabilities.

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
    tumours = Components(labels[box], is_tumour)
    n = tumours.count + 1
    voxels, sums, chances = np.zeros(n), np.zeros((n, 3)), np.zeros(n)
    first, last = np.full(n, labels.shape[0]), np.zeros(n, int)
    longest = [_Longest() for _ in range(n)]
    for runs in tumours.runs.pieces():
        size = runs.lengths
        voxels += np.bincount(runs.component, size, n)
        for axis, centre in enumerate(((runs.first + runs.last) / 2, runs.y, runs.z)):
            sums[:, axis] += np.bincount(runs.component, size * centre, n)
        np.minimum.at(first, runs.component, runs.z)
        np.maximum.at(last, runs.component, runs.z)
        _longest_in_plane(runs, affine, longest)
        if logits is not None and logits.planes:
            component, *place = runs.voxels()
            z, y, x = (at + first for at, first in zip(place, origin[::-1], strict=True))
            chances += np.bincount(component, logits.probability(z, y, x), n)
    ml = voxel_ml(affine)
    found = []
    for i in sorted(range(1, n), key=lambda i: -voxels[i]):
        x, y, z = (affine[:3, :3] @ (sums[i] / voxels[i] + origin) + affine[:3, 3]).tolist()
        slices = (int(first[i] + origin[2]), int(last[i] + origin[2]))
        widest = longest[i].widest()
        long, short = widest.lines()
        found.append(
            Lesion(
                volume_ml=float(voxels[i]) * ml,
                voxels=int(voxels[i]),
                centroid=(x, y, z),
                slices=slices,
                diameter_mm=widest.mm,
                short_mm=abs(short[1] - short[0]),
                diameter_slice=int(widest.z + origin[2]),
                axes=(_voxels(long, affine, origin), _voxels(short, affine, origin)),
                probability=float(chances[i] / voxels[i]) if logits is not None and logits.planes else None,
            )
        )
    return tuple(found)


def number_lesions(labels: Array, most: int) -> Array:
    """Number the voxels of every lesion: 0 outside, then from 1 in the order of `lesions`.

    Parameters
    ----------
    labels : ndarray of uint8, [Z, Y, X]
        Label map; not changed.
    most : int
        Largest number, at most 255: all smaller lesions get it too.

    Returns
    -------
    ndarray of uint8, [Z, Y, X]
    """
    box = bounding_box(labels, 2)
    tumours = Components(labels[box], is_tumour)
    sizes = tumours.sizes()
    number = np.zeros(tumours.count + 1, np.uint8)
    number[sorted(range(1, len(sizes)), key=lambda i: -sizes[i])] = np.arange(1, len(sizes)).clip(max=most)
    result = np.zeros(labels.shape, np.uint8)
    for runs in tumours.runs.pieces():
        component, *place = runs.voxels()
        z, y, x = (at + part.start for at, part in zip(place, box, strict=True))
        np.put(result, np.ravel_multi_index((z, y, x), labels.shape), number[component])
    return result


def _longest_in_plane(runs: Runs, affine: Array, longest: list[_Longest]) -> None:
    """Raise ``longest[component]`` to the largest in-plane distance in mm between two voxel centres."""
    order = np.argsort(runs.component, kind="stable")  # now by component, slice, row
    component, z, y = runs.component[order], runs.z[order], runs.y[order]
    # The two voxels farthest apart are corners of the convex hull, so the ends of every row are enough.
    row = stretches(component, z, y)
    left = np.minimum.reduceat(runs.first[order], row)
    right = np.maximum.reduceat(runs.last[order], row)
    component, z, y = component[row], z[row], y[row]
    # u, v: orthogonal coordinates in the plane, in mm, also when the affine shears it.
    step, down = _steps(affine)
    v = y * down.imag
    u = np.stack([left, right]) * step + y * down.real
    group = stretches(component, z)
    width = np.maximum.reduceat(u.max(axis=0), group) - np.minimum.reduceat(u.min(axis=0), group)
    height = np.maximum.reduceat(v, group) - np.minimum.reduceat(v, group)
    bound = np.hypot(width, height)
    ends = np.append(group[1:], len(v))
    for g in np.argsort(-bound, kind="stable").tolist():  # widest first: most of the rest need no look
        best = longest[component[group[g]]]
        if not best.reaches(float(bound[g])):
            continue
        at = int(z[group[g]])
        if height[g] == 0:
            row = group[g]
            best.add(_Pair(float(bound[g]), at, u[:, row] + 1j * v[row], (0, 1)))
            continue
        rows = slice(group[g], ends[g])
        points = np.concatenate([u[0, rows], u[1, rows]]) + 1j * np.tile(v[rows], 2)
        for point in range(0, len(points), 256):
            apart = np.abs(points[point : point + 256, None] - points)
            longest_here = float(apart.max())
            if not best.reaches(longest_here):
                continue
            for i, j in np.argwhere(apart >= longest_here * _EQUAL).tolist():
                if point + i < j:
                    best.add(_Pair(float(apart[i, j]), at, points, (point + i, j)))


def _steps(affine: Array) -> tuple[float, complex]:
    """Step in mm from column to column, and from row to row, on orthogonal axes of which the first is the row's."""
    along_x, along_y = affine[:3, 0], affine[:3, 1]
    mm = math.sqrt(along_x @ along_x)
    shear = float(along_x @ along_y) / mm
    return mm, complex(shear, math.sqrt(max(0.0, float(along_y @ along_y) - shear * shear)))


def _voxels(ends: tuple[complex, complex], affine: Array, origin: Array) -> Line:
    """Turn two points in mm into (row, column)."""
    step, down = _steps(affine)
    rows = [end.imag / down.imag for end in ends]
    columns = [(end.real - y * down.real) / step for end, y in zip(ends, rows, strict=True)]
    (a, b), (c, d) = (
        (float(y + origin[1]), float(x + origin[0])) for y, x in zip(rows, columns, strict=True)
    )
    return (a, b), (c, d)


def _across(points: Array, i: int, j: int) -> tuple[complex, complex]:
    """Ends of the longest chord of the convex hull of complex ``points``, perpendicular to the line from i to j."""
    along = (points[j] - points[i]) / abs(points[j] - points[i])
    turned = points * np.conj(along)
    order = np.lexsort((turned.imag, turned.real))
    corners = [(float(p.real), float(p.imag)) for p in turned[order]]
    sides = []
    for sign in (1, -1):  # below and above
        side: list[tuple[float, float]] = []
        for t, s in corners:
            s *= sign
            while len(side) > 1 and _turns_right(side[-2], side[-1], (t, s)):
                side.pop()
            side.append((t, s))
        sides.append(np.array(side))
    below, above = sides
    at = np.concatenate([below[:, 0], above[:, 0]])  # the chord is longest at a corner
    high, low = -np.interp(at, above[:, 0], above[:, 1]), np.interp(at, below[:, 0], below[:, 1])
    n = int(np.argmax(high - low))
    return complex((at[n] + 1j * low[n]) * along), complex((at[n] + 1j * max(low[n], high[n])) * along)


def _turns_right(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) <= 0
