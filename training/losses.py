"""The training loss: cross-entropy, balanced by class frequency if asked for, and an overlap term."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: The overlap terms that `Loss` knows.
OVERLAPS = ("none", "dice", "tversky")


def class_weights(frequency: Tensor, exponent: float) -> Tensor:
    """Weights of classes with the relative ``frequency`` ``[classes]``; the frequencies sum to 1.

    ``w_c = f_c ** -e / sum_k f_k ** (1 - e)``. The normalisation makes the mean weight of a pixel 1, so that balancing
    changes which pixels count and not the size of the loss. ``e = 0`` does not balance; ``e = 1`` gives every class
    the same share, inverse frequency; ``e = 1/2`` is between: full balance buys recall with a rim of false foreground
    around every organ.
    """
    f = frequency.clamp_min(1e-6)
    return f**-exponent / (f ** (1 - exponent)).sum()


class Loss(nn.Module):
    """Cross-entropy with class weights that follow the training slices, plus ``1 - overlap``.

    Parameters
    ----------
    classes : int
        2 (the net has one logit, of the foreground) or more (one logit each).
    balance : float
        Exponent of `class_weights`.
    overlap : str
        One of `OVERLAPS`; ``tversky`` (Salehi et al., arXiv 1706.05721, with 0.3 for false positives and 0.7 for
        false negatives), over the batch of one process, mean over the foreground classes.
    """

    frequency: Tensor

    def __init__(self, classes: int, balance: float, overlap: str) -> None:
        super().__init__()
        self.balance, self.overlap = balance, overlap
        rare = 0.05
        self.register_buffer("frequency", torch.tensor([1 - rare * (classes - 1), *[rare] * (classes - 1)]))

    def forward(
        self, logits: Tensor, target: Tensor, balance: float | None = None, where: Tensor | None = None
    ) -> Tensor:
        """The loss of ``logits`` ``[n, c, H, W]``, c = 1 for two classes, against class indices ``[n, H, W]``.

        ``balance`` takes the place of the exponent for this once; ``where`` (bool ``[n, H, W]``) says what counts.
        """
        logits = logits.float()
        if logits.shape[1] == 1:  # one logit: that of the background is 0
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        log_p = F.log_softmax(logits, dim=1)
        wanted = F.one_hot(target.long(), logits.shape[1]).permute(0, 3, 1, 2).float()
        counts = torch.ones_like(wanted[:, :1]) if where is None else where[:, None].float()
        wanted, pixels = wanted * counts, counts.sum().clamp_min(1)
        if self.training:
            rate = 0.01 * (counts.sum() > 0)  # nothing counts, nothing is learnt
            self.frequency += rate * (wanted.sum(dim=(0, 2, 3)) / pixels - self.frequency)
        weights = class_weights(self.frequency, self.balance if balance is None else balance)
        loss = -(weights[:, None, None] * wanted * log_p).sum() / pixels
        if self.overlap == "none":
            return loss
        false_positive, false_negative = {"dice": (0.5, 0.5), "tversky": (0.3, 0.7)}[self.overlap]
        p, wanted = log_p.exp()[:, 1:] * counts, wanted[:, 1:]
        both, found, there = (v.sum(dim=(0, 2, 3)) for v in (p * wanted, p, wanted))
        # with smoothing of one pixel, so that nothing found where nothing is scores 1
        index = (both + 1) / (both + false_positive * (found - both) + false_negative * (there - both) + 1)
        return loss + 1 - index.mean()
