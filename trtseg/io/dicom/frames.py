"""A DICOM file -> its slices: one, or the frames of an Enhanced CT, each with its place, its size and its scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtseg.errors import InputError
from trtseg.io.dicom.header import integer, numbers, sequence, text, texts

MAX_FRAMES = 10_000
#: Rows or columns; the largest pictures of scanners have 2048.
MAX_PIXELS = 8192
_THICK_MM = 1000.0  # no slice is as thick
_ROUNDED = 1e-4  # of the length of a direction
_MOST = 1e6  # of a slope or an intercept; those of scanners are some thousands at most
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
#: SOP classes of CTs: CT Image, Enhanced CT, and Legacy Converted Enhanced CT.
CT_CLASSES = (CT_IMAGE, f"{CT_IMAGE}.1", f"{CT_IMAGE}.2")

# What a slice must say of its place: attributes, and how many numbers each holds.
_GEOMETRY = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
# What tells pictures of one place apart: attributes of a file, and of a frame in its functional groups.
_OF_FILE = (
    "AcquisitionNumber", "TemporalPositionIdentifier", "KVP", "ImageType", "ConvolutionKernel", "SliceThickness",
    "SeriesNumber", "TriggerTime", "AcquisitionDateTime", "AcquisitionTime", "ContentTime",
)  # fmt: skip
_OF_FRAME = (
    "TemporalPositionIndex", "FrameAcquisitionNumber", "StackID", "FrameType", "FrameAcquisitionDateTime",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Slice:
    """One picture of a file.

    Attributes
    ----------
    file, frame : int
        Number of the file in the list that it came from, and of the frame in the file, from 0.
    size : (int, int)
        Rows and columns.
    position : ndarray
        Centre of the first voxel, float64 ``[3]``, LPS mm.
    orientation : ndarray
        Directions in which the column index and the row index grow, float64 ``[6]``, as in ImageOrientationPatient.
    spacing : (float, float)
        Millimetres between rows and between columns.
    thickness : float or None
        SliceThickness, mm, if it says one that a slice may have. Not the distance of slices.
    slope, intercept : float
        HU = stored value * slope + intercept.
    is_rescaled : bool
        Whether the header has the intercept; else it is 0.
    """

    file: int
    frame: int
    size: tuple[int, int]
    position: np.ndarray
    orientation: np.ndarray
    spacing: tuple[float, float]
    thickness: float | None
    slope: float
    intercept: float
    is_rescaled: bool

    @property
    def normal(self) -> np.ndarray:
        """Direction in which slices follow each other: that of rows x that of columns."""
        return np.cross(self.orientation[:3], self.orientation[3:])


def slices_of(name: str, header: Any, file: int = 0, most: int = MAX_FRAMES) -> tuple[Slice, ...]:
    """Find the slices of a file.

    Parameters
    ----------
    name : str
        The file, for messages.
    header : pydicom.Dataset
        Its header.
    file : int
        Number of the file, see `Slice`.
    most : int
        Frames that it may have.

    Raises
    ------
    InputError
        If a slice has no place, no spacing or no size, a value is damaged, or no CT has it, as a Modality LUT.
    """
    size = (integer(name, header, "Rows"), integer(name, header, "Columns"))
    frames = integer(name, header, "NumberOfFrames", 1)
    if not (0 < min(size) <= max(size) <= MAX_PIXELS and 0 < frames <= most):
        raise InputError(
            f"{name}: got {frames} frames of {size[0]} x {size[1]} pixels; expected 1 to {most} frames of at "
            f"most {MAX_PIXELS} x {MAX_PIXELS}, the file is damaged or no CT"
        )
    if sequence(name, header, "ModalityLUTSequence"):
        raise InputError(
            f"{name}: a Modality LUT in the place of slope and intercept; expected RescaleSlope and RescaleIntercept, "
            "export the CT again in Hounsfield units"
        )
    groups = list(_groups(name, header, frames))
    if not groups and frames > 1:
        raise InputError(
            f"{name}: {frames} frames without functional groups, so their places are not known; "
            "expected an Enhanced CT, or a file for each slice"
        )
    if not groups:
        return (_slice(name, (file, 0), size, [header]),)
    return tuple(_slice(name, (file, k), size, [*group, header]) for k, group in enumerate(groups))


def marks_of(header: Any, frame: int, times: bool = True) -> dict[str, str]:
    """What may tell a picture from others of the same place: attributes of its file, and of the frame."""
    where = [header]
    if own := sequence("", header, "PerFrameFunctionalGroupsSequence"):
        shared = sequence("", header, "SharedFunctionalGroupsSequence")
        where += [part for group in (own[frame], *shared) for part in _items("", group)]
    found = {}
    for keyword in (*(_OF_FRAME if own else ()), *_OF_FILE):
        if not times and keyword.endswith("Time"):
            continue
        values = ("\\".join(texts(item, keyword)) for item in where)
        found[keyword] = next(filter(None, values), "")
    return {keyword: value for keyword, value in found.items() if value}


def _slice(name: str, place: tuple[int, int], size: tuple[int, int], where: list[Any]) -> Slice:
    def find(keyword: str, count: int) -> tuple[float, ...] | None:
        found = (numbers(name, item, keyword, count) for item in where)
        return next((values for values in found if values is not None), None)

    geometry = {keyword: find(keyword, count) or () for keyword, count in _GEOMETRY.items()}
    if absent := ", ".join(keyword for keyword, values in geometry.items() if not values):
        raise InputError(f"{name}: no {absent}; expected slices whose place is known, fetch the series again")
    position, orientation, spacing = geometry.values()
    slope, said = find("RescaleSlope", 1) or (1.0,), find("RescaleIntercept", 1)
    intercept = said or (0.0,)
    if slope[0] == 0 or max(abs(slope[0]), abs(intercept[0])) > _MOST:
        raise InputError(
            f"{name}: RescaleSlope {slope[0]:g} and RescaleIntercept {intercept[0]:g} give no HU; the file is damaged, "
            "fetch it again"
        )
    kind = next((value for item in where if (value := text(item, "RescaleType"))), "HU").upper()
    if kind not in ("HU", "US"):
        raise InputError(f"{name}: values are of type {kind!r}, not HU; give the series in Hounsfield units")
    if not (min(spacing) > 0 and are_directions(orientation)):
        raise InputError(
            f"{name}: ImageOrientationPatient {list(orientation)} and PixelSpacing {list(spacing)} are no geometry; "
            "the file is damaged, fetch it again"
        )
    thickness = find("SliceThickness", 1)
    return Slice(
        *place, size, np.array(position), _unit(orientation), (spacing[0], spacing[1]),
        thickness[0] if thickness and 0 < thickness[0] < _THICK_MM else None, slope[0], intercept[0], said is not None,
    )  # fmt: skip


def _unit(orientation: tuple[float, ...]) -> np.ndarray:
    """The same directions with a length of 1: how far pixels lie apart is told by PixelSpacing alone."""
    along = np.array(orientation).reshape(2, 3)
    length = np.linalg.norm(along, axis=1, keepdims=True)
    return (along / np.where(np.abs(length - 1) > _ROUNDED, length, 1)).ravel()


def are_directions(orientation: Any) -> bool:
    """Whether six numbers are two directions at a right angle, but for what headers round."""
    along = np.array(orientation).reshape(2, 3)
    return bool(np.abs(along @ along.T - np.eye(2)).max() < 1e-2)


def _groups(name: str, header: Any, frames: int) -> Iterator[list[Any]]:
    """The functional groups of each frame, from its own to the shared; nothing if there are none."""
    own = sequence(name, header, "PerFrameFunctionalGroupsSequence")
    if own and len(own) != frames:
        raise InputError(f"{name}: {frames} frames, but functional groups of {len(own)}; the file is damaged")
    shared = sequence(name, header, "SharedFunctionalGroupsSequence")
    for item in own:
        yield [part for group in (item, *shared) for part in _items(name, group)]


def _items(name: str, group: Any) -> Iterator[Any]:
    try:
        yield from (element.value[0] for element in group if element.VR == "SQ" and element.value)
    except Exception as error:  # damaged elements make pydicom raise errors of many types
        raise InputError(f"{name}: functional groups are damaged, fetch the file again") from error
