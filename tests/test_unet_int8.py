"""trtseg's own engine in INT8 against ONNX Runtime, which computes what the file says in FP32."""

from __future__ import annotations

import types

import numpy as np
import pytest

from trtseg import _core, models
from trtseg.engines import open_engine
from trtseg.engines.base import Net, logits_of
from trtseg.engines.calibration import references
from trtseg.engines.openvino import OpenVinoEngine
from trtseg.engines.precision import BF16, FP32, INT8
from trtseg.engines.unet import UNetEngine, has_instructions
from trtseg.errors import ModelError

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")
from unet_graphs import SPEC, UNETS, Graph, exact, unet

pytestmark = pytest.mark.skipif(not _core.Net.is_supported(), reason="this processor has no AVX2 and FMA")

# Of logits of up to 4.4. A sum in FP32 may fall on the other side of a half than an exact one, and the value is a step
# larger or smaller then; measured: 0.14 and 0.016 for the deepest net, and less than 1e-4 for all others.
MOST, RMS = 0.25, 0.02
STEP = 0.03


def slices(n=3, spec=SPEC):
    return np.random.default_rng(3).random((n, 1, *spec.size), np.float32)


class Steps:
    """Brings a graph of `unet_graphs` to eight bits, as NNCF does; cases change what it adds."""

    def __init__(self, graph):
        self.graph, self.names = graph, {}
        self.joined = {name for node in graph.nodes if node.op_type == "Concat" for name in node.input}
        old, graph.nodes = graph.nodes, []
        for node in old:
            inputs = [self.names.get(name, name) for name in node.input]
            result = node.output[0]
            if node.op_type in ("Conv", "ConvTranspose") and node.input[0] != "x":
                inputs[1] = self.weights(inputs[1], 1 if node.op_type == "ConvTranspose" else 0)
            graph.nodes.append(node)
            graph.change(result, inputs=inputs)
            if result == "logits":
                continue
            if node.op_type in ("Relu", "ConvTranspose"):
                self.activation(result, result in self.joined or node.op_type == "ConvTranspose")

    def weights(self, name, axis):
        values = self.graph.tensors.pop(name)
        others = tuple(a for a in range(4) if a != axis)
        largest = np.abs(values).max(others, keepdims=True)
        scale = (largest / 127).astype(np.float32)
        self.graph.tensors[name] = np.rint(values / scale).astype(np.int8)
        self.graph.tensors[f"{name}.scale"] = scale.reshape(-1)
        self.graph.tensors[f"{name}.zero"] = np.zeros(scale.size, np.int8)
        names = [name, f"{name}.scale", f"{name}.zero"]
        self.graph.channels[name] = 1
        self.graph.add("DequantizeLinear", names, f"{name}.dq", axis=axis)
        return f"{name}.dq"

    def activation(self, name, signed):
        zero = np.array(0, np.int8 if signed else np.uint8)
        self.graph.tensors |= {
            f"{name}.scale": np.array(STEP * (1 + signed), np.float32),
            f"{name}.zero": zero,
        }
        steps = [f"{name}.scale", f"{name}.zero"]
        self.graph.add("QuantizeLinear", [name, *steps], f"{name}.q")
        self.graph.add("DequantizeLinear", [f"{name}.q", *steps], f"{name}.dq")
        self.names[name] = f"{name}.dq"


def quantised(graph):
    return Steps(graph).graph


def check(data, spec=SPEC):
    net, x = Net(spec, INT8, data), slices(3, spec)
    expected = exact(data, x)
    for threads in (1, 2):
        difference = logits_of(UNetEngine(net, threads), x) - expected
        assert np.abs(difference).max() < MOST
        assert np.sqrt(np.square(difference).mean()) < RMS
    assert np.ptp(expected) > 1


@pytest.mark.parametrize(("classes", "width", "depth", "stem", "size"), UNETS)
def test_unets(classes, width, depth, stem, size):
    spec = types.SimpleNamespace(role="liver", size=size, channels=classes, to_json=lambda: "")
    check(quantised(unet(classes, width, depth, stem)).model(spec), spec)


RUN = {
    "as it is": lambda g: None,
    "one scale for all weights": lambda g: g.tensors.update(
        {"d0.w.scale": g.tensors["d0.w.scale"].max().reshape(()), "d0.w.zero": np.array(0, np.int8)}
    ),
    "other steps": lambda g: g.tensors.update({"d.scale": np.array(0.07, np.float32)}),
    "signed, not joined": lambda g: g.tensors.update({"d.zero": np.array(0, np.int8)}),
}
LEFT_ALONE = {
    "zero point of a value": lambda g: g.tensors.update({"d.zero": np.array(3, np.uint8)}),
    "zero point of weights": lambda g: g.tensors.update({"d0.w.zero": np.full(8, 1, np.int8)}),
    "unsigned weights": lambda g: g.tensors.update(
        {"d0.w": g.tensors["d0.w"].astype(np.uint8), "d0.w.zero": np.zeros(8, np.uint8)}
    ),
    "weights with two scales": lambda g: (
        g.tensors.update({"other": g.tensors["d0.w.scale"] * np.float32(2)}),
        g.add("DequantizeLinear", ["d0.w", "other", "d0.w.zero"], "d0.w.dq2", axis=0).move("d0.w.dq2", "d0"),
    ),
    "joined with other steps": lambda g: g.tensors.update({"s.scale": np.array(0.05, np.float32)}),
    "joined with other zeros": lambda g: g.tensors.update({"s.zero": np.array(0, np.uint8)}),
    "a value that is exact, too": lambda g: g.change("c", inputs=["s", "u.dq"]),
    "a value that is always exact": lambda g: g.change("c", inputs=["s", "u"]),
    "exact maxima": lambda g: g.change("p", inputs=["s"]),
    "steps of the slice": lambda g: (
        g.tensors.update({"x.scale": np.array(1 / 255, np.float32), "x.zero": np.array(0, np.uint8)}),
        g.add("QuantizeLinear", ["x", "x.scale", "x.zero"], "x.q").move("x.q", "a0"),
        g.add("DequantizeLinear", ["x.q", "x.scale", "x.zero"], "x.dq").move("x.dq", "a0"),
        g.change("a0", inputs=["x.dq", "a0.w", "a0.b"]),
    ),
    "back with other steps": lambda g: (
        g.tensors.update({"other": np.array(0.05, np.float32)}),
        g.change("d.dq", inputs=["d.q", "other", "d.zero"]),
    ),
    "a scale that is not finite": lambda g: g.tensors.update(
        {"d0.w.scale": np.array([0.01] * 7 + [np.nan], np.float32)}
    ),
    "a step of 0": lambda g: g.tensors.update({"d.scale": np.array(0, np.float32)}),
    "a step below 0": lambda g: g.tensors.update({"d.scale": np.array(-0.07, np.float32)}),
    "a step without end": lambda g: g.tensors.update({"d.scale": np.array(np.inf, np.float32)}),
    "other steps of the same value": lambda g: (
        g.tensors.update({"other": np.array(0.05, np.float32)}),
        g.add("QuantizeLinear", ["d", "other", "d.zero"], "d.q2").move("d.q2", "c"),
    ),
    "a bias that is not finite": lambda g: g.tensors.update(
        {"d0.b": np.array([0] * 7 + [np.inf], np.float32)}
    ),
    "a bias in eight bits": lambda g: (
        g.tensors.update(
            {
                "d0.b": np.rint(g.tensors["d0.b"] * 100).astype(np.int8),
                "d0.b.scale": np.array(0.01, np.float32),
                "d0.b.zero": np.array(0, np.int8),
            }
        ),
        g.channels.update({"d0.b": 1}),
        g.add("DequantizeLinear", ["d0.b", "d0.b.scale", "d0.b.zero"], "d0.b.dq").move("d0.b.dq", "a0"),
        g.change("d0", inputs=["p", "d0.w.dq", "d0.b.dq"]),
    ),
    "weights along the other axis": lambda g: g.change("d0.w.dq", axis=1),
    "weights in FP32": lambda g: (
        g.tensors.update({"d0.f": g.tensors["d0.w"] * np.float32(0.01)}),
        g.change("d0", inputs=["p", "d0.f", "d0.b"]),
    ),
    "head in FP32": lambda g: (
        g.tensors.update({"h": g.tensors["logits.w"] * np.float32(0.01)}),
        g.change("logits", inputs=["e.dq", "h", "logits.b"]),
    ),
    "steps before ReLU": lambda g: (
        g.add("QuantizeLinear", ["d0", "d.scale", "d.zero"], "r.q").move("r.q", "d"),
        g.add("DequantizeLinear", ["r.q", "d.scale", "d.zero"], "r.dq").move("r.dq", "d"),
        g.change("d", inputs=["r.dq"]),
    ),
}


def edited(act):
    graph = quantised(Graph())
    act(graph)
    return graph.model()


@pytest.mark.parametrize("case", RUN)
def test_runs(case):
    check(edited(RUN[case]))


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_leaves_other_graphs_alone(case):
    data = edited(LEFT_ALONE[case])
    with pytest.raises(ModelError, match=r"^liver net: not for trtseg's own engine \("):
        UNetEngine(Net(SPEC, INT8, data))
    exact(data, slices())  # it is a net


def scrambled(graph, rng):
    """Change a few of the numbers and nodes that bring values to eight bits."""
    for _ in range(rng.integers(1, 4)):
        scales = [name for name in graph.tensors if name.endswith(".scale")]
        name = str(rng.choice(scales))
        zero = f"{name[:-6]}.zero"
        values, integers = graph.tensors[name], graph.tensors[zero]
        i = int(
            rng.choice(
                [i for i, node in enumerate(graph.nodes) if len(node.input) == 3 and "." in node.output[0]]
            )
        )
        node = graph.nodes[i]
        match rng.integers(7):
            case 0:
                graph.tensors[name] = (values * rng.choice([2, 0.5, -1, 0, np.nan])).astype(np.float32)
            case 1:
                graph.tensors[zero] = (integers + rng.integers(0, 3)).astype(integers.dtype)
            case 2:
                graph.tensors[zero] = integers.astype(rng.choice([np.int8, np.uint8]))
            case 3:
                graph.tensors[name] = values.reshape(-1)[:1].reshape(rng.choice([0, 1]) * (1,))
                graph.tensors[zero] = integers.reshape(-1)[:1].reshape(graph.tensors[name].shape)
            case 4:
                graph.change(node.output[0], axis=int(rng.integers(-4, 4)))
            case 5:
                earlier = ["x", *(other.output[0] for other in graph.nodes[:i])]
                graph.change(node.output[0], inputs=[str(rng.choice(earlier)), *node.input[1:]])
            case 6:
                other = str(rng.choice(scales))
                graph.change(node.output[0], inputs=[node.input[0], other, f"{other[:-6]}.zero"])


def test_scrambled_graphs_are_left_alone_or_run_right():
    ran = left = 0
    for seed in range(250):
        graph = quantised(Graph())
        scrambled(graph, np.random.default_rng(seed))
        data = graph.model()
        try:
            expected = exact(data, slices())
        except Exception:  # it is no net
            continue
        try:
            found = logits_of(UNetEngine(Net(SPEC, INT8, data), 1), slices())
        except ModelError:
            left += 1
            continue
        ran += 1
        assert np.sqrt(np.square(found - expected).mean()) < RMS * max(1, expected.std()), seed
    assert ran > 20
    assert left > 50


@pytest.mark.parametrize(("graph", "precision"), [(Graph(), INT8), (quantised(Graph()), FP32)])
def test_a_net_of_another_precision_is_left_alone(graph, precision):
    with pytest.raises(ModelError, match=f"it is no net in {precision.name}"):
        UNetEngine(Net(SPEC, precision, graph.model()))
    expected = exact(graph.model(), slices())
    assert (
        np.abs(logits_of(OpenVinoEngine(Net(SPEC, precision, graph.model())), slices()) - expected).max()
        < MOST
    )


def test_refuses_bf16():
    with pytest.raises(ModelError, match="got 'bf16'; this engine runs 'fp32' and 'int8'"):
        UNetEngine(Net(SPEC, BF16, Graph().model()))


@pytest.mark.parametrize("role", ["liver", "tumour"])
def test_shipped_nets(role):
    """Next to no pixel has another label than what the file says."""
    files = models.find("default")
    spec = next(net for net in files.spec.nets if net.role == role)
    net, images = Net.read(files, spec, INT8), references(files)[role].images
    expected, found = exact(net.onnx, images), logits_of(UNetEngine(net), images)
    inside = images > 0  # the tumour net sees nothing else
    labels = [(x > spec.logit_threshold) & inside for x in (found, expected)]
    assert (labels[0] != labels[1]).sum() < labels[1].sum() / 1000  # measured: 4 of 52,612 and 0 of 4,381
    assert np.sqrt(np.square(found - expected).mean()) < 0.05  # measured: 0.020 and 0.006


@pytest.fixture(scope="module")
def said():
    """Some slices, and what the file of the shipped liver net says of them."""
    files = models.find("default")
    spec = files.spec.nets[0]
    images = references(files)[spec.role].images[:2]
    return images, exact(Net.read(files, spec, INT8).onnx, images)


@pytest.mark.parametrize(
    "instructions",
    [
        ["avx512_vnni", "avx2", "portable"],
        ["avx_vnni", "avx2", "portable"],
        ["avx2", "portable"],
        ["asimddp", "portable"],
        ["portable"],
    ],
)
def test_where_it_runs_int8(said, instructions, monkeypatch, tmp_path):
    """Elsewhere OpenVINO computes the same values in FP32."""

    class Played(_core.Net):
        @staticmethod
        def int8_instructions():
            return instructions

    monkeypatch.setattr(_core, "Net", Played)
    monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path))
    own = len(instructions) > 1
    assert has_instructions(INT8) is own
    assert has_instructions(FP32)
    assert not has_instructions(BF16)
    files = models.find("default")
    engine = open_engine(files, files.spec.nets[0], precision="int8")
    assert isinstance(engine, UNetEngine if own else OpenVinoEngine)
    assert engine.precision == "int8"
    images, expected = said
    assert np.sqrt(np.square(logits_of(engine, images) - expected).mean()) < 0.1  # measured: 0.04
