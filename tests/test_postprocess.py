"""Post-processing: by hand on small arrays, and against SciPy on random ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from trtseg.errors import ArgumentError
from trtseg.labels import components as module
from trtseg.labels.components import bounding_box, count_voxels
from trtseg.labels.lesions import lesions
from trtseg.labels.postprocess import PostProcess, postprocess

OFF = PostProcess(median_mm=0, largest_liver=False, fill_holes=False, min_tumour_ml=0)
LARGEST = replace(OFF, largest_liver=True)
HOLES = replace(OFF, fill_holes=True)


def median(mm: float) -> PostProcess:
    return replace(OFF, median_mm=mm)


def specks(min_ml: float) -> PostProcess:
    return replace(OFF, min_tumour_ml=min_ml)


def volume(*slices: str) -> np.ndarray:
    """Labels [Z, Y, X] from slices written as rows that are separated by blanks."""
    return np.array([[[int(c) for c in row] for row in s.split()] for s in slices], np.uint8)


@pytest.fixture(params=[1 << 23, 600, 1], ids=["one slab", "some slabs", "a slab a slice"])
def slab_voxels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLAB_VOXELS", request.param)
    monkeypatch.setattr(module, "_PIECE_VOXELS", request.param)


pytestmark = pytest.mark.usefixtures("slab_voxels")


@pytest.mark.parametrize(
    ("mm", "slice_mm", "slices"), [(4, 5, 1), (4, 4, 3), (0.3, 0.1, 7), (4, 1.25, 7), (1e6, 1e-6, 255)]
)
def test_the_median_reaches_as_far_as_was_said(mm: float, slice_mm: float, slices: int) -> None:
    labels = np.ones((20, 2, 2), np.uint8)
    report = postprocess(labels, 1, slice_mm, median(mm))
    assert report["median_mm"] == {"slices": slices, "changed_voxels": 0}


@pytest.mark.parametrize("seed", range(40))
def test_the_median_equals_scipy(seed: int) -> None:
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    labels = blobs(rng)
    labels[: rng.integers(4)] = 0
    if seed % 3 == 0:
        labels = np.asfortranarray(labels)[::-1]
    before, reach = labels.copy(), int(rng.integers(1, 5))
    expected = ndimage.median_filter(labels, (2 * reach + 1, 1, 1), mode="nearest")
    report = postprocess(labels, 1, 1, median(reach))
    assert np.array_equal(labels, expected)
    assert report["median_mm"]["changed_voxels"] == np.count_nonzero(expected != before)


def test_largest_liver_keeps_one_component_and_removes_the_tumour_of_the_others() -> None:
    labels = volume("1100000 1100012 0000000", "0000000 0000000 0010000")
    # (z 1, y 2, x 2) touches (0, 1, 1) by a corner only: 26-connected
    report = postprocess(labels, 0.5, 5, LARGEST)
    assert np.array_equal(labels, volume("1100000 1100000 0000000", "0000000 0000000 0010000"))
    assert report == {
        "median_mm": "off",
        "largest_liver": {"components": 2, "removed_components": 1, "removed_voxels": 2, "removed_ml": 1.0},
        "fill_holes": "off",
        "min_tumour_ml": "off",
        "liver_voxels": 5,
        "tumour_voxels": 0,
    }


def test_largest_liver_of_equal_ones_is_the_lowest() -> None:
    labels = volume("0000 0011", "0000 0000", "1100 0000")
    postprocess(labels, 1, 5, LARGEST)
    assert np.array_equal(labels, volume("0000 0011", "0000 0000", "0000 0000"))


def test_fill_holes_fills_what_is_enclosed_in_3d() -> None:
    ring = "11111 10001 10201 10001 11111"
    labels = volume("11111 " * 5, ring, "11111 " * 5)
    report = postprocess(labels, 0.1, 5, HOLES)
    assert np.array_equal(labels, volume("11111 " * 5, "11111 11111 11211 11111 11111", "11111 " * 5))
    assert report["fill_holes"] == {"filled_holes": 1, "filled_voxels": 8, "filled_ml": pytest.approx(0.8)}
    assert (report["liver_voxels"], report["tumour_voxels"]) == (75, 1)


def test_small_tumours_become_liver() -> None:
    labels = volume("21122 11122 21111", "11111 11111 12111")  # 1 voxel, 4 voxels, 2 voxels (by a corner)
    report = postprocess(labels, 0.01, 5, specks(0.02))
    assert np.array_equal(labels, volume("11122 11122 21111", "11111 11111 12111"))
    assert report["min_tumour_ml"] == {
        "limit_ml": 0.02,
        "components": 3,
        "relabelled_components": 1,
        "relabelled_voxels": 1,
        "relabelled_ml": 0.01,
    }
    assert (report["liver_voxels"], report["tumour_voxels"]) == (30, 6)


@pytest.mark.parametrize("voxel_ml", [0.1, 0.001, 0.7, 1 / 3])
def test_exactly_the_limit_stays(voxel_ml: float) -> None:
    labels = np.full((1, 1, 3), 2, np.uint8)
    postprocess(labels, voxel_ml, 5, specks(float(f"{3 * voxel_ml:.12g}")))
    assert (labels == 2).all()
    postprocess(labels, voxel_ml, 5, specks(3.001 * voxel_ml))
    assert (labels == 1).all()


def test_the_steps_work_on_each_others_result() -> None:
    labels = np.zeros((7, 7, 12), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[2:5, 2:5, 2:5] = 0
    labels[3, 3, 3] = 2  # a tumour that floats in a cavity: not the liver's component, so its place is filled
    labels[3, 3, 9] = 2
    report = postprocess(labels, 1, 5, PostProcess(min_tumour_ml=0.5))
    assert count_voxels(labels) == (125, 0)
    assert report["largest_liver"]["removed_voxels"] == 2
    assert report["fill_holes"]["filled_voxels"] == 27


@pytest.mark.parametrize("shape", [(0, 4, 4), (1, 1, 1), (3, 4, 5)])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_uniform_volumes(shape: tuple[int, int, int], label: int) -> None:
    labels = np.full(shape, label, np.uint8)
    report = postprocess(labels, 1, 5, PostProcess())
    size = math.prod(shape)
    assert (labels == label).all()
    assert report["liver_voxels"] == size * (label > 0)
    assert report["tumour_voxels"] == size * (label == 2)
    assert len(lesions(labels, np.eye(4))) == (1 if size and label == 2 else 0)
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_line_of_voxels(axis: int) -> None:
    labels = np.moveaxis(np.array([1, 0, 2, 2, 0, 1, 0], np.uint8).reshape(-1, 1, 1), 0, axis)
    postprocess(labels, 1, 5, LARGEST)
    assert labels.ravel().tolist() == [0, 0, 2, 2, 0, 0, 0]


def blobs(rng: np.random.Generator) -> np.ndarray:
    from scipy import ndimage

    shape = tuple(rng.integers(1, 16, 3))
    field = ndimage.gaussian_filter(rng.standard_normal(shape), rng.choice([0, 0.6, 1]))
    labels = (field > rng.normal() * 0.3).astype(np.uint8)
    labels[(rng.random(shape) < rng.random() * 0.5) & (labels > 0)] = 2
    return labels


def oracle(labels: np.ndarray, voxel_ml: float, steps: PostProcess) -> np.ndarray:
    from scipy import ndimage

    labels = labels.copy()
    if steps.largest_liver and labels.any():
        parts, _ = ndimage.label(labels > 0, np.ones((3, 3, 3)))
        labels[parts != np.bincount(parts.ravel())[1:].argmax() + 1] = 0
    if steps.fill_holes:
        labels[ndimage.binary_fill_holes(labels > 0) & (labels == 0)] = 1
    parts, _ = ndimage.label(labels == 2, np.ones((3, 3, 3)))
    small = np.bincount(parts.ravel()) * voxel_ml < steps.min_tumour_ml
    small[0] = False
    labels[small[parts]] = 1
    return labels


@pytest.mark.parametrize("seed", range(60))
def test_equals_scipy(seed: int) -> None:
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    labels = blobs(rng)
    if seed % 3 == 0:  # strides of any order
        labels = np.asfortranarray(labels)[::-1]
    steps = PostProcess(
        0, bool(rng.integers(2)), bool(rng.integers(2)), float(rng.choice([0, 0.0035, 0.0105]))
    )
    before, expected = labels.copy(), oracle(labels, 0.001, steps)
    report = postprocess(labels, 0.001, 5, steps)
    assert np.array_equal(labels, expected)
    assert (report["liver_voxels"], report["tumour_voxels"]) == count_voxels(expected)
    if steps.fill_holes and not steps.largest_liver:
        filled = (expected > 0) & (before == 0)
        assert report["fill_holes"]["filled_holes"] == ndimage.label(filled)[1]  # by faces
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("seed", range(60))
def test_lesions_equal_a_direct_measurement(seed: int) -> None:
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    labels = blobs(rng)
    affine = np.eye(4)
    affine[:3] = rng.standard_normal((3, 4))  # oblique and sheared
    parts, n = ndimage.label(labels == 2, np.ones((3, 3, 3)))
    expected = []
    for i in range(1, n + 1):
        z, y, x = np.nonzero(parts == i)
        points = affine[:3, :3] @ np.stack([x, y, z]) + affine[:3, 3:]
        longest = 0.0
        for level in np.unique(z):
            here = points[:, z == level]
            longest = max(longest, np.linalg.norm(here[:, :, None] - here[:, None], axis=0).max())
        voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
        expected.append((len(z), len(z) * voxel_ml, points.mean(axis=1), (z.min(), z.max()), longest))
    expected.sort(key=lambda lesion: -lesion[0])
    found = lesions(labels, affine)
    assert [lesion.voxels for lesion in found] == [e[0] for e in expected]
    for lesion, (_, ml, centroid, slices, longest) in zip(found, expected, strict=True):
        assert lesion.volume_ml == pytest.approx(ml)
        assert lesion.centroid == pytest.approx(tuple(centroid))
        assert lesion.slices == slices
        assert lesion.diameter_mm == pytest.approx(longest, abs=1e-9)


def test_bounding_box() -> None:
    labels = np.zeros((5, 6, 7), np.uint8)
    assert bounding_box(labels) == (slice(0, 0),) * 3
    labels[1, 2, 3] = labels[3, 2, 5] = 1
    labels[2, 4, 4] = 2
    assert bounding_box(labels) == (slice(1, 4), slice(2, 5), slice(3, 6))
    assert bounding_box(labels, 2) == (slice(2, 3), slice(4, 5), slice(4, 5))


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((2, 2, 2), np.int16),
        np.zeros((2, 2, 2), bool),
        np.zeros((2, 2), np.uint8),
        np.full((2, 2, 2), 3, np.uint8),
        [[[0, 1]]],
    ],
    ids=["int16", "bool", "2-D", "label 3", "a list"],
)
def test_bad_labels(labels: object) -> None:
    with pytest.raises(ArgumentError, match="labels: got"):
        postprocess(labels, 1, 5, OFF)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="labels: got"):
        lesions(labels, np.eye(4))  # type: ignore[arg-type]


def test_read_only_labels_are_refused_for_changing_only() -> None:
    labels = np.full((2, 2, 2), 2, np.uint8)
    labels.flags.writeable = False
    with pytest.raises(ArgumentError, match="read-only"):
        postprocess(labels, 1, 5, OFF)
    assert lesions(labels, np.eye(4))[0].voxels == 8


@pytest.mark.parametrize("size", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["voxel_ml", "slice_mm"])
def test_bad_voxel_size(name: str, size: float) -> None:
    sizes = {"voxel_ml": 1.0, "slice_mm": 1.0, name: size}
    with pytest.raises(ArgumentError, match=f"{name}: got"):
        postprocess(np.zeros((1, 1, 1), np.uint8), **sizes, steps=OFF)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (n, x)
            for n in ("median_mm", "min_tumour_ml")
            for x in (-0.1, math.nan, math.inf, 10**400, "1", True)
        ),
        ("fill_holes", "no"),
    ],
)
def test_bad_steps(name: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=f"{name}: got"):
        PostProcess(**{name: value})  # type: ignore[arg-type]


def test_equal_steps_have_equal_records() -> None:
    steps = [vars(PostProcess(median_mm=mm)) for mm in (4, 4.0, np.float32(4))]
    assert [json.dumps(step) for step in steps] == [json.dumps(steps[1])] * 3


@pytest.mark.parametrize("affine", [np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_bad_affine(affine: np.ndarray) -> None:
    with pytest.raises(ArgumentError, match="affine: got"):
        lesions(np.zeros((1, 1, 1), np.uint8), affine)
