"""What DICOM objects take over from their source: the patient, the study, ids, numbers, texts and frames."""

from __future__ import annotations

import copy

import numpy as np
import pydicom
import pytest
from dicom_checks import errors, labels_by_frame, labels_by_instance
from dicom_made import enhanced, save, save_series
from dicom_results import MADE, SHAPE, STEP, make, phantom_labels
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

import trtseg
from trtseg.io.dicom import read_dicom_series
from trtseg.io.dicom_out.source import dicom_source
from trtseg.result import Segmentation

pytest.importorskip("highdicom")


@pytest.mark.parametrize(
    ("written", "mm"), [("0.5", 0.5), ("999.5", 999.5), ("0", STEP), ("-5", STEP), ("1000", STEP)]
)
def test_a_thickness_that_no_slice_has_is_the_distance_of_slices(tmp_path, written, mm):
    case = make(tmp_path / "ct", "axial", SliceThickness=written)
    case.result.save(tmp_path / "seg.dcm")
    shared = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].SliceThickness == pytest.approx(mm)


def test_lossy_compression_of_the_source_is_told(tmp_path):
    lossy = {
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": "12.5",
        "LossyImageCompressionMethod": "ISO_10918_1",
    }
    case = make(tmp_path / "ct", "axial", **lossy)
    case.result.save(tmp_path / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert {name: str(seg[name].value) for name in lossy} == lossy


@pytest.mark.parametrize("directions", [[1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, 1, 0], [1, 0, 0, 0, -1, 0]])
def test_measurements_refer_to_the_slice_of_the_source_that_lies_there(tmp_path, directions):
    """Also where row direction x column direction, along which the source counts, points to the feet."""
    ct, _ = phantom_labels(SHAPE)
    volume = trtseg.load(save_series(tmp_path / "ct", ct, ImageOrientationPatient=directions))
    source = dicom_source(volume.geometry)
    for z in range(len(ct)):
        one = source.slices[source.slice_of(volume.geometry, z)]
        assert one.position[2] == pytest.approx(volume.affine[2, 3] + z * volume.affine[2, 2])


def test_frames_of_an_enhanced_ct_are_named(tmp_path):
    ct, labels = phantom_labels(SHAPE)
    ct = np.maximum(ct, -1000)
    order = [4, 0, 6, 2, 1, 5, 3]
    stored = np.stack([ct[z] + 1000 + k for k, z in enumerate(order)]).astype(np.uint16)
    dataset = enhanced(stored, [100 + STEP * z for z in order], [1] * 7, Manufacturer="x")
    volume = read_dicom_series([save(tmp_path / "ct" / "1", dataset)])
    assert np.array_equal(volume.array, ct)
    result = Segmentation.measure(labels, volume, provenance=MADE)
    result.save_dicom(tmp_path)
    got = labels_by_frame(tmp_path / "seg.dcm", dataset.SOPInstanceUID, list(range(1, 8)))
    assert np.array_equal(got, labels[order])
    shared = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].SliceThickness == 5  # as in the groups that all frames share
    for name in ("seg", "sr", "sc_0001"):
        assert errors(tmp_path / f"{name}.dcm") == []


def test_a_localizer_before_the_frames_of_an_enhanced_ct_changes_nothing(tmp_path):
    ct, labels = phantom_labels(SHAPE)
    ct = np.maximum(ct, -1000)
    stored = np.stack([ct[z] + 1000 + k for k, z in enumerate([0, *range(7)])]).astype(np.uint16)
    dataset = enhanced(stored, [0, *(100 + STEP * z for z in range(7))], [1] * 8)
    (shared,) = dataset.SharedFunctionalGroupsSequence
    for group in dataset.PerFrameFunctionalGroupsSequence:  # as where frames differ in them
        group.update(copy.deepcopy(shared))
    dataset.SharedFunctionalGroupsSequence = [pydicom.Dataset()]
    localizer = dataset.PerFrameFunctionalGroupsSequence[0]
    localizer.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    localizer.PixelMeasuresSequence[0].SliceThickness = 300
    save(tmp_path / "ct" / "1", dataset)
    result = Segmentation.measure(labels, trtseg.load(tmp_path / "ct"), provenance=MADE)
    result.save_dicom(tmp_path, ["seg"])
    got = labels_by_frame(tmp_path / "seg.dcm", dataset.SOPInstanceUID, list(range(2, 9)))
    assert np.array_equal(got, labels)
    shared = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    assert shared.PixelMeasuresSequence[0].SliceThickness == 5


def test_an_empty_sequence_of_frames_is_none(tmp_path):
    case = make(tmp_path / "ct", "axial", NumberOfFrames=1, PerFrameFunctionalGroupsSequence=[])
    case.result.save_dicom(tmp_path, ["seg"])
    assert np.array_equal(labels_by_instance(tmp_path / "seg.dcm", case.uids), case.labels)


@pytest.mark.parametrize(
    "missing", [("FrameOfReferenceUID", "PatientName"), ("StudyInstanceUID", "SOPInstanceUID")]
)
def test_a_source_without_ids(tmp_path, missing):
    case = make(tmp_path / "ct", "axial")
    for header in case.result.geometry.source.headers:
        header.SpecificCharacterSet = ""
        for keyword in missing:
            del header[keyword]
    case.result.save_dicom(tmp_path)
    for name in ("seg", "sr", "sc_0001"):
        assert errors(tmp_path / f"{name}.dcm") == []
    if "SOPInstanceUID" not in missing:
        assert np.array_equal(labels_by_instance(tmp_path / "seg.dcm", case.uids), case.labels)


def test_ids_that_the_first_file_lacks_are_those_of_the_others(tmp_path):
    case = make(tmp_path / "ct", "axial")
    first, second, *_ = case.result.geometry.source.headers
    for keyword in (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "PatientID",
        "PatientName",
    ):
        del first[keyword]
    case.result.save_dicom(tmp_path)
    for name in ("seg", "sr", "sc_0001"):
        made = pydicom.dcmread(tmp_path / f"{name}.dcm")
        assert made.StudyInstanceUID == "1.2.3"
        assert (made.PatientID, made.PatientName) == (second.PatientID, second.PatientName) != ("", "")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.4"
    assert seg.FrameOfReferenceUID == "1.2.3.5"


@pytest.mark.parametrize(("written", "number"), [(b"3 ", 301), (b"", 9001), (b"1e400 ", 9001), (b"x ", 9001)])
def test_a_series_number_that_is_none_stops_no_object(tmp_path, written, number):
    case = make(tmp_path / "ct", "axial")
    tag = Tag("SeriesNumber")
    header = case.result.geometry.source.headers[0]
    header._dict[tag] = RawDataElement(tag, "IS", len(written), written, 0, False, True)
    (path,) = case.result.save_dicom(tmp_path, ["seg"])
    assert pydicom.dcmread(path).SeriesNumber == number


@pytest.mark.parametrize("vr", ["FD", "ZZ", "US"])
@pytest.mark.parametrize(
    "keyword",
    [
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "PatientID",
        "SeriesNumber",
        "StudyDate",
    ],
)
def test_an_element_with_a_damaged_representation_is_as_lost(tmp_path, keyword, vr):
    case, tag = make(tmp_path / "ct", "axial"), Tag(keyword)
    for n, header in enumerate(case.result.geometry.source.headers):
        value = b"1.2.3.1%04d" % n
        header._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    case.result.save_dicom(tmp_path)
    for name in ("seg", "sr", "sc_0001"):
        assert errors(tmp_path / f"{name}.dcm") == []


def test_a_text_of_another_kind_of_text_is_kept(tmp_path):
    case, tag = make(tmp_path / "ct", "axial"), Tag("PatientID")
    for header in case.result.geometry.source.headers:
        header._dict[tag] = RawDataElement(tag, "CS", 4, b"A-77", 0, False, True)
    case.result.save_dicom(tmp_path)
    for name in ("seg", "sr", "sc_0001"):
        made = pydicom.dcmread(tmp_path / f"{name}.dcm")
        assert (made["PatientID"].VR, made.PatientID) == ("LO", "A-77")
        assert errors(tmp_path / f"{name}.dcm") == []


@pytest.mark.parametrize(
    ("keyword", "spoilt"),
    [
        ("SOPClassUID", b"1.2.8J0.10008.5.1.4.1.1.2"),
        ("SOPClassUID", b"1.2.840.10008.5.1.4.1.\xa8.2"),
        ("SOPInstanceUID", b"1\xa82.3.4"),
        ("SOPInstanceUID", b"1." + b"2" * 70),
    ],
)
def test_a_spoilt_uid_of_one_slice_is_as_lost(tmp_path, keyword, spoilt):
    case, tag = make(tmp_path / "ct", "axial"), Tag(keyword)
    header = case.result.geometry.source.headers[2]
    header._dict[tag] = RawDataElement(tag, "UI", len(spoilt), spoilt, 0, False, True)
    case.result.save_dicom(tmp_path)
    for name in ("seg", "sr"):
        assert errors(tmp_path / f"{name}.dcm") == []


@pytest.mark.parametrize("uid", ["4711", "CASE-0007.2"])
def test_an_odd_study_uid_is_kept(tmp_path, uid):
    case = make(tmp_path / "ct", "axial", StudyInstanceUID=uid)
    case.result.save_dicom(tmp_path)
    assert {pydicom.dcmread(tmp_path / f"{name}.dcm").StudyInstanceUID for name in ("seg", "sr")} == {uid}


def test_texts_keep_the_bytes_that_they_have_in_the_source(tmp_path):
    """Latin letters beside katakana, which pydicom would write as question marks."""
    case = make(tmp_path / "ct", "axial", SpecificCharacterSet="ISO_IR 13")
    tag, text = Tag("StudyDescription"), "CT ﾌｸﾌﾞ".encode("shift_jis") + b" "
    header = case.result.geometry.source.headers[0]
    header._dict[tag] = RawDataElement(tag, "LO", len(text), text, 0, False, True)
    for path in case.result.save_dicom(tmp_path):
        made = pydicom.dcmread(path)
        assert made.SpecificCharacterSet == "ISO_IR 13"
        assert made.get_item(tag).value == text, path.name
