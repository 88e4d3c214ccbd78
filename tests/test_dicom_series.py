"""Which CT is taken of the DICOM files of a folder, a zip or a file, and when none is."""

from __future__ import annotations

import logging
import pickle
import shutil
import zipfile

import dicom_made as made
import numpy as np
import pytest
from typer.testing import CliRunner

from trtseg import cohort
from trtseg.cli import app
from trtseg.errors import ArgumentError, InputError, OutOfMemoryError
from trtseg.io import load
from trtseg.io.dicom import list_series, read_dicom_series, read_slice
from trtseg.io.dicom.dataset import parse
from trtseg.io.find import find_cts
from trtseg.phantom import abdomen
from trtseg.result import Segmentation

CT = abdomen(shape=(6, 40, 52), spacing=(40.0, *made.SPACING), seed=0, lesions=2).ct
SCOUT = np.full((30, 60), 40, np.int16)


def study(folder):
    """A study as a scanner makes it: nested, unsorted, with all that is no CT to segment."""
    made.save_series(folder / "a/soft", CT, SeriesInstanceUID="1.1", ConvolutionKernel="B30f")
    made.save_series(folder / "a/lung", CT, SeriesInstanceUID="1.2", ConvolutionKernel="B70f")
    made.save_series(
        folder / "b", CT[:, ::-1], SeriesInstanceUID="1.3", ImageType=["DERIVED", "SECONDARY", "MIP"]
    )
    made.save_series(folder / "c", CT[::2], 80, SeriesInstanceUID="1.4", SeriesDescription="thick")
    made.save_series(
        folder / "d", CT, SeriesInstanceUID="1.5", ImageType=["DERIVED", "SECONDARY", "REFORMATTED"]
    )
    side = [0, 1, 0, 0, 0, -1]
    localizer = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    made.save(
        folder / "e/1",
        made.instance(SCOUT, SeriesInstanceUID="1.6", ImageType=localizer, ImageOrientationPatient=side),
    )
    made.save(folder / "e/2", made.instance(SCOUT, SeriesInstanceUID="1.7", ImageOrientationPatient=side))
    report = made.instance(
        SCOUT, SeriesInstanceUID="1.8", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImagePositionPatient=None
    )
    made.save(folder / "f", report)
    made.save(folder / "g", made.instance(SCOUT, SeriesInstanceUID="1.9", Modality="SR", Rows=None))
    for name in ("DICOMDIR", "dicomdir"):  # disks are mounted with small letters
        (folder / name).write_bytes(bytes(128) + b"DICM rubbish")
    (folder / "notes.txt").write_text("no DICOM")
    (folder / ".hidden").write_bytes(bytes(128) + b"DICM rubbish")
    return folder


def test_the_best_ct_of_a_study_is_taken_and_the_log_says_why(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    volume = load(study(tmp_path / "study"))
    assert np.array_equal(volume.array, CT)
    assert (volume.name, volume.warnings) == ("study", ())
    assert len(volume.geometry.source.headers) == 6
    reasons = {one.series: one.reason for one in list_series(tmp_path / "study")}
    assert reasons == {
        "1.1": "",
        "1.2": "a sharp kernel",
        "1.3": "projection (MIP)",
        "1.4": "thicker slices",
        "1.5": "derived, not original",
        "1.6": "localizer",
        "1.7": "not axial",
        "1.8": "secondary capture: a screenshot or a dose report",
        "1.9": "modality SR, not CT",
    }
    assert next(iter(reasons)) == "1.1"
    for series, reason in reasons.items():
        assert f"series {series} is {'left out' if reason else 'taken'}" in caplog.text
        assert reason in caplog.text
    assert "SECRET" not in caplog.text.upper()


def test_a_series_can_be_named(tmp_path):
    folder = study(tmp_path / "study")
    assert np.array_equal(load(folder, series="1.4").array, CT[::2])
    assert np.array_equal(load(folder / "a/lung").array, CT)
    with pytest.raises(
        InputError, match=r"study: holds no series 7; it holds: .*1\.1 \(6 slices of 40 x 52, 40 mm apart"
    ):
        load(folder, series="7")
    with pytest.raises(InputError, match=r"the series 1\.9 cannot be segmented: modality SR"):
        load(folder, series="1.9")
    with pytest.raises(ArgumentError, match="series: got '1' with a source that is not DICOM"):
        load(tmp_path / "ct.nii.gz", series="1")
    with pytest.raises(ArgumentError, match="series: got '1' with a source that is not DICOM"):
        load(CT, spacing=(40, 8, 7), series="1")
    with pytest.raises(ArgumentError, match="path: got a NoneType; expected a file's path"):
        list_series(None)


def test_a_derived_series_is_better_than_none(tmp_path):
    made.save_series(tmp_path, CT, ImageType=["DERIVED", "SECONDARY"])
    assert np.array_equal(load(tmp_path).array, CT)


def test_a_file_stands_for_its_series(tmp_path):
    folder = made.save_series(tmp_path, CT[:, ::-1], SeriesInstanceUID="1.2")
    for path in made.save_series(tmp_path / "other", CT).iterdir():
        shutil.move(path, folder / f"{path.name}.dcm")
    volume = load(folder / "003.dcm")
    assert np.array_equal(volume.array, CT)
    assert volume.name == "003.dcm"
    assert np.array_equal(load(folder / "003").array, CT[:, ::-1])  # known by its first bytes
    made.save(tmp_path / "report", made.instance(SCOUT, Modality="SR"))
    with pytest.raises(InputError, match="report: cannot be segmented: modality SR, not CT; give a CT"):
        load(tmp_path / "report")
    (tmp_path / "text.dcm").write_text("no DICOM at all" * 20)
    with pytest.raises(InputError, match=r"text\.dcm: (is no DICOM file|cannot be read as DICOM)"):
        load(tmp_path / "text.dcm")


def test_a_zip(tmp_path):
    folder = study(tmp_path / "study")
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, f"../../{path.relative_to(tmp_path)}")  # leads out, and is never written
    volume = load(tmp_path / "study.zip")
    assert np.array_equal(volume.array, CT)
    assert volume.geometry.source.files[0].name == "001"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study", "study.zip"]
    assert np.array_equal(load(tmp_path / "study.zip", series="1.4").array, CT[::2])


def test_zips_that_are_refused(tmp_path, monkeypatch):
    (tmp_path / "no.zip").write_text("no zip")
    with pytest.raises(InputError, match=r"no\.zip: cannot be read as a zip \(BadZipFile\); unpack it"):
        load(tmp_path / "no.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(InputError, match=r"empty\.zip: holds no DICOM files"):
        load(tmp_path / "empty.zip")
    path = made.save(tmp_path / "slice", made.instance(CT[0]))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "slice")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 8] |= 1  # says that it is encrypted
    (tmp_path / "locked.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"locked\.zip: cannot be read as a zip \(it has a password\)"):
        load(tmp_path / "locked.zip")
    monkeypatch.setattr("trtseg.io.dicom.find._MAX_UNPACKED", 1000)
    with pytest.raises(InputError, match=r"a\.zip: holds 1 files of 0 GB; expected at most"):
        load(tmp_path / "a.zip")
    monkeypatch.undo()
    monkeypatch.setattr("trtseg.io.dicom.find.MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"a\.zip: holds a file of more than"):
        load(tmp_path / "a.zip")


def test_a_damaged_file_of_a_zip_is_never_left_out_as_no_dicom(tmp_path):
    """The start of a file tells what it is, and its checksum lies behind its end."""
    folder = made.save_series(tmp_path / "ct", CT)
    (folder / "notes").write_bytes(b"no DICOM" * 100)
    with zipfile.ZipFile(tmp_path / "ct.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    assert np.array_equal(load(tmp_path / "ct.zip").array, CT)
    data = bytearray((tmp_path / "ct.zip").read_bytes())
    data[data.index(b"DICM")] ^= 1  # of the slice at the head, without which the others are even
    (tmp_path / "ct.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"ct\.zip: cannot be read as a zip \(BadZipFile\); unpack it"):
        load(tmp_path / "ct.zip")


def test_two_patients_are_not_one_ct(tmp_path):
    for patient in "ab":
        uid = f"2.{ord(patient)}"
        made.save_series(tmp_path / patient / "ct", CT, StudyInstanceUID=uid, SeriesInstanceUID=f"{uid}.1")
        made.save_series(
            tmp_path / patient / "x/ct", CT[:3], StudyInstanceUID=uid, SeriesInstanceUID=f"{uid}.2"
        )
    with pytest.raises(InputError, match="holds CTs of 2 studies; give the folder of one, or choose"):
        load(tmp_path)
    assert find_cts(tmp_path) == ([tmp_path / "a", tmp_path / "b"], [])
    assert find_cts(tmp_path / "a") == ([tmp_path / "a"], [])
    assert np.array_equal(load(tmp_path, series="2.98.2").array, CT[:3])


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("PatientID", "holds CTs of 2 patients; give the folder of one"),
        ("StudyInstanceUID", "holds CTs of 2 studies; give the folder of one"),
        ("FrameOfReferenceUID", "holds 2 volumes in one series"),
    ],
)
def test_one_series_id_makes_no_ct_of_two(keyword, message, tmp_path):
    for z, plane in enumerate(CT):
        whose = {keyword: "1.7" if z < 3 else "1.8"}
        made.save(tmp_path / f"{z}", made.instance(plane, 40 * z, **whose))
    with pytest.raises(InputError, match=message):
        load(tmp_path)
    assert np.array_equal(load(tmp_path, series="1.2.3.4/1").array, CT[:3])
    assert np.array_equal(load(tmp_path, series="1.2.3.4/2").array, CT[3:])
    assert np.array_equal(load(tmp_path / "4").array, CT[3:])
    with pytest.raises(InputError, match="got files of 2 series; expected one"):
        read_dicom_series([tmp_path / f"{z}" for z in range(6)])


def test_stored_values_are_hu_where_no_scale_is_given(tmp_path):
    folder = made.save_series(tmp_path, CT, RescaleSlope=None, RescaleIntercept=None)
    assert np.array_equal(load(folder).array, CT)


def test_a_series_without_a_patient_is_of_the_patient_of_its_study(tmp_path):
    made.save_series(tmp_path / "a", CT[:3], SeriesInstanceUID="1.1", PatientID=None)
    made.save_series(tmp_path / "b", CT, SeriesInstanceUID="1.2")
    assert np.array_equal(load(tmp_path).array, CT)


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_slice_without_an_id_stays_in_its_series(keyword, tmp_path):
    for z, plane in enumerate(CT):
        made.save(tmp_path / f"{z}", made.instance(plane, 40 * z, **{keyword: "1.7" if z % 2 else None}))
    assert np.array_equal(load(tmp_path).array, CT)
    assert np.array_equal(read_dicom_series(sorted(tmp_path.iterdir())).array, CT)


def test_files_of_a_series_are_one_case(tmp_path):
    files = sorted(made.save_series(tmp_path / "ct", CT).iterdir())
    files += sorted(made.save_series(tmp_path / "ct2", CT, SeriesInstanceUID="7").iterdir())
    with cohort.plan(files, tmp_path / "out") as cases:
        assert [case.source for case in cases] == [tmp_path / "ct/001", tmp_path / "ct2/001"]


def test_a_folder_with_results_only_is_no_ct(tmp_path):
    made.save(tmp_path / "seg/a", made.instance(SCOUT, Modality="SEG"))
    made.save_series(tmp_path / "ct", CT)
    assert find_cts(tmp_path) == ([tmp_path / "ct"], [])


@pytest.mark.parametrize(
    ("mark", "said"), [("AcquisitionNumber", ("101010", "101020")), ("ContentTime", ("1 of 2", "2 of 2"))]
)
def test_phases_in_one_series_are_told_apart(mark, said, tmp_path):
    for name, ct, value in (("early", CT, "101010"), ("late", CT + np.int16(9), "101020")):
        made.save_series(tmp_path / name, ct, **{mark: value})
    first, second = (rf"1\.2\.3\.4/{n} \(6 slices [^;]*, {mark} {said[n - 1]}\)" for n in (1, 2))
    with pytest.raises(InputError, match=rf"2 volumes in one series .* {first}; {second}$"):
        load(tmp_path)
    assert np.array_equal(load(tmp_path, series="1.2.3.4/1").array, CT)
    assert np.array_equal(load(tmp_path, series="1.2.3.4/2").array, CT + 9)
    assert np.array_equal(load(tmp_path / "late").array, CT + 9)
    assert load(tmp_path / "late/001").array.shape == CT.shape


@pytest.mark.parametrize(
    ("mark", "values", "said"),
    [
        (
            "ConvolutionKernel",
            ("B30f", "B70f"),
            "{}, ORIGINAL PRIMARY AXIAL, SeriesNumber 1, ConvolutionKernel {}",
        ),
        ("ImageType", ("ORIGINAL\\PRIMARY\\A", "ORIGINAL\\PRIMARY\\B"), "{}, SeriesNumber 1, ImageType {}"),
    ],
)
def test_what_tells_volumes_apart_is_said_once(mark, values, said, tmp_path):
    for n, value in enumerate(values):
        made.save_series(tmp_path / str(n), CT + np.int16(n), SeriesNumber=1, **{mark: value.split("\\")})
    start = "6 slices of 40 x 52, 40 mm apart"
    assert [one.about for one in list_series(tmp_path)] == [said.format(start, value) for value in values]


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        ("1.2.3.4/2", {"series": "1.2.3.4/2", "series_number": 7}),
        ("1.2.840.56", {"series": "1.2.840.56"}),  # which has no number that can be one
    ],
)
def test_a_report_says_which_series_was_measured(taken, said, tmp_path):
    for name, number in (("early", 1), ("late", 2)):
        ct = CT + np.int16(number)
        made.save_series(tmp_path / name, ct, AcquisitionNumber=number, SeriesNumber=7, PatientName="SECRET")
    made.save_series(tmp_path / "other", CT, SeriesInstanceUID="1.2.840.56", SeriesNumber="9" * 20)
    volume = load(tmp_path, series=taken)
    result = Segmentation.measure(np.zeros(volume.array.shape, np.uint8), volume)
    assert result.report()["input"] == {
        "name": tmp_path.name,
        "shape": [52, 40, 6],
        "spacing_mm": [7.0, 8.0, 40.0],
        **said,
    }
    result.save(tmp_path / "seg.nii.gz", html=tmp_path / "seg.html")
    page = (tmp_path / "seg.html").read_text()
    assert (">SeriesNumber</th><td>7</td>" in page) == ("series_number" in said)
    assert taken not in page  # an id of the study, and so of the patient


def test_pictures_of_one_place_that_nothing_tells_apart(tmp_path):
    made.save_series(tmp_path, CT)
    made.save(tmp_path / "again", made.instance(CT[3] + np.int16(1), 100 + 3 * 40))
    with pytest.raises(
        InputError, match=r"two different pictures at \(-180, -150, 220\) mm, which nothing in their"
    ):
        load(tmp_path)
    made.save(tmp_path / "again", made.instance(CT[3] + np.int16(1), 100 + 3 * 40, KVP=80))
    with pytest.raises(InputError, match="which differ in KVP; expected one phase"):
        load(tmp_path)
    beside = made.instance(CT[3], ImagePositionPatient=[-175, -150, 100 + 3 * 40])
    made.save(tmp_path / "again", beside)  # the same picture, 5 mm to the left
    with pytest.raises(InputError, match=r"two different pictures at \(-1[78][05], -150, 220\) mm"):
        load(tmp_path)


def test_exact_duplicates_are_dropped_with_a_note(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    made.save_series(tmp_path, CT)
    shutil.copy(tmp_path / "003", tmp_path / "copy")
    volume = load(tmp_path)
    assert np.array_equal(volume.array, CT)
    assert len(volume.geometry.source.files) == len(volume.geometry.source.index) == 6
    assert "1 slices were there twice" in caplog.text


def test_a_scout_in_the_same_series_is_left_out(tmp_path):
    made.save_series(tmp_path, CT)
    made.save(tmp_path / "scout", made.instance(SCOUT, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]))
    made.save(tmp_path / "smaller", made.instance(SCOUT, 400))
    assert np.array_equal(load(tmp_path).array, CT)


def test_copies_that_have_an_id_for_each_file(tmp_path):
    for z, plane in enumerate(CT):
        made.save(
            tmp_path / f"{z}",
            made.instance(
                plane,
                100 + z * 40,
                SeriesInstanceUID=f"3.{z}",
                StudyInstanceUID=f"4.{z}",
                FrameOfReferenceUID=f"5.{z}",
            ),
        )
    assert np.array_equal(load(tmp_path).array, CT)
    for z, plane in enumerate(CT):
        ids = {"PatientID": "OTHER", "SeriesInstanceUID": f"6.{z}", "StudyInstanceUID": "1.7"}
        made.save(tmp_path / f"other{z}", made.instance(plane, 340 + z * 40, **ids))
    with pytest.raises(InputError, match="holds CTs of 2 studies"):
        load(tmp_path)


def test_an_enhanced_ct(tmp_path):
    """Frames out of order, in two phases, each with an intercept of its own."""
    order = [3, 0, 5, 1, 4, 2]
    stored = np.stack([CT[z] + 1000 + k for k, z in enumerate(order)])
    positions = [100 + 40.0 * z for z in order]
    made.save(tmp_path / "one/a", made.enhanced(stored, positions, [1] * 6))
    volume = load(tmp_path / "one")
    assert np.array_equal(volume.array, CT)
    series = volume.geometry.source
    grid = volume.geometry.restore(volume.array).T
    for k, z in enumerate(order):
        assert series.slices[k].position.tolist() == [-180, -150, 100 + 40 * z]
        assert np.array_equal(grid[series.index[k]], CT[z])
    _, hu = read_slice(tmp_path / "one/a")
    assert np.array_equal(hu, CT[order])

    two = np.concatenate([stored, stored[::-1] + 9 - 6 + 2 * np.arange(6)[:, None, None] - 5]).astype(
        np.int16
    )
    made.save(tmp_path / "two/a", made.enhanced(two, positions + positions[::-1], [1] * 6 + [2] * 6))
    with pytest.raises(InputError, match="holds 2 volumes in one series"):
        load(tmp_path / "two/a")
    volume = load(tmp_path / "two", series="1.2.3.4/2")
    assert volume.geometry.source.index[:6] == (-1,) * 6
    assert volume.array.shape == CT.shape
    assert np.ptp(volume.array.astype(int) - CT) == 0  # the phase is the other one but for a constant


def test_a_slice_is_read_as_in_its_series(tmp_path):
    padded = np.where(CT <= -1000, np.int16(-2000), CT)
    made.save_series(tmp_path, padded, PixelPaddingValue=-2000)
    volume = load(tmp_path)
    series, grid = volume.geometry.source, volume.geometry.restore(volume.array).T
    for path, one, index in zip(series.files, series.headers, series.index, strict=True):
        header, hu = read_slice(path)
        assert np.array_equal(hu, grid[index])
        assert (header.SOPInstanceUID, "PixelData" in header) == (one.SOPInstanceUID, False)
    assert (padded == -2000).any()
    assert volume.array.min() > -2000


def test_of_files_only_headers_stay_in_memory(tmp_path):
    """pydicom keeps the whole file with what it has read of it, pixels included."""
    source = load(made.save_series(tmp_path, CT)).geometry.source
    sizes = [path.stat().st_size for path in source.files]
    assert min(sizes) > CT[0].nbytes
    for size, header in zip(sizes, source.headers, strict=True):
        assert len(pickle.dumps(header)) < size - CT[0].nbytes // 2
    data = source.files[0].read_bytes()
    assert len(pickle.dumps(parse("", data, pixels=False))) < len(data) - CT[0].nbytes // 2


def test_a_lack_of_memory_is_no_damaged_file(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    path = made.save(tmp_path / "slice", made.instance(CT[0]))
    monkeypatch.setattr("pydicom.dcmread", fail)
    with pytest.raises((MemoryError, OutOfMemoryError)):
        read_slice(path)


def test_the_command_lists_and_takes_series(tmp_path):
    folder = study(tmp_path / "study")
    shown = CliRunner().invoke(app, ["segment", str(folder), "--series", "list"])
    assert shown.exit_code == 0
    assert (
        "1.2\n    6 slices of 40 x 52, 40 mm apart, kernel B70f, ORIGINAL PRIMARY AXIAL: a sharp kernel"
        in shown.stdout
    )
    with cohort.plan([folder], tmp_path / "out.nii.gz", series="1.4") as (case,):
        assert (case.source, case.series) == (folder, "1.4")
    with (
        pytest.raises(ArgumentError, match="series: got one for 2 inputs"),
        cohort.plan([folder] * 2, series="1"),
    ):
        pass


@pytest.mark.parametrize("name", ["CT.ZIP", "ct.tar.xz"])
def test_a_folder_with_an_archive_alone_says_so(tmp_path, name):
    (tmp_path / "readme.txt").write_text("see the archive")
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(InputError, match=f"holds no image, but {name}; give that zip itself, or unpack"):
        load(tmp_path)


def test_two_patients_under_one_study_are_told_apart(tmp_path):
    made.save_series(tmp_path / "a", CT, SeriesInstanceUID="1.1", StudyInstanceUID="1", PatientID="A-17")
    made.save_series(tmp_path / "b", CT, SeriesInstanceUID="1.2", StudyInstanceUID="1", PatientID="B-18")
    with pytest.raises(InputError, match="holds CTs of 2 patients; give the folder of one") as error:
        load(tmp_path)
    assert "A-17" not in str(error.value)
    assert load(tmp_path, series="1.2").array.shape == CT.shape


def test_archives_among_cts_are_not_left_out_silently(tmp_path, caplog):
    folder = made.save_series(tmp_path / "a", CT)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(folder / "001", "001")
    assert find_cts(tmp_path) == ([folder], [])
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/b.zip: is not looked into; give a zip itself, unpack archives of other kinds"
    ]
