"""DICOM series: the voxels and their places, and which files are no series."""

from __future__ import annotations

import dicom_made
import nibabel as nib
import numpy as np
import pytest
import training_data as made

from trtseg import io
from trtseg.errors import InputError
from trtseg.io import load
from trtseg.io.dicom import read_dicom_series

ORDER = (3, 0, 5, 1, 4, 2)  # slice of each file, feet to head


def write(folder, seed=0, series="1.2.3", intercept=0):
    """Write the phantom's six slices, file by file in `ORDER`, as one series."""
    for number, z in enumerate(ORDER):
        path = folder / f"image_{number}"
        made.save_dicom(path, made.phantom(seed).ct[z], 100 + z * made.SPACING[0], intercept, series=series)
    return folder


@pytest.mark.parametrize("intercept", [0, -1024])
def test_a_folder_is_read_as_it_lies_in_space(tmp_path, intercept):
    write(tmp_path / "ct", intercept=intercept)
    (tmp_path / "ct" / ".DS_Store").write_bytes(b"no DICOM")
    volume = load(tmp_path / "ct")
    assert (volume.array == made.phantom(0).ct).all()
    assert volume.spacing == pytest.approx(made.SPACING)
    assert volume.affine[:3, 3].tolist() == pytest.approx([180, 150, 100])  # RAS of LPS (-180, -150, 100)
    assert volume.name == "ct"
    series = volume.geometry.source
    assert [path.name for path in series.files] == [f"image_{n}" for n in range(6)]
    stored = volume.geometry.restore(volume.array).T  # [slice, row, column]
    for index, one, z in zip(series.index, series.slices, ORDER, strict=True):
        assert one.position.tolist() == [-180, -150, 100 + z * made.SPACING[0]]
        assert (stored[index] == made.phantom(0).ct[z]).all()


def test_labels_are_written_on_the_grid_of_the_series(tmp_path):
    volume = load(write(tmp_path / "ct"))
    io.save(tmp_path / "labels.nii.gz", made.phantom(0).labels, volume.geometry)
    written = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(volume.geometry.canonical(np.asarray(written.dataobj)), made.phantom(0).labels)
    assert np.allclose(written.affine, volume.geometry.affine)


def test_a_volume_shows_no_name_of_a_patient(tmp_path):
    volume = load(dicom_made.save_series(tmp_path / "ct", made.phantom(0).ct))
    assert "Secret" in str(volume.geometry.source.headers[0])
    for shown in (volume, volume.geometry, volume.geometry.source):
        assert "secret" not in repr(shown).lower()


def test_files_of_two_series_are_no_series_unless_ids_are_ignored(tmp_path):
    write(tmp_path)
    made.save_dicom(tmp_path / "other", made.phantom(0).ct[0], 100 + 6 * made.SPACING[0], series="1.2.4")
    with pytest.raises(InputError, match="got files of 2 series; expected one"):
        read_dicom_series(sorted(tmp_path.iterdir()))
    assert len(read_dicom_series(sorted(tmp_path.iterdir()), ignore_ids=True).array) == 7
    assert len(load(tmp_path).array) == 6


def test_folders_that_hold_no_series(tmp_path):
    with pytest.raises(InputError, match=r"is a folder; expected a \.nii or \.nii\.gz file, or a folder"):
        load(tmp_path)
    with pytest.raises(InputError, match="files: got none"):
        read_dicom_series([])
    write(tmp_path / "placeless")
    made.save_dicom(tmp_path / "placeless/image_0", made.phantom(0).ct[3], None, series="1.2.3")
    with pytest.raises(
        InputError, match="image_0: no ImagePositionPatient, ImageOrientationPatient; expected"
    ):
        load(tmp_path / "placeless")


def test_stored_values_without_their_intercept_are_no_hounsfield_units(tmp_path):
    for number, z in enumerate(ORDER):
        made.save_dicom(tmp_path / str(number), made.phantom(0).ct[z] + 1024, z * made.SPACING[0], series="1")
    with pytest.raises(InputError, match="not in Hounsfield units"):
        load(tmp_path)
