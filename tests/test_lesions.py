"""The short axis of a lesion and the numbers of lesions: by hand, and against SciPy's convex hull."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, spatial

from trtseg.labels.lesions import lesions, number_lesions


def labels_of(*slices: str) -> np.ndarray:
    """Labels [Z, Y, X] from slices written as rows that are separated by blanks."""
    return np.array([[[int(c) for c in row] for row in s.split()] for s in slices], np.uint8)


@pytest.mark.parametrize(
    ("slices", "diameter", "short", "at"),
    [
        (["0020 0020 2222 0020", "1000 0000 0000 0000"], 6**2, 6**2, 0),  # a cross
        (["2", "2"], 0, 0, 0),
        (["22222", "22222"], 8**2, 0, 0),  # the lowest of equal slices
        (["20 02", "00 00"], 8, 0, 0),
        (["000 020 000", "222 222 222"], 4**2 + 4**2, 4**2 + 4**2, 1),
        (["2222222 0000200 0002000"], 12**2, 4**2, 0),
    ],
)
def test_diameters_by_hand(slices, diameter, short, at):
    (lesion,) = lesions(labels_of(*slices), np.diag([2, 2, 5, 1.0]))  # pixels of 2 mm
    assert lesion.diameter_mm**2 == pytest.approx(diameter)
    assert lesion.short_mm**2 == pytest.approx(short)
    assert (lesion.diameter_slice, type(lesion.diameter_slice)) == (at, int)


@pytest.mark.parametrize("seed", range(12))
def test_equal_diameters_do_not_depend_on_how_the_header_rounds(seed):
    """Of the pairs that are farthest apart that with the longest perpendicular counts, then the lowest slice."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((3, 8, 8)), (0.5, 1, 1))
    labels = (noise > 0).astype(np.uint8) * 2
    labels[:, 3:5, 3:5] = 2
    labels[number_lesions(labels, 255) != 1] = 0
    longest, best = 0, (0.0, 0)
    for z, plane in enumerate(labels):
        points = np.argwhere(plane == 2).astype(float)
        squared = ((points[:, None] - points) ** 2).sum(axis=2)  # of whole numbers, so exact
        for i, j in np.argwhere(squared == squared.max()):
            short = round(chord(points, points[j] - points[i]), 9)
            if squared[i, j] > longest or (squared[i, j] == longest and short > best[0]):
                longest, best = squared[i, j], (short, z)
    turn = spatial.transform.Rotation.from_euler("xyz", [8, 5, -6], degrees=True).as_matrix()
    for mm in (0.8, np.float64(np.float32(0.8)), 0.7265625, 0.57):
        for matrix in (np.eye(3), turn, turn.astype(np.float32).astype(float)):
            affine = np.eye(4)
            affine[:3, :3] = matrix @ np.diag([mm, mm, 3.0])
            for mirrored in (labels, labels[:, :, ::-1], labels[:, ::-1]):
                (lesion,) = lesions(np.ascontiguousarray(mirrored), affine)
                assert lesion.diameter_mm == pytest.approx(mm * longest**0.5, rel=1e-5)
                assert lesion.short_mm == pytest.approx(mm * best[0], rel=1e-5)
                assert lesion.diameter_slice == best[1]


def test_of_equal_lines_the_lowest_slice_counts_however_the_header_rounds():
    """The short axis of a line is 0, but for what rounding leaves of it, which is not the same on each slice."""
    turn = spatial.transform.Rotation.from_euler("xyz", [8, 5, -6], degrees=True).as_matrix()
    for n in (5, 12, 33):
        labels = np.zeros((5, n + 3, n + 3), np.uint8)
        for z in range(1, 5):
            labels[z, np.arange(n) + 1 + z % 2, np.arange(n) + 1 + z // 2 % 2] = 2
        for mm in (0.8, 0.7265625, 0.57):
            for matrix in (np.eye(3), turn, turn.astype(np.float32).astype(float)):
                affine = np.eye(4)
                affine[:3, :3] = matrix @ np.diag([mm, mm, 3.0])
                for mirrored in (labels, labels[:, :, ::-1], labels[:, ::-1]):
                    (lesion,) = lesions(np.ascontiguousarray(mirrored), affine)
                    assert lesion.short_mm == pytest.approx(0, abs=1e-9)
                    assert lesion.diameter_slice == 1


def chord(points: np.ndarray, along: np.ndarray) -> float:
    """Cut the convex hull of points [n, 2] across ``along`` through each of them; the longest of these cuts."""
    along = along / np.linalg.norm(along)
    t, s = points @ along, points @ [-along[1], along[0]]
    longest = 0.0
    for at in t:  # an end of a cut lies on the line between two of the points
        ends = [
            si + (at - ti) * (sj - si) / (tj - ti) if abs(tj - ti) > 1e-9 else si
            for ti, si in zip(t, s, strict=True)
            for tj, sj in zip(t, s, strict=True)
            if min(ti, tj) - 1e-9 <= at <= max(ti, tj) + 1e-9
        ]
        longest = max(longest, max(ends) - min(ends))
    return longest


def short_axis(points: np.ndarray) -> float:
    """Cut the convex hull of points [n, 2], in general position, across their diameter, at each of its corners."""
    apart = np.linalg.norm(points[:, None] - points, axis=2)
    i, j = np.unravel_index(apart.argmax(), apart.shape)
    if np.linalg.matrix_rank(points - points[0], 1e-9) < 2:
        return 0.0
    across = (points[j] - points[i])[::-1] / apart[i, j] * (-1, 1)
    hull = spatial.ConvexHull(points)
    longest = 0.0
    for corner in points[hull.vertices]:  # where the line through it enters and leaves the hull
        slope = hull.equations[:, :2] @ across
        room = -hull.equations[:, :2] @ corner - hull.equations[:, 2]
        longest = max(longest, (room / slope)[slope > 1e-9].min() - (room / slope)[slope < -1e-9].max())
    return longest


@pytest.mark.parametrize("seed", range(20))
def test_short_axis_and_numbers_of_random_lesions(seed):
    rng = np.random.default_rng(seed)
    labels = (ndimage.gaussian_filter(rng.standard_normal((6, 20, 24)), 1.3) > 0.12).astype(np.uint8) * 2
    affine = np.diag([*rng.uniform(0.5, 2, 3), 1])
    affine[:2, :2] @= [[1, 0.3], [0, 1]]  # skew
    found = lesions(labels, affine)
    numbers = number_lesions(labels, 255)
    assert numbers.max() == len(found) > 3
    for n, lesion in enumerate(found, 1):
        z, y, x = np.nonzero(numbers == n)
        assert (len(z), z.min(), z.max()) == (lesion.voxels, *lesion.slices)
        here = z == lesion.diameter_slice
        points = np.stack([x[here], y[here]], axis=1) @ affine[:2, :2].T
        apart = np.linalg.norm(points[:, None] - points, axis=2)
        assert apart.max() == pytest.approx(lesion.diameter_mm, abs=1e-9)
        assert lesion.short_mm == pytest.approx(short_axis(points), abs=1e-6)
    assert np.array_equal(number_lesions(labels, 2), numbers.clip(max=2))
