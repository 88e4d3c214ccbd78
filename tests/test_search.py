"""The search for the liver: how many slices go through the nets, and that it loses nothing of the liver."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cascade_nets import LIVER, SPACING, TUMOUR, CpuEngine, expected

import trtseg
from trtseg.cascade.cpu import CpuCascade
from trtseg.cascade.volumes import label_volume
from trtseg.errors import ArgumentError
from trtseg.labels.postprocess import PostProcess, postprocess
from trtseg.phantom import abdomen
from trtseg.volume import Geometry, Volume

STEPS = (4.0, 4.0, 4.0)  # of the phantom, mm


def scan(slices: int, *parts: range) -> np.ndarray:
    """Slices of air, with liver and tumour on those of ``parts``."""
    hu = np.full((slices, 24, 30), -1000, np.int16)
    for part in parts:
        hu[list(part), 8:18, 10:20] = 160
        hu[list(part), 10:14, 12:16] = 100
    return hu


def searched(hu: np.ndarray, mm: float, slice_mm: float = 2.5) -> tuple[np.ndarray, int]:
    """Labels with the search, and how many slices were labelled."""
    geometry = Geometry.from_affine(hu.shape[::-1], np.diag([-SPACING[1], -SPACING[0], slice_mm, 1.0]))
    volume, told = Volume(hu, geometry.canonical_affine(), geometry, "ct"), []
    cascade = CpuCascade(CpuEngine(LIVER), CpuEngine(TUMOUR))
    labels, logits, _, count = label_volume(cascade, volume, lambda *what: told.append(what), mm)
    assert [text for text, _ in told] == ["segmenting"] * len(told)
    assert sorted(done for _, done in told)[-1] == told[-1][1] == 1.0
    assert logits.planes.keys() == set(np.flatnonzero(labels.any((1, 2))).tolist())
    return labels, count


@pytest.mark.parametrize(
    ("slices", "parts", "count"),
    [
        # Every 4th slice and the last are first; then all that are within 4 of the liver.
        (60, [range(21, 41)], 28 + 5 + 4),  # 17 to 44; 0, 4, ..., 16; 48, 52, 56, 59
        (60, [range(40, 60)], 24 + 9),  # to the last slice: 36 to 59; 0, ..., 32
        (60, [range(20)], 24 + 9 + 1),  # from the first: 0 to 23; 24, ..., 56; 59
        (60, [range(8, 16), range(40, 48)], 32 + 1 + 4 + 3),  # 4 to 19, 36 to 51; 0; 20, ..., 32; 52, 56, 59
        (60, [range(3)], 7 + 13 + 1),  # only in the first: 0 to 6; 8, ..., 56; 59
        (60, [range(57, 60)], 7 + 14),  # only in the last: 53 to 59; 0, ..., 52
        (60, [range(21, 24)], 60),  # between two of the first slices: nothing is found, all are labelled
        (60, [], 60),
        (60, [range(20, 21), range(23, 24), range(26, 40)], 28 + 4 + 5),  # over gaps: 16 to 43
        (3, [range(1, 2)], 3),
        (1, [range(1)], 1),
    ],
)
def test_slices_near_the_liver(slices, parts, count):
    hu = scan(slices, *parts)
    labels, labelled = searched(hu, 10.0)
    assert (labels == expected(hu, np.float32)).all()
    assert set(np.unique(labels)) == ({0, 1, 2} if parts else {0})
    assert labelled == count


def test_a_distance_of_slices_that_a_header_rounded_takes_as_many_of_them():
    hu = scan(60, range(21, 41))
    counts = [searched(hu, 10.0, slice_mm)[1] for slice_mm in (2.5, 2.5 * (1 + 1e-7), 2.504, 2.51)]
    assert counts[:3] == [28 + 5 + 4] * 3  # every 4th
    assert counts[3] == 26 + 6 + 6  # every 3rd: 18 to 43; 0, 3, ..., 15; 45, 48, ..., 57, 59


def test_beyond_the_range_is_background():
    """A part between two of the first slices that is far from the rest is not found; all of the rest is."""
    hu = scan(60, range(8, 20), range(41, 43))
    labels, labelled = searched(hu, 10.0)
    assert (labels[:24] == expected(hu, np.float32)[:24]).all()
    assert not labels[24:].any()
    assert labelled < 40


@pytest.mark.parametrize("seed", range(12))
def test_after_post_processing_nothing_is_lost(seed):
    """A liver with gaps as large as the median closes, specks, and slices of any distance."""
    rng = np.random.default_rng(seed)
    slice_mm, mm = rng.uniform(0.8, 6), rng.uniform(10, 30)
    slices = int(260 / slice_mm)
    flags = np.zeros(slices, bool)
    flags[int(90 / slice_mm) : int(180 / slice_mm)] = (
        rng.uniform(size=int(180 / slice_mm) - int(90 / slice_mm)) < 0.8
    )
    hu = scan(slices, np.flatnonzero(flags))
    for z in rng.integers(0, slices, 6):
        hu[z, 2:4, 2:4] = 160
    labels, labelled = searched(hu, mm, slice_mm)
    whole = expected(hu, np.float32)
    for one in (labels, whole):
        postprocess(one, SPACING[0] * SPACING[1] * slice_mm / 1000, slice_mm, PostProcess(min_tumour_ml=0))
    assert (labels == whole).all()
    assert whole.any()
    assert labelled < slices


def test_results_say_that_it_was_used(model):
    ct = np.pad(
        abdomen(shape=(40, 64, 80), spacing=STEPS).ct, ((40, 40), (0, 0), (0, 0)), constant_values=-1000
    )
    with (
        trtseg.Segmenter(model, device="cpu") as one,
        trtseg.Segmenter(model, device="cpu", search_mm=20) as other,
    ):
        whole, result = (segmenter.segment(ct, spacing=STEPS) for segmenter in (one, other))
        assert one.fingerprint() != other.fingerprint() != trtseg.Segmenter(model, search_mm=40).fingerprint()
        with pytest.raises(ArgumentError, match="search_mm: got 20; expected 0: a stream labels all slices"):
            other.stream((64, 80), spacing=STEPS[1:])
        assert (other.label(ct, spacing=STEPS[1:]) == one.label(ct, spacing=STEPS[1:])).all()
    assert (result.labels == whole.labels).all()
    assert result.lesions == whole.lesions
    made = json.loads(json.dumps(result.report()))["provenance"]
    assert made["search_mm"] == 20
    assert 0 < made["labelled_slices"] < len(ct)
    assert not {"search_mm", "labelled_slices"} & whole.provenance.keys()
    assert f"on slices 20 mm apart, {made['labelled_slices']} slices labelled" in result.view().html


@pytest.mark.parametrize("mm", [-1, 5, 9.99, 51, float("nan"), float("inf"), "20", None, True])
def test_other_distances_are_refused(model, mm):
    with pytest.raises(
        ArgumentError, match=r"search_mm: got .*; expected 0 \(label all slices\), or 10 to 50 mm"
    ):
        trtseg.Segmenter(model, search_mm=mm)
