"""The text of engines/base.py, held against the engines of the CPU; tests/gpu holds it against those of GPUs."""

from __future__ import annotations

import functools
import sys
import types

import numpy as np
import pytest
import tiny

from trtseg import models
from trtseg.engines import available_devices, open_engine, openvino, resolve_device
from trtseg.engines.base import Net, check_arrays
from trtseg.engines.openvino import OpenVinoEngine
from trtseg.engines.precision import BF16, FP16, FP32, INT8, PRECISIONS, candidates
from trtseg.engines.processor import native_bf16
from trtseg.errors import ArgumentError, DeviceError, ModelError, OutOfMemoryError

GUARD = 12345.0


CPU = [FP32, INT8, *([BF16] if native_bf16() else [])]  # BF16 is an error where the processor lacks it


@pytest.fixture(scope="module", params=CPU, ids=lambda p: p.name)
def liver(request):
    """The shipped liver net."""
    files = models.find("default")
    return open_engine(files, files.spec.nets[0], precision=request.param.name)


@pytest.fixture(scope="module")
def images(liver):
    rng = np.random.default_rng(0)
    return rng.random((4, 1, *liver.spec.size), np.float32).astype(liver.dtype)


def guarded(engine, n):
    """An output for ``n`` slices, and the larger array around it."""
    around = np.full((n + 2, engine.spec.channels, *engine.spec.size), GUARD, engine.dtype)
    return around[1 : n + 1], around


def run(engine, src):
    dst, around = guarded(engine, len(src))
    engine.run(src, dst)
    assert (around[0] == GUARD).all()
    assert (around[-1] == GUARD).all()
    return dst.copy()


def test_says_what_it_is(liver):
    assert liver.device == resolve_device("cpu") == "cpu"
    assert liver.precision in [row.name for row in CPU]
    assert liver.dtype == np.float32
    assert liver.batch is None
    assert liver.spec == models.find("default").spec.nets[0]


def test_writes_every_element_and_no_other(liver, images):
    assert (run(liver, images) != GUARD).all()


def test_no_slices(liver, images):
    run(liver, images[:0])


def test_slices_are_independent_and_runs_repeat(liver, images):
    together = run(liver, images)
    assert (run(liver, images) == together).all()
    for i in range(len(images)):
        assert (run(liver, images[i : i + 1]) == together[i]).all()
    same = np.broadcast_to(images[:1], images.shape).copy()
    assert (run(liver, same) == together[0]).all()


def test_input_is_left_alone(liver, images):
    before = images.copy()
    run(liver, images)
    assert (images == before).all()


def test_logits_of_a_convolution():
    spec = tiny.spec("one-step")
    weight = np.random.default_rng(1).normal(size=(3, 1, 3, 3)).astype(np.float32)
    engine = OpenVinoEngine(Net(spec, FP32, tiny.convolution(weight, np.array([1.0, 2, 3]), spec)))
    src = np.random.default_rng(2).random((2, 1, *spec.size), np.float32)
    padded = np.pad(src[:, 0], ((0, 0), (1, 1), (1, 1))).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    expected = np.einsum("nyxij,cij->ncyx", windows, weight[:, 0]) + np.array([1, 2, 3])[:, None, None]
    assert np.abs(run(engine, src) - expected).max() < 1e-5


@pytest.mark.skipif(BF16 not in CPU, reason="this processor has no BF16")
def test_bf16_is_close_to_fp32(images):
    files = models.find("default")
    answers = [
        run(open_engine(files, files.spec.nets[0], precision=name), images) for name in ("fp32", "bf16")
    ]
    difference = np.abs(answers[0] - answers[1])
    assert difference.max() > 0  # else BF16 was not what ran
    assert difference.mean() < 0.2


def test_refusals(tmp_path):
    files = models.find(tiny.cascade_model(tmp_path))
    spec = files.spec.nets[0]
    for name in ("fp8", "fp16"):
        with pytest.raises(
            ArgumentError, match=f"precision: got '{name}'; on the CPU it is 'auto', 'int8', 'bf16'"
        ):
            open_engine(files, spec, precision=name)
    with pytest.raises(ModelError, match="cannot run it") as caught:
        OpenVinoEngine(Net(spec, FP32, b"no onnx"))
    assert "\n" not in str(caught.value)
    three = tiny.spec("one-step")
    lying = tiny.convolution(np.zeros((1, 1, 1, 1)), np.zeros(1), three)
    with pytest.raises(ModelError, match=r"gives logits of shape \[1, 1, 64, 64\], but its spec says \[1,"):
        OpenVinoEngine(Net(three, FP32, lying))
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")
    model = onnx.load_from_string(files.read("liver.onnx"))
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.node.add(op_type="Neg", input=[model.graph.output[0].name], output=["other"])
    model.graph.output[1].name = "other"
    with pytest.raises(ModelError, match="liver net: has 2 outputs; expected one, logits: export"):
        OpenVinoEngine(Net(spec, FP32, model.SerializeToString()))
    model.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    model.graph.node[-1].CopyFrom(
        onnx.helper.make_node("Cast", [model.graph.output[0].name], ["other"], to=11)
    )
    del model.graph.output[0]
    with pytest.raises(
        ModelError, match=r"liver net: takes or gives numbers of type f64; expected f32 \(FP32\)"
    ):
        OpenVinoEngine(Net(spec, FP32, model.SerializeToString()))


def test_a_lack_of_memory_is_none_of_the_net(monkeypatch, tmp_path):
    files = models.find(tiny.cascade_model(tmp_path))

    def compile_model(*_):
        raise RuntimeError("Exception from src/core.cpp:1:\nFailed to allocate 805306368 bytes of memory")

    core = types.SimpleNamespace(
        read_model=openvino._openvino_core().read_model,
        get_property=openvino._openvino_core().get_property,
        compile_model=compile_model,
    )
    monkeypatch.setattr(openvino, "_openvino_core", lambda: core)
    monkeypatch.setattr(openvino, "_kept", lambda _: None)
    with pytest.raises(OutOfMemoryError, match=r"^liver net: needs more than"):
        OpenVinoEngine(Net.read(files, files.spec.nets[0], FP32))


def tumour_of_tiny():
    spec = tiny.spec("tumour")
    return spec, tiny.threshold_at(85, spec)


class TestNet:
    def test_read(self):
        files = models.find("default")
        for spec in files.spec.nets:
            for row in (FP16, FP32):
                net = Net.read(files, spec, row)
                assert net.sha256 == files.spec.sha256[row.file(spec.role)]
                assert net.model == {"name": "default", "version": files.spec.version}

    def test_a_precision_that_the_model_lacks(self, tmp_path):
        files = models.find(tiny.cascade_model(tmp_path))
        with pytest.raises(ModelError, match=r"got 'fp16', but the model 'tiny' has no liver\.fp16\.onnx;"):
            Net.read(files, files.spec.nets[0], FP16)

    @pytest.mark.parametrize("number", [np.nan, np.inf])
    def test_weights_that_are_not_finite(self, tmp_path, number):
        """No engine takes them, nor the next one that would be tried: some make a map without a liver of NaN."""
        spec = tiny.spec("liver")
        spoilt = tiny.convolution(np.ones((1, 1, 1, 1)), np.array([number]), spec)
        files = models.find(tiny.write_model(tmp_path, {"liver": (spec, spoilt), "tumour": tumour_of_tiny()}))
        with pytest.raises(
            ModelError, match=r"^liver net: liver\.onnx: got NaN or infinity in b; expected finite"
        ):
            open_engine(files, files.spec.nets[0], precision="fp32")

    def test_arrays_of_another_batch_or_type(self):
        engine = types.SimpleNamespace(spec=tiny.spec("one-step"), batch=2, dtype=np.dtype(np.float16))
        src, dst = np.zeros((2, 1, 64, 64), np.float16), np.zeros((2, 3, 64, 64), np.float16)
        check_arrays(engine, src, dst)
        for wrong, message in (
            ((src[:1], dst), r"src: got float16 \(1, 1, 64, 64\); this engine takes float16 \(2, 1, 64,"),
            ((src, dst.astype(np.float32)), r"dst: got float32 .*; this engine takes float16 \(2, 3, 64,"),
        ):
            with pytest.raises(ArgumentError, match=message):
                check_arrays(engine, *wrong)


class TestPrecisions:
    def test_candidates(self):
        assert candidates("auto", "cuda") == (FP16, FP32)
        assert candidates("auto", "cpu") == (INT8, BF16, FP32)
        assert candidates("fp32", "cuda") == candidates("fp32", "cpu") == (FP32,)
        with pytest.raises(ArgumentError, match="got 'bf16'; on a GPU it is 'auto', 'fp16' or 'fp32'"):
            candidates("bf16", "cuda")
        assert all(row.openvino for row in PRECISIONS if "cpu" in row.devices)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            None,
            r"OpenVINO is not installed; it runs nets on the CPU, .*: pip install openvino$",
        ),
        ("import libopenvino_of_old", r"OpenVINO does not load \(No module named .*\); .*"),
        ("raise OSError('invalid ELF header')", r"OpenVINO does not load \(invalid ELF header\); it runs .*"),
        ("", r"OpenVINO does not load \(module 'openvino' has no attribute 'Core'\); it runs .*"),
        ("raise ImportError('libopenvino.so')", r"OpenVINO does not load \(libopenvino\.so\); it runs"),
    ],
)
def test_without_openvino(code, message, monkeypatch, tmp_path):
    """What is wrong and what to do is said, by whatever needs it first."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    if code is None:
        hidden = types.SimpleNamespace(find_spec=lambda name, *_: absent(name))
        monkeypatch.setattr(sys, "meta_path", [hidden, *sys.meta_path])
    else:
        (tmp_path / "openvino.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
    alone = functools.cache(openvino._openvino_core.__wrapped__)
    monkeypatch.setattr(openvino, "_openvino_core", alone)
    files = models.find(tiny.cascade_model(tmp_path / "model"))  # of nets that only OpenVINO runs
    with pytest.raises(DeviceError, match=message):
        open_engine(files, files.spec.nets[0], precision="fp32")
    shipped = models.find("default")
    assert open_engine(shipped, shipped.spec.nets[0], precision="fp32").runtime == "trtseg"
    assert next((name, works) for name, works, _ in available_devices()) == ("cpu", True)


def test_openvino_runs_fp32_where_the_processor_lacks_the_instructions(monkeypatch):
    monkeypatch.setattr(
        "trtseg._core.Net",
        types.SimpleNamespace(is_supported=lambda: False, int8_instructions=lambda: ["portable"]),
    )
    files = models.find("default")
    assert open_engine(files, files.spec.nets[0], precision="fp32").runtime.startswith("OpenVINO 20")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert next(row for row in available_devices() if row[0] == "cpu")[1] is False


def absent(name: str) -> None:
    if name == "openvino":
        raise ModuleNotFoundError("No module named 'openvino'", name=name)
