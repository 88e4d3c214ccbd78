"""The ModelSpec in the metadata of an ONNX file, read without an ONNX library.

An ONNX file is a protocol-buffer message (``ModelProto`` in onnx/onnx.proto3). Its ``metadata_props``, field 14, are
messages of a key (field 1) and a value (field 2).
"""

from __future__ import annotations

import mmap

from trtseg.errors import ModelError
from trtseg.models.protobuf import grouped, text_of
from trtseg.spec import METADATA_KEY, ModelSpec

_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2


def spec_in(onnx: bytes | mmap.mmap) -> ModelSpec:
    """Read the spec that an ONNX file holds.

    Raises
    ------
    ModelError
        The file is no ONNX file, or holds no spec that can be read.
    """
    try:
        pairs = map(grouped, grouped(memoryview(onnx)).get(_METADATA_PROPS, []))
        texts = {text_of(pair[_KEY][-1]): text_of(pair[_VALUE][-1]) for pair in pairs if _VALUE in pair}
        found = texts.get(METADATA_KEY)
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
        found = spec_in(onnx)
    except ModelError as error:
        raise ModelError(f"{spec.role} net: {error}") from error
    differing = [name for name, value in vars(spec).items() if getattr(found, name) != value]
    if differing:
        raise ModelError(
            f"{spec.role} net: the spec in this ONNX file differs from the model's ({', '.join(differing)}); export or "
            "install the model again"
        )
