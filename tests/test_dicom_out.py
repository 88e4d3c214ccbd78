"""DICOM objects as other programs read them: on their source, voxel for voxel, and valid."""

from __future__ import annotations

import dataclasses
import io
import logging
import threading
import types
import warnings

import numpy as np
import pydicom
import pytest
from dicom_checks import errors, labels_by_instance, points_by_dcmqi
from dicom_results import MADE, SHAPE, SPACING, STEP, WAYS, make, phantom_labels

import trtseg
from trtseg.errors import ArgumentError, OutputError
from trtseg.io.dicom_out import encode_pictures, write_dicom
from trtseg.io.dicom_out.seg import segments_of
from trtseg.io.dicom_out.source import quiet
from trtseg.phantom import abdomen
from trtseg.report.captures import draw_captures, drawn_slices
from trtseg.report.pictures import LIVER, TUMOUR
from trtseg.result import Segmentation
from trtseg.warnings import ResultWarning

highdicom = pytest.importorskip("highdicom")


@pytest.mark.parametrize("way", WAYS)
def test_a_segmentation_lies_on_its_source(tmp_path, way):
    case = make(tmp_path / "ct", way)
    case.result.save(tmp_path / "seg.dcm")
    write_dicom([("labelmap", tmp_path / "labelmap.dcm")], case.result)
    for name in ("seg.dcm", "labelmap.dcm"):
        assert errors(tmp_path / name) == []
        assert np.array_equal(labels_by_instance(tmp_path / name, case.uids), case.labels)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert seg.file_meta.TransferSyntaxUID.name == "Explicit VR Little Endian"
    assert seg.SegmentationType == "BINARY"
    assert len(seg.PixelData) == -(-seg.NumberOfFrames * seg.Rows * seg.Columns // 16) * 2
    assert seg.pixel_array.any(axis=(1, 2)).all()  # no frame is empty
    frames = [int(np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little").sum())]
    assert frames == [np.count_nonzero(case.labels)]
    for group in seg.PerFrameFunctionalGroupsSequence:  # each lies on its image
        uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        n = case.uids.index(uid)
        assert case.labels[n].any()
        assert np.allclose(
            group.PlanePositionSequence[0].ImagePositionPatient, case.points[n, 0, 0], atol=1e-4
        )
    (shared,) = seg.SharedFunctionalGroupsSequence
    told = case.result.geometry.source.headers[0].ImageOrientationPatient
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == told  # as the source rounds it
    (series,) = seg.ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == set(case.uids)


@pytest.mark.parametrize("way", ["columns from the left", "oblique"])
def test_dcmqi_finds_the_segments_at_their_places(tmp_path, way):
    case = make(tmp_path / "ct", way)
    case.result.save(tmp_path / "seg.dcm")
    found = points_by_dcmqi(tmp_path / "seg.dcm", tmp_path / "dcmqi")
    assert set(found) == {"Liver without tumours", "Lesion 1", "Lesion 2", "Lesion 3"}
    masses = np.concatenate([points for name, points in found.items() if name.startswith("Lesion")])
    for label, points in ((1, found["Liver without tumours"]), (2, masses)):
        expected = case.points[case.labels == label]
        assert len(points) == len(expected)
        apart = np.abs(points[np.lexsort(points.round(2).T)] - expected[np.lexsort(expected.round(2).T)])
        assert apart.max() < 0.01


def test_segments_say_what_they_are(tmp_path):
    case = make(tmp_path / "ct", "axial")
    case.result.save(tmp_path / "SEG.DCM")
    seg = pydicom.dcmread(tmp_path / "SEG.DCM")
    liver, *masses = seg.SegmentSequence
    assert (liver.SegmentedPropertyTypeCodeSequence[0].CodeValue, len(masses)) == ("10200004", 3)
    assert "not in this segment" in liver.SegmentDescription
    assert {mass.SegmentedPropertyTypeCodeSequence[0].CodeValue for mass in masses} == {"4147007"}
    assert len({segment.TrackingUID for segment in seg.SegmentSequence}) == 4
    made = liver.SegmentationAlgorithmIdentificationSequence[0]
    assert (made.AlgorithmName, made.AlgorithmVersion) == ("trtseg", "0.0, model test 1.2")
    assert "not for clinical use" in made.AlgorithmParameters
    assert "not for clinical use" in seg.SeriesDescription
    assert (seg.PatientName, seg.PatientID, seg.StudyInstanceUID) == ("Secret^Name", "SECRET1", "1.2.3")
    assert (seg.FrameOfReferenceUID, seg.SeriesInstanceUID != "1.2.3.4") == ("1.2.3.5", True)


@pytest.mark.parametrize(
    ("labels", "names", "found"),
    [
        ({1}, ["Liver"], "No tumour was found."),
        ({2}, ["Lesion 1"], "1 lesion was found."),
    ],
)
def test_no_segment_is_empty(tmp_path, labels, names, found):
    case = make(tmp_path / "ct", "axial")
    only = np.where(np.isin(case.result.canonical, list(labels)), case.result.canonical, 0).astype(np.uint8)
    if labels == {2}:
        only[:, 20:] = 0  # one lesion, on all slices
    result = Segmentation.measure(only, case.result.volume, provenance=MADE)
    result.save_dicom(tmp_path, ["seg", "sr"])
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == names
    assert errors(tmp_path / "seg.dcm") + errors(tmp_path / "sr.dcm") == []
    got = labels_by_instance(tmp_path / "seg.dcm", case.uids)
    assert np.count_nonzero(got) == np.count_nonzero(only)
    # A single segment is told of once, for all frames.
    assert "SegmentIdentificationSequence" in seg.SharedFunctionalGroupsSequence[0]
    assert not any("SegmentIdentificationSequence" in one for one in seg.PerFrameFunctionalGroupsSequence)
    texts = [item.get("TextValue", "") for item in pydicom.dcmread(tmp_path / "sr.dcm").ContentSequence]
    assert any(text.endswith(f". {found}") for text in texts)


def test_many_lesions_share_the_last_segment(tmp_path, monkeypatch):
    case = make(tmp_path / "ct", "axial")
    monkeypatch.setattr("trtseg.io.dicom_out.seg.MOST_LESIONS", 2)
    assert [one.label for one in segments_of(case.result)][1:] == ["Lesion 1", "Lesion 2", "Lesion 3"]
    monkeypatch.setattr("trtseg.io.dicom_out.seg.MOST_LESIONS", 1)
    case.result.save_dicom(tmp_path, ["seg", "sr"])
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert [s.SegmentLabel for s in seg.SegmentSequence][1:] == ["Lesion 1", "Lesions 2 to 3"]
    assert np.array_equal(labels_by_instance(tmp_path / "seg.dcm", case.uids), case.labels)
    assert errors(tmp_path / "sr.dcm") == []


def test_one_slice(tmp_path):
    case = make(tmp_path / "ct", "axial")
    only = np.zeros_like(case.result.canonical)
    only[2] = case.result.canonical[2] > 0
    result = Segmentation.measure(only, case.result.volume, provenance=MADE)
    result.save(tmp_path / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (seg.NumberOfFrames, errors(tmp_path / "seg.dcm")) == (1, [])
    got = labels_by_instance(tmp_path / "seg.dcm", case.uids)
    assert np.count_nonzero(got.any(axis=(1, 2))) == 1
    assert np.count_nonzero(got) == np.count_nonzero(only)


def test_the_report_has_the_measurements_and_refers_to_the_segments(tmp_path):
    case = make(tmp_path / "ct", "rows from the back")
    warning = ResultWarning("liver-cut", "The liver is cut.")
    chances = (0.875, 0.0, None)  # of the lesions
    known = tuple(
        dataclasses.replace(lesion, probability=chance)
        for lesion, chance in zip(case.result.lesions, chances, strict=True)
    )
    result = dataclasses.replace(case.result, warnings=(warning,), lesions=known)
    result.save_dicom(tmp_path, ["sr", "seg"])
    assert errors(tmp_path / "sr.dcm") == []
    seg, report = pydicom.dcmread(tmp_path / "seg.dcm"), highdicom.sr.srread(tmp_path / "sr.dcm")
    content = report.content
    whole = content.get_image_measurement_groups()
    assert [g.tracking_identifier for g in whole] == ["Liver with tumours", "All tumours"]
    volumes = [g.get_measurements()[0].value for g in whole]
    assert volumes == pytest.approx([result.liver_ml, result.tumour_ml], abs=1e-3)
    parts = content.get_volumetric_roi_measurement_groups()
    assert len(parts) == len(seg.SegmentSequence) == 4
    for group, segment in zip(parts, seg.SegmentSequence, strict=True):
        item = group.reference_type, group.get_measurements()
        assert group.tracking_uid == segment.TrackingUID
        assert item[0].value == "121191"  # Referenced Segment
        reference = group.referenced_segment
        assert (reference.referenced_sop_instance_uid, reference.referenced_segment_numbers) == (
            seg.SOPInstanceUID,
            [segment.SegmentNumber],
        )
    for group, lesion in zip(parts[1:], result.lesions, strict=True):
        volume, long, short, *rest = group.get_measurements()
        wanted = [] if lesion.probability is None else [("111012", 100 * lesion.probability, "%")]
        assert [(m.name.value, m.value, m.unit.value) for m in rest] == wanted
        expected = (lesion.volume_ml, lesion.diameter_mm, lesion.short_mm)
        assert (volume.value, long.value, short.value) == pytest.approx(expected, abs=1e-3)
        assert [m.unit.value for m in (volume, long, short)] == ["mL", "mm", "mm"]
        (image,) = long.referenced_images  # the file whose slice is the widest
        most = max(range(7), key=lambda n: np.count_nonzero(case.labels[n] == 2))
        if lesion.diameter_mm == max(one.diameter_mm for one in result.lesions):
            assert case.uids.index(image.referenced_sop_instance_uid) == most
    comments = [item for item in report.ContentSequence if item.name.value == "121106"]
    texts = [item.TextValue for item in comments]
    made = "Not for clinical use. Measured by trtseg 0.0, model test 1.2."
    assert texts[0] == f"{made} 3 lesions were found."
    for group in parts:
        assert group.finding_type.value == ("10200004" if group is parts[0] else "4147007")
        assert [site.value.value for site in group.finding_sites] == ["10200004"]
        names = {item.name.value: getattr(item, "value", None) for item in group[0].ContentSequence}
        assert (names["111001"], names["111003"]) == ("trtseg", "0.0, model test 1.2")
    assert (report.ConceptNameCodeSequence[0].CodeValue, report.CompletionFlag) == ("126000", "COMPLETE")
    heads = [
        (item.name.value, str(item.get("UID") or item.get("TextValue") or item.value.value))
        for item in report.ContentSequence
        if item.name.value not in ("126010", "121106")
    ]
    assert heads == [
        ("121049", "en"),
        ("121005", "121007"),  # the observer is a device
        ("121012", "2.25.47080764050654985619873406525495337739"),
        ("121013", "trtseg"),
        ("121014", "trtseg"),
        ("121015", "0.0, model test 1.2"),
        ("121058", "25045-6"),
    ]
    assert texts[1:] == ["Warning: The liver is cut. [liver-cut]"]


def test_pictures_are_captures_of_the_slices_with_liver(tmp_path):
    case = make(tmp_path / "ct", "rows from the back")
    (tmp_path / "sc_0006.dcm").write_bytes(b"of an earlier run")
    (tmp_path / "sc_9.dcm").write_bytes(b"of somebody else")
    written = case.result.save_dicom(tmp_path, ["sc"])
    assert [path.name for path in written] == [f"sc_{n:04}.dcm" for n in range(1, 6)]
    assert {path.name for path in tmp_path.iterdir()} == {*(p.name for p in written), "sc_9.dcm", "ct"}
    captures = [pydicom.dcmread(path) for path in written]
    pictures = dict(draw_captures(case.result.volume, case.result.canonical, range(6)))
    assert len({capture.SeriesInstanceUID for capture in captures}) == 1
    assert [capture.InstanceNumber for capture in captures] == [1, 2, 3, 4, 5]
    for z, capture, path in zip(range(5, 0, -1), captures, written, strict=True):
        assert errors(path) == []
        assert (capture.PhotometricInterpretation, capture.BitsAllocated) == ("RGB", 8)
        assert np.array_equal(capture.pixel_array, pictures[z])
        liver = case.result.canonical[z] > 0
        number = case.uids.index(capture.SourceImageSequence[0].ReferencedSOPInstanceUID)
        assert np.count_nonzero(case.labels[number]) == np.count_nonzero(liver)
        assert capture.file_meta.MediaStorageSOPInstanceUID == capture.SOPInstanceUID
        assert capture.ImageComments == f"Axial slice {z}, counted from 0 at the feet"


def test_a_report_goes_with_the_segmentation_that_it_refers_to(tmp_path):
    case = make(tmp_path / "ct", "axial")
    case.result.save_dicom(tmp_path)
    case.result.save_dicom(tmp_path, ["sc"])
    names = {path.name for path in tmp_path.glob("*.dcm")}
    assert {"seg.dcm", "sr.dcm"} < names
    case.result.save_dicom(tmp_path, ["seg"])
    assert {path.name for path in tmp_path.glob("*.dcm")} == names - {"sr.dcm"}


@pytest.mark.parametrize("manufacturer", ["Vendor", None])
def test_a_report_that_is_none_of_trtseg_stays(tmp_path, manufacturer):
    case = make(tmp_path / "ct", "axial")
    case.result.save_dicom(tmp_path, ["seg", "sr"])
    report = pydicom.dcmread(tmp_path / "sr.dcm")
    report.Manufacturer = manufacturer
    report.save_as(tmp_path / "sr.dcm")
    for other in (tmp_path / "sr.dcm").read_bytes(), b"no DICOM":
        (tmp_path / "sr.dcm").write_bytes(other)
        case.result.save_dicom(tmp_path, ["seg"])
        assert (tmp_path / "sr.dcm").read_bytes() == other


def test_axial_pictures_of_a_coronal_series_refer_to_none_of_its_images(tmp_path):
    case = make(tmp_path / "ct", "coronal")
    for path in case.result.save_dicom(tmp_path, ["seg", "sr", "sc"]):
        assert errors(path) == []
    captures = [pydicom.dcmread(path) for path in sorted(tmp_path.glob("sc_*.dcm"))]
    assert len(captures) > 3
    assert not any("SourceImageSequence" in capture for capture in captures)
    content = highdicom.sr.srread(tmp_path / "sr.dcm").content
    _, *masses = content.get_volumetric_roi_measurement_groups()
    assert not any(one.referenced_images for group in masses for one in group.get_measurements())


def test_a_picture_of_an_odd_number_of_bytes_is_padded(tmp_path):
    case = make(tmp_path / "ct", "axial")
    picture = np.arange(105, dtype=np.uint8).reshape(5, 7, 3)
    ((uid, parts),) = encode_pictures(case.result, [(2, picture)], "1.2.3.9", first=8)
    data = b"".join(bytes(part) for part in parts)
    capture = pydicom.dcmread(io.BytesIO(data))
    assert (capture.SOPInstanceUID, capture.SeriesInstanceUID, capture.InstanceNumber) == (uid, "1.2.3.9", 8)
    assert (len(data) % 2, len(capture.PixelData)) == (0, 106)
    assert np.array_equal(capture.pixel_array, picture)


def test_warnings_come_back_whoever_saves_at_the_same_time(tmp_path):
    """Filters of warnings are those of the whole process, and two threads seldom leave in the order that they came."""
    case, picture = make(tmp_path / "ct", "axial"), np.zeros((4, 4, 3), np.uint8)
    before = warnings.filters[:]
    pictures = encode_pictures(case.result, [(1, picture), (2, picture)], "1.2.3.9", first=8)
    next(pictures)
    assert warnings.filters == before  # while the caller has a picture
    entered, left = threading.Event(), threading.Event()

    def other():
        with quiet():
            entered.set()
            assert left.wait(10)

    with quiet():
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(10)
    assert warnings.filters[0][:3] == ("ignore", None, Warning)
    left.set()
    thread.join()
    assert warnings.filters == before


def test_what_the_objects_of_one_result_are_called(tmp_path):
    case = make(tmp_path / "ct", "axial", SeriesNumber=3)
    case.result.save_dicom(tmp_path, ["seg", "labelmap", "sr", "sc"])
    made = [pydicom.dcmread(tmp_path / f"{name}.dcm") for name in ("seg", "labelmap", "sr", "sc_0001")]
    assert [one.SeriesNumber for one in made] == [301, 302, 303, 304]
    assert [one.InstanceNumber for one in made] == [1, 1, 1, 1]
    assert [one.SeriesDescription for one in made] == [
        f"trtseg {what}, not for clinical use"
        for what in ("liver and tumours", "liver and tumours", "measurements", "pictures")
    ]
    for one in made:
        assert (one.Manufacturer, one.ManufacturerModelName) == ("trtseg", "trtseg")
        assert (one.SoftwareVersions, one.DeviceSerialNumber) == ("0.0", "0123456789abcdef")
    assert [one.ContentLabel for one in made[:2]] == ["LIVER_TUMOURS"] * 2
    assert {one.ContentDescription for one in made[:2]} == {
        "trtseg, not for clinical use, made by 0123456789abcdef"
    }


@pytest.mark.parametrize(
    ("thickness", "measured", "expected"),
    [
        (5.0, [], [8, 7, 6, 5, 4, 3, 2]),
        (2.0, [], [8, 5, 2]),
        (1.0, [], [8, 3]),
        (1.0, [4, 4, 7], [8, 7, 4]),
    ],
)
def test_which_slices_are_drawn(thickness, measured, expected):
    labels = np.zeros((10, 4, 4), np.uint8)
    labels[2:9, 1:3, 1:3] = 1
    lesions = [types.SimpleNamespace(diameter_slice=z) for z in measured]
    assert drawn_slices(labels, thickness, lesions) == expected
    assert drawn_slices(np.ones((4, 4, 4), np.uint8), 5.0, []) == [3, 2, 1, 0]


def test_what_is_drawn():
    shape = (3, 300, 260)
    volume = trtseg.load(abdomen(shape, (5.0, 1.2, 1.4)).ct, spacing=(5.0, 1.2, 1.4))
    labels = np.zeros(shape, np.uint8)
    labels[1, 100:200, 60:160] = 1
    labels[1, 150:160, 100:120] = 2
    ((z, picture),) = draw_captures(volume, labels, [1])
    assert (z, picture.shape, picture.dtype) == (1, (300, 260, 3), np.uint8)
    expected = np.rint((volume.array[1].clip(-160, 240) + 160.0) * 255 / 400).astype(np.uint8)
    expected = np.repeat(expected[..., None], 3, axis=2)
    for top, left, bottom, right, colour in ((100, 60, 199, 159, LIVER), (150, 100, 159, 119, TUMOUR)):
        expected[[top, bottom], left : right + 1] = expected[top : bottom + 1, [left, right]] = colour
    middle = slice(70, 260)  # without what is written above and below
    assert np.array_equal(picture[middle], expected[middle])
    assert (picture[:70] != expected[:70]).any()
    assert (picture[260:] != expected[260:]).any()


def test_without_a_series_or_a_liver_there_is_no_object(tmp_path):
    ct, labels = phantom_labels(SHAPE)
    result = Segmentation.measure(labels, trtseg.load(ct, spacing=(STEP, *SPACING)))
    for save_it in (lambda: result.save(tmp_path / "seg.dcm"), lambda: result.save_dicom(tmp_path, ["seg"])):
        with pytest.raises(OutputError, match=r"the input is no DICOM series; .* or save \.nii\.gz"):
            save_it()
    case = make(tmp_path / "ct", "axial")
    empty = Segmentation.measure(np.zeros_like(labels), case.result.volume)
    with pytest.raises(OutputError, match="no liver was found, and a DICOM segmentation cannot be empty"):
        empty.save_dicom(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]


def test_bad_kinds(tmp_path):
    case = make(tmp_path / "ct", "axial")
    for kinds, got in (
        ((), "none"),
        (("seg", "rtstruct"), "seg, rtstruct"),
        (("sr",), "sr without seg"),
        ("rtstruct", "rtstruct; expected some of seg, labelmap, sr, sc"),
        (5, "5; expected some of"),
    ):
        with pytest.raises(ArgumentError, match=f"kinds: got {got}"):
            case.result.save_dicom(tmp_path, kinds)
    with pytest.raises(ArgumentError, match="got a result without its CT"):
        dataclasses.replace(case.result, volume=None).save_dicom(tmp_path, ["sc"])


def test_nothing_of_the_patient_is_said(tmp_path, caplog, recwarn, capfd, monkeypatch):
    """Neither where values are strange, nor where an object cannot be made."""
    caplog.set_level(logging.DEBUG)
    strange = {
        "PatientName": "SECRET=A=B=C=D",
        "PatientBirthDate": "SECRET",
        "PatientSex": "SECRET",
        "StudyDate": "SECRET",
    }
    with pydicom.config.disable_value_validation():
        case = make(tmp_path / "ct", "axial", **strange)
    recwarn.clear()
    caplog.clear()
    case.result.save_dicom(tmp_path)
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientName == "SECRET=A=B=C=D"

    def refuse(*_, **__):
        raise ValueError("SECRET is no name")

    monkeypatch.setattr(highdicom.seg, "Segmentation", refuse)
    with pytest.raises(OutputError, match=r"headers of the source do not allow it \(ValueError\)") as caught:
        case.result.save_dicom(tmp_path)
    said = [str(caught.value), caplog.text, *capfd.readouterr(), *(str(w.message) for w in recwarn)]
    assert not [text for text in said if "SECRET" in text]
