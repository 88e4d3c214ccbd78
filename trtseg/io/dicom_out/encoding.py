"""Elements and items of sequences as bytes, in Explicit VR Little Endian."""

from __future__ import annotations

import struct


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """Encode an element; values of odd length are padded."""
    return (
        element_head(tag, vr, len(value))
        + value
        + (b"\0" if vr in (b"UI", b"OB") else b" ") * (len(value) % 2)
    )


def element_head(tag: int, vr: bytes, length: int) -> bytes:
    """Encode what stands before the value of an element, of which ``length`` is given without padding."""
    length += length % 2
    long = vr in (b"SQ", b"OB")
    return (
        struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        + vr
        + struct.pack("<HI" if long else "<H", *(0,) * long, length)
    )


def item(*elements: bytes) -> bytes:
    """Encode an item of a sequence."""
    value = b"".join(elements)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value
