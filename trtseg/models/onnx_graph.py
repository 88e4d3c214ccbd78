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
from trtseg.models.protobuf import Value, bytes_of, grouped, text_of, varint

_GRAPH, _FUNCTION = 7, 25  # of the model
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _SPARSE = 1, 5, 11, 12, 15  # of the graph
_FROM, _TO, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7  # of a node
_KEY, _FLOAT, _NUMBER, _STRING, _SOME_FLOATS, _NUMBERS = 1, 2, 3, 4, 7, 8  # of an attribute
_DIMENSION, _TYPE, _FLOATS, _INT32S, _NAME, _RAW, _DOUBLES, _WHERE = 1, 2, 4, 5, 8, 9, 10, 14  # of a tensor
_EXTERNAL = 13  # of a tensor: in which file its values are
_NODE_OF_FUNCTION, _DEFAULT = 7, 11  # of a function
_TENSORS, _GRAPHS, _SPARSES = (5, 10), (6, 11), (22, 23)  # of an attribute
#: Element types by their number: FP32, and integers of eight bits.
_TYPES = {1: "<f4", 2: "u1", 3: "i1"}
_FP32, _FP16, _FP64, _BF16 = 1, 10, 11, 16

_Fields = dict[int, list[Value]]  # of a message, by their numbers


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
        model = grouped(memoryview(onnx))
        (graph,) = model[_GRAPH]
        if _FUNCTION in model:
            raise ValueError("it defines operators")
        parts = grouped(graph)
        if _SPARSE in parts:
            raise ValueError("it has sparse tensors")
        weights = [_tensor(value) for value in parts.get(_INITIALIZER, [])]
        nodes = tuple(_node(value) for value in parts.get(_NODE, []))
        inputs, outputs = (
            tuple(text_of(grouped(value)[1][0]) for value in parts.get(number, []))
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


def check_onnx(onnx: bytes) -> None:
    """Refuse an ONNX file with tensors in other files, with NaN or infinity, or with nodes that come too early.

    Nets with NaN may find no liver anywhere. Infinity is none of a weight, but may be an attribute, as of what limits
    nothing. Of other files no hash is known, and runtimes look for them in the folder that the process is in. Some
    runtimes never come to an end of nodes that need each other.

    Raises
    ------
    ModelError
        It is no ONNX file, or one of these. It says which tensor or value.
    """
    try:
        model = grouped(memoryview(onnx))
        tensors: list[tuple[_Fields, bool]] = []
        for parts in map(grouped, model.get(_GRAPH, [])):
            tensors += _inside([], *(parts.get(number, []) for number in (_NODE, _INITIALIZER, _SPARSE)))
        for parts in map(grouped, model.get(_FUNCTION, [])):
            tensors += _inside(parts.get(_DEFAULT, []), parts.get(_NODE_OF_FUNCTION, []), [], [])
        for tensor, _ in tensors:
            if _EXTERNAL in tensor or any(tensor.get(_WHERE, [])):
                raise ModelError(
                    f"{_name(tensor)} has its values in another file; export the model again, into one file"
                )
        for parts in map(grouped, model.get(_GRAPH, [])):
            _check_order(parts)
        bad = [_name(tensor) for tensor, is_weight in tensors if not _is_sound(tensor, is_weight)]
    except (ValueError, LookupError, RecursionError) as error:
        said = "a field is missing" if isinstance(error, LookupError) else error
        raise ModelError(f"not an ONNX file ({said}); export the model again") from error
    if bad:
        raise ModelError(
            f"got NaN or infinity in {', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}; expected finite weights: "
            "export the model again, or train it again where its checkpoint holds them too"
        )


def _check_order(graph: _Fields) -> None:
    """Refuse a graph, the fields of it, in which a node uses a value before it is made."""
    known = {text_of(grouped(value)[1][0]) for value in graph.get(_INPUT, [])}
    known |= {_name(grouped(value)) for value in graph.get(_INITIALIZER, [])}
    known |= {_name(grouped(grouped(value)[1][0])) for value in graph.get(_SPARSE, [])}
    for node in map(grouped, graph.get(_NODE, [])):
        if early := {*map(text_of, node.get(_FROM, []))} - {*known, ""}:
            raise ModelError(
                f"a node uses {', '.join(sorted(early))} before any has made it; export the model again, or sort its "
                "nodes"
            )
        known |= {*map(text_of, node.get(_TO, []))}


def _name(tensor: _Fields) -> str:
    return text_of(tensor.get(_NAME, [memoryview(b"")])[0]) or "a constant"


def _inside(
    attributes: list[Value], nodes: list[Value], tensors: list[Value], sparse: list[Value]
) -> Iterator[tuple[_Fields, bool]]:
    """The fields of all tensors and whether it is a weight, also of those in an attribute, and in a graph that is one.

    Numbers that are an attribute come as a tensor with the name of the attribute.
    """
    attributes, weights, sparse = [*attributes], [*tensors], [*sparse]
    constants: list[Value] = []
    graphs: list[Value] = []
    for node in nodes:
        attributes += grouped(node).get(_ATTRIBUTE, [])
    for attribute in map(grouped, attributes):
        if floats := [*attribute.get(_FLOAT, []), *attribute.get(_SOME_FLOATS, [])]:
            yield {_NAME: attribute[_KEY], _TYPE: [_FP32], _FLOATS: floats}, False
        for found, numbers in ((constants, _TENSORS), (sparse, _SPARSES), (graphs, _GRAPHS)):
            found += (value for number in numbers for value in attribute.get(number, []))
    for one in map(grouped, sparse):
        weights += (value for number in (1, 2) for value in one.get(number, []))  # values, and their places
    yield from ((grouped(tensor), True) for tensor in weights)
    yield from ((grouped(tensor), False) for tensor in constants)
    for graph in map(grouped, graphs):
        yield from _inside([], *(graph.get(number, []) for number in (_NODE, _INITIALIZER, _SPARSE)))


def _is_sound(tensor: _Fields, is_weight: bool) -> bool:
    """Whether no number is NaN, nor of a weight infinite."""
    (kind,) = tensor.get(_TYPE, [0])
    raw = b"".join(map(bytes_of, tensor.get(_RAW, [])))
    if kind in (_FP16, _BF16):
        numbers = np.array(_integers(tensor.get(_INT32S, []))).astype("<u2")  # bits of a number in an integer
        infinite = 0x7C00 if kind == _FP16 else 0x7F80
        size = np.frombuffer(raw + numbers.tobytes(), "<u2") & 0x7FFF  # without the sign
        return bool((size < infinite if is_weight else size <= infinite).all())
    if kind in (_FP32, _FP64):
        field, dtype = (_FLOATS, "<f4") if kind == _FP32 else (_DOUBLES, "<f8")
        raw += b"".join(map(bytes_of, tensor.get(field, [])))
        values = np.frombuffer(raw, dtype)
        return bool(np.isfinite(values).all() if is_weight else not np.isnan(values).any())
    return True


def _check_once(names: list[str]) -> None:
    """Refuse a name that stands for two values: each runtime would take another of them."""
    seen = set[str]()
    for name in names:
        if name in seen:
            raise ValueError(f"it has two values with the name {name}")
        seen.add(name)


def _node(data: Value) -> Node:
    parts = grouped(data)
    inputs, outputs = (tuple(map(text_of, parts.get(number, []))) for number in (_FROM, _TO))
    numbers = {}
    for value in parts.get(_ATTRIBUTE, []):
        attribute = grouped(value)
        if [*map(text_of, attribute.get(_STRING, []))] != ["NOTSET"]:
            found = [*attribute.get(_NUMBERS, []), *attribute.get(_NUMBER, [])]
            numbers[text_of(attribute[_KEY][0])] = _integers(found)
    operator = ".".join(
        name for number in (_DOMAIN, _OPERATOR) for name in map(text_of, parts.get(number, [])) if name
    )
    return Node(operator, inputs, outputs, numbers)


def _tensor(data: Value) -> tuple[str, NDArray[Any]]:
    parts = grouped(data)
    name, shape = text_of(parts[_NAME][0]), _integers(parts.get(_DIMENSION, []))
    (number,) = parts[_TYPE]
    if number not in _TYPES or any(length < 0 for length in shape):
        raise ValueError(f"{name} has another type or shape")
    dtype = np.dtype(_TYPES[number])
    if parts.get(_WHERE, [0]) != [0]:
        raise ValueError(f"{name} has its values elsewhere")
    if _RAW in parts:
        values = np.frombuffer(bytes_of(parts[_RAW][0]), dtype)
    elif dtype.kind == "f" and _FLOATS in parts:
        values = np.frombuffer(b"".join(map(bytes_of, parts[_FLOATS])), dtype)
    elif dtype.kind != "f" and _INT32S in parts:
        values = np.array(_integers(parts[_INT32S])).astype(dtype)
    else:
        raise ValueError(f"{name} has its values elsewhere")
    return name, values.astype(dtype.newbyteorder("=")).reshape(shape)


def _integers(values: list[Value]) -> tuple[int, ...]:
    """Signed integers, of which several may be packed into one field."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = varint(value, at)
            found.append(number)
    return tuple(number - (number >> 63 << 64) for number in found)
