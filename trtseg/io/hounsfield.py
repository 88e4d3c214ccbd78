"""Are the values of a CT Hounsfield units? Air, fat, muscle and bone have known places in the histogram."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from trtseg.errors import InputError
from trtseg.warnings import ResultWarning

# Every CT shows air, lung or fat, and all three lie far below water; MR, 8-bit windows and stored values do not.
_BELOW_WATER_HU = -50
_MIN_BELOW_WATER = 0.001
_SAMPLE = 1 << 21  # voxels in the histogram
_OFFSET = 1 << 15  # bin of 0 HU
# A single value with this share of all voxels, which its neighbours do not have: padding, or air that was cut off.
_SPIKE, _SPIKE_TO_NEIGHBOURS = 0.005, 3
_METAL = 0.998  # voxels above this quantile say nothing of where tissue lies
_MIN_REST = 1000  # voxels that are not in spikes; with fewer there is no histogram to judge

# Where real CTs lie, with room on both sides. Otsu's threshold separates air and lung from tissue. In 100 CTs from head
# to thigh it was -380 to -530 HU; the median of tissue was -113 to 72 HU, 810 to 1110 HU above that of air and lung.
_SPLIT_HU = (-750, -250)
_TISSUE_HU = (-200, 200)
_AIR_TO_TISSUE_HU = (700, 1300)
_NO_AIR_HU = -150  # a threshold above: the picture shows no air, and the two classes are fat and muscle, say
_AIR_HU = (-1050, -950)
# The upper class is tissue, wherever it lies, if this share of it is this close to its median; noise is not.
_NARROW_HU, _NARROW = 150, 0.7
_EVIDENT_HU = 400  # tissue that lies farther than this from 0 is refused
_CLIPPED, _CLIPPED_BELOW_HU = 0.01, 800  # a window; scanners cut off at 1023 HU or more
_FRACTIONS = 10  # a smaller range of whole numbers may have been fractions, as attenuation per cm is
_BYTE = 256  # values that 8 bits can tell apart
_FILLED, _FILLED_ABOVE_HU = 0.05, -900  # no tissue has so many voxels of one and the same value
_ADVICE = "Convert the CT again from its DICOM files, and apply slope and intercept once."


def check_hu(name: str, hu: np.ndarray) -> Iterator[ResultWarning]:
    """Refuse values that evidently are no Hounsfield units, and yield a warning for values that look strange.

    Parameters
    ----------
    name : str
        The input, for messages.
    hu : ndarray
        int16 ``[Z, Y, X]``.

    Raises
    ------
    InputError
        If fewer than one voxel in a thousand lies below water, not counting padding, or if air and tissue lie at other
        values than in every CT.
    """
    raw = _histogram(hu)
    low = int(np.flatnonzero(raw)[0]) - _OFFSET
    padding = low if low < _AIR_HU[0] and _has_gap_above(raw, low) else None
    below, wanted = 0, _MIN_BELOW_WATER * hu.size
    for plane in hu:
        dark = plane <= _BELOW_WATER_HU
        below += int(np.count_nonzero(dark if padding is None else dark & (plane != padding)))
        if below >= wanted:
            break
    else:
        besides = "" if padding is None else f" besides padding of {padding}"
        lowest, highest = int(hu.min()), int(hu.max())
        rounded = ", rounded to whole numbers," if highest - lowest < _FRACTIONS else ""
        raise InputError(
            f"{name}: not in Hounsfield units: values run from {lowest} to {highest}{rounded} and {below} of {hu.size} "
            f"voxels{besides} are at or below {_BELOW_WATER_HU}, where every CT has air or fat; apply the rescale "
            "intercept (often -1024), or undo the window: HU = value / 255 * (high - low) + low"
        )
    rest = _without_spikes(raw)
    if rest.sum() >= max(_MIN_REST, 0.01 * raw.sum()):
        yield from _check_places(name, raw, rest)
    yield from _check_spikes(raw)


def _check_places(name: str, raw: np.ndarray, counts: np.ndarray) -> Iterator[ResultWarning]:
    """Check where air and tissue lie; ``counts`` is the histogram ``raw`` without its spikes."""
    total = np.cumsum(counts)
    counts = np.where(total > _METAL * total[-1], 0, counts)
    bin_ = _otsu(counts)
    air, tissue = _median(counts[:bin_]) - _OFFSET, _median(counts[bin_:]) + bin_ - _OFFSET
    split, apart = bin_ - _OFFSET, tissue - air
    upper = counts[bin_:]
    is_tissue = (
        upper[max(0, tissue - split - _NARROW_HU) : tissue - split + _NARROW_HU].sum() > _NARROW * upper.sum()
    )
    at_air = slice(_OFFSET + _AIR_HU[0], _OFFSET + _AIR_HU[1])
    has_air_too = raw[at_air].sum() > counts[at_air].sum()
    if has_air_too and split > _NO_AIR_HU:  # all air has one value, and both classes are tissue
        tissue = _median(counts) - _OFFSET
    seen = f"most voxels lie near {air} and near {tissue}; expected air near -1000 and tissue near 0 HU"
    is_moved = abs(tissue) > _EVIDENT_HU and (_is_in(apart, _AIR_TO_TISSUE_HU) or split > _NO_AIR_HU)
    if is_tissue and is_moved and not has_air_too:
        raise InputError(
            f"{name}: not in Hounsfield units: {seen}; apply slope and intercept of the scanner once"
        )
    step = math.gcd(*np.diff(np.flatnonzero(counts)).tolist())
    if split > _NO_AIR_HU or (_is_in(split, _SPLIT_HU) and _is_in(apart, _AIR_TO_TISSUE_HU)):
        if not _is_in(tissue, _TISSUE_HU):
            seen = f"the median of tissue is {tissue}; expected 0 HU, give or take {_TISSUE_HU[1]}"
        elif step > 1:
            seen = f"all of them are multiples of {step}, but for an offset"
        else:
            return
    yield ResultWarning("values-scale", f"The values may be no Hounsfield units: {seen}. {_ADVICE}")


def _check_spikes(counts: np.ndarray) -> Iterator[ResultWarning]:
    """Check for values that no tissue has so often: the ends of a window, and padding in the place of air."""
    values = np.flatnonzero(counts)
    low, high = int(values[0]), int(values[-1])
    total, tissue = counts.sum(), counts[_OFFSET + _SPLIT_HU[0] :].sum()
    top, bottom = high - _OFFSET, low - _OFFSET
    is_cut_above = top < _CLIPPED_BELOW_HU and counts[high] >= _CLIPPED * tissue > 0
    is_cut_below = bottom > _FILLED_ABOVE_HU and counts[low] >= _FILLED * total
    if is_cut_above or is_cut_below or 0 < top - bottom < _BYTE:
        yield ResultWarning(
            "values-clipped",
            f"The values end at {bottom} and {top} HU: they went through a display window, and tissue beyond its ends "
            f"cannot be told apart. {_ADVICE}",
        )
        return
    often = int(counts[_OFFSET + _FILLED_ABOVE_HU :].argmax()) + _FILLED_ABOVE_HU
    if counts[often + _OFFSET] >= _FILLED * total:
        share = counts[often + _OFFSET] / total
        yield ResultWarning(
            "values-padding",
            f"{share:.0%} of the voxels are exactly {often} HU, unlike tissue: padding or a mask has replaced parts of "
            "the picture, and looks like tissue. Fill these parts with air (-1000 HU).",
        )


def _histogram(hu: np.ndarray) -> np.ndarray:
    """Count each int16 value, from -32768 on, in a sample that is spread evenly."""
    stride = max(1, math.ceil(math.sqrt(hu.size / _SAMPLE)))
    counts = np.zeros(2 * _OFFSET, np.int64)
    for z in range(0, len(hu), 8):  # some at a time: a whole volume of wider integers takes much memory
        values = hu[z : z + 8, ::stride, ::stride].reshape(-1).view(np.uint16) ^ _OFFSET
        counts += np.bincount(values, minlength=counts.size)
    return counts


def _has_gap_above(counts: np.ndarray, value: int) -> bool:
    """Whether a lowest value is padding: it is common, and the next values lie far above it."""
    at = value + _OFFSET
    return bool(
        counts[at] > _MIN_BELOW_WATER * counts.sum() and counts[at + 1 : at + 200].sum() < 0.01 * counts[at]
    )


def _without_spikes(counts: np.ndarray) -> np.ndarray:
    """The histogram without padding and without air that was set to one value."""
    near = np.convolve(counts, np.r_[np.ones(5), 0, np.ones(5)], "same")
    spike = (counts > _SPIKE * counts.sum()) & (counts > _SPIKE_TO_NEIGHBOURS * near)
    return np.where(spike, 0, counts)


def _otsu(counts: np.ndarray) -> int:
    """The first bin of the upper of the two classes into which Otsu's method splits a histogram."""
    filled = np.flatnonzero(counts)
    first, last = int(filled[0]), int(filled[-1])
    used = counts[first : last + 1].astype(float)
    below = np.cumsum(used)[:-1]
    moment = np.cumsum(used * np.arange(used.size))
    between = (moment[-1] * below / used.sum() - moment[:-1]) ** 2 / (below * (used.sum() - below))
    if not between.size:
        return first
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))  # a gap in the histogram: its middle
    return first + int(best[len(best) // 2]) + 1


def _median(counts: np.ndarray) -> int:
    total = np.cumsum(counts)
    return int(np.searchsorted(total, total[-1] / 2))


def _is_in(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]
