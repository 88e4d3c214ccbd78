"""A model small enough to be worked out by hand: each net is one convolution, written with the onnx package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from trtseg.models import manifest
from trtseg.spec import METADATA_KEY, CascadeSpec, ModelSpec

SIZE = (64, 64)
WINDOW = {"liver": (-160.0, 240.0), "tumour": (-40.0, 200.0), "one-step": (-160.0, 240.0)}


def spec(role: str, /, **changes) -> ModelSpec:
    """A ModelSpec of that role; ``changes`` replace single fields."""
    values = {
        "role": role,
        "size": SIZE,
        "fit": "fit",
        "window": WINDOW[role],
        "threshold": 0.5,
        "classes": ("background", "liver", "tumour") if role == "one-step" else (role,),
        "version": "0",
        "trained_on": "nothing",
        "licence": "none",
        "intended_use": "tests; not for clinical use",
    }
    return ModelSpec(**{**values, **changes})


def convolution(weight: np.ndarray, bias: np.ndarray, of: ModelSpec) -> bytes:
    """An ONNX file with one convolution, weight ``[channels, 1, k, k]``, that keeps the size."""
    from onnx import TensorProto, helper, numpy_helper  # not needed for specs, of which there are GPU tests

    rows, columns = of.size
    pad = weight.shape[-1] // 2
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["logits"], pads=[pad] * 4)],
        of.role,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, rows, columns])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(weight), rows, columns])],
        [
            numpy_helper.from_array(weight.astype(np.float32), "w"),
            numpy_helper.from_array(bias.astype(np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: of.to_json()})
    return model.SerializeToString()


def threshold_at(hu: float, of: ModelSpec, steepness: float = 40.0) -> bytes:
    """A net whose logit is positive above ``hu`` Hounsfield units."""
    lo, hi = of.window
    return convolution(np.full((1, 1, 1, 1), steepness), np.array([-steepness * (hu - lo) / (hi - lo)]), of)


def write_model(folder: Path, nets: dict[str, tuple[ModelSpec, bytes]]) -> Path:
    """A model folder with FP32 files."""
    files = {f"{role}.onnx": data for role, (_, data) in nets.items()}
    return write_files(folder, files, tuple(s for s, _ in nets.values()))


def write_files(folder: Path, files: dict[str, bytes], specs: tuple[ModelSpec, ...]) -> Path:
    """A model folder with the ONNX files of these names and their true hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    sha256 = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    model = CascadeSpec("tiny", "0", specs, sha256, "none", "tests")
    (folder / "model.json").write_text(manifest.to_json(model))
    return folder


def cascade_model(folder: Path) -> Path:
    """Liver is what lies above 60 HU, tumour what of it lies below 85 HU."""
    liver, tumour = spec("liver"), spec("tumour")
    below = threshold_at(85, tumour, steepness=-40.0)
    return write_model(folder, {"liver": (liver, threshold_at(60, liver)), "tumour": (tumour, below)})


def one_step_model(folder: Path, **changes) -> Path:
    """Background up to 40 HU, tumour up to 85 HU, liver above; ``changes`` are of the spec."""
    of = spec("one-step", **changes)
    low, high = ((hu - of.window[0]) / (of.window[1] - of.window[0]) for hu in (40, 85))
    slopes = np.array([0.0, 80.0, 40.0])
    bias = np.array([0.0, -40 * (low + high), -40 * low])
    return write_model(folder, {"one-step": (of, convolution(slopes.reshape(3, 1, 1, 1), bias, of))})
