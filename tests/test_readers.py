"""Reading labelled CT of every data set that training knows: voxels, order, spacing, and what is refused."""

from __future__ import annotations

import gzip
import json
import zipfile

import numpy as np
import pytest
import training_data as made
from PIL import Image
from training_data import check, refusal

from training.archive import unpack
from training.cases import read_checked
from training.readers import chaos, chaos_nifti, ircadb, lits, lits_crop, msd, negatives, png_slices
from training.readers.shared import shared_cases
from trtseg.errors import InputError


def test_ircadb(tmp_path):
    made.ircadb(tmp_path / "3Dircadb1", 12, seed=1)
    made.ircadb(tmp_path / "3Dircadb1", 2, seed=0)
    cases = ircadb(tmp_path)
    assert [(case.name, case.group, case.trainable) for case in cases] == [
        ("3Dircadb1.2", "ircadb-2", False),
        ("3Dircadb1.12", "ircadb-12", False),
    ]
    check(read_checked(cases[0]), 0)
    check(read_checked(cases[1]), 1)


def test_ircadb_unpacked_into_folders_of_the_archives_names(tmp_path):
    folder = made.ircadb(tmp_path) / "3Dircadb1.1"
    for name in ("PATIENT_DICOM", "MASKS_DICOM"):
        (folder / name).rename(folder / "x")
        (folder / name).mkdir()
        (folder / "x").rename(folder / name / name)
    check(read_checked(ircadb(tmp_path)[0]), 0)


def test_ircadb_masks_that_belong_elsewhere(tmp_path):
    for n in (1, 2, 3, 4, 5):
        made.ircadb(tmp_path, n)
    masks = [tmp_path / f"3Dircadb1.{n}/MASKS_DICOM" for n in range(6)]
    (masks[1] / "liver").rename(masks[1] / "lung")
    (masks[2] / "liver/image_3").rename(masks[2] / "liver/image_9")
    made.save_dicom(masks[3] / "livertumor01/image_0", made.phantom(0).labels[3] * 255, 99)
    made.save_dicom(masks[4] / "liver/image_0", np.zeros((8, 8), np.int16), None)
    made.save_dicom(masks[5] / "liver/image_0", made.phantom(0).ct[3], None)
    reasons = [refusal(case) for case in ircadb(tmp_path)]
    assert "no MASKS_DICOM/liver, only leftkidney" in reasons[0]
    assert "MASKS_DICOM/liver has other file names" in reasons[1]
    assert "MASKS_DICOM/livertumor01/image_0 lies at [-180" in reasons[2]
    assert "shape mismatch: the mask liver is (8, 8), the slices are (40, 52)" in reasons[3]
    assert "expected 0 and one other value" in reasons[4]


@pytest.mark.parametrize("digits", [1, 4])
@pytest.mark.parametrize("names", [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (2, 9, 10, 11, 12, 100)])
def test_chaos(tmp_path, names, digits):
    (case,) = chaos(made.chaos(tmp_path, names=names, digits=digits))
    assert (case.name, case.group, case.trainable, case.labels_tumour) == ("chaos7", "chaos-7", False, False)
    check(read_checked(case), 0, made.phantom(0).labels > 0)


def test_chaos_masks_that_cannot_be_placed(tmp_path):
    made.chaos(tmp_path, number=1, names=(0, 2, 1, 3, 4, 5))
    made.chaos(tmp_path, number=2)
    made.chaos(tmp_path, number=3)
    (tmp_path / "Train_Sets/CT/2/Ground/liver_GT_002.png").unlink()
    (tmp_path / "Train_Sets/CT/3/DICOM_anon/i0002,0000b.dcm").unlink()
    (tmp_path / "Train_Sets/CT/3/Ground/liver_GT_002.png").unlink()
    first, second, third = (refusal(case) for case in chaos(tmp_path))
    assert "not in the order of the slices" in first
    assert "6 slices in DICOM_anon and 5 masks in Ground" in second
    assert "1 slice is missing, between 180 and 260 mm" in third


def test_png_slices(tmp_path):
    root = made.png_slices(tmp_path, {4: "D", 0: "A", 11: None})
    cases = png_slices(root)
    assert [(case.name, case.group) for case in cases] == [("case00", "A"), ("case04", "D"), ("case11", "Z")]
    scan = read_checked(cases[1])
    assert scan.hu.shape == (2, 40, 52)
    assert scan.z == [3, 12]
    # greys 3 * 20 + 4 = 64 and 12 * 20 + 4 = 244: 64 * 400 / 255 - 160 = -59.6, 244 * 400 / 255 - 160 = 222.7
    assert scan.hu[:, 0, 0].tolist() == [-60, 223]
    assert (scan.label == made.phantom(4).labels[[3, 0]]).all()
    assert np.isnan(scan.spacing).all()
    assert refusal(cases[2]) == "no labels (label_ZZZ.png)"


def test_png_slices_of_an_unknown_patient(tmp_path):
    root = made.png_slices(tmp_path, {1: "A"})
    (tmp_path / "MANIFEST.json").write_text("[]")
    assert "of which patient" in refusal(png_slices(root)[0])
    (tmp_path / "MANIFEST.json").unlink()
    with pytest.raises(InputError, match=r"no MANIFEST\.json"):
        png_slices(root)


@pytest.mark.parametrize("text", ["{", '{"id": 1}', '[{"patient_group": "A"}]', "[1]"])
def test_a_manifest_that_cannot_be_read(tmp_path, text):
    root = made.png_slices(tmp_path, {1: "A"})
    (tmp_path / "MANIFEST.json").write_text(text)
    with pytest.raises(
        InputError, match=r"MANIFEST\.json: cannot be read \(.*expected a list of rows with id"
    ):
        png_slices(root)


@pytest.mark.parametrize("name", ["image", "label"])
def test_png_slices_without_partner(tmp_path, name):
    root = made.png_slices(tmp_path, {4: "D"})
    (root / f"case04/{name}_012.png").unlink()
    assert "of image_012.png and label_012.png one is missing" in refusal(png_slices(root)[0])


def test_negatives(tmp_path):
    # crc32("d") % 6 is 0, of the others it is not
    root = made.negatives(tmp_path, {"free": ["a", "b", "a", "d"], "nsclc_lung1_001": ["c"]})
    (root / "broken.npz").write_bytes(b"no archive")
    broken, *cases = negatives(root)
    assert "cannot be read" in refusal(broken)
    assert [case.group for case in cases] == ["a", "b", "a", "d", "c"]
    assert [case.trainable for case in cases] == [True] * 4 + [False]
    assert [case.held_out for case in cases] == [False, False, False, True, False]
    assert {case.body_part for case in cases} == {"pelvis"}
    scan = read_checked(cases[2])
    assert (scan.hu == made.phantom(100).ct[2:3, 1:40, 1:52] + 2).all()  # without the padding
    assert not scan.label.any()
    assert scan.spacing[1:] == (4.0, 3.0)


def test_negatives_of_a_patient_who_validates_with_a_whole_ct(tmp_path):
    root = made.negatives(tmp_path, {"totalseg_pelvis_3mm": ["a", "b"]})
    assert [(case.group, case.held_out) for case in negatives(root)] == [("totalseg", True)] * 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"patient": ["a"]}, "spacing_mm: got the shape (2, 2); expected (1, 2)"),
        ({"valid_box": np.array([1, 40])}, "valid_box: got the shape (2,); expected (2, 4)"),
        ({"body_part": ["pelvis", ""]}, "body_part: got an empty one"),
        ({"valid_box": np.array([[-1, 40, 1, 52]] * 2)}, "valid_box: got [-1, 40, 1, 52]; expected 0 <= y0 < y1 <= 40"),
        ({"valid_box": np.array([[1, 41, 1, 52]] * 2)}, "valid_box: got [1, 41, 1, 52]"),
        ({"spacing_mm": np.array([[0.0, 1.0]] * 2)}, "spacing_mm: got [0.0, 1.0]; expected mm above 0"),
    ],
)  # fmt: skip
def test_negatives_that_contradict_themselves(tmp_path, changes, reason):
    path = made.negatives(tmp_path, {"free": ["a", "b"]}) / "free.npz"
    with np.load(path) as file:
        columns = {name: file[name] for name in file.files}
    np.savez(path, **(columns | changes))
    assert reason in refusal(negatives(path.parent)[0])


def test_broken_archives_are_refused_one_by_one(tmp_path):
    """Whatever is broken: the other files of the folder are listed."""
    path = made.negatives(tmp_path, {"free": ["a", "b"]}) / "free.npz"
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(path.with_name("lzma.npz"), "w", zipfile.ZIP_LZMA) as other,
    ):
        for entry in archive.namelist():
            other.writestr(entry, archive.read(entry))
    squeezed = path.with_name("lzma.npz").read_bytes()
    with zipfile.ZipFile(path.with_name("lzma.npz")) as archive:
        start = archive.getinfo("spacing_mm.npy").header_offset
    for number in range(start + 60, start + 70):
        damaged = bytearray(squeezed)
        damaged[number] ^= 255
        path.with_name("lzma.npz").write_bytes(damaged)
        path.with_name("empty.npz").write_bytes(b"")
        empty, *rest, broken = negatives(path.parent)
        assert "cannot be read (EOFError" in refusal(empty)
        assert "lzma.npz: cannot be read" in refusal(broken)
        assert [case.group for case in rest] == ["a", "b"]


@pytest.mark.parametrize("content", [None, b"no archive", b""])
def test_shared_data_without_the_labels_of_its_last_slices(tmp_path, content):
    made.png_slices(tmp_path, {4: "D"})
    folder = tmp_path / "liver_slices"
    folder.mkdir()
    labels = folder / "labels_of_lits_slices_11_to_13.npz"
    if content is not None:
        labels.write_bytes(content)
    with pytest.raises(InputError, match=rf"{labels.name}: cannot be read"):
        shared_cases(tmp_path)


@pytest.mark.parametrize("reader", [lits, msd, ircadb, chaos, png_slices, negatives])
def test_a_folder_without_the_data_set_is_refused(tmp_path, reader):
    with pytest.raises(InputError, match=r"no .* in it"):
        reader(tmp_path)


def test_real_chaos_as_dicom_is_the_same_as_nifti(shared_data, tmp_path):
    for name in ("DICOM_anon", "Ground"):
        unpack(shared_data / f"chaos3/{name}.tar.xz", tmp_path / "3")
    (dicom,), (nifti,) = chaos(tmp_path), chaos_nifti(shared_data / "chaos3")
    a, b = read_checked(dicom), read_checked(nifti)
    assert (a.hu == b.hu).all()
    assert (a.label == b.label).all()
    assert a.spacing == pytest.approx(b.spacing) == (2.0, 0.7265625, 0.7265625)
    assert (dicom.name, dicom.group) == (nifti.name, nifti.group)


def test_real_slices_have_the_counts_of_their_manifest(shared_data):
    rows = {row["id"]: row for row in json.loads((shared_data / "MANIFEST.json").read_text())}
    cases = {case.name: case for case in png_slices(shared_data / "lits_slices")}
    assert len(cases) == 14
    for number in (0, 7):
        scan, row = read_checked(cases[f"case{number:02d}"]), rows[f"lits{number:03d}_png"]
        assert list(scan.hu.shape) == row["shape"]
        assert [scan.hu.min(), scan.hu.max()] == row["hu_min_max"]
        assert np.count_nonzero(scan.label) == row["liver_voxels"]
        assert np.count_nonzero(scan.label == 2) == row["tumour_voxels"]


def test_real_negatives_are_split_by_patient(shared_data):
    cases = negatives(shared_data / "negatives")
    rows = json.loads((shared_data / "negatives/MANIFEST.json").read_text())
    assert len(cases) == sum(row["n"] for row in rows)
    held = {case.group for case in cases if case.held_out or not case.trainable}
    assert held
    assert held.isdisjoint(case.group for case in cases if not case.held_out and case.trainable)


def test_real_ircadb_slices_are_in_order(shared_data, tmp_path):
    """Every fifth real image, with as many pixels of mask as its number says: numbers run from feet to head."""
    case = tmp_path / "3Dircadb1.1"
    unpack(shared_data / "ircadb01/PATIENT_DICOM.tar.xz", case)
    for path in list((case / "PATIENT_DICOM").iterdir()):
        number = int(path.name.removeprefix("image_"))
        if number % 5:
            path.unlink()
            continue
        mask = np.zeros((512, 512), np.int16)
        mask[0, :number] = 255
        made.save_dicom(case / "MASKS_DICOM/liver" / path.name, mask, None)
    scan = read_checked(ircadb(tmp_path)[0])
    assert scan.hu.shape == (26, 512, 512)
    assert (scan.hu.min(), scan.hu.max()) == (-1024, 1023)
    assert scan.spacing == pytest.approx((8.0, 0.57, 0.57))
    assert scan.label.sum((1, 2)).tolist() == list(range(0, 129, 5))


def test_masks_may_be_pngs_of_any_depth(tmp_path):
    root = made.chaos(tmp_path)
    for path in (root / "Train_Sets/CT/7/Ground").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * np.uint8(255)).save(path)
    check(read_checked(chaos(root)[0]), 0, made.phantom(0).labels > 0)


def test_the_crop_lies_where_a_liver_is(tmp_path):
    voxels = np.zeros((128, 128, 128), np.float32)  # [x, y, z]
    voxels[3, 5, 7] = 110.4
    marks = np.zeros_like(voxels, np.uint16)
    marks[3, 5, 7] = 2
    for name, array in (("img", voxels), ("lab", marks)):
        with gzip.open(tmp_path / f"{name}_117.mrc.gz", "wb") as file:
            file.write(bytes(1024) + array.tobytes())
    (case,) = lits_crop(tmp_path)
    scan = read_checked(case)
    assert scan.hu.shape == (128, 256, 256)
    assert scan.hu[7, 50 + 5, 25 + 3] == 110
    assert np.argwhere(scan.label).tolist() == [[7, 55, 28]]
    assert (scan.hu[:, :50] == -1000).all()
    assert case.group == "lits-117"  # as in the full data set
    marks[0, 0, 0] = 257  # 1 in eight bits
    (tmp_path / "lab_117.mrc.gz").write_bytes(gzip.compress(bytes(1024) + marks.tobytes()))
    assert "labels: got 257; expected 0, 1 and 2" in refusal(case)
    (tmp_path / "lab_117.mrc.gz").write_bytes(gzip.compress(bytes(1024 + 7)))
    assert "got 1031 bytes; expected 4195328" in refusal(case)
