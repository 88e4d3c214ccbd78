"""Messages of protocol buffers, of which ONNX files are made: the fields of each, by their numbers.

A message is not copied, and the content of a field is not looked at: to skip the weights of a net takes no time.
"""

from __future__ import annotations

from collections.abc import Iterator

#: What a field holds: a number, or bytes.
Value = int | memoryview


def text_of(value: Value) -> str:
    """A field that holds text; ValueError if it does not."""
    return str(bytes_of(value), "utf-8")


def grouped(message: Value) -> dict[int, list[Value]]:
    """Values of a message by the number of their field, in order; ValueError if it is none."""
    groups: dict[int, list[Value]] = {}
    for number, value in _fields(bytes_of(message)):
        groups.setdefault(number, []).append(value)
    return groups


def bytes_of(value: Value) -> memoryview:
    """A field that holds bytes; ValueError if it holds a number."""
    if isinstance(value, int):
        raise ValueError("a field holds a number instead of bytes")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of a protocol-buffer message."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field {tag >> 3} is of the unknown kind {kind}")
        if at + size > len(data):
            raise ValueError("it is cut off")
        yield tag >> 3, data[at : at + size]
        at += size


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, from ``at`` on, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise ValueError("it is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise ValueError("a number in it is too long")
