"""Whether an instance that is sent again is the one that is stored, in other bytes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

#: What says whose pixels lie where, and what they mean. Files with several frames say it elsewhere.
_TAGS = (
    "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "IssuerOfPatientID", "PatientName",
    "PatientBirthDate", "PatientSex", "FrameOfReferenceUID", "AcquisitionNumber", "ImageType", "PatientPosition",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "GantryDetectorTilt", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelData",
)  # fmt: skip
#: Bytes of an instance that is compared: it is held in memory twice.
MOST_BYTES = 32_000_000


def is_same_image(stored: Path, sent: bytes) -> bool:
    """Tell whether two DICOM files of one frame, the second given as its bytes, hold the same pixels of one patient.

    Programs that pass images on may write lengths, value representations or private elements otherwise. Pixels in
    another compression, or with another order of bytes, count as others. So does what cannot be read.
    """
    try:
        if stored.stat().st_size > MOST_BYTES:
            return False
        one, other = _read(stored), _read(BytesIO(sent))
        return "NumberOfFrames" not in one and all(one.get(tag) == other.get(tag) for tag in _TAGS)
    except Exception:  # pydicom raises errors of many types
        return False


def _read(file: Path | BytesIO) -> Dataset:
    from pydicom import dcmread
    from pydicom.tag import Tag

    return dcmread(file, specific_tags=[Tag(name) for name in _TAGS])
