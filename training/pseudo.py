"""Self-training: masks of tumours by trained nets, for slices of which only cells say where tumours are.

Lee, "Pseudo-Label" (ICML 2013 workshop), and Xie et al., "Self-training with Noisy Student" (arXiv 1911.04252); here
the cells decide what of a teacher's answer is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from training.batch import DeviceKit, cell_sums
from training.cases import UNKNOWN
from training.checkpoint import fingerprint
from training.methods import windowed
from training.weak import CELL_SHARE

#: Probabilities above which a pixel is tumour where no cell is known, and below which it is none.
SURE, NONE = 0.8, 0.1
#: In a cell with a tumour: the first of these above which there are enough pixels; below a third of it there is none.
STEPS = (0.7, 0.5, 0.35, 0.2)
BATCH = 32


def names(teachers: Sequence[nn.Module]) -> str:
    """Fingerprints of the weights of teachers."""
    return " ".join(fingerprint(net) for net in teachers)


@torch.no_grad()
def with_masks(store: DeviceKit, teachers: Sequence[nn.Module]) -> tuple[DeviceKit, dict[str, int]]:
    """Give masks to the slices whose tumours are not known.

    Where no cell is known, pixels of which the teachers are not sure become unknown. In a cell without a tumour all
    pixels are liver. In a cell with one, the likeliest pixels are tumour; where too few are likely, all are unknown and
    the cell goes on to count by itself.

    Parameters
    ----------
    store : DeviceKit
    teachers : sequence of Module
        Nets whose mean probability counts; they see the slice in the true mask of the liver.

    Returns
    -------
    DeviceKit
        With other ``label``, ``tumour_known`` and ``cell_flag``.
    dict
        Numbers of slices, and of cells with a tumour that got a mask and that did not.
    """
    label, flag, known = store.label.clone(), store.cell_flag.clone(), store.tumour_known.clone()
    rows = torch.nonzero(store.weak)[:, 0]
    count = {"slices": len(rows), "cells with a mask": 0, "cells without": 0}
    for part in rows.split(BATCH) if len(rows) else ():
        liver = store.label[part] > 0
        x = windowed(store.hu(part), "tumour") * liver[:, None]
        p = torch.stack([torch.sigmoid(net(x).float())[:, 0] for net in teachers]).mean(0)
        made, found = _masks(p, store.label[part], store.cell[part], store.cell_flag[part])
        asked = store.cell_flag[part] == 1
        count["cells with a mask"] += int((asked & found).sum())
        count["cells without"] += int((asked & ~found).sum())
        label[part], known[part] = made, True
        flag[part] = torch.where(asked & found, 2, store.cell_flag[part])
    return replace(store, label=label, cell_flag=flag, tumour_known=known), count


def _masks(p: Tensor, label: Tensor, cell: Tensor, flag: Tensor) -> tuple[Tensor, Tensor]:
    """Labels ``[n, S, S]`` from probabilities, and which cells ``[n, MAX_CELLS + 1]`` have enough tumour."""
    fused = label == 1
    area = cell_sums(cell, cell > 0)
    least = torch.full(flag.shape, SURE, device=p.device)  # of each cell; pixels in none have the number 0
    found = torch.zeros_like(flag, dtype=torch.bool)
    for step in reversed(STEPS):
        enough = (cell_sums(cell, fused & (p > step)) >= CELL_SHARE * area) & (area > 0)
        least = torch.where(enough & (flag == 1), step, least)
        found |= enough
    none = torch.where((flag == 1) & found, least / 3, NONE)
    least, none = (values.gather(1, cell.flatten(1).long()).view_as(p) for values in (least, none))
    kind, sure = (v.gather(1, cell.flatten(1).long()).view_as(p) for v in (flag, found))
    unclear = torch.where(p > least, 2, torch.where(p < none, 1, UNKNOWN))
    unclear = torch.where(kind == 0, 1, torch.where((kind == 1) & ~sure, UNKNOWN, unclear))
    return torch.where(fused, unclear, label.long()).to(torch.uint8), found
