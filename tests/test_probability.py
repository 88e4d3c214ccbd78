"""The mean tumour probability of a lesion, against the oracle of the operation ``label``."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
from cascade_nets import LIVER, SPACING, TUMOUR, CpuEngine, ct, expected_logits
from op_cases import GEOMETRIES
from scipy import ndimage, special

import trtseg
from trtseg import reference
from trtseg.cascade.cpu import CpuCascade
from trtseg.cascade.volumes import _Needed, label_volume
from trtseg.fit import Fit
from trtseg.labels.lesions import lesions, number_lesions
from trtseg.labels.postprocess import PostProcess, postprocess
from trtseg.labels.probability import TumourLogits
from trtseg.phantom import abdomen
from trtseg.volume import Geometry, Volume

STEPS = (8.0, 4.0, 4.0)  # of the phantoms, mm


def oracle(logits: TumourLogits, labels: np.ndarray) -> list[float]:
    """Interpolate whole slices, as the operation does, and take the mean over each lesion, largest first."""
    chances = np.zeros(labels.shape)
    grid = reference._to_native(np.ones((1, *logits.fit.net), np.float32), logits.fit)[0] > 0.5
    for z, plane in logits.planes.items():
        margins = reference._margin(plane[None].astype(np.float32), 0.0)
        chances[z] = grid * special.expit(reference._to_native(margins, logits.fit)[0].astype(np.float64))
    numbers = number_lesions(labels, 255)
    return [chances[numbers == n].mean() for n in range(1, int(numbers.max()) + 1)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_random_logits_and_lesions(geometry):
    """Slices larger and smaller than the grid, beside it and cut by it; some slices have no logits."""
    fit = GEOMETRIES[geometry]
    rng = np.random.default_rng(len(geometry))
    blobs = ndimage.gaussian_filter(rng.standard_normal((7, *fit.native)), 1.3, mode="wrap")
    labels = (blobs > 0.1).astype(np.uint8) * 2
    planes = {z: (8 * rng.standard_normal(fit.net)).astype(np.float16) for z in (0, 2, 3, 5)}
    planes[2].flat[:4] = np.nan, np.inf, -np.inf, 65504
    logits = TumourLogits(fit, planes)
    found = [lesion.probability for lesion in lesions(labels, np.eye(4), logits)]
    assert found == pytest.approx(oracle(logits, labels), abs=1e-12)


def test_by_hand():
    """Two native voxels to a pixel of the net: a quarter of the way from its centre to the next."""
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[0, 0, 1] = labels[0, 3, 3] = labels[1, 3, 3] = 2
    plane = np.array([[2, -2], [4, 8]], np.float16)
    logits = TumourLogits(Fit((4, 4), (2, 2), (2.0, 2.0), (0, 0), (2, 2)), {0: plane})
    two, one = lesions(labels, np.eye(4), logits)
    assert one.probability == pytest.approx(1 / (1 + math.exp(-1)))  # 3/4 of 2 and 1/4 of -2
    assert two.probability == pytest.approx(
        1 / (1 + math.exp(-8)) / 2
    )  # the net did not run on the second slice
    assert [type(lesion.probability) for lesion in (one, two)] == [float, float]


def test_it_is_not_known_without_a_net_for_tumours(tmp_path):
    assert lesions(np.full((1, 2, 2), 2, np.uint8), np.eye(4))[0].probability is None
    phantom = abdomen(shape=(6, 64, 80), spacing=STEPS)
    with trtseg.Segmenter(tiny.one_step_model(tmp_path), device="cpu") as segmenter:
        result = segmenter.segment(phantom.ct, spacing=STEPS)
    assert result.lesions
    assert {lesion["probability"] for lesion in result.report()["lesions"]} == {None}


def test_what_the_cascade_keeps_is_that_of_the_volume():
    hu = ct(22)
    geometry = Geometry.from_affine(hu.shape[::-1], np.diag([-SPACING[1], -SPACING[0], 4.0, 1.0]))
    volume = Volume(hu, geometry.canonical_affine(), geometry, "ct")
    labels, logits, *_ = label_volume(CpuCascade(CpuEngine(LIVER), CpuEngine(TUMOUR)), volume, None)
    wanted = TumourLogits(LIVER.fit_slice(hu.shape[1:], SPACING), expected_logits(hu, np.float32))
    assert logits.fit == wanted.fit
    found = [lesion.probability for lesion in lesions(labels, volume.affine, logits)]
    assert found == pytest.approx(oracle(wanted, labels), abs=1e-12)
    assert 0.5 < min(found) < max(found) < 1


@pytest.mark.parametrize("search_mm", [0, 10])
@pytest.mark.parametrize(("median_mm", "slice_mm"), [(0, 5), (4, 4), (4, 1.3), (200, 1)])
def test_logits_that_are_not_kept_are_not_missed(search_mm, median_mm, slice_mm):
    """The median makes tumours where the slice itself has none, and none of its liver."""
    hu = ct(70, 7)
    geometry = Geometry.from_affine(hu.shape[::-1], np.diag([-SPACING[1], -SPACING[0], slice_mm, 1.0]))
    volume = Volume(hu, geometry.canonical_affine(), geometry, "ct")
    steps = PostProcess(median_mm=median_mm, largest_liver=False, min_tumour_ml=0)
    found, sizes = [], []
    for of in (None, steps):
        labels, logits, *_ = label_volume(
            CpuCascade(CpuEngine(LIVER), CpuEngine(TUMOUR)), volume, None, search_mm, of
        )
        before = labels.copy()
        postprocess(labels, 0.01, slice_mm, steps)
        beyond = np.count_nonzero((labels == 2) & (before == 0))
        found.append([lesion.probability for lesion in lesions(labels, volume.affine, logits)])
        sizes.append(sum(plane.nbytes for plane in logits.planes.values()))
    assert found[0] == found[1]
    assert found[0] or median_mm == 200
    assert sizes[1] < sizes[0]
    assert beyond or median_mm != 4 or slice_mm != 1.3


@pytest.mark.parametrize("chunk", [1, 4, 6, 12])
def test_logits_are_kept_for_tumours_of_slices_that_are_labelled_later(chunk):
    """Slice 6 may bring its tumour into slice 5, whose own lies elsewhere."""
    labels, places = np.zeros((12, 20, 20), np.uint8), np.array([[5, 15, 16], [6, 2, 3]])
    labels[5, 2:4, 3:5] = labels[6, 15:17, 16:18] = 2
    planes = np.random.default_rng(0).normal(0, 1, labels.shape).astype(np.float16)
    whole, kept = (TumourLogits(Fit.identity((20, 20)), dict(enumerate(planes))) for _ in range(2))
    needed = _Needed(labels, kept, 1)
    for done in range(chunk, 13, chunk):
        needed.keep(done)
    assert np.array_equal(kept.probability(*places.T), whole.probability(*places.T))
    assert kept.planes.keys() == {4, 5, 6, 7}


def test_segment_and_stream_say_the_same(segmenter):
    phantom = abdomen(shape=(13, 64, 80), spacing=STEPS)
    whole = segmenter.segment(phantom.ct, spacing=STEPS)
    chances = [lesion.probability for lesion in whole.lesions]
    assert chances
    assert all(0 < chance < 1 for chance in chances)
    with segmenter.stream(phantom.ct.shape[1:], spacing=STEPS[1:]) as stream:
        for z in (*range(1, 13, 2), *range(0, 13, 2)):
            stream.push(phantom.ct[z], 8.0 * z)
        assert [lesion.probability for lesion in stream.finish().lesions] == chances
    told = [lesion["probability"] for lesion in whole.report()["lesions"]]
    assert told == [round(chance, 4) for chance in chances]
