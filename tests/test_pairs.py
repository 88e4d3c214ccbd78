"""Which prediction belongs to which truth, by file names alone."""

from pathlib import Path

import pytest

from trtseg.errors import ArgumentError, InputError
from trtseg.pairs import Matched, Pair, match


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
    pair = Pair(prediction, Path(f"p/{prediction}.nii.gz"), Path(f"t/{truth}.nii"))
    assert match(Path("p"), Path("t")) == Matched((pair,))


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [("volume-1", "segmentation-11"), ("volume-1", "volume-01"), ("a", "A"), ("a", "a_1")],
)
def test_files_of_other_cases_are_not(files, prediction, truth):
    files(f"p/{prediction}.nii.gz", f"t/{truth}.nii.gz")
    with pytest.raises(InputError, match=r"^p: none of its 1 label maps has the name of one of the 1 in t;"):
        match(Path("p"), Path("t"))


def test_a_folder_may_hold_cts_and_labels(files):
    files(
        "p/volume-3_seg.nii.gz", "t/segmentation-3.nii", "t/volume-3.nii", "t/._segmentation-3.nii", "t/a.txt"
    )
    pair = Pair(
        "volume-3_seg", Path("p/volume-3_seg.nii.gz"), Path("t/segmentation-3.nii"), Path("t/volume-3.nii")
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


def test_what_cannot_be_paired_is_refused(files):
    files("p/a.nii", "t/a.nii", "t/a.nii.gz", "file.nii")
    p, t, file = Path("p"), Path("t"), Path("file.nii")
    with pytest.raises(InputError, match=r"t: a\.nii and a\.nii\.gz might be the same case"):
        match(p, t)
    with pytest.raises(ArgumentError, match=r"^prediction, truth: got the folder p and the file file\.nii; "):
        match(file, p)
    with pytest.raises(ArgumentError, match=r"^CTS: got file\.nii; expected a folder"):
        match(p, p, file, names=("P", "T", "CTS"))
