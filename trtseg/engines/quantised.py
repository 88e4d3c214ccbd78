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
    found = _Found(graph)
    nodes = []
    read = {*graph.outputs}
    for node in graph.nodes:
        if node.operator == "QuantizeLinear":
            found.quantised(node)
        elif node.operator == "DequantizeLinear":
            found.dequantised(node)
        else:
            read |= {*node.inputs}
            inputs = tuple(found.names.get(name, name) for name in node.inputs)
            nodes.append(Node(node.operator, inputs, node.outputs, node.numbers))
    exact = read & {*found.steps, *found.integers, *found.scales}
    if exact:
        raise ModelError(f"it reads {', '.join(sorted(exact))} without steps and scales, too")
    return Graph(tuple(nodes), graph.tensors, graph.inputs, graph.outputs), found.steps, found.scales


class _Found:
    """What nodes for eight bits say, one after the other."""

    def __init__(self, graph: Graph) -> None:
        self._tensors = graph.tensors
        self.integers: dict[str, tuple[str, ...]] = {}  # what they stand for, scale and zero point
        self.names: dict[str, str] = {}  # what others read instead
        self.steps: dict[str, Steps] = {}
        self.scales: dict[str, Scales] = {}

    def quantised(self, node: Node) -> None:
        """An activation is brought to eight bits."""
        name, scale, zero = node.inputs
        value, dtype = float(self._tensors[scale].item()), self._tensors[zero].dtype
        if not 0 < value < np.inf or name in self.steps or name in self.names or self._is_shifted(node):
            raise _unknown(node)
        self.steps[name] = Steps(value, 128 if dtype == np.int8 else 0)
        self.integers[node.outputs[0]] = node.inputs

    def dequantised(self, node: Node) -> None:
        """An activation is brought back, or weights are."""
        source, scale, zero = node.inputs
        if self._is_shifted(node):
            raise _unknown(node)
        if source not in self._tensors:
            name, *own = self.integers[source]
            for a, b in zip(own, (scale, zero), strict=True):
                first, second = self._tensors[a], self._tensors[b]
                if first.dtype != second.dtype or not np.array_equal(first, second):
                    raise _unknown(node)
            self.names[node.outputs[0]] = name
            return
        weights, values = self._tensors[source], self._tensors[scale].astype(np.float64)
        axis = None if values.ndim == 0 else range(weights.ndim)[node.numbers.get("axis", (1,))[0]]
        shape = () if axis is None else (weights.shape[axis],)
        are_int8 = weights.dtype == self._tensors[zero].dtype == np.int8
        if not are_int8 or values.shape != shape or source in self.scales:
            raise _unknown(node)
        self.names[node.outputs[0]] = source
        self.scales[source] = Scales(values.reshape(-1), axis)

    def _is_shifted(self, node: Node) -> bool:
        """Whether a node has a zero point that is not 0, or an attribute that is not known here."""
        return bool(self._tensors[node.inputs[2]].any() or node.numbers.keys() - {"axis"})


def _unknown(node: Node) -> ModelError:
    return ModelError(f"it has {node.operator} {node.numbers} of {', '.join(node.inputs)}, of another kind")
