"""benchmarks.gpu without a GPU: it times the same nets and the same cascade, and its floor and goals are right."""

from __future__ import annotations

import copy
import json
import sys
import types
from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_8bit, gpu_floor
from benchmarks.gpu_torch import TorchCascade, torch_nets
from trtseg import Segmenter, models
from trtseg.cascade import gpu as cascade
from trtseg.phantom import abdomen

FILES = models.find("default")


@pytest.fixture(scope="module")
def nets():
    return torch_nets(FILES, "cpu", torch.float32)


@pytest.fixture(scope="module")
def hu():
    """A slice of a chest, one with liver, and the chest again."""
    ct = abdomen((10, gpu.SIZE, gpu.SIZE), (40.0, *gpu.SPACING)).ct
    return ct[[7, 5, 7]]


def test_the_torch_cascade_gives_the_same_labels(nets, hu):
    fit = FILES.spec.nets[0].fit_slice(hu.shape[1:], gpu.SPACING)
    theirs = TorchCascade(FILES.spec, fit, nets, 2, device="cpu", dtype=torch.float32)
    with Segmenter(device="cpu", precision="fp32") as segmenter:
        opened = {"trtseg": lambda batch: gpu.Trtseg(segmenter), "eager-fp16": lambda batch: theirs}
        benchmark = gpu.Benchmark(opened, hu)
        benchmark.volume(1, device="cpu")
        benchmark.slices(2)
    found = [bool(part.any()) for part in benchmark.labels]
    assert found == [False, True, False]
    assert min(benchmark.data["agreement"]["eager-fp16"].values()) > 0.999
    assert benchmark.data["slice"]["eager-fp16"]["runs"] == 2


def test_layers_have_the_flops_that_torch_counts_and_the_bytes_of_their_shapes(nets):
    from torch.utils.flop_counter import FlopCounterMode

    for spec, net in zip(FILES.spec.nets, nets, strict=True):
        layers = gpu_floor.layers(FILES.read(f"{spec.role}.onnx"))
        with FlopCounterMode(display=False) as counter:
            copy.deepcopy(net).to("meta")(torch.zeros(1, 1, *spec.size, device="meta"))
        assert sum(layer.flops for layer in layers) == counter.get_total_flops()
        parameters = sum(weight.numel() for weight in net.parameters())
        assert sum(layer.weights for layer in layers) == 2 * parameters
        # the strided convolution from 1 to 16 channels, and the first pooling of 24
        assert layers[0].bytes == 2 * (256 * 256 + 16 * 128 * 128)
        pool = next(layer for layer in layers if layer.flops == 0)
        assert (pool.bytes, pool.weights) == (2 * 24 * (128 * 128 + 64 * 64), 0)


def test_convolutions_that_are_timed_in_8_bits(nets):
    """Those of the nets, by the shapes that PyTorch sees; channels come in multiples of 16."""
    for spec, net in zip(FILES.spec.nets, nets, strict=True):
        seen: Counter[tuple[int, int, int]] = Counter()

        def see(module, given, result, seen=seen):
            if module.kernel_size == (3, 3):
                seen[given[0].shape[1], result.shape[1], given[0].shape[2]] += 1

        copied = copy.deepcopy(net).to("meta")
        for module in copied.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(see)
        copied(torch.zeros(1, 1, *spec.size, device="meta"))
        assert gpu_8bit.layers(FILES.read(f"{spec.role}.onnx")) == seen
        assert sum(seen.values()) > 10
    assert gpu_8bit.padded(gpu_8bit.Layer(24, 48, 128), 16) == (32, 48, 128)


def test_what_8_bits_need_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cudnn", None)
    assert gpu_8bit.main([]) == 2
    assert "needs nvidia-cudnn-frontend" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "cudnn", types.ModuleType("cudnn"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_8bit.main([]) == 2
    assert "needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("failing", "code"), [("fp16", 1), ("fp8", 0)])
def test_an_8_bit_layer_may_not_run_but_one_of_16_bits_must(monkeypatch, capsys, tmp_path, failing, code):
    cudnn = types.SimpleNamespace(
        create_handle=lambda: 7, backend_version=lambda: 91900, __version__="1.18.0", data_type=None
    )
    monkeypatch.setitem(sys.modules, "cudnn", cudnn)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def median(_cudnn, handle, layer, batch, kinds):
        if kinds == (gpu_8bit.TYPES[failing][0], gpu_8bit.TYPES[failing][1], kinds[2]):
            raise RuntimeError(f"no {kinds[0]} here")
        return float(handle)

    monkeypatch.setattr(gpu_8bit, "_median", median)
    assert gpu_8bit.main(["--json", str(tmp_path / "8bit.json")]) == code
    layers = json.loads((tmp_path / "8bit.json").read_text())["layers"]
    assert len(layers) > 5
    for layer in layers:
        assert layer[failing]["failed"]
        assert layer["int8"] == {"us": 7.0, "result": "INT8"}


def test_floor():
    labels = np.zeros((40, 2, 2), np.uint8)
    labels[[3, 35]] = 1
    assert gpu_floor.slices_with_net(labels, 16) == 24  # the first chunk, and the rest of 8
    rate = {"matmul_flops": 1e6, "memory_bytes": 1e5, "to_gpu_bytes": 320.0, "from_gpu_bytes": 80.0}
    computes, moves = gpu_floor.Layer(500, 1, 1), gpu_floor.Layer(1, 100, 400)
    terms = gpu_floor.floor(labels, 16, ([computes], [computes, moves]), rate)
    # 40 x 500 FLOPs; 24 x 500 FLOPs; 24 x 100 + 2 x 400 bytes
    assert terms["nets_ms"] == pytest.approx(20 + 12 + 32)
    assert [terms[name] for name in ("to_gpu_ms", "from_gpu_ms")] == [1000, 2000]
    assert [terms[name] for name in ("device_ms", "host_ms", "longest_ms")] == pytest.approx([64, 3064, 2000])


def test_summary_and_turns():
    found = gpu.summary([1e6 * n for n in range(1, 1001)])
    assert found == {
        "runs": 1000,
        "min_ms": 1,
        "median_ms": 500.5,
        "p50_ms": 501,
        "p99_ms": 991,
        "max_ms": 1000,
    }
    order: list[str] = []
    times = gpu.rounds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 5, turn=2)
    assert "".join(order) == "aabbaabbab"
    assert {name: len(samples) for name, samples in times.items()} == {"a": 5, "b": 5}


class Threshold:
    """A candidate that takes no time."""

    def __init__(self, hu: int) -> None:
        self._hu = hu

    def run(self, hu, out):
        np.add(hu > self._hu, hu > 150, out=out, dtype=np.uint8)


def test_report(hu, tmp_path, capsys):
    """Candidates that work, that have other labels and that break; one table, one JSON."""
    file = tmp_path / "gpu.json"
    opened = {
        "trtseg": lambda batch: Threshold(100),
        "eager-fp16-host": lambda batch: Threshold(100),
        "eager-fp16": lambda batch: Threshold(50),
        "torch-graphs": lambda batch: 1 / 0,
    }
    benchmark = gpu.Benchmark(opened, hu, file)
    benchmark.part("volume", lambda: benchmark.volume(2, device="cpu"))
    assert json.loads(file.read_text()) == benchmark.data
    benchmark.data["stages"] = {"prepare": 0.5}
    assert set(benchmark.data["host"]) == {"trtseg", "eager-fp16-host"}
    text = gpu.table(benchmark.data, list(opened))
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "1.00" in rows["trtseg"]
    assert "1.0000" in rows["eager-fp16-host"]
    assert "failed: RuntimeError: other labels than the first candidate" in rows["eager-fp16"]
    assert "failed: ZeroDivisionError: division by zero" in rows["torch-graphs"]
    assert "stages: prepare 0.5" in text
    assert "Traceback" in capsys.readouterr().err


def test_one_candidate_has_three_lanes_and_the_others_two(monkeypatch, tmp_path):
    lanes: list[int] = []

    class Opened:
        def __init__(self, *_: object, **__: object) -> None:
            self.provenance = {"engines": {"liver": {"kernels": "compiled"}}}
            lanes.append(cascade.LANES)

    monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu, "Segmenter", Opened)
    for asked in ({}, {"lanes": 3}, {}):
        gpu.open_compiled("default", 16, **asked)
    assert lanes == [2, 3, 2]


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "benchmarks.gpu: needs a GPU" in capsys.readouterr().err
