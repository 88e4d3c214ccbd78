"""What every input must satisfy to become a Volume, whatever it was read from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from trtseg.errors import InputError
from trtseg.volume import Geometry, Volume, spacing_mm

#: Voxels converted at a time: small enough that every temporary array stays in the cache, or close to it.
SLAB_VOXELS = 1 << 19
Where = tuple[slice, slice, slice]

_INT16 = np.iinfo(np.int16)
_MIN_IN_PLANE = 16  # pixels; no axial slice of a body is smaller
_SPACING_MM = (0.01, 100.0)
# A CT in HU always shows air, lung or fat, all far below water; MR, 8-bit windows and raw values have none of
# it.
_BELOW_WATER_HU = -50
_MIN_BELOW_WATER = 0.001


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Raise an InputError unless ``shape`` is that of one 3-D volume, perhaps with trailing ones."""
    text = " x ".join(str(n) for n in shape)
    if any(n < 1 for n in shape):
        raise InputError(
            f"{name}: got shape {text}; expected at least one voxel an axis, it is empty or corrupt"
        )
    if len(shape) < 3:
        raise InputError(
            f"{name}: got a {len(shape)}-D image of {text}; expected a volume, stack the slices to 3-D"
        )
    frames = [n for n in shape[3:] if n != 1]
    if frames == [3]:
        raise InputError(
            f"{name}: got shape {text}, 3 channels (colour or vectors) or frames; expected one number in HU "
            "a voxel, convert from the original CT or choose one frame"
        )
    if frames:
        count = math.prod(frames)
        raise InputError(
            f"{name}: got shape {text}, {count} frames; expected one: choose it (nibabel: img.slicer[...,:1])"
        )


def check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    """Raise an InputError unless voxels are real numbers of at most 64 bits."""
    if dtype.names is not None:
        raise InputError(f"{name}: got colour (RGB) voxels; expected HU, convert from the original CT")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(
            f"{name}: got voxels of type {dtype}; expected integers or floats of 8 to 64 bits, convert it"
        )


def make_geometry(name: str, shape: Sequence[int], affine: Any, header: Any = None) -> Geometry:
    """Check shape and affine (index order to RAS mm) and find the canonical order; errors name the input."""
    check_shape(name, shape)
    try:
        geometry = Geometry.from_affine(shape, affine, header)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    check_geometry(name, geometry)
    return geometry


def check_geometry(name: str, geometry: Geometry) -> None:
    """Raise an InputError if voxels or slices have a size that no CT of a body has."""
    spacing = spacing_mm(geometry.affine)
    if not _SPACING_MM[0] <= min(spacing) <= max(spacing) <= _SPACING_MM[1]:
        raise InputError(
            f"{name}: got a voxel spacing of {' x '.join(f'{s:g}' for s in spacing)} mm; expected "
            f"{_SPACING_MM[0]:g} to {_SPACING_MM[1]:g} mm, give the geometry in millimetres"
        )
    _, rows, columns = geometry.canonical_shape
    if min(rows, columns) < _MIN_IN_PLANE:
        raise InputError(
            f"{name}: got axial slices of {rows} x {columns} pixels; expected at least {_MIN_IN_PLANE} each "
            "way, give whole axial slices and check the orientation"
        )


def slabs(array: np.ndarray) -> Iterator[tuple[Where, np.ndarray]]:
    """Cut a 3-D array into pieces that are contiguous in its own memory layout, with where each belongs."""
    slowest = int(np.argmax(np.abs(array.strides)))
    n = array.shape[slowest]
    step = max(1, SLAB_VOXELS * n // array.size)
    for start in range(0, n, step):
        where = [slice(None)] * 3
        where[slowest] = slice(start, min(n, start + step))
        i, j, k = where
        yield (i, j, k), array[i, j, k]


def make_volume(
    name: str,
    geometry: Geometry,
    pieces: Iterable[tuple[Where, np.ndarray]],
    *,
    slope: float = 1.0,
    inter: float = 0.0,
) -> Volume:
    """Put pieces of an input together as a canonical int16 volume in HU, and check it.

    Parameters
    ----------
    name : str
        The input, for messages. The last part of the path names the volume.
    geometry : Geometry
        Of the input.
    pieces : iterable of (slices, ndarray)
        Where a piece lies on the input's grid ``(i, j, k)``, and its stored values there, integer or float.
        Together they cover the grid once.
    slope, inter : float
        HU = stored value * slope + inter, computed in float64, rounded half to even and saturated to int16.

    Raises
    ------
    InputError
        If a voxel is NaN or infinite, or the values are not Hounsfield units.
    """
    try:
        hu = np.empty(geometry.canonical_shape, np.int16)
    except (MemoryError, ValueError) as error:
        raise InputError(
            f"{name}: a volume of {geometry.shape} needs more memory than there is; crop or resample it"
        ) from error
    grid = geometry.restore(hu)
    grid = grid[(slice(None),) * 3 + (0,) * (grid.ndim - 3)]
    bad = 0
    for where, stored in pieces:
        bad += _convert(stored, grid[where], slope, inter)
    if bad:
        raise InputError(
            f"{name}: {bad} of {hu.size} voxels are NaN or infinite; replace them by HU (air is -1000)"
        )
    check_hounsfield(name, hu)
    return Volume(hu, geometry.canonical_affine(), geometry, name.replace("\\", "/").rsplit("/", 1)[-1])


def _convert(stored: np.ndarray, out: np.ndarray, slope: float, inter: float) -> int:
    """Write stored values as HU into ``out`` (int16, a view); return how many are NaN or infinite."""
    dtype = stored.dtype
    if dtype.kind != "f" and (slope, inter) == (1.0, 0.0):
        if not np.can_cast(dtype, np.int16):
            info = np.iinfo(dtype)
            stored = np.clip(stored, max(info.min, _INT16.min), min(info.max, _INT16.max))
        np.copyto(out, stored, casting="unsafe")
        return 0
    values = stored.astype(np.float64)
    bad = 0
    if dtype.kind == "f":
        finite = np.isfinite(values)
        bad = finite.size - int(np.count_nonzero(finite))
        if bad:
            values[~finite] = 0
    if (slope, inter) != (1.0, 0.0):
        values *= slope
        values += inter
    np.rint(values, out=values)
    np.clip(values, _INT16.min, _INT16.max, out=values)
    np.copyto(out, values, casting="unsafe")
    return bad


def check_hounsfield(name: str, hu: np.ndarray) -> None:
    """Raise an InputError if values (int16 ``[Z, Y, X]``) are evidently not Hounsfield units."""
    wanted = _MIN_BELOW_WATER * hu.size
    below = 0
    for z in range(len(hu)):
        below += int(np.count_nonzero(hu[z] <= _BELOW_WATER_HU))
        if below >= wanted:
            return
    raise InputError(
        f"{name}: not in Hounsfield units: values run from {hu.min()} to {hu.max()} and {below} of {hu.size} "
        f"voxels are at or below {_BELOW_WATER_HU}, where every CT has air or fat; apply the rescale "
        "intercept (often -1024), or undo the window: HU = value / 255 * (high - low) + low"
    )
