"""The measurements of a cohort: a row for each case, and the table of all as comma-separated values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trtseg.io.atomic import atomic
from trtseg.io.csv_file import write_csv
from trtseg.report.measured import MEASURED
from trtseg.result import Segmentation

#: Name of the table in the folder of the results.
TABLE = "cohort.csv"
#: Its columns; ``state`` is ``done``, ``failed``, or ``changed`` where somebody changed the files.
COLUMNS = (
    "case", "state", *MEASURED, "warnings", "slices", "slice_mm", "model", "model_version", "device", "precision",
    "seconds", "labels", "input", "error",
)  # fmt: skip


def row_of(result: Segmentation, seconds: float) -> dict[str, Any]:
    """What the table says of a result, beside the names of its files."""
    made, report = result.provenance, result.report()
    return {
        **{name: "" if report[name] is None else report[name] for name in MEASURED},
        "warnings": " ".join(sorted({warning.code for warning in result.warnings})),
        "slices": len(result.canonical),
        "slice_mm": round(result.geometry.spacing[0], 4),
        **{name: made.get(name, "") for name in ("model", "model_version", "device", "precision")},
        "seconds": round(seconds, 3),
    }


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of `COLUMNS` as a file, completely or not at all; what a row has not stays empty."""
    with atomic(path) as (temporary,):
        write_csv(temporary, [COLUMNS, *([row.get(column, "") for column in COLUMNS] for row in rows)])
