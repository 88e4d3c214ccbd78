"""``trtseg compare``: two scans of one patient."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from trtseg.cli import text
from trtseg.cli.exits import errors_as_exit_codes
from trtseg.cli.meaning import meaning_of


def compare(
    before: Annotated[
        Path,
        typer.Argument(
            metavar="BEFORE",
            help="Labels of the earlier scan, also as DICOM Segmentation, or the JSON report beside them.",
            parser=text.path,
        ),
    ],
    after: Annotated[
        Path,
        typer.Argument(
            metavar="AFTER",
            help="Labels of the later scan, likewise.",
            parser=text.path,
        ),
    ],
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write everything as JSON.", parser=text.path)
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page.", parser=text.path)] = None,
    liver_label: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Labels of both scans that are liver, where other programs made them: 5 (TotalSegmentator), 6 (AMOS, "
            "BTCV); of a DICOM Segmentation, numbers of segments. Without --tumour-label livers alone are compared.",
        ),
    ] = None,
    tumour_label: Annotated[
        str | None, typer.Option(metavar="N,...", help="Labels of both scans that are tumour of the liver.")
    ] = None,
    keep_identity: Annotated[
        bool,
        typer.Option(
            "--keep-identity",
            help="The page shows the names of the files, which may tell who the patient is.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")] = False,
) -> None:
    """Compare two scans of one patient.

    Which lesions grew, shrank, are new or gone? Liver is label 1 or 2, tumour is label 2, unless --liver-label says
    otherwise of both scans.

    The later liver is moved onto the earlier one, without turning it; lesions are matched by their places.
    """
    with errors_as_exit_codes():
        from trtseg import followup
        from trtseg.io.folders import check_reports
        from trtseg.report.comparison import comparison_html

        meaning = meaning_of(liver_label, tumour_label)
        inputs = (before, after, followup.label_map(before), followup.label_map(after))
        check_reports({"--json": json, "--html": html}, inputs)
        made = followup.compare(before, after, meaning=meaning)
        report = made.report()
        page = comparison_html(report, keep_identity=keep_identity).decode()
        text.write({json: json_module.dumps(report, indent=2, ensure_ascii=False) + "\n", html: page})
        for warning in made.warnings:
            text.warn(warning)
        if not quiet:
            _show(report)


def _show(report: Mapping[str, Any]) -> None:
    headings = (
        "lesion before",
        "after",
        "change",
        "mL before",
        "after",
        "long mm before",
        "after",
        "short mm before",
        "after",
    )
    rows = [_row(finding) for finding in report["findings"]]
    tumour, sums = report["tumour_ml"], report["sum_of_diameters_mm"]
    lines = [
        ("liver", "{:.1f} mL, then {:.1f} mL".format(*report["liver_ml"])),
        ("tumour", "–" if tumour is None else "{:.1f} mL, then {:.1f} mL".format(*tumour)),
        ("sum of diameters", "–" if sums is None else "{:.1f} mm, then {:.1f} mm".format(*sums)),
        ("like RECIST 1.1", report["recist_like"] or "–"),
    ]
    text.show_results(
        *([text.table(headings, rows, right=range(3, 9))] if rows else []),
        text.listing(lines, caption=text.NOT_CLINICAL),
    )


def _row(finding: Mapping[str, Any]) -> tuple[str, ...]:
    sides = finding["before"], finding["after"]
    numbers = ["–" if side is None else ", ".join(map(str, side["lesions"])) for side in sides]
    cells = [
        "–" if side is None else f"{side[name]:.{digits}f}"
        for name, digits in (("volume_ml", 2), ("long_mm", 1), ("short_mm", 1))
        for side in sides
    ]
    return *numbers, finding["status"], *cells
