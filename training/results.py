"""Print ``docs/results.md`` from the predictions that ``training.compare`` has stored.

python -m training.results runs/compare > docs/results.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from training.compare import EVERYTHING, GATES, IDEAS, PAPER, PLAIN, SEEDS, TABLE, TEST_GROUPS, folder_of
from training.predict import Predictions
from training.split import VALIDATION_GROUPS
from trtseg.metrics.overlap import overlap
from trtseg.metrics.ranking import PAPER_BAND, roc

#: Of each row: heading, decimals.
COLUMNS = {
    "accuracy": 4, "IoU": 3, "Rand index": 4, "restricted AUC": 3, "its share of pixels": 3, "AUC": 4,
    "tumour Dice": 3, "chosen threshold": 2, "tumour Dice there": 3, "liver Dice": 3,
}  # fmt: skip

HEAD = """# Results: the paper's table for our data

Printed by `python -m training.results` from the predictions that `python -m training.compare` stored.

- Fixed split by patient. Test: LiTS groups {test} ({slices} slices, {tumours} with tumour, {pixels} tumour pixels,
  nearly all of one patient). Validation, which chooses the threshold: group {validation}. Training: the other patients
  and the slices without liver.
- One budget for all: {steps} steps a net, {size}x{size} pixels, width {width}, in {precision}, AdamW unless said
  otherwise; the two nets of `sequential` draw slices by shares of their own. Loss: cross-entropy, balanced with
  exponent 0.5 or not, no overlap term. {seeds} seeds; a cell is their mean, and their range where it shows.
- Accuracy, IoU, Rand index, AUC and Dice are of the tumour, over all test pixels together, in FP32; with the threshold
  0.5, but for `one-step` the largest of three probabilities. "Restricted" is over pixels with a tumour probability in
  [{low}, {high}]; the share says how many pixels those are. The threshold is where that curve of the validation patient
  has sensitivity plus specificity largest.
"""

FOOT = """
What it shows, and what not:

- Two test patients, one of whom has nearly all the tumour. Differences between rows within the range of the seeds mean
  nothing, and larger ones may still be of this patient alone.
- The budget is small: it says how fast a method learns, not how good it can get. One net for three classes, and a
  tumour net whose mask is still being learnt, start more slowly than a tumour net behind a finished one that sees a
  tumour in every second slice: `one-step` and `joint` have not done learning. Whether the joint loss is better in the
  end is open.
- The balanced loss pays with two nets: with it a tumour is found early, in both seeds of `sequential` and `joint`. One
  net for three classes needs more of it: with inverse frequency it finds tumours, at the liver's expense.
- Of the joint loss's gates none is proven better: the seeds differ by more than the rows. Without N2's gradient (hard)
  N1 learns the liver at least as well.
- An overlap term helps `one-step` on its way, in one of two seeds; without synthetic lesions it finds nothing yet;
  averaging changes nothing so early.
- The paper's optimiser takes small steps for hundreds of epochs; in this budget it finds no liver.
- The threshold that one small patient's curve chooses helps where a net is unsure, and hurts `sequential, balanced`.
- The shipped model is trained longer and at 256x256 (its model card).
- Pixel accuracy and Rand index are near 1 for every row, and for a model that finds no tumour at all: few pixels are
  tumour. The restricted AUC of two rows is over different pixels, and a sure model keeps the hard ones only.
"""


def score(folder: Path, method: str) -> dict[str, float]:
    """One run's row, by the names of `COLUMNS`."""
    validation, test = (Predictions.read(folder / f"{name}.npz") for name in ("validation", "test"))
    truth = test.label == 2
    labels = test.largest() if method == "one-step" else test.labels()
    table = overlap(labels == 2, truth)
    restricted, full = roc(test.tumour, truth, PAPER_BAND), roc(test.tumour, truth)
    threshold = roc(validation.tumour, validation.label == 2, PAPER_BAND).threshold
    chosen = threshold if np.isfinite(threshold) else 0.5
    return {
        "accuracy": table.accuracy,
        "IoU": table.iou,
        "Rand index": table.rand_index,
        "restricted AUC": restricted.auc,
        "its share of pixels": restricted.share,
        "AUC": full.auc,
        "tumour Dice": table.dice,
        "chosen threshold": threshold,
        "tumour Dice there": overlap(test.labels(chosen) == 2, truth).dice,
        "liver Dice": overlap(labels >= 1, test.label >= 1).dice,
    }


def cell(values: list[float], decimals: int) -> str:
    """Mean of the seeds, with their range where rounding does not hide it."""
    low, high = f"{min(values):.{decimals}f}", f"{max(values):.{decimals}f}"
    mean = f"{np.mean(values):.{decimals}f}"
    return mean if low == high else f"{mean} ({low}–{high})"


def table(names: Iterable[str], scores: Callable[[str], list[dict[str, float]]]) -> str:
    """A Markdown table with a row a name; of runs that are not there it says so."""
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in names:
        rows = scores(name)
        if not rows:
            lines.append(f"| {name} | not run" + " |" * len(COLUMNS))
            continue
        cells = [cell([row[c] for row in rows], d) for c, d in COLUMNS.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder that training.compare filled")
    runs = parser.parse_args().runs

    def scores(name: str) -> list[dict[str, float]]:
        folders = [folder_of(runs, name, seed) for seed in SEEDS]
        if not all((folder / "test.npz").exists() for folder in folders):
            return []
        return [score(folder, EVERYTHING[name].method) for folder in folders]

    test = Predictions.read(folder_of(runs, next(iter(TABLE)), SEEDS[0]) / "test.npz")
    tumour = (test.label == 2).sum((1, 2))
    checkpoint = torch.load(
        folder_of(runs, next(iter(TABLE)), SEEDS[0]) / "last.pt", weights_only=True, map_location="cpu"
    )
    precision = checkpoint["settings"]["precision"]
    print(
        HEAD.format(
            test=" and ".join(TEST_GROUPS), slices=len(tumour), tumours=(tumour > 0).sum(), pixels=tumour.sum(),
            validation=" and ".join(VALIDATION_GROUPS), steps=PLAIN.steps, size=PLAIN.size, width=PLAIN.width,
            seeds=len(SEEDS), precision=precision.upper(),
            low=PAPER_BAND[0], high=PAPER_BAND[1],
        )
    )  # fmt: skip
    print("## Table 1\n")
    print(table(TABLE, scores))
    print(
        "\n## The gate of the joint loss\n\nWhat the mask is to N1's gradient; above it is straight-through.\n"
    )
    print(table(GATES, scores))
    print("\n## One change at a time\n\nTo `one-step, balanced` of the first table.\n")
    print(table(IDEAS, scores))
    print(
        "\n## The paper's optimiser\n\nSGD, a tenth of the rate once the loss is balanced, the last weights.\n"
    )
    print(table(PAPER, scores))
    print(FOOT, end="")


if __name__ == "__main__":
    main()
