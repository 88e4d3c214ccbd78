"""Score a model on the validation cases, run as users run it: through ``trtseg.Segmenter``, post-processing included.

    python -m training.evaluate --model default

Validation is LiTS group A (one patient, two scans; liver and tumours), the complete CT ``chaos3`` (healthy liver), and
slices without liver of patients that training never saw. Conventions: liver is label >= 1; Dice is over the voxels of
a whole case.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import trtseg
from training import data

#: The LiTS slices have lost their spacing, and slices without liver stand alone: the mm that a voxel is taken for.
ASSUMED_SPACING = (5.0, 0.75, 0.75)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two masks; 1 when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def evaluate(segmenter: trtseg.Segmenter, root: Path) -> dict[str, float]:
    """The figures of the model card, by name."""
    scores = {}
    case = root / "chaos3" / "volume.nii.gz"
    result = segmenter.segment(case)
    truth = data.load_labels(root / "chaos3" / "segmentation.nii.gz", result.geometry)
    scores["chaos3 liver Dice"] = dice(result.canonical >= 1, truth >= 1)
    scores["chaos3 tumour mL (healthy liver)"] = result.tumour_ml

    _, _, validation = data.read(root, 512)
    own = validation[f"lits_{data.VALIDATION_GROUP}"]
    labels = segmenter.segment(own.hu.numpy(), spacing=ASSUMED_SPACING).canonical
    scores["LiTS group A liver Dice"] = dice(labels >= 1, own.label.numpy() >= 1)
    scores["LiTS group A tumour Dice"] = dice(labels == 2, own.label.numpy() == 2)

    empty = validation["negatives"].hu.numpy()
    volumes = [segmenter.segment(hu[None], spacing=ASSUMED_SPACING).liver_ml for hu in empty]
    scores["slices without liver"] = len(volumes)
    scores["of these with > 5 mL of liver"] = sum(v > 5 for v in volumes)
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
