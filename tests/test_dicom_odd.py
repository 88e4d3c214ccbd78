"""Studies as archives hand them out: hidden and foreign files, phases between each other, rounded and odd headers."""

from __future__ import annotations

import inspect
import sys
import zipfile

import dicom_made as made
import numpy as np
import pydicom
import pytest
from pydicom.pixels import compress
from pydicom.uid import JPEGLSLossless

from trtseg.errors import InputError
from trtseg.io import dicom, load
from trtseg.io.dicom import list_series
from trtseg.phantom import abdomen

CT = abdomen(shape=(8, 40, 52), spacing=(20.0, *made.SPACING), seed=0, lesions=2).ct


def codes(volume):
    return [warning.code for warning in volume.warnings]


def test_a_hidden_file_that_is_named_stands_for_its_own_series(tmp_path):
    made.save_series(tmp_path, CT[:, ::-1], 20, SeriesInstanceUID="1.9")
    for z, plane in enumerate(CT):
        made.save(tmp_path / f".{z}", made.instance(plane, z * 20))
    # of a series whose other files are hidden, the one that is named is there
    with pytest.raises(InputError, match=r"\.3: got one slice without SliceThickness; expected a series"):
        load(tmp_path / ".3")


def test_a_zip_is_read_like_the_folder_that_it_was_made_of(tmp_path):
    made.save_series(tmp_path / "ct", CT, 20)
    made.save_series(tmp_path / "ct/.trash", CT[:, ::-1], 10, SeriesInstanceUID="1.9")
    with zipfile.ZipFile(tmp_path / "ct.zip", "w") as archive:
        for path in (tmp_path / "ct").rglob("*"):
            archive.write(path, path.relative_to(tmp_path))
    for source in ("ct", "ct.zip"):
        assert np.array_equal(load(tmp_path / source).array, CT), source


def test_what_is_called_dicom_and_is_none_refuses_no_study(tmp_path):
    made.save_series(tmp_path / "a", CT, 20)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/notes.dcm").write_text("Call Dr. Who.")
    volume = load(tmp_path)
    assert np.array_equal(volume.array, CT)
    assert "slices-unplaced" in codes(volume)


def test_a_folder_of_nothing_else_says_what_it_holds(tmp_path):
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.dcm: is no DICOM file, or a damaged one"):
        load(tmp_path)


def test_a_file_that_is_cut_off_in_its_header_is_of_no_other_study(tmp_path):
    made.save_series(tmp_path / "a", CT, 20)
    other = made.save(tmp_path / "b/1.dcm", made.instance(CT[0], SeriesInstanceUID="1.9"))
    other.write_bytes(other.read_bytes()[:500])
    assert np.array_equal(load(tmp_path).array, CT)


def test_folders_may_lie_as_deep_as_paths_allow(tmp_path):
    made.save_series(tmp_path / "ct", CT, 20)
    deep = tmp_path
    for _ in range(400):
        deep = deep / "d"
        deep.mkdir()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 250)
    try:
        assert np.array_equal(load(tmp_path).array, CT)
    finally:
        sys.setrecursionlimit(limit)


def test_a_list_of_files_is_called_so(tmp_path):
    made.save_series(tmp_path, CT, 20)
    made.save(tmp_path / "DICOMDIR", made.instance(CT[0]))
    with pytest.raises(InputError, match="DICOMDIR: is a list of files; give the folder that it is in"):
        load(tmp_path / "DICOMDIR")


@pytest.mark.parametrize("damage", ["bit", "zeros", "cut"])
def test_damaged_jpeg_ls_is_not_made_up(tmp_path, damage):
    """The decoder to which pydicom turned where the first one refused gave other pixels."""
    folder = made.save_series(tmp_path, CT, 20)
    path = folder / "004"
    dataset = pydicom.dcmread(path)
    compress(dataset, JPEGLSLossless)
    data = bytearray(dataset.PixelData)
    middle = len(data) // 2
    if damage == "bit":
        data[middle] ^= 0x10
    elif damage == "zeros":
        data[middle : middle + 200] = bytes(200)
    else:
        end = data.rindex(b"\xff\xd9")
        data[middle:end] = b"\xff\xd9".ljust(end - middle, b"\0")
    dataset.PixelData = bytes(data)
    made.save(path, dataset)
    with pytest.raises(InputError, match="004: the compressed pixels cannot be decoded; the file is damaged"):
        load(folder)


@pytest.mark.parametrize("apart", [10.0, 5.0, 0.03])
def test_two_phases_whose_slices_lie_between_each_other_are_not_mixed(tmp_path, apart):
    for number in (1, 2):
        for z, plane in enumerate(CT):
            one = made.instance(plane[:: 3 - 2 * number], z * 20 + number * apart, AcquisitionNumber=number)
            made.save(tmp_path / f"{number}-{z}", one)
    with pytest.raises(
        InputError, match=r"holds 2 volumes in one series .*AcquisitionNumber 1.*AcquisitionNumber 2"
    ):
        load(tmp_path)
    assert np.array_equal(load(tmp_path, series="1.2.3.4/2").array, CT[:, ::-1])


def test_acquisitions_one_above_the_other_are_one_volume(tmp_path):
    for z, plane in enumerate(np.concatenate([CT, CT])):
        made.save(tmp_path / f"{z:02d}", made.instance(plane, z * 20, AcquisitionNumber=1 + z // 8))
    assert len(load(tmp_path).array) == 16


def test_reconstructions_of_one_place_are_told_apart_by_their_thickness(tmp_path):
    for thickness in (1, 5):
        for z, plane in enumerate(CT):
            made.save(
                tmp_path / f"{thickness}-{z}",
                made.instance(plane + thickness, z * 20, SliceThickness=thickness),
            )
    with pytest.raises(
        InputError, match=r"holds 2 volumes in one series .*SliceThickness 1.*SliceThickness 5"
    ):
        load(tmp_path)


def test_a_file_that_is_replaced_while_the_ct_is_read_is_noticed(tmp_path, monkeypatch):
    folder = made.save_series(tmp_path, CT, 20)
    real = dicom.assemble

    def replaced(*arguments):
        made.save(folder / "003", made.instance(CT[0], 0, SeriesInstanceUID="1.9"))
        return real(*arguments)

    monkeypatch.setattr(dicom, "assemble", replaced)
    with pytest.raises(
        InputError, match="003: was replaced by another while the CT was read; read the CT again"
    ):
        load(folder)


def test_how_long_a_direction_is_changes_no_pixel(tmp_path):
    directions = [0.996, 0, 0, 0, 1.003, 0]
    volume = load(made.save_series(tmp_path, CT, 20, ImageOrientationPatient=directions))
    assert volume.spacing == pytest.approx((20.0, *made.SPACING), rel=1e-12)


def test_places_that_are_rounded_to_a_tenth_of_a_millimetre_are_put_on_a_grid(tmp_path):
    rng = np.random.default_rng(0)
    for z in range(60):
        x, y = (rng.choice((-0.05, 0, 0.05)) for _ in range(2))
        place = [round(-180 + x, 2), round(-150 + y, 2), round(z * 0.625, 1)]
        one = made.instance(CT[0] + z, ImagePositionPatient=place, PixelSpacing=[0.6, 0.6])
        made.save(tmp_path / f"{z:02d}", one)
    volume = load(tmp_path)
    assert volume.spacing == pytest.approx((0.625, 0.6, 0.6), rel=0.01)
    assert "geometry-uneven" in codes(volume)


@pytest.mark.parametrize(
    ("image_type", "description", "reason"),
    [
        (["ORIGINAL", "PRIMARY", "AXIAL"], "Abd 1.0 for MIP", ""),
        (["ORIGINAL", "PRIMARY", "AXIAL"], "ABD+SCOUT", ""),
        (["ORIGINAL", "PRIMARY", "AXIAL"], "PREMONITORING", "timing of contrast"),
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], "Abd", "localizer"),
        (["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"], "Abd", "projection (MIP)"),
        (["DERIVED", "SECONDARY", "AXIAL"], "Abd MIP", "projection (MIP)"),
        (["ORIGINAL", "PRIMARY", "AXIAL"], "Abd maximum inspiration", ""),
    ],
)
def test_what_an_image_is_is_told_by_its_type_first(tmp_path, image_type, description, reason):
    made.save_series(tmp_path, CT, 20, ImageType=image_type, SeriesDescription=description)
    (found,) = list_series(tmp_path)
    assert found.reason == reason


def test_the_abdomen_that_is_left_out_is_told(tmp_path):
    made.save_series(tmp_path / "a", CT, 20, BodyPartExamined="HEAD", SeriesInstanceUID="1.1", SeriesNumber=2)
    derived = {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"], "SeriesInstanceUID": "1.2", "SeriesNumber": 3}
    made.save_series(tmp_path / "b", CT, 20, BodyPartExamined="ABDOMEN", **derived)
    volume = load(tmp_path)
    (told,) = (warning.text for warning in volume.warnings if warning.code == "series-choice")
    assert (
        "the series that was taken does not show the abdomen, and one that was left out does: 8 slices"
        in told
    )
    assert "SeriesNumber 3" in told
    assert "series-choice" not in codes(load(tmp_path, series="1.1"))


def test_a_series_of_which_the_header_says_that_it_has_more_is_told(tmp_path):
    made.save_series(tmp_path / "few", CT, 20, NumberOfSeriesRelatedInstances=11)
    volume = load(tmp_path / "few")
    (told,) = (warning.text for warning in volume.warnings if warning.code == "slices-missing")
    assert told.startswith("The headers say that the series has 11 instances, and 8 are here.")
    made.save_series(tmp_path / "all", CT, 20, NumberOfSeriesRelatedInstances=8)
    assert "slices-missing" not in codes(load(tmp_path / "all"))
    for path in (tmp_path / "all").iterdir():
        dataset = pydicom.dcmread(path)
        del dataset.SOPInstanceUID
        dataset.save_as(path)
    assert "slices-missing" not in codes(load(tmp_path / "all"))


def test_a_localizer_without_a_place_is_no_lost_slice(tmp_path):
    made.save_series(tmp_path, CT, 20)
    lost = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImagePositionPatient": None}
    made.save(tmp_path / "localizer", made.instance(CT[0], SeriesInstanceUID="1.9", **lost))
    assert "slices-unplaced" not in codes(load(tmp_path))
