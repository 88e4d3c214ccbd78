"""The ModelSpec that an ONNX file carries, read without an ONNX library.

An ONNX file is a protocol-buffer message (``ModelProto`` in onnx/onnx.proto3). Its ``metadata_props``, field 14, are
messages of a key (field 1) and a value (field 2). All other fields of the outermost message are skipped by their
length, so this takes no longer for a large net than for a small one.
"""

from __future__ import annotations

from collections.abc import Iterator

from trtseg.errors import ModelError
from trtseg.spec import METADATA_KEY, ModelSpec

_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_spec(onnx: bytes, spec: ModelSpec) -> None:
    """Refuse a net whose own metadata, which its hash covers, say other than the manifest.

    Raises
    ------
    ModelError
        The file is no ONNX, holds no spec, or holds another one.
    """
    try:
        found = _metadata(memoryview(onnx)).get(METADATA_KEY)
    except (ValueError, IndexError) as error:
        raise ModelError(f"{spec.role} net: not an ONNX file ({error}); export the model again") from error
    if found is None:
        raise ModelError(f"{spec.role} net: the ONNX file holds no spec; export the model again")
    if ModelSpec.from_json(found) != spec:
        raise ModelError(
            f"{spec.role} net: model.json differs from the spec in the ONNX file; export or install the model again"
        )


def _metadata(message: memoryview) -> dict[str, str]:
    found = {}
    for number, content in _fields(message):
        if number == _METADATA_PROPS:
            pair = dict(_fields(content))
            found[str(pair[_KEY], "utf-8")] = str(pair.get(_VALUE, b""), "utf-8")
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of each field that holds bytes; skip the others."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        elif kind == _BYTES:
            size, at = _varint(message, at)
            yield number, message[at : at + size]
            at += size
        else:
            raise ValueError(f"field {number} is of the unknown kind {kind}")
    if at != len(message):
        raise ValueError("it is cut off")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, the lowest first; it and the place behind it."""
    value = 0
    for shift in range(0, 64, 7):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number in it is too long")
