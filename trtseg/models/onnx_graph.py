"""The graph of an ONNX file, read without an ONNX library: nodes in order, and tensors in FP32 or eight bits.

Numbers of fields are those of onnx/onnx.proto3. Files with external data, and what nets do not have, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtseg.errors import ModelError

_GRAPH, _FUNCTION = 7, 25  # of the model
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _SPARSE = 1, 5, 11, 12, 15  # of the graph
_FROM, _TO, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7  # of a node
_KEY, _NUMBER, _STRING, _NUMBERS = 1, 3, 4, 8  # of an attribute
_DIMENSION, _TYPE, _FLOATS, _INT32S, _NAME, _RAW, _WHERE = 1, 2, 4, 5, 8, 9, 14  # of a tensor
#: Element types by their number: FP32, and integers of eight bits.
_TYPES = {1: "<f4", 2: "u1", 3: "i1"}


@dataclass(frozen=True)
class Node:
    """An operator.

    Attributes
    ----------
    operator : str
        As ONNX calls it; of another set of operators with its domain in front.
    inputs, outputs : tuple of str
        Names of values.
    numbers : dict
        Its attributes: integers, or lists of them. An attribute of another kind is an empty tuple, and ``NOTSET``,
        which stands for the default, is left out.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Graph:
    """What an ONNX file computes: nodes in order, tensors by name, and the names of its inputs and outputs.

    Names of tensors are left out of ``inputs``.
    """

    nodes: tuple[Node, ...]
    tensors: dict[str, NDArray[Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_graph(onnx: bytes) -> Graph:
    """Read the graph of an ONNX file.

    Raises
    ------
    ModelError
        It is no ONNX file, a name in it stands for two values, or its weights are not in FP32 or eight bits, and in the
        file.
    """
    try:
        model = _grouped(memoryview(onnx))
        (graph,) = model[_GRAPH]
        if _FUNCTION in model:
            raise ValueError("it defines operators")
        parts = _grouped(graph)
        if _SPARSE in parts:
            raise ValueError("it has sparse tensors")
        weights = [_tensor(value) for value in parts.get(_INITIALIZER, [])]
        nodes = tuple(_node(value) for value in parts.get(_NODE, []))
        inputs, outputs = (
            tuple(_text(_grouped(value)[1][0]) for value in parts.get(number, []))
            for number in (_INPUT, _OUTPUT)
        )
        tensors = dict(weights)
        inputs = tuple(name for name in inputs if name not in tensors)
        made = [name for node in nodes for name in node.outputs if name]  # one that is left out has none
        _check_once([*inputs, *(name for name, _ in weights), *made])
    except (ValueError, KeyError, IndexError) as error:
        raise ModelError(
            f"not an ONNX file with weights in FP32 or eight bits ({error}); export the model again"
        ) from error
    return Graph(nodes, tensors, inputs, outputs)


def _check_once(names: list[str]) -> None:
    """Refuse a name that stands for two values: each runtime would take another of them."""
    seen = set[str]()
    for name in names:
        if name in seen:
            raise ValueError(f"it has two values with the name {name}")
        seen.add(name)


# What a field holds: a number, or bytes.
_Value = int | memoryview


def _node(data: _Value) -> Node:
    parts = _grouped(data)
    inputs, outputs = (tuple(map(_text, parts.get(number, []))) for number in (_FROM, _TO))
    numbers = {}
    for value in parts.get(_ATTRIBUTE, []):
        attribute = _grouped(value)
        if [*map(_text, attribute.get(_STRING, []))] != ["NOTSET"]:
            found = [*attribute.get(_NUMBERS, []), *attribute.get(_NUMBER, [])]
            numbers[_text(attribute[_KEY][0])] = _integers(found)
    operator = ".".join(
        text for number in (_DOMAIN, _OPERATOR) for text in map(_text, parts.get(number, [])) if text
    )
    return Node(operator, inputs, outputs, numbers)


def _tensor(data: _Value) -> tuple[str, NDArray[Any]]:
    parts = _grouped(data)
    name, shape = _text(parts[_NAME][0]), _integers(parts.get(_DIMENSION, []))
    (number,) = parts[_TYPE]
    if number not in _TYPES or any(length < 0 for length in shape):
        raise ValueError(f"{name} has another type or shape")
    dtype = np.dtype(_TYPES[number])
    if parts.get(_WHERE, [0]) != [0]:
        raise ValueError(f"{name} has its values elsewhere")
    if _RAW in parts:
        values = np.frombuffer(_bytes(parts[_RAW][0]), dtype)
    elif dtype.kind == "f" and _FLOATS in parts:
        values = np.frombuffer(b"".join(map(_bytes, parts[_FLOATS])), dtype)
    elif dtype.kind != "f" and _INT32S in parts:
        values = np.array(_integers(parts[_INT32S])).astype(dtype)
    else:
        raise ValueError(f"{name} has its values elsewhere")
    return name, values.astype(dtype.newbyteorder("=")).reshape(shape)


def _integers(values: list[_Value]) -> tuple[int, ...]:
    """Signed integers, of which several may be packed into one field."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            found.append(number)
    return tuple(number - (number >> 63 << 64) for number in found)


def _text(value: _Value) -> str:
    return str(_bytes(value), "utf-8")


def _grouped(message: _Value) -> dict[int, list[_Value]]:
    """Values of a message by the number of their field, in order."""
    groups: dict[int, list[_Value]] = {}
    for number, value in _fields(_bytes(message)):
        groups.setdefault(number, []).append(value)
    return groups


def _bytes(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a field holds a number instead of bytes")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, _Value]]:
    """Number and value of each field of a protocol-buffer message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"field {tag >> 3} is of the unknown kind {kind}")
        if at + size > len(data):
            raise ValueError("it is cut off")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
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
