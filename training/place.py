"""Place slices on a square grid at a fixed number of millimetres a pixel, the body in the middle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from trtseg.fit import AIR_HU

#: HU that tell a body from air and from most of a table; slices that are saturated higher up tell it by their lowest.
BODY_HU, ABOVE_LOWEST = -300, 20
#: Width of a body where the size of a pixel is not known, and the fields of view that are then possible, in mm.
BODY_MM, FIELD_MM = 350.0, (300.0, 500.0)
#: Pixels of the grid that are left free on either side of a body that would not fit.
MARGIN = 2


@dataclass(frozen=True)
class Place:
    """How a slice ``[Y, X]`` lies on a grid ``[S, S]``.

    Attributes
    ----------
    centre : (float, float)
        Position in the slice, in its pixels from its corner (y, x), of the middle of the grid.
    step : float
        Pixels of the slice per pixel of the grid.
    mm : float
        Millimetres per pixel of the grid.
    """

    centre: tuple[float, float]
    step: float
    mm: float


def body_box(hu: np.ndarray) -> tuple[int, int, int, int]:
    """Rows and columns ``(y0, y1, x0, x1)`` of the largest thing in a slice that is no air; all of an empty slice."""
    body = hu > max(BODY_HU, int(hu.min()) + ABOVE_LOWEST)
    body = ndimage.binary_opening(body, iterations=max(1, hu.shape[0] // 170))
    parts, count = ndimage.label(body)
    if not count:
        return 0, hu.shape[0], 0, hu.shape[1]
    y, x = ndimage.find_objects(parts)[np.bincount(parts.ravel())[1:].argmax()]
    return y.start, y.stop, x.start, x.stop


def place(hu: np.ndarray, pixel_mm: float, size: int, mm: float) -> Place:
    """Put the body of a slice in the middle of a grid of ``size`` pixels of ``mm``, larger ones if it would not fit.

    A NaN for ``pixel_mm`` is replaced by an estimate from the width of the body.
    """
    y0, y1, x0, x1 = body_box(hu)
    if math.isnan(pixel_mm):
        pixel_mm = BODY_MM / (x1 - x0)
        low, high = (field / max(hu.shape) for field in FIELD_MM)
        pixel_mm = min(max(pixel_mm, low), high)
    step = max(mm / pixel_mm, max(y1 - y0, x1 - x0) / (size - 2 * MARGIN))
    return Place(((y0 + y1) / 2, (x0 + x1) / 2), step, step * pixel_mm)


def placed(hu: np.ndarray, where: Place, size: int) -> np.ndarray:
    """HU ``[Y, X]`` on the grid, float32 ``[size, size]``: means over the grid's pixels, air outside the slice."""
    rows, columns = (_weights(n, c, where.step, size) for n, c in zip(hu.shape, where.centre, strict=True))
    return rows @ (hu.astype(np.float32) - AIR_HU) @ columns.T + AIR_HU


def placed_labels(label: np.ndarray, where: Place, size: int) -> np.ndarray:
    """Labels ``[Y, X]`` on the grid, uint8 ``[size, size]``: those at the pixels' centres, 0 outside the slice."""
    at = (np.arange(size) + 0.5 - size / 2) * where.step
    return labels_at(label, *(np.floor(centre + at).astype(np.int64) for centre in where.centre))


def labels_at(label: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Labels ``[..., Y, X]`` at rows and columns, int ``[H]`` and ``[W]``: ``[..., H, W]``, 0 outside the slice."""
    y, x = label.shape[-2:]
    out = label[..., rows.clip(0, y - 1)[:, None], columns.clip(0, x - 1)]
    out[..., (rows < 0) | (rows >= y), :] = 0
    out[..., (columns < 0) | (columns >= x)] = 0
    return out


def placed_boxes(boxes: np.ndarray, where: Place, size: int) -> np.ndarray:
    """Boxes ``[M, 4]`` of a slice, y0, y1, x0, x1 in its pixels, in pixels of the grid: float32 ``[M, 4]``."""
    centre = np.repeat(where.centre, 2)
    return ((boxes - centre) / where.step + size / 2).astype(np.float32)


def _weights(n: int, centre: float, step: float, size: int) -> np.ndarray:
    """Weights ``[size, n]`` of pixels for the pixels of the grid, along one axis.

    They are the overlap with a pixel of the grid where that is the larger one, and linear interpolation otherwise.
    """
    middle = centre + (np.arange(size)[:, None] + 0.5 - size / 2) * step
    pixels = np.arange(n)[None, :]
    if step >= 1:
        low, high = middle - step / 2, middle + step / 2
        weights = (np.minimum(high, pixels + 1) - np.maximum(low, pixels)).clip(0) / step
    else:
        weights = (1 - np.abs(middle - 0.5 - pixels)).clip(0)
    return weights.astype(np.float32)
