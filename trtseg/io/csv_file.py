"""Tables as comma-separated values."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# A spreadsheet would take a text that begins like this for a formula; some leave out space before one.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as a file of comma-separated values, in place: call this with a temporary path of `atomic`."""
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file).writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    """Put a sign before a text that is not to be a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in _FORMULA else value
