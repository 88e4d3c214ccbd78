"""The paper's Table 1 for our data: every method with and without balanced loss, and each later idea on its own.

    python -m training.prepare --shared ../shared/data --size 256 -o runs/store256     # runs/ must be there
    python -m training.compare --data runs/store256 --out runs/compare   # what is missing
    python -m training.results runs/compare --into docs/results.md

All runs have one budget: as many steps a net, on slices of the same patients.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from training import data
from training.checkpoint import Settings
from training.predict import checkpoint, predict
from training.split import VALIDATION_GROUPS
from training.store import Store
from training.train import train

SEEDS = (0, 1)
#: Patients to test on: B with a few small tumours, D with large ones. Group A chooses the thresholds.
TEST_GROUPS = ("B", "D")
#: The paper's loss: cross-entropy alone. 128x128 pixels, so that all of it takes an hour or two on two cores.
PLAIN = Settings(
    "one-step", steps=300, size=128, overlap="none", balance=0.0, grow=0, without=" ".join(TEST_GROUPS)
)
BALANCED = replace(PLAIN, balance=0.5)

#: Table 1: rows and their settings; ``sequential`` is a liver run and a tumour run behind it.
TABLE = {
    "one-step": PLAIN,
    "one-step, balanced": BALANCED,
    "sequential": replace(PLAIN, method="sequential"),
    "sequential, balanced": replace(BALANCED, method="sequential"),
    "joint": replace(PLAIN, method="joint"),
    "joint, balanced": replace(BALANCED, method="joint"),
}
#: What changes if one thing changes.
GATES = {
    "joint, balanced, soft gate": replace(BALANCED, method="joint", gate="soft"),
    "joint, balanced, hard gate": replace(BALANCED, method="joint", gate="hard"),
}
IDEAS = {
    "with soft Dice": replace(BALANCED, overlap="dice"),
    "with Tversky": replace(BALANCED, overlap="tversky"),
    "inverse frequency": replace(BALANCED, balance=1.0),
    "without synthetic lesions": replace(BALANCED, lesions=0.0),
    "without averaged weights": replace(BALANCED, ema=0.0),
}


#: The paper's optimiser and schedule, as far as they are published.
PAPER = {
    "one-step, the paper's SGD": replace(
        BALANCED, optimizer="sgd", lr=0.001, weight_decay=0.0, balance_from=0.625, ema=0.0
    ),
}
EVERYTHING = {**TABLE, **GATES, **IDEAS, **PAPER}


def folder_of(out: Path, name: str, seed: int) -> Path:
    """Where the run of a row is kept."""
    return out / f"{name.replace(', ', '_').replace(' ', '-')}_{seed}"


def run(settings: Settings, store: Path, folder: Path) -> None:
    """Train, if that is not done, and predict validation and test slices; refuses a run of other settings."""
    if settings.method == "sequential":
        train(replace(settings, method="liver"), store, folder / "liver")
        train(replace(settings, method="tumour"), store, folder, folder / "liver" / "last.pt")
    else:
        train(settings, store, folder)
    if (folder / "test.npz").exists():  # the last that is written
        return
    liver = folder / "liver" / "last.pt"
    method = checkpoint(folder / "last.pt", liver if settings.method == "sequential" else None)
    for name, groups in (("validation", VALIDATION_GROUPS), ("test", TEST_GROUPS)):
        predict(method, data.of_patients(store, groups)).save(folder / f"{name}.npz")


def main() -> None:
    """Parse the command line and do what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="slice store of twice the nets' size")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; what is done is kept")
    args = parser.parse_args()
    missing = set(VALIDATION_GROUPS + TEST_GROUPS) - set(Store.open(args.data).group)
    if missing:
        parser.error(f"--data: {args.data} has no patients {', '.join(sorted(missing))}")
    for name, settings in EVERYTHING.items():
        for seed in SEEDS:
            run(replace(settings, seed=seed), args.data, folder_of(args.out, name, seed))


if __name__ == "__main__":
    main()
