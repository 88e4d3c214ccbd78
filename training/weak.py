"""Losses of masks with unknown pixels, and of cells that say whether a tumour lies in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.batch import cell_sums
from training.cases import UNKNOWN
from training.losses import Loss

#: 50 of the 2500 pixels of a cell: at least that share is tumour with the flag 1, and at most with the flag 0.
CELL_SHARE = 0.02
#: Share of its pixels that a cell needs to have in view: else its tumour may be out of view.
IN_VIEW = 0.85


def liver_loss(loss: Loss, logits: Tensor, label: Tensor) -> Tensor:
    """The loss of a liver net's logits ``[B, 1, H, W]`` for labels ``[B, H, W]``; unknown pixels do not count."""
    known = label != UNKNOWN
    return loss(logits, (label > 0) & known, where=known)


class TumourLoss(nn.Module):
    """The loss of a tumour net on masks and cells.

    Parameters
    ----------
    pixels : Loss
        Of pixels whose class is known: those of slices whose tumours are known, those of a tumour, and those outside
        the liver.
    negative, positive : float
        Weights of the cells without and with a tumour.
    """

    def __init__(self, pixels: Loss, negative: float, positive: float) -> None:
        super().__init__()
        self.pixels, self.negative, self.positive = pixels, negative, positive

    def forward(
        self,
        logits: Tensor,
        label: Tensor,
        mask: Tensor,
        slices: tuple[Tensor, Tensor],
        cells: tuple[Tensor, ...],
    ) -> Tensor:
        """The loss.

        Parameters
        ----------
        logits : Tensor
            ``[B, 1, H, W]``.
        label : Tensor
            uint8 ``[B, H, W]``: 0, 1, 2, 255 unknown.
        mask : Tensor
            bool ``[B, H, W]``: what the net is shown; nothing counts outside.
        slices : tuple
            ``tumour_known`` and ``weak``, bool ``[B]``: where the first is false, label 1 may be tumour too; where the
            second is true, cells count on what no mask calls tumour.
        cells : tuple
            Map, flags and expected pixels of the cells, see `cell_losses`.
        """
        tumour_known, weak = (values[:, None, None] for values in slices)
        known = (label != UNKNOWN) & (tumour_known | (label != 1))
        total = self.pixels(logits, label == 2, where=mask & known)
        fused = mask & weak & (label != 0) & (label != 2)
        negative, positive = cell_losses(logits[:, 0].float(), fused, *cells)
        return total + self.negative * negative + self.positive * positive


def cell_losses(
    logits: Tensor, where: Tensor, cell: Tensor, flag: Tensor, expected: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses of cells without and with a tumour.

    In a cell without, no pixel is tumour: the mean cross-entropy of these pixels. In a cell with one, `CELL_SHARE` of
    the pixels are: ``log(wanted / found)`` where fewer are found, and 0 where enough are. Found is the sum of squared
    probabilities, so that few sure pixels count for more than many doubtful ones; where all are unlikely, the gradient
    goes to the likeliest.

    Parameters
    ----------
    logits, where, cell : Tensor
        Logits, what counts (bool), and the number of the cell that each pixel lies in, 0 for none: ``[B, H, W]``.
    flag : Tensor
        uint8 ``[B, MAX_CELLS + 1]``: 0, 1, or 2 for unknown.
    expected : Tensor
        float32 ``[B, MAX_CELLS + 1]``: pixels of each cell if all of it is in view.
    """
    counts = (where & (cell > 0)).float()
    pixels = cell_sums(cell, counts)
    none = (flag == 0) * pixels
    negative = ((flag == 0) * cell_sums(cell, F.softplus(logits) * counts)).sum() / none.sum().clamp_min(1)

    found = cell_sums(cell, torch.sigmoid(logits) ** 2 * counts)
    in_view = cell_sums(cell, cell > 0)
    asked = ((flag == 1) & (in_view > IN_VIEW * expected) & (pixels > 0)).float()
    wanted = (CELL_SHARE * in_view).clamp_min(1)
    missing = F.relu(torch.log(wanted) - torch.log(found + 1e-6))
    positive = (asked * missing).sum() / asked.sum().clamp_min(1)
    return negative, positive
