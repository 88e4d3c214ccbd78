"""Augmentation: what changes between patients and scanners, and does not change where the liver is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.appearance import unenhanced
from trtseg.fit import AIR_HU


def augment(hu: Tensor, label: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Change place, size, shape and intensity of one slice at random, and halve its grid.

    Parameters
    ----------
    hu, label : Tensor
        int16 HU and uint8 labels, ``[2H, 2W]``.
    rng : numpy.random.Generator
        Source of all randomness: equal generators give equal results.

    Returns
    -------
    hu, label : Tensor
        float32 HU and uint8 labels, ``[H, W]``.
    """
    grid = torch.from_numpy(_grid(rng))  # [9, 9, 2], enlarged to every pixel
    grid = F.interpolate(grid.permute(2, 0, 1)[None], hu.shape, mode="bilinear", align_corners=True)
    # grid_sample pads with zeros, so that air must be zero while it runs
    moved = F.grid_sample(hu[None, None].float() - AIR_HU, grid.permute(0, 2, 3, 1), align_corners=False)
    out = _halved(moved)[0, 0] + AIR_HU  # the 2x2 mean is what prepare does
    halved = _halved(grid).permute(0, 2, 3, 1)
    labels = F.grid_sample(label[None, None].float(), halved, mode="nearest", align_corners=False)
    labels = labels[0, 0].to(torch.uint8)
    out = _scanner(out, rng)
    if rng.random() < 0.15:
        _cut(out, labels, rng)
    return out, labels


def _halved(x: Tensor) -> Tensor:
    """Means of 2x2 pixels of ``[n, c, 2H, 2W]``; avg_pool2d, but faster."""
    rows = x[..., ::2, :] + x[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def remove_liver(hu: Tensor, label: Tensor, rng: np.random.Generator) -> None:
    """Put fat, in place, where the liver is: the abdomen below the liver must not lend it another organ."""
    liver = F.max_pool2d((label > 0).float()[None], 9, 1, 4)[0] > 0  # with its rim
    seed = torch.Generator().manual_seed(int(rng.integers(2**62)))
    fat = rng.uniform(-120, -70) + 15 * torch.randn(hu.shape, generator=seed)
    hu[liver] = fat[liver].to(hu.dtype)
    label.zero_()


def _grid(rng: np.random.Generator) -> np.ndarray:
    """Sampling positions in [-1, 1] on a coarse grid: scale, aspect, rotation, shift, and a smooth deformation."""
    axis = np.linspace(-1, 1, 9)
    base = np.stack(np.meshgrid(axis, axis), -1)  # [9, 9, (x, y)]
    zoom = np.exp(rng.uniform(np.log(0.75), np.log(1.5)))  # above 1 the patient is smaller
    aspect = np.exp(rng.normal(0, 0.07))
    angle = np.deg2rad(np.clip(rng.normal(0, 8), -25, 25))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    grid = base * (zoom * aspect, zoom / aspect) @ turn.T + rng.normal(0, 0.10, 2)
    if rng.random() < 0.5:
        grid += rng.normal(0, 0.02, base.shape)
    return grid.astype(np.float32)


def _scanner(hu: Tensor, rng: np.random.Generator) -> Tensor:
    """Contrast phase, reconstruction kernel and noise of another scan of the same slice ``[H, W]``."""
    air = hu < -155  # where 8-bit slices are saturated, nobody knows how far below
    seed = torch.Generator().manual_seed(int(rng.integers(2**62)))
    if rng.random() < 0.4:
        sigma = rng.uniform(0.3, 1.3)
        taps = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
        taps = taps / taps.sum()
        padded = F.pad(hu[None, None], (3, 3, 3, 3), mode="replicate")
        hu = F.conv2d(F.conv2d(padded, taps.view(1, 1, 1, 7)), taps.view(1, 1, 7, 1))[0, 0]
    if rng.random() < 0.2:
        hu = unenhanced(hu, rng.uniform(40, 60), rng.uniform(0.1, 0.5))
    if rng.random() < 0.8:
        # around 40 HU, so that fat stays fat while organs move with the phase of the contrast agent
        hu = (hu - 40) * rng.uniform(0.75, 1.3) + 40 + rng.normal(0, 20)
    if rng.random() < 0.3:
        x = ((hu + 160) / 400).clamp(0, 1)
        hu = torch.where((hu > -160) & (hu < 240), x ** rng.uniform(0.7, 1.4) * 400 - 160, hu)
    if rng.random() < 0.5:
        noise = torch.randn(hu.shape, generator=seed) * rng.uniform(3, 30)
        if rng.random() < 0.5:  # correlated, as a soft kernel leaves it
            noise = F.avg_pool2d(noise[None, None], 3, 1, 1)[0, 0] * 2
        hu = hu + noise
    return torch.where(air, float(AIR_HU), hu)


def _cut(hu: Tensor, label: Tensor, rng: np.random.Generator) -> None:
    """Blank, in place, all but a random box: a hard edge must not mean that there is no liver."""
    for axis, size in enumerate(hu.shape):
        length = int(size * rng.uniform(0.55, 1))
        start = int(rng.integers(0, size - length + 1))
        for part in (slice(0, start), slice(start + length, size)):
            index = (part, slice(None)) if axis == 0 else (slice(None), part)
            hu[index] = AIR_HU
            label[index] = 0
