"""The training loss: cross-entropy balanced by class frequency, and soft Dice."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def class_weights(frequency: float) -> tuple[float, float]:
    """Weights of background and foreground for a foreground of relative ``frequency``.

    ``w_c = f_c ** -0.5 / sum_k f_k ** 0.5``, so that the mean weight of a pixel is 1. The square root balances less
    than inverse frequency would; full balance buys recall with a rim of false foreground around every organ.
    """
    f = torch.tensor([1 - frequency, frequency], dtype=torch.float64).clamp_min(1e-6)
    w = f**-0.5 / (f**0.5).sum()
    return float(w[0]), float(w[1])


def balanced_loss(logits: Tensor, target: Tensor, weights: tuple[float, float]) -> Tensor:
    """Balanced binary cross-entropy plus ``1 - soft Dice`` over the whole batch.

    Parameters
    ----------
    logits, target : Tensor
        ``[n, 1, H, W]``; the target is 0 or 1.
    weights : (float, float)
        Of background and foreground, see `class_weights`.
    """
    logits, target = logits.float(), target.float()
    weight = weights[0] + (weights[1] - weights[0]) * target
    entropy = F.binary_cross_entropy_with_logits(logits, target, weight)
    p = torch.sigmoid(logits)
    dice = (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return entropy + 1 - dice
