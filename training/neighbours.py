"""What the neighbours of a slice may say: the median of labels that follows the nets, or a mean of logits instead.

    python -m training.neighbours --model default --shared ../shared/data

The nets label each slice alone. On the stacks of slices that validate it prints what comes of that without neighbours,
with the median of labels, and with the logits averaged over slices, weighted by a Gaussian, for several thresholds of
the tumour. The other steps that follow the nets are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import trtseg
from training.cases import Case, Scan, read_checked
from training.evaluate import spacing_of, validating
from training.program import parser_of, plain_errors
from trtseg import _core, models
from trtseg.engines import open_engine
from trtseg.engines.base import logits_of
from trtseg.engines.calibration import show
from trtseg.engines.precision import FP32
from trtseg.errors import ModelError
from trtseg.fit import Fit
from trtseg.labels.postprocess import PostProcess, postprocess
from trtseg.metrics.overlap import overlap
from trtseg.models import ModelFiles

SATURATED = 10.0  # logits beyond it say no more than that the net is sure
#: Reach of the median and sigma of the mean of logits, in mm, and the tumour's threshold; None: that of the model.
WAYS = (
    (0.0, 0.0, None),
    (4.0, 0.0, None),
    *((0.0, sigma, t) for sigma in (2.0, 4.0) for t in (None, 0.6, 0.5, 0.4)),
)


class Stack(NamedTuple):
    """A scan with the logits ``[Z, 1, H, W]`` of its slices."""

    case: Case
    scan: Scan
    liver: np.ndarray
    tumour: np.ndarray
    fit: Fit


def stacks(files: ModelFiles, shared: Path) -> Iterator[Stack]:
    """Run the nets on all stacks of slices that validate."""
    engines = {net.role: open_engine(files, net, precision=FP32.name) for net in files.spec.nets}
    for case in validating(shared):
        if case.body_part:
            continue
        scan = read_checked(case)
        if scan.cells is not None:
            continue
        volume = trtseg.load(scan.hu, spacing=spacing_of(scan.spacing))
        spacing = volume.spacing[1:]
        shown = show(volume.array, spacing, files.spec.nets, lambda net, x: logits_of(engines[net.role], x))
        liver, tumour = (shown[net.role][1] for net in files.spec.nets)
        yield Stack(case, scan, liver, tumour, files.spec.nets[0].fit_volume(volume.array, spacing))


def averaged(logits: np.ndarray, sigma: float) -> np.ndarray:
    """Mean of logits ``[Z, ...]`` over slices, weighted by a Gaussian of ``sigma`` slices."""
    z = np.arange(len(logits))
    weights = np.exp(-0.5 * ((z[:, None] - z) / sigma) ** 2)
    weights /= weights.sum(1, keepdims=True)
    found = np.tensordot(weights, logits.clip(-SATURATED, SATURATED), 1)
    return np.ascontiguousarray(found, dtype=np.float32)


def scores(stack: Stack, files: ModelFiles, median_mm: float, sigma_mm: float, p: float | None) -> str:
    """Liver Dice, tumour Dice where there are tumours, and mL wrongly called tumour, as text."""
    spacing = spacing_of(stack.scan.spacing)
    liver, tumour = stack.liver, stack.tumour
    if sigma_mm:
        liver, tumour = (averaged(logits, sigma_mm / spacing[0]) for logits in (liver, tumour))
    t1, t2 = (net.logit_threshold for net in files.spec.nets)
    if p is not None:
        t2 = float(np.log(p / (1 - p)))
    labels, counts = np.empty(stack.scan.hu.shape, np.uint8), np.empty((len(liver), 2), np.int32)
    _core.label(liver, tumour, (t1, t2), stack.fit, labels, counts)
    ml = float(np.prod(spacing)) / 1000
    postprocess(labels, ml, spacing[0], PostProcess(median_mm=median_mm))
    found, true = labels == 2, stack.scan.label == 2
    dice = f"{overlap(found, true).dice:.3f}" if stack.case.labels_tumour and true.any() else "–"
    false = ml * np.count_nonzero(found & ~true)
    return f"{overlap(labels > 0, stack.scan.label > 0).dice:.3f} / {dice} / {false:.1f}"


@plain_errors()
def main() -> None:
    """Parse the command line and print a row for each way."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="default", help="name or folder, of two nets")
    parser.add_argument("--shared", type=Path, required=True, help="folder of the data")
    args = parser.parse_args()
    files = models.find(args.model)
    if len(files.spec.nets) != 2:
        raise ModelError(f"model: {args.model} has one net; expected a model of a liver and a tumour net")
    all_stacks = list(stacks(files, args.shared))
    print("Liver Dice / tumour Dice / mL wrongly called tumour.\n")
    print("| median, mm | sigma, mm | threshold |", " | ".join(s.case.name for s in all_stacks), "|")
    print("|---" * (3 + len(all_stacks)) + "|")
    for median, sigma, p in WAYS:
        t = files.spec.nets[1].threshold if p is None else p
        row = (scores(stack, files, median, sigma, p) for stack in all_stacks)
        print(f"| {median or '–'} | {sigma or '–'} | {t} |", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
