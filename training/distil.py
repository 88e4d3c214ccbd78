"""Distillation: a net learns the mean probabilities of others (Hinton et al., arXiv 1503.02531).

A trained net has an opinion on every pixel, also where nobody drew anything.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from training.losses import Loss, class_weights


def distilled(loss: Loss, logits: Tensor, p: Tensor, where: Tensor | None = None) -> Tensor:
    """Cross-entropy against the probabilities of teachers, weighted by class as ``loss`` weights its own.

    Parameters
    ----------
    loss : Loss
        Of two classes; its class frequencies are used.
    logits, p : Tensor
        The net's logits and the teachers' mean probability, float32 ``[B, 1, H, W]``. At the same probability the loss
        is least, whatever the weights are.
    where : Tensor, optional
        bool ``[B, H, W]``: what counts.
    """
    rest, own = class_weights(loss.frequency, loss.balance)
    pixels = F.binary_cross_entropy_with_logits(logits.float(), p, reduction="none") * torch.lerp(
        rest, own, p
    )
    counts = torch.ones_like(pixels) if where is None else where[:, None].float()
    return (pixels * counts).sum() / counts.sum().clamp_min(1)
