"""The net on PyTorch, whose code is the same on the CPU and on a GPU: here it runs on the CPU."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
import types
import weakref
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from engine_models import one_operator

from trtseg import models
from trtseg.cuda.arrays import CudaArray
from trtseg.engines import trust
from trtseg.engines.base import Net, logits_of
from trtseg.engines.calibration import open_reference, references
from trtseg.engines.nvidia.sidecar import EngineKey
from trtseg.engines.nvidia.torch import LoadedTorch, TorchEngine, TorchNet, load_compiled
from trtseg.engines.precision import FP16, FP32
from trtseg.errors import ArgumentError, DeviceError, ModelError, OutOfMemoryError, OutputError


@contextmanager
def played_cuda():
    """What PyTorch is asked on a GPU, noted: streams and memory pools are not used, and GPU arrays are the host's."""
    noted, pools = [], count(1)

    @contextmanager
    def within(*told, **options):
        noted.append(("in", *told, *options.values()))
        yield
        noted.append(("out", *told, *options.values()))

    def as_tensor(array, device):
        noted.append("deterministic" if torch.backends.cudnn.deterministic else "as it comes")
        return torch.from_numpy(array.owner).to(device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "MemPool", lambda: f"pool {next(pools)}")
        patch.setattr(torch.cuda, "ExternalStream", lambda stream, device: (stream, device))
        patch.setattr(torch.cuda, "stream", within)
        patch.setattr(torch.cuda, "use_mem_pool", within)
        patch.setattr(torch, "as_tensor", as_tensor)
        yield noted


def on_gpu(array: np.ndarray) -> CudaArray:
    return CudaArray(array.ctypes.data, array.shape, array.dtype, array)


def run(net: TorchNet, images: np.ndarray) -> np.ndarray:
    """Logits of a batch through `TorchEngine.run`."""
    logits = np.full((net.batch, net.spec.channels, *net.spec.size), np.nan, images.dtype)
    with played_cuda():
        TorchEngine(net).run(on_gpu(images), on_gpu(logits), 7)
    return logits


@pytest.mark.parametrize("role", ["liver", "tumour"])
def test_the_shipped_nets(role):
    """Equal to the reference, and a row depends neither on its place nor on its neighbours."""
    files = models.find("default")
    spec = next(net for net in files.spec.nets if net.role == role)
    images = references(files)[role].images[:2]
    net = TorchNet(Net.read(files, spec, FP32), 2, "cpu")
    assert net.parts == {}
    logits = run(net, images)
    assert np.abs(logits - logits_of(open_reference(files, spec), images)).max() < 1e-4
    assert (run(net, images) == logits).all()
    assert (run(net, images[::-1].copy()) == logits[::-1]).all()


def test_weights_and_logits_of_fp16():
    files = models.find("default")
    spec = files.spec.nets[0]
    images = references(files)["liver"].images[:1]
    got = run(TorchNet(Net.read(files, spec, FP16), 1, "cpu"), images.astype(np.float16))
    assert got.dtype == np.float16
    expected = logits_of(open_reference(files, spec), images)
    assert np.abs(got - expected)[np.abs(expected) < 8].max() < 0.2


def test_an_engine_runs_on_the_stream_that_it_is_told_in_memory_of_its_own():
    net = TorchNet(Net(tiny.spec("liver"), FP32, tiny.threshold_at(60, tiny.spec("liver"))), 1, "cpu")
    images = np.zeros((1, 1, *net.spec.size), np.float32)
    logits = np.empty((1, net.spec.channels, *net.spec.size), np.float32)
    with played_cuda() as noted:
        first, second = TorchEngine(net), TorchEngine(net)
        for engine, pool, stream in ((first, "pool 1", 7), (second, "pool 2", 8), (first, "pool 1", 8)):
            noted.clear()
            engine.run(on_gpu(images), on_gpu(logits), stream)
            entered = [("in", (stream, "cpu")), ("in", pool, "cpu"), "deterministic", "deterministic"]
            assert noted == [*entered, ("out", pool, "cpu"), ("out", (stream, "cpu"))]


@pytest.mark.parametrize(("name", "shape"), [("src", (2, 1, 256, 256)), ("dst", (1, 2, 256, 256))])
def test_an_engine_refuses_arrays_of_another_shape(name, shape):
    files = models.find("default")
    net = TorchNet(Net.read(files, files.spec.nets[0], FP32), 1, "cpu")
    arrays = {key: np.zeros((1, 1, *net.spec.size), np.float32) for key in ("src", "dst")}
    arrays[name] = np.zeros(shape, np.float32)
    with (
        played_cuda(),
        pytest.raises(ArgumentError, match=re.escape(f"{name}: got float32 {shape}; this engine")),
    ):
        TorchEngine(net).run(*map(on_gpu, arrays.values()))


def test_three_classes(tmp_path):
    files = models.find(tiny.one_step_model(tmp_path))
    spec, images = files.spec.nets[0], references(files)["one-step"].images[:2]
    got = run(TorchNet(Net.read(files, spec, FP32), 2, "cpu"), images)
    assert np.abs(got - logits_of(open_reference(files, spec), images)).max() < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"op_type": "Sigmoid"}, "has the operator Sigmoid {}"),
        ({"op_type": "Conv", "group": 2}, "has the operator Conv .*'group': 2"),
        ({"op_type": "Conv", "dilations": [2, 2]}, r"has the operator Conv .*'dilations': \[2, 2\]"),
        ({"op_type": "Conv", "auto_pad": "SAME_UPPER"}, r"has the operator Conv .*'auto_pad': b'SAME_UPPER'"),
        (
            {"op_type": "MaxPool", "kernel_shape": [2, 2], "ceil_mode": 1},
            "has the operator MaxPool .*'ceil_mode': 1",
        ),
        ({"op_type": "Conv", "pads": [0, 0, 1, 1]}, r"has the operator Conv .*'pads': \[0, 0, 1, 1\]"),
        (
            {"op_type": "ConvTranspose", "output_padding": [0, 1]},
            r"has the operator ConvTranspose .*'output_padding': \[0, 1\]",
        ),
        ({"op_type": "Concat", "axis": 2}, "has the operator Concat .*'axis': 2"),
    ],
)
def test_operators_that_no_net_of_trtseg_has_are_refused(change, message):
    model = onnx.load_from_string(one_operator("Relu"))
    change = dict(change)
    model.graph.node[0].op_type = change.pop("op_type")
    model.graph.node[0].attribute.extend(onnx.helper.make_attribute(*pair) for pair in change.items())
    net = Net(tiny.spec("liver"), FP32, model.SerializeToString())
    with pytest.raises(ModelError, match=rf"liver net: {message}.*, which the runtime 'torch' does not run"):
        TorchNet(net, 1, "cpu")


class TestParts:
    """Operators that give other rows for equal slices, as kernels of cuDNN do."""

    NET = Net(tiny.spec("liver"), FP32, tiny.threshold_at(60, tiny.spec("liver")))

    def convolution(self, monkeypatch, bad):
        """PyTorch's convolution, but that the last row is another where ``bad`` says so of the number of rows."""
        right = torch.nn.functional.conv2d

        def wrong(x, *weights, **options):
            out = right(x, *weights, **options)
            if bad(len(x)):
                out[-1] += 1e-3
            return out

        monkeypatch.setattr(torch.nn.functional, "conv2d", wrong)

    def test_are_run_in_parts_of_the_batch(self, monkeypatch):
        net = self.NET
        images = np.random.default_rng(0).random((4, 1, *net.spec.size), np.float32)
        expected = run(TorchNet(net, 4, "cpu"), images)
        self.convolution(monkeypatch, lambda rows: rows == 4)
        made = TorchNet(net, 4, "cpu")
        assert list(made.parts.values()) == [2]
        assert np.abs(run(made, images) - expected).max() < 1e-4

    def test_down_to_single_slices(self, monkeypatch):
        self.convolution(monkeypatch, lambda rows: rows > 1)
        assert list(TorchNet(self.NET, 6, "cpu").parts.values()) == [6]

    def test_nothing_is_read_of_what_is_written(self, monkeypatch):
        """An operator that adds to the memory that it is given: NaN lies there."""
        files = models.find("default")
        net = Net.read(files, files.spec.nets[0], FP32)
        right, kept = torch.nn.functional.max_pool2d, []

        def wrong(x, *options):
            out = right(x, *options)
            kept.append(out)
            return kept[0].add_(out) if len(kept) > 1 else out

        monkeypatch.setattr(torch.nn.functional, "max_pool2d", wrong)
        with pytest.raises(DeviceError, match="gives other logits for equal slices on cpu; use another"):
            TorchNet(net, 2, "cpu")


def test_what_pytorch_raises():
    spec = tiny.spec("liver")
    net = TorchNet(Net(spec, FP32, tiny.threshold_at(60, spec)), 1, "cpu")
    for error, kind in (
        (torch.OutOfMemoryError("9 GiB"), OutOfMemoryError),
        (RuntimeError("CUDA error: out of memory"), OutOfMemoryError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), OutOfMemoryError),
        (RuntimeError("no"), DeviceError),
    ):
        for context in (net.failures, lambda: net._compiler("cannot compile")):
            with pytest.raises(DeviceError, match=re.escape(str(error))) as raised, context():
                raise error
            assert raised.type is kind


def test_the_weights_go_when_a_net_is_closed():
    """Also while something holds the net, and without the garbage collector."""
    net, key = net_of_an_h100()
    loaded = LoadedTorch(net, key, "cpu")
    weight, held = weakref.ref(loaded._net._weights[0]), loaded._net
    gc.disable()
    try:
        loaded.close()
        assert weight() is None
        gone = weakref.ref(held)
        del loaded, held
        assert gone() is None
    finally:
        gc.enable()


def net_of_an_h100():
    spec = tiny.spec("liver")
    net = Net(spec, FP32, tiny.threshold_at(60, spec))
    name = "NVIDIA H100 80GB"
    return net, EngineKey("liver", net.sha256, "torch", torch.__version__, "sm_90", name, "fp32", 2)


def test_acceptance_is_kept_and_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path))
    net, key = net_of_an_h100()
    loaded = LoadedTorch(net, key, "cpu")
    assert loaded.kept_acceptance() is None
    loaded.keep_acceptance({"accepted": True})
    assert LoadedTorch(net, key, "cpu").kept_acceptance() == {"accepted": True}
    assert loaded.provenance == {"precision": "fp32", "sha256": net.sha256, "target": "sm_90"}


def test_acceptance_is_of_one_cudnn_and_of_the_operators_that_were_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path))
    net, key = net_of_an_h100()
    loaded = LoadedTorch(net, key, "cpu")
    loaded.keep_acceptance({"accepted": True})
    (name,) = (path.name for path in (tmp_path / "engines").glob("*.blob"))
    assert name.count("H100") == 1
    with monkeypatch.context() as patch:
        patch.setattr("torch.backends.cudnn.version", lambda: 91900)
        assert loaded.kept_acceptance() is None
    with monkeypatch.context() as patch:
        TestParts().convolution(patch, lambda rows: rows == 2)  # so that other ways are chosen
        assert LoadedTorch(net, key, "cpu").kept_acceptance() is None
    with monkeypatch.context() as patch:
        patch.setattr("trtseg.engines.nvidia.torch.FORMAT", 1000)
        assert loaded.kept_acceptance() is None
    assert loaded.kept_acceptance() == {"accepted": True}


def no_home() -> Path:
    raise OutputError("cache: this user has no home folder")


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        (
            lambda: Path(__file__) / "cache",
            "cannot be created (Not a directory); set TRTSEG_CACHE to a folder",
        ),
        (no_home, "cache: this user has no home folder"),
    ],
)
def test_acceptance_without_a_cache(folder, told, monkeypatch):
    monkeypatch.setattr(trust, "cache_folder", folder)
    spec = tiny.spec("liver")
    net = Net(spec, FP32, tiny.threshold_at(60, spec))
    key = EngineKey("liver", net.sha256, "torch", torch.__version__, "sm_90", "NVIDIA H100 80GB", "fp32", 2)
    assert load_compiled(net, key, "cpu") is None
    loaded = LoadedTorch(net, key, "cpu")
    with pytest.raises(OutputError, match=re.escape(told)):
        loaded.keep_acceptance({"accepted": True})
    assert loaded.kept_acceptance() is None


class TestSettings:
    """PyTorch's settings are those of the whole process."""

    NET = Net(tiny.spec("liver"), FP32, tiny.threshold_at(60, tiny.spec("liver")))

    @pytest.fixture(autouse=True)
    def the_users(self):
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
            yield

    def seen(self) -> tuple[bool, bool, bool, bool]:
        cudnn = torch.backends.cudnn
        tf32 = cudnn.conv.fp32_precision == "tf32" if hasattr(cudnn, "conv") else cudnn.allow_tf32
        return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, tf32

    def test_of_two_threads_are_those_of_one_at_a_time(self):
        inside, done, seen = threading.Event(), threading.Event(), []

        def other(net: TorchNet) -> None:
            with net.settings():
                inside.set()
                done.wait()
                seen.append(self.seen())

        first, second = TorchNet(self.NET, 1, "cpu"), TorchNet(self.NET, 1, "cpu")
        thread = threading.Thread(target=other, args=(second,), daemon=True)
        with first.settings():
            thread.start()
            assert not inside.wait(0.2)
            assert self.seen() == (True, False, True, False)
        assert inside.wait(10)
        done.set()
        thread.join()
        assert seen == [(True, False, True, False)]
        assert self.seen() == (True, True, False, True)

    @pytest.mark.skipif(
        not hasattr(torch.backends.cudnn, "conv"), reason="this PyTorch has only the older switch of TF32"
    )
    def test_of_the_newer_switches_of_tf32(self):
        """A process of its own: what a test sets there cannot be unset."""
        code = """
import torch, test_torch_engine as t
net, cudnn = t.TorchNet(t.TestSettings.NET, 1, "cpu"), torch.backends.cudnn
for where, value in ((torch.backends, "tf32"), (cudnn, "ieee"), (cudnn.conv, "tf32"), (cudnn.conv, "ieee")):
    where.fp32_precision = value
    before = cudnn.conv.fp32_precision
    with net.settings():
        assert cudnn.conv.fp32_precision == "ieee"
    assert (where.fp32_precision, cudnn.conv.fp32_precision) == (value, before)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_of_a_pytorch_that_has_the_older_switch_only(self, monkeypatch):
        net = TorchNet(self.NET, 1, "cpu")
        older = types.SimpleNamespace(enabled=False, benchmark=True, deterministic=False, allow_tf32=True)
        backends = types.SimpleNamespace(cudnn=older)
        module = types.SimpleNamespace(backends=backends, inference_mode=torch.inference_mode)
        monkeypatch.setattr(net, "_torch", module)
        with net.settings():
            assert tuple(vars(older).values()) == (True, False, True, False)
        assert tuple(vars(older).values()) == (False, True, False, True)
