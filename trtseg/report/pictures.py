"""Pictures to check a segmentation at a glance: its outlines on axial slices, alone or beside those of the truth."""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtseg.body import find_body
from trtseg.labels.components import Array, bounding_box
from trtseg.notice import NOTICE, signature
from trtseg.volume import Volume, check_on_grid

if TYPE_CHECKING:
    from PIL import Image

Box2D = tuple[int, int, int, int]  # rows and columns: top, left, bottom, right
Colour = tuple[int, int, int]

#: Abdominal soft tissue: level 40 HU, width 400 HU.
WINDOW = (-160, 240)
WINDOW_TEXT = f"W {WINDOW[1] - WINDOW[0]} L {sum(WINDOW) // 2}"
LIVER, TUMOUR = (60, 230, 200), (255, 70, 120)
#: Cold colours for the truth, warm colours for a prediction.
TRUE_LIVER, TRUE_TUMOUR, PREDICTED_LIVER, PREDICTED_TUMOUR = LIVER, (110, 150, 255), (255, 195, 60), TUMOUR

_BACKGROUND, _TEXT, _FAINT = (16, 16, 18), (235, 235, 235), (150, 150, 155)
_WARNING = (255, 195, 60)
_GAP, _HEADER, _FOOTER, _LINE_HEIGHT = 4, 40, 26, 22
_LEAST_WIDTH = 680  # of a page, so that measurements and key have room side by side
_FINE = 3  # outlines are drawn on a grid finer by this factor, and then averaged
_COLUMNS, _ROWS = 4, 3  # of tiles in a preview, at most
_WIDE = 560  # pixels of a tile where there are only two
_LINE = 4  # width of an outline on the fine grid
_EDGE = 100  # grey, of 255, at which a blurred mask ends: below one half, or single voxels would be lost
_MAX_ASPECT = 1.25  # largest height of a tile over its width; the smallest is 1 / _MAX_ASPECT**2


def preview_png(
    volume: Volume,
    labels: Array,
    summary: str,
    warnings: Sequence[str] = (),
    *,
    tile: int = 340,
) -> bytes:
    """Draw the outlines of liver and tumour on slices of a CT.

    Slices are spread evenly over the liver, head first, and always include the slice with the most tumour;
    without a liver, four slices are spread over the volume. They are shown as radiologists look at them (the
    patient's right on the left), with square pixels.

    Parameters
    ----------
    volume : Volume
        The CT.
    labels : ndarray
        uint8 ``[Z, Y, X]``: 0 background, 1 liver, 2 tumour.
    summary : str
        Measurements, for the line at the top.
    warnings : sequence of str
        Sentences that stand under the pictures.
    tile : int
        Width of a tile in pixels.

    Returns
    -------
    bytes
        A PNG file; the same for the same arguments.

    Raises
    ------
    ArgumentError
        If ``labels`` are not on the volume's grid.
    """
    from PIL import Image, ImageDraw

    check_on_grid(labels, volume)
    chosen = choose_slices(labels, _COLUMNS * _ROWS)
    columns = min(_COLUMNS, len(chosen))
    box = _body_box(volume, labels, chosen)
    size = _tile_size(box, volume.spacing, tile)
    width = max(columns * (size[0] + _GAP) + _GAP, _LEAST_WIDTH)
    lines = [line for text in warnings for line in _wrapped(f"Warning: {text}", width - 20)]
    end = _HEADER + math.ceil(len(chosen) / columns) * (size[1] + _GAP)
    height = end + len(lines) * _LINE_HEIGHT + _FOOTER
    page = Image.new("RGB", (width, height), _BACKGROUND)
    left = (width - columns * (size[0] + _GAP) + _GAP) // 2
    for n, z in enumerate(chosen):
        corner = (left + n % columns * (size[0] + _GAP), _HEADER + n // columns * (size[1] + _GAP))
        outlines = ((labels[z] > 0, LIVER), (labels[z] == 2, TUMOUR))
        page.paste(_draw_slice(volume, outlines, z, box, size), corner)
    key = (("liver", LIVER), ("tumour", TUMOUR))
    draw = ImageDraw.Draw(page)
    _write_margins(draw, page.size, volume.name, summary, key)
    for n, line in enumerate(lines):
        draw.text((10, end + (n + 0.5) * _LINE_HEIGHT), line, _WARNING, font(15), "lm")
    return _png(page)


def disagreement_png(volume: Volume, prediction: Array, truth: Array, summary: str) -> bytes:
    """Draw the slice of a CT on which prediction and truth disagree most: plain, and with the outlines of both.

    Parameters
    ----------
    volume : Volume
        The CT.
    prediction, truth : ndarray
        uint8 ``[Z, Y, X]``: 0 background, 1 liver, 2 tumour.
    summary : str
        Scores, for the line at the top.

    Returns
    -------
    bytes
        A PNG file; the same for the same arguments.

    Raises
    ------
    ArgumentError
        If the labels are not on the volume's grid.
    """
    from PIL import Image, ImageDraw

    for name, labels in (("prediction", prediction), ("truth", truth)):
        check_on_grid(labels, volume, name)
    z = most_disagreement(prediction, truth)
    box = _body_box(volume, np.maximum(prediction, truth), [z])
    size = _tile_size(box, volume.spacing, _WIDE)
    page = Image.new("RGB", (2 * size[0] + 3 * _GAP, _HEADER + size[1] + _GAP + _FOOTER), _BACKGROUND)
    outlines = (
        (truth[z] > 0, TRUE_LIVER),
        (prediction[z] > 0, PREDICTED_LIVER),
        (truth[z] == 2, TRUE_TUMOUR),
        (prediction[z] == 2, PREDICTED_TUMOUR),
    )
    for column, drawn in enumerate(((), outlines)):
        corner = (_GAP + column * (size[0] + _GAP), _HEADER)
        page.paste(_draw_slice(volume, drawn, z, box, size), corner)
    key = (
        ("true liver", TRUE_LIVER),
        ("tumour", TRUE_TUMOUR),
        ("predicted liver", PREDICTED_LIVER),
        ("tumour", PREDICTED_TUMOUR),
    )
    _write_margins(ImageDraw.Draw(page), page.size, volume.name, summary, key)
    return _png(page)


def thumbnail(volume: Volume, labels: Array, width: int) -> str:
    """Draw the slice with most tumour, or in the middle of the liver, small: base64 of a JPEG file."""
    z = choose_slices(labels, 1)[0]
    box = _body_box(volume, labels, [z])
    size = _tile_size(box, volume.spacing, 2 * width)
    outlines = ((labels[z] > 0, LIVER), (labels[z] == 2, TUMOUR))
    file = io.BytesIO()
    _draw_slice(volume, outlines, z, box, size).reduce(2).save(file, "JPEG", quality=70)
    return base64.b64encode(file.getvalue()).decode("ascii")


def most_disagreement(prediction: Array, truth: Array) -> int:
    """Choose the slice with most wrong voxels; if no voxel is wrong, the slice with most liver."""
    wrong = [int(np.count_nonzero(p != t)) for p, t in zip(prediction, truth, strict=True)]
    return int(np.argmax(wrong if any(wrong) else [int(np.count_nonzero(plane)) for plane in truth]))


def choose_slices(labels: Array, count: int) -> list[int]:
    """Choose at most ``count`` slices ``z`` of ``labels``, highest first."""
    extent = bounding_box(labels)[0]
    found = extent.stop > extent.start
    first, last = (extent.start, extent.stop) if found else (0, len(labels))
    count = min(count if found else min(count, 4), last - first)
    chosen = {first + int((i + 0.5) * (last - first) / count) for i in range(count)}
    tumour = [int(np.count_nonzero(plane == 2)) for plane in labels[extent]]
    if any(tumour):
        fullest = first + int(np.argmax(tumour))
        if fullest not in chosen:
            chosen.remove(min(chosen, key=lambda z: abs(z - fullest)))
            chosen.add(fullest)
    return sorted(chosen, reverse=True)


def slice_location(volume: Volume, z: int) -> float:
    """Where the middle of a slice lies from the feet to the head, RAS mm."""
    _, rows, columns = volume.array.shape
    return float(volume.affine[2] @ ((columns - 1) / 2, (rows - 1) / 2, z, 1))


def _body_box(volume: Volume, labels: Array, slices: list[int]) -> Box2D:
    """Find the rows and columns ``(top, left, bottom, right)`` that hold body and labels on slices, with a margin."""
    _, height, width = labels.shape
    _, y, x = bounding_box(labels[slices])
    labelled = (y.start, y.stop, x.start, x.stop) if y.stop else None
    boxes = [box for box in (find_body(volume.array[slices], volume.spacing[1:]), labelled) if box]
    if not boxes:
        return 0, 0, height, width
    (top, _, left, _), (_, bottom, _, right) = np.min(boxes, axis=0).tolist(), np.max(boxes, axis=0).tolist()
    margin = max(2, (right - left) // 50)
    return (
        max(0, top - margin),
        max(0, left - margin),
        min(height, bottom + margin),
        min(width, right + margin),
    )


def _tile_size(box: Box2D, spacing: tuple[float, float, float], tile: int) -> tuple[int, int]:
    """Compute the width and height of a tile in pixels."""
    top, left, bottom, right = box
    aspect = (bottom - top) * spacing[1] / ((right - left) * spacing[2])
    return tile, round(tile * min(max(aspect, 1 / _MAX_ASPECT**2), _MAX_ASPECT))


def _draw_slice(
    volume: Volume, outlines: Sequence[tuple[Array, Colour]], z: int, box: Box2D, size: tuple[int, int]
) -> Image.Image:
    """Draw a tile: the slice in grey, scaled uniformly in mm and centred, with outlines of masks and with marks."""
    from PIL import Image, ImageDraw

    top, left, bottom, right = box
    sy, sx = volume.spacing[1:]
    scale = min(size[0] / ((right - left) * sx), size[1] / ((bottom - top) * sy))  # pixels per mm
    inner = (max(1, round((right - left) * sx * scale)), max(1, round((bottom - top) * sy * scale)))
    corner = ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2)
    low, high = WINDOW
    grey = (np.clip(volume.array[z, top:bottom, left:right], low, high) - low) * (255 / (high - low))
    image = Image.fromarray(np.rint(grey).astype(np.uint8)).resize(inner, Image.Resampling.BICUBIC)
    tile = Image.new("RGB", size)
    tile.paste(image.convert("RGB"), corner)
    for mask, colour in outlines:
        crop = mask[top:bottom, left:right]
        if crop.any():
            tile.paste(colour, (*corner, corner[0] + inner[0], corner[1] + inner[1]), _outline(crop, inner))
    draw = ImageDraw.Draw(tile)
    for at, anchor, text in (
        ((6, 4), "la", f"slice {z}"),
        ((size[0] - 6, 4), "ra", f"z {slice_location(volume, z):.1f} mm"),
        ((6, size[1] // 2), "lm", "R"),
        ((size[0] - 6, size[1] // 2), "rm", "L"),
    ):
        draw.text(at, text, _TEXT, font(13), anchor, stroke_width=2, stroke_fill=(0, 0, 0))
    return tile


def _outline(mask: Array, size: tuple[int, int]) -> Image.Image:
    """Outline ``mask`` [Y, X] on its inside, ``_LINE / _FINE`` pixels wide, as opacity on a grid of ``size``."""
    from PIL import Image, ImageFilter

    fine = (size[0] * _FINE, size[1] * _FINE)
    smooth = Image.fromarray(mask.astype(np.uint8) * 255).resize(fine, Image.Resampling.BICUBIC)
    pixels = max(fine[0] / mask.shape[1], fine[1] / mask.shape[0])  # fine pixels to one voxel
    smooth = smooth.filter(ImageFilter.GaussianBlur(pixels / 3))  # rounds off the steps between voxels
    shape = np.asarray(smooth) > _EDGE
    core = np.pad(shape, 1)  # so that the outline of a mask at the border is closed there
    for square in (True, False) * (_LINE // 2):  # erosion by an octagon is as wide in every direction
        vertical = core[1:-1] & core[:-2] & core[2:]
        centre = vertical if square else core[1:-1]
        core[1:-1, 1:-1] = centre[:, 1:-1] & centre[:, :-2] & centre[:, 2:] & vertical[:, 1:-1]
    line = (shape & ~core[1:-1, 1:-1]).astype(np.uint8) * 255
    return Image.fromarray(line).resize(size, Image.Resampling.BOX)


def _write_margins(
    draw: Any, size: tuple[int, int], name: str, summary: str, key: Sequence[tuple[str, Colour]]
) -> None:
    """Write the header (name, measurements, key to the colours) and the footer."""
    right = size[0] - 10.0
    for label, colour in reversed(key):
        right -= draw.textlength(label, font(14))
        draw.text((right, _HEADER // 2), label, _TEXT, font(14), "lm")
        draw.line((right - 26, _HEADER // 2, right - 8, _HEADER // 2), colour, 3)
        right -= 44
    # The built-in font has few letters beyond ASCII.
    text = " ".join(name.encode("ascii", "replace").decode().split())  # a name may have a line break
    room = right - 30 - draw.textlength(summary, font(15))
    while len(text) > 8 and draw.textlength(text, font(15)) > room:
        text = text.removesuffix("...")[:-1] + "..."
    draw.text((10, _HEADER // 2), text, _FAINT, font(15), "lm")
    draw.text((30 + draw.textlength(text, font(15)), _HEADER // 2), summary, _TEXT, font(15), "lm")
    middle = size[1] - _FOOTER // 2
    draw.text((10, middle), NOTICE, _FAINT, font(13), "lm")
    draw.text((size[0] - 10, middle), f"axial, {WINDOW_TEXT}", _FAINT, font(13), "rm")


def _wrapped(text: str, width: float) -> list[str]:
    """Break a text into lines of at most ``width`` pixels, between words, or within one that is longer."""
    lines: list[str] = []
    for word in text.encode("ascii", "replace").decode().split():
        if lines and font(15).getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if font(15).getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _signed() -> Any:
    """The signature as a comment, before the pixels."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", signature())
    return info


def _png(page: Image.Image) -> bytes:
    file = io.BytesIO()
    page.save(file, "PNG", compress_level=6, pnginfo=_signed())
    return file.getvalue()


@functools.cache
def font(size: int) -> Any:
    """Pillow's own font, which has few letters beyond ASCII."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
