"""Batches out of a training kit that lies in a device's memory: which slices are drawn, and how they are moved.

All that is random comes from one generator on the device, so that nothing waits for the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.cases import MAX_CELLS
from training.kit import Kit
from trtseg.errors import InputError
from trtseg.fit import AIR_HU

#: Of the slices that a liver net sees, the shares with liver and tumour, with liver, and without liver.
LIVER_SHARES = (0.25, 0.53, 0.22)
#: Of those that a tumour net sees: with a mask of a tumour, with liver that is known to have none, with cells that hold
#: some tumour, and with cells that hold none.
TUMOUR_SHARES = (0.45, 0.17, 0.23, 0.15)
#: How often a patient of a set is seen, beside 1: slices that differ from those of a scanner teach less.
SET_WEIGHTS = {"lits256": 0.7, "ircadb": 0.8, "lits_crop": 0.7, "ibsi_sts_crops": 0.4, "openkbp_hn": 0.5}
#: Range of the factor by which the slice becomes larger.
SCALE = (0.75, 1.35)


class Batch(NamedTuple):
    """Slices as a net is trained on. ``B`` slices on the net's grid ``[H, W]``."""

    hu: Tensor  # float32 [B, H, W]
    label: Tensor  # uint8 [B, H, W]: 0, 1, 2, 255 unknown
    cell: Tensor  # uint8 [B, H, W]: number of the cell that a pixel lies in, 0 none
    row: Tensor  # int64 [B]: rows of the kit
    area: Tensor  # float32 [B]: pixels of the net's grid per pixel of the kit's


@dataclass(frozen=True)
class DeviceKit:
    """Some slices of a kit on a device; one row a slice, as in `Kit`.

    Attributes
    ----------
    image, label, cell : Tensor
        uint8 ``[N, S, S]``; ``cell`` is the number of the cell that a pixel lies in, 0 for none.
    cell_flag : Tensor
        uint8 ``[N, MAX_CELLS + 1]``: flag of each cell; 2, unknown, where there is none.
    cell_area : Tensor
        float32 ``[N, MAX_CELLS + 1]``: pixels of each cell.
    level_hu : Tensor
        float32 ``[L]``.
    lowest_hu, tumour_known : Tensor
        float32 and bool ``[N]``.
    weak : Tensor
        bool ``[N]``: nobody drew the tumours of the slice, so its cells count.
    """

    image: Tensor
    label: Tensor
    cell: Tensor
    cell_flag: Tensor
    cell_area: Tensor
    level_hu: Tensor
    lowest_hu: Tensor
    tumour_known: Tensor
    weak: Tensor

    @classmethod
    def of(cls, kit: Kit, rows: np.ndarray, device: torch.device | str) -> DeviceKit:
        """Put these rows of a kit on a device."""
        cell, flag = cell_maps(kit, rows)
        area = np.stack([np.bincount(plane.ravel(), minlength=MAX_CELLS + 1) for plane in cell])
        arrays = (kit.image[rows], kit.label[rows], cell, flag, area.astype(np.float32))
        arrays += (kit.level_hu, kit.lowest_hu[rows], kit.tumour_known[rows], ~kit.tumour_known[rows])
        return cls(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))

    def __len__(self) -> int:
        return len(self.image)

    def hu(self, rows: Tensor) -> Tensor:
        """HU of slices as they are stored, float32 ``[n, S, S]``; saturated at the lowest level it is air."""
        level = self.image[rows]
        return torch.where(level == 0, float(AIR_HU), self.level_hu[level.long()])


def cell_maps(kit: Kit, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the cells, uint8 ``[n, S, S]``, and their flags, uint8 ``[n, MAX_CELLS + 1]``, for rows of a kit."""
    size = kit.image.shape[1]
    maps = np.zeros((len(rows), size, size), np.uint8)
    flags = np.full((len(rows), MAX_CELLS + 1), 2, np.uint8)
    position = np.full(len(kit), -1)
    position[rows] = np.arange(len(rows))
    count = np.zeros(len(rows), int)
    for row, *box, flag in kit.cells:
        at = position[int(row)]
        if at < 0:
            continue
        count[at] += 1
        if count[at] > MAX_CELLS:
            raise InputError(f"kit: a slice of {kit.case[int(row)]} has more than {MAX_CELLS} cells")
        y0, y1, x0, x1 = np.rint(box).astype(int).clip(0, size)
        maps[at, y0:y1, x0:x1] = count[at]
        flags[at, count[at]] = int(flag)
    return maps, flags


def cell_sums(cell: Tensor, values: Tensor) -> Tensor:
    """Sums of values ``[B, H, W]`` over each cell of the map of that shape, float32 ``[B, MAX_CELLS + 1]``."""
    n, lanes = (
        len(cell),
        32,
    )  # sums of neighbouring columns are kept apart at first: threads would wait for each other
    lane = torch.arange(cell.shape[2], device=cell.device) % lanes
    first = torch.arange(n, device=cell.device).view(-1, 1, 1) * (MAX_CELLS + 1)
    index = (first + cell) * lanes + lane
    sums = torch.zeros(n * (MAX_CELLS + 1) * lanes, device=cell.device)
    return sums.index_add_(0, index.flatten(), values.float().flatten()).view(n, MAX_CELLS + 1, lanes).sum(2)


def weights(kit: Kit, rows: np.ndarray, role: str) -> np.ndarray:
    """How likely each of the rows is drawn to train ``liver`` or ``tumour``, float64 ``[n]``; they sum to 1.

    Each pool of slices has its share; in a pool a patient of k slices weighs the root of k.
    """
    liver = kit.has_liver[rows]
    tumour = (kit.label[rows] == 2).any((1, 2))
    if role == "liver":
        pools, shares = (tumour, liver & ~tumour, ~liver), LIVER_SHARES
    else:
        known = kit.tumour_known[rows]
        flags = {flag: np.isin(rows, kit.cells[kit.cells[:, 5] == flag, 0].astype(int)) for flag in (0, 1)}
        fused = liver & ~known
        pools = (
            known & tumour, known & liver & ~tumour, fused & flags[1], fused & flags[0] & ~flags[1],
        )  # fmt: skip
        shares = TUMOUR_SHARES
    total = np.zeros(len(rows))
    for pool, share in zip(pools, shares, strict=True):
        if pool.any():
            p = np.zeros(len(rows))
            _, patient, count = np.unique(kit.group[rows][pool], return_inverse=True, return_counts=True)
            p[pool] = count[patient] ** -0.5
            p *= [_set_weight(source) for source in kit.source[rows]]
            total += share * p / p.sum()
    if not total.any():
        raise InputError(f"kit: holds no slices to train a {role} net on")
    return total / total.sum()


def _set_weight(source: str) -> float:
    return next((w for name, w in SET_WEIGHTS.items() if source.startswith(name)), 1.0)


def draw(store: DeviceKit, p: Tensor, batch: int, g: torch.Generator, size: int) -> Batch:
    """Draw slices with the probabilities ``p`` ``[N]``, and move them at random onto a grid of ``size`` pixels."""
    row = torch.multinomial(p, batch, replacement=True, generator=g)
    return at(store, row, *positions(store, batch, g, size))


def at(store: DeviceKit, row: Tensor, grid: Tensor, area: Tensor) -> Batch:
    """The slices ``row`` ``[n]`` at the `positions` ``grid`` and ``area``."""
    side = store.image.shape[1]
    # grid_sample pads with zeros, so that air must be zero while it runs
    hu = F.grid_sample((store.hu(row) - AIR_HU)[:, None], grid, align_corners=False)[:, 0] + AIR_HU
    pixel = ((grid + 1) * (side / 2)).floor().long()  # nearest pixel (x, y)
    inside = ((pixel >= 0) & (pixel < side)).all(-1)
    pixel = pixel.clamp(0, side - 1)
    flat = (row[:, None, None] * side + pixel[..., 1]) * side + pixel[..., 0]
    label, cell = (torch.where(inside, values.view(-1)[flat], 0) for values in (store.label, store.cell))
    return Batch(hu, label, cell, row, area)


def positions(store: DeviceKit, n: int, g: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
    """Where in a slice each pixel of the net's grid lies, float32 ``[n, size, size, 2]`` (x, y) in [-1, 1].

    Also how many pixels of the net's grid a pixel of the kit's becomes, float32 ``[n]``. Scale, aspect, rotation, shear
    and shift are random, and half of the slices are bent smoothly.
    """
    device = store.image.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=g, device=device)

    def normal(sigma: float, *shape: int) -> Tensor:
        return sigma * torch.randn(n, *shape, generator=g, device=device)

    zoom = torch.exp(-uniform(math.log(SCALE[0]), math.log(SCALE[1])))
    aspect = torch.exp(normal(0.06))
    angle = torch.deg2rad(normal(7.0).clamp(-25, 25))
    shear = normal(0.05)
    cos, sin = torch.cos(angle), torch.sin(angle)
    stretch = torch.stack([zoom * aspect, zoom * aspect * shear, torch.zeros_like(zoom), zoom / aspect], -1)
    turn = torch.stack([cos, -sin, sin, cos], -1).view(n, 2, 2)
    linear = turn @ stretch.view(n, 2, 2)
    theta = torch.cat([linear, normal(0.05, 2)[:, :, None]], dim=2)  # [n, 2, 3]
    grid = F.affine_grid(theta, [n, 1, size, size], align_corners=False)
    bend = normal(0.02, 2, 9, 9) * (uniform(0, 1) < 0.5)[:, None, None, None]
    bend = F.interpolate(bend, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    determinant = linear[:, 0, 0] * linear[:, 1, 1] - linear[:, 0, 1] * linear[:, 1, 0]
    return grid + bend, (size / store.image.shape[1]) ** 2 / determinant.abs()
