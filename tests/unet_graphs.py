"""U-Nets in ONNX with random weights, which tests change."""

from __future__ import annotations

import numpy as np
import tiny
from onnx import TensorProto, helper, numpy_helper

from trtseg.spec import METADATA_KEY

SPEC = tiny.spec("liver", size=(16, 16))
CONV = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
HALVE = {"kernel_shape": [2, 2], "strides": [2, 2]}
#: Classes, width, depth, channels of the stem, and sizes of slices of nets that `unet` makes.
UNETS = [
    (1, 8, 2, 0, (20, 28)),
    (3, 16, 3, 8, (64, 80)),
    (1, 24, 2, 16, (40, 48)),
    (3, 40, 1, 0, (22, 14)),
    (2, 16, 0, 8, (10, 12)),
]


def exact(data, x):
    """What a file says in FP32 arithmetic, by ONNX Runtime without any fusion."""
    import onnxruntime  # not all that make graphs have it

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


class Graph:
    """A U-Net with one pooling in ONNX, which a case changes."""

    def __init__(self, width=8):
        self.rng, self.tensors, self.inputs, self.outputs = np.random.default_rng(0), {}, ["x"], ["logits"]
        self.width, self.channels, self.nodes = width, {"x": 1}, []
        self.conv("x", "a0").add("Relu", "a0", "a").conv("a", "s0").add("Relu", "s0", "s")
        self.add("MaxPool", "s", "p", **HALVE).conv("p", "d0").add("Relu", "d0", "d")
        self.up("d", "u").add("Concat", ["s", "u"], "c", axis=1)
        self.channels["c"] = 2 * width
        self.conv("c", "e0").add("Relu", "e0", "e").conv("e", "logits", 1, (1, 1, 1), kernel_shape=[1, 1])

    def weigh(self, result, *shape, out=None):
        fan = np.prod(shape) / (out or shape[0])
        self.tensors[f"{result}.w"] = self.rng.normal(0, 1.5 / fan**0.5, shape).astype(np.float32)
        self.tensors[f"{result}.b"] = self.rng.normal(0, 0.3, out or shape[0]).astype(np.float32)

    def add(self, operator, inputs, result, **attributes):
        inputs = [inputs] if isinstance(inputs, str) else inputs
        self.channels.setdefault(result, self.channels[inputs[0]])
        self.nodes.append(helper.make_node(operator, inputs, [result], **attributes))
        return self

    def conv(self, source, result, out=None, shape=(1, 3, 3), **attributes):
        out = self.width if out is None else out
        self.weigh(result, out, self.channels[source] * shape[0], *shape[1:])
        self.channels[result] = out
        return self.add("Conv", [source, f"{result}.w", f"{result}.b"], result, **(attributes or CONV))

    def up(self, source, result, **attributes):
        self.weigh(result, self.channels[source], self.width, 2, 2, out=self.width)
        self.channels[result] = self.width
        return self.add(
            "ConvTranspose", [source, f"{result}.w", f"{result}.b"], result, **(attributes or HALVE)
        )

    def at(self, result):
        return next(i for i, node in enumerate(self.nodes) if result in node.output)

    def node(self, result):
        return self.nodes[self.at(result)]

    def change(self, result, operator=None, inputs=None, **attributes):
        """Replace a node's operator, inputs, or some of its attributes (None: leave one away)."""
        old = self.node(result)
        kept = {a.name: helper.get_attribute_value(a) for a in old.attribute} | attributes
        self.nodes[self.at(result)] = helper.make_node(
            operator or old.op_type,
            list(inputs or old.input),
            list(old.output),
            **{key: value for key, value in kept.items() if value is not None},
        )
        return self

    def move(self, result, before):
        """Bring the last node in front of another one."""
        self.nodes.insert(self.at(before), self.nodes.pop(self.at(result)))
        return self

    def model(self, spec=SPEC):
        def value(name):
            shape = (
                list(self.tensors[name].shape)
                if name in self.tensors
                else ["n", self.channels[name], None, None]
            )
            if name in ("x", "logits"):
                shape[2:] = spec.size
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes,
            "net",
            [value(name) for name in self.inputs],
            [value(name) for name in self.outputs],
            [numpy_helper.from_array(array, name) for name, array in self.tensors.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
        return model.SerializeToString()


def unet(classes, width, depth, stem):
    """The graph of `training.unet`."""
    graph = Graph(width)
    graph.nodes, source, skips = [], "x", []

    def both(name, source, out):
        graph.conv(source, f"{name}0", out).add("Relu", f"{name}0", f"{name}1")
        graph.conv(f"{name}1", f"{name}2", out).add("Relu", f"{name}2", f"{name}3")
        return f"{name}3"

    if stem:
        graph.conv("x", "t", stem, (1, 4, 4), kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4).add(
            "Relu", "t", "tt"
        )
        source = "tt"
    for level in range(depth + 1):
        if level:
            graph.add("MaxPool", source, f"pool{level}", **HALVE)
            source = f"pool{level}"
        source = both(f"down{level}", source, width << level)
        skips.append(source)
    for level in range(depth)[::-1]:
        graph.width = width << level
        graph.up(source, f"up{level}").add("Concat", [skips[level], f"up{level}"], f"joined{level}", axis=1)
        graph.channels[f"joined{level}"] = 2 * graph.width
        source = both(f"merge{level}", f"joined{level}", graph.width)
    graph.width = classes
    if stem:
        graph.channels["logits"] = classes
        graph.up(source, "logits")
    else:
        graph.conv(source, "logits", classes, (1, 1, 1), kernel_shape=[1, 1])
    return graph
