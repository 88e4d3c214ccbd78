"""What an INT8 file says of its values, apart from the graph that it computes.

QuantizeLinear and DequantizeLinear stand in such a file between the operators of the net: an activation is brought to
eight bits and back, weights are stored in eight bits. `without_steps` takes these nodes away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trtseg.errors import ModelError
from trtseg.models.onnx_graph import Graph, Node

_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Steps:
    """How eight bits stand for a value: ``value = scale * integer``, and ``integer + zero`` is a byte from 0 to 255.

    Attributes
    ----------
    scale : float
        Of an activation.
    zero : int
        128 where the integers are signed, else 0.
    """

    scale: float
    zero: int


@dataclass(frozen=True)
class Scales:
    """What eight bits of weights are multiplied with.

    Attributes
    ----------
    values : numpy.ndarray
        float64, one or one for each length of an axis.
    axis : int or None
        That axis; None for a single scale.
    """

    values: NDArray[np.float64]
    axis: int | None


def without_steps(graph: Graph) -> tuple[Graph, dict[str, Steps], dict[str, Scales]]:
    """Take QuantizeLinear and DequantizeLinear out of a graph.

    Returns
    -------
    Graph
        The other nodes. Weights keep their eight bits.
    dict
        The steps of each activation that was brought to eight bits.
    dict
        The scales of each tensor of weights.

    Raises
    ------
    ModelError
        A zero point is not 0, or a value is read in other ways than brought to eight bits and back once.
    """
    tensors, names = graph.tensors, dict[str, str]()  # what a node now reads instead
    steps, integers, scales = (
        dict[str, Steps](),
        dict[str, tuple[str, str, str]](),
        dict[str, NDArray[np.float64]](),
    )
    nodes: list[Node] = []
    read: list[str] = []
    for node in graph.nodes:
        if node.operator not in (_QUANTISE, _DEQUANTISE):
            read += node.inputs
            nodes.append(
                Node(node.operator, tuple(names.get(v, v) for v in node.inputs), node.outputs, node.numbers)
            )
            continue
        (source, scale, zero), (result,) = node.inputs, node.outputs
        if tensors[zero].any() or node.numbers.keys() - {"axis"}:
            raise _unknown(node)
        if node.operator == _QUANTISE:
            if source in steps or source in names or tensors[scale].size != 1:
                raise _unknown(node)
            steps[source] = Steps(float(tensors[scale].item()), 128 if tensors[zero].dtype == np.int8 else 0)
            integers[result] = source, scale, zero
        elif source in tensors:
            weights, values = tensors[source], tensors[scale].astype(np.float64)
            axis = None if values.ndim == 0 else node.numbers.get("axis", (1,))[0] % weights.ndim
            length = 1 if axis is None else weights.shape[axis]
            if weights.dtype != np.int8 or values.size != length or source in scales:
                raise _unknown(node)
            names[result], scales[source] = source, Scales(values.reshape(-1), axis)
        else:
            name, *own = integers[source]
            if any(
                not np.array_equal(tensors[a], tensors[b]) for a, b in zip(own, (scale, zero), strict=True)
            ):
                raise _unknown(node)
            names[result] = name
    exact = steps.keys() & {*read, *graph.outputs}
    if exact or integers.keys() & {*read, *graph.outputs}:
        raise ModelError(f"it reads {', '.join(sorted(exact)) or 'integers'} without steps, too")
    return Graph(tuple(nodes), tensors, graph.inputs, graph.outputs), steps, scales


def _unknown(node: Node) -> ModelError:
    return ModelError(f"it has {node.operator} {node.numbers} of {', '.join(node.inputs)}, of another kind")
