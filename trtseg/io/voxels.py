"""Stored voxels of any type, layout and scale -> a CT in HU or a label map, in canonical order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral
from typing import Any

import numpy as np

from trtseg.errors import ArgumentError, InputError
from trtseg.resources import memory_for
from trtseg.volume import Geometry

#: Voxels converted at a time: few enough that every temporary array stays in the cache, or close to it.
SLAB_VOXELS = 1 << 18
Where = tuple[slice, slice, slice]
#: Pieces of an input, each with its place on the input's grid ``(i, j, k)``; together they cover the grid once.
Pieces = Iterable[tuple[Where, np.ndarray]]
#: `to_hu`, or `to_labels` with a meaning: what the reader of a format puts the pieces together with.
Convert = Callable[..., np.ndarray]

_INT16 = np.iinfo(np.int16)
#: How to say what the labels of another program stand for.
SAY_MEANING = (
    "meaning; --liver-label and --tumour-label of 'trtseg compare', and of 'trtseg evaluate' for the truth"
)

_SHOWN = 5  # labels listed in a message
_BESIDE = 1e-3  # what a label may differ from an integer by


def check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    """Raise an InputError unless voxels are real numbers of at most 64 bits."""
    if dtype.names is not None:
        raise InputError(f"{name}: got colour (RGB) voxels; expected HU, convert from the original CT")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise InputError(
            f"{name}: got voxels of type {dtype}; expected integers or floats of 8 to 64 bits, convert it"
        )


def slabs(array: np.ndarray) -> Iterator[tuple[Where, np.ndarray]]:
    """Cut a 3-D array into pieces that are contiguous in its own memory layout."""
    slowest = int(np.argmax(np.abs(array.strides)))
    n = array.shape[slowest]
    step = max(1, SLAB_VOXELS * n // array.size)
    for start in range(0, n, step):
        where = [slice(None)] * 3
        where[slowest] = slice(start, min(n, start + step))
        i, j, k = where
        yield (i, j, k), array[i, j, k]


def to_hu(
    name: str, geometry: Geometry, pieces: Pieces, slope: float = 1.0, inter: float = 0.0
) -> np.ndarray:
    """Put the pieces of a CT together.

    Parameters
    ----------
    name : str
        The input, for messages.
    geometry : Geometry
        The grid of the input.
    pieces : iterable of (slices, ndarray)
        Stored values, integer or float, see `Pieces`.
    slope, inter : float
        HU = stored value * slope + inter, computed in float64, rounded half to even and saturated to int16.

    Returns
    -------
    ndarray
        int16, C-contiguous, canonical ``[Z, Y, X]``.

    Raises
    ------
    InputError
        If a voxel is NaN or infinite.
    OutOfMemoryError
        If the memory does not suffice.
    """
    hu, grid = _allocate(name, geometry, np.int16)
    bad = 0
    for where, stored in pieces:
        bad += _convert(stored, grid[where], slope, inter)
    if bad:
        raise InputError(
            f"{name}: {bad} of {hu.size} voxels are NaN or infinite; replace them by HU (air is -1000)"
        )
    return hu


def check_meaning(meaning: Mapping[int, int] | None) -> None:
    """Raise an ArgumentError unless whole numbers stand for 0, 1 or 2: a label "6" would be found nowhere."""
    fits = isinstance(meaning, Mapping) and all(
        isinstance(value, Integral) and label in (0, 1, 2) for value, label in meaning.items()
    )
    if meaning is not None and not fits:
        raise ArgumentError(
            f"meaning: got {meaning!r}; expected what labels stand for, 0 (background), 1 (liver) or 2 (tumour), as "
            "{6: 1}"
        )


def to_labels(
    name: str,
    geometry: Geometry,
    pieces: Pieces,
    slope: float = 1.0,
    inter: float = 0.0,
    *,
    meaning: Mapping[int, int] | None,
) -> np.ndarray:
    """Put the pieces of a label map together: 0 background, 1 liver, 2 tumour.

    Parameters
    ----------
    name, geometry, pieces, slope, inter
        See `to_hu`. Values may lie a thousandth beside an integer: a scale or another tool rounds them.
    meaning : mapping or None
        Which of 0, 1 and 2 each value of the file stands for; other values are background. With None each of the
        three stands for itself, and there may be no other value.

    Returns
    -------
    ndarray
        uint8, C-contiguous, canonical ``[Z, Y, X]``.

    Raises
    ------
    InputError
        If there is a value that stands for nothing.
    OutOfMemoryError
        If the memory does not suffice.
    """
    labels, grid = _allocate(name, geometry, np.uint8)
    foreign: set[float] = set()
    for where, stored in pieces:
        values = stored if (slope, inter) == (1.0, 0.0) else stored.astype(np.float64) * slope + inter
        if values.dtype.kind == "f":
            whole = np.rint(values)
            with np.errstate(invalid="ignore"):  # infinity less infinity
                bad = ~(np.abs(values - whole) <= _BESIDE)  # NaN is bad too
            foreign.update(np.unique(values[bad & ~np.isnan(values)])[:_SHOWN].tolist())
            if np.isnan(values).any():
                foreign.add(math.nan)  # once: another NaN would be another element
            whole[bad] = 0
            values = whole
        if meaning is None:
            bad = (values != 0) & (values != 1) & (values != 2)
            foreign.update(np.unique(values[bad])[:_SHOWN].tolist())
            np.copyto(grid[where], values, where=~bad, casting="unsafe")
        else:
            part = grid[where]
            part[...] = 0
            for value, label in meaning.items():
                part[values == value] = label
    if foreign:
        shown = ", ".join(
            f"{value:g}" for value in sorted(foreign, key=lambda one: (one != one, one))[:_SHOWN]
        )
        more = ", ..." if len(foreign) > _SHOWN else ""
        expected = (
            "0 (background), 1 (liver) and 2 (tumour) only, map the others to one of these, or say which labels are "
            f"liver and tumour ({SAY_MEANING})"
        )
        if meaning is not None:
            expected = "whole numbers"
        raise InputError(
            f"{name}: got the label{'s' * (len(foreign) > 1)} {shown}{more}; expected {expected}"
        )
    return labels


def _allocate(name: str, geometry: Geometry, dtype: type[np.generic]) -> tuple[np.ndarray, np.ndarray]:
    """Make a canonical array, and the 3-D view of it on the input's grid."""
    with memory_for(name, math.prod(geometry.shape) * np.dtype(dtype).itemsize):
        array = np.empty(geometry.canonical_shape, dtype)
    return array, geometry.grid(geometry.restore(array))


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
