"""Write trained nets as a model's folder that trtseg runs: ONNX files, ``model.json``, and slices to accept engines.

    python -m training.export runs/liver/last.pt runs/tumour/last.pt --out trtseg/models/default \
        --calibration ../shared/data/lits_slices
    python -m training.export runs/joint/last.pt --out runs/joint/model
    python -m training.export runs/one-step/last.pt --out runs/one-step/model

Each file is compared with PyTorch before the folder is touched; a net that does not agree is not exported.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch

from training import calibration
from training.checkpoint import Settings, check_size, load
from training.methods import WINDOW
from training.program import parser_of, plain_errors
from training.readers import png_slices
from training.unet import UNet, folded
from trtseg.engines.calibration import show
from trtseg.engines.openvino import import_openvino
from trtseg.engines.precision import FP16, FP32, PRECISIONS
from trtseg.errors import ArgumentError, ModelError
from trtseg.io.atomic import atomic
from trtseg.io.folders import make_folder
from trtseg.models import manifest
from trtseg.phantom import abdomen
from trtseg.spec import METADATA_KEY, CascadeSpec, ModelSpec

INTENDED_USE = "Demonstration and research. Not for clinical use."
FP32_TOLERANCE = 1e-3  # largest difference of a logit
#: Labels may flip only where the logit is nearer to the threshold than this: half of what the acceptance gate allows,
#: since arithmetic in FP16, which this comparison leaves out, takes its share too.
FP16_TOLERANCE = FP16.logit_bound / 2


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Leave out what PyTorch's exporter says of torchvision, which no net here needs, and of PyTorch's own code."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)


def export_onnx(net: UNet, spec: ModelSpec) -> onnx.ModelProto:
    """One net in FP32, with a free batch size, batch norm folded in, and its spec as metadata."""
    with _quiet_exporter():
        program = torch.onnx.export(
            folded(net).to(memory_format=torch.contiguous_format),
            (torch.zeros(2, 1, *spec.size),),
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
    return model


def cast(model: onnx.ModelProto, kind: type[np.floating]) -> None:
    """Turn the weights of a model, and with them all that it computes, into numbers of another kind, in place."""
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight).astype(kind)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = element


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model so that the same model is the same bytes."""
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def check_parity(net: UNet, onnx_path: Path, x: np.ndarray, spec: ModelSpec, *, half: bool) -> str:
    """Compare the file's logits on ``x`` ``[n, 1, H, W]`` with the PyTorch net; a sentence with what was measured.

    Both files run in FP32 arithmetic: of the FP16 file this shows what its weights and its input lose by rounding.
    """
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    model = onnx.load(onnx_path)
    if half:
        cast(model, np.float32)
        x = x.astype(np.float16).astype(np.float32)
    openvino = import_openvino()
    engine = openvino.compile_model(
        openvino.Core().read_model(io.BytesIO(model.SerializeToString())),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    got = engine([x])[0]
    difference = float(np.abs(got - expected).max())
    if spec.channels == 1:
        margin = np.abs(expected - spec.logit_threshold)[:, 0]
        flipped = ((got > spec.logit_threshold) != (expected > spec.logit_threshold))[:, 0]
    else:  # the largest logit wins: what it is ahead by
        second, first = np.sort(expected, axis=1)[:, -2:].swapaxes(0, 1)
        margin = first - second
        flipped = got.argmax(1) != expected.argmax(1)
    doubt = float(margin[flipped].max(initial=0))
    if not np.isfinite(got).all() or (doubt >= FP16_TOLERANCE if half else difference >= FP32_TOLERANCE):
        raise ModelError(
            f"{onnx_path.name}: does not agree with PyTorch: logits differ by up to {difference:.2e}, "
            f"labels flip that are up to {doubt:.2e} from the threshold"
        )
    return (
        f"{onnx_path.name}: {onnx_path.stat().st_size / 1e6:.1f} MB; logits differ from PyTorch by at most "
        f"{difference:.1e}, {flipped.sum()} of {flipped.size} labels flip (at most {doubt:.1e} from the threshold)"
    )


def parity_inputs(nets: dict[str, UNet], specs: dict[str, ModelSpec]) -> dict[str, np.ndarray]:
    """Input ``[n, 1, H, W]`` of each net, by role, for slices of a phantom."""
    middle = abdomen().ct[16::6]

    @torch.no_grad()
    def run(spec: ModelSpec, x: np.ndarray) -> np.ndarray:
        return nets[spec.role](torch.from_numpy(x)).numpy()

    return {role: x for role, (x, _) in show(middle, (1.5, 1.5), tuple(specs.values()), run).items()}


def nets_of(
    checkpoints: Sequence[Path], behind: Path | None = None
) -> tuple[dict[str, UNet], list[Settings]]:
    """The nets of one model by role, in the order in which they run, and the settings of each checkpoint."""
    nets, trained = {}, []
    for i, path in enumerate(checkpoints):
        method, settings = load(path, (behind or checkpoints[0]) if i else None)
        nets.update(method.nets.items())
        trained.append(settings)
    grids = sorted({(settings.size, settings.pixel_mm) for settings in trained})
    if list(nets) not in (["liver", "tumour"], ["one-step"]) or len(grids) != 1:
        raise ArgumentError(
            f"checkpoints: got nets {list(nets)} of (pixels a side, mm a pixel) {grids}; expected those of "
            "liver and tumour, in this order and of one grid, that of the method joint, or that of one-step"
        )
    return nets, trained


def export(
    checkpoints: Sequence[Path],
    out: Path,
    thresholds: dict[str, float],
    provenance: dict[str, str],
    *,
    behind: Path | None = None,
    pixel_mm: float | None = None,
    size: int | None = None,
) -> CascadeSpec:
    """Export a model into the folder ``out``; see the module's docstring.

    Parameters
    ----------
    checkpoints : sequence of Path
        Of the liver net and the tumour net, of the joint nets, or of the one-step net.
    out : Path
        Folder of the model; its name is the model's name.
    thresholds : dict
        Probability thresholds by role where they are not 0.5.
    provenance : dict
        ``version``, ``trained_on`` and ``licence`` of the `ModelSpec`.
    behind : Path, optional
        Checkpoint of the liver net that the tumour net was trained behind, if it is another than the one that is
        exported: one that was trained on since.
    pixel_mm : float, optional
        Size of the nets' pixels, by default as in training: the nets of a kit see the body, see `trtseg.body`, and
        have some; those of a slice store see the field of view, and have none.
    size : int, optional
        Rows and columns of the nets' input, by default as in training.
    """
    nets, trained = nets_of(checkpoints, behind)
    size = trained[0].size if size is None else size
    pixel_mm = trained[0].pixel_mm or None if pixel_mm is None else pixel_mm
    for settings in trained:
        check_size(size, settings)
    if unknown := set(thresholds) - set(nets) | set(thresholds) & {"one-step"}:
        raise ArgumentError(
            f"thresholds: got one for {', '.join(sorted(unknown))}; these nets do not have one"
        )
    specs = {
        role: ModelSpec(
            role=role,
            size=(size, size),
            fit="fit" if pixel_mm is None else "body",
            pixel_mm=pixel_mm,
            window=WINDOW[role],
            threshold=thresholds.get(role, 0.5),
            classes=("background", "liver", "tumour") if role == "one-step" else (role,),
            intended_use=INTENDED_USE,
            **provenance,
        )
        for role in nets
    }
    inputs = parity_inputs(nets, specs)
    sha256 = {}
    with tempfile.TemporaryDirectory() as folder:
        for role, net in nets.items():
            model = export_onnx(net, specs[role])
            for precision in (FP32, FP16):
                path, half = Path(folder) / precision.file(role), precision is FP16
                if half:
                    cast(model, np.float16)
                write_onnx(model, path)
                print(check_parity(net, path, inputs[role], specs[role], half=half))
                sha256[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        spec = CascadeSpec(
            Path(os.path.abspath(out)).name,
            provenance["version"],
            tuple(specs.values()),
            sha256,
            licence=provenance["licence"],
            intended_use=INTENDED_USE,
        )
        files = {name: (Path(folder) / name).read_bytes() for name in sha256}
    _write(out, files | {"model.json": manifest.to_json(spec).encode()})
    return spec


def _write(out: Path, files: dict[str, bytes]) -> None:
    """Write the files of a model into its folder, all or none; nets and slices of the model that was there go."""
    make_folder(out, "--out")
    own = {precision.file(role) for precision in PRECISIONS for role in WINDOW} | {calibration.FILE}
    left = [out / name for name in sorted(own - files.keys()) if (out / name).exists()]
    with atomic(*(out / name for name in files), without=left) as paths:
        for path, data in zip(paths, files.values(), strict=True):
            path.write_bytes(data)


@plain_errors()
def main() -> None:
    """Parse the command line and export."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "checkpoints",
        type=Path,
        nargs="+",
        help="of the liver and the tumour net, or of the method joint or one-step",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder of the model; its name is the model's name, and a model that is there goes",
    )
    parser.add_argument(
        "--behind",
        type=Path,
        metavar="CHECKPOINT",
        help="of the liver net that the tumour net was trained behind (the one that is exported)",
    )
    for role in ("liver", "tumour"):
        parser.add_argument(f"--{role}-threshold", type=float, metavar="P", help="probability (0.5)")
    parser.add_argument(
        "--pixel-mm",
        type=float,
        metavar="MM",
        help="size of the nets' pixels, which are laid around the body (as in training)",
    )
    parser.add_argument("--size", type=int, help="rows and columns of the nets' input (as in training)")
    parser.add_argument("--version", default="0.0.0", help="of the model (0.0.0)")
    parser.add_argument("--trained-on", default="not stated", help="what the weights have seen, a sentence")
    parser.add_argument("--licence", default="not stated", help="under which the weights are")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="folder lits_slices: some of its slices go into the model, see training.calibration",
    )
    args = parser.parse_args()
    thresholds = {
        role: t for role in ("liver", "tumour") if (t := getattr(args, f"{role}_threshold")) is not None
    }
    provenance = {"version": args.version, "trained_on": args.trained_on, "licence": args.licence}
    slices = None if args.calibration is None else png_slices(args.calibration)
    export(
        args.checkpoints,
        args.out,
        thresholds,
        provenance,
        behind=args.behind,
        pixel_mm=args.pixel_mm,
        size=args.size,
    )
    if slices is not None:
        print(calibration.add(args.out, slices))


if __name__ == "__main__":
    main()
