"""``trtseg evaluate``: many cases in one go, and no case that takes the others down with it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trtseg import __version__
from trtseg.cli import tables, text
from trtseg.cli.exits import Failures
from trtseg.cli.pairs import Matched, Pair
from trtseg.errors import ArgumentError, InputError
from trtseg.io import load, read_labels
from trtseg.io.atomic import atomic, resolve_target
from trtseg.io.folders import check_writable, made_folder
from trtseg.labels.components import Array
from trtseg.metrics.cases import CaseScores, SetScores, evaluate_case, evaluate_set
from trtseg.metrics.checks import needs
from trtseg.notice import NOTICE
from trtseg.volume import Geometry, check_same_grid, spacing_mm

#: Version of the JSON file's layout; raised when a key changes its meaning or goes away.
SCHEMA = 1
_NAMED = 5  # files named in a note; the JSON file has all


@dataclass(frozen=True)
class Outputs:
    """What is written: a JSON and a Markdown file, and pictures of the ``worst`` cases in a folder."""

    json: Path | None = None
    markdown: Path | None = None
    overlays: Path | None = None
    worst: int = 5


@dataclass
class _Done:
    """What has become of the cases so far."""

    scored: list[tuple[Pair, CaseScores]] = field(default_factory=list)
    left_out: list[tuple[Pair, str]] = field(default_factory=list)
    failures: Failures = field(default_factory=Failures)


def run(matched: Matched, outputs: Outputs, *, liver_only: bool, quiet: bool) -> int:
    """Score all pairs, print and write the scores; return the exit code."""
    needs("scipy.spatial")  # now, once, and not for every case
    _check_targets(matched, outputs)
    notes = _unmatched(matched)
    for note in notes:
        text.note(note)
    folder = outputs.overlays
    with made_folder(folder, "--overlays") if folder is not None else nullcontext():
        if folder is not None:
            check_writable(folder, "--overlays")
        done = _Done()
        _score(matched.pairs, done, liver_only=liver_only, quiet=quiet)
        if done.scored:
            scores = evaluate_set(case for _, case in done.scored)
            if not quiet:
                tables.show(scores)
            notes += [f"{pair.name} was left out: {reason}" for pair, reason in done.left_out]
            _write(scores, matched, done, outputs, notes)
            if folder is not None:
                _draw_worst(done, folder, outputs.worst, liver_only=liver_only)
    return done.failures.exit_code(len(done.scored))


def _check_targets(matched: Matched, outputs: Outputs) -> None:
    """Refuse now what could not be written after the work, or would overwrite an input."""
    inputs = {
        os.path.realpath(p) for pair in matched.pairs for p in (pair.prediction, pair.truth, pair.ct) if p
    }
    for option, path in (("--json", outputs.json), ("--markdown", outputs.markdown)):
        if path is not None:
            target = resolve_target(path)
            if os.fspath(target) in inputs:
                raise ArgumentError(f"{option}: {path} is an input or the other report; choose another name")
            check_writable(target.parent, option)
            inputs.add(os.fspath(target))  # nor is it the other report


def _unmatched(matched: Matched) -> list[str]:
    notes = []
    for paths, what, other in (
        (matched.predictions, "prediction", "truth"),
        (matched.truths, "truth", "prediction"),
    ):
        if paths:
            names = ", ".join(path.name for path in paths[:_NAMED]) + ", ..." * (len(paths) > _NAMED)
            count = f"1 {what} has" if len(paths) == 1 else f"{len(paths)} {what}s have"
            notes.append(f"{count} no {other} of that name and is not counted: {names}")
    return notes


def _score(pairs: Sequence[Pair], done: _Done, *, liver_only: bool, quiet: bool) -> None:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    silent = quiet or len(pairs) == 1 or not console.is_terminal
    for pair in track(pairs, "evaluating", console=console, transient=True, disable=silent):
        try:
            prediction, truth, geometry = _read(pair)
            spacing = spacing_mm(geometry.canonical_affine())[::-1]
            case = evaluate_case(prediction, truth, spacing, name=pair.name, liver_only=liver_only)
        except Exception as error:
            done.left_out.append((pair, done.failures.add(error, pair.prediction, pair.truth)))
        else:
            done.scored.append((pair, case))


def _read(pair: Pair) -> tuple[Array, Array, Geometry]:
    """Read prediction and truth, and the grid that they share."""
    prediction, own = read_labels(pair.prediction)
    truth, geometry = read_labels(pair.truth)
    check_same_grid(str(pair.prediction), own, str(pair.truth), geometry)
    return prediction, truth, geometry


def _write(scores: SetScores, matched: Matched, done: _Done, outputs: Outputs, notes: Sequence[str]) -> None:
    """Write the reports; both appear, complete, or neither does."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "notice": NOTICE,
        "trtseg": __version__,
        **scores.to_dict(),
        "left_out": [{"name": pair.name, "reason": reason} for pair, reason in done.left_out],
        "unmatched": {
            "predictions": [path.name for path in matched.predictions],
            "truths": [path.name for path in matched.truths],
        },
    }
    contents = {
        outputs.json: json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n",
        outputs.markdown: tables.markdown(scores, notes),
    }
    wanted = {path: content for path, content in contents.items() if path is not None}
    with atomic(*wanted) as parts:
        for part, content in zip(parts, wanted.values(), strict=True):
            part.write_text(content, encoding="utf-8", errors="replace")  # a file name may not be Unicode


def _draw_worst(done: _Done, folder: Path, count: int, *, liver_only: bool) -> None:
    """Draw the cases with the lowest Dice, of the liver or of the tumours."""
    from trtseg.report.pictures import disagreement_png

    for pair, case in sorted(done.scored, key=lambda scored: _dices(scored[1]))[:count]:
        try:
            if pair.ct is None:
                raise InputError(
                    f"{pair.prediction}: --ct has no CT of that name to draw; name it like the case"
                )
            prediction, truth, geometry = _read(pair)
            if liver_only:  # what they say of tumours cannot be judged
                prediction, truth = np.minimum(prediction, 1), np.minimum(truth, 1)
            volume = load(pair.ct)
            check_same_grid(str(pair.ct), volume.geometry, str(pair.truth), geometry)
            summary = f"liver Dice {case.liver.overlap.dice:.3f}"
            if case.tumour is not None:
                summary += f", tumour Dice {case.tumour.overlap.dice:.3f}"
            with atomic(folder / f"{pair.name}.png") as (part,):
                part.write_bytes(disagreement_png(volume, prediction, truth, summary))
        except Exception as error:
            done.failures.add(error, pair.prediction, pair.truth)


def _dices(case: CaseScores) -> list[float]:
    """Dice of the regions, the worse first: what cases are ranked by."""
    return sorted(region.overlap.dice for region in (case.liver, case.tumour) if region is not None)
