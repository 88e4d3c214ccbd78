"""Labels -> a DICOM Segmentation: a segment for the liver, and a segment for each lesion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trtseg.io.dicom_out import codes
from trtseg.io.dicom_out.frames import encode_frames
from trtseg.labels.lesions import number_lesions
from trtseg.notice import Signature, signature, signed

if TYPE_CHECKING:
    from trtseg.io.dicom_out import Result
    from trtseg.io.dicom_out.source import Source

#: Lesions that get a segment of their own; all smaller ones share one more.
MOST_LESIONS = 50
_LIVER_RGB, _MASS_RGB = (60, 230, 200), (255, 70, 120)


@dataclass(frozen=True)
class Segment:
    """A part of the labels that other objects may refer to.

    Attributes
    ----------
    number : int
        In the object, from 1.
    label, text : str
        Its name, and a sentence.
    tracking_uid : str
        UID that stays with the part in every object of one result.
    lesions : (int, int) or None
        The lesions in it: the first, and the one after the last, as they are counted in the result; None: the liver.
    """

    number: int
    label: str
    text: str
    tracking_uid: str
    lesions: tuple[int, int] | None = None


def segments_of(result: Result) -> tuple[Segment, ...]:
    """List the segments of a result, none of which is empty."""
    count = len(result.lesions)
    found: list[Segment] = []
    if result.liver_ml > result.tumour_ml:
        label = "Liver without tumours" if count else "Liver"
        text = "Liver. Its tumours are not in this segment, but in segments of their own: add all for the whole liver."
        found.append(
            Segment(1, label, text if count else "The whole liver. No tumour was found.", codes.new_uid())
        )
    own = min(count, MOST_LESIONS)
    spans = [(n, n + 1) for n in range(own)] + ([(own, count)] if own < count else [])
    for first, end in spans:
        name = f"Lesion {first + 1}" if end - first == 1 else f"Lesions {first + 1} to {end}"
        text = f"{name} of {count}, by volume: a part of the liver that looks like a tumour."
        found.append(Segment(len(found) + 1, name, text, codes.new_uid(), (first, end)))
    return tuple(found)


def write_seg(path: Path, source: Source, result: Result, *, labelmap: bool = False) -> None:
    """Write a Segmentation on exactly the grid of its source, with frames where there is something only.

    highdicom makes an object with one frame, which is written without it; the encoded frames follow.

    Parameters
    ----------
    path : Path
        File to write, in Explicit VR Little Endian.
    source : Source
        The series.
    result : Result
        Labels with some liver.
    labelmap : bool
        Make a Label Map Segmentation, which few viewers read, instead of a binary one.
    """
    import highdicom

    labels = result.geometry.restore(result.canonical).T  # [slice, row, column]
    chosen = np.flatnonzero([plane.any() for plane in labels])
    planes = labels[chosen]
    segments = segments_of(result)
    shift = int(segments[0].lesions is None)
    if result.lesions:
        most = len(segments) - shift
        numbers = result.geometry.restore(number_lesions(result.canonical, most)).T
        for plane, k in zip(planes, chosen, strict=True):
            if (is_mass := plane == 2).any():
                np.copyto(plane, numbers[k] + np.uint8(shift), where=is_mass)
    dataset = highdicom.seg.Segmentation(
        source_images=[source.stub(int(chosen[0]))],
        pixel_array=planes[:1],
        segmentation_type="LABELMAP" if labelmap else "BINARY",
        segment_descriptions=[_describe(segment, result) for segment in segments],
        series_instance_uid=codes.new_uid(),
        series_number=source.number(2 if labelmap else 1),
        sop_instance_uid=codes.new_uid(),
        instance_number=1,
        series_description=codes.description("liver and tumours"),
        content_label="LIVER_TUMOURS",
        content_description=signature(str(result.provenance.get("fingerprint", ""))),
        **codes.equipment(result.provenance),
    )
    source.dress(dataset)
    slices = [source.slices[k] for k in chosen]
    dataset.NumberOfFrames, frames = encode_frames(planes, slices, len(segments), labelmap=labelmap)
    del dataset.PerFrameFunctionalGroupsSequence, dataset.PixelData
    dataset = codes.as_read(dataset)
    source.refer(dataset)
    with path.open("wb") as file:
        dataset.save_as(file)
        file.writelines(frames)


def read_segments(path: Path, result: Result) -> tuple[Any, tuple[Segment, ...]]:
    """Read what refers to a Segmentation of a result: its UIDs, in a pydicom.Dataset, and its segments."""
    import pydicom

    tags = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SegmentSequence"]
    seg = pydicom.dcmread(path, specific_tags=tags, stop_before_pixels=True)
    segments = segments_of(result)
    uids = [item.TrackingUID for item in seg.SegmentSequence]
    return seg, tuple(replace(one, tracking_uid=uid) for one, uid in zip(segments, uids, strict=True))


def _describe(segment: Segment, result: Result) -> Any:
    import highdicom

    is_liver = segment.lesions is None
    colour = highdicom.color.CIELabColor.from_rgb(*(_LIVER_RGB if is_liver else _MASS_RGB))
    made = highdicom.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.label,
        segmented_property_category=codes.code(codes.ANATOMY if is_liver else codes.ABNORMAL),
        segmented_property_type=codes.code(codes.LIVER if is_liver else codes.MASS),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=codes.NAME,
            family=codes.code(codes.AI),
            version=codes.version(result.provenance),
            parameters=codes.parameters(result.provenance),
        ),
        tracking_id=segment.label,
        tracking_uid=segment.tracking_uid,
        anatomic_regions=None if is_liver else [codes.code(codes.LIVER)],
        display_color=colour,
    )
    made.SegmentDescription = segment.text
    return made


def peek_seg(path: Path) -> Signature | None:
    """What a Segmentation of trtseg says of itself; None: the file is none."""
    try:
        import pydicom

        header = pydicom.dcmread(
            path, specific_tags=["Modality", "ContentDescription"], stop_before_pixels=True
        )
        return signed(str(header.ContentDescription)) if header.Modality == "SEG" else None
    except Exception:  # whatever is wrong with it, it is no file of trtseg
        return None
