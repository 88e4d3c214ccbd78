"""The specs of nets and models: JSON and back, what they refuse, and where they lie in a model's folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import onnx
import pytest
import tiny

from trtseg import models
from trtseg.engines.base import Net
from trtseg.engines.precision import FP16, FP32
from trtseg.errors import ModelError
from trtseg.fit import Fit
from trtseg.models import manifest
from trtseg.models.onnx_spec import check_spec
from trtseg.spec import METADATA_KEY, CascadeSpec, ModelSpec


def model(*nets, **changes) -> CascadeSpec:
    values = {"name": "m", "version": "1", "sha256": {}, "licence": "l", "intended_use": "u"}
    return CascadeSpec(nets=nets, **{**values, **changes})


def test_json_round_trip():
    liver, tumour = tiny.spec("liver"), tiny.spec("tumour", threshold=0.3)
    cascade = model(liver, tumour, sha256={"liver.onnx": "00"})
    assert ModelSpec.from_json(liver.to_json()) == liver
    nets = {"liver": liver, "tumour": tumour}
    assert manifest.from_json(manifest.to_json(cascade), lambda role, _: nets[role]) == cascade


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": "spleen"}, "role: got 'spleen'"),
        ({"fit": "crop"}, "fit: got 'crop'"),
        ({"size": (64,)}, "size"),
        ({"size": (0, 64)}, "size"),
        ({"window": (240.0, -160.0)}, "window"),
        ({"window": (40.0, 40.0)}, "window"),
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": 1.0}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": 10**400}, "threshold"),
        ({"window": (0, 10**400)}, "window"),
        ({"window": (0, float("inf"))}, "window"),
        ({"classes": ("a", "b")}, "1 output channels"),
        ({"classes": "liver"}, "classes: got 'liver'; expected a list"),
        ({"size": (64.0, 64.0)}, "size"),
        ({"window": ("a", "b")}, "window"),
        ({"window": (0.0, None)}, "window"),
        ({"threshold": "x"}, "threshold"),
        ({"version": 5}, "version: got 5; expected text"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ModelError, match=message):
        tiny.spec("liver", **changes)


def test_cascade_needs_its_two_nets_or_one():
    liver, tumour = tiny.spec("liver"), tiny.spec("tumour")
    for nets in ((tumour, liver), (liver,), ()):
        with pytest.raises(ModelError, match="roles"):
            model(*nets)
    with pytest.raises(ModelError, match="share size"):
        model(liver, tiny.spec("tumour", size=(32, 32)))
    with pytest.raises(ModelError, match="share size, fit and pixel_mm"):
        model(liver, tiny.spec("tumour", fit="native"))
    liver, tumour = (
        tiny.spec(role, fit="body", pixel_mm=mm) for role, mm in (("liver", 1.0), ("tumour", 1.5))
    )
    with pytest.raises(ModelError, match="share size, fit and pixel_mm"):
        model(liver, tumour)
    assert model(liver, dataclasses.replace(tumour, pixel_mm=1.0)).nets[1].pixel_mm == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nets": 3}, "nets: got roles 3"),
        ({"nets": [7]}, r"nets: got roles \[7\]"),
        ({"nets": ["../liver", "tumour"]}, "nets: got roles"),
        ({"sha256": []}, "sha256"),
        ({"sha256": {"liver.onnx": 5}}, "sha256"),
        ({"name": 5}, "name: got 5; expected text"),
        ({"colour": "red"}, r"model.json: missing \[\], unknown \['colour'\]"),
    ],
)
def test_a_malformed_manifest(changes, message):
    text = manifest.to_json(model(tiny.spec("liver"), tiny.spec("tumour")))
    with pytest.raises(ModelError, match=message):
        manifest.from_json(json.dumps({**json.loads(text), **changes}), lambda role, _: tiny.spec(role))


def test_unknown_and_missing_fields():
    values = json.loads(tiny.spec("liver").to_json())
    del values["window"]
    values["colour"] = "red"
    with pytest.raises(ModelError, match=r"missing \['window'\], unknown \['colour'\]"):
        ModelSpec.from_json(json.dumps(values))
    for text in ("{", "[" * 10**5, "1" * 5000):  # the last are more than Python's parser takes
        with pytest.raises(ModelError, match=r"model\.json: not JSON"):
            manifest.from_json(text, tiny.spec)


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        return tiny.cascade_model(tmp_path / "model")

    def test_specs_are_read_from_the_onnx_files(self, folder):
        files = models.find(folder)
        assert files.spec.nets == (tiny.spec("liver"), tiny.spec("tumour"))
        assert json.loads((folder / "model.json").read_text())["nets"] == ["liver", "tumour"]
        assert "window" not in (folder / "model.json").read_text()

    def test_of_the_shipped_model_too(self):
        """In every file of a net, as the onnx package reads it."""
        files = models.find("default")
        for spec in files.spec.nets:
            for row in (FP16, FP32):
                data = files.read(row.file(spec.role))
                metadata = onnx.load_from_string(data).metadata_props
                assert {p.key: p.value for p in metadata} == {METADATA_KEY: spec.to_json()}
                check_spec(data, spec)

    def test_a_file_with_another_spec_than_the_model(self, folder):
        files = models.find(folder)
        spec = files.spec.nets[0]
        assert Net.read(files, spec, FP32).onnx == (folder / "liver.onnx").read_bytes()
        with pytest.raises(ModelError, match=r"liver net: the spec .* differs from the model's \(window\)"):
            Net.read(files, dataclasses.replace(spec, window=(-160.0, 241.0)), FP32)

    def test_a_folder_without_a_readable_spec(self, folder):
        path = folder / "tumour.onnx"
        good = path.read_bytes()
        bare = onnx.load_from_string(good)
        del bare.metadata_props[:]

        def put(data: bytes, *, known: bool) -> None:
            path.write_bytes(data)
            if known:
                said = json.loads((folder / "model.json").read_text())
                said["sha256"]["tumour.onnx"] = hashlib.sha256(data).hexdigest()
                (folder / "model.json").write_text(json.dumps(said))

        for data, message in (
            (bare.SerializeToString(), "the ONNX file holds no spec; export the model again"),
            (b"", "the ONNX file holds no spec"),
            (b"no onnx", "not an ONNX file"),
            (b"\xff" * 30, "not an ONNX file"),
            (tiny.threshold_at(60, tiny.spec("liver")), "holds a liver net"),
        ):
            put(data, known=True)
            with pytest.raises(ModelError, match=rf"tumour\.onnx: {message}"):
                models.find(folder)
        put(b"changed", known=False)
        with pytest.raises(ModelError, match=r"tumour\.onnx: its SHA-256 is .*; the file was changed"):
            models.find(folder)
        path.unlink()
        with pytest.raises(ModelError, match=r"tumour\.onnx: cannot be read \(No such file"):
            models.find(folder)


class TestSpecInTheFile:
    def test_a_file_that_is_cut_off(self):
        spec = tiny.spec("liver")
        good = tiny.threshold_at(60, spec)
        check_spec(good, spec)
        for data in (good[:-1], good[:9], b"\x80"):
            with pytest.raises(ModelError, match="liver net: not an ONNX file"):
                check_spec(data, spec)

    def test_fields_of_all_kinds_before_it(self):
        spec = tiny.spec("liver")
        # 30: varint 300, 31: eight bytes, 32: four bytes, 33: two bytes
        others = b"\xf0\x01\xac\x02" + b"\xf9\x01" + b"8" * 8 + b"\x85\x02" + b"4444" + b"\x8a\x02\x02ab"
        check_spec(others + tiny.threshold_at(60, spec), spec)


@pytest.mark.parametrize(
    ("threshold", "logit"), [(0.5, 0.0), (0.75, 1.0986123085021973), (0.25, -1.0986123085021973)]
)
def test_logit_threshold(threshold, logit):
    assert tiny.spec("liver", threshold=threshold).logit_threshold == logit


def test_fit_of_a_slice():
    assert tiny.spec("liver").fit_slice((128, 128), (0.7, 0.7)).step == (2.0, 2.0)
    native = tiny.spec("liver", fit="native")
    assert native.fit_slice((64, 64), (0.7, 0.9)) == Fit.identity((64, 64))
    with pytest.raises(ModelError, match="slices of 65x64 do not fit"):
        native.fit_slice((65, 64), (0.7, 0.7))


@pytest.mark.parametrize(
    ("native", "spacing", "expected"),
    [
        # square: fills the grid
        ((512, 512), (0.8, 0.8), Fit((512, 512), (256, 256), (2.0, 2.0), (0, 0), (256, 256))),
        # 100 x 200 mm: the long side fills it, the short one is centred
        ((100, 200), (1.0, 1.0), Fit((100, 200), (256, 256), (0.78125, 0.78125), (64, 0), (128, 256))),
        # the same field of view, sampled unequally: the same place on the grid
        ((50, 200), (2.0, 1.0), Fit((50, 200), (256, 256), (0.390625, 0.78125), (64, 0), (128, 256))),
        ((1, 1), (1.0, 1.0), Fit((1, 1), (256, 256), (1 / 256, 1 / 256), (0, 0), (256, 256))),
    ],
)
def test_whole_field_of_view(native, spacing, expected):
    assert Fit.whole_field_of_view(native, spacing, (256, 256)) == expected
