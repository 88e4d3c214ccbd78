"""INT8: what NNCF makes of a net, what an engine makes of that on any processor, and which model may carry it."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper
from unet_graphs import exact

import trtseg
from training import int8
from training.int8 import Row, add, quantised, verdict
from trtseg import _core, models
from trtseg.cascade.cpu import CpuCascade
from trtseg.engines import open_engine
from trtseg.engines.calibration import references
from trtseg.engines.precision import BF16, FP32, INT8
from trtseg.engines.processor import choose_precision, native_bf16, native_int8, read_cpuinfo
from trtseg.errors import ModelError
from trtseg.metrics.overlap import Overlap, overlap
from trtseg.spec import METADATA_KEY


def two_layers(of) -> bytes:
    """A net of two convolutions, which sees a bright pixel and its neighbours."""
    rng = np.random.default_rng(0)
    first = rng.normal(1, 0.3, (4, 1, 3, 3)).astype(np.float32)
    last = rng.normal(1, 0.3, (1, 4, 1, 1)).astype(np.float32)
    shape = ["n", 1, *of.size]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1] * 4),
            helper.make_node("Relu", ["a"], ["b"], "relu"),
            helper.make_node("Conv", ["b", "w2", "c"], ["logits"], "last"),
        ],
        of.role,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(first, "w1"),
            numpy_helper.from_array(last, "w2"),
            numpy_helper.from_array(np.array([-18], np.float32), "c"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: of.to_json()})
    return model.SerializeToString()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with INT8 files."""
    specs = {role: tiny.spec(role) for role in ("liver", "tumour")}
    made = tiny.write_model(
        tmp_path_factory.mktemp("int8") / "tiny", {role: (of, two_layers(of)) for role, of in specs.items()}
    )
    add(made, quantised(models.find(made)))
    return made


def test_the_first_convolution_stays_and_the_weights_are_symmetric(folder):
    net = onnx.load(folder / "liver.int8.onnx")
    weights = {w.name: numpy_helper.to_array(w) for w in net.graph.initializer}
    assert weights["w1"].dtype == np.float32
    (last,) = (node for node in net.graph.node if node.name == "last")
    (scaled,) = (node for node in net.graph.node if node.output[0] == last.input[1])
    assert scaled.op_type == "DequantizeLinear"
    assert weights[scaled.input[0]].dtype == np.int8
    assert not weights[scaled.input[2]].any()


def test_the_engine_computes_what_the_file_says(folder):
    """OpenVINO runs this net, which has channels in fours, on every processor: in FP32, with the quantised values."""
    files = models.find(folder)
    engine = open_engine(files, files.spec.nets[0], precision="int8", threads=2)
    assert engine.precision == "int8"
    images = references(files)["liver"].images
    got = np.empty((len(images), 1, *tiny.SIZE), np.float32)
    engine.run(images, got)
    expected = exact(files.read("liver.int8.onnx"), images)
    fp32 = exact(files.read("liver.onnx"), images)
    step = np.ptp(fp32) / 255
    assert np.abs(got - expected).max() < step  # a value may be rounded to the next step
    assert np.abs(got - expected).mean() < step / 20
    assert 0 < np.abs(expected - fp32).max() < 8 * step


def test_the_shipped_model():
    """Its INT8 files call the same pixels liver and tumour as its FP32 files, but for few at the edges."""
    files = models.find("default")
    for spec in files.spec.nets:
        reference = references(files)[spec.role]
        engine = open_engine(files, spec, precision="int8", threads=2)
        logits = np.empty_like(reference.logits)
        engine.run(reference.images, logits)
        inside = reference.images > 0  # the tumour net sees nothing else
        found, true = ((x > spec.logit_threshold) & inside for x in (logits, reference.logits))
        assert overlap(found, true).dice >= int8.BOUNDS[spec.role].agreement


def test_auto_takes_the_fastest_that_model_and_processor_have(folder, tmp_path, monkeypatch):
    files, without = models.find(folder), models.find(tiny.cascade_model(tmp_path))
    fallback = BF16 if native_bf16() else FP32
    for native in (True, False):
        monkeypatch.setattr("trtseg.engines.processor.native_int8", lambda native=native: native)
        assert choose_precision("auto", files, "liver") is (INT8 if native else fallback)
        assert choose_precision("auto", without, "liver") is fallback
        assert choose_precision("int8", files, "liver") is INT8
    with pytest.raises(ModelError, match=r"got 'int8', but the model 'tiny' has no liver\.int8\.onnx"):
        trtseg.Segmenter(without.folder, precision="int8")


def test_results_name_the_files_that_ran(folder, tmp_path):
    changed = shutil.copytree(folder, tmp_path / "changed")
    net = onnx.load(changed / "tumour.int8.onnx")
    net.producer_name = "another"
    onnx.save(net, changed / "tumour.int8.onnx")
    manifest = json.loads((changed / "model.json").read_text())
    manifest["sha256"]["tumour.int8.onnx"] = hashlib.sha256(net.SerializeToString()).hexdigest()
    (changed / "model.json").write_text(json.dumps(manifest))
    made = {}
    for precision, ending in (("int8", ".int8.onnx"), ("fp32", ".onnx")):
        for model in (folder, changed):
            with trtseg.Segmenter(model, precision=precision) as segmenter:
                assert segmenter.precision == precision
                made[precision, model] = found = segmenter.provenance
                files = json.loads((model / "model.json").read_text())["sha256"]
                assert found["sha256"] == {
                    name: files[name] for name in (f"liver{ending}", f"tumour{ending}")
                }
    assert made["int8", folder]["fingerprint"] != made["int8", changed]["fingerprint"]
    assert made["fp32", folder]["fingerprint"] == made["fp32", changed]["fingerprint"]


def test_nets_of_different_precision_are_told(folder, tmp_path):
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    (mixed / "tumour.int8.onnx").unlink()
    manifest = json.loads((mixed / "model.json").read_text())
    del manifest["sha256"]["tumour.int8.onnx"]
    (mixed / "model.json").write_text(json.dumps(manifest))
    files = models.find(mixed)
    engines = [
        open_engine(files, s, precision=p) for s, p in zip(files.spec.nets, ("int8", "fp32"), strict=True)
    ]
    assert CpuCascade(*engines).precisions == {"liver": "int8", "tumour": "fp32"}


@pytest.mark.parametrize(
    ("instructions", "native"),
    [
        (["avx512_vnni", "avx2", "portable"], True),
        (["avx_vnni", "avx2", "portable"], True),
        (["avx2", "portable"], False),
        (["i8mm", "asimddp", "portable"], True),
        (["asimddp", "portable"], True),
        (["portable"], False),
    ],
)
def test_processors_with_int8(monkeypatch, instructions, native):
    played = types.SimpleNamespace(int8_instructions=lambda: instructions)
    monkeypatch.setattr("trtseg._core.Net", played)
    assert native_int8() is native


@pytest.mark.skipif(platform.system() != "Linux", reason="there is no /proc/cpuinfo")
def test_instructions_are_those_that_linux_names():
    """Linux and the extension ask the processor in ways of their own."""
    features, found = read_cpuinfo()[1], {*_core.Net.int8_instructions()}
    assert found - {"portable"} <= features
    old = {"avx512_vnni", "avx2", "asimddp"}  # an old compiler does not know avx_vnni and i8mm
    assert found >= features & old
    assert ("avx512" in _core.Net.fp32_instructions()) is (features >= {"avx2", "fma", "avx512f", "avx512vl"})


def rows(liver: float, tumour: float, agreement: int) -> list[Row]:
    same = Overlap(agreement, 100 - agreement, 100 - agreement, 0)
    return [
        Row("a", "liver", 0.95, liver, Overlap(1000, 1, 1, 0)),
        Row("a", "tumour", 0.60, tumour, same),
        Row("b", "liver", 0.97, liver + 0.02, Overlap(1000, 1, 1, 0)),
        Row("b", "tumour", None, None, Overlap(0, 0, 0, 0)),
    ]


@pytest.mark.parametrize(
    ("of", "passed"),
    [
        (rows(0.949, 0.595, 94), True),
        (rows(0.946, 0.595, 94), False),  # the liver is 0.004 worse
        (rows(0.949, 0.585, 94), False),  # the tumour is 0.015 worse
        (rows(0.949, 0.595, 92), False),  # other tumours
        ([], False),  # nothing was compared
    ],
)
def test_who_passes(of, passed):
    text, got = verdict(of)
    assert got is passed
    assert text.splitlines()[-1].startswith("Passed" if passed else "Not passed")


def test_a_model_that_fails_is_left_as_it_is(folder, tmp_path, monkeypatch):
    made = tiny.cascade_model(tmp_path / "tiny")
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    nets = {role: (folder / f"{role}.int8.onnx").read_bytes() for role in ("liver", "tumour")}
    monkeypatch.setattr(int8, "quantised", lambda files: nets)
    monkeypatch.setattr(int8, "validating", lambda shared: [])
    monkeypatch.setattr("sys.argv", ["int8", str(made), "--shared", str(tmp_path)])
    with pytest.raises(SystemExit, match="INT8 is not accurate enough"):
        int8.main()
    assert before == {path.name: path.read_bytes() for path in made.iterdir()}


def test_incomplete_data_is_refused_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "quantised", lambda files: pytest.fail("the data comes first"))
    monkeypatch.setattr("sys.argv", ["int8", str(folder), "--shared", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: .*lits_slices: no caseNN"):
        int8.main()


def test_a_model_may_be_given_by_name(folder, tmp_path, monkeypatch):
    made = tiny.cascade_model(tmp_path / "tiny")
    nets = {role: (folder / f"{role}.int8.onnx").read_bytes() for role in ("liver", "tumour")}
    monkeypatch.setattr(models, "_SHIPPED", tmp_path)
    monkeypatch.setattr(int8, "quantised", lambda files: nets)
    monkeypatch.setattr(int8, "validating", lambda shared: [])
    monkeypatch.setattr(int8, "verdict", lambda rows: ("a table", True))
    assert int8.quantise(Path("tiny"), tmp_path) == ("a table", True)
    assert models.find(made).read("liver.int8.onnx") == nets["liver"]
