"""The paper's row for one checkpoint: the threshold is chosen on a store's validation, and scored on its test split.

    python -m training.prepare --lits DIR --paper 0 -o runs/paper-store
    python -m training.train one-step --data runs/paper-store --out runs/one-step
    python -m training.score runs/one-step/last.pt --data runs/paper-store
    python -m training.score runs/tumour/last.pt --liver runs/liver/last.pt --data runs/paper-store

Accuracy, IoU, Rand index, AUC and Dice are of the tumour, over all pixels of the split together (section 3.2 of Gruber
et al.). A store has a test split if it was prepared with ``--paper``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from training import data
from training.checkpoint import load, read
from training.methods import Method
from training.program import parser_of, plain_errors
from training.store import store_sha256
from training.tables import grid
from training.train import target
from trtseg.cli.tables import number
from trtseg.errors import InputError
from trtseg.metrics.overlap import overlap
from trtseg.metrics.ranking import PAPER_BAND, roc

#: Of each row: heading, decimals.
COLUMNS = {
    "accuracy": 4, "IoU": 3, "Rand index": 4, "restricted AUC": 3, "its share of pixels": 3, "AUC": 4,
    "tumour Dice": 3, "chosen threshold": 2, "tumour Dice there": 3, "liver Dice": 3,
}  # fmt: skip


class Predictions(NamedTuple):
    """Probabilities and truth at the net's resolution, all ``[N, H, W]``."""

    liver: np.ndarray  # float32: of liver, tumour included
    tumour: np.ndarray  # float32
    label: np.ndarray  # uint8: 0, 1 liver, 2 tumour

    def largest(self) -> np.ndarray:
        """The most probable of three classes, uint8 ``[N, H, W]``: how one net with three classes decides."""
        classes = (1 - self.liver, self.liver - self.tumour, self.tumour)
        return np.stack(classes).argmax(0).astype(np.uint8)

    def labels(self, threshold: float = 0.5) -> np.ndarray:
        """0, 1 liver, 2 tumour, uint8 ``[N, H, W]``, with ``threshold`` for the tumour and 0.5 for the liver."""
        liver = self.liver > 0.5
        return (liver.astype(np.uint8) + (liver & (self.tumour > threshold))).astype(np.uint8)


@torch.no_grad()
def predict(method: Method, slices: data.Slices) -> Predictions:
    """Run a method on slices twice as large as its input."""
    found = []
    for i in range(len(slices)):
        hu, label = (torch.from_numpy(x)[None] for x in slices[i])
        small = F.avg_pool2d(hu[:, None].float(), 2)[:, 0].round()
        found.append((*method.probabilities(small), target(label)))
    return Predictions(*(torch.cat(part).numpy() for part in zip(*found, strict=True)))


def score(validation: Predictions, test: Predictions, method: str) -> dict[str, float]:
    """One run's row, by the names of `COLUMNS`."""
    truth = test.label == 2
    labels = test.largest() if method == "one-step" else test.labels()
    table = overlap(labels == 2, truth)
    restricted, full = roc(test.tumour, truth, PAPER_BAND), roc(test.tumour, truth)
    threshold = roc(validation.tumour, validation.label == 2, PAPER_BAND).threshold
    chosen = threshold if np.isfinite(threshold) else 0.5
    return {
        "accuracy": table.accuracy,
        "IoU": table.iou,
        "Rand index": table.rand_index,
        "restricted AUC": restricted.auc,
        "its share of pixels": restricted.share,
        "AUC": full.auc,
        "tumour Dice": table.dice,
        "chosen threshold": threshold,
        "tumour Dice there": overlap(test.labels(chosen) == 2, truth).dice,
        "liver Dice": overlap(labels >= 1, test.label >= 1).dice,
    }


@plain_errors()
def main() -> None:
    """Parse the command line and print the row."""
    parser = parser_of(__doc__)
    parser.add_argument("checkpoint", type=Path, help="of the method one-step, joint or tumour")
    parser.add_argument("--liver", type=Path, help="checkpoint of the liver net (tumour only)")
    parser.add_argument("--data", type=Path, required=True, help="slice store of twice the net's size")
    args = parser.parse_args()
    method, settings = load(args.checkpoint, args.liver)
    if settings.method == "liver":
        parser.error("checkpoint: got a liver net; expected one that finds tumours")
    for path in filter(None, (args.checkpoint, args.liver)):
        if read(path)[0].store != store_sha256(args.data):
            raise InputError(
                f"{path}: was not trained on {args.data}, so perhaps on patients who test there; train on that store"
            )
        if read(path)[0].start:
            print(
                f"warning: {path} started with the weights of other nets: where these were trained on patients who "
                "test here, its scores are too high",
                file=sys.stderr,
            )
    method.compute_in(torch.float32)
    splits = [data.of_split(args.data, 2 * settings.size, split) for split in ("validation", "test")]
    row = score(*(predict(method, slices) for slices in splits), settings.method)
    print(grid(["", *COLUMNS], [[settings.method, *(number(row[c], f".{d}f") for c, d in COLUMNS.items())]]))


if __name__ == "__main__":
    main()
