"""DICOM Segmentations made by hand, of all kinds that other programs write, and some that nobody should."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

LIVER, MASS = ("10200004", "SCT", "Liver"), ("4147007", "SCT", "Mass")
ANATOMY = ("123037004", "SCT", "Anatomical Structure")
ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
SPACING = (0.8, 0.7)
ORIGIN = (-100.0, -120.0, 50.0)


def item(**attributes: object) -> Dataset:
    """A data set with these attributes, but for those that are None."""
    made = Dataset()
    for keyword, value in attributes.items():
        if value is not None:
            setattr(made, keyword, value)
    return made


def code(value: str, scheme: str, meaning: str) -> list[Dataset]:
    return [item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)]


def segment(number: int, category: tuple, kind: tuple, label: str = "x") -> Dataset:
    return item(
        SegmentNumber=number,
        SegmentLabel=label,
        SegmentedPropertyCategoryCodeSequence=code(*category),
        SegmentedPropertyTypeCodeSequence=code(*kind),
    )


def two_segments() -> list[Dataset]:
    return [segment(1, ANATOMY, LIVER, "Liver"), segment(2, ABNORMAL, MASS, "Tumour")]


def seg(
    frames: Sequence[tuple[int, int, np.ndarray]],
    *,
    kind: str = "BINARY",
    bits: int = 1,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    step: Sequence[float] = (0, 0, 2),
    thickness: float | None = 2,
    between: float | None = 2,
    noise: float = 0,
) -> Dataset:
    """A Segmentation of frames: (number of the segment, of the slice, pixels ``[row, column]``)."""
    random = np.random.default_rng(0)
    measures = item(PixelSpacing=list(SPACING), SliceThickness=thickness, SpacingBetweenSlices=between)
    groups = []
    for number, k, _ in frames:
        place = np.add(ORIGIN, np.multiply(step, k)) + random.uniform(-noise, noise, 3)
        group = item(PlanePositionSequence=[item(ImagePositionPatient=[f"{mm:.8g}" for mm in place])])
        if kind != "LABELMAP":
            group.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=number)]
        groups.append(group)
    pixels = np.stack([frame for *_, frame in frames])
    packed = np.packbits(pixels, bitorder="little") if bits == 1 else pixels.astype(f"<u{bits // 8}")
    data = packed.tobytes() + b"\0" * (packed.nbytes % 2)
    made = item(
        SOPClassUID=f"1.2.840.10008.5.1.4.1.1.66.{7 if kind == 'LABELMAP' else 4}",
        SOPInstanceUID="1.2.3.4.6",  # always the same bytes
        Modality="SEG",
        SegmentationType=kind,
        MaximumFractionalValue=255 if kind == "FRACTIONAL" else None,
        SegmentSequence=two_segments(),
        NumberOfFrames=len(frames),
        Rows=pixels.shape[1],
        Columns=pixels.shape[2],
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        BitsAllocated=bits,
        BitsStored=bits,
        HighBit=bits - 1,
        PixelRepresentation=0,
        SharedFunctionalGroupsSequence=[
            item(
                PixelMeasuresSequence=[measures],
                PlaneOrientationSequence=[item(ImageOrientationPatient=[f"{c:.10g}" for c in orientation])],
            )
        ],
        PerFrameFunctionalGroupsSequence=groups,
        PixelData=data,
    )
    made["PixelData"].VR = "OW" if bits > 8 else "OB"
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def frames_of(*masks: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """The frames that are not empty of masks ``[slice, row, column]``, one for each segment."""
    return [(n, k, plane) for n, mask in enumerate(masks, 1) for k, plane in enumerate(mask) if plane.any()]
