"""Whether an instance that is sent again is the one that is stored, in other bytes."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

#: What says which pixels lie where, and what they mean. Files with several frames say it elsewhere.
_TAGS = (
    "SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "AcquisitionNumber", "ImageType",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelPaddingValue", "RescaleSlope", "RescaleIntercept", "PixelData",
)  # fmt: skip
_MOST_BYTES = 32_000_000  # of a file that is compared


def is_same_image(stored: Path, sent: bytes) -> bool:
    """Tell whether two DICOM files of one frame, the second given as its bytes, hold the same pixels at the same place.

    Programs that pass images on may write lengths, value representations or private elements otherwise. Pixels in
    another compression, or with another order of bytes, count as others. So does what cannot be read.
    """
    try:
        if stored.stat().st_size > _MOST_BYTES:
            return False
        one, other = _read(stored), _read(BytesIO(sent))
        return "NumberOfFrames" not in one and all(one.get(tag) == other.get(tag) for tag in _TAGS)
    except Exception:  # pydicom raises errors of many types
        return False


def _read(file: Path | BytesIO) -> Dataset:
    from pydicom import dcmread
    from pydicom.tag import Tag

    return dcmread(file, specific_tags=[Tag(name) for name in _TAGS])
