"""The reader of ONNX files against the onnx package, and on files that are damaged."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest

from trtseg import models
from trtseg.errors import ModelError
from trtseg.models.onnx_graph import check_onnx, read_graph

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from unet_graphs import Graph  # noqa: E402

SHIPPED = models.find("default")


def numbers_of(node):
    """The attributes as the reader gives them."""
    found = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if value == b"NOTSET":
            continue
        values = value if isinstance(value, list) else [value]
        found[attribute.name] = tuple(v for v in values if isinstance(v, int))
    return found


def check(data):
    """Compare what is read with what the onnx package reads."""
    expected, graph = onnx.load_from_string(data).graph, read_graph(data)
    assert [(n.operator, n.inputs, n.outputs, n.numbers) for n in graph.nodes] == [
        (n.op_type, tuple(n.input), tuple(n.output), numbers_of(n)) for n in expected.node
    ]
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in expected.initializer}
    assert list(graph.tensors) == list(tensors)
    for name, values in tensors.items():
        assert graph.tensors[name].dtype == values.dtype
        np.testing.assert_array_equal(graph.tensors[name], values)
    assert graph.inputs == tuple(value.name for value in expected.input if value.name not in tensors)
    assert graph.outputs == tuple(value.name for value in expected.output)


@pytest.mark.parametrize("name", sorted(name for name in SHIPPED.spec.sha256 if name.endswith(".onnx")))
def test_shipped_files(name):
    data = SHIPPED.read(name)
    if ".fp16." in name:
        with pytest.raises(
            ModelError, match=r"weights in FP32 or eight bits \(.* has another type or shape\)"
        ):
            read_graph(data)
    else:
        check(data)


def test_attributes_of_all_kinds():
    graph = Graph()
    graph.change("d0", auto_pad="SAME_UPPER", pads=[-1, 2**63 - 1, -(2**63), 0])
    graph.add("LeakyRelu", "e", "y", alpha=0.25).add("Concat", ["y", "e"], "z", axis=-1)
    graph.inputs += ["e0.w"]
    check(graph.model())


def changed(act):
    model = onnx.load_from_string(Graph().model())
    act(model)
    return model.SerializeToString()


def test_other_operators():
    """What bears the name of a usual operator is none."""

    def act(model):
        model.graph.node[1].domain = "com.example"

    assert read_graph(changed(act)).nodes[1].operator == "com.example.Relu"
    with pytest.raises(ModelError, match="it defines operators"):
        read_graph(changed(lambda model: model.functions.add(name="Relu")))


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def external_too(model):
    """A tensor elsewhere, with numbers that do not count."""
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="weights.bin")


def sparse(model):
    """A second tensor of the same name, which other readers take."""
    tensor = model.graph.initializer[0]
    values = numpy_helper.from_array(np.ones(1, np.float32), tensor.name)
    places = numpy_helper.from_array(np.zeros(1, np.int64))
    model.graph.sparse_initializer.add(values=values, indices=places, dims=tensor.dims)


def same_name(kind):
    """Two values with one name: which of them is meant, each reader decides otherwise."""

    def act(model):
        graph = model.graph
        if kind == "tensors":
            graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "d0.b"))
        elif kind == "results":
            graph.node.add().CopyFrom(graph.node[0])
        else:
            graph.node[0].output[0] = {"result and tensor": "d0.b", "result and input": "x"}[kind]

    return act


def listed(model, left_out=0):
    """Give the numbers of the first tensor one by one."""
    tensor = model.graph.initializer[0]
    tensor.float_data.extend(numpy_helper.to_array(tensor).ravel()[left_out:])
    tensor.ClearField("raw_data")


def test_numbers_one_by_one():
    check(changed(listed))


def dimensions(*values):
    def act(model):
        model.graph.initializer[0].dims[:] = values

    return act


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no onnx",
        bytes(1000),
        b"\xff" * 1000,
        changed(external),
        changed(external_too),
        changed(sparse),
        *(changed(same_name(of)) for of in ("tensors", "results", "result and tensor", "result and input")),
        changed(lambda model: listed(model, 1)),
        changed(dimensions(2**40)),
        changed(dimensions(2**62, 2**62)),
        changed(dimensions(-(2**63))),
        changed(dimensions(2**63 - 1, 2)),
        changed(dimensions(*[1] * 100)),
        Graph().model() * 2,
        b"\x3a" + b"\xff" * 9 + b"\x01",  # a graph of 2**64 bytes
        b"\x3a" + b"\x80" * 20,
        b"\x38\x01",  # a graph that is a number
        *(Graph().model() + bytes([8 | kind]) + bytes(8) for kind in (3, 4, 6, 7)),
    ],
)
def test_refusals(data):
    with pytest.raises(ModelError, match=r"^not an ONNX file with weights in FP32"):
        read_graph(data)


def test_damaged_files():
    """Each is refused, or read; nothing else happens, quickly and in little memory."""
    whole = Graph().model()
    structure = [i for i in range(len(whole)) if i < 1500 or i > len(whole) - 800]
    rng = np.random.default_rng(0)
    refused = 0
    tracemalloc.start()
    begin = time.perf_counter()
    for seed in range(600):
        data = bytearray(whole)
        for at in rng.choice(structure if seed % 2 else len(whole), rng.integers(1, 8)):
            data[at] = rng.integers(256)
        if seed % 3 == 0:
            del data[rng.integers(len(data)) :]
        if seed % 5 == 0:
            at = rng.integers(len(data) + 1)
            data[at:at] = rng.bytes(int(rng.integers(1, 20)))
        try:
            read_graph(bytes(data))
        except ModelError:
            refused += 1
    assert refused > 300
    assert time.perf_counter() - begin < 20
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "typed"])
def test_weights_that_are_not_finite_are_refused(number, kind, is_raw):
    def file(last):
        values = np.array([1, -2, 0, last], kind)
        tensor = numpy_helper.from_array(values, "w")
        if not is_raw:
            tensor.ClearField("raw_data")
            if kind is np.float32:
                tensor.float_data.extend(values)
            elif kind is np.float64:
                tensor.double_data.extend(values)
            else:
                tensor.int32_data.extend(values.view(np.uint16))
        good = np.array([255, 7], np.uint8), values[:0]
        others = [numpy_helper.from_array(array, f"t{i}") for i, array in enumerate(good)]
        graph = helper.make_graph([], "g", [], [], [*others, tensor])
        return helper.make_model(graph).SerializeToString()

    with pytest.raises(ModelError, match="not an ONNX file"):
        check_onnx(b"no onnx")
    check_onnx(file(np.finfo(kind).max))
    with pytest.raises(ModelError, match="got NaN or infinity in w; expected finite weights: export"):
        check_onnx(file(number))


@pytest.mark.parametrize(
    "attribute",
    [
        {"value": numpy_helper.from_array(np.array([1, np.nan], np.float32), "w")},
        {"value_float": np.nan},
        {"value_floats": [1.0, np.nan]},
        {"own": helper.make_graph([], "g", [], [], [numpy_helper.from_array(np.array(np.nan), "w")])},
    ],
    ids=["tensor", "number", "numbers", "inner graph"],
)
def test_numbers_of_a_node_that_are_not_finite_are_refused(attribute):
    def file(numbers):
        graph = helper.make_graph([helper.make_node("Constant", [], ["c"], **numbers)], "g", [], [])
        return helper.make_model(graph).SerializeToString()

    check_onnx(file({"value_floats": [1.0, 2.0]}))
    # as of a padding before a maximum, or a limit that is none
    check_onnx(file({"value": numpy_helper.from_array(np.array(-np.inf, np.float32))}))
    check_onnx(file({"value": numpy_helper.from_array(np.array(np.inf, np.float16))}))
    check_onnx(file({"max": np.inf}))
    with pytest.raises(ModelError, match=r"got NaN or infinity in (w|value_floats?); expected finite"):
        check_onnx(file(attribute))


def test_bf16_weights_that_are_not_finite_are_refused():
    def file(*bits):
        tensor = TensorProto(name="w", data_type=TensorProto.BFLOAT16, dims=[len(bits)], int32_data=bits)
        return helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()

    check_onnx(file(0x3F80, 0x7F7F, 0xFF7F))
    for bits in (0x7F80, 0xFF80, 0x7FC0):
        with pytest.raises(ModelError, match="got NaN or infinity in w"):
            check_onnx(file(0x3F80, bits))


def test_nodes_that_need_each_other_are_refused():
    """OpenVINO looked for an order of them for ever."""

    def file(*nodes):
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
        weight = numpy_helper.from_array(np.ones(1, np.float32), "w")
        graph = helper.make_graph([helper.make_node(*node) for node in nodes], "g", values[:1], values[1:])
        graph.initializer.append(weight)
        graph.sparse_initializer.add().values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
        return helper.make_model(graph).SerializeToString()

    check_onnx(file(("Clip", ["x", "", "w"], ["z"]), ("Relu", ["z"], ["y"])))
    check_onnx(file(("Add", ["x", "s"], ["y"])))
    with pytest.raises(ModelError, match="a node uses q before any has made it; export the model again"):
        check_onnx(file(("Add", ["x", "q"], ["z"]), ("Relu", ["z"], ["q"]), ("Relu", ["z"], ["y"])))


def test_a_constant_without_a_name_is_called_so():
    nan = numpy_helper.from_array(np.array(np.nan, np.float16))
    graph = helper.make_graph([helper.make_node("Constant", [], ["c"], value=nan)], "g", [], [])
    with pytest.raises(ModelError, match="got NaN or infinity in a constant; expected"):
        check_onnx(helper.make_model(graph).SerializeToString())


def test_fields_that_are_missing_are_said():
    for graph in (
        helper.make_graph([], "g", [onnx.ValueInfoProto()], []),
        helper.make_graph([onnx.NodeProto(attribute=[onnx.AttributeProto(f=1.0)])], "g", [], []),
    ):
        with pytest.raises(ModelError, match=r"not an ONNX file \(a field is missing\)"):
            check_onnx(helper.make_model(graph).SerializeToString())


def test_a_name_that_is_no_text_is_refused():
    graph = helper.make_graph([helper.make_node("Relu", ["x_QQQ"], ["y"])], "g", [], [])
    data = helper.make_model(graph).SerializeToString().replace(b"x_QQQ", b"x_\xd8QQ")
    with pytest.raises(ModelError, match=r"not an ONNX file \('utf-8' codec"):
        check_onnx(data)


def outside(name):
    """A tensor whose values are in another file, which is looked for in the folder that the process is in."""
    tensor = numpy_helper.from_array(np.ones((2, 3), np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def constant(name):
    return helper.make_node("Constant", [], ["c"], value=outside(name))


@pytest.mark.parametrize(
    "where", ["initializer", "node", "list", "inner graph", "function", "sparse", "no mark"]
)
def test_weights_in_another_file_of_which_no_hash_is_known_are_refused(where):
    """OpenVINO took them: the same model with the same fingerprint gave other labels with another such file."""
    model = onnx.ModelProto()
    if where in ("initializer", "no mark"):
        model.graph.initializer.append(outside("w"))
    if where == "no mark":
        model.graph.initializer[-1].ClearField("data_location")
    elif where == "node":
        model.graph.node.append(constant("w"))
    elif where == "list":
        model.graph.node.append(helper.make_node("Own", [], ["c"], values=[outside("w")]))
    elif where == "inner graph":
        inner = helper.make_graph([constant("w")], "inner", [], [])
        model.graph.node.append(helper.make_node("If", ["x"], ["c"], then_branch=inner))
    elif where == "function":
        model.functions.append(helper.make_function("own", "F", [], ["c"], [constant("w")], []))
    elif where == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(outside("w"))
    with pytest.raises(
        ModelError, match=r"w has its values in another file; export the model again, into one"
    ):
        check_onnx(model.SerializeToString())
