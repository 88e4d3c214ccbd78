"""All files that a CT consists of."""

from pathlib import Path

import dicom_made as made
import numpy as np
import pytest

from trtseg.errors import InputError
from trtseg.io.dicom.find import find_files
from trtseg.io.parts import files_of

PICTURE = np.zeros((16, 24), np.int16)


def names(path):
    return [one.name for one in files_of(path)]


def test_of_most_files_nothing_but_themselves(tmp_path):
    for name in ("a.nii.gz", "a.zip", "a.img.gz", "a.mha"):
        (tmp_path / name).write_bytes(b"x")
        assert names(tmp_path / name) == [name]


def test_both_halves_of_a_pair(tmp_path):
    for name in ("a.img", "a.hdr", "a.txt", "b.hdr"):
        (tmp_path / name).touch()
    assert names(tmp_path / "a.img") == names(tmp_path / "a.hdr") == ["a.hdr", "a.img"]


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("a.mhd", "ObjectType = Image\nElementDataFile = values.raw\n"),
        ("a.nhdr", "NRRD0004\nsizes: 3 4 5\ndata file: values.raw\n"),
        ("b.nhdr", "NRRD0004\r\ndatafile:values.raw\r\n"),
    ],
)
def test_a_detached_header_and_its_data(tmp_path, header, text):
    (tmp_path / header).write_bytes(text.encode())
    assert names(tmp_path / header) == [header]
    (tmp_path / "values.raw").touch()
    assert names(tmp_path / header) == [header, "values.raw"]


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("a.mhd", "ObjectType = Image\nElementDataFile = LIST\nraw/s1[a].raw\nraw/s2[a].raw\n"),
        ("a.mhd", "ObjectType = Image\nElementDataFile = raw/s%d[a].raw 1 2 1\n"),
        ("a.nhdr", "NRRD0004\nsizes: 3 4 5\ndata file: LIST 2\r\nraw/s1[a].raw\r\nraw/s2[a].raw\r\n"),
        ("a.nhdr", "NRRD0004\nsizes: 3 4 5\ndata file: raw/s%01d[a].raw 1 2 1 2\n"),
    ],
)
def test_a_detached_header_and_the_file_of_each_slice(tmp_path, header, text):
    (tmp_path / header).write_bytes(text.encode())
    assert names(tmp_path / header) == [header]
    (tmp_path / "raw").mkdir()
    for name in ("s1[a].raw", "s2[a].raw", "notes.txt"):
        (tmp_path / "raw" / name).touch()
    assert names(tmp_path / header) == [header, "s1[a].raw", "s2[a].raw"]


def test_dicom_files_that_lie_beside_one(tmp_path):
    for name in ("b", "a.dcm", "c.dcm"):
        made.save(tmp_path / name, made.instance(PICTURE))
    (tmp_path / "notes.txt").touch()
    assert names(tmp_path / "b") == ["a.dcm", "b", "c.dcm"]


def test_all_of_a_folder(tmp_path):
    for name in ("b/2", "b/1", "c", "a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [one.relative_to(tmp_path) for one in files_of(tmp_path)] == [*map(Path, ("a", "c", "b/1", "b/2"))]


def test_links_of_a_folder_are_followed_as_reading_does_and_hidden_files_are_not_read(tmp_path):
    for name in ("far/ct", "ct/.hidden", "ct/.cache/a", "ct/own"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "ct/series").symlink_to(tmp_path / "far")
    (tmp_path / "ct/back").symlink_to(tmp_path / "ct")
    (tmp_path / "ct/nowhere").symlink_to(tmp_path / "gone")
    assert names(tmp_path / "ct") == ["own", "ct"]


def test_a_file_that_is_not_there(tmp_path):
    assert names(tmp_path / "a.img") == []
    assert names(tmp_path / "a.nii") == ["a.nii"]
    with pytest.raises(OSError, match=r"a\.mhd"):
        names(tmp_path / "a.mhd")
    with pytest.raises(InputError, match=r"gone/ct\.dcm"):
        find_files(tmp_path / "gone/ct.dcm")
