"""DICOM Segmentations in folders: which are label maps, which belongs to which, and how many files are looked into."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_made import instance, save
from dicom_segs import frames_of, seg

from trtseg import pairs
from trtseg.errors import InputError
from trtseg.pairs import match, score

WHOLE = np.zeros((6, 16, 16), np.uint8)
WHOLE[1:5, 3:12, 4:12] = 1
TUMOUR = np.zeros_like(WHOLE)
TUMOUR[2:4, 5:8, 6:9] = 1


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that makes files: Segmentations, slices of a CT (``ct`` in their names), and empty ones."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            if name.endswith(".dcm"):
                is_ct = "ct" in Path(name).stem
                save(
                    Path(name),
                    instance(np.zeros((16, 16), np.int16)) if is_ct else seg(frames_of(WHOLE, TUMOUR)),
                )
            else:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).touch()

    return make


def found(**options):
    matched = match(Path("p"), Path("t"), **options)
    return (
        [(pair.name, os.fspath(pair.prediction), os.fspath(pair.truth)) for pair in matched.pairs],
        [os.fspath(path) for path in (*matched.predictions, *matched.truths)],
    )


@pytest.mark.parametrize(
    ("prediction", "truth", "name"),
    [
        ("a.dcm", "a.dcm", "a"),
        ("a_seg.nii.gz", "a.dcm", "a"),
        ("a b.dcm", "a b.nii.gz", "a b"),
        ("Leber ä.dcm", "Leber ä.DCM", "Leber ä"),
        ("b/seg.nii.gz", "b/seg.dcm", "b/seg"),
        ("b/a_dicom/seg.dcm", "b/a.dcm", "b/a"),  # `trtseg segment --dicom seg`
        ("a_dicom/labelmap.dcm", "a.nii.gz", "a"),
        ("1.2.840_dicom/seg.dcm", "1.2.840.dcm", "1.2.840"),
        ("_dicom/seg.dcm", "_dicom/seg.dcm", "_dicom/seg"),
    ],
)
def test_segmentations_are_paired_like_other_label_maps(make, prediction, truth, name):
    for path in ("p/" + prediction, "t/" + truth):
        make(path.replace(".DCM", ".dcm"))
        os.rename(path.replace(".DCM", ".dcm"), path)
    assert found() == ([(name, "p/" + prediction, "t/" + truth)], [])


def test_segmentations_of_folders_are_scored(make):
    make("p/a_dicom/seg.dcm", "t/a.dcm")
    (pair,) = match(Path("p"), Path("t")).pairs
    scores = score(pair)
    assert (scores.liver.overlap.dice, scores.tumour.overlap.dice) == (1.0, 1.0)


def test_a_segmentation_alone_has_the_name_of_its_case(make):
    make("p/a_dicom/seg.dcm", "p/b/seg.dcm", "t/a.dcm")
    names = [
        match(Path(path), Path("t/a.dcm")).pairs[0].name for path in ("p/a_dicom/seg.dcm", "p/b/seg.dcm")
    ]
    assert names == ["a", "seg"]


def test_a_label_map_of_another_format_goes_first(make):
    make("p/a.dcm", "p/a_seg.nii.gz", "p/a_dicom/seg.dcm", "t/a.nii.gz", "t/a.dcm")
    make("p/b_dicom/seg.dcm", "p/b_dicom/labelmap.dcm", "p/b_dicom/ct.dcm", "t/b.dcm")
    assert found() == (
        [("a", "p/a_seg.nii.gz", "t/a.nii.gz"), ("b", "p/b_dicom/seg.dcm", "t/b.dcm")],
        [],
    )


@pytest.mark.parametrize(
    ("ct", "labels"),
    [
        ("a.nii.gz", "a_seg.dcm"),
        ("a.nrrd", "a_labels.dcm"),
        ("a_0000.nii.gz", "a.dcm"),
        ("volume-3.nii.gz", "segmentation-3.dcm"),
        ("volume-3.nii.gz", "3.dcm"),
        ("a_ct.dcm", "a_dicom/labelmap.dcm"),
    ],
)
def test_a_ct_beside_its_segmentation_is_not_taken_for_labels(make, ct, labels):
    make("p/a.nii.gz", "p/3.nii.gz", f"t/{ct}", f"t/{labels}")
    if ct == "a_ct.dcm":
        os.rename("t/a_ct.dcm", "t/a.dcm")
    pairs_found, _ = found()
    assert [truth for *_, truth in pairs_found] == [f"t/{labels}"]


def test_a_slice_of_a_ct_that_is_named_like_labels_is_none(make):
    make("p/a.nii.gz", "t/a.nii.gz", "t/ct_seg.dcm")
    os.rename("t/ct_seg.dcm", "t/a_seg.dcm")
    assert found() == ([("a", "p/a.nii.gz", "t/a.nii.gz")], [])


def test_the_only_segmentation_below_a_folder_is_of_the_case_of_that_name(make):
    """As in public archives: a folder for each patient, in it one for each study, and in that one for each series."""
    make("p/P-1_seg.nii.gz", "p/P-2/day_seg.nii.gz", "p/P-3.nii.gz", "p/P-4.nii.gz", "p/P-5.nii.gz")
    make("t/P-1/day/CT/ct-1.dcm", "t/P-1/day/CT/ct-2.dcm", "t/P-1/day/SEG/1-1.dcm")
    make("t/P-2/day/CT/ct-1.dcm", "t/P-2/day/SEG/1-1.dcm", "t/P-3/one/1-1.dcm", "t/P-3/two/1-1.dcm")
    make("t/P-4/day/CT/ct-1.dcm", "t/P-5.dcm", "t/P-5/day/1-1.dcm")
    make("p/P-6.nii.gz", "p/P-6/day.nii.gz", "t/P-6/day/SEG/1-1.dcm")
    assert found() == (
        [
            ("P-1", "p/P-1_seg.nii.gz", "t/P-1/day/SEG/1-1.dcm"),
            ("P-5", "p/P-5.nii.gz", "t/P-5.dcm"),
            ("P-6/day", "p/P-6/day.nii.gz", "t/P-6/day/SEG/1-1.dcm"),
            ("P-2/day", "p/P-2/day_seg.nii.gz", "t/P-2/day/SEG/1-1.dcm"),
        ],
        [
            "p/P-3.nii.gz",
            "p/P-4.nii.gz",
            "p/P-6.nii.gz",
            "t/P-3/one/1-1.dcm",
            "t/P-3/two/1-1.dcm",
            "t/P-5/day/1-1.dcm",
        ],
    )


def test_segmentations_without_partner_are_told(make):
    make(
        "p/a.dcm", "p/b.dcm", "t/a.dcm", "t/ct1.dcm", "t/z.dcm", "t/c_dicom/ct_0001.dcm", "t/c_dicom/seg.dcm"
    )
    make("t/ct.dcm", "p/ct.dcm", "t/ct_0000.dcm", "t/y_0000.dcm", "t/y.dcm")
    with pytest.raises(InputError, match=r"t: y\.dcm and y_0000\.dcm might be the same case"):
        found()
    os.remove("t/y.dcm")
    # The other DICOM files beside z.dcm are not looked into.
    assert found() == ([("a", "p/a.dcm", "t/a.dcm")], ["p/b.dcm", "t/c_dicom/seg.dcm"])


def test_slices_of_a_ct_beside_labels_are_not_looked_into_one_by_one(make, monkeypatch):
    make("p/case/seg.nii.gz", "t/case/seg.dcm", *(f"t/case/ct{n:03}.dcm" for n in range(30)))
    make(*(f"t/other/ct{n:03}.dcm" for n in range(30)))
    opened = []
    really = pairs.may_be_seg
    monkeypatch.setattr(pairs, "may_be_seg", lambda path: opened.append(os.fspath(path)) or really(path))
    assert found() == ([("case/seg", "p/case/seg.nii.gz", "t/case/seg.dcm")], [])
    assert opened == ["t/case/ct000.dcm", "t/case/seg.dcm", "t/other/ct000.dcm"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom
def test_a_file_that_does_not_say_what_it_is_is_a_case_that_fails(make):
    make("p/a.nii", "p/b.nii", "p/c.nii", "p/d.nii", "t/d.dcm")
    Path("t/a.dcm").write_bytes(b"no DICOM")
    Path("t/b.dcm").write_bytes(b"")
    os.symlink("nowhere", "t/c.dcm")
    assert [pair.name for pair in match(Path("p"), Path("t")).pairs] == ["a", "b", "c", "d"]


def test_segmentations_without_meta_information_are_known(make):
    make("p/a.nii", "t/a.dcm", "p/b.nii", "t/b_ct.dcm")
    os.rename("t/b_ct.dcm", "t/b.dcm")
    for name in "ab":
        made = pydicom.dcmread(f"t/{name}.dcm")
        made.file_meta, made.preamble = pydicom.dataset.FileMetaDataset(), None
        made.save_as(f"t/{name}.dcm", implicit_vr=False, little_endian=True, enforce_file_format=False)
        assert Path(f"t/{name}.dcm").read_bytes()[:2] == b"\x08\0"
    assert found() == ([("a", "p/a.nii", "t/a.dcm")], ["p/b.nii"])
