"""The page of many cases: a row and a picture each, read from the pages of the cases."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

from trtseg.io.atomic import atomic
from trtseg.io.csv_file import write_csv
from trtseg.io.names import INDEX, case_name
from trtseg.report import pages
from trtseg.report.measured import MEASURED

_FACTS = re.compile(rb'<script type="application/json" id="facts">(.*?)</script>', re.DOTALL)
_HEAD = 1 << 18  # bytes in which the facts of a case's page lie
_BARS = 12  # of a histogram
_CHANGED = "files-changed"  # beside the codes of warnings


@dataclass(frozen=True)
class Row:
    """A case: its name, where its page lies from the page of all, and what its page says of it.

    ``is_changed``: somebody changed its files after the page was made.
    """

    name: str
    link: str
    facts: dict[str, Any]
    is_changed: bool = False

    @property
    def codes(self) -> list[str]:
        """The codes of its warnings, in the order of the alphabet."""
        return sorted({*self.facts["warnings"], *[_CHANGED] * self.is_changed})


def write_index(
    cases: Sequence[Path],
    folder: Path,
    failed: Mapping[Path, str] | None = None,
    changed: Collection[Path] = (),
) -> Path | None:
    """Write ``index.html`` and ``index.csv`` into a folder: a row for each of the pages of ``cases`` that is there.

    ``failed`` says of pages, by their paths, why they were not made; a page that lies there is then of an earlier run,
    and left out. ``changed`` are pages of cases whose files somebody changed later. Returns the path of the page; None
    if there is no page of a case, and none of an earlier run that says otherwise. An OutputError says that a file
    cannot be written.
    """
    reasons = {} if failed is None else failed
    rows = [
        replace(row, is_changed=page in changed)
        for page in cases
        if page not in reasons and (row := read_row(page, folder)) is not None
    ]
    failures = [(case_name(Path(os.path.relpath(page, folder))), text) for page, text in reasons.items()]
    index = folder / INDEX
    if not rows and not (failures and index.exists()):
        return None
    with atomic(index, index.with_suffix(".csv")) as (page, table):
        page.write_bytes(index_html(rows, failures))
        write_csv(table, _table(rows, failures))
    return index


def read_row(page: Path, folder: Path) -> Row | None:
    """Read the facts that stand at the start of the page of a case; None if there is no such page.

    ``folder`` is where the page of all cases will lie. The names are those of the files.
    """
    try:
        with page.open("rb") as file:
            found = _FACTS.search(file.read(_HEAD))
    except OSError:
        found = None
    if found is None:
        return None
    place = os.path.relpath(page, folder)
    link = quote(os.fsencode(place))  # the very bytes of its name, whatever they are
    return Row(case_name(Path(place)), link, json.loads(found[1]))


def index_html(rows: Sequence[Row], failures: Sequence[tuple[str, str]] = ()) -> bytes:
    """Make the page of all cases, one HTML file that needs no other but those to which it leads.

    ``failures`` are names of cases that have no page, and why.
    """
    codes = sorted({code for row in rows for code in row.codes})
    parts = {
        "failed": _failed(failures),
        "changed": _changed(sum(row.is_changed for row in rows)),
        "count": f"{len(rows)} case{'s' * (len(rows) != 1)}",
        "codes": "".join(f"<option>{html.escape(code)}</option>" for code in codes),
        "histograms": "".join(
            _histogram(MEASURED[key][0], [float(row.facts[key]) for row in rows])
            for key in ("liver_ml", "tumour_ml", "lesion_count")
            if rows
        ),
        "headings": "".join(
            f'<th scope="col"><button type="button">{heading}</button></th>'
            for heading in ("Case", *(heading for heading, _ in MEASURED.values()), "Warnings")
        ),
        "rows": "\n".join(_row(row) for row in rows),
    }
    return pages.page("index", "Livers and their lesions", parts)


def _table(rows: Sequence[Row], failures: Sequence[tuple[str, str]]) -> list[list[Any]]:
    """The numbers of all cases, and why others failed, below a row of headings."""
    headings = ["case", "state", *MEASURED, "warnings", "model", "page", "error"]
    lines: list[list[Any]] = [headings]
    for row in rows:
        facts = row.facts
        values = ["" if (value := facts.get(key)) is None else value for key in MEASURED]
        state, codes = "changed" if row.is_changed else "done", " ".join(sorted({*facts["warnings"]}))
        lines.append([row.name, state, *values, codes, facts["model"], row.link, ""])
    empty = [""] * (len(headings) - 3)
    return lines + [[name, "failed", *empty, reason] for name, reason in failures]


def _changed(count: int) -> str:
    if not count:
        return ""
    return (
        f'<p class="warnings">{count} case{"s" * (count != 1)} with files that somebody changed later '
        f"(<code>{_CHANGED}</code>): numbers and picture are those of before.</p>"
    )


def _failed(failures: Sequence[tuple[str, str]]) -> str:
    if not failures:
        return ""
    rows = [(html.escape(name), html.escape(reason)) for name, reason in failures]
    caption = f"{len(rows)} case{'s' * (len(rows) != 1)} failed"
    return pages.table(caption, ("Case", "Why"), rows, "failed")


def _row(row: Row) -> str:
    facts = row.facts
    source = f"data:image/jpeg;base64,{facts['thumbnail']}"
    picture = f'<img loading="lazy" decoding="async" width="120" height="96" alt="" src="{source}">'
    name = html.escape(row.name)
    cells = "".join(_cell(facts.get(key), style) for key, (_, style) in MEASURED.items())
    codes = html.escape(" ".join(row.codes))
    link = f'<a href="{html.escape(row.link)}">{picture}<span>{name}</span></a>'
    warnings = f'<td data-value="{codes}">{codes.replace(" ", "<br>")}</td>'
    return f'<tr><th scope="row" data-value="{name}">{link}</th>{cells}{warnings}</tr>'


def _cell(value: float | None, style: str) -> str:
    """A number, or a dash that is less than any number."""
    if value is None:
        return '<td data-value="-1">–</td>'
    return f'<td data-value="{value}">{format(value, style)}</td>'


def _histogram(heading: str, values: Sequence[float]) -> str:
    """Draw how many cases have which value, as SVG with its text alternative."""
    top = max(values) or 1.0
    counts = [0] * _BARS
    for value in values:
        counts[min(int(value / top * _BARS), _BARS - 1)] += 1
    most = max(counts)
    bars = "".join(
        f'<rect x="{n * 20 + 1}" y="{60 - 56 * count / most:.1f}" width="18" height="{56 * count / most:.1f}">'
        f"<title>{top * n / _BARS:.4g} to {top * (n + 1) / _BARS:.4g}: {count}</title></rect>"
        for n, count in enumerate(counts)
    )
    middle = median(values)
    return (
        f'<figure><svg viewBox="0 0 240 76" role="img" aria-label="Histogram of {heading}: 0 to {top:.4g}, '
        f'median {middle:.4g}">{bars}<path d="M0 60.5h240"/><text x="1" y="74">0</text>'
        f'<text x="239" y="74" text-anchor="end">{top:.4g}</text></svg>'
        f"<figcaption>{heading}; median {middle:.4g}</figcaption></figure>"
    )
