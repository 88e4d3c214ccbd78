"""The log of a run, and its learning curves as PNG.

python -m training.curves runs/liver
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.picture import drawn
from training.program import parser_of, plain_errors
from trtseg.io.atomic import atomic


def log(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to ``log.csv`` behind those of earlier steps; an OutputError leaves the file as it was."""
    rows: list[Mapping[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [old for old in csv.DictReader(file) if int(old["step"]) < row["step"]]
    with atomic(path) as (temporary,), temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*rows, row])


def plot(log: Path, png: Path) -> None:
    """Draw the loss and the validation scores of ``log.csv``; an OutputError leaves the picture as it was."""
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    with drawn(png, 1, 2, figsize=(10, 4)) as (left, right):
        left.plot(steps, [float(row["loss"]) for row in rows])
        left.set(title="training loss", xlabel="step", yscale="log")
        for name in rows[0]:
            if name not in ("step", "lr", "loss", "seconds"):
                right.plot(steps, [float(row[name]) for row in rows], label=name)
        right.set(title="validation", xlabel="step", ylim=(0, 1))
        if right.lines:
            right.legend(fontsize="small")


@plain_errors()
def main() -> None:
    """Parse the command line and draw."""
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path, help="folder with log.csv")
    run = parser.parse_args().run
    plot(run / "log.csv", run / "curves.png")


if __name__ == "__main__":
    main()
