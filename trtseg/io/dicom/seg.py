"""A DICOM Segmentation, of trtseg or of anybody else -> labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtseg.errors import InputError, OutOfMemoryError
from trtseg.io.checks import ct_geometry
from trtseg.io.dicom.dataset import parse, read_bytes, sop_class
from trtseg.io.dicom.frames import MAX_FRAMES, slices_of
from trtseg.io.dicom.grid import common, place_sparse
from trtseg.io.dicom.header import integer, numbers, sequence, text
from trtseg.io.dicom.pixels import stored_frames
from trtseg.io.names import ZIP
from trtseg.io.voxels import SAY_MEANING
from trtseg.notice import signed
from trtseg.resources import memory_for
from trtseg.volume import Geometry
from trtseg.warnings import ResultWarning

_LIVER, _ABNORMAL = ("10200004", "SCT", "Liver"), ("49755003", "SCT", "Morphologically Abnormal Structure")
_AS_SRT = ("SNM3", "99SDM")  # older names of the scheme of such codes as T-62000, which pydicom knows as SRT
_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.66.{n}" for n in (4, 7))  # Segmentation, Label Map Segmentation
_NO_TUMOUR = (
    "No segment is a tumour. Unless somebody looked for tumours, that says nothing of them, and only livers may be "
    "compared: --liver-only of 'trtseg evaluate', --liver-label of 'trtseg compare'."
)
_SHOWN = 8  # segments listed in a message
_MOST_FRAMES = 20 * MAX_FRAMES  # a slice has a frame for each segment


@dataclass(frozen=True)
class _Segment:
    """A segment, and whether its codes say that it is liver (1), or an abnormal part of it (2)."""

    number: int
    label: str
    means: int | None


def read_seg(name: str, meaning: Mapping[int, int] | None = None) -> tuple[np.ndarray, Geometry]:
    """Read the labels of a DICOM Segmentation or Label Map Segmentation, and the grid that its frames lie on.

    Slices without a frame are background. Those between two frames are on the grid; those before the first and after
    the last are not, since the object does not say how many there are.

    Parameters
    ----------
    name : str
        The file.
    meaning : mapping, optional
        Which of 1 (liver) and 2 (tumour) the segment of each number stands for; other segments are background. By
        default that is told by their codes: the liver, and whatever is abnormal in it; there may be no other segment.
        Where segments overlap, tumour counts.

    Returns
    -------
    labels : ndarray of uint8, [Z, Y, X]
        Canonical: 0 background, 1 liver, 2 tumour.
    geometry : Geometry
        The grid. Its warnings say what is strange about it.

    Raises
    ------
    InputError
        If the file is no such object or damaged, its frames lie unevenly, its values are shares or probabilities, or a
        segment stands for nothing.
    """
    if name.lower().endswith(ZIP):
        raise InputError(f"{name}: is a zip; expected labels, unpack it and give the Segmentation in it")
    dataset = parse(name, read_bytes(name), pixels=True)
    if (modality := text(dataset, "Modality")) != "SEG":
        raise InputError(
            f"{name}: is DICOM of the modality {modality or 'unknown'}; expected a Segmentation (SEG), or labels as "
            ".nii.gz"
        )
    kind = text(dataset, "SegmentationType")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise InputError(f"{name}: its segments are {kind or 'of no type'}; expected BINARY or LABELMAP")
    segments = _segments(name, dataset)
    known = {segment.number for segment in segments}
    stands_for = _by_codes(name, segments) if meaning is None else meaning
    absent = [*_absent(known, stands_for)]
    # A result of trtseg without a tumour has no segment for one.
    is_own = signed(text(dataset, "ContentDescription")) is not None
    if meaning is None and 2 not in stands_for.values() and not is_own:
        absent.append(ResultWarning("tumour-segment", _NO_TUMOUR))
    if integer(name, dataset, "NumberOfFrames", 1) == 0:
        raise InputError(
            f"{name}: has no frame, so it does not say where its slices lie; give labels that are empty as .nii.gz"
        )
    slices = slices_of(name, dataset, most=_MOST_FRAMES)
    first = common(name, slices)
    count = len(slices)
    # A frame of a label map holds all segments.
    shown = [0] * count if kind == "LABELMAP" else list(_numbers_of_frames(name, dataset, count, known))
    position = np.array([one.position for one in slices])
    spacing, between = first.spacing, _spacing_between(name, dataset)
    index, affine, warnings = place_sparse(
        name, position, first.orientation, spacing, first.thickness, between
    )
    if len(set(zip(index.tolist(), shown, strict=True))) < count:
        raise InputError(
            f"{name}: shows the same segment twice in one place; expected one volume, export it again"
        )
    shape = (int(index.max()) + 1, *first.size)
    geometry = ct_geometry(name, shape, affine=affine, warnings=(*warnings, *absent))
    frames = stored_frames(name, dataset, count, first.size)
    full = integer(name, dataset, "MaximumFractionalValue", 1) if kind == "FRACTIONAL" else 1
    if full < 1:
        raise InputError(f"{name}: MaximumFractionalValue is {full}; expected 1 or more, export it again")
    with memory_for(name, 2 * int(np.prod(shape)) + 16 * first.size[0] * first.size[1]):
        labels = np.zeros(shape, np.uint8)
        for k, number, frame in zip(index, shown, frames, strict=True):
            if kind == "LABELMAP":
                labels[k] = _looked_up(name, frame, known, stands_for)
            else:
                mask = _mask(name, frame, kind, full)
                np.maximum(labels[k], mask * np.uint8(stands_for.get(number, 0)), out=labels[k])
        return np.ascontiguousarray(geometry.canonical(labels)), geometry


def may_be_seg(path: str | os.PathLike[str]) -> bool:
    """Tell whether a DICOM file is a Segmentation; also if that cannot be known, since reading it says what is wrong.

    No pipe is opened.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where it may not look
        return True
    try:
        return sop_class(path) in _CLASSES
    except (InputError, OutOfMemoryError):
        return True


def _segments(name: str, dataset: Any) -> list[_Segment]:
    """List the segments; an InputError says that two have one number."""
    found = [
        _Segment(integer(name, one, "SegmentNumber"), text(one, "SegmentLabel"), _means(name, one))
        for one in sequence(name, dataset, "SegmentSequence")
    ]
    if len({segment.number for segment in found}) < max(1, len(found)):
        raise InputError(
            f"{name}: {'two segments have one number' if found else 'has no segments'}; export it again"
        )
    return found


def _means(name: str, segment: Any) -> int | None:
    from pydicom.sr.coding import Code

    def codes(keyword: str) -> list[Any]:
        items = sequence(name, segment, keyword)
        schemes = (text(one, "CodingSchemeDesignator") for one in items)
        return [
            Code(text(one, "CodeValue"), "SRT" if scheme in _AS_SRT else scheme, "")
            for one, scheme in zip(items, schemes, strict=True)
        ]

    liver, abnormal = Code(*_LIVER), Code(*_ABNORMAL)  # older codes of the same meaning are equal to these
    if liver in codes("SegmentedPropertyTypeCodeSequence"):
        return 1
    is_abnormal = abnormal in codes("SegmentedPropertyCategoryCodeSequence")
    return 2 if is_abnormal and all(region == liver for region in codes("AnatomicRegionSequence")) else None


def _by_codes(name: str, segments: Sequence[_Segment]) -> dict[int, int]:
    """Which segments are liver, and which are something abnormal in it; there may be no other."""
    # Number 0 is what a label map calls its background.
    others = [one for one in segments if (one.means is None) == (one.number != 0)]
    if others:
        listed = ", ".join(f"{one.number} ({one.label})" for one in others[:_SHOWN])
        raise InputError(
            f"{name}: its codes do not say that these segments are liver, or an abnormal part of it: "
            f"{listed}{', ...' if len(others) > _SHOWN else ''}; say which numbers are "
            f"({SAY_MEANING})"
        )
    return {one.number: one.means for one in segments if one.means is not None}


def _absent(known: set[int], stands_for: Mapping[int, int]) -> Iterator[ResultWarning]:
    """Say which of the segments that have a meaning are not there."""
    missing = sorted(number for number, label in stands_for.items() if label and number not in known)
    if missing:
        text = f"There is no segment {', '.join(map(str, missing))}; there are {', '.join(map(str, sorted(known)))}."
        yield ResultWarning("liver-segment", text)


def _numbers_of_frames(name: str, dataset: Any, count: int, known: set[int]) -> Iterator[int]:
    """The segment that each frame shows; the functional groups say so, of a frame or of all."""
    shared = sequence(name, dataset, "SharedFunctionalGroupsSequence")
    for own in sequence(name, dataset, "PerFrameFunctionalGroupsSequence") or [None] * count:
        groups = [*shared] if own is None else [own, *shared]
        items = [item for group in groups for item in sequence(name, group, "SegmentIdentificationSequence")]
        if not items:
            raise InputError(f"{name}: a frame does not say which segment it shows; export it again")
        number = integer(name, items[0], "ReferencedSegmentNumber")
        if number not in known:
            raise InputError(
                f"{name}: a frame shows segment {number}, which is not described; export it again"
            )
        yield number


def _spacing_between(name: str, dataset: Any) -> float | None:
    """SpacingBetweenSlices of the first frame, if it is a distance."""
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in sequence(name, dataset, keyword)[:1]:
            for item in sequence(name, group, "PixelMeasuresSequence")[:1]:
                if (found := numbers(name, item, "SpacingBetweenSlices", 1)) and found[0] != 0:
                    return abs(found[0])
    return None


def _mask(name: str, frame: np.ndarray, kind: str, full: int) -> np.ndarray:
    """A frame of one segment as a mask; fractions are one if they are nothing or all."""
    mask: np.ndarray = frame == full
    if np.count_nonzero(frame) != np.count_nonzero(mask):
        raise InputError(
            f"{name}: its segments are {kind}, with other values than 0 and {full}; expected masks, convert it"
        )
    return mask


def _looked_up(name: str, frame: np.ndarray, known: set[int], stands_for: Mapping[int, int]) -> np.ndarray:
    """Labels of a frame that holds numbers of segments."""
    frame = frame.astype(np.uint16, copy=False)  # a damaged header may call them signed
    values = np.bincount(frame.ravel(), minlength=1).nonzero()[0].tolist()
    if unknown := [value for value in values if value and value not in known]:
        raise InputError(
            f"{name}: a frame shows segment {unknown[0]}, which is not described; export it again"
        )
    table = np.zeros(max(values, default=0) + 1, np.uint8)
    for value in values:
        table[value] = stands_for.get(value, 0) if value else 0
    labels: np.ndarray = table[frame]
    return labels
