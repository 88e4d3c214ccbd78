"""Whole axial slices with the outlines drawn in, at the size of the CT: what a secondary capture shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from trtseg.labels.components import Array, bounding_box
from trtseg.labels.lesions import Lesion
from trtseg.notice import signature
from trtseg.report.pictures import LIVER, TUMOUR, WINDOW, WINDOW_TEXT, font, slice_location
from trtseg.volume import Volume

#: Millimetres between pictures: that of slices as they are read, at a third of the bytes of thin slices.
APART_MM = 5.0

_TEXT, _EDGE = (235, 235, 235), (0, 0, 0)


def drawn_slices(labels: Array, thickness: float, lesions: Sequence[Lesion]) -> list[int]:
    """Slices ``z`` that are drawn, head first: with liver, `APART_MM` apart, and those in which lesions are measured.

    Parameters
    ----------
    labels : ndarray
        uint8 ``[Z, Y, X]``: 0 background, 1 liver, 2 tumour.
    thickness : float
        Millimetres between slices.
    lesions : sequence of Lesion
        The lesions in ``labels``.
    """
    measured = {lesion.diameter_slice for lesion in lesions}
    chosen: list[int] = []
    for z in range(len(labels) - 1, -1, -1):
        is_due = not chosen or (chosen[-1] - z) * thickness > APART_MM - thickness / 2
        if z in measured or (is_due and labels[z].any()):
            chosen.append(z)
    return chosen


def draw_captures(volume: Volume, labels: Array, slices: Iterable[int]) -> Iterator[tuple[int, Array]]:
    """Draw slices.

    The slice is grey, in the window that stands on the picture; the outlines of liver and tumour are one voxel wide and
    lie inside them.

    Parameters
    ----------
    volume : Volume
        The CT.
    labels : ndarray
        uint8 ``[Z, Y, X]``: 0 background, 1 liver, 2 tumour.
    slices : iterable of int
        Which, in this order.

    Yields
    ------
    z : int
        The slice.
    picture : ndarray
        uint8 ``[Y, X, 3]``, the patient's right at the left.
    """
    low, high = WINDOW
    size = max(10, min(labels.shape[1:]) // 36)
    words = ((signature(), _TEXT), ("liver", LIVER), ("tumour", TUMOUR), (WINDOW_TEXT, _TEXT))
    legend = _stamp(words, size)
    _, rows, columns = labels.shape
    for z in slices:
        grey = volume.array[z].clip(low, high).astype(np.float32)
        grey = np.rint((grey - low) * 255 / (high - low)).astype(np.uint8)
        picture = np.empty((rows, columns, 3), np.uint8)
        for channel in range(3):
            picture[:, :, channel] = grey
        box = bounding_box(labels[z : z + 1])[1:]
        for mask, colour in ((labels[z][box] > 0, LIVER), (labels[z][box] == 2, TUMOUR)):
            picture[box][_inner_edge(mask)] = colour
        place = _stamp(((f"slice {z}, z {slice_location(volume, z):.1f} mm", _TEXT),), size)
        _paste(legend, picture[: rows // 2])
        _paste(place, picture[rows - len(place) :])
        yield z, picture


def _inner_edge(mask: Array) -> Array:
    """The voxels of a mask [Y, X] of whose four neighbours one does not belong to it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    edge: Array = mask & ~inside
    return edge


def _stamp(lines: Sequence[tuple[str, tuple[int, int, int]]], size: int) -> Array:
    """Write lines of text with a dark edge: uint8 ``[Y, X, 4]``, colour and opacity."""
    from PIL import Image, ImageDraw

    high = size + 4
    width = max(len(text) for text, _ in lines) * size * 2 // 3 + 12  # enough for its letters
    image = Image.new("RGBA", (width, high * len(lines) + 4))
    draw = ImageDraw.Draw(image)
    for n, (text, colour) in enumerate(lines):
        draw.text((6, 4 + n * high), text, colour, font(size), stroke_width=1, stroke_fill=_EDGE)
    return np.asarray(image)


def _paste(stamp: Array, part: Array) -> None:
    """Lay a stamp on the first rows and columns of a part of a picture, as far as there is room."""
    part = part[: len(stamp), : stamp.shape[1]]
    stamp = stamp[: len(part), : part.shape[1]]
    opaque = stamp[:, :, 3] > 127
    part[opaque] = stamp[opaque, :3]
