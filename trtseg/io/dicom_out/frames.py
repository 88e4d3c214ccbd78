"""The frames of a Segmentation, encoded: an object for each element of each frame would take most of the time."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trtseg.io.dicom_out import codes
from trtseg.io.dicom_out.encoding import element, element_head, item
from trtseg.labels.components import Array

if TYPE_CHECKING:
    from trtseg.io.dicom_out.source import Reference

_DERIVATION = ("113076", "DCM", "Segmentation")
_PURPOSE = ("121322", "DCM", "Source image for image processing operation")


def encode_frames(
    planes: Array, slices: Sequence[Reference], count: int, *, labelmap: bool
) -> tuple[int, tuple[bytes, ...]]:
    """Encode what is last in a Segmentation: the group of each frame, and the pixels, in Explicit VR Little Endian.

    Parameters
    ----------
    planes : ndarray
        uint8 ``[slice, row, column]``: numbers of segments. Each slice has some.
    slices : sequence of Reference
        The slice of the source that each plane lies on.
    count : int
        Segments. A single one is told of in the shared groups.
    labelmap : bool
        The frames hold the numbers of segments; otherwise each frame has one segment, bit by bit.

    Returns
    -------
    frames : int
        Number of frames. Their dimensions are segment and slice; of a label map, slice alone.
    encoded : tuple of bytes
        Both elements in parts, to be written one after the other.
    """
    places = [_place(one) for one in slices]
    groups: list[bytes] = []
    shown: list[tuple[int, int]] = []  # plane and segment of each frame
    if labelmap:
        groups = [item(image, _indices(n), place) for n, (image, place) in enumerate(places, 1)]
        pixels = planes.tobytes()
    else:
        present = np.array([_numbers(plane, count) for plane in planes])
        for segment in range(1, count + 1):
            own = _segment(segment) if count > 1 else b""
            for n in np.flatnonzero(present[:, segment]).tolist():
                image, place = places[n]
                groups.append(item(image, _indices(segment, n + 1), place, own))
                shown.append((n, segment))
        pixels = _packed((planes[n] == segment for n, segment in shown), planes[0].size % 8 == 0)
    head = element_head(0x7FE00010, b"OB", len(pixels))
    return len(groups), (
        element(0x52009230, b"SQ", b"".join(groups)),
        head,
        pixels,
        b"\0" * (len(pixels) % 2),
    )


def _numbers(plane: Array, count: int) -> Array:
    """Tell of each number from 0 to ``count`` whether a plane has it; that of 0 is not looked for."""
    found = np.bincount(plane[plane > 1], minlength=count + 1) > 0
    found[1] = (plane == 1).any()
    return found


def _packed(frames: Iterable[Array], are_whole: bool) -> bytes:
    """Pack masks into bits, the first pixel lowest, without a gap between them; ``are_whole``: each fills its bytes."""
    parts = frames if are_whole else [np.concatenate([frame.ravel() for frame in frames])]
    return b"".join(np.packbits(part, bitorder="little").tobytes() for part in parts)


def _indices(*indices: int) -> bytes:
    values = struct.pack(f"<{len(indices)}I", *indices)
    return element(0x00209111, b"SQ", item(element(0x00209157, b"UL", values)))


def _segment(number: int) -> bytes:
    return element(0x0062000A, b"SQ", item(element(0x0062000B, b"US", struct.pack("<H", number))))


def _place(one: Reference) -> tuple[bytes, bytes]:
    """Encode what all frames of one slice have: the image that they were derived from, and where they lie."""
    source = one.encoded(
        b"" if one.frame is None else element(0x00081160, b"IS", str(one.frame).encode()),
        element(0x0028135A, b"CS", b"YES"),
        element(0x0040A170, b"SQ", _code(_PURPOSE)),
    )
    derivation = item(element(0x00082112, b"SQ", source), element(0x00089215, b"SQ", _code(_DERIVATION)))
    position = "\\".join(codes.decimal(mm) for mm in one.position).encode()
    plane = item(element(0x00200032, b"DS", position))
    return element(0x00089124, b"SQ", derivation), element(0x00209113, b"SQ", plane)


def _code(code: tuple[str, str, str]) -> bytes:
    value, scheme, meaning = (text.encode() for text in code)
    return item(
        element(0x00080100, b"SH", value),
        element(0x00080102, b"SH", scheme),
        element(0x00080104, b"LO", meaning),
    )
