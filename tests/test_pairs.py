"""Which prediction belongs to which truth by file names, and how their grids are measured."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import distance
from scipy.spatial.transform import Rotation

from trtseg.errors import ArgumentError, InputError
from trtseg.io import save
from trtseg.pairs import Matched, Pair, match, score
from trtseg.volume import Geometry


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A function that makes empty files."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()

    return make


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [
        ("a", "a"),
        ("volume-12_seg", "segmentation-12"),  # `trtseg segment` on LiTS
        ("volume-12", "segmentation-12"),
        ("12", "segmentation-12"),
        ("liver_1_0000_seg", "liver_1"),  # `trtseg segment` on nnU-Net's images
        ("liver_1", "liver_1"),
        ("phantom_seg", "phantom_labels"),
        ("volume-x", "volume-x"),
    ],
)
def test_files_of_one_case_are_paired(files, prediction, truth):
    files(f"p/{prediction}.nii.gz", f"t/{truth}.nii")
    name = prediction.removesuffix("_seg")  # as the table of a cohort calls the case
    pair = Pair(name, Path(f"p/{prediction}.nii.gz"), Path(f"t/{truth}.nii"))
    assert match(Path("p"), Path("t")) == Matched((pair,))


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [("volume-1", "segmentation-11"), ("volume-1", "volume-01"), ("a", "A"), ("a", "a_1"), ("volume-x", "x")],
)
def test_files_of_other_cases_are_not(files, prediction, truth):
    files(f"p/{prediction}.nii.gz", f"t/{truth}.nii.gz")
    with pytest.raises(InputError, match=r"^p: none of its 1 label maps has the name of one of the 1 in t;"):
        match(Path("p"), Path("t"))


def test_a_folder_may_hold_cts_and_labels(files):
    files(
        "p/volume-3_seg.nii.gz", "t/segmentation-3.nii", "t/volume-3.nii", "t/._segmentation-3.nii", "t/a.txt"
    )
    files("p/volume-3.nii.gz", "p/.trash/volume-4.nii", "t/.trash/volume-4.nii")
    pair = Pair(
        "volume-3", Path("p/volume-3_seg.nii.gz"), Path("t/segmentation-3.nii"), Path("t/volume-3.nii")
    )
    assert match(Path("p"), Path("t"), Path("t")) == Matched((pair,))
    assert match(pair.prediction, pair.truth, Path("t")) == Matched((pair,))  # two files, and a folder of CTs
    assert match(pair.prediction, pair.truth, Path("any.nii")).pairs[0].ct == Path("any.nii")


def test_files_without_partner_are_told(files):
    files("p/both.nii", "p/mine.nii", "t/both.nii", "t/theirs.nii", "t/others.nii", "ct/mine.nii")
    matched = match(Path("p"), Path("t"), Path("ct"))
    assert matched == Matched(
        (Pair("both", Path("p/both.nii"), Path("t/both.nii")),),
        (Path("p/mine.nii"),),
        (Path("t/others.nii"), Path("t/theirs.nii")),
    )


def test_no_two_cases_have_one_name(files):
    files("p/a/b_c.nii", "p/a_b/c.nii", "t/a/b_c.nii", "t/a_b/c.nii")
    assert {pair.name for pair in match(Path("p"), Path("t")).pairs} == {"a/b_c", "a_b/c"}


def test_pairs_of_one_file_name_come_in_the_order_of_their_folders(files):
    cases = [f"{n}/seg" for n in "abcdefghij"]
    files(*(f"{side}/{case}.nii" for side in "pt" for case in cases))
    assert [pair.name for pair in match(Path("p"), Path("t")).pairs] == cases


def test_labels_on_a_tilted_grid_are_measured_upright(tmp_path):
    affine = np.diag([1.0, 1, 5, 1])
    affine[1, 2] = 5 * np.tan(np.radians(25))
    labels = np.zeros((40, 40, 12), np.uint8)
    labels[5:35, 5:35, 2:9] = 1
    labels[10:20, 10:20, 4:8] = 2
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "truth.nii.gz")
    nib.save(nib.Nifti1Image(np.roll(labels, 1, axis=2), affine), tmp_path / "found.nii.gz")
    (pair,) = match(tmp_path / "found.nii.gz", tmp_path / "truth.nii.gz").pairs
    scores = score(pair)
    assert scores.predicted_ml == pytest.approx(2.0)  # 400 voxels of 1 x 1 x 5 mm
    # From plane to plane 5 mm, and to the next of the rows there, which lie 2.33 mm farther back: 0.33 mm aside.
    assert scores.liver.surface.hd95 == pytest.approx(np.hypot(5.0, affine[1, 2] - 2))
    assert scores.warnings == ()


@pytest.mark.parametrize(
    "sheared", [(1, 2), (0, 2), (0, 1), (2, 1)], ids=["tilt", "x of z", "x of y", "z of y"]
)
def test_distances_and_volumes_on_a_sheared_grid_are_those_of_the_places(tmp_path, sheared):
    shear = np.eye(3)
    shear[sheared] = 0.5
    affine = np.eye(4)
    affine[:3, :3] = (
        Rotation.from_euler("xyz", [8, 5, -6], degrees=True).as_matrix() @ shear * (0.8, 0.9, 3.0)
    )
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.standard_normal((2, 24, 22, 10)), (0, 2, 2, 1))
    inside = ndimage.gaussian_filter(np.pad(np.ones((12, 10, 4)), ((6, 6), (6, 6), (3, 3))), 1)
    labels = (inside + 3 * smooth > 0.5).astype(np.uint8)
    labels[:, 9:14, 8:13, 4:6] = 2
    labels[0, 9, 8:13, 4:6] = 1
    for name, one in zip(("found", "truth"), labels, strict=True):
        nib.save(nib.Nifti1Image(one, affine), tmp_path / f"{name}.nii")
    (pair,) = match(tmp_path / "found.nii", tmp_path / "truth.nii").pairs
    scores = score(pair)
    ml = abs(np.linalg.det(affine)) / 1000
    for region, lowest in (("liver", 1), ("tumour", 2)):
        surfaces = []
        for one in labels >= lowest:
            inner = ndimage.binary_erosion(one, ndimage.generate_binary_structure(3, 1))
            surfaces.append(np.argwhere(one & ~inner) @ affine[:3, :3].T)
        apart = distance.cdist(*surfaces)
        there, back = apart.min(axis=1), apart.min(axis=0)
        both = np.concatenate([there, back])
        found = scores.to_dict()[region]
        assert found["assd"] == pytest.approx(both.mean(), rel=1e-5)
        assert found["rmsd"] == pytest.approx(np.sqrt((both**2).mean()), rel=1e-5)
        assert found["msd"] == pytest.approx(both.max(), rel=1e-5)
        assert found["hd95"] == pytest.approx(
            max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5
        )
        counts = [np.count_nonzero(one >= lowest) * ml for one in labels]
        assert [found["ml"]["predicted"], found["ml"]["true"]] == pytest.approx(counts, rel=1e-5)
    (lesion,) = scores.lesions.surfaces
    assert (lesion.assd, lesion.hd95) == (scores.tumour.surface.assd, scores.tumour.surface.hd95)


def test_a_grid_that_is_not_known_is_said(tmp_path):
    for name in ("truth.nii", "found.nii"):
        nib.save(nib.Nifti1Image(np.ones((16, 16, 16), np.uint8), None), tmp_path / name)
    (pair,) = match(tmp_path / "found.nii", tmp_path / "truth.nii").pairs
    (warning,) = score(pair).warnings
    assert warning.startswith(f"{tmp_path}/truth.nii: ")
    assert "orientation" in warning
    assert score(pair).to_dict()["warnings"] == [warning]


def test_a_truth_with_none_of_the_labels_that_mean_something_is_said(tmp_path):
    affine = np.diag([2.0, 2, 2, 1])
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[4:12, 4:12, 4:12] = 6
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "truth.nii")
    nib.save(nib.Nifti1Image(np.minimum(labels, 1), affine), tmp_path / "found.nii")
    nib.save(nib.Nifti1Image(np.zeros_like(labels), affine), tmp_path / "empty.nii")
    nib.save(nib.Nifti1Image(np.minimum(labels, 1), 1.5 * affine), tmp_path / "large.nii")
    (pair,) = match(tmp_path / "found.nii", tmp_path / "truth.nii").pairs
    right = score(pair, liver_only=True, meaning={6: 1})
    assert (right.name, right.tumour) == ("found", None)
    assert (right.liver.overlap.dice, right.warnings) == (1.0, ())
    assert score(replace(pair, truth=tmp_path / "empty.nii")).warnings == ()
    with pytest.raises(InputError, match=r"large\.nii"):
        score(replace(pair, truth=tmp_path / "large.nii"))
    wrong = score(pair, liver_only=True, meaning={5: 1, 7: 1})
    assert wrong.liver.overlap.dice == 0.0
    assert wrong.warnings == (
        f"{tmp_path}/truth.nii: has none of the labels 5, 7, so its truth is that there is no liver",
    )


def test_a_truth_of_tumours_without_a_liver_is_doubted(tmp_path):
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[4:12, 4:12, 4:12] = 6
    labels[6:8, 6:8, 6:8] = 9
    for name in ("truth.nii", "found.nii"):
        array = labels if name == "truth.nii" else np.select([labels == 6, labels == 9], [1, 2])
        nib.save(nib.Nifti1Image(array.astype(np.uint8), np.diag([2.0, 2, 2, 1])), tmp_path / name)
    (pair,) = match(tmp_path / "found.nii", tmp_path / "truth.nii").pairs
    assert score(pair, meaning={6: 1, 9: 2}).warnings == ()
    (warning,) = score(pair, meaning={5: 1, 9: 2}).warnings
    assert warning.startswith(f"{tmp_path}/truth.nii: Nothing is liver but the tumours")


@pytest.mark.parametrize("prediction", ["tumours.nii", "tumours.nrrd"])
def test_a_prediction_of_tumours_without_a_liver_is_doubted(tmp_path, prediction):
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[4:12, 4:12, 4:12] = 1
    labels[6:8, 6:8, 6:8] = 2
    geometry = Geometry.from_affine((16, 16, 16), np.diag([2.0, 2, 2, 1]))
    save(tmp_path / "truth.nii", labels, geometry)
    save(tmp_path / prediction, np.where(labels == 2, labels, 0), geometry)
    (warning,) = score(Pair("a", tmp_path / prediction, tmp_path / "truth.nii")).warnings
    assert warning.startswith(f"{tmp_path / prediction}: Nothing is liver but the tumours")


def test_links_to_folders_are_followed_but_not_in_a_circle(files):
    files("p/a.nii", "t/a.nii", "more/b.nii", "true/b.nii")
    for name, target in (
        ("p/other", "../more"),
        ("t/other", "../true"),
        ("p/back", "."),
        ("true/up", "../t"),
    ):
        Path(name).symlink_to(target)
    found = match(Path("p"), Path("t"))
    assert [pair.name for pair in found.pairs] == ["a", "other/b"]
    assert not found.predictions
    assert not found.truths
    Path("p/first").symlink_to("second")
    files("p/second/c.nii", "t/second/c.nii")
    found = match(Path("p"), Path("t"))
    assert [pair.name for pair in found.pairs] == ["a", "other/b", "second/c"]
    assert found.predictions == (Path("p/first/c.nii"),)


def test_a_folder_that_cannot_be_listed_is_named(files, monkeypatch):
    files("p/a.nii", "t/a.nii")

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"^p: cannot be listed \(Permission denied\); check the path"):
        match(Path("p"), Path("t"))


def test_what_cannot_be_paired_is_refused(files):
    files("p/a.nii", "t/a.nii", "t/a.nii.gz", "file.nii")
    p, t, file = Path("p"), Path("t"), Path("file.nii")
    with pytest.raises(InputError, match=r"t: a\.nii and a\.nii\.gz might be the same case"):
        match(p, t)
    with pytest.raises(ArgumentError, match=r"^prediction, truth: got the folder p and the file file\.nii; "):
        match(file, p)
    with pytest.raises(ArgumentError, match=r"^CTS: got file\.nii; expected a folder"):
        match(p, p, file, names=("P", "T", "CTS"))
