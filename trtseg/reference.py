"""The fused ops in plain NumPy: slow, obvious, and what the C++ and CUDA code must equal bit for bit.

Positions on an axis are computed in double, weights and sums in float32, in the order written here. Nothing
in the library calls this module: it is for tests, and for readers who want to know what an op does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from trtseg.body import BODY_HU
from trtseg.fit import AIR_HU, Fit

Array = npt.NDArray[Any]
_Tap = tuple[int, np.float32]

_ONE = np.float32(1)
_ROUNDER = np.float32(12582912)  # 1.5 * 2**23: adding it leaves no fraction bits, rounded half to even
_LIMIT = np.float32(65504)  # the largest FP16 number: margins are finite in every precision


def frame(hu: Array) -> Array:
    """Find the box of all voxels above air, over all slices.

    Parameters
    ----------
    hu : int16 [n, Y, X]
        Hounsfield units.

    Returns
    -------
    int32 [4]
        Begin and end of the rows, begin and end of the columns; ``Y, 0, X, 0`` where all is air.

    Examples
    --------
    >>> frame(np.array([[[-1000, 7, -1000]], [[-1000, -1000, -999]]], np.int16)).tolist()
    [0, 1, 1, 3]
    """
    box = []
    for axis, size in ((1, hu.shape[1]), (2, hu.shape[2])):
        used = np.flatnonzero((hu > AIR_HU).any((0, 3 - axis)))
        box += [used[0], used[-1] + 1] if len(used) else [size, 0]
    return np.array(box, np.int32)


def thick(
    hu: Array, frame: tuple[int, int, int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> Array:
    """Find where something thick above -400 HU begins in any slice.

    Parameters
    ----------
    hu : int16 [n, Y, X]
        Hounsfield units.
    frame : (int, int, int, int)
        The part of the slices that is looked at, as of `frame`.
    rows, columns : (int, int)
        Pixels from sample to sample, counted from the frame's begin, and how many samples in a row are thick.

    Returns
    -------
    uint8 [j, i]
        1 where all samples from ``(j, i)`` on are above -400 HU that are thick, in at least one slice.

    Examples
    --------
    >>> thick(np.array([[[9, -500, 9, -500, 9, 9, -500]]], np.int16), (0, 1, 0, 7), (1, 1), (2, 2)).tolist()
    [[1, 1, 0]]
    """
    mask: Array = hu[:, frame[0] : frame[1] : rows[0], frame[2] : frame[3] : columns[0]] > BODY_HU
    for axis, (_, k) in ((1, rows), (2, columns)):
        mask = np.all(sliding_window_view(mask, k, axis), axis=-1)
    found: Array = np.any(mask, axis=0).astype(np.uint8)
    return found


def prepare(
    hu: Array, fit: Fit, window: tuple[float, float], dtype: npt.DTypeLike = np.float32
) -> tuple[Array, Array]:
    """Lay CT slices on the net's grid and map a HU window to [0, 1].

    Parameters
    ----------
    hu : int16 [n, Y, X]
        Hounsfield units; ``(Y, X) == fit.native``.
    fit : Fit
        How a slice lies on the net's grid.
    window : (float, float)
        HU that map to 0 and 1.
    dtype : float32 or float16
        Of ``x1``.

    Returns
    -------
    hu_net : int16 [n, H, W]
        Area mean where the slice shrinks, linear interpolation where it grows, air where there is no slice.
    x1 : dtype [n, 1, H, W]
        ``clamp((hu_net - lo) / (hi - lo), 0, 1)``.

    Examples
    --------
    >>> hu = np.array([[[0, 2], [4, 8]]], np.int16)
    >>> prepare(hu, Fit((2, 2), (1, 1), (2.0, 2.0), (0, 0), (1, 1)), (0, 8))[0].item()  # 3.5, half to even
    4
    """
    y_taps, x_taps = (_prepare_taps(fit, axis) for axis in (0, 1))
    rows = np.zeros((len(hu), fit.net[0], fit.native[1]), np.float32)
    for i, taps in y_taps.items():
        for j, weight in taps:
            rows[:, i] += weight * hu[:, j].astype(np.float32)
    value = np.zeros((len(hu), *fit.net), np.float32)
    for i, taps in x_taps.items():
        for j, weight in taps:
            value[:, :, i] += weight * rows[:, :, j]
    hu_net = np.full((len(hu), *fit.net), AIR_HU, np.int16)
    inside = np.ix_(range(len(hu)), list(y_taps), list(x_taps))
    rounded = (value + _ROUNDER) - _ROUNDER
    hu_net[inside] = np.clip(rounded, np.float32(-32768), np.float32(32767))[inside].astype(np.int16)
    return hu_net, _window(hu_net, window)[:, None].astype(dtype)


def gate(
    l1: Array,
    hu_net: Array,
    logit_threshold: float,
    window: tuple[float, float],
    dtype: npt.DTypeLike = np.float32,
) -> tuple[Array, Array]:
    """Window the slices for the tumour net and blank everything outside the liver.

    Parameters
    ----------
    l1 : float32 or float16 [n, 1, H, W]
        Logits of the liver net. NaN counts as certain background.
    hu_net : int16 [n, H, W]
        From `prepare`.
    logit_threshold : float
        A pixel is liver where its logit is larger.
    window : (float, float)
        The tumour net's HU window.
    dtype : float32 or float16
        Of ``x2``.

    Returns
    -------
    x2 : dtype [n, 1, H, W]
        The windowed slice inside the liver, 0 outside.
    liver_voxels : int32 [n]
        Liver pixels per slice.
    """
    liver = _margin(l1[:, 0], logit_threshold) > 0
    x2 = np.where(liver, _window(hu_net, window), np.float32(0))
    return x2[:, None].astype(dtype), liver.sum(axis=(1, 2), dtype=np.int32)


def label(l1: Array, l2: Array, logit_thresholds: tuple[float, float], fit: Fit) -> tuple[Array, Array]:
    """Bring the logits of the two nets back to the native grid and label its voxels.

    Parameters
    ----------
    l1, l2 : float32 or float16 [n, 1, H, W]
        Logits of the liver and of the tumour net.
    logit_thresholds : (float, float)
        A voxel is liver (tumour) where the interpolated margin over the threshold is positive.
    fit : Fit
        The same as for `prepare`.

    Returns
    -------
    labels : uint8 [n, Y, X]
        0 background, 1 liver, 2 tumour; tumour lies inside the liver only.
    counts : int32 [n, 2]
        Voxels labelled 1 and 2 per slice.

    Notes
    -----
    No interpolation weight is negative, so a slice whose liver margins are all <= 0 has only values <= 0 in
    any rounding: it gets no label at all, whatever ``l2`` holds. Not running the tumour net on it is exact.
    """
    liver = _to_native(_margin(l1[:, 0], logit_thresholds[0]), fit) > 0
    tumour = liver & (_to_native(_margin(l2[:, 0], logit_thresholds[1]), fit) > 0)
    labels = liver.astype(np.uint8) + tumour.astype(np.uint8)
    return labels, _counts(labels)


def label3(logits: Array, fit: Fit) -> tuple[Array, Array]:
    """Label native voxels by the largest of three interpolated logits (background, liver, tumour).

    Parameters
    ----------
    logits : float32 or float16 [n, 3, H, W]
        NaN counts as the lowest logit; magnitudes are clamped to 65504.
    fit : Fit
        The same as for `prepare`.

    Returns
    -------
    labels : uint8 [n, Y, X]
        The class with the largest value; the lowest such class on ties.
    counts : int32 [n, 2]
        Voxels labelled 1 and 2 per slice.
    """
    values = [_to_native(_margin(logits[:, c], 0.0), fit) for c in range(3)]
    labels = np.argmax(values, axis=0).astype(np.uint8)  # argmax takes the first of equals
    return labels, _counts(labels)


def _prepare_taps(fit: Fit, axis: int) -> dict[int, list[_Tap]]:
    """For each net pixel that touches the slice: the native pixels it is made of, with their weights."""
    r, o, origin = float(fit.step[axis]), fit.offset[axis], fit.origin[axis]
    begin, end = (
        float(-origin),
        float(fit.native[axis] - origin),
    )  # the slice's edges, counted from the origin
    taps: dict[int, list[_Tap]] = {}
    for i in range(o, o + fit.extent[axis]):
        lo, hi = max((i - o) * r, begin), min((i - o + 1) * r, end)
        if lo >= end or hi <= begin:
            continue
        if r < 1:  # enlarging: linear between the centres of two pixels
            c = min(max((i - o + 0.5) * r - 0.5, begin), end - 1.0)
            j = math.floor(c)
            f = np.float32(c - j)
            taps[i] = [(origin + j, _ONE - f), (origin + min(j + 1, int(end) - 1), f)]
            continue
        js = range(math.floor(lo), math.ceil(hi))  # shrinking: the area's mean
        taps[i] = [(origin + j, np.float32((min(hi, j + 1) - max(lo, j)) / (hi - lo))) for j in js]
    return taps


def _window(hu: Array, window: tuple[float, float]) -> Array:
    lo, hi = np.float32(window[0]), np.float32(window[1])
    t = (hu.astype(np.float32) - lo) / (hi - lo)
    clamped: Array = np.clip(t, np.float32(0), _ONE) + np.float32(0)  # + 0: no negative zero
    return clamped


def _margin(logits: Array, threshold: float) -> Array:
    with np.errstate(invalid="ignore"):  # NaN is defined below
        d: Array = logits.astype(np.float32) - np.float32(threshold)
    return np.clip(np.where(np.isnan(d), -_LIMIT, d), -_LIMIT, _LIMIT)


def _to_native(d: Array, fit: Fit) -> Array:
    """Interpolate ``[n, H, W]`` linearly at the centres of the native voxels: ``[n, Y, X]``, rows first."""
    (y0, y1, gy, fy), (x0, x1, gx, fx) = (_label_taps(fit, axis) for axis in (0, 1))
    rows = gy[:, None] * d[:, y0] + fy[:, None] * d[:, y1]
    value: Array = gx * rows[:, :, x0] + fx * rows[:, :, x1]
    return value


def _label_taps(fit: Fit, axis: int) -> tuple[Array, Array, Array, Array]:
    m, r, o = fit.net[axis], float(fit.step[axis]), fit.offset[axis]
    v = (np.arange(fit.native[axis], dtype=np.float64) - fit.origin[axis] + 0.5) / r + o - 0.5
    c = np.clip(v, 0.0, m - 1.0)
    i0 = np.floor(c).astype(np.int64)
    f = (c - i0).astype(np.float32)
    inside = ((v >= -0.5) & (v < m - 0.5)).astype(np.float32)  # outside the grid all values are 0: background
    return i0, np.minimum(i0 + 1, m - 1), inside * (_ONE - f), inside * f


def _counts(labels: Array) -> Array:
    return np.stack([(labels == c).sum(axis=(1, 2), dtype=np.int32) for c in (1, 2)], axis=1)
