"""trtseg's own engine against ONNX Runtime and OpenVINO: the graphs that it runs, and those that it leaves alone."""

from __future__ import annotations

import types

import numpy as np
import pytest
import tiny

from trtseg import _core, models
from trtseg.engines import open_engine
from trtseg.engines.base import Net, logits_of
from trtseg.engines.calibration import references
from trtseg.engines.onnxruntime import OnnxRuntimeEngine
from trtseg.engines.openvino import OpenVinoEngine
from trtseg.engines.precision import FP32
from trtseg.engines.unet import UNetEngine
from trtseg.errors import ModelError

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")
from onnx import TensorProto, helper, numpy_helper
from unet_graphs import HALVE, SPEC, UNETS, Graph, unet

pytestmark = pytest.mark.skipif(not _core.Net.is_supported(), reason="this processor has no AVX2 and FMA")

TUMOUR = tiny.spec("tumour", size=(16, 16))
SHIPPED = 5e-4  # of the shipped nets' logits, which reach 24; measured: 8.3e-5
BOUND = 3e-5  # of logits of about 5; measured: 6.0e-6


def slices(n=2, spec=SPEC):
    return np.random.default_rng(3).random((n, 1, *spec.size), np.float32)


def difference(data, spec=SPEC):
    """Largest difference of a net's logits to ONNX Runtime's, of three slices one after the other."""
    net, x = Net(spec, FP32, data), slices(3, spec)
    return np.abs(logits_of(UNetEngine(net, 2), x) - logits_of(OnnxRuntimeEngine(net), x)).max()


def edit(graph, act):
    """Let a case change a graph; return the graph."""
    act(graph)
    return graph


def without(graph, result):
    """Take a node away, and have others read what it read."""
    node = graph.nodes.pop(graph.at(result))
    for other in graph.nodes:
        graph.change(
            other.output[0], inputs=[node.input[0] if name == result else name for name in other.input]
        )


def batch_norm(graph):
    names = ["scale", "shift", "mean", "variance"]
    graph.tensors |= {
        name: np.full(8, value, np.float32) for name, value in zip(names, (1.1, 0.1, 0, 1), strict=True)
    }
    graph.add("BatchNormalization", ["d0", *names], "n").move("n", "d").change("d", inputs=["n"])


def grouped(graph):
    graph.tensors["d0.w"] = graph.tensors["d0.w"][:, :1].copy()
    graph.change("d0", group=8)


def deeper(graph):
    """The maxima of what was enlarged are joined with other values."""
    graph.add("MaxPool", "u", "q", **HALVE).add("Concat", ["d", "q"], "r", axis=1)
    graph.channels["r"] = 16
    graph.up("r", "v").change("c", inputs=["s", "v"])
    for result in ("q", "r", "v"):
        graph.move(result, "c")


def five(graph):
    graph.weigh("d0", 8, 8, 5, 5)
    graph.change("d0", kernel_shape=[5, 5], pads=[2] * 4)


def constant(graph):
    array = numpy_helper.from_array(graph.tensors.pop("d0.w"), "d0.w")
    graph.nodes.insert(0, helper.make_node("Constant", [], ["d0.w"], value=array))


def stolen(graph):
    """Nobody reads the first of two joined maps that have a part in common."""
    graph.add("Concat", ["s", "a"], "dead", axis=1).move("dead", "c").change("c", inputs=["u", "s"])


def two_joined(graph):
    graph.add("Concat", ["s", "a"], "j", axis=1)
    graph.channels["j"] = 16
    graph.conv("j", "f0").add("Relu", "f0", "f").change("c", inputs=["f", "u", "s"])
    for result in ("j", "f0", "f"):
        graph.move(result, "c")
    graph.weigh("e0", 8, 24, 3, 3)


def before_relu(operator):
    """Something reads a value before the ReLU that others read."""

    def act(graph):
        if operator == "MaxPool":
            graph.change("p", inputs=["s0"]).move("p", "s")
        elif operator == "Conv":
            graph.change("d0", inputs=["a0", "d0.w", "d0.b"], **HALVE, pads=None)
            graph.weigh("d0", 8, 8, 2, 2)
        else:
            graph.change("u", inputs=["d0", "u.w", "u.b"])

    return act


def float16(graph):
    graph.tensors["half"] = graph.tensors.pop("d0.w").astype(np.float16)
    graph.nodes.insert(0, helper.make_node("Cast", ["half"], ["d0.w"], to=TensorProto.FLOAT))


def enlarging(**attributes):
    """A head that enlarges."""

    def act(graph):
        graph.nodes.pop(graph.at("logits"))
        graph.width = 1
        graph.up("d", "logits", kernel_shape=[2, 2], **attributes)

    return act


LEFT_ALONE = {
    "5x5": five,
    "groups": grouped,
    "dilation": lambda g: g.change("d0", dilations=[2, 2], pads=[2] * 4),
    "LeakyRelu": lambda g: g.change("d", "LeakyRelu", alpha=0.1),
    "Sigmoid": lambda g: g.change("d", "Sigmoid"),
    "AveragePool": lambda g: g.change("p", "AveragePool"),
    "axis -3": lambda g: g.change("c", axis=-3),
    "twelve": lambda g: g.__init__(12),
    "two joined": two_joined,
    "stolen": stolen,
    "Add": lambda g: g.add("Add", ["s", "u"], "c1").move("c1", "c").change("c", inputs=["c1", "u"]),
    "FP16": float16,
    "maxima before ReLU": before_relu("MaxPool"),
    "enlarged before ReLU": before_relu("ConvTranspose"),
    "convolved before ReLU": before_relu("Conv"),
    "pads": lambda g: g.change("d0", pads=[0, 0, 2, 2]),
    "pads of first": lambda g: g.change("a0", pads=[2, 1, 0, 1]),
    "auto_pad": lambda g: g.change("d0", auto_pad="SAME_UPPER", pads=None),
    "auto_pad of first": lambda g: g.change("a0", auto_pad="SAME_LOWER", pads=None),
    "auto_pad of pool": lambda g: g.change("p", auto_pad="SAME_UPPER"),
    "ceil_mode": lambda g: g.change("p", ceil_mode=1),
    "pool 3x3": lambda g: g.change("p", kernel_shape=[3, 3], pads=[1, 1, 0, 0]),
    "output_padding": lambda g: g.change("u", output_padding=[1, 1], pads=[1, 1, 0, 0]),
    "output_shape": lambda g: g.change("u", output_shape=[16, 16]),
    "output twice": lambda g: g.outputs.append("e"),
    "other output first": lambda g: g.conv("e", "t", 1, (1, 1, 1), kernel_shape=[1, 1]).outputs.insert(
        0, "t"
    ),
    "slice read twice": lambda g: (
        g.conv("x", "t0").add("Relu", "t0", "t").move("t0", "c").move("t", "c").change("c", inputs=["t", "u"])
    ),
    "batch norm": batch_norm,
    "constant": constant,
    "maxima of enlarged": deeper,
    "no ReLU": lambda g: without(g, "d"),
    "ReLU of enlarged": lambda g: g.add("Relu", "u", "v").move("v", "c").change("c", inputs=["s", "v"]),
    "ReLU of joined": lambda g: (
        g.add("Relu", "c", "v").move("v", "e0").change("e0", inputs=["v", "e0.w", "e0.b"])
    ),
    "ReLU of the slice": lambda g: (
        g.add("Relu", "x", "v").move("v", "a0").change("a0", inputs=["v", "a0.w", "a0.b"])
    ),
    "ReLU at the end": lambda g: (
        g.change("logits", inputs=["e", "logits.w", "logits.b"])
        .add("Relu", "logits", "y")
        .outputs.__setitem__(0, "y")
    ),
    "no bias": lambda g: g.change("d0", inputs=["p", "d0.w"]),
    "Identity": lambda g: (
        g.add("Identity", "p", "i").move("i", "d0").change("d0", inputs=["i", "d0.w", "d0.b"])
    ),
    "after the end": lambda g: g.conv("e", "t"),
    "two pools": lambda g: g.add("MaxPool", "s", "q", **HALVE).move("q", "c"),
    "twice in one": lambda g: g.change("c", inputs=["u", "u"]),
    "huge weight": lambda g: g.tensors["d0.w"].__setitem__((0, 0, 1, 1), -1.1e4),
}
RUN = {
    "as it is": lambda g: None,
    "other order": lambda g: g.change("c", inputs=["u", "s"]),
    "same weights twice": lambda g: g.change("d0", inputs=["p", "s0.w", "s0.b"]),
    "read by two": lambda g: g.change("d0", inputs=["p", "s0.w", "s0.b"]).change("c", inputs=["a", "u"]),
    "ReLU twice": lambda g: g.add("Relu", "d", "dd").move("dd", "u").change("u", inputs=["dd", "u.w", "u.b"]),
    "unused": lambda g: g.conv("a", "t0").add("Relu", "t0", "t").move("t0", "c").move("t", "c"),
    "unused pool": lambda g: g.add("MaxPool", "d", "q", **HALVE).move("q", "c"),
    "tensors are inputs": lambda g: g.inputs.extend(g.tensors),
    "NOTSET": lambda g: g.change("d0", auto_pad="NOTSET").change("p", auto_pad="NOTSET", ceil_mode=0),
    "joined alone": lambda g: (
        g.add("Concat", "p", "j", axis=1).move("j", "d0").change("d0", inputs=["j", "d0.w", "d0.b"])
    ),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_leaves_other_graphs_alone(case):
    net = Net(SPEC, FP32, edit(Graph(), LEFT_ALONE[case]).model())
    with pytest.raises(ModelError, match=r"^liver net: not for trtseg's own engine \("):
        UNetEngine(net)
    assert np.isfinite(logits_of(OnnxRuntimeEngine(net), slices())).all()  # it is a net


@pytest.mark.parametrize("name", ["a0.w", "a0.b", "d0.w", "d0.b", "u.w", "logits.b"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_refuses_weights_that_are_not_finite(name, number):
    graph = Graph()
    values = graph.tensors[name].copy()
    values.flat[-1] = number
    graph.tensors[name] = values
    with pytest.raises(ModelError, match=r"it computes .* of numbers that are not finite"):
        UNetEngine(Net(SPEC, FP32, graph.model()))


@pytest.mark.parametrize(
    "head",
    [
        lambda g: g.change("logits", strides=[2, 2]),
        lambda g: g.change("logits", pads=[1] * 4),
        lambda g: g.change("logits", inputs=["d", "logits.w", "logits.b"], **HALVE).weigh(
            "logits", 1, 8, 2, 2
        ),
        enlarging(strides=[1, 1]),
        enlarging(strides=[2, 2], pads=[1] * 4),
    ],
    ids=["stride", "pads", "halving", "stride of enlarging", "pads of enlarging"],
)
def test_leaves_heads_alone_that_give_logits_of_another_size(head):
    UNetEngine(Net(SPEC, FP32, edit(Graph(), enlarging(strides=[2, 2])).model()))
    net = Net(SPEC, FP32, edit(Graph(), head).model())
    with pytest.raises(
        ModelError, match=r"of .*, logits\.w, logits\.b, which this engine does not run there"
    ):
        UNetEngine(net)


@pytest.mark.parametrize("case", RUN)
def test_runs_graphs_of_other_shapes(case):
    assert difference(edit(Graph(), RUN[case]).model()) < BOUND


def scrambled(graph, rng):
    """Change a few things at random."""
    for _ in range(rng.integers(1, 4)):
        values = [*graph.channels]
        i = rng.integers(len(graph.nodes))
        node = graph.nodes[i]
        result, earlier = node.output[0], ["x", *(other.output[0] for other in graph.nodes[:i])]
        inputs = list(node.input)
        at = rng.integers(len(inputs) if node.op_type == "Concat" else 1)
        inputs[at] = str(rng.choice(earlier))
        match rng.integers(6):
            case 0 | 1:
                graph.change(result, inputs=inputs)
            case 2:
                new = f"new{len(values)}"
                operator = str(rng.choice(["Relu", "Relu", "Sigmoid", "Identity", "MaxPool"]))
                graph.add(operator, str(rng.choice(earlier)), new, **(HALVE if operator == "MaxPool" else {}))
                graph.move(new, result)
                if rng.integers(2):
                    graph.change(result, inputs=[new, *node.input[1:]])
            case 3 if len(graph.nodes) > 4:
                without(graph, result)
            case 4:
                key, value = [
                    ("pads", [0, 0, 2, 2]),
                    ("dilations", [2, 2]),
                    ("auto_pad", "SAME_UPPER"),
                    ("pads", None),
                ][rng.integers(4)]
                if node.op_type in ("Conv", "ConvTranspose", "MaxPool"):
                    graph.change(result, **{key: value})
            case 5:
                graph.outputs.insert(rng.integers(2), str(rng.choice(earlier[1:] or ["logits"])))


def test_scrambled_graphs_are_left_alone_or_run_right():
    ran = left = 0
    for seed in range(200):
        graph = Graph()
        scrambled(graph, np.random.default_rng(seed))
        graph.outputs = list(dict.fromkeys(graph.outputs))
        net = Net(SPEC, FP32, graph.model())
        try:
            expected = logits_of(OnnxRuntimeEngine(net), slices())
        except Exception:  # it is no net, or one that gives something else
            continue
        try:
            found = logits_of(UNetEngine(net, 1), slices())
        except ModelError:
            left += 1
            continue
        ran += 1
        assert np.abs(found - expected).max() < BOUND, seed
    assert ran > 5
    assert left > 20


@pytest.mark.parametrize(("classes", "width", "depth", "stem", "size"), UNETS)
def test_unets(classes, width, depth, stem, size):
    spec = types.SimpleNamespace(role="net", size=size, channels=classes, to_json=lambda: "")
    assert difference(unet(classes, width, depth, stem).model(spec), spec) < BOUND


@pytest.mark.parametrize("role", ["liver", "tumour"])
def test_shipped_nets(role):
    """Labels differ from OpenVINO's nowhere but where the logit is at the threshold."""
    files = models.find("default")
    spec = next(net for net in files.spec.nets if net.role == role)
    wanted = references(files)[role]
    engine = open_engine(files, spec, precision="fp32")
    assert engine.runtime == "trtseg"
    found = logits_of(engine, wanted.images)
    differences = found - wanted.logits
    assert np.abs(differences).max() < SHIPPED
    assert np.sqrt(np.square(differences).mean()) < SHIPPED / 10  # measured: 4.7e-6
    margin = wanted.logits - spec.logit_threshold
    assert np.abs(margin[(margin > 0) != (found > spec.logit_threshold)]).max(initial=0) < SHIPPED


@pytest.mark.parametrize("case", ["LeakyRelu", "twelve", "maxima before ReLU"])
def test_openvino_runs_what_it_leaves_alone(case, tmp_path, monkeypatch):
    monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path / "cache"))
    graph = edit(Graph(), LEFT_ALONE[case])
    data = graph.model()
    nets = {"liver": (SPEC, data), "tumour": (TUMOUR, graph.model(TUMOUR))}
    files = models.find(tiny.write_model(tmp_path / "model", nets))
    engine = open_engine(files, files.spec.nets[0], precision="fp32")
    assert isinstance(engine, OpenVinoEngine)
    expected = logits_of(OnnxRuntimeEngine(Net(SPEC, FP32, data)), slices())
    assert np.abs(logits_of(engine, slices()) - expected).max() < BOUND
