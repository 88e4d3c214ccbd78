"""Engines of PyTorch's compiler, here with its code for CPUs: their logits, what is kept, what is refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import types

import numpy as np
import onnx
import pytest
import tiny
import torch
from test_torch_engine import run

import trtseg
from trtseg import models
from trtseg.engines.base import Net
from trtseg.engines.nvidia import build, cache, compiled, machine, nets, torch_net
from trtseg.engines.nvidia import torch as torch_engine
from trtseg.engines.nvidia.driver import Driver, Gpu
from trtseg.engines.nvidia.runtime import load_runtime
from trtseg.engines.nvidia.sidecar import EngineKey
from trtseg.engines.nvidia.torch import TorchNet, load_compiled, serialize
from trtseg.engines.precision import FP32
from trtseg.engines.trust import engine_folder

BATCH, SPEC = 4, tiny.spec("liver")
NET = Net(SPEC, FP32, tiny.threshold_at(60, SPEC))  # the liver net of the tiny model
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "sm_90", 80 << 30)
IMAGES = np.random.default_rng(0).random((BATCH, 1, *SPEC.size), np.float32)


def key(net: Net) -> EngineKey:
    return EngineKey("liver", net.sha256, "torch", torch.__version__, H100.sm, H100.name, "fp32", BATCH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache with the engines of the tiny model, as for a GPU."""
    folder = tmp_path_factory.mktemp("cache")
    model, driver = tiny.cascade_model(folder / "model"), Driver("580.65.06", "13.0", (H100,), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTSEG_CACHE", str(folder))
        patch.setattr(build, "find_driver", lambda: driver)
        patch.setattr(build.torch, "serialize", lambda net, key, _: serialize(net, key, "cpu"))
        built = trtseg.build_engines(model, runtime="torch", precision="fp32", batch=BATCH)
        assert [entry.sidecar.key.role for entry in built] == ["liver", "tumour"]
        assert [entry.problem for entry in cache.entries(verify=True)] == [None, None]
        assert machine.why_unused(key(NET), driver) is None
    return folder


@pytest.fixture
def kept(folder, monkeypatch):
    """The engine file."""
    monkeypatch.setenv("TRTSEG_CACHE", str(folder))
    file = engine_folder() / key(NET).file_name
    data = file.read_bytes()
    yield file
    file.write_bytes(data)


def logits(net: torch_engine.LoadedTorch) -> np.ndarray:
    return run(net._net, IMAGES)


def test_an_engine_that_is_kept_is_used(kept, monkeypatch):
    plain = torch_engine.LoadedTorch(NET, key(NET), "cpu")
    loaded = load_compiled(NET, key(NET), "cpu")
    assert np.abs(logits(loaded) - logits(plain)).max() < 1e-4
    sha256 = hashlib.sha256(kept.read_bytes()).hexdigest()
    told = {"precision": "fp32", "sha256": sha256, "target": "sm_90", "kernels": "compiled"}
    assert loaded.provenance == told
    assert "kernels" not in plain.provenance
    loaded.keep_acceptance({"accepted": True})
    assert load_compiled(NET, key(NET), "cpu").kept_acceptance() == {"accepted": True}
    assert plain.kept_acceptance() is None
    monkeypatch.setattr("torch.backends.cudnn.version", lambda: 91900)  # not the one that it was built with
    assert load_compiled(NET, key(NET), "cpu").kept_acceptance() is None


@pytest.mark.slow
def test_another_process_gives_the_same_logits_without_compiling(kept, tmp_path):
    code = """
import hashlib, sys, test_compiled_engine as t, torch._inductor.compile_fx as compiler
compiler.compile_fx = compiler.compile_fx_inner = None
print(hashlib.sha256(t.logits(t.load_compiled(t.NET, t.key(t.NET), "cpu"))).hexdigest())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    expected = logits(load_compiled(NET, key(NET), "cpu"))
    assert done.stdout.strip() == hashlib.sha256(expected).hexdigest()
    assert list(tmp_path.iterdir()) == []  # the compiler's files are gone


def test_no_engine(kept):
    assert load_compiled(NET, EngineKey(**{**vars(key(NET)), "batch": 2}), "cpu") is None


def test_a_damaged_engine_is_not_read(kept, caplog):
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    assert load_compiled(NET, key(NET), "cpu") is None
    assert "its SHA-256 is" in caplog.text


def test_an_engine_of_another_gpu_of_that_model_is_not_used(kept, caplog):
    assert load_compiled(NET, key(NET), "cuda:1") is None
    assert "compiled on cpu, but the device is cuda:1; PyTorch's own operators run instead" in caplog.text


def test_an_engine_that_does_not_run_is_told_of(kept, monkeypatch, caplog):
    sidecar = cache.find(key(NET))[1]
    for data in (b"", b"of another version of PyTorch"):
        monkeypatch.setattr(cache, "find", lambda _, data=data: (data, sidecar))
        assert load_compiled(NET, key(NET), "cpu") is None
        said = caplog.records[-1].getMessage()
        assert said.startswith("runtime: PyTorch does not run what it compiled for the liver net on cpu (")
        assert said.endswith("); PyTorch's own operators run instead")


def test_an_engine_with_other_rows_for_equal_slices_is_not_used(kept, monkeypatch, caplog):
    def wrong(*given):
        def function(x):
            out = right(*given)(x)
            out[-1] += 1e-3
            return out

        return function

    right = compiled.load
    monkeypatch.setattr(compiled, "load", wrong)
    assert load_compiled(NET, key(NET), "cpu") is None
    assert "the liver net gives other logits for equal slices on cpu" in caplog.text


def test_an_engine_that_the_gate_refuses_is_replaced_by_pytorchs_operators(kept, monkeypatch):
    files = models.find(kept.parents[1] / "model")
    spec = files.spec.nets[0]
    device = types.SimpleNamespace(index=0, name=H100.name)
    place = nets._Place(files, device, H100, None, load_runtime("torch"), BATCH, {})
    monkeypatch.setattr(nets, "load_compiled", lambda *given: load_compiled(*given[:2], "cpu"))
    monkeypatch.setattr(nets, "LoadedTorch", lambda *given: torch_engine.LoadedTorch(*given[:2], "cpu"))
    verdicts = iter(
        [types.SimpleNamespace(accepted=False, reasons=("NaN",)), types.SimpleNamespace(accepted=True)]
    )
    monkeypatch.setattr(nets, "_acceptance", lambda *_: next(verdicts))
    _, told = nets._open_net(place, spec, (FP32,), None)
    assert "kernels" not in told
    assert told["refused"] == ["fp32: NaN"]


@pytest.mark.slow
def test_every_operator_in_parts_and_with_cudnns_convolution(monkeypatch):
    """As on a GPU: convolution and ReLU in one operator of PyTorch, which gives unequal rows for a whole batch."""
    net, calls = net_of_every_operator(), []

    def cudnn(x, w, b, stride, padding, dilation, groups):
        calls.append(len(x))
        return torch.relu(torch.nn.functional.conv2d(x, w, b, stride, padding, dilation, groups))

    def transposed(x, *weights, **options):
        out = right(x, *weights, **options)
        if not isinstance(out, torch.fx.Proxy) and len(x) == BATCH:
            out[-1] += 1e-3
        return out

    right, with_relu = torch.nn.functional.conv_transpose2d, torch_net._with_relu
    expected = run(TorchNet(net, BATCH, "cpu"), IMAGES)
    library = torch.library.Library("aten", "IMPL")
    library.impl("cudnn_convolution_relu", cudnn, "CPU")
    with monkeypatch.context() as patch:
        patch.setattr(torch_net, "_with_relu", lambda *given: with_relu(*given[:-1], "cuda:0"))
        patch.setattr(torch.nn.functional, "conv_transpose2d", transposed)
        made = serialize(net, key(net), "cpu")
    assert made.settings == {"parts of a batch": {"u": 2}, "cuDNN": None, "device": "cpu"}
    loaded = TorchNet(net, BATCH, "cpu", made.data)
    calls.clear()
    assert np.abs(run(loaded, IMAGES) - expected).max() < 1e-4
    assert calls == [BATCH]
    library._destroy()


def net_of_every_operator() -> Net:
    random, node = np.random.default_rng(1), onnx.helper.make_node
    shapes = {"w1": (4, 1, 3, 3), "b1": 4, "w2": (4, 4, 2, 2), "b2": 4, "w3": (1, 8, 1, 1), "b3": 1}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("Relu", ["c1"], ["r1"]),
        node("MaxPool", ["r1"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("ConvTranspose", ["p", "w2", "b2"], ["u"], strides=[2, 2], kernel_shape=[2, 2]),
        node("Concat", ["u", "r1"], ["c"], axis=1),
        node("Conv", ["c", "w3", "b3"], ["logits"], kernel_shape=[1, 1]),
    ]
    info = onnx.helper.make_tensor_value_info
    ends = [info(name, onnx.TensorProto.FLOAT, ["n", 1, *SPEC.size]) for name in ("x", "logits")]
    tensors = [onnx.numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    return Net(SPEC, FP32, onnx.helper.make_model(graph).SerializeToString())
