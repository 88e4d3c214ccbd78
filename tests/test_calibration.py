"""Slices to accept engines with: the model's own, or the phantom's, and the FP32 reference's logits for them."""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import sys

import numpy as np
import pytest
import tiny

from trtseg import models, reference
from trtseg.engines import calibration
from trtseg.engines.base import Net, logits_of
from trtseg.engines.calibration import (
    FILE,
    SETTLED,
    open_reference,
    pack_slices,
    read_slices,
    references,
    show,
)
from trtseg.engines.openvino import OpenVinoEngine
from trtseg.engines.precision import FP32
from trtseg.errors import DeviceError, ModelError
from trtseg.models import manifest
from trtseg.phantom import abdomen

SPACING = (3.0, 2.5)


def run_of(files):
    """Runs a net of a model in FP32."""
    engines = {spec.role: open_reference(files, spec) for spec in files.spec.nets}
    return lambda spec, x: logits_of(engines[spec.role], x)


@pytest.fixture(params=["cascade", "one-step"])
def folder(request, tmp_path):
    make = tiny.cascade_model if request.param == "cascade" else tiny.one_step_model
    return make(tmp_path / "model")


def with_slices(folder, hu=None):
    """The model with slices of its own, which are the phantom's of another spacing."""
    files = models.find(folder)
    hu = abdomen(shape=(5, 50, 70), spacing=(40.0, *SPACING)).ct if hu is None else hu
    data = pack_slices(hu, SPACING, files.spec.nets, run_of(files), "made up")
    (folder / FILE).write_bytes(data)
    sha256 = {**files.spec.sha256, FILE: hashlib.sha256(data).hexdigest()}
    (folder / "model.json").write_text(manifest.to_json(dataclasses.replace(files.spec, sha256=sha256)))
    return models.find(folder)


def no_runtime(monkeypatch):
    """Neither OpenVINO nor ONNX Runtime is installed."""
    monkeypatch.setattr(calibration, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "openvino", None)


def test_the_nets_are_shown_what_the_cascade_shows_them(folder):
    """By the oracle of the operations."""
    files = models.find(folder)
    hu = abdomen(shape=(4, 50, 70), spacing=(40.0, *SPACING)).ct
    shown, first = show(hu, SPACING, files.spec.nets, run_of(files)), files.spec.nets[0]
    hu_net, x1 = reference.prepare(hu, first.fit_slice((50, 70), SPACING), first.window)
    assert (shown[first.role][0] == x1).all()
    for spec in files.spec.nets:
        engine = OpenVinoEngine(Net.read(files, spec, FP32))
        assert (shown[spec.role][1] == logits_of(engine, shown[spec.role][0])).all()
    if len(shown) == 2:
        logits, window = shown["liver"][1], files.spec.nets[1].window
        x2, pixels = reference.gate(logits, hu_net, first.logit_threshold, window)
        assert (shown["tumour"][0] == x2).all()
        assert 0 < pixels.sum() < pixels.size * 4096


class TestPhantom:
    """For models without slices."""

    @pytest.mark.parametrize("fit", ["fit", "native"])
    @pytest.mark.parametrize("size", [(64, 64), (48, 80)])
    def test_any_size_and_fit(self, tmp_path, size, fit):
        files = models.find(tiny.one_step_model(tmp_path, size=size, fit=fit))
        found = references(files)["one-step"]
        assert found.images.shape == (8, 1, *size)
        assert found.logits.shape == (8, 3, *size)
        assert (found.images.dtype, found.logits.dtype) == (np.float32, np.float32)
        winner = found.logits.argmax(axis=1)
        assert ((winner == 1).sum(), (winner == 2).sum()) > (100, 30)
        assert not found.images.any(axis=(0, 1, 2)).all(), "the body is whole"
        assert len({image.tobytes() for image in found.images}) == 8, "a mix-up of two slices shows"


class TestTheModelsOwn:
    def test_hu_and_spacing(self, folder):
        hu = abdomen(shape=(5, 50, 70), spacing=(40.0, *SPACING)).ct
        slices = read_slices(with_slices(folder, hu))
        assert (slices.hu == hu).all()
        assert (slices.spacing, slices.about) == (SPACING, "made up")

    def test_stored_logits_are_those_of_the_reference(self, folder):
        """To half a step near the threshold; beyond it they are settled, and no label changes."""
        files = with_slices(folder)
        stored, computed = read_slices(files).logits, references(files)
        for spec in files.spec.nets:
            got, expected = stored[spec.role], computed[spec.role].logits
            assert (got.dtype, got.shape) == (np.float32, expected.shape)
            if spec.role == "one-step":
                assert (got.argmax(1) == expected.argmax(1)).mean() > 0.999
                assert np.abs(got - expected)[np.abs(expected) < 127].max() <= 1 / 512 + 1e-5
                continue
            inside = computed[spec.role].images > 0 if spec.role == "tumour" else np.ones(got.shape, bool)
            threshold = spec.logit_threshold
            assert ((got > threshold) == (expected > threshold))[inside].all()
            limit = threshold - SETTLED, threshold + SETTLED
            assert np.abs(got.clip(*limit) - expected.clip(*limit))[inside].max() <= 1 / 256
            assert (got[~inside] < threshold).all()

    def test_without_a_runtime_the_stored_logits_serve(self, folder, monkeypatch):
        files = with_slices(folder)
        computed = references(files)
        no_runtime(monkeypatch)
        found = references(files)
        for spec in files.spec.nets:
            assert (found[spec.role].images == computed[spec.role].images).all(), "the liver mask is the same"
            assert (found[spec.role].logits == read_slices(files).logits[spec.role]).all()
            assert found[spec.role].source == "the logits in calibration.npz"
            assert computed[spec.role].source.startswith("openvino 20")

    @pytest.mark.parametrize("content", [b"", b"no zip", None])
    def test_a_file_that_cannot_be_read(self, folder, content):
        files = with_slices(folder)
        if content is None:  # of another model
            (folder / FILE).write_bytes(b"changed")
            with pytest.raises(ModelError, match=r"calibration\.npz: its SHA-256 is"):
                references(files)
            return
        (folder / FILE).write_bytes(content)
        sha256 = {**files.spec.sha256, FILE: hashlib.sha256(content).hexdigest()}
        files = models.ModelFiles(folder, dataclasses.replace(files.spec, sha256=sha256))
        with pytest.raises(ModelError, match=r"calibration\.npz: cannot be read"):
            references(files)


def test_without_a_runtime_and_stored_logits_there_is_no_reference(tmp_path, monkeypatch):
    files = models.find(tiny.one_step_model(tmp_path))
    no_runtime(monkeypatch)
    with pytest.raises(DeviceError, match=r"OpenVINO .*; it .* gives the FP32 reference .*: pip install"):
        references(files)


def test_onnx_runtime_is_the_reference_where_openvino_is_not(monkeypatch, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")
    files = models.find(tiny.one_step_model(tmp_path))
    expected = references(files)["one-step"]
    monkeypatch.setattr(calibration, "find_spec", lambda name: None if name == "openvino" else builtins)
    found = references(files)["one-step"]
    assert found.source.startswith("onnxruntime ")
    assert np.abs(found.logits - expected.logits).max() < 1e-4


def test_a_net_that_gives_nan_in_fp32(tmp_path):
    spec = tiny.spec("one-step")
    net = tiny.convolution(
        np.full((3, 1, 1, 1), 3e38), np.full(3, 3e38), spec
    )  # each finite, their sum is not
    files = models.find(tiny.write_model(tmp_path, {"one-step": (spec, net)}))
    with pytest.raises(ModelError, match="one-step net: gives NaN or infinity in FP32"):
        references(files)


def test_files_of_the_reference():
    """FP16 and INT8 are compared with it; the tumour net sees what the liver net leaves of the slices."""
    files = models.find("default")
    names = ["calibration.npz", "liver.onnx", "tumour.onnx"]
    expected = {name: hashlib.sha256((files.folder / name).read_bytes()).hexdigest() for name in names}
    assert [found.files for found in references(files).values()] == [expected, expected]


def test_the_shipped_model_has_slices_of_its_own():
    """With tumours, and without; and their licence."""
    files = models.find("default")
    slices, found = read_slices(files), references(files)
    assert slices.hu.shape == (8, *files.spec.nets[0].size)
    assert "CC BY-SA" in slices.about
    assert "case00" not in slices.about, "case 0 validates"
    liver, tumour = files.spec.nets
    livers = (found["liver"].logits > liver.logit_threshold).sum(axis=(1, 2, 3))
    inside = found["tumour"].images > 0
    tumours = ((found["tumour"].logits > tumour.logit_threshold) & inside).sum(axis=(1, 2, 3))
    assert (livers > 1000).all()
    assert (tumours > 100).sum() >= 3
    assert (tumours == 0).sum() >= 3
    assert files.spec.sha256[FILE]
    assert (files.folder / FILE).stat().st_size < 600_000
