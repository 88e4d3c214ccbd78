"""Reading LiTS and MSD Task03_Liver: voxels, order, spacing, patients, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import training_data as made
from training_data import check, refusal

from training.cases import read_checked
from training.readers import lits, msd
from trtseg.errors import InputError


def test_lits_in_folders(tmp_path):
    made.lits(tmp_path / "batch 1", [10, 2])
    made.lits(tmp_path / "batch 2", [100], ".nii.gz")
    for name in ("._volume-5.nii", "test-volume-6.nii", "volume-7.nii.part"):
        (tmp_path / "batch 2" / name).write_bytes(b"\0")
    cases = lits(tmp_path)
    assert [case.name for case in cases] == ["volume-2", "volume-10", "volume-100"]
    for case, seed in zip(cases, (2, 10, 100), strict=True):
        check(read_checked(case), seed)
        assert (case.source, case.trainable, case.labels_tumour) == ("lits", True, True)


def test_lits_scans_of_one_patient_share_a_group(tmp_path):
    for n in (0, 1, 2, 6, 10, 27, 28, 44, 45, 47, 48, 49):
        (tmp_path / f"volume-{n}.nii").touch()
    groups = {case.name[7:]: case.group for case in lits(tmp_path)}
    assert groups == dict(zip(("0", "1", "2", "6", "10"), "AABFF", strict=True)) | {
        "27": "lits-27",
        "28": "ircadb-1",  # the first scan of 3D-IRCADb-01
        "44": "ircadb-17",
        "45": "ircadb-18",
        "47": "ircadb-20",
        "48": "ircadb-20",  # or 47 is 19 and 48 is 20: neither may train apart from the other
        "49": "lits-49",
    }


def test_lits_without_partner_or_twice(tmp_path):
    made.lits(tmp_path, [0, 1])
    made.lits(tmp_path / "copy", [1])
    (tmp_path / "segmentation-0.nii").rename(tmp_path / "segmentation-4.nii")
    reasons = [refusal(case) for case in lits(tmp_path)]
    assert reasons[0] == "volume-0 has no label file; expected one"
    assert reasons[1].startswith("volume-1 has 2 images (")
    assert reasons[2] == "volume-4 has no image; expected one"


@pytest.mark.parametrize("source", ["lits", "msd"])
def test_an_identity_matrix_is_no_geometry(tmp_path, source):
    names = {
        "lits": ("volume-28.nii", "segmentation-28.nii"),
        "msd": ("imagesTr/liver_28.nii", "labelsTr/liver_28.nii"),
    }
    read, phantom = {"lits": lits, "msd": msd}[source], made.phantom(0)

    def write(axes, affine):
        for name, data in zip(names[source], (phantom.ct, phantom.labels), strict=True):
            made.save_without_geometry(tmp_path / name, data, axes, affine)
        return read(tmp_path)[0]

    scan = read_checked(write("RAS", np.eye(4)))
    assert (scan.hu == phantom.ct).all()
    assert (scan.label == phantom.labels).all()
    assert np.isnan(scan.spacing).all()
    assert "spacing is not known" in scan.notes[0]
    for axes in ("LAS", "LPS"):
        reason = refusal(write(axes, np.eye(4)))
        assert reason.startswith("the header is an identity matrix")
        assert "the patient's left" in reason
        assert "3D-IRCADb-01" in reason
    # any other matrix says something: 1 mm may be true
    for affine in (np.diag([1, 1, 2, 1]), np.eye(4) + np.eye(4, k=3)):
        scan = read_checked(write("RAS", affine))
        assert scan.spacing == (affine[2, 2], 1, 1)
        assert not any("spacing" in note for note in scan.notes)


def test_an_identity_matrix_without_liver_cannot_be_checked(tmp_path):
    for name, data in (("volume", made.phantom(0).ct), ("segmentation", np.zeros((6, 40, 52), np.uint8))):
        made.save_without_geometry(tmp_path / f"{name}-28.nii", data)
    assert "no liver" in refusal(lits(tmp_path)[0])


def test_labels_that_lie_elsewhere_are_not_moved(tmp_path):
    made.lits(tmp_path, range(4))
    labels = made.phantom(1).labels
    shifted = made.phantom(0).affine.copy()
    shifted[0, 3] += 0.71  # a tenth of a voxel is 0.7 mm
    made.save_nifti(tmp_path / "segmentation-1.nii", labels, affine=shifted)
    shifted[0, 3] -= 0.02
    made.save_nifti(tmp_path / "segmentation-2.nii", made.phantom(2).labels, affine=shifted)
    made.save_nifti(tmp_path / "segmentation-3.nii", made.phantom(3).labels[:, ::-1], "LAS")
    mirrored = made.phantom(3).affine * (-1, 1, 1, 1)  # the same place of the first voxel, another direction
    made.save_nifti(tmp_path / "segmentation-0.nii", labels, affine=mirrored)
    cases = lits(tmp_path)
    assert refusal(cases[0]).startswith(
        "affine mismatch: segmentation-0.nii lies up to 714 mm off"
    )  # 51 * 2 * 7
    assert refusal(cases[1]).startswith("affine mismatch: segmentation-1.nii lies up to 0.71 mm off")
    check(read_checked(cases[2]), 2)
    assert refusal(cases[3]).startswith("affine mismatch")
    assert "LiTS 48 to 52, see training/README.md" in refusal(cases[3])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (lambda x: x.astype(np.int16) + 2, "holds values from 2 to 4"),
        (lambda x: x.astype(np.int16) * 256, "holds values from 0 to 512"),  # 0 in their low byte
        (lambda x: x / np.float32(2), "holds values from 0.0 to 1.0"),
        (lambda x: x[:5], "shape mismatch: the image is (52, 40, 6), segmentation-0.nii is (52, 40, 5)"),
    ],
)
def test_labels_that_are_none(tmp_path, values, reason):
    made.lits(tmp_path, [0])
    made.save_nifti(tmp_path / "segmentation-0.nii", values(made.phantom(0).labels))
    assert reason in refusal(lits(tmp_path)[0])


def test_labels_may_be_whole_floats(tmp_path):
    made.lits(tmp_path, [0])
    made.save_nifti(tmp_path / "segmentation-0.nii", made.phantom(0).labels.astype(np.float32))
    check(read_checked(lits(tmp_path)[0]), 0)


def test_truncated_files_are_refused(tmp_path):
    made.lits(tmp_path, [0, 1], ".nii.gz")
    for name in ("volume-0.nii.gz", "segmentation-1.nii.gz"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:300])
    first, second = (refusal(case) for case in lits(tmp_path))
    assert "volume-0.nii.gz: " in first
    assert "fetch it again" in first
    assert second.startswith("cannot be read (EOFError")


def test_msd(tmp_path):
    made.msd(tmp_path / "Task03_Liver", [11, 3], order="RAS")
    for root in (tmp_path, tmp_path / "Task03_Liver"):
        cases = msd(root)
        assert [(case.name, case.group) for case in cases] == [("liver_3", "C"), ("liver_11", "G")]
        check(read_checked(cases[0]), 3)
        check(read_checked(cases[1]), 11)


def test_another_task_of_msd_is_refused(tmp_path):
    made.msd(tmp_path, [0])
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"1": "Vessel", "2": "Tumour"}}))
    with pytest.raises(InputError, match="expected 1 liver and 2 cancer"):
        msd(tmp_path)


@pytest.mark.parametrize("text", ['{"labels": {"1": "liv', "{}", "[]", '{"labels": ["liver"]}', "\xff"])
def test_a_damaged_dataset_json_is_named(tmp_path, text):
    made.msd(tmp_path, [0])
    (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        InputError, match=r"dataset\.json: names no labels .*expected the file of the Medical"
    ):
        msd(tmp_path)
