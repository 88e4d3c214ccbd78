"""The training kit: reading slices with cells, placing, packing, and the split."""

import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from training import batch, kit, packing, place
from training.cases import Case, Scan, read_checked
from training.readers.liver_slices import liver_slices
from training.readers.shared import VALIDATION, shared_cases
from training.split import by_patient
from trtseg.errors import ArgumentError, InputError


@pytest.mark.parametrize("count", [1, packing.CHUNK + 3])
def test_packing_loses_nothing(count):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 12, 12), np.uint8)
    images[0] = 0
    images[-1] = np.arange(12, dtype=np.uint8) * 20  # wraps modulo 256 in the residuals
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), images.shape)
    assert (packing.unpack_images(packing.pack_images(images), 12) == images).all()
    assert (packing.unpack_labels(packing.pack_labels(labels), 12) == labels).all()


def body(shape=(60, 80), box=(10, 40, 20, 60)):
    hu = np.full(shape, -1000, np.int16)
    y0, y1, x0, x1 = box
    hu[y0:y1, x0:x1] = 40
    return hu


def test_the_body_comes_to_the_middle_at_its_size():
    hu = body()
    hu[55:57, :] = 100  # a table, which is smaller
    assert place.body_box(hu) == (10, 40, 20, 60)
    where = place.place(hu, 3.0, 64, 2.0)
    assert (where.centre, where.mm) == ((25.0, 40.0), 2.0)
    out = place.placed(hu, where, 64) > -480
    rows, columns = (np.flatnonzero(out.any(axis)) for axis in (1, 0))
    # 30 rows of 3 mm are 45 of 2 mm, and 40 columns are 60; the table is out of view
    assert (rows[0], rows[-1]) == (10, 53)
    assert (columns[0], columns[-1]) == (2, 61)


def test_a_body_that_does_not_fit_gets_larger_pixels():
    where = place.place(body(), 3.0, 24, 2.0)
    assert where.step == 40 / (24 - 2 * place.MARGIN)
    assert where.mm == 3.0 * where.step


def test_an_unknown_pixel_size_is_estimated_from_the_body():
    hu = body((512, 512), (100, 300, 56, 456))  # 400 pixels wide
    assert place.place(hu, float("nan"), 256, 1.5).mm == 1.5
    assert place.place(hu, float("nan"), 256, 1.5).step == pytest.approx(1.5 / (350 / 400))
    # 350 mm over 100 pixels would be a field of view of 1.8 m
    narrow = place.place(body((512, 512), (100, 300, 56, 156)), float("nan"), 256, 1.5)
    assert narrow.step == pytest.approx(1.5 / (500 / 512))


def test_placed_values_are_means_over_pixels():
    hu = np.arange(64, dtype=np.int16).reshape(8, 8)
    where = place.Place((4.0, 4.0), 2.0, 1.0)
    means = hu.reshape(4, 2, 4, 2).mean((1, 3))
    np.testing.assert_allclose(place.placed(hu, where, 4), means, atol=1e-3)
    outer = place.placed(hu, where, 6)
    np.testing.assert_allclose(outer[1:5, 1:5], means, atol=1e-3)
    np.testing.assert_allclose(outer[0], -1000)


@pytest.mark.parametrize("step", [0.5, 1.0, 1.7])
def test_labels_and_boxes_lie_where_the_image_does(step):
    hu = body()
    where = place.Place((25.0, 40.0), step, 1.0)
    label = (hu > 0).astype(np.uint8)
    image = place.placed(hu, where, 128)
    assert ((image > -480) == place.placed_labels(label, where, 128)).mean() > 0.99
    y0, y1, x0, x1 = place.placed_boxes(np.array([[10, 40, 20, 60]]), where, 128)[0]
    rows = np.flatnonzero(place.placed_labels(label, where, 128).any(1))
    assert abs(rows[0] - y0) <= 1
    assert abs(rows[-1] + 1 - y1) <= 1
    assert x1 - x0 == pytest.approx(40 / step, rel=1e-5)


def test_levels_are_fine_where_soft_tissue_lies():
    level_hu = kit.levels(6.0)
    hu = np.arange(-200, 300)
    error = np.abs(level_hu[kit.to_levels(hu, level_hu)] - hu.clip(-160, 240))
    assert error[(hu > -15) & (hu < 180)].max() <= 3
    assert error.max() <= 6
    assert (level_hu[0], level_hu[-1], len(level_hu) < 60) == (-160, 240, True)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ((0, 1.5, 6.0), "size: got 0; expected a number of 16 or more"),
        ((32, 0.0, 6.0), "mm: got 0.0; expected a number of 0.05 or more"),
        ((32, -1.5, 6.0), "mm: got -1.5"),
        ((32, float("nan"), 6.0), "mm: got nan"),
        ((32, 1.5, float("nan")), "step: got nan"),  # 0 would never end
        ((32, 1.5, 0.5), "step: got 0.5; expected a number of 1.2 or more"),
    ],
)
def test_a_grid_or_levels_that_cannot_be_are_refused(grid, message):
    with pytest.raises(ArgumentError, match=f"^{message}"):
        kit.build(cases(), (), *grid)


def test_the_finest_levels_fit_into_a_byte():
    level_hu = kit.levels(kit.LEAST_STEP)
    assert len(level_hu) <= 256
    assert (kit.to_levels(np.array([-160, 240]), level_hu) == [0, len(level_hu) - 1]).all()


def cases(validation_twin=False):
    """A patient with cells, one of another set with the same name, and one that must not train."""
    hu = np.stack([body(), body(box=(12, 50, 10, 70))])
    label = np.where(hu > 0, 1, 0).astype(np.uint8)
    label[:, 20:25, 30:40] = 255
    cells = np.array([[1, 10, 35, 20, 45, 1], [0, 10, 35, 20, 45, 0]])

    def scan():
        return Scan(hu, label, (np.nan, 1.5, 1.5), [4, 9], cells=cells)

    def plain():
        return Scan(hu, (label == 1).astype(np.uint8), (5.0, 3.0, 3.0), [0, 1])

    def other():
        return plain()._replace(hu=np.where(hu > 0, 90, hu).astype(np.int16))

    return [
        Case("a", "first", "p", scan, labels_tumour=False),
        Case("b", "second", "p", plain, held_out=validation_twin),
        Case("c", "third", "q", other, trainable=False),
    ]


def test_a_kit_comes_back_as_it_was_written(tmp_path):
    made = kit.build(cases(), ("nobody",), 48, 2.0, 6.0)
    sums = [kit.write(tmp_path / name, made) for name in ("one.zip", "two.zip")]
    assert sums[0] == sums[1]
    back = kit.read(tmp_path / "one.zip")
    assert back.sha256 == sums[0]
    for field in fields(kit.Kit):
        if field.name != "sha256":
            was, now = getattr(made, field.name), getattr(back, field.name)
            if was.dtype.kind == "f":
                np.testing.assert_allclose(was, now, atol=1e-3)
            else:
                assert (was == now).all(), field.name
    assert back.z.tolist() == [4, 9, 0, 1, 0, 1]
    assert back.tumour_known.tolist() == [False] * 2 + [True] * 4
    assert set(np.unique(back.label)) == {0, 1, 255}


def test_cells_follow_their_slices():
    made = kit.build(cases(), (), 48, 2.0, 6.0)
    assert made.cells[:, [0, 5]].tolist() == [[0, 0], [1, 1]]
    _, y0, _, x0, x1, _ = made.cells[0]
    # the body's corner is the corner of this cell; 25 pixels of 1.5 mm are 18.75 of 2 mm
    rows, columns = (np.flatnonzero((made.label[0] > 0).any(axis)) for axis in (1, 0))
    assert (abs(rows[0] - y0) <= 1, abs(columns[0] - x0) <= 1) == (True, True)
    assert x1 - x0 == pytest.approx(18.75)


def test_no_patient_is_on_both_sides():
    assert kit.build(cases(), (), 32, 3.0, 6.0).split.tolist() == ["train"] * 4 + ["validation"] * 2
    assert set(kit.build(cases(), ("p",), 32, 3.0, 6.0).split) == {"validation"}
    assert set(kit.build(cases(validation_twin=True), (), 32, 3.0, 6.0).split) == {"validation"}


def test_a_clipped_slice_gets_air_around_the_body():
    hu = np.zeros((20, 20), np.int16)
    hu[4:16, 4:16] = 60
    hu[8:12, 8:12] = 5  # fat or gas inside: nobody knows
    out = kit.with_air(hu)
    assert (out[0, 0], out[10, 10], out[5, 5]) == (-1000, 5, 60)


def test_single_wrong_pixels_are_repaired_outside_the_liver():
    hu = np.full((9, 9), 40, np.int16)
    hu[2, 2] = hu[6, 6] = 296
    label = np.zeros((9, 9), np.uint8)
    label[5:8, 5:8] = 1
    out = kit.without_wrapped(hu, label)
    assert (out[2, 2], out[6, 6]) == (40, 296)


@pytest.mark.parametrize("damage", [b"", b"no zip", None])
def test_what_is_no_kit_is_refused(tmp_path, damage):
    path = tmp_path / "kit.zip"
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(InputError, match=r"kit\.zip"):
        kit.read(path)


@pytest.mark.parametrize("lacking", ["image", "label"])
def test_a_kit_that_lost_a_part_is_refused(tmp_path, lacking):
    kit.write(tmp_path / "whole.zip", kit.build(cases(), (), 32, 3.0, 6.0))
    with zipfile.ZipFile(tmp_path / "whole.zip") as whole, zipfile.ZipFile(tmp_path / "kit.zip", "w") as part:
        for name in whole.namelist():
            if not name.startswith(lacking):
                part.writestr(name, whole.read(name))
    with pytest.raises(InputError, match=r"kit\.zip: .*training\.kit"):
        kit.read(tmp_path / "kit.zip")


def write_set(path, **changes):
    columns = {
        "image8": np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4),
        "labels": np.zeros((3, 4, 4), np.uint8),
        "hu_of_grey": np.array([2.0, -100.0]),
        "tumour_known": np.array([True, False, True]),
        "patient": np.array(["LiTS29", "LiTS29", "X1"]),
        "z": np.array([5, 6, 7]),
        "pixel_mm": np.array([0.5, 0.7, np.nan], np.float32),
        "cells": np.array([[0, 0, 2, 0, 2, 0], [1, 1, 3, 1, 3, 1]], np.int16),
    }
    np.savez(path, **{k: v for k, v in (columns | changes).items() if v is not None})


def test_slices_with_cells_are_read_by_patient_and_by_what_is_known(tmp_path):
    write_set(tmp_path / "set.npz")
    found = {case.name: case for case in liver_slices(tmp_path)}
    assert list(found) == ["set-LiTS29", "set-LiTS29-fused", "set-X1"]
    assert [case.group for case in found.values()] == ["ircadb-2", "ircadb-2", "X1"]
    assert [case.labels_tumour for case in found.values()] == [True, False, True]
    scan = read_checked(found["set-LiTS29-fused"])
    assert scan.hu.tolist() == [(np.arange(16, 32).reshape(4, 4) * 2 - 100).tolist()]
    assert (scan.z, scan.spacing[1]) == ([6], pytest.approx(0.7))
    assert scan.cells.tolist() == [[0, 1, 3, 1, 3, 1]]
    assert np.isnan(read_checked(found["set-X1"]).spacing[1])


def test_scans_of_a_patient_keep_the_size_of_their_pixels(tmp_path):
    """A second scan of another size, and one of which nobody knows it, change nothing of the first."""
    mm = np.array([0.5, 0.7, np.nan], np.float32)
    write_set(
        tmp_path / "set.npz", patient=np.array(["P"] * 3), tumour_known=np.array([True] * 3), pixel_mm=mm
    )
    found = liver_slices(tmp_path)
    assert [case.name for case in found] == ["set-P-0mm", "set-P-0.5mm", "set-P-0.7mm"]
    assert {case.group for case in found} == {"P"}
    scans = {scan.z[0]: scan for scan in map(read_checked, found)}
    assert [scans[z].spacing[1] for z in (5, 6, 7)] == pytest.approx(mm.tolist(), nan_ok=True)
    assert [scans[z].cells[:, 0].tolist() for z in (5, 6, 7)] == [[0], [0], []]


def test_a_set_without_a_column_is_named(tmp_path):
    write_set(tmp_path / "set.npz", cells=None)
    with pytest.raises(InputError, match=r"set\.npz: has no cells"):
        read_checked(liver_slices(tmp_path)[0])
    with pytest.raises(InputError, match=r"no \.npz"):
        liver_slices(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image8": np.zeros((3, 4, 4), np.float32)}, r"image8: got float32 \(3, 4, 4\); expected uint8 \(3, 4, 4\)"),
        ({"image8": np.zeros((3, 4, 4), np.int8)}, "image8: got int8"),
        ({"image8": np.zeros((3, 4), np.uint8)}, r"image8: got the shape \(3, 4\); expected \[N, H, W\]"),
        ({"labels": np.zeros((3, 4, 2), np.uint8)}, r"labels: got uint8 \(3, 4, 2\); expected uint8 \(3, 4, 4\)"),
        ({"labels": np.full((3, 4, 4), 3, np.uint8)}, "^labels: got 3; expected 0 background, .* or 255"),
        ({"hu_of_grey": np.array([np.nan, 0])}, "hu_of_grey: got HU from .*nan"),
        ({"hu_of_grey": np.array([4000.0, -160])}, "hu_of_grey: got HU from -160 to 1.01984e.06; expected HU within"),
        ({"hu_of_grey": np.array([0.0, 40])}, "hu_of_grey: got HU from 40 to 40; expected .* not all alike"),
        ({"hu_of_grey": np.array([2.0])}, r"hu_of_grey: got float64 \(1,\); expected float \(2,\)"),
        ({"pixel_mm": np.zeros(3)}, r"pixel_mm: got 0; expected mm within \[0.05, 10\], or NaN"),
        ({"pixel_mm": np.array([1, np.inf, np.nan])}, "pixel_mm: got inf"),
        ({"tumour_known": np.ones(2, bool)}, r"tumour_known: got bool \(2,\); expected bool \(3,\)"),
        ({"tumour_known": np.ones(3, np.uint8)}, "tumour_known: got uint8"),
        ({"z": np.ones(3)}, "z: got float64"),
        ({"cells": np.zeros((2, 5), int)}, r"cells: got int64 \(2, 5\); expected int \(2, 6\)"),
        ({"cells": np.array([[0, 0, 2, 0, 2, 0.7]])}, "cells: got float64"),
        ({"cells": np.array([[3, 0, 2, 0, 2, 0]])}, r"cells: got \[3, 0, 2, 0, 2, 0\]; expected a slice of 0 to 2"),
        ({"cells": np.array([[0, 0, 2, 0, 2, 3]])}, r"\[0, 0, 2, 0, 2, 3\]; .* a flag of 0, 1 or 2"),
        ({"cells": np.array([[0, 2, 0, 0, 2, 0]])}, r"\[0, 2, 0, 0, 2, 0\]; .* 0 <= y0 < y1 <= 4"),
        ({"cells": np.array([[0, 0, 2, 2, 5, 0]])}, r"\[0, 0, 2, 2, 5, 0\]; .* 0 <= x0 < x1 <= 4"),
        (
            {"cells": np.array([[0, 0, 2, 0, 2, 0], [1, 0, 4, 0, 4, 0], [0, 1, 3, 1, 3, 0]])},
            r"cells: got \[0, 0, 2, 0, 2, 0\] and \[0, 1, 3, 1, 3, 0\]; expected cells of a slice that do not overlap",
        ),
        ({"cells": np.tile([2, 0, 1, 0, 1, 0], (64, 1))}, "cells: got 64 in slice 2; expected at most 63"),
    ],
)  # fmt: skip
def test_a_set_that_is_not_as_the_format_says_is_refused(tmp_path, changes, message):
    write_set(tmp_path / "set.npz", **changes)
    with pytest.raises(InputError, match=message) as caught:
        read_checked(liver_slices(tmp_path)[0])
    assert message[0] == "^" or str(caught.value).startswith("set.npz: ")


def test_a_kit_names_the_case_that_cannot_be_packed(tmp_path):
    write_set(tmp_path / "set.npz", labels=np.full((3, 4, 4), 3, np.uint8))
    with pytest.raises(InputError, match=r"^set/set-LiTS29: labels: got 3"):
        kit.build(liver_slices(tmp_path), (), 32, 1.0, 6.0)


def test_a_folder_that_is_none_ends_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["kit", "--shared", str(tmp_path), "-o", str(tmp_path / "new/kit.zip")])
    with pytest.raises(SystemExit, match=r"^error: .*no caseNN"):
        kit.main()
    assert not (tmp_path / "new").exists()


def test_a_kit_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(kit, "listed", lambda *_: pytest.fail("the folder comes first"))
    monkeypatch.setattr("sys.argv", ["kit", "--shared", "x", "-o", str(tmp_path / "file/kit.zip")])
    with pytest.raises(SystemExit, match=r"^error: --output: .*file cannot be created"):
        kit.main()


@pytest.mark.parametrize("name", ["chaos", "flare", "ircadb_own", "labels_of_mine", "lits256", "ircadb/mine"])
def test_what_a_file_is_called_does_not_decide_what_is_done_to_its_slices(tmp_path, name):
    """Some shared sets are thinned, repaired, kept from training, or seen less often: by their names."""
    rng = np.random.default_rng(0)
    slices = rng.integers(0, 256, (3, 4, 4), np.uint8)
    made = []
    for folder, file in (("a", "mine"), ("/" + name).rsplit("/", 1)):
        folder = folder.strip("/") or "b"
        (tmp_path / folder).mkdir()
        write_set(
            tmp_path / folder / f"{file}.npz", image8=slices, labels=np.ones((3, 4, 4), np.uint8),
            patient=np.array(["P1", "P1", "P2"]), tumour_known=np.ones(3, bool),
        )  # fmt: skip
        cases, held = kit.listed(None, [tmp_path / folder], ["P2"])
        made.append(kit.build(cases, held, 32, 1.0, 6.0))
    one, other = made
    assert (one.image == other.image).all()
    assert one.split.tolist() == other.split.tolist() == ["train", "train", "validation"]
    rows = np.arange(3)
    assert batch.weights(one, rows, "liver").tolist() == batch.weights(other, rows, "liver").tolist()


def test_one_scan_under_two_names_of_a_patient_is_refused(tmp_path):
    for name, patient in (("one", "P1"), ("two", "P2"), ("three", "LiTS29")):
        (tmp_path / name).mkdir()
        labels = np.ones((3, 4, 4), np.uint8) if name != "three" else np.zeros((3, 4, 4), np.uint8)
        write_set(tmp_path / name / "set.npz", patient=np.array([patient] * 3), labels=labels)
    folders = [tmp_path / name for name in ("one", "two", "three")]
    with pytest.raises(
        InputError,
        match=r"^slices/two/set/set-P2-0mm: slice 7 is one of slices/one/set/set-P1-0mm too, so P2 and P1",
    ):
        kit.build(*kit.listed(None, folders, ["P1"]), 32, 1.0, 6.0)
    kit.build(*kit.listed(None, folders, ["P1", "P2"]), 32, 1.0, 6.0)
    kit.build(
        *kit.listed(None, folders, ["LiTS29"]), 32, 1.0, 6.0
    )  # as the file has it; nothing in it is liver


def test_slices_of_which_nothing_is_known_may_look_alike(tmp_path):
    unknown = {"image8": np.zeros((3, 4, 4), np.uint8), "labels": np.full((3, 4, 4), 255, np.uint8)}
    write_set(tmp_path / "set.npz", patient=np.array(["P1", "P2", "P2"]), **unknown)
    assert len(kit.build(*kit.listed(None, [tmp_path], ["P2"]), 32, 1.0, 6.0)) == 3


def test_a_kit_of_ones_own_slices(tmp_path, monkeypatch, capsys):
    for name, patient in (("one", "P1"), ("two", "P2")):
        (tmp_path / name).mkdir()
        write_set(tmp_path / name / "set.npz", patient=np.array([patient] * 3))
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]

    def make(*options):
        monkeypatch.setattr(
            "sys.argv", ["kit", "-o", str(tmp_path / "runs/kit.zip"), "--size", "32", *options]
        )
        kit.main()

    make("--slices", *folders, "--validation", "P2")
    made = kit.read(tmp_path / "runs/kit.zip")
    assert dict(zip(made.group.tolist(), made.split.tolist(), strict=True)) == {
        "P1": "train",
        "P2": "validation",
    }
    assert made.cells[:, 5].tolist() == [0, 1, 0, 1]
    assert "train: 3 slices of 1 patients" in capsys.readouterr().out
    for wrong, message in (
        (["P3"], "^error: validation: no patients P3; there are P1, P2"),
        (["P1", "P2"], "^error: validation: no patient to train; name some"),
    ):
        with pytest.raises(SystemExit, match=message):
            make("--slices", *folders, "--validation", *wrong)
    with pytest.raises(SystemExit, match=r"^error: validation: no patient to validate"):
        make("--slices", *folders)
    with pytest.raises(SystemExit, match="2"):
        make()


HELD = {"A", "ircadb-1", "ircadb-2", "ircadb-7", "ircadb-12", "lits-14", "lits-114", "chaos-3", "totalseg"}


def test_the_shared_data_is_split_by_patient(shared_data):
    found = shared_cases(Path(shared_data))
    split = by_patient(found, VALIDATION)
    held = {case.group for case in found if split[case.group] == "validation"}
    assert held >= HELD
    flare = [case for case in found if case.source == "flare"]
    assert flare
    assert {split[case.group] for case in flare} == {"validation"}
    # LiTS 0 and 1 are A in all sets; what lits256 has of them validates too
    assert {case.group for case in found if case.name.startswith("lits256-LiTS1-")} == {"A"}
    dozen = {g for g in held if g.startswith(("lits-", "ircadb-"))} - {"ircadb-1"}
    assert len(dozen) == 12


def test_smooth_slices_become_small():
    y, x = np.mgrid[:128, :128]
    images = np.stack([(y + x + 7 * i) // 4 for i in range(8)]).astype(np.uint8)
    assert sum(map(len, packing.pack_images(images))) < images.size / 50
