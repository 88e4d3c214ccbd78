"""The log of a run, and its learning curves as PNG.

python -m training.curves runs/liver
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append(log: Path, row: Mapping[str, Any]) -> None:
    """Add a row to ``log.csv``, and headings before the first."""
    new = not log.exists()
    with log.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def plot(log: Path, png: Path) -> None:
    """Draw the loss and the validation scores of ``log.csv``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(steps, [float(row["loss"]) for row in rows])
    left.set(title="training loss", xlabel="step", yscale="log")
    for name in rows[0].keys() - {"step", "seconds", "lr", "loss"}:
        right.plot(steps, [float(row[name]) for row in rows], label=name)
    right.set(title="validation", xlabel="step", ylim=(0, 1))
    right.legend(fontsize="small")
    figure.savefig(png, dpi=120)
    plt.close(figure)


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder with log.csv")
    run = parser.parse_args().run
    plot(run / "log.csv", run / "curves.png")


if __name__ == "__main__":
    main()
