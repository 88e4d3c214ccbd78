"""Pictures -> a series of DICOM Secondary Captures, which every PACS shows."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from trtseg.io.dicom_out import codes
from trtseg.io.dicom_out.encoding import element_head
from trtseg.labels.components import Array

if TYPE_CHECKING:
    from trtseg.io.dicom_out import Result
    from trtseg.io.dicom_out.source import Source


def encode_captures(
    source: Source,
    result: Result,
    pictures: Iterable[tuple[int, Array]],
    series_uid: str | None = None,
    first: int = 1,
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Encode pictures as one series, an instance each: 8-bit RGB, Explicit VR Little Endian, uncompressed.

    Parameters
    ----------
    source : Source
        The series that was drawn on.
    result : Result
        What was drawn.
    pictures : iterable of (int, ndarray)
        Axial slices ``z`` of the canonical grid, and their pictures, uint8 ``[Y, X, 3]``, C-contiguous.
    series_uid : str, optional
        Of the series; by default a new one.
    first : int
        Number of the first picture in the series.

    Yields
    ------
    uid : str
        SOP Instance UID.
    parts : tuple of buffer
        The file in parts, to be written one after the other.
    """
    dataset = None
    for number, (z, picture) in enumerate(pictures, first):
        if dataset is None:
            dataset = _first(source, result, picture, series_uid or codes.new_uid())
        uid = codes.new_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
        dataset.InstanceNumber = number
        dataset.ImageComments = f"Axial slice {z}, counted from 0 at the feet"
        _refer(dataset, source, result, z)
        head = io.BytesIO()
        dataset.save_as(head)
        # Pixels are the last element; pydicom would copy them several times.
        head.write(element_head(0x7FE00010, b"OB", picture.nbytes))
        yield uid, (head.getvalue(), picture, b"\0" * (picture.nbytes % 2))


def _first(source: Source, result: Result, picture: Array, series_uid: str) -> Any:
    """Make the object that all instances of the series are made of."""
    import highdicom

    sy, sx = result.geometry.spacing[1:]
    now = time.localtime()
    dataset = highdicom.sc.SCImage(
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        pixel_spacing=(sy, sx),
        study_instance_uid=source.study,
        series_instance_uid=series_uid,
        series_number=source.number(4),
        sop_instance_uid=codes.new_uid(),
        instance_number=1,
        series_description=codes.description("pictures"),
        series_date=time.strftime("%Y%m%d", now),
        series_time=time.strftime("%H%M%S", now),
        **codes.equipment(result.provenance),
    )
    del dataset.PixelData
    source.dress(dataset)
    dataset.BodyPartExamined = "LIVER"
    dataset.BurnedInAnnotation = "NO"  # of the patient: what is burnt in names nobody
    dataset.DerivationDescription = (
        f"Outlines of {codes.NAME} {codes.version(result.provenance)}; {codes.description('pictures')}"
    )
    return codes.as_read(dataset)


def _refer(dataset: Any, source: Source, result: Result, z: int) -> None:
    """Refer to the slice that was drawn on, where it is a slice of the source."""
    k = source.slice_of(result.geometry, z)
    if k is None:
        return
    one = source.slices[k]
    item = one.item()
    if one.frame is not None:
        item.ReferencedFrameNumber = one.frame
    dataset.SourceImageSequence = [item]
