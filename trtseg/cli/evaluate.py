"""``trtseg evaluate``: labels against the truth, for one case or many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtseg.cli import progress, text
from trtseg.cli.exits import Failures, errors_as_exit_codes
from trtseg.cli.meaning import meaning_of
from trtseg.errors import ArgumentError
from trtseg.notice import NOTICE

if TYPE_CHECKING:
    from trtseg.metrics.cases import CaseScores, SetScores
    from trtseg.pairs import Pair

#: Version of the JSON file's layout; raised when a key changes its meaning or goes away.
SCHEMA = 1
_NAMED = 5  # files named in a note; the JSON file has all


def evaluate(
    prediction: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTION",
            help="Labels to judge, or a folder of them; also DICOM Segmentations.",
            parser=text.path,
        ),
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            metavar="TRUTH",
            help="The true labels, or a folder of them. Files of one name belong together, and so do those of LiTS "
            "(volume-N, segmentation-N), of nnU-Net (N_0000, N) and of 'trtseg segment' (N_seg).",
            parser=text.path,
        ),
    ],
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all scores of all cases.", parser=text.path)
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the tables, warnings and conventions.", parser=text.path),
    ] = None,
    liver_only: Annotated[
        bool,
        typer.Option(
            "--liver-only",
            help="The truth does not know tumours: score the liver, and only measure what is called tumour.",
        ),
    ] = False,
    liver_label: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Labels of the truth that are liver, where it has many organs: 6 (AMOS, BTCV), 5 (TotalSegmentator); "
            "of a DICOM Segmentation, numbers of segments. Without --tumour-label the truth then knows no tumours, as "
            "with --liver-only.",
        ),
    ] = None,
    tumour_label: Annotated[
        str | None, typer.Option(metavar="N,...", help="Labels of the truth that are tumour of the liver.")
    ] = None,
    ct: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH|DIR",
            help="The CT, or a folder of them, for --overlays. A CT may be a folder of DICOM files: among several, one "
            "with the name of its case.",
            parser=text.path,
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            metavar="UID",
            help="Series Instance UID of the series of --ct to draw on, where that is DICOM; "
            "'trtseg segment --series list' shows them.",
        ),
    ] = None,
    overlays: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Draw the worst cases on their CT, each on the slice with most disagreement: <case>.png.",
            parser=text.path,
        ),
    ] = None,
    worst: Annotated[int, typer.Option(metavar="N", min=1, help="How many cases to draw.")] = 5,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")] = False,
) -> None:
    """Compare labels with the truth.

    It measures overlap, surface distances, lesions found and tumour burden. Liver is label 1 or 2, tumour is label
    2, unless --liver-label says otherwise of the truth. Of several cases, one that cannot be compared is reported
    and left out.

    Exit codes: 0 all done, 2 error and nothing compared, 3 some cases failed, 130 interrupted.
    """
    with errors_as_exit_codes():
        from trtseg import pairs
        from trtseg.cli import tables
        from trtseg.io.folders import check_reports, check_writable, made_folder
        from trtseg.io.names import is_folder
        from trtseg.metrics.cases import evaluate_set
        from trtseg.metrics.checks import needs

        if (ct is None) != (overlays is None):
            raise ArgumentError("--ct, --overlays: got only one of them; give both to draw overlays")
        if series is not None and (ct is None or is_folder(prediction)):
            raise ArgumentError(
                f"--series: got {series} without --ct, or with folders of labels; give it with two files and the "
                "DICOM files of their CT"
            )
        meaning = meaning_of(liver_label, tumour_label)
        liver_only = liver_only or (meaning is not None and tumour_label is None)
        matched = pairs.match(prediction, truth, ct, names=("PREDICTION", "TRUTH", "--ct"))
        needs("scipy.spatial")  # now, once, and not for every case
        inputs = [p for pair in matched.pairs for p in (pair.prediction, pair.truth, pair.ct) if p]
        check_reports({"--json": json, "--markdown": markdown}, inputs)
        if overlays is not None:
            for pipe in (p for pair in matched.pairs for p in (pair.prediction, pair.truth) if p.is_fifo()):
                raise ArgumentError(
                    f"--overlays: {pipe} is a pipe and can be read once only; give a file of labels"
                )
        alone = {
            "predictions": _below(prediction, matched.predictions),
            "truths": _below(truth, matched.truths),
        }
        notes = _unmatched(alone)
        for note in notes:
            text.note(note)
        with made_folder(overlays, "--overlays") if overlays is not None else nullcontext():
            if overlays is not None:
                check_writable(overlays, "--overlays")
            cases = _score(matched.pairs, liver_only=liver_only, meaning=meaning, quiet=quiet)
            if cases.scored:
                scores = evaluate_set(case for _, case in cases.scored)
                if not quiet:
                    tables.show(scores)
                notes += [f"{pair.name} was left out: {reason}" for pair, reason in cases.left_out]
                notes += [f"{case.name}: warning: {one}" for case in scores.cases for one in case.warnings]
                text.write({json: _json(scores, alone, cases), markdown: tables.markdown(scores, notes)})
                if overlays is not None:
                    _draw(cases, overlays, worst, meaning, series)
        raise typer.Exit(cases.failures.exit_code(len(cases.scored)))


@dataclass
class _Cases:
    """What has become of the cases so far."""

    scored: list[tuple[Pair, CaseScores]] = field(default_factory=list)
    left_out: list[tuple[Pair, str]] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)


def _below(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Paths below the folder that was given."""
    return [path.relative_to(folder).as_posix() for path in paths]


def _unmatched(alone: dict[str, list[str]]) -> list[str]:
    """Name the files that have no partner."""
    notes = []
    for found, kind, other in (
        (alone["predictions"], "prediction", "truth"),
        (alone["truths"], "truth", "prediction"),
    ):
        if found:
            names = ", ".join(found[:_NAMED]) + ", ..." * (len(found) > _NAMED)
            few = len(found) == 1
            count = f"1 {kind} has" if few else f"{len(found)} {kind}s have"
            notes.append(f"{count} no {other} of that name and {'is' if few else 'are'} not counted: {names}")
    return notes


def _score(
    matched: Sequence[Pair], *, liver_only: bool, meaning: dict[int, int] | None, quiet: bool
) -> _Cases:
    """Score all cases, and report each failure on stderr."""
    from trtseg import pairs

    cases = _Cases()
    with progress.told(quiet, len(matched) > 1) as tell:
        for done, pair in enumerate(matched):
            tell(f"evaluating {pair.name}", done / len(matched))
            try:
                scores = pairs.score(pair, liver_only=liver_only, meaning=meaning)
            except Exception as error:
                cases.left_out.append((pair, cases.failures.add(error, pair.prediction, pair.truth)))
            else:
                cases.scored.append((pair, scores))
                for warning in scores.warnings:
                    text.warn(warning)
    return cases


def _json(scores: SetScores, alone: dict[str, list[str]], cases: _Cases) -> str:
    """Lay out all scores as JSON."""
    from trtseg import __version__

    document: dict[str, Any] = {
        "schema": SCHEMA,
        "notice": NOTICE,
        "trtseg": __version__,
        **scores.to_dict(),
        "left_out": [{"name": pair.name, "reason": reason} for pair, reason in cases.left_out],
        "unmatched": alone,
    }
    return json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _draw(
    cases: _Cases, folder: Path, count: int, meaning: dict[int, int] | None, series: str | None
) -> None:
    """Draw the cases with the lowest Dice, of the liver or of the tumours, and report each failure on stderr."""
    from trtseg import pairs
    from trtseg.io.folders import make_folder

    for pair, scores in sorted(cases.scored, key=lambda case: _dices(case[1]))[:count]:
        try:
            target = folder / f"{pair.name}.png"
            make_folder(target.parent, "--overlays")
            for warning in pairs.draw(pair, scores, target, meaning=meaning, series=series):
                text.warn(warning)
        except Exception as error:
            cases.failures.add(error, pair.prediction, pair.truth)


def _dices(scores: CaseScores) -> list[float]:
    """Dice of the regions, the lowest first."""
    return sorted(region.overlap.dice for region in (scores.liver, scores.tumour) if region is not None)
