"""What a page holds of a CT: within its budget, and labels that come back as they were."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from trtseg.labels.lesions import lesions
from trtseg.report import packing
from trtseg.report.packing import CURVE, pack, pack_labels, shrink
from trtseg.volume import Geometry, Volume


def unpacked(text, count):
    """The labels of `pack_labels`, byte by byte."""
    labels, number, digit = [], 0, 0
    for byte in base64.b64decode(text):
        number |= (byte & 127) << (7 * digit)
        digit += 1
        if byte < 128:
            labels += [number % 3] * (number // 3)
            number = digit = 0
    assert len(labels) == count
    return np.array(labels, np.uint8)


@pytest.mark.parametrize("shape", [(0, 0, 0), (1, 1, 1), (3, 5, 7), (1, 600, 700)])
def test_labels_come_back(shape):
    rng = np.random.default_rng(0)
    for labels in (rng.integers(0, 3, shape).astype(np.uint8), np.full(shape, 2, np.uint8)):
        assert np.array_equal(unpacked(pack_labels(labels), labels.size), labels.reshape(-1))


def test_runs_come_back_whose_numbers_fill_their_bytes_or_just_need_another():
    lengths = (42, 43, 60, 85, 86, 5461, 5462, 8000, 10922, 10923, 699050, 699051, 800000)
    for first in range(3):
        labels = np.repeat((first + np.arange(len(lengths))) % 3, lengths).astype(np.uint8)
        assert np.array_equal(unpacked(pack_labels(labels), labels.size), labels)


def test_no_label_goes_lost_where_voxels_are_joined():
    labels = np.zeros((5, 7, 6), np.uint8)
    labels[4, 6, 5] = 2
    labels[0, 3, 0] = 1
    small = shrink(labels, (2, 3, 4))
    assert small.shape == (3, 3, 2)
    assert np.argwhere(small).tolist() == [[0, 1, 0], [2, 2, 1]]
    assert small.max() == 2


def make(shape, hu=None):
    geometry = Geometry.from_spacing(shape, (2.0, 1.0, 1.0))
    values = (
        np.random.default_rng(0).normal(40, 60, shape).astype(np.int16)
        if hu is None
        else np.full(shape, hu, np.int16)
    )
    return Volume(values, geometry.canonical_affine(), geometry)


@pytest.mark.parametrize(("budget", "step"), [(10_500_000, 1), (700_000, 1), (200_000, 2), (60_000, 4)])
def test_the_budget_is_kept(monkeypatch, budget, step):
    monkeypatch.setattr(packing, "_BUDGET", budget)
    volume = make((20, 256, 256))
    packed = pack(volume, np.zeros(volume.array.shape, np.uint8))
    assert sum(len(base64.b64decode(text)) for text in packed.slices) < budget
    assert packed.step == (1, step, step)
    assert packed.shape == (20, 256 // step, 256 // step)


def test_long_and_large_scans_are_thinned_out(monkeypatch):
    monkeypatch.setattr(packing, "_MOST_SLICES", 10)
    volume = make((25, 32, 700), 40)
    labels = np.zeros(volume.array.shape, np.uint8)
    labels[24, 31, 699] = 1
    packed = pack(volume, labels)
    assert (packed.shape, packed.step) == ((9, 16, 350), (3, 2, 2))
    assert packed.box == (8, 15, 349, 9, 16, 350)


@pytest.mark.parametrize("hu", [-3000, -1024, -500, -50, 40, 130, 299, 700, 1500, 3000])
def test_greys_follow_the_curve(hu):
    packed = pack(make((1, 32, 32), hu), np.zeros((1, 32, 32), np.uint8))
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(packed.slices[0]))))
    back = np.interp(image[16, 16], CURVE[1], CURVE[0])
    step = 17.2 if hu < -200 else 3 if hu <= 300 else 31
    assert abs(back - np.clip(hu, -1024, 1500)) <= 1.5 * step


@pytest.mark.parametrize("shear", [0.0, 0.4])
def test_axes_join_voxels_of_the_lesion_and_are_as_long_as_they_say(shear):
    labels = np.zeros((4, 40, 40), np.uint8)
    y, x = np.mgrid[:40, :40]
    labels[1:3] = ((y - 20) ** 2 / 60 + (x - 18 - (y - 20) / 2) ** 2 / 30 < 1) * 2
    labels[2, 0, 3:9] = 2  # one row
    labels[0, 39, 39] = 2  # one voxel
    affine = np.array([[-0.8, -shear, 0, 0], [0, -1.1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    for lesion in lesions(labels, affine):
        ends = np.array(lesion.axes)  # [axis, end, (y, x)]
        mm = (ends[:, 1] - ends[:, 0]) @ np.array([affine[:3, 1], affine[:3, 0]])
        assert np.linalg.norm(mm[0]) == pytest.approx(lesion.diameter_mm)
        assert np.linalg.norm(mm[1]) == pytest.approx(lesion.short_mm)
        assert abs(mm[0] @ mm[1]) < 1e-9
        for at in np.rint(ends[0]).astype(int):
            assert labels[(lesion.diameter_slice, *at)] == 2
        assert np.abs(ends[0] - np.rint(ends[0])).max() < 1e-9
    first = lesions(labels, affine)[0]
    assert first.short_mm > 5
    assert [lesion.short_mm for lesion in lesions(labels, affine)[1:]] == [0, 0]
