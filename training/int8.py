"""Add INT8 files to a model: its nets after quantisation, if they say what the FP32 nets say.

    python -m training.int8 trtseg/models/default --shared ../shared/data

NNCF chooses the scales of weights and activations with the model's own calibration slices, which are of training
patients. The scales are symmetric, so that TensorRT takes the files too. They stand in the ONNX file as QuantizeLinear
and DequantizeLinear. The first convolution stays in FP32: its input is the CT itself, whose contrast eight bits do not
hold. It has 0.3 % of the multiplications of a net.

The files become part of the model if, on the complete CTs and stacks of slices that validate, the Dice of INT8 is close
to that of FP32, and the labels of both are close to each other: `BOUNDS`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

import trtseg
from training.calibration import add_files
from training.cases import Case, read_checked
from training.evaluate import spacing_of, validating
from training.program import parser_of, plain_errors
from trtseg import models
from trtseg.engines.calibration import references
from trtseg.engines.openvino import no_telemetry
from trtseg.engines.precision import FP32, INT8
from trtseg.errors import ModelError
from trtseg.metrics.overlap import Overlap, overlap
from trtseg.models import ModelFiles
from trtseg.spec import METADATA_KEY


class Bound(NamedTuple):
    """What is asked of a class: the most by which its mean Dice may fall, and the least Dice against FP32's labels."""

    loss: float
    agreement: float


BOUNDS = {"liver": Bound(0.003, 0.995), "tumour": Bound(0.01, 0.93)}


def quantised(files: ModelFiles) -> dict[str, bytes]:
    """The ONNX files of a model's nets in INT8, by role, calibrated with the model's slices."""
    with no_telemetry():  # NNCF would call an analytics server
        import nncf
    found = {}
    shown = references(files)
    for spec in files.spec.nets:
        images = shown[spec.role].images
        net = onnx.load_from_string(files.read(FP32.file(spec.role)))
        first = next(node.name for node in net.graph.node if node.op_type == "Conv")
        made = nncf.quantize(
            net,
            nncf.Dataset(list(images[:, None]), lambda x: {"x": x}),
            preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric: TensorRT takes no zero point
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=[first]),
        )
        onnx.helper.set_model_props(made, {METADATA_KEY: spec.to_json()})
        onnx.checker.check_model(made)
        found[spec.role] = made.SerializeToString(deterministic=True)
    return found


def add(folder: Path, nets: dict[str, bytes]) -> None:
    """Write the INT8 files of the nets, by role, into a model's folder."""
    add_files(folder, {INT8.file(role): data for role, data in nets.items()})


class Row(NamedTuple):
    """How a case is labelled: Dice of FP32 and INT8 with the truth, None without one, and overlap of their labels."""

    name: str
    organ: str
    fp32: float | None
    int8: float | None
    both: Overlap


def compare(model: Path, cases: Sequence[Case]) -> list[Row]:
    """Label cases in FP32 and INT8 as users do, and compare."""
    rows: list[Row] = []
    with (
        trtseg.Segmenter(model, precision="fp32") as exact,
        trtseg.Segmenter(model, precision="int8") as fast,
    ):
        for case in cases:
            scan = read_checked(case)
            if scan.cells is not None:  # single slices, whose pixels are not all known
                continue
            volume = trtseg.load(scan.hu, spacing=spacing_of(scan.spacing))
            first, second = (s.segment(volume).canonical for s in (exact, fast))
            for label, organ in enumerate(BOUNDS, start=1):
                a, b, truth = (x >= label for x in (first, second, scan.label))
                dices = [overlap(x, truth).dice if truth.any() else None for x in (a, b)]
                rows.append(Row(case.name, organ, dices[0], dices[1], overlap(b, a)))
    return rows


def verdict(rows: Sequence[Row]) -> tuple[str, bool]:
    """A table of all cases as Markdown, and whether INT8 keeps within `BOUNDS`."""
    lines = ["| case | | FP32 | INT8 | INT8 against FP32 |", "|---|---|---|---|---|"]
    for row in rows:
        a, b = ("–" if dice is None else f"{dice:.4f}" for dice in (row.fp32, row.int8))
        lines.append(f"| {row.name} | {row.organ} | {a} | {b} | {row.both.dice:.4f} |")
    passed = True
    for organ, bound in BOUNDS.items():
        own = [row for row in rows if row.organ == organ]
        judged = [(row.fp32, row.int8) for row in own if row.fp32 is not None and row.int8 is not None]
        fp32, int8 = np.mean(judged, axis=0) if judged else (np.nan, np.nan)
        agreement = sum((row.both for row in own), Overlap(0, 0, 0, 0)).dice
        passed &= bool(fp32 - int8 <= bound.loss) and agreement >= bound.agreement
        lines.append(f"| all | {organ} | {fp32:.4f} | {int8:.4f} | {agreement:.4f} |")
    asked = ", ".join(
        f"{organ} at most {b.loss:g} below FP32 and at least {b.agreement:g} against its labels"
        for organ, b in BOUNDS.items()
    )
    return "\n".join(lines) + f"\n\n{'Passed' if passed else 'Not passed'}; asked: {asked}.", passed


def quantise(model: Path, shared: Path) -> tuple[str, bool]:
    """Add INT8 files to a model, by name or folder, if they pass; the table of the comparison, and whether they did."""
    files = models.find(model)
    cases = [case for case in validating(shared) if not case.body_part]
    nets = quantised(files)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / files.folder.name
        shutil.copytree(files.folder, trial)
        add(trial, nets)
        text, passed = verdict(compare(trial, cases))
    if passed:
        add(files.folder, nets)
    return text, passed


@plain_errors()
def main() -> None:
    """Parse the command line, quantise, print."""
    parser = parser_of(__doc__)
    parser.add_argument("model", type=Path, help="name or folder of an exported model")
    parser.add_argument("--shared", type=Path, required=True, help="its validation cases are compared on")
    args = parser.parse_args()
    text, passed = quantise(args.model, args.shared)
    print(text)
    if not passed:
        raise ModelError(f"{args.model}: INT8 is not accurate enough; the model was left as it is")


if __name__ == "__main__":
    main()
