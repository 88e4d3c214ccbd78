"""DICOM instances made of arrays: CT slices of every kind, and Enhanced CTs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

SPACING = (8.0, 7.0)  # mm between rows, between columns


def instance(stored: np.ndarray, z: float = 0.0, **attributes: object) -> Dataset:
    """A CT slice of stored values; an attribute that is None is left out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    bits = stored.dtype.itemsize * 8
    values = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": generate_uid(),
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientName": "Secret^Name",
        "PatientID": "SECRET1",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "FrameOfReferenceUID": "1.2.3.5",
        "ImagePositionPatient": [-180, -150, z],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": list(SPACING),
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": attributes.get("BitsStored", bits) - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
        "PixelData": stored.tobytes(),
    }
    for keyword, value in (values | attributes).items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset["PixelData"].VR = "OW"
    return dataset


def enhanced(
    stored: np.ndarray, positions: list[float], temporal: list[int], **attributes: object
) -> Dataset:
    """An Enhanced CT: frames at ``positions`` along z, each with its phase and an intercept."""
    dataset = instance(
        stored,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
        RescaleSlope=None,
        RescaleIntercept=None,
        SOPClassUID=EnhancedCTImageStorage,
        NumberOfFrames=len(stored),
        **attributes,
    )
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), 5
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for k, (z, phase) in enumerate(zip(positions, temporal, strict=True)):
        frame, place, content, values = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-180, -150, z]
        content.TemporalPositionIndex = phase
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1000 - k, "HU"
        frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
        frame.PixelValueTransformationSequence = [values]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    return dataset


def save(path: Path, dataset: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def save_series(folder: Path, ct: np.ndarray, step: float = 40.0, **attributes: object) -> Path:
    """Write a canonical CT as a series, a file each slice, named from head to foot."""
    for z, plane in enumerate(ct):
        save(folder / f"{len(ct) - z:03d}", instance(plane, 100 + z * step, **attributes))
    return folder
