"""A CT and its labels as text inside a page: slices as JPEG, labels as runs."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np

from trtseg.labels.components import Array, bounding_box
from trtseg.volume import Volume

#: HU and the grey level that stands for each: soft tissue in steps of 3 HU, lung in 17, bone in 31.
CURVE = ((-1024, -200, 300, 1500), (0, 48, 216, 255))
#: Bytes of all JPEG files together; base64 makes four bytes of three.
_BUDGET = 10_500_000
#: In-plane step in voxels, and quality of the JPEG files: what comes first and fits the budget is taken.
_SETTINGS = ((1, 90), (1, 80), (1, 65), (2, 88), (2, 70), (4, 80))
_MOST_SLICES, _MOST_COLUMNS = 600, 512
_SAMPLES = 9  # slices from which the size of all is estimated


@dataclass(frozen=True)
class Packed:
    """What a page holds of a CT.

    Attributes
    ----------
    slices : list of str
        Base64 of a JPEG file for each slice, 8 bits by `CURVE`.
    labels : str
        Base64 of the labels in ``box``, see `pack_labels`.
    shape : (int, int, int)
        ``(Z, Y, X)`` of what is shown.
    step : (int, int, int)
        Voxels of the CT for each voxel shown, along each axis.
    box : (int, ...)
        First ``(z, y, x)`` of the labels, and last plus one.
    """

    slices: list[str]
    labels: str
    shape: tuple[int, int, int]
    step: tuple[int, int, int]
    box: tuple[int, ...]


def pack(volume: Volume, labels: Array) -> Packed:
    """Pack a CT and its labels, uint8 ``[Z, Y, X]``, at the best quality that fits a page of 15 MB."""
    depth, rows, columns = volume.array.shape
    table = _table()
    step_z = math.ceil(depth / _MOST_SLICES)
    chosen = range(0, depth, step_z)
    least = math.ceil(max(rows, columns) / _MOST_COLUMNS)
    few = np.unique(np.linspace(0, depth - 1, _SAMPLES).astype(int))
    for step, quality in _SETTINGS:  # the last one is taken if none fits
        step *= least
        mean = np.mean([len(_jpeg(volume.array[z], table, step, quality)) for z in few])
        if mean * len(chosen) < 0.92 * _BUDGET:
            break
    slices = [_text(_jpeg(volume.array[z], table, step, quality)) for z in chosen]
    small = shrink(labels, (step_z, step, step))
    box = bounding_box(small)
    ends = (*(axis.start for axis in box), *(axis.stop for axis in box))
    return Packed(slices, pack_labels(small[box]), small.shape, (step_z, step, step), ends)


def shrink(labels: Array, step: tuple[int, int, int]) -> Array:
    """Keep the largest label of each block of ``step`` voxels, so that no lesion goes lost."""
    for axis, n in enumerate(step):
        if n > 1:
            labels = np.maximum.reduceat(labels, np.arange(0, labels.shape[axis], n), axis=axis)
    return labels


def pack_labels(labels: Array) -> str:
    """Write labels 0 to 2 as base64 of runs in raster order.

    Each run is the number ``3 * length + label`` in bytes of 7 bits, the lowest first; the highest bit of a byte says
    that another follows.
    """
    flat = labels.reshape(-1)
    if not flat.size:
        return ""
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    number = 3 * np.diff(np.append(starts, flat.size)) + flat[starts]
    digits = number[:, None] >> np.arange(0, 42, 7)
    more = digits[:, 1:] > 0
    digits = (digits & 127).astype(np.uint8)
    digits[:, :-1] |= more.astype(np.uint8) << 7
    used = np.concatenate([np.ones((len(number), 1), bool), more], axis=1)
    return _text(digits[used].tobytes())


def _table() -> Array:
    """Grey level of each int16, by its bits."""
    hu = np.arange(65536).astype(np.uint16).view(np.int16)
    return np.rint(np.interp(hu, *CURVE)).astype(np.uint8)


def _jpeg(hu: Array, table: Array, step: int, quality: int) -> bytes:
    from PIL import Image

    image = Image.fromarray(table[hu.view(np.uint16)])
    file = io.BytesIO()
    (image.reduce(step) if step > 1 else image).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
