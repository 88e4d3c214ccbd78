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
