"""ModelSpec and CascadeSpec: JSON and back, and what they refuse."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny

from trtseg.errors import ArgumentError, ModelError
from trtseg.fit import Fit
from trtseg.spec import CascadeSpec, ModelSpec


def test_json_round_trip():
    liver, tumour = tiny.spec("liver"), tiny.spec("tumour", threshold=0.3)
    cascade = CascadeSpec("m", "1", (liver, tumour), {"liver.onnx": "00"})
    assert ModelSpec.from_json(liver.to_json()) == liver
    assert CascadeSpec.from_json(cascade.to_json()) == cascade


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.spec("liver").threshold = 0.4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"role": "spleen"}, "role: got 'spleen'"),
        ({"fit": "crop"}, "fit: got 'crop'"),
        ({"size": (64,)}, "size"),
        ({"size": (0, 64)}, "size"),
        ({"window": (240.0, -160.0)}, "window"),
        ({"threshold": 1.0}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
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
    with pytest.raises(ModelError, match="roles"):
        CascadeSpec("m", "1", (tumour, liver), {})
    with pytest.raises(ModelError, match="share size"):
        CascadeSpec("m", "1", (liver, tiny.spec("tumour", size=(32, 32))), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nets": 3}, "nets: got 3"),
        ({"nets": [{}]}, "missing"),
        ({"nets": [7]}, "missing"),
        ({"sha256": []}, "sha256"),
        ({"name": 5}, "name"),
    ],
)
def test_a_malformed_manifest(changes, message):
    text = CascadeSpec("m", "1", (tiny.spec("liver"), tiny.spec("tumour")), {}).to_json()
    with pytest.raises(ModelError, match=message):
        CascadeSpec.from_json(json.dumps({**json.loads(text), **changes}))


def test_unknown_and_missing_fields():
    values = json.loads(tiny.spec("liver").to_json())
    del values["window"]
    values["colour"] = "red"
    with pytest.raises(ModelError, match=r"missing \['window'\], unknown \['colour'\]"):
        ModelSpec.from_json(json.dumps(values))
    with pytest.raises(ModelError, match="not JSON"):
        CascadeSpec.from_json("{")


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


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (float("nan"), 1.0), (1.0, -1.0)])
def test_fit_refuses_spacing(spacing):
    with pytest.raises(ArgumentError, match="spacing"):
        Fit.whole_field_of_view((4, 4), spacing, (8, 8))
