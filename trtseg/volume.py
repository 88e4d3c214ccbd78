"""A CT in canonical order, the grid it came from, and the checks that both must pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtseg.errors import ArgumentError, InputError

# Canonical array axis a (0 = Z, 1 = Y, 2 = X) runs along RAS axis 2 - a, and against it where this is True:
# Z to the head (S), Y to the back (P), X to the patient's left (L).
_AGAINST_RAS = (False, True, True)
# Sine of the smallest angle between an axis and the plane of the other two; gantry tilts stay above 0.8.
_MIN_INDEPENDENCE = 1e-3
_MIN_IN_PLANE = 16  # pixels; no axial slice of a body is smaller
_SPACING_MM = (0.01, 100.0)
# Every CT in HU shows air, lung or fat, and all three lie far below water. MR, 8-bit windows and raw values
# never go there.
_BELOW_WATER_HU = -50
_MIN_BELOW_WATER = 0.001
#: Two grids are the same if their voxels lie less than this share of a voxel apart: headers are rounded.
_SAME_GRID = 0.1


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of an input, and how canonical ``[Z, Y, X]`` order lies on it.

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
    source : object
        Opaque: a NIfTI header, a DICOM series, or anything else that a file format of `trtseg.io` keeps to
        write a result back. Only the module of that format looks into it. None for arrays.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    source: Any = None

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
        if len(shape) != 3:
            raise InputError(f"got shape {tuple(shape)}; expected [Z,Y,X] when spacing is given")
        z, y, x = check_spacing(spacing)
        affine = np.zeros((4, 4))
        affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = z, -y, -x, 1
        return cls(tuple(shape), affine, (0, 1, 2), (False, False, False))

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


def ct_geometry(
    name: str, shape: Sequence[int], *, affine: Any = None, spacing: Any = None, source: Any = None
) -> Geometry:
    """Make the grid of a CT from its affine or its spacing, and refuse a grid that no CT of a body has.

    Parameters
    ----------
    name : str
        The input, for messages.
    shape, affine, source
        See `Geometry.from_affine`.
    spacing
        Instead of ``affine``, see `Geometry.from_spacing`.

    Raises
    ------
    ArgumentError
        If the affine is no 4x4 array, or the spacing is not three positive numbers.
    InputError
        If there is no such grid, or its voxels or slices have a size that no CT of a body has.
    """
    try:
        if spacing is None:
            geometry = Geometry.from_affine(shape, affine, source)
        else:
            geometry = Geometry.from_spacing(shape, spacing)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    sizes = spacing_mm(geometry.affine)
    if not _SPACING_MM[0] <= min(sizes) <= max(sizes) <= _SPACING_MM[1]:
        raise InputError(
            f"{name}: got a voxel spacing of {' x '.join(f'{s:g}' for s in sizes)} mm; expected "
            f"{_SPACING_MM[0]:g} to {_SPACING_MM[1]:g} mm, give the geometry in millimetres"
        )
    _, rows, columns = geometry.canonical_shape
    if min(rows, columns) < _MIN_IN_PLANE:
        raise InputError(
            f"{name}: got axial slices of {rows} x {columns} pixels; expected at least {_MIN_IN_PLANE} each "
            "way, give whole axial slices and check the orientation"
        )
    return geometry


def ct_volume(name: str, hu: np.ndarray, geometry: Geometry) -> Volume:
    """Make a Volume of values that are Hounsfield units, and refuse values that evidently are not.

    Parameters
    ----------
    name : str
        The input, for messages. The last part of the path names the volume.
    hu : ndarray
        int16, C-contiguous, canonical ``[Z, Y, X]``. It is used without a copy.
    geometry : Geometry
        The grid of the input.

    Raises
    ------
    InputError
        If fewer than one voxel in a thousand lies below water, where every CT has air or fat.
    """
    wanted = _MIN_BELOW_WATER * hu.size
    below = 0
    for plane in hu:
        below += int(np.count_nonzero(plane <= _BELOW_WATER_HU))
        if below >= wanted:
            short = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
            return Volume(hu, geometry.canonical_affine(), geometry, short)
    raise InputError(
        f"{name}: not in Hounsfield units: values run from {hu.min()} to {hu.max()} and {below} of {hu.size} "
        f"voxels are at or below {_BELOW_WATER_HU}, where every CT has air or fat; apply the rescale "
        "intercept (often -1024), or undo the window: HU = value / 255 * (high - low) + low"
    )


def check_same_grid(name: str, grid: Geometry, other_name: str, other: Geometry) -> None:
    """Raise an InputError unless two grids have their canonical voxels at the same places.

    The order in which the axes are stored does not matter. Corners may lie a tenth of a voxel apart.
    """
    shape = grid.canonical_shape
    if shape != other.canonical_shape:
        shapes = (" x ".join(map(str, g.canonical_shape[::-1])) for g in (grid, other))
        raise InputError(
            f"{name}: its grid of {next(shapes)} voxels (x, y, z) is not that of {other_name}, {next(shapes)}; "
            "they must belong to the same CT, resample one onto the other's grid"
        )
    corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in shape[::-1]))]).T  # [4, 8]
    steps = (grid.canonical_affine() - other.canonical_affine()) @ corners
    apart = float(np.sqrt(np.square(steps[:3]).sum(axis=0)).max())
    if apart > _SAME_GRID * min(spacing_mm(other.affine)):
        raise InputError(
            f"{name}: its affine is not that of {other_name}: the same voxel lies up to {apart:.4g} mm apart; "
            "they must belong to the same CT, repair the header that is wrong"
        )


def check_spacing(spacing: Any, axes: str = "zyx") -> tuple[float, ...]:
    """Return a spacing as floats, a number for each of ``axes``; ArgumentError unless all are positive."""
    try:
        sizes = tuple(float(mm) for mm in spacing)
    except (TypeError, ValueError):
        sizes = ()
    if len(sizes) != len(axes) or not all(math.isfinite(mm) and mm > 0 for mm in sizes):
        count, names = {2: "two", 3: "three"}[len(axes)], ", ".join(f"s{axis}" for axis in axes)
        raise ArgumentError(f"spacing: got {spacing!r}; expected {count} positive numbers ({names}) in mm")
    return sizes


def spacing_mm(affine: np.ndarray) -> tuple[float, float, float]:
    """Length in mm of the step along each of the three voxel axes, in the order of the affine's columns."""
    i, j, k = (float(n) for n in np.sqrt(np.square(affine[:3, :3]).sum(axis=0)))
    return i, j, k


def voxel_ml(affine: np.ndarray) -> float:
    """Volume of a voxel in millilitres; exact for oblique and sheared grids too."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def _check_shape(shape: Sequence[int]) -> None:
    """Raise an InputError unless a single 3-D volume can have ``shape``, perhaps with trailing ones."""
    text = " x ".join(str(n) for n in shape)
    if any(n < 1 for n in shape):
        raise InputError(f"got shape {text}; expected at least one voxel an axis, it is empty or corrupt")
    if len(shape) < 3:
        raise InputError(f"got a {len(shape)}-D image of {text}; expected a volume, stack the slices to 3-D")
    frames = [n for n in shape[3:] if n != 1]
    if frames == [3]:
        raise InputError(
            f"got shape {text}, 3 channels (colour or vectors) or frames; expected one number in HU a voxel, "
            "convert from the original CT or choose one frame"
        )
    if frames:
        count = math.prod(frames)
        raise InputError(
            f"got shape {text}, {count} frames; expected one: choose it (nibabel: img.slicer[...,:1])"
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
