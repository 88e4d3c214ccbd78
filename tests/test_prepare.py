"""From data sets to the slice store: what goes in, what is left out, who trains, and that a store is whole."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import training_data as made
from PIL import Image
from training_data import case

from training import store
from training.cases import Scan
from training.prepare import Settings, main, prepare, show
from training.readers import chaos, ircadb, lits, msd, negatives, png_slices
from training.store import Store
from trtseg.errors import InputError
from trtseg.phantom import abdomen

SMALL = Settings(size=64)


def test_a_store_gives_back_what_went_in(tmp_path):
    """Slices that have the store's size already are in it as they were."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (6, 64, 64), np.uint8)
    label = rng.integers(0, 3, (6, 64, 64), np.uint8) * np.uint8([1, 0, 1, 1, 1, 1])[:, None, None]
    root = made.png_slices(tmp_path, {0: "A", 2: "B", 3: "C"})
    for n, path in enumerate(sorted(root.glob("*/image_*"))):
        Image.fromarray(grey[n]).save(path)
        Image.fromarray(label[n]).save(path.with_name(path.name.replace("image", "label")))
    prepare(png_slices(root), tmp_path / "store", SMALL)
    opened = Store.open(tmp_path / "store")
    assert opened.case.tolist() == [f"case0{n}" for n in (0, 0, 2, 2, 3, 3)]
    assert opened.group.tolist() == list("AABBCC")
    assert opened.split.tolist() == ["validation"] * 2 + ["train"] * 4
    assert opened.z.tolist() == [3, 12] * 3
    assert set(opened.source) == {"lits_png"}
    assert opened.labels_tumour.all()
    assert (opened.hu == np.rint(grey.astype(float) * 400 / 255 - 160)).all()
    assert (opened.label == label).all()
    assert opened.liver_pixels.tolist() == [np.count_nonzero(plane) for plane in label]
    assert opened.tumour_pixels.tolist() == [np.count_nonzero(plane == 2) for plane in label]
    assert not opened.hu.flags.writeable


def test_slices_of_other_sizes_are_fitted_as_the_net_sees_them(tmp_path):
    """40 x 52 pixels of 8 x 7 mm: 320 x 364 mm, so 64 pixels of 5.6875 mm, of which 56 rows are inside."""
    prepare([case("a", "x"), case("b", "A", seed=1)], tmp_path / "store", SMALL)
    opened = Store.open(tmp_path / "store")
    assert opened.hu.shape == (12, 64, 64)
    centre = lambda n, mm, size, offset: np.floor((np.arange(64) - offset + 0.5) * 5.6875 / mm).astype(int)  # noqa: E731
    rows, columns = centre(64, 8, 40, 4), centre(64, 7, 52, 0)
    inside = (rows >= 0) & (rows < 40)
    expected = np.zeros((6, 64, 64), np.uint8)
    expected[:, inside] = made.phantom(0).labels[:, rows[inside]][:, :, columns]
    assert (opened.label[:6] == expected).all()
    assert (opened.hu[:, :4] == -1000).all()
    assert (opened.hu[:, 60:] == -1000).all()
    # labels lie where the liver is: phantom livers are around 110 HU, the fat around them around -100
    liver = opened.hu[:6][opened.label[:6] == 1]
    assert 80 < np.median(liver) < 140
    row = opened.manifest["cases"][0]
    assert row["shape"] == [6, 40, 52]
    assert row["spacing_mm"] == pytest.approx(made.SPACING)


@pytest.mark.parametrize(("native", "size"), [(512, 512), (128, 512), (96, 64), (64, 128), (768, 512)])
def test_square_labels_are_resized_as_pillow_does(native, size):
    label = np.random.default_rng(0).integers(0, 3, (2, native, native), np.uint8)
    expected = [np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.NEAREST)) for p in label]
    assert (store.resize_labels(label, (0.7, 0.7), size) == np.stack(expected)).all()


def test_broken_cases_are_left_out_by_name(tmp_path):
    made.lits(tmp_path / "lits", [0, 20, 21, 22, 23])
    (tmp_path / "lits/segmentation-20.nii").unlink()
    made.save_nifti(tmp_path / "lits/segmentation-21.nii", made.phantom(21).labels * 3)
    made.save_nifti(tmp_path / "lits/segmentation-22.nii", made.phantom(22).labels, "RPS", np.eye(4))
    (tmp_path / "lits/volume-23.nii").write_bytes(b"nothing")

    def fails():
        raise RuntimeError("of a\nlibrary")

    cases = [*lits(tmp_path / "lits"), case("x", "y", read=fails), case("b", "B", seed=2)]
    cases.append(
        case("s", "y", read=lambda: Scan(made.phantom(0).ct, made.phantom(0).labels[:3], made.SPACING, [0]))
    )
    cases.append(case("e", "y", read=lambda: Scan(*[np.zeros((0, 4, 4), t) for t in "hB"], made.SPACING, [])))
    high = made.phantom(3).labels + np.uint8(1)
    cases.append(case("h", "y", read=lambda: Scan(made.phantom(3).ct, high, made.SPACING, range(6))))
    manifest = prepare(cases, tmp_path / "store", SMALL)
    assert [row["name"] for row in manifest["cases"]] == ["volume-0", "b"]
    reasons = {row["name"]: row["reason"] for row in manifest["left_out"]}
    assert "neither gzip nor NIfTI" in reasons["volume-23"]
    assert list(reasons) == ["volume-20", "volume-21", "volume-22", "volume-23", "x", "s", "e", "h"]
    for name, start in {
        "volume-20": "volume-20 has no label file",
        "volume-22": "affine mismatch",
        "s": "shape mismatch: the image is (6, 40, 52), its labels are (3, 40, 52)",
        "e": "no slices",
        "h": "labels: got 1, 2, 3; expected 0 background, 1 liver, 2 tumour; write the masks anew",
    }.items():
        assert reasons[name].startswith(start)


def test_only_broken_cases_are_an_error(tmp_path):
    root = made.png_slices(tmp_path, {4: None, 5: None})
    with pytest.raises(InputError, match=r"no case can be used, of 2 \(case04: no labels"):
        prepare(png_slices(root), tmp_path / "deep/store", SMALL)
    assert not (tmp_path / "deep").exists()


def test_the_folders_above_a_store_are_made(tmp_path):
    with store.writing(tmp_path / "deep/store") as files:
        for number, path in enumerate(files):
            path.write_bytes(bytes([number]))
    found = {path.name: path.read_bytes() for path in (tmp_path / "deep/store").iterdir()}
    assert found == {"hu.npy": b"\0", "label.npy": b"\1", "manifest.json": b"\2"}


def test_masks_of_0_and_255_are_no_tumours(tmp_path):
    root = made.png_slices(tmp_path, {4: "D", 5: "E"})
    path = root / "case04/label_003.png"
    Image.fromarray((np.asarray(Image.open(path)) > 0) * np.uint8(255)).save(path)
    manifest = prepare(png_slices(root), tmp_path / "store", SMALL)
    reasons = {row["name"]: row["reason"] for row in manifest["left_out"]}
    assert list(reasons) == ["case04"]
    assert reasons["case04"].startswith(
        "label_003.png: labels: got 0, 255; expected 0 background, 1 liver, 2"
    )


def test_a_store_holds_nothing_that_is_unknown(tmp_path):
    """Neither from a set that may say so, nor from one that may not."""
    plain = made.phantom(3).labels > 0
    scan = Scan(made.phantom(3).ct, plain * np.uint8(255), made.SPACING, range(6))
    cases = [
        case("c", "C", read=lambda: scan._replace(cells=np.zeros((0, 6), np.int32))),
        case("u", "U", read=lambda: scan),
        case("b", "B", seed=2),
    ]
    manifest = prepare(cases, tmp_path / "store", SMALL)
    reasons = {row["name"]: row["reason"] for row in manifest["left_out"]}
    assert list(reasons) == ["c", "u"]
    assert reasons["c"].startswith("has cells and unknown pixels, which a slice store cannot hold")
    assert reasons["u"].startswith("labels: got 0, 255; expected")


def test_the_scans_of_lits_and_msd_are_taken_once(tmp_path):
    made.lits(tmp_path / "lits", [0, 50])
    made.msd(tmp_path / "msd", [50, 51, 0], order="RAS")
    made.save_nifti(tmp_path / "msd/labelsTr/liver_50.nii.gz", made.phantom(51).labels, "RAS")
    # written with a header that mirrors it: the same voxels, found all the same
    made.save_nifti(tmp_path / "msd/imagesTr/liver_0.nii.gz", made.phantom(0).ct[:, :, ::-1])
    made.save_nifti(tmp_path / "msd/labelsTr/liver_0.nii.gz", made.phantom(0).labels[:, :, ::-1])
    manifest = prepare(lits(tmp_path / "lits") + msd(tmp_path / "msd"), tmp_path / "store", SMALL)
    unclear = (
        "in another order: one of the two has a wrong orientation, and neither is DICOM; leave one out or "
    )
    unclear += "repair its header"
    assert [row["name"] for row in manifest["cases"]] == ["volume-50", "liver_51"]
    assert {row["name"]: row["reason"] for row in manifest["left_out"]} == {
        "volume-0": f"duplicate: the same voxels as msd/liver_0, {unclear}",
        "liver_0": f"duplicate: the same voxels as lits/volume-0, {unclear}",
        "liver_50": "duplicate: the same voxels as lits/volume-50, with other labels",
    }


def test_patients_with_equal_scans_are_one_patient(tmp_path):
    """Case b is a's scan, so that b's patient is a's, and his other scan validates with them."""
    cases = [case("a", "A"), case("b", "other"), case("c", "other", seed=1), case("d", "D", seed=2)]
    manifest = prepare(cases, tmp_path / "store", SMALL)
    assert [(row["name"], row["group"], row["split"]) for row in manifest["cases"]] == [
        ("a", "A", "validation"),
        ("c", "A", "validation"),
        ("d", "D", "train"),
    ]
    manifest = prepare(cases, tmp_path / "store", Settings(64, validation=("other",)))
    assert [row["split"] for row in manifest["cases"]] == ["validation", "validation", "train"]


@pytest.mark.parametrize("flag", [{"trainable": False}, {"held_out": True}])
@pytest.mark.parametrize("first", [True, False])
def test_what_forbids_one_copy_to_train_forbids_all(tmp_path, flag, first):
    free, bound = case("a", "P"), case("b", "Q", **flag)
    copies = [free, bound] if first else [bound, free]
    prepare([*copies, case("c", "R", seed=1)], tmp_path / "store", Settings(64, validation=()))
    opened = Store.open(tmp_path / "store")
    assert opened.case[0] == copies[0].name
    assert opened.split.tolist() == ["validation"] * 6 + ["train"] * 6


def test_a_copy_that_cannot_be_read_forbids_to_train_too(tmp_path):
    made.lits(tmp_path / "lits", [34, 50])  # 34 is 3D-IRCADb's patient 7
    made.ircadb(tmp_path / "ircadb", number=7)
    (tmp_path / "ircadb/3Dircadb1.7/MASKS_DICOM/liver/image_0").unlink()
    manifest = prepare(lits(tmp_path / "lits") + ircadb(tmp_path / "ircadb"), tmp_path / "store", SMALL)
    assert {row["name"]: row["split"] for row in manifest["cases"]} == {
        "volume-34": "validation",
        "volume-50": "train",
    }


def test_of_copies_in_another_order_the_one_in_dicom_is_right(tmp_path):
    for name, data in (("volume", made.phantom(0).ct), ("segmentation", made.phantom(0).labels)):
        made.save_nifti(tmp_path / f"lits/{name}-60.nii", data[:, ::-1])  # upside down
        made.save_nifti(tmp_path / f"lits/{name}-61.nii", data)
    made.ircadb(tmp_path / "ircadb", number=7, seed=0)
    manifest = prepare(lits(tmp_path / "lits") + ircadb(tmp_path / "ircadb"), tmp_path / "store", SMALL)
    assert [row["name"] for row in manifest["cases"]] == ["3Dircadb1.7"]
    assert {row["name"]: row["reason"] for row in manifest["left_out"]} == {
        "volume-60": "duplicate: the same voxels as ircadb/3Dircadb1.7, in another order: "
        "its own orientation is wrong",
        "volume-61": "duplicate: the same voxels as ircadb/3Dircadb1.7",
    }
    prepare(ircadb(tmp_path / "ircadb"), tmp_path / "alone", SMALL)
    assert (Store.open(tmp_path / "store").hu == Store.open(tmp_path / "alone").hu).all()


def test_a_header_without_geometry_is_named_and_gives_no_millimetres(tmp_path, capsys):
    made.lits(tmp_path, [28, 50])
    for n in (29, 30):
        for name, data in (("volume", made.phantom(n).ct), ("segmentation", made.phantom(n).labels)):
            made.save_without_geometry(tmp_path / f"{name}-{n}.nii", data)
    manifest = prepare(lits(tmp_path), tmp_path / "store", SMALL)
    rows = {row["name"]: row["spacing_mm"] for row in manifest["cases"]}
    assert rows["volume-29"] == rows["volume-30"] == [None, None, None]
    assert rows["volume-28"] == rows["volume-50"] == pytest.approx(made.SPACING)
    (warning,) = (w for w in manifest["warnings"] if "spacing" in w)
    assert warning.startswith("lits/volume-29, lits/volume-30: the header is an identity matrix")
    show(manifest)
    assert f"warning: {warning}\n" in capsys.readouterr().out
    # as slices of square pixels, whatever their size
    opened = Store.open(tmp_path / "store")
    square = store.resize_labels(made.phantom(29).labels, (0.7, 0.7), 64)
    assert (opened.label[opened.case == "volume-29"] == square).all()


def test_what_is_strange_about_a_ct_is_said(tmp_path, capsys):
    """A header that is turned by 180 degrees, and a CT that went through a window: `trtseg segment` warns of both."""
    ct, labels, affine = abdomen((40, 96, 96), (5.0, 4.0, 4.0))
    for n, volume, truth in (
        (131, ct, labels),
        (132, ct[:, ::-1, ::-1] + 1, labels[:, ::-1, ::-1]),
        (133, ct.clip(-160, 240), labels),
    ):
        made.save_nifti(tmp_path / f"volume-{n}.nii", volume, affine=affine)
        made.save_nifti(tmp_path / f"segmentation-{n}.nii", truth, affine=affine)
    manifest = prepare(lits(tmp_path), tmp_path / "store", Settings(64, ("lits-131",)))
    for n, code in ((132, "[orientation]"), (133, "[values-clipped]")):
        (warning,) = (w for w in manifest["warnings"] if w.endswith(code))
        assert warning.startswith(f"lits/volume-{n}: ")
    show(manifest)
    assert "warning: lits/volume-132: " in capsys.readouterr().out


def test_all_data_sets_together(tmp_path):
    made.chaos(tmp_path / "chaos", seed=3)
    made.ircadb(tmp_path / "ircadb", number=7, seed=4)
    made.lits(tmp_path / "lits", [2, 34])  # 34 is 3D-IRCADb's patient 7, of other voxels
    empty = made.negatives(tmp_path, {"free": ["a", "d"]})
    cases = lits(tmp_path / "lits") + ircadb(tmp_path / "ircadb") + chaos(tmp_path / "chaos")
    manifest = prepare(cases + negatives(empty), tmp_path / "store", SMALL)
    assert not manifest["left_out"]
    trains = {row["name"] for row in manifest["cases"] if row["split"] == "train"}
    assert trains == {"volume-2", "free-000"}
    opened = Store.open(tmp_path / "store")
    assert opened.body_part.tolist()[-3:] == ["", "pelvis", "pelvis"]
    assert (opened.labels_tumour == (opened.source != "chaos")).all()
    total = manifest["totals"]
    assert total["train"]["slices"] == np.count_nonzero(opened.split == "train") == 6 + 1
    assert total["validation"]["patients"] == 3  # ircadb-7, chaos-7, d


def test_every_other_slice(tmp_path):
    prepare([case("a", "A"), case("b", "B", seed=1)], tmp_path / "all", SMALL)
    prepare([case("a", "A"), case("b", "B", seed=1)], tmp_path / "some", Settings(64, every=4))
    every, some = Store.open(tmp_path / "all"), Store.open(tmp_path / "some")
    assert some.z.tolist() == [0, 4, 0, 4]
    assert (some.hu == every.hu[[0, 4, 6, 10]]).all()
    assert (some.label == every.label[[0, 4, 6, 10]]).all()


def test_a_drawn_store(tmp_path):
    cases = [case(f"v{seed}", f"g{seed}", seed=seed) for seed in range(4)]
    prepare(cases, tmp_path / "store", Settings(64, paper=5))
    opened = Store.open(tmp_path / "store")
    assert set(opened.split) == {"train", "validation", "test"}
    assert (opened.liver_pixels > 0).all()
    assert opened.manifest["seed"] == 5
    assert len(opened.manifest["warnings"]) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Settings(63), "expected an even size"),
        (Settings(64, every=0), "1 or more"),
        (Settings(64, validation=("Q",)), "no patients Q; there are A"),
        (Settings(64, validation=("A",), paper=0), "leave one out"),
        (Settings(64, paper=-1), "the seed -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_read(tmp_path, wrong, message):
    def read():
        raise AssertionError("was read")

    with pytest.raises(InputError, match=message):
        prepare([case("a", "A", read=read)], tmp_path / "store", wrong)
    assert not (tmp_path / "store").exists()


@pytest.fixture
def own_signals():
    """What ``main`` does to SIGTERM is undone."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("own_signals")
def test_the_command_line(tmp_path, capsys):
    made.png_slices(tmp_path, {0: "A", 2: "B", 11: None})
    made.crop(tmp_path)
    made.negatives(tmp_path, {"free": ["a", "b"]})
    for name, data in (("volume", made.phantom(3).ct), ("segmentation", made.phantom(3).labels > 0)):
        made.save_nifti(tmp_path / f"chaos3/{name}.nii.gz", data.astype(np.int16))
    out = tmp_path / "store"
    main(["--shared", str(tmp_path), "-o", str(out), "--size", "64"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "left out: lits_png/case11: no labels (label_ZZZ.png)"
    assert lines[1].startswith("train: 4 cases, 4 patients, 132 slices, ")
    assert lines[2:5] == ["  lits_png: 2", "  lits_crop: 128", "  free: 2"]
    assert Store.open(out).split.tolist() == ["validation"] * 2 + ["train"] * 132 + ["validation"] * 6
    with pytest.raises(SystemExit, match="error: validation: no patients Q; there are A, B, Z, a, b,"):
        main(["--shared", str(tmp_path), "-o", str(out), "--validation", "Q"])
