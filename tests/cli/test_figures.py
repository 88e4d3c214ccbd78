"""The figures that ``trtseg segment`` prints and writes into tables, each under its name and in its unit."""

import csv
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run

from trtseg.result import Segmentation
from trtseg.warnings import ResultWarning

# Voxels are 20 x 6 x 6 mm, that is 0.72 mL: 2001 of liver, of which two lesions have 24 and 2.
BOXES = (
    (np.s_[4:9, 20:40, 10:30], 1),
    (np.s_[9:10, 20:21, 10:11], 1),
    (np.s_[5:7, 22:26, 12:15], 2),
    (np.s_[8:9, 30:31, 20:22], 2),
)
CHANCES = 0.125, 0.75


class Played(nullcontext):
    """A Segmenter that knows the labels."""

    def __init__(self, **_):
        super().__init__(self)

    def fingerprint(self, orientation):
        return "played"

    def segment(self, volume, *, orientation=None, progress=None):
        labels = np.zeros(volume.array.shape, np.uint8)
        for box, label in BOXES:
            labels[box] = label
        made = {
            "model": "played",
            "model_version": "7",
            "device": "cpu",
            "precision": "fp32",
            "search_mm": 20,
        }
        result = Segmentation.measure(
            labels, volume, timings={"read": 0}, provenance=made | {"labelled_slices": 9}
        )
        lesions = [replace(one, probability=p) for one, p in zip(result.lesions, CHANCES, strict=True)]
        told = (
            ResultWarning("liver-cut", "x"),
            ResultWarning("geometry-tilt", "y"),
            ResultWarning("liver-cut", "z"),
        )
        return replace(result, lesions=tuple(lesions), warnings=told, timings={"read": 0.0, "nets": 2.0})


@pytest.fixture(autouse=True)
def played(here, phantom_ct, monkeypatch):
    monkeypatch.setattr("trtseg.api.Segmenter", Played)
    shutil.copy(phantom_ct, "a.nii.gz")
    shutil.copy(phantom_ct, "b.nii.gz")


def lines(text):
    return [re.split(" {2,}", line.strip()) for line in text.splitlines() if line.strip()]


def test_of_one_case_all_figures_are_printed():
    done = run("segment", "a.nii.gz", "-o", "out.nii.gz")
    assert done.exit_code == 0, done.output
    *figures, seconds, made, search, labels, notice = lines(done.stdout)
    assert figures == [
        ["case", "a.nii.gz"],
        ["liver", "1440.7 mL"],
        ["tumour", "18.7 mL, 1.3% of the liver"],
        ["lesions", "2"],
        ["1", "17.3 mL, 22 mm across, slices 5 to 6, probability 0.12"],
        ["2", "1.4 mL, 6 mm across, slices 8 to 8, probability 0.75"],
    ]
    assert re.fullmatch(r"\d+\.\d: read 0\.\d\d, nets 2\.00", seconds[1])
    assert made == ["made by", "model played 7, cpu, fp32"]
    assert search == ["search", "for the liver on slices 20 mm apart, 9 of 12 slices labelled"]
    assert labels == ["labels", "out.nii.gz"]
    assert notice == ["Not for clinical use."]


def test_of_several_cases_each_has_a_row_on_the_screen_and_in_the_table():
    done = run("segment", "a.nii.gz", "b.nii.gz", "-o", "out")
    assert done.exit_code == 0, done.output
    assert "warning: a.nii.gz: x [liver-cut]\n" in done.stderr
    headings, _, first, second, _ = lines(done.stdout)
    assert headings == ["case", "liver mL", "tumour mL", "lesions", "seconds", "labels"]
    assert first[:4] == ["a.nii.gz", "1440.7", "18.7", "2"]
    assert (second[0], second[5]) == ("b.nii.gz", "out/b_seg.nii.gz")
    with Path("out/cohort.csv").open() as file:
        row, other = csv.DictReader(file)
    assert re.fullmatch(r"\d+\.\d", first[4])
    assert 0 < float(row.pop("seconds")) < 60
    expected = {
        "case": "a",
        "state": "done",
        "liver_ml": "1440.72",
        "tumour_ml": "18.72",
        "tumour_burden": "0.012994",
        "lesion_count": "2",
        "largest_mm": "21.6333",  # 3 and 2 voxels of 6 mm from corner to corner
        "highest_probability": "0.75",
        "warnings": "geometry-tilt liver-cut",
        "slices": "12",
        "slice_mm": "20.0",
        "model": "played",
        "model_version": "7",
        "device": "cpu",
        "precision": "fp32",
        "labels": "a_seg.nii.gz",
        "input": str(Path("a.nii.gz").resolve()),
        "error": "",
    }
    assert list(row.items()) == list(expected.items())
    assert list(row)[2:8] == list(other)[2:8]
    assert other["case"] == "b"
