"""A CT in canonical order, the grid it came from, and the checks that both must pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtseg.errors import ArgumentError, InputError
from trtseg.warnings import ResultWarning

# Canonical array axis a (0 = Z, 1 = Y, 2 = X) runs along RAS axis 2 - a, and against it where this is True:
# Z to the head (S), Y to the back (P), X to the patient's left (L).
_AGAINST_RAS = (False, True, True)
# Sine of the smallest angle between an axis and the plane of the other two; gantry tilts stay above 0.8.
_MIN_INDEPENDENCE = 1e-3
#: What a header rounds. Lengths that differ by less than this share, and directions that differ by less than this
#: angle, are the same: a float32 quaternion near half a turn keeps half of its digits, which is 0.0012.
ROUNDING = 2e-3
#: Coordinates of DICOM and ITK point to the left and to the back, those of trtseg to the right and to the front.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Voxels and slices of CTs of a body are no smaller and no larger, in mm.
SPACING_MM = (0.01, 100.0)
#: Two grids are the same if a corner of one lies less than this share of a voxel away from that of the other.
SAME_GRID = 0.1


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of an input, and how canonical ``[Z, Y, X]`` order lies on it.

    Attributes
    ----------
    shape : tuple of int
        Shape of the input in its own index order ``(i, j, k)``, perhaps with leading or trailing ones (4-D with one
        channel or one frame).
    affine : ndarray
        4x4 float64, read-only: input index ``(i, j, k)`` to RAS mm.
    axes : (int, int, int)
        Canonical axis ``a`` (0 = Z, 1 = Y, 2 = X) is the input's axis ``axes[a]``.
    flips : (bool, bool, bool)
        Whether canonical axis ``a`` runs against the input's axis.
    source : object
        Opaque: a NIfTI header, a DICOM series, or anything else that a file format of `trtseg.io` keeps to
        write a result back. Only the module of that format looks into it. None for arrays.
    warnings : tuple of ResultWarning
        What is strange about the grid, or about the header that it was taken from.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    source: Any = field(default=None, repr=False)  # headers tell who the patient is
    warnings: tuple[ResultWarning, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", _frozen_affine(self.affine))
        _check_shape(self.shape)

    @classmethod
    def from_affine(cls, shape: Sequence[int], affine: np.ndarray, source: Any = None) -> Geometry:
        """Find the canonical order from the affine alone, by nibabel's closest-axes rule.

        Parameters
        ----------
        shape : sequence of int
            Shape of the input, in index order ``(i, j, k)``.
        affine : ndarray
            4x4: index ``(i, j, k)`` to RAS mm. Oblique and sheared (gantry tilt) affines are fine.
        source : object, optional
            Kept as it is, see the class.

        Raises
        ------
        ArgumentError
            If the affine is no 4x4 array of numbers.
        InputError
            If the affine is not finite or is singular, or no single 3-D volume has this shape.
        """
        from nibabel.orientations import io_orientation  # arrays with a spacing work without nibabel

        affine = _frozen_affine(affine)
        _check_independent(affine[:3, :3])
        # A row for each input axis: its RAS axis, and 1 along it or -1 against it.
        towards = [(int(row[0]), bool(row[1] > 0)) for row in io_orientation(affine)]
        axes, flips = [], []
        for a in range(3):
            i = next(n for n, (ras, _) in enumerate(towards) if ras == 2 - a)
            axes.append(i)
            flips.append(towards[i][1] == _AGAINST_RAS[a])
        z, y, x = axes
        return cls(tuple(shape), affine, (z, y, x), (flips[0], flips[1], flips[2]), source)

    @classmethod
    def from_spacing(cls, shape: Sequence[int], spacing: Sequence[float]) -> Geometry:
        """Make the grid of an array ``[Z, Y, X]`` that is in canonical order already.

        Parameters
        ----------
        shape : (int, int, int)
            Voxels ``(Z, Y, X)``.
        spacing : (float, float, float)
            Millimetres ``(sz, sy, sx)``.

        Raises
        ------
        ArgumentError
            If the spacing is not three positive numbers.
        InputError
            If no single 3-D volume has this shape.
        """
        _check_shape(shape)
        z, y, x = check_spacing(spacing)
        affine = np.zeros((4, 4))
        affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = z, -y, -x, 1
        return cls(tuple(shape), affine, (0, 1, 2), (False, False, False))

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Shape ``(Z, Y, X)`` in canonical order."""
        z, y, x = (self.grid_shape[i] for i in self.axes)
        return z, y, x

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Shape ``(i, j, k)`` of the input, without leading and trailing ones."""
        first = _leading_ones(self.shape)
        i, j, k = self.shape[first : first + 3]
        return i, j, k

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along each canonical axis, ``(sz, sy, sx)``, see `spacing_zyx`."""
        return spacing_zyx(self.canonical_affine())

    def sheared_steps(self) -> np.ndarray | None:
        """Steps in mm along z, y and x, a row each; None if they are at right angles, but for what a header rounds."""
        steps = self.canonical_affine()[:3, 2::-1].T
        unit = steps / np.linalg.norm(steps, axis=1, keepdims=True)
        return steps if np.abs(unit @ unit.T - np.eye(3)).max() > ROUNDING else None

    def grid(self, array: np.ndarray) -> np.ndarray:
        """View an array of the input's shape without its leading and trailing ones, as ``[i, j, k]``; no copy."""
        first = _leading_ones(array.shape)
        return array[(0,) * first + (slice(None),) * 3 + (0,) * (array.ndim - first - 3)]

    def canonical(self, array: np.ndarray) -> np.ndarray:
        """View an array on the input's grid as ``[Z, Y, X]``, without a copy; ArgumentError if it has another shape."""
        if array.shape not in (self.shape, self.grid_shape):
            raise ArgumentError(f"array: got shape {array.shape}; expected the input's {self.shape}")
        return self.grid(array).transpose(self.axes)[self._reversal]

    def restore(self, array: np.ndarray) -> np.ndarray:
        """View a canonical array ``[Z, Y, X]`` on the input's grid: the inverse of `canonical`, and its errors."""
        if array.shape != self.canonical_shape:
            raise ArgumentError(f"array: got shape {array.shape}; expected [Z,Y,X] = {self.canonical_shape}")
        z, y, x = (self.axes.index(i) for i in range(3))
        first = _leading_ones(self.shape)
        shown = (None,) * first + (...,) + (None,) * (len(self.shape) - first - 3)
        return array[self._reversal].transpose(z, y, x)[shown]

    def canonical_affine(self) -> np.ndarray:
        """Compute the 4x4 float64 affine from canonical voxel ``(x, y, z)`` to RAS mm."""
        result = np.eye(4)
        result[:3, 3] = self.affine[:3, 3]
        for a in range(3):
            step = self.affine[:3, self.axes[a]]
            if self.flips[a]:
                result[:3, 3] += step * (self.grid_shape[self.axes[a]] - 1)
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
    warnings : tuple of ResultWarning
        What was strange about the CT when it was loaded.

    Raises
    ------
    ArgumentError
        The array has another type, shape or layout, or the affine is not that of the geometry.
    """

    array: np.ndarray
    affine: np.ndarray
    geometry: Geometry
    name: str = "array"
    warnings: tuple[ResultWarning, ...] = ()

    def __post_init__(self) -> None:
        a = self.array
        is_plain = a.dtype == np.int16 and a.flags.c_contiguous and a.flags.aligned
        if not is_plain or a.shape != self.geometry.canonical_shape:
            raise ArgumentError(
                f"array: got {a.dtype} {a.shape}; expected C-contiguous, aligned int16 [Z,Y,X] of shape "
                f"{self.geometry.canonical_shape}; trtseg.load makes a Volume from any array"
            )
        # nibabel's "<i2" is int16 too, but the extension takes its explicit byte order for another type.
        object.__setattr__(self, "array", a.view(np.int16))
        object.__setattr__(self, "affine", _frozen_affine(self.affine))
        expected = self.geometry.canonical_affine()
        if not np.allclose(self.affine, expected, rtol=1e-6, atol=1e-6):
            raise ArgumentError(
                f"affine: got {self.affine.tolist()}; expected that of the geometry, {expected.tolist()}; trtseg.load "
                "makes a Volume of an array with another affine or spacing"
            )

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels along each array axis, ``(sz, sy, sx)``, see `spacing_zyx`."""
        return spacing_zyx(self.affine)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return voxel_ml(self.affine)


def corners_apart(grid: Geometry, other: Geometry) -> np.ndarray:
    """Millimetres between the same canonical corner voxels of two grids of one shape, for each of the eight."""
    ends = ((0, n - 1) for n in grid.canonical_shape[::-1])
    corners = np.array([(*c, 1) for c in itertools.product(*ends)]).T  # [4, 8]
    away = (grid.canonical_affine() - other.canonical_affine()) @ corners
    apart: np.ndarray = np.sqrt(np.square(away[:3]).sum(axis=0))
    return apart


def is_same_grid(grid: Geometry, other: Geometry) -> bool:
    """Tell whether two grids have their canonical voxels at the same places.

    The order in which the axes are stored does not matter. A corner may lie a tenth of a voxel apart, and from there on
    steps may differ by `ROUNDING`.
    """
    if grid.canonical_shape != other.canonical_shape:
        return False
    steps = np.array(spacing_mm(other.canonical_affine()))
    turned = spacing_mm(grid.canonical_affine() - other.canonical_affine()) / steps
    near = corners_apart(grid, other).min() <= SAME_GRID * steps.min()
    return bool(near and turned.max() <= ROUNDING)


def check_same_grid(name: str, grid: Geometry, other_name: str, other: Geometry) -> None:
    """Raise an InputError, which calls the grids by their names, unless they are the same by `is_same_grid`."""
    if grid.canonical_shape != other.canonical_shape:
        shapes = (" x ".join(map(str, g.canonical_shape[::-1])) for g in (grid, other))
        raise InputError(
            f"{name}: its grid of {next(shapes)} voxels (x, y, z) is not that of {other_name}, {next(shapes)}; "
            "they must belong to the same CT, resample one onto the other's grid"
        )
    if not is_same_grid(grid, other):
        apart = corners_apart(grid, other).max()
        raise InputError(
            f"{name}: its affine is not that of {other_name}: the same voxel lies up to {apart:.4g} mm apart; "
            "they must belong to the same CT, repair the header that is wrong"
        )


def check_on_grid(labels: np.ndarray, volume: Volume, name: str = "labels") -> None:
    """Raise an ArgumentError, which calls ``labels`` by ``name``, unless they have the shape of a volume."""
    if labels.shape != volume.array.shape:
        raise ArgumentError(f"{name}: got shape {labels.shape}; expected the volume's {volume.array.shape}")


def check_spacing(spacing: Any, axes: str = "zyx") -> tuple[float, ...]:
    """Return a spacing as floats, a number for each of ``axes``; ArgumentError unless all are positive."""
    try:
        sizes = () if isinstance(spacing, (str, bytes)) else tuple(float(mm) for mm in spacing)
    except (TypeError, ValueError, OverflowError):  # 10**400
        sizes = ()
    if len(sizes) != len(axes) or not all(math.isfinite(mm) and mm > 0 for mm in sizes):
        count, names = {2: "two", 3: "three"}[len(axes)], ", ".join(f"s{axis}" for axis in axes)
        raise ArgumentError(f"spacing: got {spacing!r}; expected {count} positive numbers ({names}) in mm")
    return sizes


def spacing_mm(affine: np.ndarray) -> tuple[float, float, float]:
    """Length in mm of the step along each of the three voxel axes, in the order of the affine's columns."""
    i, j, k = (float(n) for n in np.sqrt(np.square(affine[:3, :3]).sum(axis=0)))
    return i, j, k


def spacing_zyx(affine: np.ndarray) -> tuple[float, float, float]:
    """Millimetres between voxels of a canonical affine, ``(sz, sy, sx)``: in the slice, and between planes of slices.

    With a tilted gantry, a voxel lies farther away from the voxel above it than one plane lies from the next.
    """
    x, y, z = spacing_mm(affine)
    to_left, to_back, to_head = affine[:3, :3].T / np.array([[x], [y], [z]])
    across = np.cross(to_left, to_back)
    upright = float(abs(across @ to_head) / np.linalg.norm(across))  # cosine of the tilt
    return z if upright > math.cos(ROUNDING) else z * upright, y, x


def voxel_ml(affine: np.ndarray) -> float:
    """Volume of a voxel in millilitres; exact for oblique and sheared grids too."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def _leading_ones(shape: Sequence[int]) -> int:
    """Count the axes before the three of space: (1, X, Y, Z) has a channel axis, (1, X, Y, 1) a single column."""
    count = 0
    while len(shape) - count > 3 and shape[count] == 1 and any(n != 1 for n in shape[count + 3 :]):
        count += 1
    return count


def _check_shape(shape: Sequence[int]) -> None:
    """Raise an InputError unless a single 3-D volume can have ``shape``, perhaps with leading or trailing ones."""
    text = " x ".join(str(n) for n in shape)
    if any(n < 1 for n in shape):
        raise InputError(f"got shape {text}; expected at least one voxel an axis, it is empty or corrupt")
    if len(shape) < 3:
        raise InputError(f"got a {len(shape)}-D image of {text}; expected a volume, stack the slices to 3-D")
    frames = [n for n in shape[_leading_ones(shape) + 3 :] if n != 1]
    if frames == [3]:
        raise InputError(
            f"got shape {text}, 3 channels (colour or vectors) or frames; expected one number in HU a voxel, "
            "convert from the original CT or choose one frame"
        )
    if frames:
        count = math.prod(frames)
        raise InputError(
            f"got shape {text}, {count} frames; expected one: choose it, as array[..., 0], or array[0] if frames are "
            "the first axis"
        )


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


def is_independent(affine: np.ndarray) -> bool:
    """Tell whether the three voxel axes of an affine, 4x4 or 3x3, are finite and span space."""
    steps = affine[:3, :3]
    norms = spacing_mm(steps)
    if not (np.isfinite(affine).all() and math.isfinite(sum(norms)) and min(norms) > 0):
        return False
    return bool(abs(np.linalg.det(steps / norms)) >= _MIN_INDEPENDENCE)


def _check_independent(steps: np.ndarray) -> None:
    """Raise an InputError if the three voxel axes (columns, 3x3, mm) do not span space."""
    norms = spacing_mm(steps)
    if min(norms) == 0:
        raise InputError(
            f"affine: the voxel spacing is {norms} mm; expected three positive numbers, repair the geometry"
        )
    if not is_independent(steps):
        raise InputError(
            f"affine: singular, two voxel axes point the same way {np.asarray(steps).tolist()}; "
            "repair the geometry"
        )
