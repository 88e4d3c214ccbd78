"""What makes one series of a study better than another, by its headers."""

from __future__ import annotations

import re
from pathlib import Path

import dicom_made as made
import numpy as np
import pytest

from trtseg.io import load
from trtseg.io.dicom.series import volumes
from trtseg.phantom import abdomen

CT = abdomen(shape=(6, 40, 52), spacing=(40.0, *made.SPACING), seed=0, lesions=2).ct


def rank(z=(0, 40, 80), **attributes):
    """The rank of a series with slices at ``z``, from its headers alone."""
    headers = [made.instance(CT[0], place, **attributes) for place in z]
    _, (candidate,) = volumes([(Path(f"{n}"), header) for n, header in enumerate(headers)])
    assert candidate.reason == ""
    return candidate.rank


@pytest.mark.parametrize(
    ("kernel", "sharp"),
    [
        ("B30f", False), ("B70f", True), (["I70f", "3"], True), (["Br40d", "3"], False), ("Br59", True),
        ("STANDARD", False), ("BONEPLUS", True), ("LUNG", True), ("FC08", False), ("FC51", True), ("YC", True),
        ("B", False), ("L", True), ("Lung Detail", True), ("", False),
    ],
)  # fmt: skip
def test_sharp_kernels(kernel, sharp):
    assert rank(ConvolutionKernel=kernel)[3] == (not sharp)


def test_what_makes_one_series_better_than_another():
    assert rank() == (1, 1, 0, 1, -40, 3)
    assert rank(ImageType=["DERIVED", "SECONDARY", "REFORMATTED"])[0] == 0
    assert (rank((0, 79.9))[1], rank((0, 80.0))[1]) == (0, 1)
    for part, value in (("ABDOMEN", 2), ("TAP", 2), ("WHOLEBODY", 2), ("HEAD", -1), (None, 0)):
        assert rank(BodyPartExamined=part)[2] == value
    assert rank(BodyPartExamined="CHEST", SeriesDescription="CAP venous")[2] == 2
    assert (
        rank(BodyPartExamined="CHEST", SeriesDescription="Thorax 1.0", ProtocolName="ThoraxAbdomen")[2] == 1
    )
    assert rank(SeriesDescription="CAPTURE")[2] == 0
    for z, step in (((0, 2.5, 5), 2.5), ((0, 0.6, 1.2), 1), ((0, 3, 6, 16), 3), ((0,), 5)):
        assert rank(z, SliceThickness=5)[4:] == (-step, len(z))


@pytest.mark.parametrize(
    ("keyword", "part"),
    [("BodyPartExamined", "ABDOMEN"), ("SeriesDescription", "Abdomen pv"), ("ProtocolName", "liver")],
)
def test_the_abdomen_is_known_in_any_letters(keyword, part, tmp_path):
    made.save_series(tmp_path / "a", CT, SeriesInstanceUID="1.1", SeriesDescription="Thorax")
    made.save_series(tmp_path / "b", CT[:, ::-1], SeriesInstanceUID="1.2", **{keyword: part})
    assert np.array_equal(load(tmp_path).array, CT[:, ::-1])


def test_a_phase_that_is_left_out_is_told(tmp_path):
    """With the result, and so in reports and on pages: who looks at these alone sees that there was a choice."""
    made.save_series(tmp_path / "a", CT, SeriesInstanceUID="1.1", SeriesNumber=3)
    assert "series-choice" not in [warning.code for warning in load(tmp_path).warnings]
    made.save_series(tmp_path / "b", CT[:, ::-1], SeriesInstanceUID="1.2", SeriesNumber=4)
    made.save_series(tmp_path / "c", CT[::2], 80, SeriesInstanceUID="1.3", SeriesNumber=5)
    volume = load(tmp_path)
    assert np.array_equal(volume.array, CT)
    (told,) = (warning.text for warning in volume.warnings if warning.code == "series-choice")
    assert told == (
        "By what the headers say, another series is as good a choice as the one that was taken: 6 slices of 40 x 52, "
        "40 mm apart, ORIGINAL PRIMARY AXIAL, SeriesNumber 4. It may show another phase of contrast, in which lesions "
        "look otherwise. 'trtseg segment --series list' lists all series, and --series takes another (series= in "
        "Python)."
    )
    chosen = load(tmp_path, series="1.1")
    assert np.array_equal(chosen.array, CT)
    assert chosen.warnings == tuple(warning for warning in volume.warnings if warning.text != told)


@pytest.mark.parametrize(("count", "named"), [(2, 2), (5, 5), (30, 5)])
def test_of_many_phases_that_are_left_out_five_are_named(count, named, tmp_path):
    """As of a perfusion CT: the warning goes into pages, pictures and the DICOM report."""
    for n in range(count + 1):
        made.save_series(tmp_path / f"{n:02}", CT, SeriesInstanceUID=f"1.{n}", SeriesNumber=n)
    (told,) = (warning.text for warning in load(tmp_path).warnings if warning.code == "series-choice")
    assert told.startswith(f"By what the headers say, {count} other series are as good a choice")
    assert "Each of them may show another phase" in told
    assert re.findall(r"SeriesNumber (\d+)", told) == [str(n) for n in range(1, 1 + named)]
    assert ("; and 25 more. Each" in told) == (count > named)
