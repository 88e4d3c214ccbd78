"""``trtseg segment`` on what is no CT: one clear line, exit code 2 or 3, and no file."""

import gzip
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import refused, run, run_without_privileges

import trtseg
from trtseg.phantom import abdomen

RAS = np.diag([-6.0, -6.0, 20.0, 1.0])


def image_of(array, affine=RAS):
    return lambda path: nib.save(nib.Nifti1Image(array, affine), path)


def header_with(offset: int, format_: str, *values):
    """A valid file of which some bytes of the header are then replaced."""

    def write(path):
        image_of(np.full((32, 32, 8), -500, np.int16))(path)
        data = bytearray(gzip.decompress(path.read_bytes()))
        new = np.array(values, format_).tobytes()
        data[offset : offset + len(new)] = new
        path.write_bytes(gzip.compress(bytes(data)))

    return write


def truncated(path):
    rng = np.random.default_rng(0)
    image_of(rng.integers(-1000, 1000, (32, 32, 8), np.int16))(path)
    path.write_bytes(path.read_bytes()[:5000])


def ct(dtype=np.float32):
    return abdomen((12, 64, 64), (20.0, 6.0, 6.0)).ct.transpose(2, 1, 0).astype(dtype)


def with_voxel(value):
    array = ct()
    array[30, 30, 5] = value
    return array


NOT_HU = "not in Hounsfield units: values run from 0 to {} and 0 of 49152 voxels are at or below -50"
BAD = {
    "missing": (lambda path: None, "no such file; check the path"),
    "folder": (lambda path: path.mkdir(), "is a folder; expected a .nii or .nii.gz file"),
    "link to itself": (lambda path: path.symlink_to(path), "cannot be opened ([Errno 40] Too many levels"),
    "text": (lambda path: path.write_text("this is no image\n" * 50), "it starts with b'this is ')"),
    "gzipped text": (
        lambda path: path.write_bytes(gzip.compress(b"text" * 500)),
        "gzip, but what is inside is not NIfTI",
    ),
    "empty": (lambda path: path.write_bytes(b""), "neither gzip nor NIfTI (it starts with b'')"),
    "truncated": (truncated, "ended before the end-of-stream marker was reached); the file is truncated"),
    "NaN": (image_of(with_voxel(np.nan)), "1 of 49152 voxels are NaN or infinite"),
    "infinite": (image_of(with_voxel(-np.inf)), "1 of 49152 voxels are NaN or infinite"),
    "3 channels": (
        image_of(np.full((32, 32, 8, 3), -500, np.int16)),
        "got shape 32 x 32 x 8 x 3, 3 channels",
    ),
    "frames": (image_of(np.full((32, 32, 8, 2), -500, np.int16)), "got shape 32 x 32 x 8 x 2, 2 frames"),
    "2-D": (image_of(np.full((32, 32), -500, np.int16)), "got a 2-D image of 32 x 32; expected a volume"),
    "zero-size axis": (
        header_with(40, "<i2", 3, 32, 32, 0),
        "got shape 32 x 32 x 0; expected at least one voxel an axis",
    ),
    "singular affine": (
        header_with(280, "<f4", 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0),
        "affine: singular, two voxel axes point the same way",
    ),
    "8 bit": (image_of(np.clip((ct() + 160) / 400 * 255, 0, 255).astype(np.uint8)), NOT_HU.format(255)),
    "MR": (
        image_of(np.random.default_rng(0).gamma(2, 150, (64, 64, 12)).astype(np.int16)),
        NOT_HU.format(2217),
    ),
    "1 voxel": (image_of(np.full((1, 1, 1), -500, np.int16)), "got axial slices of 1 x 1 pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_one_clear_line_and_no_file(here, model, name):
    write, message = BAD[name]
    write(here / "bad.nii.gz")
    before = sorted(os.listdir())
    done = run("segment", "bad.nii.gz", "--model", model, "-o", "out.nii.gz", "--report", "--preview")
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: bad.nii.gz: ")
    assert message in line
    assert done.stdout == ""
    assert sorted(os.listdir()) == before


def test_one_bad_case_of_several_is_3_and_the_others_are_written(here, model, phantom_ct):
    shutil.copy(phantom_ct, "good.nii.gz")
    Path("bad.nii.gz").write_text("text")
    done = run("segment", "bad.nii.gz", "good.nii.gz", "missing.nii.gz", "--model", model, "-o", "out")
    assert done.exit_code == 3, done.output
    assert os.listdir("out") == ["good_seg.nii.gz"]
    bad, missing = done.stderr.splitlines()
    assert "bad.nii.gz" in bad
    assert "missing.nii.gz" in missing
    assert "good.nii.gz" in done.stdout


def test_all_of_several_bad_is_2_and_leaves_no_folder(here, model):
    done = run("segment", "a.nii.gz", "b.nii.gz", "--model", model, "-o", "new/out")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 2
    assert os.listdir() == []


def test_a_bug_shows_its_traceback_and_the_others_go_on(here, model, phantom_ct, monkeypatch):
    for name in ("one.nii.gz", "two.nii.gz"):
        shutil.copy(phantom_ct, name)
    original = trtseg.api.Segmenter.segment

    def broken(self, volume, **kwargs):
        if volume.name == "one.nii.gz":
            raise ZeroDivisionError("a bug")
        return original(self, volume, **kwargs)

    monkeypatch.setattr(trtseg.api.Segmenter, "segment", broken)
    done = run("segment", "one.nii.gz", "two.nii.gz", "--model", model, "-o", "out")
    assert done.exit_code == 1
    assert "ZeroDivisionError: a bug" in done.stderr
    assert "one.nii.gz" in done.stderr
    assert os.listdir("out") == ["two_seg.nii.gz"]


def test_an_input_that_may_not_be_read_does_not_stop_the_others(here, model, phantom_ct):
    for name in ("good.nii.gz", "mine.nii.gz"):
        shutil.copy(phantom_ct, name)
    (here / "mine.nii.gz").chmod(0)
    (here / "locked").mkdir()
    shutil.copy(phantom_ct, "locked/in.nii.gz")
    (here / "locked").chmod(0o600)
    inputs = ("mine.nii.gz", "locked/in.nii.gz", "good.nii.gz")
    done = run_without_privileges("segment", *inputs, "--model", model, "-o", "out")
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines() == [
        f"error: {name}: no permission to read it; change the file's mode or owner" for name in inputs[:2]
    ]
    assert os.listdir("out") == ["good_seg.nii.gz"]
    done = run_without_privileges("segment", "locked/in.nii.gz", "--model", model)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_names_that_are_too_long(here, model, phantom_ct):
    longest = "n" * 248 + ".nii.gz"  # 255 bytes; with _seg it is too much
    shutil.copy(phantom_ct, longest)
    for name, message in ((longest, "the name is too long"), ("n" * 249 + ".nii.gz", "the name is too long")):
        line = refused(message, name, "--model", model)
        assert "choose a shorter one" in line
    assert os.listdir() == [longest]
    refused("File name too long", "n" * 300 + ".nii.gz", "--model", model, "-o", "out.nii.gz")
    assert run("segment", longest, "--model", model, "-o", "out.nii.gz").exit_code == 0
