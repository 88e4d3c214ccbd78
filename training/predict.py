"""What a method says about the slices of a store, in FP32."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from training.checkpoint import load
from training.data import Slices
from training.methods import Method
from training.train import target


class Predictions(NamedTuple):
    """Probabilities and truth at the net's resolution, all ``[N, H, W]``."""

    liver: np.ndarray  # float32: of liver, tumour included
    tumour: np.ndarray  # float32
    label: np.ndarray  # uint8: 0, 1 liver, 2 tumour
    case: np.ndarray  # [N], names

    def largest(self) -> np.ndarray:
        """The most probable of three classes, uint8 ``[N, H, W]``: how one net with three classes decides."""
        classes = (1 - self.liver, self.liver - self.tumour, self.tumour)
        return np.stack(classes).argmax(0).astype(np.uint8)

    def labels(self, threshold: float = 0.5) -> np.ndarray:
        """0, 1 liver, 2 tumour, uint8 ``[N, H, W]``, with ``threshold`` for the tumour and 0.5 for the liver."""
        liver = self.liver > 0.5
        return (liver.astype(np.uint8) + (liver & (self.tumour > threshold))).astype(np.uint8)


def checkpoint(path: Path, liver: Path | None = None) -> Method:
    """The method of a checkpoint, computing in FP32."""
    method, _ = load(path, liver)
    method.compute_in(torch.float32)
    return method


@torch.no_grad()
def predict(method: Method, slices: Slices) -> Predictions:
    """Run a method, set to FP32 by `checkpoint`, on slices twice as large as its input."""
    liver, tumour, truth = [], [], []
    for i in range(len(slices)):
        hu, label = (torch.from_numpy(x)[None] for x in slices[i])
        a, b = method.probabilities(F.avg_pool2d(hu[:, None].float(), 2)[:, 0].round())
        liver.append(a.numpy()[0])
        tumour.append(b.numpy()[0])
        truth.append(target(label).numpy()[0])
    return Predictions(np.stack(liver), np.stack(tumour), np.stack(truth), slices.case)
