"""A CT in canonical order, and the way back to the grid that it came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtseg.errors import ArgumentError, InputError

# Canonical array axis a (0 = Z, 1 = Y, 2 = X) runs along RAS axis 2 - a, and away from it where this is set:
# Z to the head (S), Y to the back (P), X to the patient's left (L).
_AGAINST_RAS = (False, True, True)
# Sine of the smallest angle between an axis and the plane of the other two; gantry tilts stay above 0.8.
_MIN_INDEPENDENCE = 1e-3


@dataclass(frozen=True, eq=False)
class Geometry:
    """The input's own grid, and how canonical ``[Z, Y, X]`` order lies on it.

    Attributes
    ----------
    shape : tuple of int
        Shape of the input in its own index order ``(i, j, k)``, perhaps with trailing ones (4-D with one
        frame).
    affine : ndarray
        4x4 float64, read-only: input index ``(i, j, k)`` to RAS mm.
    axes : (int, int, int)
        Canonical axis ``a`` (0 = Z, 1 = Y, 2 = X) is the input's axis ``axes[a]``.
    flips : (bool, bool, bool)
        Whether canonical axis ``a`` runs against the input's axis.
    header : object
        nibabel NIfTI header to write results with; None for arrays.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    header: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", _frozen_affine(self.affine))
        if len(self.shape) < 3 or min(self.shape) < 1 or any(n != 1 for n in self.shape[3:]):
            raise InputError(f"shape: got {self.shape}; expected three axes of at least one voxel, one frame")

    @classmethod
    def from_affine(cls, shape: Sequence[int], affine: np.ndarray, header: Any = None) -> Geometry:
        """Find the canonical order from the affine alone, by nibabel's closest-axes rule.

        Parameters
        ----------
        shape : sequence of int
            Of the input, in index order ``(i, j, k)``.
        affine : ndarray
            4x4: index ``(i, j, k)`` to RAS mm. Oblique and sheared (gantry tilt) affines are fine.
        header : object, optional
            Kept to write results with.

        Raises
        ------
        InputError
            If the affine is not finite or is singular, or the shape is not that of one volume.
        """
        from nibabel.orientations import io_orientation  # not paid for by users of arrays with a spacing

        affine = _frozen_affine(affine)
        _check_independent(affine[:3, :3])
        # One row per input axis: its RAS axis, and 1 along it or -1 against it.
        towards = [(int(row[0]), bool(row[1] > 0)) for row in io_orientation(affine)]
        axes, flips = [], []
        for a in range(3):
            i = next(n for n, (ras, _) in enumerate(towards) if ras == 2 - a)
            axes.append(i)
            flips.append(towards[i][1] == _AGAINST_RAS[a])
        z, y, x = axes
        return cls(tuple(shape), affine, (z, y, x), (flips[0], flips[1], flips[2]), header)

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Shape ``(Z, Y, X)`` in canonical order."""
        z, y, x = self.axes
        return self.shape[z], self.shape[y], self.shape[x]

    def canonical(self, array: np.ndarray) -> np.ndarray:
        """View an array on the input's grid, 3-D or with trailing ones, as ``[Z, Y, X]``; no copy."""
        if array.shape[:3] != self.shape[:3] or any(n != 1 for n in array.shape[3:]):
            raise ArgumentError(f"array: got shape {array.shape}; expected the input's {self.shape}")
        volume = array[(slice(None),) * 3 + (0,) * (array.ndim - 3)]
        return volume.transpose(self.axes)[self._reversal]

    def restore(self, array: np.ndarray) -> np.ndarray:
        """View a canonical array ``[Z, Y, X]`` on the input's grid: the inverse of `canonical`; no copy."""
        if array.shape != self.canonical_shape:
            raise ArgumentError(f"array: got shape {array.shape}; expected [Z,Y,X] = {self.canonical_shape}")
        z, y, x = (self.axes.index(i) for i in range(3))
        return array[self._reversal].transpose(z, y, x)[(...,) + (None,) * (len(self.shape) - 3)]

    def canonical_affine(self) -> np.ndarray:
        """Compute the 4x4 float64 affine from canonical voxel ``(x, y, z)`` to RAS mm."""
        result = np.eye(4)
        result[:3, 3] = self.affine[:3, 3]
        for a in range(3):
            step = self.affine[:3, self.axes[a]]
            if self.flips[a]:
                result[:3, 3] += step * (self.shape[self.axes[a]] - 1)
                step = 0.0 - step
            result[:3, 2 - a] = step
        return result

    @property
    def _reversal(self) -> tuple[slice, slice, slice]:
        z, y, x = (slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return z, y, x


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT in Hounsfield units and canonical order.

    Canonical order: slices from feet to head, rows from anterior to posterior, columns from the patient's
    right to the left, so that ``array[z]`` is an axial slice as radiologists look at it.

    Attributes
    ----------
    array : ndarray
        int16, C-contiguous ``[Z, Y, X]``, HU. May be read-only, and may be the caller's own array.
    affine : ndarray
        4x4 float64, read-only: canonical voxel ``(x, y, z)`` to RAS mm.
    geometry : Geometry
        The grid that the volume came from.
    name : str
        File name without its folder, for reports.
    """

    array: np.ndarray
    affine: np.ndarray
    geometry: Geometry
    name: str = "array"

    def __post_init__(self) -> None:
        a = self.array
        if a.dtype != np.int16 or a.shape != self.geometry.canonical_shape or not a.flags.c_contiguous:
            raise ArgumentError(
                f"array: got {a.dtype} {a.shape}; expected C-contiguous int16 [Z,Y,X] of shape "
                f"{self.geometry.canonical_shape}; trtseg.load makes a Volume from any array"
            )
        object.__setattr__(self, "affine", _frozen_affine(self.affine))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres from voxel to voxel along each array axis, ``(sz, sy, sx)``."""
        return spacing_mm(self.affine)[::-1]

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return voxel_ml(self.affine)


def spacing_mm(affine: np.ndarray) -> tuple[float, float, float]:
    """Length in mm of the step along each of the three voxel axes, in the order of the affine's columns."""
    i, j, k = (float(n) for n in np.sqrt(np.square(affine[:3, :3]).sum(axis=0)))
    return i, j, k


def voxel_ml(affine: np.ndarray) -> float:
    """Volume of a voxel in millilitres; exact for oblique and sheared grids too."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def _frozen_affine(affine: np.ndarray) -> np.ndarray:
    """Copy an affine as a read-only 4x4 float64 array."""
    try:
        result = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"affine: got {affine!r}; expected a 4x4 array of numbers") from error
    if result.shape != (4, 4):
        raise ArgumentError(f"affine: got shape {result.shape}; expected a 4x4 matrix from voxels to RAS mm")
    if not np.isfinite(result).all():
        raise InputError("affine: holds NaN or infinity; expected finite numbers, repair the geometry")
    if not np.array_equal(result[3], (0, 0, 0, 1)):
        raise InputError(f"affine: the last row is {result[3].tolist()}; expected [0, 0, 0, 1]")
    result.setflags(write=False)
    return result


def _check_independent(steps: np.ndarray) -> None:
    """Raise an InputError if the three voxel axes (columns, 3x3, mm) do not span space."""
    norms = spacing_mm(steps)
    if min(norms) == 0:
        raise InputError(
            f"affine: the voxel spacing is {norms} mm; expected three positive numbers, repair the geometry"
        )
    if not math.isfinite(sum(norms)) or abs(np.linalg.det(steps / norms)) < _MIN_INDEPENDENCE:
        raise InputError(
            f"affine: singular, two voxel axes point the same way {np.asarray(steps).tolist()}; "
            "repair the geometry"
        )
