"""Measurements -> a DICOM Structured Report (TID 1500) on the segments of a Segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trtseg.io.dicom_out import codes
from trtseg.labels.lesions import Lesion
from trtseg.notice import NOTICE

if TYPE_CHECKING:
    from trtseg.io.dicom_out import Result
    from trtseg.io.dicom_out.seg import Segment
    from trtseg.io.dicom_out.source import Source


def make_report(source: Source, result: Result, seg: Any, segments: Sequence[Segment]) -> Any:
    """Make a Comprehensive SR with the volumes of liver and tumours, and the size of each lesion.

    Parameters
    ----------
    source : Source
        The series.
    result : Result
        What was measured.
    seg, segments
        The Segmentation that was written, see `trtseg.io.dicom_out.seg.read_segments`.

    Returns
    -------
    highdicom.sr.ComprehensiveSR
        Explicit VR Little Endian. It is to be written: highdicom's ``content`` shows a part of it.
    """
    from highdicom import sr

    groups = [_whole(result, "Liver with tumours", codes.LIVER, result.liver_ml)]
    if result.lesions:
        groups.append(_whole(result, "All tumours", codes.MASS, result.tumour_ml))
    groups += [_part(source, result, seg, segment) for segment in segments]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=codes.code(("121007", "DCM", "Device")),
                observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                    uid=codes.DEVICE_UID,
                    name=codes.NAME,
                    manufacturer_name=codes.NAME,
                    model_name=codes.version(result.provenance),
                ),
            )
        ),
        procedure_reported=codes.code(codes.CT),
        imaging_measurements=groups,
        title=codes.code(codes.REPORT),
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            codes.code(codes.ENGLISH)
        ),
    )
    items = content[0].ContentSequence
    for text in _comments(result):
        items.append(sr.TextContentItem(codes.code(codes.COMMENT), text, sr.RelationshipTypeValues.CONTAINS))
    # highdicom copies and searches all items several times, so it gets the root with the first of them.
    content[0].ContentSequence = [items[0]]
    dataset = sr.ComprehensiveSR(
        evidence=[source.stub(0), seg],  # the first lends its patient
        content=content[0],
        series_instance_uid=codes.new_uid(),
        series_number=source.number(3),
        sop_instance_uid=codes.new_uid(),
        instance_number=1,
        is_complete=True,
        series_description=codes.description("measurements"),
        **codes.equipment(result.provenance),
    )
    dataset.ContentSequence = items
    source.dress(dataset)
    _name_evidence(dataset, source)
    return dataset


def _comments(result: Result) -> list[str]:
    """Sentences for people: what the report is worth, and what its volumes may be wrong by."""
    count = len(result.lesions)
    found = (
        "No tumour was found." if not count else f"{count} lesion{'s were' if count > 1 else ' was'} found."
    )
    first = f"{NOTICE.capitalize()}. Measured by {codes.NAME} {codes.version(result.provenance)}. {found}"
    return [first, *(f"Warning: {warning.text} [{warning.code}]" for warning in result.warnings)]


def _whole(result: Result, label: str, finding: tuple[str, str, str], ml: float) -> Any:
    """The volume of several segments together."""
    from highdicom import sr

    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=codes.new_uid(), identifier=label),
        finding_type=codes.code(finding),
        finding_sites=[sr.FindingSite(codes.code(codes.LIVER))],
        algorithm_id=_algorithm(result),
        measurements=[_measurement(codes.VOLUME, ml, codes.ML)],
    )


def _part(source: Source, result: Result, seg: Any, segment: Segment) -> Any:
    """The sizes of one segment."""
    from highdicom import sr

    lesions: tuple[Lesion, ...]
    if segment.lesions is None:
        finding, lesions, ml = codes.LIVER, (), result.liver_ml - result.tumour_ml
    else:
        finding, lesions = codes.MASS, result.lesions[slice(*segment.lesions)]
        ml = sum(lesion.volume_ml for lesion in lesions)
    measurements = [_measurement(codes.VOLUME, ml, codes.ML)]
    if len(lesions) == 1:
        measurements += _axes(source, result, lesions[0])
        if lesions[0].probability is not None:
            measurements.append(_measurement(codes.CERTAINTY, 100 * lesions[0].probability, codes.PERCENT))
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=segment.tracking_uid, identifier=segment.label),
        referenced_segment=sr.ReferencedSegment(
            seg.SOPClassUID,
            seg.SOPInstanceUID,
            segment.number,
            source_series=sr.SourceSeriesForSegmentation(source.series),
        ),
        finding_type=codes.code(finding),
        finding_sites=[sr.FindingSite(codes.code(codes.LIVER))],
        algorithm_id=_algorithm(result),
        measurements=measurements,
    )


def _axes(source: Source, result: Result, lesion: Lesion) -> list[Any]:
    """Both diameters of a lesion, with the slice that they lie on, where that is a slice of the source."""
    from highdicom import sr

    images = None
    if (k := source.slice_of(result.geometry, lesion.diameter_slice)) is not None:
        one = source.slices[k]
        frames = None if one.frame is None else [one.frame]
        images = [sr.SourceImageForMeasurement(one.sop_class, one.sop_instance, frames)]
    return [
        _measurement(codes.LONG_AXIS, lesion.diameter_mm, codes.MM, images),
        _measurement(codes.SHORT_AXIS, lesion.short_mm, codes.MM, images),
    ]


def _measurement(
    name: tuple[str, str, str], value: float, unit: tuple[str, str, str], images: Any = None
) -> Any:
    from highdicom import sr

    return sr.Measurement(
        name=codes.code(name), value=round(value, 4), unit=codes.code(unit), referenced_images=images
    )


def _algorithm(result: Result) -> Any:
    from highdicom import sr

    return sr.AlgorithmIdentification(
        name=codes.NAME,
        version=codes.version(result.provenance),
    )


def _name_evidence(dataset: Any, source: Source) -> None:
    """Name all instances of the source, by their own class: highdicom was told of one slice."""
    for study in dataset.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            if series.SeriesInstanceUID == source.series:
                series.ReferencedSOPSequence = source.instances()
