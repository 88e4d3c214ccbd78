"""The CPU engine of trtseg itself: U-Nets in FP32 and INT8.

In FP32, Winograd's F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308) computes 16 outputs of a 3x3 convolution from 36
products instead of 144. The logits differ from those of other FP32 engines by rounding only. The 16 share what is
rounded, so that a huge one spoils a small one beside it: nets with huge weights are left to other engines. OpenVINO,
ONNX Runtime and PyTorch compute every product.

In INT8, sums of products are integers and exact: logits are the same, bit for bit, on all processors and with any
number of threads.

Around the body the liver net sees zeros, and around the liver the tumour net does. What a layer makes of zeros alone is
known from an empty slice, and is not computed again. ``python -m benchmarks.engines`` compares it with OpenVINO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtseg import _core
from trtseg.engines.base import Net
from trtseg.engines.precision import FP32, INT8, Precision
from trtseg.engines.quantised import Scales, Steps, without_steps
from trtseg.errors import ModelError
from trtseg.models.onnx_graph import Graph, Node, read_graph
from trtseg.resources import available_cpus, memory_for

# Attributes of convolutions and poolings, and what they are where a node does not say. `_geometry` counts on the order.
_DEFAULTS = {"kernel_shape": 0, "strides": 1, "pads": 0}
_DEFAULTS |= {"dilations": 1, "group": 1, "output_padding": 0, "ceil_mode": 0, "storage_order": 0}
#: Bytes of a net, and of a slice on its way or of the empty one.
_MEMORY = {FP32: (24 << 20, 18 << 20), INT8: (3 << 20, 5 << 20)}
_HUGE = 1e4  # weights, from which Winograd's rounding can change labels
_SLICES = 16  # on their way at most: those of a chunk of the cascade

#: Number of a map, first channel, channels.
_Part = tuple[int, int, int]


def has_instructions(precision: Precision) -> bool:
    """Whether this processor has the instructions with which trtseg's own engine computes in a precision."""
    if not _core.Net.is_supported():
        return False
    return precision is FP32 or (precision is INT8 and _core.Net.int8_instructions() != ["portable"])


class UNetEngine:
    """A net on the CPU in FP32 or INT8: a slice a thread, or all threads on a single slice.

    Parameters
    ----------
    net : Net
        A U-Net as `training.unet` makes it. Channels are a multiple of 8, except those of the input and the logits.
        Weights and activations are FP32, or have eight bits behind the first convolution.
    threads : int, optional
        Threads of the net; by default one for each processor that this process may use.

    Raises
    ------
    ModelError
        The net is another one, or this processor lacks the instructions.
    """

    device = "cpu"
    runtime = "trtseg"
    batch = None
    dtype = FP32.dtype

    def __init__(self, net: Net, threads: int | None = None) -> None:
        if not _core.Net.is_supported():
            raise ModelError("this processor has no AVX2 and FMA; use another engine")
        if net.precision not in _MEMORY:
            raise ModelError(f"precision: got {net.precision.name!r}; this engine runs 'fp32' and 'int8'")
        self.spec, self.side_by_side = net.spec, threads or available_cpus()
        self.precision = net.precision.name
        slices = min(self.side_by_side, _SLICES)
        try:
            weights, maps = _MEMORY[net.precision]
            with memory_for(f"{net.spec.role} net", weights + (slices + 1) * maps):
                self._net = _built(read_graph(net.onnx), net)
                self._net.reserve(slices, self.side_by_side)
        except (ModelError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ModelError(f"{net.spec.role} net: not for trtseg's own engine ({error})") from error

    def run(
        self,
        src: NDArray[Any],
        dst: NDArray[Any],
        stream: int = 0,
        *,
        wanted: NDArray[np.bool_] | None = None,
    ) -> None:
        """Compute logits ``dst`` ``[n, channels, H, W]`` of slices ``src`` ``[n, 1, H, W]``; ``stream`` is not used.

        Of each layer only the tiles are computed on which logits depend that are ``wanted`` ``[n, H, W]``; these logits
        are the same, bit for bit.
        """
        self._net.run(src, dst, wanted, self.side_by_side)


@dataclass
class _Layer:
    """A convolution with what follows it: a ReLU, and the largest of each 2x2 pixels."""

    node: Node
    result: str
    has_relu: bool = False
    pool: str | None = None


def _layers(graph: Graph) -> tuple[list[_Layer], dict[str, str]]:
    """The convolutions in order, and for each value that is joined with others the name of what they make together."""
    layers: dict[str, _Layer] = {}  # by what they result in
    joined: dict[str, str] = {}
    for node in graph.nodes:
        result = node.outputs[0]
        if node.operator in ("Conv", "ConvTranspose") and len(node.inputs) == 3:
            layers[result] = _Layer(node, result)
            continue
        layer = layers.get(node.inputs[0])
        if node.operator == "Relu" and layer and layer.pool is None:
            layers[result] = layers.pop(layer.result)
            layer.result, layer.has_relu = result, True
        elif node.operator == "MaxPool" and layer and layer.pool is None and _geometry(node) == (2, 2, 0):
            layer.pool = result
        elif (
            node.operator == "Concat"
            and node.numbers == {"axis": (1,)}
            and len({*node.inputs} - joined.keys()) == len(node.inputs)
        ):
            joined |= dict.fromkeys(node.inputs, result)
        else:
            raise _unknown(node)
    return list(layers.values()), joined


class _Maps:
    """Where the values of a net lie. Those with steps are bytes."""

    def __init__(
        self,
        net: _core.Net,
        graph: Graph,
        layers: list[_Layer],
        joined: dict[str, str],
        steps: dict[str, Steps],
    ) -> None:
        self._net, self._joined, self._own = net, joined, dict(steps)
        self._channels: dict[str, int] = {}
        for layer in layers:
            weights = graph.tensors[layer.node.inputs[1]]
            count = weights.shape[0 if layer.node.operator == "Conv" else 1]
            self._channels |= {value: count for value in (layer.result, layer.pool) if value is not None}
            if layer.pool is not None and layer.result in steps:  # a maximum has the steps of its values
                self._own[layer.pool] = steps[layer.result]
        self._maps: dict[str, int] = {}
        self._sizes: dict[str, tuple[int, int]] = {}

    def size(self, value: str) -> tuple[int, int]:
        """Rows and columns of a value that has been made."""
        return self._sizes[value]

    def steps(self, value: str) -> Steps | None:
        """The steps of a value; None where it is FP32."""
        found = {self._own.get(other) for other in self._together(value)}
        if len(found) != 1:
            raise ModelError(f"it joins values with different steps to {value}")
        return found.pop()

    def part(self, value: str) -> _Part:
        """Where a value that has been made lies."""
        whole = self._joined.get(value, value)
        together = self._together(whole)
        if value not in together:  # all of them
            return self._maps[whole], 0, sum(self._channels[other] for other in together)
        first = sum(self._channels[other] for other in together[: together.index(value)])
        return self._maps[whole], first, self._channels[value]

    def make(self, value: str, size: tuple[int, int]) -> _Part:
        """Make room for a value."""
        whole = self._joined.get(value, value)
        self._sizes[value] = self._sizes[whole] = size
        if whole not in self._maps:
            channels = sum(self._channels[other] for other in self._together(whole))
            steps = self.steps(whole)
            self._maps[whole] = self._net.add_map(*size, channels, None if steps is None else steps.zero)
        return self.part(value)

    def _together(self, whole: str) -> list[str]:
        return [value for value, name in self._joined.items() if name == whole] or [whole]


class _Numbers:
    """Weights of layers, and what makes values of their sums: biases, and in INT8 scales."""

    def __init__(self, graph: Graph, maps: _Maps, scales: dict[str, Scales]) -> None:
        self._graph, self._maps, self._scales = graph, maps, scales

    def of(self, layer: _Layer) -> tuple[NDArray[Any], ...]:
        """Weights as ONNX has them, in INT8 the scale of each sum, and biases; both in steps of the result."""
        source, weights, bias = layer.node.inputs
        steps, scales = self._maps.steps(layer.result), self._scales.get(weights)
        into = 1.0 if steps is None else steps.scale
        values, biases = np.ascontiguousarray(self._graph.tensors[weights]), self._graph.tensors[bias]
        exact = [biases] if scales is not None else [biases, values]
        if any(numbers.dtype != np.float32 for numbers in exact):
            raise ModelError(f"it computes {layer.result} of numbers of another type")
        with np.errstate(over="ignore"):  # what is not finite is refused below
            biases = (biases / into).astype(np.float32)
            if source in self._graph.inputs and scales is None:
                found: tuple[NDArray[Any], ...] = (values / into).astype(np.float32), biases
            elif scales is None and steps is None and self._maps.steps(source) is None:
                found = values, biases
            else:
                found = values, self._scale(layer, scales, into, biases.shape), biases
        if not all(np.isfinite(numbers).all() for numbers in found):
            raise ModelError(f"it computes {layer.result} of numbers that are not finite")
        return found

    def _scale(
        self, layer: _Layer, scales: Scales | None, into: float, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """What sums of products are multiplied with."""
        before = self._maps.steps(layer.node.inputs[0])
        if scales is None or before is None:
            raise ModelError(f"it computes {layer.result} of numbers in FP32 and in eight bits")
        if scales.axis not in (None, 0 if layer.node.operator == "Conv" else 1):
            raise ModelError(f"it has scales of {layer.result} for other channels than it makes")
        return np.broadcast_to(scales.values * before.scale / into, shape).astype(np.float32)


def _built(graph: Graph, of: Net) -> _core.Net:
    """Make a net of a graph, layer by layer."""
    size = of.spec.size
    net = _core.Net(*size, of.spec.channels)
    graph, steps, scales = without_steps(graph)
    if bool(steps or scales) is not (of.precision is INT8):
        raise ModelError(f"it is no net in {of.precision.name}")
    layers, joined = _layers(graph)
    if len(graph.inputs) != 1 or graph.outputs != (layers[-1].result,) or layers[-1].has_relu:
        raise ModelError("it does not lead from one input to one last convolution")
    if steps.keys() - {layer.result for layer in layers[:-1]}:
        raise ModelError("it brings other values to eight bits than those of its layers")
    maps = _Maps(net, graph, layers, joined, steps)
    numbers = _Numbers(graph, maps, scales)
    for layer in layers:
        node, source = layer.node, layer.node.inputs[0]
        values = weights, *others = numbers.of(layer)
        kernel, stride, pad = geometry = _geometry(node)
        kind = node.operator, layer.has_relu, layer.pool is not None
        is_head = layer is layers[-1] and geometry == (kernel, kernel, 0)
        if source in graph.inputs and kind == ("Conv", True, False):
            rows, columns = ((length + 2 * pad - kernel) // stride + 1 for length in size)
            net.add_first(maps.make(layer.result, (rows, columns)), weights, others[-1], stride, pad)
        elif is_head and node.operator == "Conv" and kernel == 1:
            net.add_head(maps.part(source), np.ascontiguousarray(weights.swapaxes(0, 1)), *others)
        elif is_head and node.operator == "ConvTranspose":
            net.add_head(maps.part(source), *values)
        elif kind[:2] == ("Conv", True) and geometry == (3, 1, 1):
            rows, columns = maps.size(source)
            dst = maps.make(layer.result, (rows, columns))
            if np.abs(weights).max(initial=0) > _HUGE:  # those of eight bits are none
                raise ModelError(f"{layer.result} is computed with weights beyond {_HUGE:g}")
            pool = None if layer.pool is None else maps.make(layer.pool, (rows // 2, columns // 2))
            net.add_conv(maps.part(source), dst, pool, *values)
        elif kind == ("ConvTranspose", False, False) and geometry == (2, 2, 0):
            rows, columns = maps.size(source)
            net.add_up(maps.part(source), maps.make(layer.result, (2 * rows, 2 * columns)), *values)
        else:
            raise _unknown(node)
    return net


def _geometry(node: Node) -> tuple[int, int, int]:
    """Kernel size, stride and padding of a node, each the same on all sides."""
    values = {key: {default} for key, default in _DEFAULTS.items()}
    values |= {key: {*numbers} for key, numbers in node.numbers.items()}
    kernel, stride, pad, *others = values.values()
    if others != [{1}, {1}, {0}, {0}, {0}] or any(len(found) != 1 for found in (kernel, stride, pad)):
        raise _unknown(node)
    return kernel.pop(), stride.pop(), pad.pop()


def _unknown(node: Node) -> ModelError:
    return ModelError(
        f"it has {node.operator} {node.numbers} of {', '.join(node.inputs)}, which this engine does not run there"
    )
