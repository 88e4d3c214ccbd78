"""Score a model on the validation cases, run as users run it: through ``trtseg.Segmenter``, post-processing included.

    python -m training.evaluate --model default

Validation is LiTS group A (one patient, two scans; liver and tumours), the complete CT ``chaos3`` (healthy liver), and
slices without liver of patients that training never saw, each at its own resolution. Conventions: liver is label >= 1;
Dice is over the voxels of a case.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import trtseg
from training import data

#: mm between slices where nobody knows: slices without liver stand alone, and the LiTS slices have lost their spacing.
ASSUMED_STEP = 5.0
ASSUMED_PIXEL = 0.75
#: Parts of the body in which no slice comes near the liver.
FAR_FROM_LIVER = {
    "head", "head_neck", "neck", "neck_shoulder", "neck_or_upper_chest", "upper_chest", "pelvis",
}  # fmt: skip


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two masks; 1 when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def evaluate(segmenter: trtseg.Segmenter, root: Path) -> dict[str, float]:
    """The figures of the model card, by name."""
    scores: dict[str, float] = {}
    result = segmenter.segment(root / "chaos3" / "volume.nii.gz")
    truth = data.load_labels(root / "chaos3" / "segmentation.nii.gz", result.geometry)
    scores["chaos3: liver Dice"] = dice(result.canonical >= 1, truth >= 1)
    scores["chaos3: tumour, mL (healthy liver)"] = result.tumour_ml

    slices = data.lits(root, 512)
    slices = slices.where(slices.group == data.VALIDATION_GROUP)
    for case in np.unique(slices.case):
        own = slices.where(slices.case == case)
        result = segmenter.segment(own.hu.numpy(), spacing=(ASSUMED_STEP, ASSUMED_PIXEL, ASSUMED_PIXEL))
        truth = own.label.numpy()
        scores[f"LiTS {case}: liver Dice"] = dice(result.canonical >= 1, truth >= 1)
        scores[f"LiTS {case}: tumour Dice"] = dice(result.canonical == 2, truth == 2)

    empty = [n for n in data.read_negatives(root) if n.held_out]
    far = [n for n in empty if n.body_part in FAR_FROM_LIVER]
    for name, chosen in (("slices without liver", empty), ("slices of head, neck, upper chest, pelvis", far)):
        false_ml = [
            segmenter.segment(n.hu[None], spacing=(ASSUMED_STEP, *n.spacing)).liver_ml for n in chosen
        ]
        scores[f"{name}, number"] = len(chosen)
        scores[f"{name}, with over 5 mL of liver"] = sum(ml > 5 for ml in false_ml)
    return scores


def main() -> None:
    """Parse the command line, score, print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default", help="name or folder")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    segmenter = trtseg.Segmenter(args.model, precision=args.precision)
    print(f"{segmenter.spec.name} {segmenter.spec.version}, {segmenter.device} {segmenter.precision}\n")
    print("| | |\n|---|---|")
    for name, value in evaluate(segmenter, args.data).items():
        print(f"| {name} | {value:.4g} |")


if __name__ == "__main__":
    main()
