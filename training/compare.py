"""The paper's Table 1 for our data: every method with and without balanced loss, and what else was asked of them.

    python -m training.compare runs/kit.zip --out runs/compare --jobs 8   # what is missing
    python -m training.results runs/compare --into docs/results.md

Each row is trained for two seeds and two folds: the patients of one test while those of the other train. All have one
budget: as many steps a net, on the same samples. With 650 steps the 32 runs of table and halves
took 202 seconds on an H200. On a CPU it takes days; ``--steps`` makes a trial of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from training import batch, row, trainer
from training import kit as kits
from training.checkpoint import Settings
from training.program import plain_errors
from training.row import Split
from trtseg.errors import InputError
from trtseg.io.folders import make_folder

SEEDS = (0, 1)
#: Patients that choose thresholds: four whose tumours nets drew and cells confirm, and two without tumour.
VALIDATION = ("G", "H", "I", "ircadb-2", "ircadb-7", "ircadb-12")
#: All patients whose tumours people drew, on whole slices: those of a fold test while those of the other train, but for
#: A and ircadb-1, which never train.
FOLDS = (Split(("A", "B", "E", "F"), VALIDATION), Split(("C", "D", "ircadb-1"), VALIDATION))
#: The paper's loss: cross-entropy alone.
PLAIN = Settings(
    "one-step", steps=1000, batch=32, size=128, overlap="none", balance=0.0, grow=0, ema=0.995, lesions=0.3
)
BALANCED = replace(PLAIN, balance=0.5)

#: Table 1: rows and their settings; ``sequential`` is a liver net and then a tumour net behind it.
TABLE = {
    "one-step": PLAIN,
    "one-step, balanced": BALANCED,
    "sequential": replace(PLAIN, method="sequential"),
    "sequential, balanced": replace(BALANCED, method="sequential"),
    "joint": replace(PLAIN, method="joint"),
    "joint, balanced": replace(BALANCED, method="joint"),
}
#: Whether more steps bring the two methods nearer.
HALF = {
    f"{name}, half the steps": replace(TABLE[name], steps=PLAIN.steps // 2)
    for name in ("sequential, balanced", "joint, balanced")
}
#: What the mask is to N1's gradient; in the table it is straight-through.
GATES = {
    "joint, balanced, hard gate": replace(BALANCED, method="joint", gate="hard"),
    "joint, balanced, soft gate": replace(BALANCED, method="joint", gate="soft"),
}
OVERLAP = {
    "sequential, balanced, soft Dice": replace(BALANCED, method="sequential", overlap="dice"),
    "joint, balanced, soft Dice": replace(BALANCED, method="joint", overlap="dice"),
}
PARTS = (TABLE, HALF, GATES, OVERLAP)
EVERYTHING = {name: settings for part in PARTS for name, settings in part.items()}
#: Of the time that is given, the share in which nets train; and steps with which a part of the rows is worth doing.
TRAINING_SHARE, LEAST_STEPS = 0.75, 2000
#: Steps by which the speed is measured, and between two numbers of steps that are chosen by it.
PACE_STEPS, ROUND_STEPS = 160, 50


def file_of(out: Path, name: str, seed: int, fold: int) -> Path:
    """Where a run of a row is kept."""
    return out / f"{name.replace(', ', '_').replace(' ', '-')}_{seed}_{fold}.json"


def tasks() -> Iterator[tuple[str, int, int]]:
    """Runs in the order of their value: name, seed, fold; of a table's runs first those that last longest."""
    for part in PARTS:
        for seed in SEEDS:
            for fold in range(len(FOLDS)):
                for name in sorted(part, key=lambda name: part[name].method == "one-step"):
                    yield name, seed, fold


def read_kit(path: Path) -> kits.Kit:
    """The slices of a kit whose tumours are known; an `InputError` if a patient that is needed is not there."""
    kit = kits.read(path)
    if missing := {p for fold in FOLDS for p in (*fold.test, *fold.validation)} - set(kit.group.tolist()):
        raise InputError(f"{path}: has no patients {', '.join(sorted(missing))}")
    with_liver = np.unique(kit.group[kit.has_liver])
    rows = np.flatnonzero(kit.tumour_known & np.isin(kit.group, with_liver))
    whole = ("level_hu", "cells", "sha256")
    columns = {name: values[rows] for name, values in vars(kit).items() if name not in whole}
    return replace(kit, **columns, cells=np.zeros((0, 6), np.float32))


# What each process has: the kit, and a barrier at which all of them meet. Processes are forked and share it.
_kit: kits.Kit
_barrier: multiprocessing.synchronize.Barrier


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _start(threads: int) -> None:
    """Set up a process."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def _pace() -> float:
    """Seconds a step of the joint method while all processes train."""
    device = _device()
    rows = row.training_rows(_kit, FOLDS[0])
    store = batch.DeviceKit.of(_kit, rows, device)
    p = torch.full((len(rows),), 1 / len(rows), device=device)
    seconds = []
    for steps in (0, 0, PACE_STEPS):  # the second time nothing is prepared for the first time
        if len(seconds) == 1:
            _barrier.wait(120)
        began = time.perf_counter()
        row.trained(replace(TABLE["joint"], steps=trainer.AHEAD[device.type] + steps), store, p)
        seconds.append(time.perf_counter() - began)
    return (seconds[2] - seconds[1]) / PACE_STEPS


def steps_for(seconds: float, pace: float, jobs: int) -> int:
    """Steps a net that so many seconds allow, a step of two nets taking ``pace``.

    All of `PARTS` shall be done, or all but the last, and so on: the most that leave `LEAST_STEPS`.
    """
    steps = 0
    for count in range(len(PARTS), 0, -1):
        rows = [settings for part in PARTS[:count] for settings in part.values()]
        pairs = sum((0.5 if s.method == "one-step" else 1) * s.steps / PLAIN.steps for s in rows)
        steps = int(TRAINING_SHARE * seconds * jobs / (pairs * len(SEEDS) * len(FOLDS) * pace))
        if steps >= LEAST_STEPS:
            break
    return max(1, steps // ROUND_STEPS) * ROUND_STEPS


def _run(name: str, seed: int, fold: int, steps: int, out: Path) -> str:
    """Do a run and keep it; returns a line about it."""
    settings = EVERYTHING[name]
    settings = replace(settings, seed=seed, steps=max(1, steps * settings.steps // PLAIN.steps))
    result = {"budget": steps, **row.run(_kit, settings, FOLDS[fold], _device())}
    path = file_of(out, name, seed, fold)
    path.with_suffix(".tmp").write_text(json.dumps(result, separators=(",", ":")))
    path.with_suffix(".tmp").replace(path)
    dice = {patient: tally.tumour.dice for patient, tally in row.read_tallies(result["test"]).items()}
    return f"{name} {seed} {fold}: {result['seconds']} s, Dice " + " ".join(
        f"{p} {d:.3f}" for p, d in dice.items()
    )


def stored_steps(out: Path) -> int:
    """Steps that the runs of a folder were given, 0 if it has none; an `InputError` if they differ."""
    steps = {json.loads(path.read_text())["budget"] for path in out.glob("*.json")}
    if len(steps) > 1:
        raise InputError(f"{out}: holds runs of {sorted(steps)} steps; choose another --out")
    return steps.pop() if steps else 0


def compare(path: Path, out: Path, jobs: int, steps: int = 0, seconds: float = 0) -> None:
    """Do the runs that are missing; see `main` for the parameters."""
    global _kit, _barrier
    began = time.perf_counter()
    if (before := stored_steps(out)) and steps not in (0, before):
        raise InputError(f"{out}: holds runs of {before} steps, not {steps}; choose another --out")
    steps = before or steps
    _kit = read_kit(path)
    make_folder(out, "--out")
    context = multiprocessing.get_context("fork")  # processes share the slices; none has used a GPU so far
    _barrier = context.Barrier(jobs)
    _report(began, f"read {len(_kit)} slices")
    failed = 0
    missing = [task for task in tasks() if not file_of(out, *task).exists()]
    with ProcessPoolExecutor(jobs, context, _start, (max(1, (os.cpu_count() or 1) // jobs),)) as pool:
        if not steps and seconds:
            steps = _chosen(pool, jobs, seconds, began)
        steps = steps or PLAIN.steps
        runs = [pool.submit(_run, *task, steps, out) for task in missing]
        for done in as_completed(runs):
            error = done.exception()
            failed += error is not None
            _report(began, f"failed: {error!r}" if error else done.result())
    if failed:
        raise InputError(
            f"{failed} of {len(missing)} runs failed, see above; the same command does them again"
        )


def _chosen(pool: Executor, jobs: int, seconds: float, began: float) -> int:
    paces = [f.result() for f in [pool.submit(_pace) for _ in range(jobs)]]
    left = seconds - (time.perf_counter() - began)
    steps = steps_for(left, max(paces), jobs)
    _report(
        began,
        f"{1000 * max(paces):.1f} ms a step of two nets, {jobs} at a time: {steps} steps in {left:.0f} s",
    )
    return steps


def _report(began: float, line: str) -> None:
    print(f"{time.perf_counter() - began:6.1f} s  {line}", flush=True)


@plain_errors()
def main() -> None:
    """Parse the command line and do what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kit", type=Path, help="file of training.kit")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; what is done is kept")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each a process (1)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--steps", type=int, default=0, help=f"of each net ({PLAIN.steps}, or those of the runs)"
    )
    budget.add_argument(
        "--seconds", type=float, default=0, help="choose the steps so that everything takes about so long"
    )
    args = parser.parse_args()
    compare(args.kit, args.out, args.jobs, args.steps, args.seconds)


if __name__ == "__main__":
    main()
