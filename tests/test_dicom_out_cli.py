"""DICOM objects from the command line and from cohorts, and on real CT."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tiny
from dicom_checks import complaints, errors, labels_by_instance, labels_by_place
from dicom_made import save_series

from training.archive import unpack
from trtseg import Segmenter, cohort
from trtseg.cli import app
from trtseg.errors import ArgumentError
from trtseg.io import load
from trtseg.io.find import made_by
from trtseg.phantom import abdomen
from trtseg.result import Segmentation

pytest.importorskip("highdicom")
typer_testing = pytest.importorskip("typer.testing")
SHAPE = (6, 50, 52)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two CTs as DICOM series, and a model."""
    root = tmp_path_factory.mktemp("dicom")
    for n in (1, 2):
        ids = {"StudyInstanceUID": f"1.2.{n}", "SeriesInstanceUID": f"1.2.{n}.1"}
        save_series(root / "cts" / f"ct{n}", abdomen(SHAPE, (40.0, 8.0, 7.0), seed=n).ct, **ids)
    tiny.cascade_model(root / "model")
    return root


def run(*arguments: object):
    return typer_testing.CliRunner().invoke(app, ["segment", *map(str, arguments)])


def test_one_file_and_its_nifti_twin(folder, tmp_path):
    ct = folder / "cts/ct1"
    options = ("--model", folder / "model", "--min-tumour-ml", 1, "-q")
    assert run(ct, "-o", tmp_path / "out.dcm", *options).exit_code == 0
    assert run(ct, "-o", tmp_path / "out.nii.gz", *options).exit_code == 0
    assert errors(tmp_path / "out.dcm") == []
    labels = np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj).T  # [slice, row, column]
    assert set(np.unique(labels)) == {0, 1, 2}
    files = load(ct).geometry.source
    got = labels_by_instance(tmp_path / "out.dcm", [str(h.SOPInstanceUID) for h in files.headers])
    assert np.array_equal(got, labels[list(files.index)])
    assert made_by(tmp_path / "out.dcm") == made_by(tmp_path / "out.nii.gz")
    assert made_by(ct / "001") is None


def test_several_objects_of_several_cts(folder, tmp_path):
    arguments = (
        folder / "cts",
        "-o",
        tmp_path / "out",
        "--dicom",
        "seg,sr,sc",
        "--report",
        "--model",
        folder / "model",
    )
    assert run(*arguments).exit_code == 0
    for n in (1, 2):
        found = sorted(path.name for path in (tmp_path / f"out/ct{n}_dicom").iterdir())
        assert found[-3:] == ["seg.dcm", "seg.json", "sr.dcm"]
        assert found[0] == "sc_0001.dcm"
        seg = pydicom.dcmread(tmp_path / f"out/ct{n}_dicom/seg.dcm")
        assert seg.StudyInstanceUID == f"1.2.{n}"
    before = (tmp_path / "out/ct1_dicom/seg.dcm").read_bytes()
    (tmp_path / "out/ct2_dicom/sr.dcm").unlink()
    again = run(*arguments)
    assert "1 of 2 cases are complete" in again.output
    assert (tmp_path / "out/ct1_dicom/seg.dcm").read_bytes() == before
    assert (tmp_path / "out/ct2_dicom/sr.dcm").exists()


def test_an_old_picture_that_cannot_be_removed_is_an_error_of_its_case(folder, tmp_path):
    arguments = (folder / "cts", "-o", tmp_path, "--dicom", "sc", "--model", folder / "model", "--overwrite")
    assert run(*arguments).exit_code == 0
    left = len(list((tmp_path / "ct1_dicom").iterdir())) + 1
    (tmp_path / f"ct1_dicom/sc_{left:04}.dcm").mkdir()
    again = run(*arguments)
    assert again.exit_code == 3, again.output
    (line,) = [line for line in again.output.splitlines() if line.startswith("error: ")]
    assert "ct1_dicom: cannot be written" in line


def test_what_cannot_be(folder, tmp_path):
    nifti = tmp_path / "ct.nii.gz"
    nib.save(nib.Nifti1Image(abdomen(SHAPE).ct, np.eye(4)), nifti)
    for output, kinds, reason in (
        (tmp_path / "out.dcm", (), r"DICOM output was asked for, and .*ct\.nii\.gz is no DICOM series"),
        (tmp_path, ("seg",), "is no DICOM series"),
        (tmp_path / "out.nii.gz", ("seg",), "got the file .* for several DICOM objects; expected a folder"),
        (tmp_path, ("rtstruct",), "dicom: got rtstruct; expected some of seg, labelmap, sr, sc"),
    ):
        with pytest.raises(ArgumentError, match=reason), cohort.plan([nifti], output, dicom=kinds):
            pass
    assert run(nifti, "-o", tmp_path / "out.dcm").exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["ct.nii.gz"]


REAL = ("chaos3", "ircadb01", "crlm1006", "tcga_lihc", "amos0001", "totalseg_dicom20", "dcmqi_ct3")


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_series(shared_data, tmp_path, name):
    """By a formula, but for one case: what lies between 60 and 200 HU in a box is liver, or tumour below 100 HU."""
    source = shared_data / name
    for archive in source.glob("*.tar.xz"):
        unpack(archive, tmp_path / "in")
    if name == "dcmqi_ct3":
        source_folder = tmp_path / "in"
        source_folder.mkdir()
        for path in source.glob("0*.dcm"):
            (source_folder / path.name).write_bytes(path.read_bytes())
    inner = {"chaos3": "DICOM_anon", "amos0001": "img"}.get(name, ".")
    for path in (tmp_path / "in").rglob("*.dcm"):  # 12 slices of one CT, of which three lie evenly
        if name == "tcga_lihc" and path.stem not in ("000023", "000026", "000029"):
            path.unlink()
    volume = load(tmp_path / "in" / inner)
    if name == "crlm1006":
        result = Segmenter().segment(volume)
    else:
        labels = np.zeros(volume.array.shape, np.uint8)
        middle = tuple(slice(n // 4, n - n // 4) if n > 4 else slice(0, n) for n in labels.shape)
        hu = volume.array[middle]
        labels[middle] = np.where((hu > 60) & (hu < 200), np.where(hu < 62, 2, 1), 0)
        labels[middle][:, ::7] = np.minimum(labels[middle][:, ::7], 1)  # specks
        result = Segmentation.measure(labels, volume, provenance={"model": "formula", "model_version": "1"})
    paths = result.save_dicom(tmp_path, ["seg", "labelmap", "sr", "sc"])
    said = {path.name: complaints(path) for path in paths[:4]}
    assert not [line for lines in said.values() for line in lines if line.startswith("Error")]
    series = volume.geometry.source
    result.save(tmp_path / "seg.nii.gz")
    twin = np.asarray(nib.load(tmp_path / "seg.nii.gz").dataobj).T  # [slice, row, column]
    positions = np.array([one.position for one in series.slices])
    for kind in ("seg", "labelmap"):
        got = labels_by_place(tmp_path / f"{kind}.dcm", positions)
        assert np.array_equal(got, twin[list(series.index)])
