"""Print the tables of ``docs/results.md`` from the runs that ``training.compare`` has stored.

    python -m training.results runs/compare                         # print them
    python -m training.results runs/compare --into docs/results.md  # and put them where the old ones are

What they show is written by hand above them.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from training.compare import EVERYTHING, FOLDS, PLAIN, SEEDS, TABLE, VALIDATION, check_runs, file_of
from training.program import parser_of, plain_errors
from training.row import read_tallies
from training.score import COLUMNS as SCORES
from training.tables import grid, put_below
from training.tally import Tally, auc, best_threshold, in_band
from trtseg.errors import InputError
from trtseg.metrics.overlap import Overlap
from trtseg.metrics.ranking import PAPER_BAND

#: In the document, the line from which on everything is printed.
MARK = "<!-- from here on printed by training.results -->\n"
#: Of each row: heading, decimals.
COLUMNS = {name: decimals for name, decimals in SCORES.items() if name != "chosen threshold"}
#: How often patients are drawn anew for an interval, and the share of the means that it holds.
DRAWS, INTERVAL = 10_000, 0.95
#: Pairs of rows that differ in the training alone: joint less sequential.
PAIRS = (
    ("joint", "sequential"),
    ("joint, balanced", "sequential, balanced"),
    ("joint, balanced, half the steps", "sequential, balanced, half the steps"),
)

HEAD = """Printed by `python -m training.results` from what `python -m training.compare` stored.

Every patient whose tumours people drew, on whole slices, tests once; no net is tested on a patient that it was trained on. Two folds: {folds}. A and ircadb-1 never train.
Validation: {validation}. The tumours of G, H, I and ircadb-2 were drawn by published nets, where lists of cells with tumour confirm them; the last two have none.
Training: {training}, all with liver, whose tumours are known; most patients with tumours have masks like those of G. Slices without liver, or whose tumours are fused into it, are left out: all rows see the same samples in the same order.
One budget for all: {budget} steps a net with {batch} samples, which is {passes:.0f} times the slices; {size}x{size} pixels, width {width}, in {precision} on {device}; AdamW, cosine, averaged weights. `sequential` trains N1 for all steps, then N2 for all; `joint` both at once. Loss: cross-entropy, balanced with exponent 0.5 or not. {lesions:.0%} of the slices get synthetic lesions.
{seeds} seeds; a cell is their mean, and their range where it shows.
Accuracy, IoU, Rand index, AUC and Dice are of the tumour, at 256x256 pixels, in FP32, without post-processing; with the threshold 0.5, but for `one-step` the largest of three probabilities. "Restricted" is over pixels with a tumour probability in [{low}, {high}]; the share says how many pixels those are. "There" is at the threshold where that curve of the validation patients has sensitivity plus specificity largest, each patient weighing the same.
"""  # noqa: E501


@dataclass(frozen=True)
class Scored:
    """A patient, or several together, by nets that never saw them: a `Tally`, and labels at the chosen threshold."""

    tally: Tally
    chosen: Overlap

    def __add__(self, other: Scored) -> Scored:
        return Scored(self.tally + other.tally, self.chosen + other.chosen)

    def row(self) -> dict[str, float]:
        """The scores by the names of `COLUMNS`."""
        pixels, tumour = self.tally.pixels, self.tally.tumour
        return {
            "accuracy": tumour.accuracy,
            "IoU": tumour.iou,
            "Rand index": tumour.rand_index,
            "restricted AUC": auc(in_band(pixels)),
            "its share of pixels": in_band(pixels).sum() / pixels.sum(),
            "AUC": auc(pixels),
            "tumour Dice": tumour.dice,
            "tumour Dice there": self.chosen.dice,
            "liver Dice": self.tally.liver.dice,
        }


#: Of each seed that is complete, the patients by name.
Runs = list[dict[str, Scored]]


def read_runs(folder: Path, name: str) -> Runs:
    """The runs of a row whose folds are all there."""
    runs = []
    for seed in SEEDS:
        files = [file_of(folder, name, seed, fold) for fold in range(len(FOLDS))]
        if all(file.exists() for file in files):
            runs.append(reduce(lambda a, b: a | b, (_scored(_json(file)) for file in files)))
    return runs


def _json(file: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return stored


def _scored(stored: dict[str, Any]) -> dict[str, Scored]:
    threshold = best_threshold(read_tallies(stored["validation"]))
    return {name: Scored(t, t.above(threshold)) for name, t in read_tallies(stored["test"]).items()}


def cell(values: Sequence[float], decimals: int, sign: str = "") -> str:
    """Mean of the seeds, with their range where rounding does not hide it."""
    if not np.isfinite(values).any():
        return "-"
    low, mean, high = (f"{f(values):{sign}.{decimals}f}" for f in (np.nanmin, np.nanmean, np.nanmax))
    return mean if low == high else f"{mean} ({low} to {high})"


def scores_table(rows: dict[str, Runs], together: bool) -> str:
    """Scores over all pixels of all patients together, or the mean of those of each patient."""

    def one(patients: dict[str, Scored]) -> dict[str, float]:
        if together:
            return reduce(add, patients.values()).row()
        each = [p.row() for p in patients.values()]
        values = {name: np.array([row[name] for row in each]) for name in COLUMNS}
        return {
            k: float(v[np.isfinite(v)].mean()) if np.isfinite(v).any() else np.nan for k, v in values.items()
        }

    lines = []
    for name, runs in rows.items():
        seeds = [one(patients) for patients in runs]
        cells = [cell([s[c] for s in seeds], d) if seeds else "" for c, d in COLUMNS.items()]
        lines.append([name + _fewer(runs), *cells])
    return grid(["", *COLUMNS], lines)


def _fewer(runs: Runs) -> str:
    return "" if len(runs) == len(SEEDS) else f" ({len(runs)} seed)" if runs else " (not run)"


def patients_table(rows: dict[str, Runs], score: str) -> str:
    """A score of each patient: the mean of the seeds."""
    some = next(runs[0] for runs in rows.values() if runs)
    head = ["", *sorted(some)]
    about = [
        ["slices", *(str(some[p].tally.slices[0]) for p in head[1:])],
        ["of those with tumour", *(str(some[p].tally.slices[1]) for p in head[1:])],
        ["tumour pixels", *(str(some[p].tally.tumour.true) for p in head[1:])],
    ]
    lines = [
        [name, *(f"{np.mean([run[p].row()[score] for run in runs]):.3f}" for p in head[1:])]
        for name, runs in rows.items()
        if runs
    ]
    return grid(head, [*about, *lines])


def difference(
    joint: Runs, sequential: Runs, score: str
) -> tuple[list[float], tuple[float, float], int, int]:
    """A score of one row less that of another.

    Returns
    -------
    tuple
        Mean over the patients for each seed; the interval of that mean, of all seeds, when the patients are drawn anew;
        and for how many patients, of how many, the mean of the seeds is higher.
    """
    names = sorted(joint[0])
    each = np.array(
        [
            [a[p].row()[score] - b[p].row()[score] for p in names]
            for a, b in zip(joint, sequential, strict=False)
        ]
    )
    patients = each.mean(0)
    draws = np.random.default_rng(0).choice(patients, (DRAWS, len(patients))).mean(1)
    low, high = np.quantile(draws, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return each.mean(1).tolist(), (float(low), float(high)), int((patients > 0).sum()), len(patients)


def differences_table(rows: dict[str, Runs], pairs: Iterable[tuple[str, str]]) -> str:
    """Rows less others, for the scores that matter."""
    lines = []
    for name, other in pairs:
        if not rows.get(name) or not rows.get(other):
            continue
        for score in ("tumour Dice", "tumour Dice there", "AUC", "liver Dice"):
            seeds, (low, high), more, of = difference(rows[name], rows[other], score)
            d = COLUMNS[score]
            interval = f"{low:+.{d}f} to {high:+.{d}f}"
            lines.append([f"{name} less {other}", score, cell(seeds, d, "+"), interval, f"{more} of {of}"])
    return grid(["", "score", "mean", f"interval, {INTERVAL:.0%}", "patients for whom it is higher"], lines)


def _head(stored: list[dict[str, Any]]) -> str:
    samples = stored[0]["budget"] * stored[0]["batch"]
    training = " or ".join(
        f"{s['training_slices']} slices of {s['training_patients']} patients" for s in stored
    )
    folds = "; ".join(", ".join(fold.test) for fold in FOLDS)
    about = {
        "folds": folds, "validation": ", ".join(VALIDATION), "training": training,
        "passes": samples / np.mean([s["training_slices"] for s in stored]), "size": PLAIN.size, "width": PLAIN.width,
        "lesions": PLAIN.lesions, "seeds": len(SEEDS), "low": PAPER_BAND[0], "high": PAPER_BAND[1],
    }  # fmt: skip
    text = HEAD.format_map(stored[0] | about)
    first, *bullets = filter(None, text.splitlines())
    filled = [textwrap.fill(line, 120, initial_indent="- ", subsequent_indent="  ") for line in bullets]
    return "\n".join(["", first, "", *filled, ""])


def tables(folder: Path) -> str:
    """The printed part of the document, from the folder that ``training.compare`` filled."""
    check_runs(folder)
    rows = {name: read_runs(folder, name) for name in EVERYTHING}
    first = next((name for name in rows if rows[name]), None)
    if first is None:
        raise InputError(f"{folder}: has no complete row; run training.compare first, with --out {folder}")
    seed = next(s for s in SEEDS if all(file_of(folder, first, s, f).exists() for f in range(len(FOLDS))))
    stored = [_json(file_of(folder, first, seed, fold)) for fold in range(len(FOLDS))]
    table = {name: rows[name] for name in TABLE}
    more = {name: runs for name, runs in rows.items() if name not in TABLE and runs}
    parts = [
        (
            "Table 1: every patient weighs the same",
            "Mean over the patients.",
            scores_table(table, together=False),
        ),
        (
            "Table 1: all test pixels together",
            "As in the paper. Patient D has most of the tumour.",
            scores_table(table, together=True),
        ),
        ("Tumour Dice of each patient", "", patients_table(rows, "tumour Dice")),
        (
            "Joint less sequential",
            "The mean is over the patients, its range that of the seeds; the interval is that of the mean when the "
            "patients are drawn anew.",
            differences_table(rows, PAIRS),
        ),
    ]
    if more:
        others = {name: rows[name] for name in ("joint, balanced", "sequential, balanced")} | more
        parts += [
            (
                "Other rows",
                "Every patient weighs the same.",
                scores_table(others, together=False),
            ),
        ]
    text = _head(stored)
    for title, about, made in parts:
        text += f"\n## {title}\n\n" + (f"{about}\n\n" if about else "") + made + "\n"
    return text


@plain_errors()
def main() -> None:
    """Parse the command line and print."""
    parser = parser_of(__doc__)
    parser.add_argument("runs", type=Path, help="folder that training.compare filled")
    parser.add_argument("--into", type=Path, metavar="FILE", help="document whose tables are replaced")
    args = parser.parse_args()
    text = tables(args.runs)
    print(text, end="")
    if args.into:
        put_below(MARK, text, args.into)


if __name__ == "__main__":
    main()
