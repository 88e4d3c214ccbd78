"""Scores as tables, for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from trtseg.cli import text
from trtseg.metrics.cases import CONVENTIONS, CaseScores, Mean, RegionScores, SetScores

UNDEFINED = "–"

Row = tuple[str, ...]
# Metric -> its heading and its format.
_METRICS = {
    "dice": ("Dice", ".3f"),
    "iou": ("IoU", ".3f"),
    "voe": ("VOE", ".3f"),
    "rvd": ("RVD", "+.3f"),
    "assd": ("ASSD, mm", ".2f"),
    "rmsd": ("RMSD, mm", ".2f"),
    "msd": ("MSD, mm", ".2f"),
    "hd95": ("HD95, mm", ".2f"),
    "accuracy": ("pixel accuracy", ".4f"),
    "rand_index": ("Rand index", ".4f"),
}


def liver_rows(scores: SetScores) -> list[Row]:
    """Lay out the liver of each case in a row, below a row of headings."""
    headings = ("case", "liver Dice", "ASSD mm", "HD95 mm")
    return [headings, *((case.name, *_three(case.liver)) for case in scores.cases)]


def tumour_rows(scores: SetScores) -> list[Row]:
    """Lay out the tumours of each case in a row, below a row of headings.

    The predicted tumours are in the table for every case. The comparison with the truth is there only if the truth
    of a case knows tumours.
    """
    headings: Row = ("case", "mL called tumour", "in lesions")
    if scores.tumour is not None:
        headings += ("tumour Dice", "ASSD mm", "HD95 mm", "lesions found", "false", "burden error")
    return [headings, *(_tumour_row(case)[: len(headings)] for case in scores.cases)]


def summary_rows(scores: SetScores) -> list[Row]:
    """Lay out one row for each metric, below a row of headings."""
    regions = [scores.liver] if scores.tumour is None else [scores.liver, scores.tumour]
    several = len(scores.cases) > 1
    rows: list[Row] = [("mean ± SD over cases" if several else "", "liver", "tumour")[: 1 + len(regions)]]
    for metric, (heading, style) in _METRICS.items():
        rows.append((heading, *(_mean(region.means[metric], style) for region in regions)))
        if metric == "dice" and several:
            rows.append(("Dice, all voxels as one case", *(f"{r.dice_global:.3f}" for r in regions)))
    return rows


def lesion_rows(scores: SetScores) -> list[Row]:
    """Lay out how many lesions were found and the error of the tumour burden, below a row of headings."""
    lesions = scores.lesions
    if lesions is None:
        return []
    counts = scores.burden_cases, sum(case.burden is not None for case in scores.cases) - scores.burden_cases
    return [
        ("lesions", "IoU > 0.5"),
        ("detected", f"{lesions.detected} of {lesions.true}"),
        ("false", f"{lesions.predicted - lesions.detected} of {lesions.predicted}"),
        ("precision", number(lesions.precision)),
        ("recall", number(lesions.recall)),
        ("F1", number(lesions.f1)),
        ("recall at any overlap", number(lesions.recall_any)),
        ("tumour burden, RMSE", _mean(Mean(scores.burden_rmse, *counts), ".2%")),
        ("tumour burden, largest error", _mean(Mean(scores.burden_max, *counts), ".2%")),
    ]


def detected_rows(scores: SetScores) -> list[Row]:
    """Lay out how well the detected lesions were segmented, one row for each metric, below a row of headings."""
    if scores.lesions is None or not scores.lesions.detected:
        return []
    means = scores.lesions.means()
    shown = {metric: look for metric, look in _METRICS.items() if metric in means}
    rows = [(heading, number(means[metric], style)) for metric, (heading, style) in shown.items()]
    return [("mean over detected lesions", f"n = {scores.lesions.detected}"), *rows]


def number(value: float, style: str = ".3f") -> str:
    """Write a number, or a dash for NaN, which is undefined."""
    return UNDEFINED if math.isnan(value) else format(value, style)


def show(scores: SetScores) -> None:
    """Print the tables to stdout."""
    several = len(scores.cases) > 1
    # The rows of single cases repeat the summary if there is one case and its truth knows tumours.
    parts = [liver_rows(scores)] if several else []
    parts += [tumour_rows(scores)] if several or scores.tumour is None else []
    parts += [summary_rows(scores), lesion_rows(scores), detected_rows(scores)]
    drawn = [text.table(rows[0], rows[1:], right=range(1, len(rows[0]))) for rows in parts if rows]
    text.show_results(*drawn, text.NOT_CLINICAL)


def markdown(scores: SetScores, notes: Iterable[str] = ()) -> str:
    """Write all tables, the ``notes`` and the conventions as a Markdown document."""
    remarks = "\n".join(f"- {text.line(note)}" for note in notes)
    tables = [rows(scores) for rows in (summary_rows, lesion_rows, detected_rows, liver_rows, tumour_rows)]
    parts = [
        f"# Evaluation of {len(scores.cases)} case{'s' * (len(scores.cases) != 1)}",
        f"{text.NOT_CLINICAL} {UNDEFINED} is undefined.",
        *(_pipes(rows) for rows in tables if rows),
        *([remarks] if remarks else []),
        "Conventions:",
        "\n".join(f"- {name.replace('_', ' ')}: {meaning}" for name, meaning in CONVENTIONS.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _tumour_row(case: CaseScores) -> Row:
    row: Row = (case.name, f"{case.predicted_ml:.1f}", str(case.predicted_lesions))
    if case.tumour is None or case.lesions is None or case.burden is None:
        return (*row, *[UNDEFINED] * 6)
    lesions, (predicted, true) = case.lesions, case.burden
    found = f"{lesions.detected} of {lesions.true}"
    false = str(lesions.predicted - lesions.detected)
    return (*row, *_three(case.tumour), found, false, number(predicted - true, "+.2%"))


def _three(region: RegionScores) -> Row:
    surface = region.surface
    return number(region.overlap.dice), number(surface.assd, ".2f"), number(surface.hd95, ".2f")


def _mean(mean: Mean, style: str) -> str:
    shown = number(mean.value, style)
    if not math.isnan(mean.sd):
        shown += f" ± {number(mean.sd, style.lstrip('+'))}"
    return f"{shown} ({mean.undefined} undefined)" if mean.undefined and mean.cases else shown


def _pipes(rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(text.line(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    rule = "|---" + "|---:" * (len(rows[0]) - 1) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
