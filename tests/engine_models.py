"""What the tests of engines share: tiny models with FP16 files, and keys and sidecars of engines that nobody runs."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper

from trtseg import models
from trtseg.engines.base import Net
from trtseg.engines.nvidia.driver import Driver
from trtseg.engines.nvidia.sidecar import EngineKey, Sidecar
from trtseg.engines.precision import FP16, Precision
from trtseg.spec import METADATA_KEY

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed: pip install "trtseg[rtx]"',
)


NO_DRIVER = Driver(None, None, (), "there is no NVIDIA driver (libcuda.so.1 is not found)")


def net_of(model: Path, precision: Precision = FP16) -> Net:
    """The liver net of a model's folder."""
    files = models.find(model)
    return Net.read(files, files.spec.nets[0], precision)


def half(data: bytes) -> bytes:
    """The same net with FP16 weights, input and output."""
    model = onnx.load_from_string(data)
    for weight in model.graph.initializer:
        weight.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name)
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model.SerializeToString()


def write_model(folder: Path, files: dict[str, bytes]) -> Path:
    """A cascade of the ONNX files of these names."""
    return tiny.write_files(folder, files, (tiny.spec("liver"), tiny.spec("tumour")))


def nets() -> dict[str, bytes]:
    """FP32 and FP16 files of a cascade; no HU is so near a threshold that FP16 could change its label."""
    files = {}
    for role, hu in (("liver", 60.5), ("tumour", 85.5)):
        files[f"{role}.onnx"] = tiny.threshold_at(hu, tiny.spec(role))
        files[f"{role}.fp16.onnx"] = half(files[f"{role}.onnx"])
    return files


def cascade_model(folder: Path) -> Path:
    """Both nets in both precisions."""
    return write_model(folder, nets())


def one_operator(operator: str, inputs=1, batch="n") -> bytes:
    """A liver net of a single operator, which need not exist."""
    names = ["x", "y"][:inputs]
    shape = [batch, 1, *tiny.SIZE]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["logits"])],
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: tiny.spec("liver").to_json()})
    return model.SerializeToString()


def key(**changes) -> EngineKey:
    """Key of an engine; ``changes`` replace single fields."""
    values = {
        "role": "liver",
        "onnx_sha256": "0123456789abcdef" * 4,
        "runtime": "tensorrt-rtx",
        "runtime_version": "1.7.1.116",
        "target": "sm_86",
        "gpu": "",
        "precision": "fp16",
        "batch": 1,
    }
    return EngineKey(**{**values, **changes})


def sidecar(of: EngineKey, data: bytes) -> Sidecar:
    """A sidecar of an engine that consists of ``data``."""
    return Sidecar(
        key=of,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        spec=tiny.spec("liver"),
        model={"name": "tiny", "version": "0"},
        tensors=[],
        settings={},
        warnings=[],
        built={"at": "2000-01-01T00:00:00+00:00", "seconds": 0.5},
    )
