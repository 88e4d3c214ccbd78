"""Write trained nets as a model folder that trtseg runs: ONNX in FP32 and FP16, and ``model.json``.

    python -m training.export --liver runs/liver/last.pt --tumour runs/tumour/last.pt --out trtseg/models/default

Each file is compared with PyTorch before the folder is touched; a net that does not agree is not exported.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tempfile
from pathlib import Path

import numpy as np
import onnx
import openvino
import torch

from training.train import SIZE, WINDOW, load_net
from training.unet import UNet, folded
from trtseg import reference
from trtseg.phantom import abdomen
from trtseg.spec import METADATA_KEY, CascadeSpec, ModelSpec

FP32_TOLERANCE = 1e-3  # largest difference of a logit
FP16_TOLERANCE = 0.05  # labels may flip only where the logit is smaller than this


def export_onnx(net: UNet, spec: ModelSpec, path: Path, *, half: bool) -> None:
    """Write one net with a free batch size, batch norm folded in, and its spec as metadata."""
    net = folded(net).to(memory_format=torch.contiguous_format)
    sample = torch.zeros(2, 1, *spec.size)
    if half:
        net, sample = net.half(), sample.half()
    program = torch.onnx.export(
        net,
        (sample,),
        dynamo=True,
        input_names=["x"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        verbose=False,
    )
    model = program.model_proto
    # the exporter leaves the author's paths and source lines in the file
    for node in model.graph.node:
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        del value.metadata_props[:]
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def widen(model: onnx.ModelProto) -> None:
    """Turn an FP16 model into one of the same weights that computes in FP32, in place."""
    for weight in model.graph.initializer:
        wide = onnx.numpy_helper.to_array(weight).astype(np.float32)
        weight.CopyFrom(onnx.numpy_helper.from_array(wide, weight.name))
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def check_parity(net: UNet, onnx_path: Path, x: np.ndarray, *, half: bool) -> str:
    """Compare the file's logits on ``x`` ``[n, 1, H, W]`` with the PyTorch net; a sentence with what was measured.

    Both files run in FP32 arithmetic: of the FP16 file this shows what its weights and its input lose by rounding.
    """
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    model = onnx.load(onnx_path)
    if half:
        widen(model)
        x = x.astype(np.float16).astype(np.float32)
    engine = openvino.compile_model(
        openvino.Core().read_model(io.BytesIO(model.SerializeToString())),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    got = engine([x])[0]
    difference = float(np.abs(got - expected).max())
    flipped = (got > 0) != (expected > 0)
    doubt = float(np.abs(expected[flipped]).max(initial=0))
    if not np.isfinite(got).all() or (doubt >= FP16_TOLERANCE if half else difference >= FP32_TOLERANCE):
        raise SystemExit(
            f"{onnx_path.name}: does not agree with PyTorch: logits differ by up to {difference:.2e}, "
            f"labels flip where |logit| is up to {doubt:.2e}"
        )
    return (
        f"{onnx_path.name}: {onnx_path.stat().st_size / 1e6:.1f} MB; logits differ from PyTorch by at most "
        f"{difference:.1e}, {flipped.sum()} of {flipped.size} labels flip (|logit| <= {doubt:.1e})"
    )


def export(liver: Path, tumour: Path, out: Path, version: str, trained_on: str, licence: str) -> CascadeSpec:
    """Export both nets of the cascade into the folder ``out``; see the module's docstring."""
    nets = {"liver": load_net(liver)[0], "tumour": load_net(tumour)[0]}
    specs = {
        role: ModelSpec(
            role=role,
            size=(SIZE, SIZE),
            fit="fit",
            window=WINDOW[role],
            threshold=0.5,
            classes=(role,),
            version=version,
            trained_on=trained_on,
            licence=licence,
            intended_use="Demonstration and research. Not for clinical use.",
        )
        for role in nets
    }
    middle = abdomen().ct[16::6]
    fit = specs["liver"].fit_slice(middle.shape[1:], (1.5, 1.5))
    hu, x1 = reference.prepare(middle, fit, WINDOW["liver"])
    with torch.no_grad():
        l1 = nets["liver"](torch.from_numpy(x1)).numpy()
    x2, _ = reference.gate(l1, hu, 0.0, WINDOW["tumour"])
    inputs = {"liver": x1, "tumour": x2}

    out.mkdir(parents=True, exist_ok=True)
    sha256 = {}
    with tempfile.TemporaryDirectory(dir=out) as folder:
        for role, net in nets.items():
            for half in (False, True):
                path = Path(folder) / (f"{role}.fp16.onnx" if half else f"{role}.onnx")
                export_onnx(net, specs[role], path, half=half)
                print(check_parity(net, path, inputs[role], half=half))
                sha256[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        spec = CascadeSpec(out.name, version, (specs["liver"], specs["tumour"]), sha256)
        for name in sha256:
            (Path(folder) / name).replace(out / name)
        (out / "model.json").write_text(spec.to_json(), encoding="utf-8")
    return spec


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--liver", type=Path, required=True, help="checkpoint of the liver net")
    parser.add_argument("--tumour", type=Path, required=True, help="checkpoint of the tumour net")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the model; its name is the model's name"
    )
    parser.add_argument("--version", default="0.1.0")
    parser.add_argument("--trained-on", default="LiTS slices and CT slices without liver; see MODEL_CARD.md")
    parser.add_argument("--licence", default="demonstration weights; see MODEL_CARD.md")
    args = parser.parse_args()
    export(args.liver, args.tumour, args.out, args.version, args.trained_on, args.licence)


if __name__ == "__main__":
    main()
