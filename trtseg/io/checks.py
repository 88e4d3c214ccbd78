"""Values on a grid -> Volume, with warnings of what is strange about the CT."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from trtseg.io.hounsfield import check_hu
from trtseg.volume import Geometry, Volume
from trtseg.warnings import ResultWarning

_STRIDE = 4  # pixels of which one is compared
# Times the median of the mean differences of neighbouring slices. In six CTs as they are it stays below 1.24 times;
# where three slices or more were left out it was above 1.6 at all places tried (benchmarks.robustness).
_JUMP = 1.6


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

    Returns
    -------
    Volume
        Its warnings are those of the geometry, and those of the values.

    Raises
    ------
    InputError
        See `trtseg.io.hounsfield.check_hu`.
    """
    short = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    warnings = (*geometry.warnings, *check_hu(name, hu), *check_slices(hu))
    return Volume(hu, geometry.canonical_affine(), geometry, short, warnings)


def check_slices(hu: np.ndarray) -> Iterator[ResultWarning]:
    """Yield a warning for blank, doubled, and probably missing slices of a CT ``[Z, Y, X]`` in HU."""
    blank = np.array([plane.min() == plane.max() for plane in hu])
    full = np.flatnonzero(~blank)
    if not full.size:
        return
    first, last = int(full[0]), int(full[-1])
    missing = np.flatnonzero(blank[first : last + 1]) + first
    if missing.size:
        text = f"{_name(missing)} hold nothing: liver in them is not counted, and volumes are lower bounds."
        yield ResultWarning("slices-blank", text)
    doubled = [int(z) for z, n in itertools.pairwise(full) if np.array_equal(hu[z], hu[n])]
    if doubled:
        text = f"{_name(doubled)} are equal to the next slice: slices were repeated, and volumes are wrong."
        yield ResultWarning("slices-doubled", text)
    jumps = [] if missing.size else [first + z for z in find_jumps(hu[first : last + 1])]
    if jumps:
        text = (
            f"The picture changes suddenly after {_name(jumps).lower()}: slices are missing or out of order, and "
            "volumes are wrong."
        )
        yield ResultWarning("slices-jump", text)


def find_jumps(hu: np.ndarray) -> list[int]:
    """Find the slices after which a CT changes much more than between slices around them."""
    small = (plane[::_STRIDE, ::_STRIDE].clip(-200, 300) for plane in hu)
    steps = [np.abs(upper - lower).mean() for lower, upper in itertools.pairwise(small)]
    found = []
    for z, step in enumerate(steps):
        near = np.delete(steps[max(0, z - 5) : z + 6], min(z, 5))
        if near.size >= 5 and step > _JUMP * np.median(near) > 0:
            found.append(z)
    return found


def _name(numbers: Iterable[int]) -> str:
    """Name slices: the first few, from 0 at the feet."""
    slices = [int(z) for z in numbers]
    shown = ", ".join(str(z) for z in slices[:5])
    return f"Slices {shown}{', ...' if len(slices) > 5 else ''}" if len(slices) > 1 else f"Slice {shown}"
