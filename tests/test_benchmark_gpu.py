"""benchmarks.gpu without a GPU: that it times the same nets and the same cascade, and what it makes of the times."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_measure, gpu_report
from benchmarks.gpu_candidates import torch_nets
from benchmarks.gpu_measure import Ct
from benchmarks.gpu_race import Benchmark
from benchmarks.gpu_torch import TorchCascade, channels_last
from benchmarks.gpu_trtseg import Trtseg
from trtseg import Segmenter, models
from trtseg.engines import open_engine

FILES = models.find("default")


@pytest.fixture(scope="module")
def nets():
    return torch_nets(FILES, "cpu", torch.float32)


@pytest.fixture(scope="module")
def ct():
    """Two slices of a chest, two with liver, and one of the chest again."""
    phantom = gpu_measure.phantom(40, 512)
    return Ct(phantom.hu[[36, 39, 20, 24, 36]], phantom.spacing)


def eager(nets):
    return lambda ct, batch: TorchCascade(
        FILES.spec, lambda _: nets, ct.hu.shape[1:], ct.spacing, batch, device="cpu", dtype=torch.float32
    )


def ours():
    segmenter = Segmenter("default", device="cpu", precision="fp32")
    return lambda ct, batch: Trtseg(segmenter, ct.spacing)


@pytest.mark.parametrize("index", [0, 1])
def test_the_torch_nets_are_the_models(nets, ct, index):
    spec = FILES.spec.nets[index]
    hu = gpu_measure.halved(ct).hu[2:3, None].astype(np.float32)
    x = np.clip((hu - spec.window[0]) / (spec.window[1] - spec.window[0]), 0, 1)
    expected = np.empty_like(x)
    open_engine(FILES, spec, precision="fp32").run(x, expected)
    with torch.inference_mode():
        got = nets[index](channels_last(torch.from_numpy(x))).numpy()
    assert np.abs(got - expected).max() < 1e-3


def test_the_torch_cascade_gives_the_same_labels(nets, ct):
    for volume in (ct, gpu_measure.halved(ct)):
        labels, expected = np.full(volume.hu.shape, 9, np.uint8), np.zeros(volume.hu.shape, np.uint8)
        ours()(volume, 2).run(volume.hu, expected)
        assert [bool(one.any()) for one in (expected[:2], expected[2:4], expected[4:])] == [
            False,
            True,
            False,
        ]
        eager(nets)(volume, 2).run(volume.hu, labels)
        assert labels.max() == 2
        assert min(gpu_measure.agreement(labels, expected).values()) > 0.999


def test_flops_are_those_that_torch_counts(nets):
    from torch.utils.flop_counter import FlopCounterMode

    for spec, net in zip(FILES.spec.nets, nets, strict=True):
        with FlopCounterMode(display=False) as counter:
            copy.deepcopy(net).to("meta")(torch.zeros(1, 1, *spec.size, device="meta"))
        assert gpu_measure.flops(FILES.read(f"{spec.role}.onnx")) == counter.get_total_flops()


def test_summary():
    found = gpu_measure.summary([1e6 * n for n in range(1, 1001)])
    assert found == {
        "runs": 1000,
        "min_ms": 1,
        "median_ms": 500.5,
        "p50_ms": 501,
        "p99_ms": 991,
        "p99.9_ms": 1000,
        "max_ms": 1000,
    }


def test_rounds_take_turns_and_go_on_without_who_fails(capsys):
    order, failed = [], []

    def breaks():
        order.append("b")
        if order.count("b") == 3:
            raise ValueError("broken")

    times = gpu_measure.rounds(
        {"a": lambda: order.append("a"), "b": breaks},
        5,
        turn=2,
        failed=lambda name, error: failed.append((name, str(error))),
    )
    assert "".join(order) == "aabbaaba"
    assert {name: len(t) for name, t in times.items()} == {"a": 5}
    assert failed == [("b", "broken")]
    assert "Traceback" in capsys.readouterr().err


def test_floor():
    labels = np.zeros((40, 2, 2), np.uint8)
    labels[[3, 35]] = 1
    assert gpu_measure.slices_with_net(labels, 16) == 24  # the first chunk, and the rest of 8
    rate = {"matmul_flops": 1e6, "to_gpu_bytes": 320.0, "from_gpu_bytes": 80.0}
    terms = gpu_measure.floor(Ct(np.zeros((40, 2, 2), np.int16), (1, 1)), labels, 16, (100, 500), rate)
    assert terms == {
        "nets_ms": 16,
        "to_gpu_ms": 1000,
        "from_gpu_ms": 2000,
        "host_ms": 2000,
        "device_ms": 16,
        "sum_ms": 3016,
    }


class Threshold:
    """A candidate that takes no time."""

    def __init__(self, hu: int) -> None:
        self._hu = hu

    def run(self, hu, out):
        np.add(hu > self._hu, hu > 150, out=out, dtype=np.uint8)


def test_report(ct, tmp_path, capsys):
    """Candidates that work, that have other labels, that break and that are not there; one table, one JSON."""

    def missing(ct, batch):
        raise gpu_report.LeftOutError("not installed")

    opened = {
        "trtseg": lambda ct, batch: Threshold(100),
        "eager-fp16": lambda ct, batch: Threshold(100),
        "wrong": lambda ct, batch: Threshold(50),
        "broken": lambda ct, batch: 1 / 0,
        "absent": missing,
    }
    file = tmp_path / "gpu.json"
    report = gpu_report.Report(file, 600)
    report.data |= {"candidates": list(opened), "device": {"name": "a CPU"}}
    benchmark = Benchmark(report, opened, device="cpu", repeats=2)
    few = Ct(ct.hu[2:4], ct.spacing)
    benchmark.volume(few, list(opened))
    benchmark.volume(few, ["trtseg"])
    benchmark.slices(few, ["trtseg", "eager-fp16"], 4)
    rate = {"matmul_flops": 1e12, "to_gpu_bytes": 1e8, "from_gpu_bytes": 1e10}  # the copy takes longest
    floor = gpu_measure.floor(few, benchmark.labels[few.name], 16, (10**9, 10**9), rate)
    report.data["floor"] = {"volumes": {few.name: floor}}
    report.data["goals"] = gpu_report.goals(report.data, few.name)
    report.save()

    assert json.loads(file.read_text()) == report.data
    assert report.failed
    assert set(report.data["volumes"]["512x512"]["host"]) == {"trtseg", "eager-fp16", "trtseg (again)"}
    assert report.data["slice"]["trtseg"]["runs"] == 4
    text = gpu_report.table(report.data)
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "1.00" in rows["trtseg"]
    assert "1.0000" in rows["eager-fp16"]
    assert "failed: other labels than trtseg" in rows["wrong"]
    assert "failed: ZeroDivisionError: division by zero" in rows["broken"]
    assert "left out: not installed" in rows["absent"]
    assert "it is the longest, 10.49 ms" in text
    assert "From GPU memory to GPU memory: the nets alone, 4.00 ms" in text
    assert report.data["floor"]["volumes"]["512x512"]["device_ms"] == 4
    assert "Traceback" in capsys.readouterr().err
    assert all(line.endswith("on a CPU)") for line in gpu_report.goal_lines(report.data))


def test_goals():
    volume = {"host": {"trtseg": {"median_ms": 3.0}, "eager-fp16": {"times_trtseg": 5.0}}}
    data = {
        "volumes": {"512x512": volume},
        "floor": {"volumes": {"512x512": {"host_ms": 1.0}}},
        "slice": {"trtseg": {"p99_ms": 1.4}},
    }
    assert [goal["status"] for goal in gpu_report.goals(data, "512x512")] == ["not met", "met", "met"]
    assert {goal["status"] for goal in gpu_report.goals({}, "512x512")} == {"not measured"}


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "benchmarks.gpu: PyTorch sees no GPU; run this where there is one\n"


def test_unknown_parts_are_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--without", "torch-compile,trt"])
    assert "--without: got trt; expected trtseg, " in capsys.readouterr().err
