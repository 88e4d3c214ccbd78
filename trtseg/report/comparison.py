"""The page of two scans of one patient."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from trtseg.report import pages

_CHARTED = 30  # lesions in the chart
_STATUSES = ("grown", "shrunk", "unchanged", "new", "gone")
_HEADINGS = (
    "Lesion",
    "Change",
    "No. before",
    "after",
    "Volume before, mL",
    "after, mL",
    "Long axis before, mm",
    "after, mm",
    "Short axis before, mm",
    "after, mm",
    "Slice before",
    "after",
)


def comparison_html(report: Mapping[str, Any], *, keep_identity: bool = False) -> bytes:
    """Make the page of a comparison, one HTML file that needs no other.

    Parameters
    ----------
    report : mapping
        What `trtseg.followup.Comparison.report` returns.
    keep_identity : bool
        Show the names of the files, which may tell who the patient is.
    """
    findings = report["findings"]
    sums, tumour = report["sum_of_diameters_mm"], report["tumour_ml"]
    counts = ", ".join(f"{_count(findings, status)} {status}" for status in _STATUSES)
    numbers = [
        ("Liver, mL", _change(report["liver_ml"])),
        ("Tumour, mL", "–" if tumour is None else _change(tumour)),
        ("Sum of diameters, mm", "–" if sums is None else _change(sums)),
        ("Like RECIST 1.1", report["recist_like"] or "–"),
        ("Lesions", "–" if tumour is None else counts),
    ]
    title = f"{report['names'][0]} and {report['names'][1]}" if keep_identity else "Two scans of one liver"
    shift = ", ".join(f"{round(mm, 1) + 0.0:.1f}" for mm in report["shift_mm"])  # no -0.0
    parts = {
        "title": html.escape(title),
        "warnings": pages.warnings([(text, "") for text in report["warnings"]], "scans"),
        "figures": pages.figures(numbers),
        "lesions": pages.table(
            "Lesions: matched, gone, new", _HEADINGS, [_row(n, f) for n, f in enumerate(findings, 1)]
        )
        if findings
        else f"<p>{'Lesions are not known.' if tumour is None else 'No lesions in either scan.'}</p>",
        "chart": _chart(findings),
        "how": f"The later liver was moved by {shift} mm (to the right, front and head) onto the earlier one; "
        f"their Dice is then {report['liver_dice']:.3f}.",
    }
    return pages.page("comparison", title, parts)


def _count(findings: Sequence[Mapping[str, Any]], status: str) -> int:
    return sum(finding["status"] == status for finding in findings)


def _change(pair: Sequence[float]) -> str:
    before, after = pair
    return f"{before:.1f} → {after:.1f}{_percent(before, after)}"


def _percent(before: float, after: float) -> str:
    """Say the change in brackets; a report may round the volume of a small lesion to nothing."""
    return f" ({round((after - before) / before, 2) + 0.0:+.0%})" if before else ""  # no -0


def _row(number: int, finding: Mapping[str, Any]) -> tuple[str, ...]:
    before, after = finding["before"], finding["after"]
    change = finding["status"]
    if before and after:
        change += _percent(before["volume_ml"], after["volume_ml"])
    cells = [
        "–" if side is None else style(side[key])
        for key, style in (
            ("lesions", lambda numbers: ", ".join(map(str, numbers))),
            ("volume_ml", "{:.2f}".format),
            ("long_mm", "{:.1f}".format),
            ("short_mm", "{:.1f}".format),
            ("slice", str),
        )
        for side in (before, after)
    ]
    return str(number), f'<span class="{finding["status"]}">{change}</span>', *cells


def _chart(findings: Sequence[Mapping[str, Any]]) -> str:
    """Draw the volumes before and after as pairs of bars; the table says the same."""
    shown = findings[:_CHARTED]
    pairs = [[side["volume_ml"] if side else 0.0 for side in (f["before"], f["after"])] for f in shown]
    top = max((ml for pair in pairs for ml in pair), default=0.0)
    if not top:
        return ""
    bars = "".join(
        f'<rect class="{when}" x="{x + 24 * n}" y="{82 - 80 * ml / top:.1f}" width="9" height="{80 * ml / top:.1f}"/>'
        for n, pair in enumerate(pairs)
        for when, x, ml in zip(("before", "after"), (2, 12), pair, strict=True)
    )
    names = "".join(
        f'<text x="{n * 24 + 12}" y="94" text-anchor="middle">{n + 1}</text>' for n in range(len(pairs))
    )
    which = "each lesion" if len(findings) <= _CHARTED else f"lesions 1 to {_CHARTED} of {len(findings)}"
    label = f"Volume of {which} before and after, as in the table"
    return (
        f'<figure><svg viewBox="0 0 {max(24, len(pairs)) * 24} 98" role="img" aria-label="{label}">'
        f'{bars}<path d="M0 82.5h{len(pairs) * 24}"/>{names}</svg><figcaption>Volume of {which}: before '
        f"(outlined), after (filled); highest bar {top:.1f} mL</figcaption></figure>"
    )
