"""The paper's Table 1 for our data: every method with and without balanced loss, and two of them with half the steps.

    python -m training.compare runs/kit.zip --out runs/compare --jobs 8   # what is missing
    python -m training.results runs/compare --into docs/results.md

Each row is trained for two seeds and two folds: the patients of one test while those of the other train. All have one
budget: as many steps a net, on the same samples. The 32 runs took 202 seconds on an H200. On a CPU they take days;
``--steps`` makes a trial of it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from training import kit as kits
from training import row
from training.checkpoint import Settings
from training.program import parser_of, plain_errors
from training.row import Split
from trtseg.errors import ArgumentError, InputError
from trtseg.io.atomic import atomic
from trtseg.io.folders import make_folder

SEEDS = (0, 1)
#: Patients that choose thresholds: four whose tumours nets drew and cells confirm, and two without tumour.
VALIDATION = ("G", "H", "I", "ircadb-2", "ircadb-7", "ircadb-12")
#: All patients whose tumours people drew, on whole slices: those of a fold test while those of the other train, but for
#: A and ircadb-1, which never train.
FOLDS = (Split(("A", "B", "E", "F"), VALIDATION), Split(("C", "D", "ircadb-1"), VALIDATION))
#: The paper's loss: cross-entropy alone.
PLAIN = Settings(
    "one-step", steps=650, batch=32, size=128, overlap="none", balance=0.0, grow=0, ema=0.995, lesions=0.3
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
PARTS = (TABLE, HALF)
EVERYTHING = TABLE | HALF


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


# What the processes share, which are forked.
_kit: kits.Kit


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _start(threads: int) -> None:
    """Set up a process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def _run(name: str, seed: int, fold: int, steps: int, out: Path) -> str:
    """Do a run and keep it; returns a line about it."""
    settings = EVERYTHING[name]
    settings = replace(settings, seed=seed, steps=max(1, steps * settings.steps // PLAIN.steps))
    result = {"budget": steps, **row.run(_kit, settings, FOLDS[fold], _device())}
    path = file_of(out, name, seed, fold)
    with atomic(path) as (part,):
        part.write_text(json.dumps(result, separators=(",", ":")))
    dice = {patient: tally.tumour.dice for patient, tally in row.read_tallies(result["test"]).items()}
    return f"{name} {seed} {fold}: {result['seconds']} s, Dice " + " ".join(
        f"{p} {d:.3f}" for p, d in dice.items()
    )


def check_runs(out: Path) -> tuple[int, str]:
    """Check that the runs of a folder belong together: their steps and the SHA-256 of their kit; 0 and "" without any.

    An `InputError` is raised if these differ, or a file is no run.
    """
    found = set()
    for path in out.glob("[!.]*.json"):  # but not what a killed run was writing
        try:
            run = json.loads(path.read_text())
            found.add((int(run["budget"]), str(run["kit"])))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is no run of training.compare, or damaged; remove it") from error
    if len(found) > 1:
        raise InputError(f"{out}: holds runs of different steps or kits; choose another --out")
    return found.pop() if found else (0, "")


def compare(path: Path, out: Path, jobs: int, steps: int = 0) -> None:
    """Do the runs that are missing; see `main` for the parameters."""
    global _kit
    began = time.perf_counter()
    if jobs < 1 or steps < 0:
        raise ArgumentError(f"jobs, steps: got {jobs}, {steps}; expected 1 or more, and 0 or more")
    before, sha256 = check_runs(out)
    if before and steps not in (0, before):
        raise InputError(f"{out}: holds runs of {before} steps, not {steps}; choose another --out")
    steps = before or steps or PLAIN.steps
    _kit = read_kit(path)
    if sha256 not in ("", _kit.sha256):
        raise InputError(f"{out}: holds runs of another kit than {path}; choose another --out")
    make_folder(out, "--out")
    context = multiprocessing.get_context("fork")  # processes share the slices; none has used a GPU so far
    _report(began, f"read {len(_kit)} slices")
    failed = 0
    missing = [task for task in tasks() if not file_of(out, *task).exists()]
    with ProcessPoolExecutor(jobs, context, _start, (max(1, (os.cpu_count() or 1) // jobs),)) as pool:
        try:
            runs = [pool.submit(_run, *task, steps, out) for task in missing]
            for done in as_completed(runs):
                error = done.exception()
                failed += error is not None
                _report(began, f"failed: {error!r}" if error else done.result())
        except BaseException:  # interrupted or terminated: else the pool would wait for its runs
            for process in multiprocessing.active_children():
                process.kill()
            raise
    if failed:
        raise InputError(
            f"{failed} of {len(missing)} runs failed, see above; the same command does them again"
        )


def _report(began: float, line: str) -> None:
    print(f"{time.perf_counter() - began:6.1f} s  {line}", flush=True)


@plain_errors()
def main() -> None:
    """Parse the command line and do what is missing."""
    parser = parser_of(__doc__)
    parser.add_argument("kit", type=Path, help="file of training.kit")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; what is done is kept")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each a process (1)")
    parser.add_argument(
        "--steps", type=int, default=0, help=f"of each net ({PLAIN.steps}, or those of the runs)"
    )
    args = parser.parse_args()
    compare(args.kit, args.out, args.jobs, args.steps)


if __name__ == "__main__":
    main()
