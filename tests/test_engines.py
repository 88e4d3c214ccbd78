"""The text of engines/base.py, held against the engine of the CPU; tests/gpu holds it against those of GPUs."""

from __future__ import annotations

import functools
import re
import sys
import types

import numpy as np
import pytest
import tiny

from trtseg import models
from trtseg.engines import available_devices, open_engine, openvino, resolve_device
from trtseg.engines.openvino import native_bf16
from trtseg.errors import ArgumentError, DeviceError, ModelError

GUARD = 12345.0


PRECISIONS = ["fp32", "bf16"] if native_bf16() else ["fp32"]  # BF16 is an error where the processor lacks it


@pytest.fixture(scope="module", params=PRECISIONS)
def liver(request):
    """The shipped liver net."""
    files = models.find("default")
    return open_engine(files.read("liver"), files.spec.nets[0], precision=request.param)


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
    assert liver.precision in PRECISIONS
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
    engine = open_engine(tiny.convolution(weight, np.array([1.0, 2, 3]), spec), spec, precision="fp32")
    src = np.random.default_rng(2).random((2, 1, *spec.size), np.float32)
    padded = np.pad(src[:, 0], ((0, 0), (1, 1), (1, 1))).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    expected = np.einsum("nyxij,cij->ncyx", windows, weight[:, 0]) + np.array([1, 2, 3])[:, None, None]
    assert np.abs(run(engine, src) - expected).max() < 1e-5


@pytest.mark.skipif("bf16" not in PRECISIONS, reason="this processor has no BF16")
def test_bf16_is_close_to_fp32(images):
    files = models.find("default")
    answers = [
        run(open_engine(files.read("liver"), files.spec.nets[0], precision=p), images)
        for p in ("fp32", "bf16")
    ]
    difference = np.abs(answers[0] - answers[1])
    assert difference.max() > 0  # else BF16 was not what ran
    assert difference.mean() < 0.2


def test_refusals():
    spec = tiny.spec("liver")
    net = tiny.threshold_at(60, spec)
    with pytest.raises(ArgumentError, match="precision: got 'fp8'"):
        open_engine(net, spec, precision="fp8")
    with pytest.raises(ModelError, match="cannot run it"):
        open_engine(b"no onnx", spec, precision="fp32")
    wrong = tiny.convolution(np.zeros((3, 1, 1, 1)), np.zeros(3), tiny.spec("one-step"))
    with pytest.raises(ModelError, match=r"model\.json differs from the spec in the ONNX file"):
        open_engine(wrong, spec, precision="fp32")
    three = tiny.spec("one-step")
    lying = tiny.convolution(np.zeros((1, 1, 1, 1)), np.zeros(1), three)
    with pytest.raises(
        ModelError, match=r"gives logits of shape \[1, 1, 64, 64\], but its spec says \[1, 3, 64, 64\]"
    ):
        open_engine(lying, three, precision="fp32")


@pytest.mark.parametrize("device", ["cuda:99", "tpu", ""])
def test_a_named_device_that_is_not_there_is_an_error(device):
    with pytest.raises(DeviceError, match="device: got"):
        resolve_device(device)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, r"OpenVINO is not installed; it runs nets on the CPU, .*: pip install openvino$"),
        (
            "import libopenvino_of_old",
            r"OpenVINO does not load \(No module named .*\); .* --force-reinstall op",
        ),
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
    monkeypatch.setattr(openvino, "_core", functools.cache(openvino._core.__wrapped__))
    files = models.find("default")
    with pytest.raises(DeviceError, match=message):
        open_engine(files.read("liver"), files.spec.nets[0], precision="fp32")
    (cpu, works, why), (cuda, _, _) = available_devices()
    assert (cpu, works, cuda) == ("cpu", False, "cuda")
    assert re.search(message, why)


def absent(name: str) -> None:
    if name == "openvino":
        raise ModuleNotFoundError("No module named 'openvino'", name=name)


def test_auto_and_list():
    assert resolve_device("auto") == "cpu"
    (cpu, works, _), (cuda, _, _) = available_devices()
    assert (cpu, works, cuda) == ("cpu", True, "cuda")
