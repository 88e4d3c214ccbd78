"""What accuracy costs: Dice of models against the time that both nets take for a slice, as a table and a plot.

    python -m training.export LIVER.pt TUMOUR.pt --out runs/default-320 --size 320 --pixel-mm 1.2 --tumour-threshold 0.7
    python -m training.trade default runs/default-320 --shared ../shared/data --plot docs/trade.png

The models are scored in FP32 on the cases that validate: the liver by the mean over patients of single slices, without
post-processing, the tumour by the mean over the stacks of slices with tumours. Their nets then take turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import trtseg
from training.cases import Case, read_checked
from training.evaluate import score, validating
from training.loose import liver_dices, score_loose
from training.picture import drawn
from training.program import parser_of, plain_errors
from training.tables import grid
from trtseg import models
from trtseg.engines import open_engine
from trtseg.engines.base import logits_of
from trtseg.engines.precision import FP32
from trtseg.io.atomic import atomic

#: Slices of each model that are timed.
RUNS = 40


class Point(NamedTuple):
    """A model: pixels of a side, seconds of both nets for a slice, and mean Dice of liver and tumour."""

    name: str
    size: int
    seconds: float
    liver: float
    tumour: float


def dices(model: str, cases: Sequence[Case]) -> tuple[float, float]:
    """Mean Dice of the liver over patients of single slices, and of the tumour over stacks with tumours."""
    loose, tumour = [], []
    with trtseg.Segmenter(model, precision=FP32.name) as segmenter:
        for case in cases:
            scan = read_checked(case)
            if scan.cells is not None:
                loose.append(score_loose(segmenter, case, scan))
            elif case.labels_tumour and (scan.label == 2).any():
                scores = score(segmenter, case, scan)
                assert scores.tumour is not None
                tumour.append(scores.tumour.overlap.dice)
    return float(np.mean(list(liver_dices(loose).values()))), float(np.mean(tumour))


def times(names: Sequence[str]) -> list[float]:
    """Median seconds that both nets of each model take for a slice; the models take turns."""
    calls = []
    for name in names:
        files = models.find(name)
        engines = [open_engine(files, net, precision=FP32.name) for net in files.spec.nets]
        x = np.random.default_rng(0).random((1, 1, *files.spec.nets[0].size), np.float32)
        calls.append((engines, x))
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(RUNS):
        for own, (engines, x) in zip(found, calls, strict=True):
            start = time.perf_counter()
            for engine in engines:
                logits_of(engine, x)
            own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in found]


def measured(names: Sequence[str], shared: Path) -> list[Point]:
    """Score and time models."""
    cases = [case for case in validating(shared) if not case.body_part]
    points = []
    for model, seconds in zip(names, times(names), strict=True):
        size = models.find(model).spec.nets[0].size[0]
        points.append(Point(Path(model).name, size, seconds, *dices(model, cases)))
    return points


def table(points: Sequence[Point]) -> str:
    """The points as Markdown."""
    return grid(
        ["model", "pixels", "both nets, ms a slice", "liver Dice", "tumour Dice"],
        ([p.name, p.size, f"{1e3 * p.seconds:.0f}", f"{p.liver:.3f}", f"{p.tumour:.3f}"] for p in points),
    )


def plot(points: Sequence[Point], png: Path) -> None:
    """Draw Dice against milliseconds, liver and tumour beside each other."""
    end = 1250 * max(p.seconds for p in points)
    with drawn(png, 1, 2, figsize=(10, 4)) as axes:
        for organ, axis in zip(("liver", "tumour"), axes, strict=True):
            for p in points:
                at = 1e3 * p.seconds, getattr(p, organ)
                axis.plot(*at, "o", color="tab:red" if p.name == points[0].name else "tab:blue")
                axis.annotate(f" {p.name}", at, fontsize="small")
            axis.set(xlabel="both nets, ms a slice", ylabel=f"Dice of the {organ}", xlim=(0, end))
            axis.margins(y=0.15)


@plain_errors()
def main() -> None:
    """Parse the command line, score, time, print and draw."""
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="+", help="names or folders; the first is drawn in red")
    parser.add_argument("--shared", type=Path, required=True, help="folder of the data")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="file of the plot")
    args = parser.parse_args()
    with atomic(*([args.plot] if args.plot else [])) as pictures:
        points = measured(args.models, args.shared)
        print(table(points))
        for picture in pictures:
            plot(points, picture)


if __name__ == "__main__":
    main()
