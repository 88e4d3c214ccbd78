"""Print the tables of ``docs/results.md`` from the predictions that ``training.compare`` has stored.

    python -m training.results runs/compare                         # print them
    python -m training.results runs/compare --into docs/results.md  # and put them where the old ones are

What they show is written by hand above them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training import checkpoint
from training.compare import EVERYTHING, GATES, IDEAS, PAPER, PLAIN, SEEDS, TABLE, TEST_GROUPS, folder_of
from training.predict import Predictions
from training.score import score, table
from training.split import VALIDATION_GROUPS
from trtseg.io import atomic
from trtseg.metrics.ranking import PAPER_BAND

#: In the document, the line from which on everything is printed.
MARK = "<!-- from here on printed by training.results -->\n"

HEAD = """
Printed by `python -m training.results` from the predictions that `python -m training.compare` stored.

- Fixed split by patient. Test: LiTS groups {test} ({slices} slices, {tumours} with tumour, {pixels} tumour pixels,
  nearly all of one patient). Validation, which chooses the threshold: group {validation}. Training: the other patients
  and the slices without liver.
- One budget for all: {steps} steps a net, {size}x{size} pixels, width {width}, in {precision}, AdamW unless said
  otherwise; the two nets of `sequential` draw slices by shares of their own. Loss: cross-entropy, balanced with
  exponent 0.5 or not, no overlap term. {lesions:.0%} of the livers get synthetic lesions, unless said otherwise.
  {seeds} seeds; a cell is their mean, and their range where it shows.
- Accuracy, IoU, Rand index, AUC and Dice are of the tumour, over all test pixels together, in FP32; with the threshold
  0.5, but for `one-step` the largest of three probabilities. "Restricted" is over pixels with a tumour probability in
  [{low}, {high}]; the share says how many pixels those are. The threshold is where that curve of the validation patient
  has sensitivity plus specificity largest.
"""


def tables(runs: Path) -> str:
    """The printed part of the document, from the folder that ``training.compare`` filled."""
    if not (first := folder_of(runs, next(iter(TABLE)), SEEDS[0])).joinpath("test.npz").exists():
        raise SystemExit(f"{first}: has no test.npz; run training.compare first, with --out {runs}")
    test = Predictions.read(first / "test.npz")
    tumour = (test.label == 2).sum((1, 2))
    settings, _ = checkpoint.read(first / "last.pt")

    def scores(name: str) -> list[dict[str, float]]:
        folders = [folder_of(runs, name, seed) for seed in SEEDS]
        if not all((folder / "test.npz").exists() for folder in folders):
            return []
        return [
            score(
                *(Predictions.read(f / f"{split}.npz") for split in ("validation", "test")),
                EVERYTHING[name].method,
            )
            for f in folders
        ]

    head = HEAD.format(
        test=" and ".join(TEST_GROUPS), slices=len(tumour), tumours=(tumour > 0).sum(), pixels=tumour.sum(),
        validation=" and ".join(VALIDATION_GROUPS), steps=PLAIN.steps, size=PLAIN.size, width=PLAIN.width,
        lesions=PLAIN.lesions, seeds=len(SEEDS), precision=settings.precision.upper(),
        low=PAPER_BAND[0], high=PAPER_BAND[1],
    )  # fmt: skip
    parts = (
        ("Table 1", "", TABLE),
        (
            "The gate of the joint loss",
            "What the mask is to N1's gradient; above it is straight-through.",
            GATES,
        ),
        ("One change at a time", "To `one-step, balanced` of the first table.", IDEAS),
        (
            "The paper's optimiser",
            "SGD, a tenth of the rate once the loss is balanced, the last weights.",
            PAPER,
        ),
    )
    for title, about, names in parts:
        head += f"\n## {title}\n\n" + (f"{about}\n\n" if about else "") + table(names, scores) + "\n"
    return head


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder that training.compare filled")
    parser.add_argument("--into", type=Path, metavar="FILE", help="document whose tables are replaced")
    args = parser.parse_args()
    text = tables(args.runs)
    print(text, end="")
    if args.into:
        above, mark, _ = args.into.read_text(encoding="utf-8").partition(MARK)
        if not mark:
            raise SystemExit(f"{args.into}: has no line {MARK!r}; the tables go below it")
        with atomic(args.into) as (path,):
            path.write_text(above + mark + text, encoding="utf-8")


if __name__ == "__main__":
    main()
