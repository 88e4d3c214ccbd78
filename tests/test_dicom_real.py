"""The traps of real DICOM files; skipped where there are none."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pydicom
import pytest

from training.archive import unpack
from trtseg.errors import InputError
from trtseg.io import load
from trtseg.io.dicom import list_series


def some_of(archive, folder, *endings):
    """Unpack a file for each of the endings of names."""
    folder.mkdir()
    with tarfile.open(archive) as tar:
        wanted = (member for member in tar if member.isfile() and member.name.endswith(endings))
        for member in itertools.islice(wanted, len(endings)):
            (folder / Path(member.name).name).write_bytes(tar.extractfile(member).read())
    return folder


@pytest.mark.slow  # tests/test_readers.py compares the values too
def test_chaos_is_the_same_through_dicom_and_nifti(shared_data, tmp_path):
    """Stored head to foot, with a SliceThickness that is not the distance of slices."""
    unpack(shared_data / "chaos3/DICOM_anon.tar.xz", tmp_path)
    dicom, nifti = load(tmp_path), load(shared_data / "chaos3/volume.nii.gz")
    assert np.array_equal(dicom.array, nifti.array)
    assert dicom.spacing == pytest.approx(nifti.spacing) == (2.0, 0.7265625, 0.7265625)
    assert np.allclose(dicom.affine, nifti.affine, atol=1e-3)
    assert dicom.warnings == nifti.warnings == ()


@pytest.mark.slow  # so does it
def test_ircadb_has_no_file_endings_and_counts_from_0(shared_data, tmp_path):
    names = [f"image_{n}" for n in range(5)]
    volume = load(some_of(shared_data / "ircadb01/PATIENT_DICOM.tar.xz", tmp_path / "ct", *names))
    series = volume.geometry.source
    assert [path.name for path in series.files] == names
    assert series.index == (0, 1, 2, 3, 4)
    for path, plane in zip(series.files, volume.array, strict=True):
        assert np.array_equal(plane, pydicom.dcmread(path).pixel_array)  # its intercept is 0


def test_amos_stores_its_rows_from_back_to_front(shared_data, tmp_path):
    names = [f"img/amos_0001_slice006{n}.dcm" for n in range(1, 6)]
    volume = load(some_of(shared_data / "amos0001/DICOM.tar.xz", tmp_path / "ct", *names))
    file, index = volume.geometry.source.files[0], volume.geometry.source.index[0]
    assert np.array_equal(volume.array[::-1][index], pydicom.dcmread(file).pixel_array[::-1])


def test_tcga_has_odd_numbers_and_no_transfer_syntax(shared_data, tmp_path):
    folder = some_of(
        shared_data / "tcga_lihc/DICOM.tar.xz", tmp_path / "ct", "02.dcm", "05.dcm", "08.dcm", "11.dcm"
    )
    with pytest.raises(InputError, match=r"slices lie 24 to 40 mm apart|slices are missing"):
        load(folder)  # four of many
    first, *others = sorted(folder.rglob("*.dcm"))
    for path in others:
        path.unlink()
    expected = load(first)
    assert expected.array.min() == -1024
    assert expected.spacing == pytest.approx((8, 0.6757812, 0.6757812))  # SliceThickness 008.000000E+00
    bare = io.BytesIO()
    pydicom.dcmwrite(bare, pydicom.Dataset(pydicom.dcmread(first)), implicit_vr=True, little_endian=True)
    first.write_bytes(bare.getvalue())
    assert np.array_equal(load(folder).array, expected.array)


def test_totalsegmentator_needs_a_decoder(shared_data, tmp_path):
    names = [f"0165{n}" for n in (73, 74, 75, 76, 77)]
    folder = some_of(shared_data / "totalseg_dicom20/example_ct_dicom.tar.xz", tmp_path / "ct", *names)
    for path in folder.rglob("CT*"):
        dataset = pydicom.dcmread(path)
        assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.JPEG2000Lossless
    volume = load(path)
    assert np.array_equal(
        volume.geometry.restore(volume.array).T[volume.geometry.source.index[-1]],
        pydicom.dcmread(volume.geometry.source.files[-1]).pixel_array.astype(np.int16) - 1024,
    )


def test_crlm_is_derived_and_yet_the_ct(shared_data, tmp_path):
    names = [f"1-0{n}.dcm" for n in range(1, 6)]
    volume = load(some_of(shared_data / "crlm1006/image.tar.xz", tmp_path / "ct", *names))
    assert len(volume.array) == 5
    assert volume.spacing == pytest.approx((5, 0.804688, 0.804688))


def test_dcmqi_has_padding_and_a_segmentation_beside_the_ct(shared_data):
    volume = load(shared_data / "dcmqi_ct3")
    stored = pydicom.dcmread(shared_data / "dcmqi_ct3/01.dcm").pixel_array
    index = [path.name for path in volume.geometry.source.files].index("01.dcm")
    plane = volume.geometry.restore(volume.array).T[volume.geometry.source.index[index]]
    assert (stored == -2000).any()
    assert np.array_equal(plane, np.where(stored == -2000, -1000, stored - 1024))
    assert volume.spacing == pytest.approx((1, 0.810547, 0.810547))
    assert [one.reason for one in list_series(shared_data / "dcmqi_ct3")] == ["", "modality SEG, not CT"]
