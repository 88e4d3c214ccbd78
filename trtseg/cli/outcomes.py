"""What ``trtseg segment`` says of its cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtseg.cli import text
from trtseg.cli.exits import Failures

if TYPE_CHECKING:
    from trtseg.cohort import Outcome
    from trtseg.result import Segmentation

LISTED = 10  # lesions printed one by one; the report has all. Failures that leave the table on the screen
_MOST_ROWS = 1000  # of the table that is printed


@dataclass
class Shown:
    """What became of the cases.

    Attributes
    ----------
    failures : Failures
        Those that failed.
    new, well : int
        How many were done now, and how many are well, with those that were complete or changed before.
    failed : dict
        For the page of each case that failed, why.
    outdated : set
        The pages of cases whose files somebody changed.
    """

    failures: Failures = field(default_factory=Failures)
    new: int = 0
    well: int = 0
    failed: dict[Path, str] = field(default_factory=dict)
    outdated: set[Path] = field(default_factory=set)


def show(outcomes: Iterable[Outcome], count: int, quiet: bool) -> Shown:
    """Report each failure on stderr and print a table; ``count`` is the number of cases."""
    from trtseg.cohort.table import TABLE
    from trtseg.io.names import stem

    shown = Shown()
    failures = shown.failures
    rows: list[tuple[str, ...]] = []  # what the table shows of each case
    changed: list[Path] = []
    old = 0
    try:
        for outcome in outcomes:
            case = outcome.case
            if outcome.changed is not None:
                changed.append(outcome.changed)
                shown.outdated |= {case.html} if case.html else set()
                continue
            if outcome.is_old:
                old += 1
                continue
            if not shown.new and not failures.count:
                _say_old(old, changed, count, quiet)
            if outcome.error is not None:
                reason = failures.add(outcome.error, case.input, alone=count == 1)
                if case.html is not None:
                    shown.failed[case.html] = reason.replace(case.input, case.source.name)
                continue
            shown.new += 1
            for warning in outcome.warnings:
                text.warn(f"{case.input}: {warning.text} [{warning.code}]")
            if outcome.result is not None and count == 1:
                rows += _details(outcome, outcome.result)
                ends = (".json", ".png", ".html")
                beside = [case.labels.with_name(f"{stem(case.labels)}{end}") for end in ends]
                earlier = [path for path in beside if path not in case.outputs]
                warn_of_earlier(earlier, "--report, --preview, --html")
            elif outcome.row is not None and len(rows) < _MOST_ROWS:
                rows.append(_row(outcome, outcome.row))
        if not shown.new and not failures.count:
            _say_old(old, changed, count, quiet)
    finally:
        if rows and not quiet and count == 1:
            text.show_results(text.listing(rows, caption=text.NOT_CLINICAL, indent=True))
        elif rows and not quiet:
            headings = ("case", "liver mL", "tumour mL", "lesions", "seconds", "labels")
            table = text.table(headings, rows, right=range(1, 5), caption=text.NOT_CLINICAL)
            text.show_results(table)
    if shown.new > len(rows) == _MOST_ROWS and not quiet:
        text.note(f"{shown.new - len(rows)} more cases are in the table of the folder, {TABLE}")
    shown.well = shown.new + old + len(changed)
    return shown


def _say_old(old: int, changed: Sequence[Path], count: int, quiet: bool) -> None:
    """Say how many cases were complete before, on stderr; and always, which of them are as others have left them."""
    if changed:
        from trtseg.cohort.manifest import MANIFEST

        shown = ", ".join(map(str, changed[:LISTED])) + ", ..." * (len(changed) > LISTED)
        text.warn(
            f"{len(changed)} of {count} cases are left alone, for these files are not as {MANIFEST} has them, so "
            f"somebody changed or replaced them: {shown}; --overwrite replaces them"
        )
    if old and not quiet:
        text.note(
            f"{old} of {count} cases are complete, made by this model and these options; "
            "--overwrite does them again"
        )


def warn_of_earlier(paths: Iterable[Path], options: str) -> None:
    """Say which of these files of trtseg are there, though they were not written with the labels of now."""
    from trtseg.notice import bears_notice

    if left := [str(path) for path in paths if path.is_file() and bears_notice(path)]:
        text.warn(f"{', '.join(left)}: may be of earlier labels; write anew ({options}), or remove")


def _row(outcome: Outcome, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Lay out one case of several in a row."""
    return (
        outcome.case.source.name,
        f"{row['liver_ml']:.1f}",
        f"{row['tumour_ml']:.1f}",
        str(row["lesion_count"]),
        f"{outcome.seconds:.1f}",
        str(outcome.case.labels),
    )


def _details(outcome: Outcome, result: Segmentation) -> list[tuple[str, ...]]:
    """Lay out the only case as headings and texts."""
    case, made = outcome.case, result.provenance
    rows: list[tuple[str, ...]] = [
        ("case", case.source.name),
        ("liver", f"{result.liver_ml:.1f} mL"),
        ("tumour", f"{result.tumour_ml:.1f} mL, {result.burden:.1%} of the liver"),
        ("lesions", str(len(result.lesions))),
    ]
    for number, lesion in enumerate(result.lesions[:LISTED], 1):
        first, last = lesion.slices
        size = f"{lesion.volume_ml:.1f} mL, {lesion.diameter_mm:.0f} mm across, slices {first} to {last}"
        if lesion.probability is not None:
            size += f", probability {lesion.probability:.2f}"
        rows.append((f"  {number}", size))
    if len(result.lesions) > LISTED:
        rows.append(("", f"and {len(result.lesions) - LISTED} smaller ones"))
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.timings.items())
    rows.append(("seconds", f"{outcome.seconds:.1f}: {stages}"))
    rows.append(
        ("made by", f"model {made['model']} {made['model_version']}, {made['device']}, {made['precision']}")
    )
    if "search_mm" in made:
        slices = f"{made['labelled_slices']} of {len(result.canonical)} slices labelled"
        rows.append(("search", f"for the liver on slices {made['search_mm']:g} mm apart, {slices}"))
    rows.append(("labels", str(case.labels)))
    rows += [("report", str(case.report))] if case.report else []
    rows += [("preview", str(case.preview))] if case.preview else []
    rows += [("page", str(case.html))] if case.html else []
    return rows
