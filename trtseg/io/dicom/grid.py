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
# By which headers may round places away from a grid, in mm and of a step at most.
_ROUNDED_MM, _ROUNDED = 0.1 + 1e-6, 0.2
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
    normal = np.cross(orientation[:3], orientation[3:])
    depth = position @ normal
    order = np.argsort(depth, kind="stable")
    if len(position) > 1:
        _check_gaps(name, depth[order], position[order] @ _nearest_axis(normal))
    index = np.argsort(order, kind="stable")
    affine, warnings = _fit(name, position, index, orientation, spacing, thickness)
    return index, affine, warnings


def place_sparse(
    name: str,
    position: np.ndarray,
    orientation: np.ndarray,
    spacing: tuple[float, float],
    thickness: float | None = None,
    between: float | None = None,
) -> tuple[np.ndarray, np.ndarray, tuple[ResultWarning, ...]]:
    """Find the even grid of frames that leave slices out and may show a place twice; else like `place`.

    ``between`` is SpacingBetweenSlices. Places tell the distance of slices wherever two follow each other.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    depth = position @ normal
    order = np.argsort(depth, kind="stable")
    group = np.concatenate([[0], np.cumsum(np.diff(depth[order]) > SAME_PLACE_MM)])
    level = np.bincount(group, depth[order]) / np.bincount(group)
    index = np.empty(len(position), int)
    warnings: tuple[ResultWarning, ...] = ()
    if len(level) == 1:
        index[:] = 0
        if between is None and thickness is None:
            raise InputError(
                f"{name}: all frames lie on one slice, and neither SpacingBetweenSlices nor SliceThickness says how "
                "thick it is; convert it to .nii.gz with the spacing of its CT"
            )
    else:
        steps = np.diff(level)
        # A frame beside the grid is near to one neighbour; half a slice farther away others are none of the nearest.
        least = float(steps.min())
        nearest = float(steps[steps < least + 0.5 * min(least, between or least)].mean())
        step, is_said, warnings = _distance(nearest, thickness, between)
        if (next_to := steps[steps < 1.5 * step]).size:
            step = float(next_to.mean())
        numbers = _numbered(level, step, _MOST_UNEVEN * step if is_said else max(_EVEN * step, SAME_PLACE_MM))
        if numbers is None:
            raise InputError(
                f"{name}: frames lie {steps.min():.4g} to {steps.max():.4g} mm apart, which are no multiples of one "
                "distance of slices; expected those of one CT, convert it to .nii.gz"
            )
        index[order] = numbers[group]
        even = float((level[-1] - level[0]) / numbers[-1])
        if is_said and between is not None and abs(even / between - 1) > _EVEN:
            warnings += (_conflict(between, even),)
    affine, more = _fit(
        name, position, index, orientation, spacing, between or thickness, between is not None
    )
    return index, affine, (*warnings, *more)


def _distance(
    nearest: float, thickness: float | None, between: float | None
) -> tuple[float, bool, tuple[ResultWarning, ...]]:
    """Tell the distance of slices by that of the nearest frames, whether ``between`` agrees, and what is strange."""
    if between is not None:
        times = max(1.0, float(np.rint(nearest / between)))
        if abs(nearest / between / times - 1) > _EVEN:
            return nearest, False, (_conflict(between, nearest),)
        if times == 1:
            return nearest, True, ()
        text = (
            f"No two slices that have a frame follow each other: the nearest lie {nearest:.4g} mm apart, and slices "
            f"{between:g} mm, as SpacingBetweenSlices says. If it is wrong, or slices between were left out, volumes "
            "are wrong."
        )
        return nearest / times, True, (ResultWarning("geometry-unknown", text),)
    if thickness is not None and nearest > 1.5 * thickness:
        text = (
            f"The nearest frames lie {nearest:.4g} mm apart, which is taken for the distance of slices, although these "
            f"are {thickness:g} mm thick: if slices between were left out, volumes are wrong."
        )
        return nearest, False, (ResultWarning("geometry-unknown", text),)
    return nearest, False, ()


def _conflict(between: float, taken: float) -> ResultWarning:
    text = f"SpacingBetweenSlices is {between:g} mm, but frames lie {taken:.4g} mm apart, which is taken."
    return ResultWarning("geometry-conflict", text)


def _fit(
    name: str,
    position: np.ndarray,
    index: np.ndarray,
    orientation: np.ndarray,
    spacing: tuple[float, float],
    thickness: float | None,
    is_known: bool = False,
) -> tuple[np.ndarray, tuple[ResultWarning, ...]]:
    """Lay a grid through places of which the number of the slice is known; ``is_known``: so is the distance of one."""
    along_row, along_column = orientation[:3], orientation[3:]
    normal = np.cross(along_row, along_column)
    ends = int(np.argmin(index)), int(np.argmax(index))
    first, count = position[ends[0]], int(index[ends[1]]) + 1
    warnings: list[ResultWarning] = []
    if count == 1:
        if thickness is None:
            raise InputError(f"{name}: got one slice without SliceThickness; expected a series of slices")
        step = normal * thickness
        if not is_known:
            text = f"There is but one slice: it is taken to be as thick as SliceThickness says, {thickness:g} mm."
            warnings.append(ResultWarning("geometry-unknown", text))
    else:
        step = (position[ends[1]] - first) / (count - 1)
    beside = position - (first + index[:, None] * step)
    off = np.abs(beside @ normal).max() / (step @ normal)
    sideways = np.abs(beside @ np.stack([along_row, along_column], 1)).max()
    if sideways > max(SAME_GRID * min(spacing), _ROUNDED_MM):
        raise InputError(
            f"{name}: slices are shifted sideways by up to {sideways:.3g} mm against each other; expected the "
            "slices of one reconstruction, which lie in a row"
        )
    if off > _EVEN:
        text = f"Slices lie up to {off:.0%} of their distance beside an even grid, on which they are put."
        warnings.append(ResultWarning("geometry-uneven", text))
    cosine = float(step @ normal / (np.linalg.norm(step) * np.linalg.norm(normal)))  # directions are rounded
    tilt = np.degrees(np.arccos(min(1.0, cosine)))
    if tilt > _TILT_DEGREES:
        text = (
            f"The gantry was tilted by {tilt:.1f} degrees: the grid is sheared. Volumes are right, but programs "
            "that do not know sheared grids draw the result beside its place, and those made with ITK open it as "
            ".nrrd or .mha, but not as NIfTI."
        )
        warnings.append(ResultWarning("geometry-tilt", text))
    affine = np.eye(4)
    affine[:3] = np.stack([step, along_column * spacing[0], along_row * spacing[1], first], 1)
    return LPS_TO_RAS @ affine, tuple(warnings)


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
        most = max(_MOST_UNEVEN * step, min(_ROUNDED_MM, _ROUNDED * step))
        if (index := _numbered(depth, step, most)) is not None:
            break
    else:
        raise InputError(
            f"{name}: slices lie {steps.min():.4g} to {steps.max():.4g} mm apart; expected even distances: slices are "
            "missing, or these are several reconstructions in one series. Fetch the series again, or put each into a "
            "folder of its own"
        )
    times = np.diff(index)
    gaps = np.flatnonzero(times > 1)
    if gaps.size:
        missing = int((times - 1).sum())
        ends = [(*sorted((shown[g], shown[g + 1])), times[g] - 1) for g in gaps[:_SHOWN]]
        places = [f"{low:.4g} and {high:.4g} mm ({count})" for low, high, count in ends]
        more = ", ..." if gaps.size > _SHOWN else ""
        raise InputError(
            f"{name}: {missing} slice{'s are' if missing > 1 else ' is'} missing, between {'; '.join(places)}{more}; "
            "fetch the series again: volumes would be wrong without them"
        )


def _numbered(depth: np.ndarray, step: float, most: float) -> np.ndarray | None:
    """Count places that grow in multiples of about ``step``; None if one is ``most`` mm beside an even grid."""
    times = np.maximum(1, np.rint(np.diff(depth) / step)).astype(int)
    index = np.concatenate([[0], np.cumsum(times)])
    even = depth[0] + index * (depth[-1] - depth[0]) / index[-1]
    return index if np.abs(depth - even).max() <= most else None


def _nearest_axis(normal: np.ndarray) -> np.ndarray:
    """The axis of the patient along which slices are counted."""
    axis = np.zeros(3)
    axis[int(np.argmax(np.abs(normal)))] = 1
    return axis
