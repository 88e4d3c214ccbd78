"""Score a model on cases with truth, run as users run it: through ``trtseg.Segmenter``, post-processing included.

    python -m training.evaluate --model default --shared ../shared/data -o runs/evaluate
    python -m training.evaluate --model runs/joint/model --ircadb DIR --lits DIR

``--shared`` is all that validates (``training.readers.shared``): complete CTs, the slices of LiTS group A, single
slices with cells, and slices without liver. Other data sets are scored whole: whether a model was trained on some of
their patients is for the user to know. Where the truth knows the liver only, as that of ``chaos3``, it says how many mL
are called tumour and in how many lesions. Cases that cannot be read are named and left out. It prints Markdown; with
``-o`` it writes that, the scores as JSON, the ROC curve, and pictures of the worst cases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import trtseg
from training.cases import Case, Scan, read_checked
from training.kit_score import FALSE_ML
from training.loose import LooseScores, cells_table, liver_table, score_loose
from training.program import parser_of, plain_errors
from training.rank import curve_png, probabilities
from training.readers import READERS
from training.readers.shared import VALIDATION, shared_cases
from training.split import by_patient
from training.tables import grid
from trtseg import models
from trtseg.cli import tables
from trtseg.errors import ArgumentError, InputError
from trtseg.io.atomic import atomic
from trtseg.io.folders import check_writable, make_folder
from trtseg.metrics.cases import CaseScores, evaluate_case, evaluate_set
from trtseg.metrics.ranking import PAPER_BAND, reliability, roc
from trtseg.notice import NOTICE
from trtseg.report.pictures import disagreement_png

#: mm where nobody knows: slices without liver stand alone, and 8-bit slices have lost their spacing.
ASSUMED = (5.0, 0.75, 0.75)
#: Parts of the body in which no slice comes near the liver.
FAR_FROM_LIVER = {
    "head", "head_neck", "neck", "neck_shoulder", "neck_or_upper_chest", "upper_chest", "pelvis",
}  # fmt: skip
#: Slices over which a ROC curve is drawn, at most.
ROC_SLICES = 300


def spacing_of(spacing: Sequence[float]) -> tuple[float, float, float]:
    """The spacing in mm, with `ASSUMED` where it is not known."""
    z, y, x = (a if math.isnan(s) else s for s, a in zip(spacing, ASSUMED, strict=True))
    return z, y, x


def score(segmenter: trtseg.Segmenter, case: Case, scan: Scan, png: Path | None = None) -> CaseScores:
    """Segment the scan of a case and compare with its truth; with ``png`` draw where they disagree."""
    spacing = spacing_of(scan.spacing)
    volume = replace(trtseg.load(scan.hu, spacing=spacing), name=case.name)
    labels = segmenter.segment(volume).canonical
    scores = evaluate_case(labels, scan.label, spacing, name=case.name, liver_only=not case.labels_tumour)
    if png is not None:
        title = f"liver Dice {scores.liver.overlap.dice:.3f}"
        if scores.tumour is not None:
            title += f", tumour Dice {scores.tumour.overlap.dice:.3f}"
        with atomic(png) as (part,):
            part.write_bytes(disagreement_png(volume, labels, scan.label, title))
    return scores


def without_liver(segmenter: trtseg.Segmenter, cases: Iterable[Case]) -> list[tuple[str, float]]:
    """Body part of each slice without liver, and the mL of liver that were found in it."""
    found = []
    for case in cases:
        scan = read_checked(case)
        result = segmenter.segment(scan.hu, spacing=spacing_of(scan.spacing))
        found.append((case.body_part, result.liver_ml))
    return found


def ranking(model: str, cases: Sequence[Case], png: Path | None) -> str:
    """ROC and reliability of the tumour probabilities, FP32, on the net's grid, over slices with liver; as Markdown."""
    files = models.find(model)
    share = ROC_SLICES // len(cases)
    found = [probabilities(files, with_liver(read_checked(case), share)) for case in cases]
    p, truth, inside = (np.concatenate(part) for part in zip(*found, strict=True))
    curves = {"all pixels": roc(p, truth), f"probability in {list(PAPER_BAND)}": roc(p, truth, PAPER_BAND)}
    if png is not None:
        curve_png(png, curves)
    bins = reliability(p[inside], truth[inside])
    areas = grid(
        ["tumour, pixels of the net's grid", "AUC", "share of pixels", "threshold", "Youden's J"],
        (
            [
                name,
                tables.number(r.auc, ".4f"),
                tables.number(r.share, ".4f"),
                tables.number(r.threshold),
                tables.number(r.youden),
            ]
            for name, r in curves.items()
        ),
    )
    shares = grid(
        ["mean probability of tumour, inside the liver mask", "share that is tumour", "pixels"],
        (
            [f"{mean:.3f}", f"{observed:.3f}", count]
            for mean, observed, count in zip(bins.probability, bins.observed, bins.pixels, strict=True)
            if count
        ),
    )
    return f"{areas}\n\n{shares}\n\nExpected calibration error {tables.number(bins.error, '.4f')}."


def with_liver(scan: Scan, most: int) -> Scan:
    """The slices of a scan that show liver, evenly thinned to at most ``most``, with the spacing of `spacing_of`."""
    keep = np.flatnonzero(scan.label.any((1, 2)))
    keep = keep[:: max(1, math.ceil(len(keep) / max(1, most)))]
    return Scan(scan.hu[keep], scan.label[keep], spacing_of(scan.spacing), [scan.z[i] for i in keep])


def false_livers(found: Sequence[tuple[str, float]]) -> str:
    """How many slices without liver show some, as Markdown."""
    far = [ml for part, ml in found if part in FAR_FROM_LIVER]
    rows = (
        ("slices without liver", [ml for _, ml in found]),
        ("of these head, neck, upper chest, pelvis", far),
    )
    return f"| | number | with over {FALSE_ML:g} mL of liver |\n|---|---|---|\n" + "\n".join(
        f"| {name} | {len(volumes)} | {sum(ml > FALSE_ML for ml in volumes)} |" for name, volumes in rows
    )


def headline(scored: dict[Case, CaseScores]) -> str:
    """What a reader asks first of each case, as Markdown: Dice, and what is wrongly called tumour."""
    rows = []
    for case, scores in scored.items():
        tumour, false = "–", scores.predicted_ml
        if scores.tumour is not None and (counts := scores.tumour.overlap).true:
            tumour = f"{counts.dice:.3f}"
            false *= counts.fp / max(1, counts.predicted)
        rows.append([case.name, f"{scores.liver.overlap.dice:.3f}", tumour, f"{false:.1f}"])
    return grid(["case", "liver Dice", "tumour Dice", "mL wrongly called tumour"], rows)


def evaluate(
    segmenter: trtseg.Segmenter, model: str, cases: Sequence[Case], out: Path | None, worst: int
) -> str:
    """Score all cases, write what there is to write, and return the Markdown."""
    if out:
        make_folder(out, "--output")
        check_writable(out, "--output")
    empty = [case for case in cases if case.body_part]
    about = (
        f"{segmenter.spec.name} {segmenter.spec.version}, {segmenter.device} {segmenter.precision}. {NOTICE}"
    )
    parts = [f"# {about}"]
    scored: dict[Case, CaseScores] = {}
    loose: list[LooseScores] = []
    notes, unknown = [], []
    for case in cases:
        if case.body_part:
            continue
        try:
            scan = read_checked(case)
            if scan.cells is not None:
                loose.append(score_loose(segmenter, case, scan))
                continue
            scored[case] = score(segmenter, case, scan)
            notes += [f"{case.source}/{case.name}: {note}" for note in scan.notes]
        except InputError as error:
            notes.append(f"{case.source}/{case.name} was left out: {error}")
            continue
        if any(map(math.isnan, scan.spacing)):
            unknown.append(f"{case.source}/{case.name}")
    if len(cases) > len(empty) and not scored and not loose:
        raise InputError("no case can be scored; " + "; ".join(notes))
    if unknown:
        notes.append(
            f"the spacing is not known of {', '.join(unknown)}: where it is not, {ASSUMED} mm are assumed, and their "
            "mm and mL are worth no more than that"
        )
    if scored:
        parts.append(headline(scored))
    if loose:
        parts += [liver_table(loose), cells_table(loose)]
        if not scored:
            parts += notes
    if empty:
        parts.append(false_livers(without_liver(segmenter, empty)))
    if scored:
        scores = evaluate_set(scored.values())
        parts.append(tables.markdown(scores, notes))
        if tumours := [case for case in scored if case.labels_tumour]:
            parts.append(ranking(model, tumours, out / "roc.png" if out else None))
        if out:
            with atomic(out / "scores.json") as (part,):
                part.write_text(json.dumps(scores.to_dict(), indent=2) + "\n")
            for case in sorted(scored, key=lambda case: scored[case].liver.overlap.dice)[:worst]:
                score(segmenter, case, read_checked(case), out / f"{case.name}.png")
    text = "\n\n".join(parts) + "\n"
    if out:
        with atomic(out / "scores.md") as (part,):
            part.write_text(text)
    return text


def validating(shared: Path) -> list[Case]:
    """The cases of the shared data that validate."""
    cases = shared_cases(shared)
    split = by_patient(cases, VALIDATION)
    return [case for case in cases if split[case.group] == "validation"]


@plain_errors()
def main() -> None:
    """Parse the command line, score, print."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="default", help="name or folder")
    parser.add_argument("--precision", default="auto")
    parser.add_argument(
        "--shared", type=Path, metavar="DIR", help="score the validation cases of this folder"
    )
    for name in ("lits", "msd", "ircadb", "chaos"):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help="score all cases of this data set")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder for tables, curve and pictures"
    )
    parser.add_argument("--worst", type=int, default=5, help="number of pictures")
    args = parser.parse_args()
    if args.worst < 0:
        raise ArgumentError(f"worst: got {args.worst}; expected 0 or more pictures")
    cases = validating(args.shared) if args.shared else []
    for name in ("lits", "msd", "ircadb", "chaos"):
        if folder := getattr(args, name):
            cases += READERS[name](folder)
    if not cases:
        parser.error("no cases; give --shared or a data set")
    segmenter = trtseg.Segmenter(args.model, precision=args.precision)
    print(evaluate(segmenter, args.model, cases, args.output, args.worst), end="")


if __name__ == "__main__":
    main()
