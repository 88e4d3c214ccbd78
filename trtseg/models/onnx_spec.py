"""The ModelSpec in the metadata of an ONNX file, read without an ONNX library.

An ONNX file is a protocol-buffer message (``ModelProto`` in onnx/onnx.proto3). Its ``metadata_props``, field 14, are
messages of a key (field 1) and a value (field 2). The reader skips every other field of the outermost message by its
length, the weights among them, so a large net takes no longer than a small one.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import BinaryIO

from trtseg.errors import ModelError
from trtseg.spec import METADATA_KEY, ModelSpec

_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def spec_in(file: BinaryIO) -> ModelSpec:
    """Read the spec that an ONNX file holds.

    Parameters
    ----------
    file : binary file
        The ONNX file, opened at its start; it must be seekable.

    Raises
    ------
    ModelError
        The file is no ONNX file, or holds no spec that can be read.
    """
    try:
        found = _metadata(file).get(METADATA_KEY)
    except (ValueError, KeyError) as error:
        raise ModelError(f"not an ONNX file ({error}); export the model again") from error
    if found is None:
        raise ModelError("the ONNX file holds no spec; export the model again")
    return ModelSpec.from_json(found)


def check_spec(onnx: bytes, spec: ModelSpec) -> None:
    """Refuse a net whose file holds another spec than ``spec``, the one in use.

    Raises
    ------
    ModelError
        The file is no ONNX file, holds no spec, or holds another one.
    """
    try:
        found = spec_in(io.BytesIO(onnx))
    except ModelError as error:
        raise ModelError(f"{spec.role} net: {error}") from error
    differing = [name for name, value in vars(spec).items() if getattr(found, name) != value]
    if differing:
        raise ModelError(
            f"{spec.role} net: the spec in this ONNX file differs from the model's ({', '.join(differing)}); export or "
            "install the model again"
        )


def _metadata(file: BinaryIO) -> dict[str, str]:
    found = {}
    for number, size in _fields(file):
        if number == _METADATA_PROPS:
            pair = io.BytesIO(file.read(size))
            texts = {key: str(pair.read(length), "utf-8") for key, length in _fields(pair)}
            found[texts[_KEY]] = texts.get(_VALUE, "")
    return found


def _fields(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield number and size of each field that holds bytes, with the file at its content; skip all others."""
    end = file.seek(0, os.SEEK_END)
    at = file.seek(0)
    while at < end:
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _varint(file)
            at = file.tell()
        elif kind in (_FIXED64, _FIXED32):
            at = file.tell() + (8 if kind == _FIXED64 else 4)
        elif kind == _BYTES:
            size = _varint(file)
            at = file.tell() + size
            if at > end:
                break
            yield number, size
        else:
            raise ValueError(f"field {number} is of the unknown kind {kind}")
        file.seek(at)
    if at != end:
        raise ValueError("it is cut off")


def _varint(file: BinaryIO) -> int:
    """Read a number of seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it is cut off")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number in it is too long")
