"""Single slices of a scan, and the Volume that they make together."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtseg.errors import ArgumentError
from trtseg.io import load
from trtseg.io.dicom.frames import are_directions
from trtseg.io.dicom.grid import place
from trtseg.volume import LPS_TO_RAS, Geometry, Volume, check_spacing, spacing_mm

_FARTHEST_MM = 1e7  # from the origin; NaN is not nearer
_CANONICAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # directions of canonical slices


class SliceGrid:
    """How slices of one size and direction lie in space, and in canonical order.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of a slice as it is given.
    spacing : (float, float)
        Millimetres between rows and between columns.
    directions : six numbers, optional
        As in ImageOrientationPatient; without them slices are in canonical order, and positions are numbers.

    Attributes
    ----------
    shape : (int, int)
        Rows and columns in canonical order.
    spacing : (float, float)
        Of these.
    is_downwards : bool
        Whether depths grow to the feet.

    Raises
    ------
    ArgumentError
        If an argument is wrong, or the slices are not axial.
    """

    def __init__(self, shape: Any, spacing: Any, directions: Any = None) -> None:
        self._is_canonical = directions is None
        between_rows, between_columns = check_spacing(spacing, "yx")
        self._pixel = between_rows, between_columns
        self._directions = _checked_directions(_CANONICAL if directions is None else directions)
        along_row, along_column = self._directions.reshape(2, 3)
        self._normal = np.cross(along_row, along_column)
        affine = np.eye(4)
        steps = self._normal, along_column * self._pixel[0], along_row * self._pixel[1]
        affine[:3, :3] = np.stack(steps, 1)
        self._grid = Geometry.from_affine((1, *checked_shape(shape)), LPS_TO_RAS @ affine)
        if self._grid.axes[0] != 0:
            raise ArgumentError(
                f"directions: got {self._directions.tolist()}; expected axial slices, the nets know no others"
            )
        _, rows, columns = self._grid.canonical_shape
        self.shape, self.spacing = (rows, columns), self._grid.spacing[1:]
        self.is_downwards = self._grid.flips[0]

    def plane(self, hu: Any) -> NDArray[np.int16]:
        """Copy a slice to canonical order, ``[Y, X]``; ArgumentError unless it is int16 and has the shape."""
        shape = self._grid.shape[1:]
        if np.ma.is_masked(hu):
            raise ArgumentError(
                "hu: got a masked array, and pixels of it are masked; expected HU everywhere: hu.filled(-1000) makes "
                "them air"
            )
        if not isinstance(hu, np.ndarray) or hu.dtype != np.int16 or hu.shape != shape:
            got = f"{hu.dtype} {hu.shape}" if isinstance(hu, np.ndarray) else type(hu).__name__
            raise ArgumentError(
                f"hu: got {got}; expected an int16 array {shape}, as the stream was opened for"
            )
        return np.array(self._grid.canonical(hu[None])[0], np.int16, order="C")

    def as_given(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """View labels ``[Y, X]`` on the grid of a slice as it is given, read-only."""
        view: NDArray[np.uint8] = self._grid.restore(labels[None])[0]
        view.flags.writeable = False
        return view

    def depth(self, position: Any) -> float:
        """Millimetres along row direction x column direction; ArgumentError unless it is a position."""
        return float(self._point(position) @ self._normal)

    def ml(self, counts: Sequence[tuple[float, int]]) -> float:
        """Volume of voxels that were counted in slices, given as ``(depth, voxels)`` in the order of depth, in mL.

        Each slice stands for the space up to half the way to the next ones; 0 for less than two slices.
        """
        if len(counts) < 2:
            return 0.0
        depth, voxels = np.array(counts).T
        gaps = np.diff(depth)
        thick = (np.append(gaps[0], gaps) + np.append(gaps, gaps[-1])) / 2
        return float(voxels @ thick) * self.spacing[0] * self.spacing[1] / 1000

    def volume(self, planes: Sequence[NDArray[np.int16]], positions: Sequence[Any]) -> Volume:
        """Make the Volume of canonical slices ``[Y, X]``, feet to head, with all warnings.

        It is that which `trtseg.io.load` makes of their array: with a spacing if positions are numbers, else with an
        affine, from index ``(column, row, slice)`` as of a DICOM series; slices count along row direction x column
        direction.

        Raises
        ------
        InputError
            If slices are missing or lie unevenly, or are no CT.
        """
        points = np.array([self._point(position) for position in positions])
        _, affine, warnings = place("stream", points, self._directions, self._pixel)
        array = np.stack(planes)
        if self._is_canonical:
            volume = load(array, spacing=(spacing_mm(affine)[0], *self._pixel))
        else:
            affine = affine[:, [2, 1, 0, 3]]
            grid = Geometry.from_affine((*self._grid.shape[:0:-1], len(array)), affine)
            volume = load(grid.restore(array), affine=affine)
        return dataclasses.replace(volume, warnings=(*warnings, *volume.warnings))

    def _point(self, position: Any) -> NDArray[np.float64]:
        """Where the first voxel of a slice lies, LPS mm."""
        try:
            point = np.array(position, np.float64)
        except (TypeError, ValueError, OverflowError):
            point = np.array(np.nan)
        if point.shape != (() if self._is_canonical else (3,)) or not (np.abs(point) < _FARTHEST_MM).all():
            expected = "a number of mm" if self._is_canonical else "three numbers, ImagePositionPatient"
            raise ArgumentError(f"position: got {position!r}; expected {expected}")
        return np.array([0.0, 0.0, float(point)]) if self._is_canonical else point


def checked_shape(shape: Any) -> tuple[int, int]:
    """Return the rows and columns of a slice; ArgumentError unless they are two numbers of at least 1."""
    try:
        rows, columns = map(operator.index, shape)
    except (TypeError, ValueError, OverflowError):
        rows = columns = 0
    if min(rows, columns) < 1:
        raise ArgumentError(f"shape: got {shape!r}; expected the numbers of rows and of columns of a slice")
    return rows, columns


def _checked_directions(directions: Any) -> NDArray[np.float64]:
    try:
        found = np.array(directions, np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.zeros(0)
    if found.shape == (6,) and np.isfinite(found).all() and are_directions(found):
        return found
    raise ArgumentError(
        f"directions: got {directions!r}; expected two unit vectors at a right angle, ImageOrientationPatient"
    )
