"""The places of slices -> one even grid, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtseg.errors import InputError
from trtseg.io.dicom.frames import Slice
from trtseg.volume import LPS_TO_RAS, SAME_GRID
from trtseg.warnings import ResultWarning

SAME_PLACE_MM = 0.02  # what headers round; slices of one place lie no farther apart
SAME_DIRECTION = 1e-3  # in each part of a direction
_EVEN, _MOST_UNEVEN = 0.02, SAME_GRID  # of a step, by which a slice may lie beside its place on the grid
_TILT_DEGREES = 0.5
_SHOWN = 5


def place(
    name: str,
    position: np.ndarray,
    orientation: np.ndarray,
    spacing: tuple[float, float],
    thickness: float | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[ResultWarning, ...]]:
    """Find the even grid ``[slice, row, column]`` on which slices lie.

    Parameters
    ----------
    name : str
        The input, for messages.
    position : ndarray
        Centre of the first voxel of each slice, ``[n, 3]``, LPS mm, in any order, no place twice.
    orientation : ndarray
        Of all slices, ``[6]``, as in ImageOrientationPatient.
    spacing : (float, float)
        Millimetres between rows and between columns.
    thickness : float, optional
        Stands for the distance of slices if there is but one slice.

    Returns
    -------
    index : ndarray of int, [n]
        Place of each slice on the first axis of the grid, which runs along row direction x column direction.
    affine : ndarray
        4x4, index ``(slice, row, column)`` to RAS mm.
    warnings : tuple of ResultWarning
        What is strange about the places.

    Raises
    ------
    InputError
        If slices are missing, lie unevenly, or are shifted against each other. It says where.
    """
    along_row, along_column = orientation[:3], orientation[3:]
    normal = np.cross(along_row, along_column)
    depth = position @ normal
    order = np.argsort(depth, kind="stable")
    index = np.argsort(order, kind="stable")
    first, count = position[order[0]], len(position)
    warnings: list[ResultWarning] = []
    if count == 1:
        if thickness is None:
            raise InputError(f"{name}: got one slice without SliceThickness; expected a series of slices")
        step = normal * thickness
        text = f"There is but one slice: it is taken to be as thick as SliceThickness says, {thickness:g} mm."
        warnings.append(ResultWarning("geometry-unknown", text))
    else:
        _check_gaps(name, depth[order], position[order] @ _nearest_axis(normal))
        step = (position[order[-1]] - first) / (count - 1)
        beside = position - (first + index[:, None] * step)
        off = np.abs(beside @ normal).max() / (step @ normal)
        sideways = np.abs(beside @ np.stack([along_row, along_column], 1)).max()
        if sideways > SAME_GRID * min(spacing):
            raise InputError(
                f"{name}: slices are shifted sideways by up to {sideways:.3g} mm against each other; expected the "
                "slices of one reconstruction, which lie in a row"
            )
        if off > _EVEN:
            text = f"Slices lie up to {off:.0%} of their distance beside an even grid, on which they are put."
            warnings.append(ResultWarning("geometry-uneven", text))
        tilt = np.degrees(np.arccos(min(1.0, step @ normal / np.linalg.norm(step))))
        if tilt > _TILT_DEGREES:
            text = (
                f"The gantry was tilted by {tilt:.1f} degrees: the grid is sheared. Volumes are right, but programs "
                "that do not know sheared grids draw the result beside its place."
            )
            warnings.append(ResultWarning("geometry-tilt", text))
    affine = np.eye(4)
    affine[:3] = np.stack([step, along_column * spacing[0], along_row * spacing[1], first], 1)
    return index, LPS_TO_RAS @ affine, tuple(warnings)


def common(name: str, slices: Sequence[Slice]) -> Slice:
    """Give the first of slices that have one size, orientation, spacing and scale; an InputError says what differs."""
    first = slices[0]
    for one in slices:
        if one.size != first.size:
            raise InputError(
                f"{name}: slices of {first.size[0]} x {first.size[1]} and of {one.size[0]} x {one.size[1]} pixels; "
                "expected the slices of one reconstruction"
            )
        if not is_alike(one, first):
            raise InputError(
                f"{name}: slices of different orientation or pixel spacing; expected those of one reconstruction"
            )
        if one.is_rescaled != first.is_rescaled:
            raise InputError(
                f"{name}: slices with RescaleIntercept and slices without; expected it in all or in none, fetch the "
                "series again"
            )
    return first


def is_alike(one: Slice, other: Slice) -> bool:
    """Whether two slices may belong to one grid by size, orientation and spacing."""
    return (
        one.size == other.size
        and bool(np.abs(one.orientation - other.orientation).max() <= SAME_DIRECTION)
        and all(
            abs(a - b) <= SAME_DIRECTION * abs(b) for a, b in zip(one.spacing, other.spacing, strict=True)
        )
    )


def _check_gaps(name: str, depth: np.ndarray, shown: np.ndarray) -> None:
    """Refuse places that lie unevenly; ``depth`` grows, and ``shown`` is what a person calls the places."""
    steps = np.diff(depth)
    for step in (float(np.median(steps)), float(steps.min())):  # the latter where most slices are missing
        times = np.maximum(1, np.rint(steps / step))
        index = np.concatenate([[0.0], np.cumsum(times)])
        even = depth[0] + index * (depth[-1] - depth[0]) / index[-1]
        if np.abs(depth - even).max() <= _MOST_UNEVEN * step:
            break
    else:
        raise InputError(
            f"{name}: slices lie {steps.min():.4g} to {steps.max():.4g} mm apart; expected even distances: slices are "
            "missing, or these are several reconstructions in one series. Fetch the series again, or put each into a "
            "folder of its own"
        )
    gaps = np.flatnonzero(times > 1)
    if gaps.size:
        missing = int((times - 1).sum())
        ends = [(*sorted((shown[g], shown[g + 1])), times[g] - 1) for g in gaps[:_SHOWN]]
        places = [f"{low:.4g} and {high:.4g} mm ({count:.0f})" for low, high, count in ends]
        more = ", ..." if gaps.size > _SHOWN else ""
        raise InputError(
            f"{name}: {missing} slice{'s are' if missing > 1 else ' is'} missing, between {'; '.join(places)}{more}; "
            "fetch the series again: volumes would be wrong without them"
        )


def _nearest_axis(normal: np.ndarray) -> np.ndarray:
    """The axis of the patient along which slices are counted."""
    axis = np.zeros(3)
    axis[int(np.argmax(np.abs(normal)))] = 1
    return axis
