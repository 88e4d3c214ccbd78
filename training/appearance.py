"""What scanners, contrast phases and diseases change in the HU of a batch, on the device that it lies on."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from training.batch import Batch
from trtseg.fit import AIR_HU

#: Below this a pixel is air, and stays it.
_AIR = -155
#: A floor of a source up to so many HU above its lowest may be fat, gas or air.
_FLOOR = 15


class Chance:
    """Random numbers for each of ``n`` slices, shaped ``[n, 1, 1]``."""

    def __init__(self, n: int, g: torch.Generator) -> None:
        self.n, self.g = n, g

    def uniform(self, low: float, high: float) -> Tensor:
        """Uniformly between two numbers."""
        return low + (high - low) * torch.rand(self.n, 1, 1, generator=self.g, device=self.g.device)

    def normal(self, sigma: float) -> Tensor:
        """Normal, with mean 0."""
        return sigma * torch.randn(self.n, 1, 1, generator=self.g, device=self.g.device)

    def happens(self, p: float) -> Tensor:
        """True for a share ``p``."""
        return self.uniform(0, 1) < p


def unclip(hu: Tensor, lowest: Tensor, g: torch.Generator) -> Tensor:
    """Give another value to what is saturated at the lowest HU of its source: fat, gas and air are alike there.

    Parameters
    ----------
    hu : Tensor
        float32 ``[B, H, W]``.
    lowest : Tensor
        float32 ``[B]``: lowest HU of each slice's source; only those above -130 HU are changed.
    """
    chance = Chance(len(hu), g)
    floor = (hu > _AIR) & (hu <= lowest[:, None, None] + _FLOOR) & (lowest[:, None, None] > -130)
    value = torch.where(chance.happens(0.2), float(AIR_HU), chance.uniform(-125, -40))
    noise = torch.randn(hu.shape, generator=g, device=hu.device) * chance.uniform(2, 20)
    return torch.where(floor & chance.happens(0.75), value + noise, hu)


def scanner(hu: Tensor, g: torch.Generator) -> Tensor:
    """Another scan of the same slices ``[B, H, W]``: phase of the contrast agent, kernel, noise, and window."""
    chance = Chance(len(hu), g)
    air = hu < _AIR
    soft = _blurred(hu, chance.uniform(0.3, 1.3))
    # a softer kernel, or a sharper one
    change = torch.where(chance.happens(0.7), torch.ones_like(soft[:, :1, :1]), -chance.uniform(0.2, 0.8))
    hu = torch.where(chance.happens(0.4), hu + change * (soft - hu), hu)
    hu = torch.where(
        chance.happens(0.2), unenhanced(hu, chance.uniform(40, 60), chance.uniform(0.1, 0.5)), hu
    )
    # bright livers and vessels: soft tissue above fat gains
    hu = torch.where(chance.happens(0.12) & (hu > 0), hu * chance.uniform(1.1, 1.9), hu)
    # around 40 HU, so that fat stays fat while organs move with the phase
    moved = (hu - 40) * chance.uniform(0.75, 1.3) + 40 + chance.normal(18)
    hu = torch.where(chance.happens(0.8), moved, hu)
    x = ((hu + 160) / 400).clamp(1e-4, 1)
    bent = x ** torch.exp(chance.uniform(math.log(0.7), math.log(1.4))) * 400 - 160
    hu = torch.where(chance.happens(0.3) & (hu > -160) & (hu < 240), bent, hu)
    noise = torch.randn(hu.shape, generator=g, device=hu.device)
    smooth = F.avg_pool2d(noise[:, None], 3, 1, 1)[:, 0] * 2
    noise = torch.where(chance.happens(0.5), smooth, noise) * chance.uniform(2, 28) * chance.happens(0.55)
    hu = torch.where(air, float(AIR_HU), hu + noise)
    # windows of 8-bit slices that end at 0 or at -100 HU, air outside the body being black or not
    floor = torch.where(chance.happens(0.5), chance.uniform(-110, -60), torch.zeros_like(soft[:, :1, :1]))
    clipped = torch.where(air & chance.happens(0.7), hu, torch.maximum(hu, floor))
    return torch.where(chance.happens(0.1), clipped, hu)


def _blurred(hu: Tensor, sigma: Tensor) -> Tensor:
    """Slices ``[B, H, W]`` under a Gaussian of the given pixels ``[B, 1, 1]``."""
    n = len(hu)
    taps = torch.exp(-0.5 * (torch.arange(-3, 4, device=hu.device) / sigma[:, :, 0]) ** 2)  # [B, 7]
    taps = taps / taps.sum(1, keepdim=True)
    x = F.pad(hu[None], (3, 3, 3, 3), mode="replicate")
    x = F.conv2d(x, taps.view(n, 1, 1, 7), groups=n)
    return F.conv2d(x, taps.view(n, 1, 7, 1), groups=n)[0]


def unenhanced(hu: Tensor, knee: Tensor | float, slope: Tensor | float) -> Tensor:
    """Undo most of the contrast agent's work: what it brightened comes back towards plain soft tissue, bone stays.

    Parameters
    ----------
    hu : Tensor
        HU, of any shape.
    knee, slope : Tensor or float
        HU from which on the tissue is darker, and how much of its brightness above that is left.
    """
    top = knee + slope * (200 - knee)
    dimmed = knee + slope * (hu - knee)
    rising = top + (hu - 200) * (240 - top) / 40  # so that 240 HU, where 8-bit slices end, is 240 HU again
    return torch.where(hu < knee, hu, torch.where(hu < 200, dimmed, torch.where(hu < 240, rising, hu)))


def grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask ``[B, H, W]``, bool or 0 and 1, grown by a square of that many pixels to each side: float32, 0 and 1."""
    side = 2 * pixels + 1
    x = F.max_pool2d(mask.float()[:, None], (side, 1), 1, (pixels, 0))
    return F.max_pool2d(x, (1, side), 1, (0, pixels))[:, 0]


def cut(batch: Batch, share: float, g: torch.Generator) -> Batch:
    """Blank all but a random box of some slices: a hard edge must not mean that there is no liver."""
    chance = Chance(len(batch.hu), g)
    keep = torch.ones_like(batch.hu, dtype=torch.bool)
    for axis, n in ((1, batch.hu.shape[1]), (2, batch.hu.shape[2])):
        length = n * chance.uniform(0.55, 1)
        start = (n - length) * chance.uniform(0, 1)
        at = torch.arange(n, device=batch.hu.device).view((1, -1, 1) if axis == 1 else (1, 1, -1))
        keep = keep & (at >= start) & (at < start + length)
    keep = keep | ~chance.happens(share)
    return batch._replace(
        hu=torch.where(keep, batch.hu, float(AIR_HU)),
        label=torch.where(keep, batch.label, 0),
        cell=torch.where(keep, batch.cell, 0),
    )


def without_liver(batch: Batch, share: float, g: torch.Generator) -> Batch:
    """Put fat where the liver is in some slices: the abdomen below the liver must not lend it another organ."""
    chance = Chance(len(batch.hu), g)
    hide = chance.happens(share)
    liver = grown(batch.label > 0, 4) > 0  # with its rim
    fat = chance.uniform(-120, -70) + 15 * torch.randn(batch.hu.shape, generator=g, device=batch.hu.device)
    return batch._replace(
        hu=torch.where(liver & hide, fat, batch.hu),
        label=torch.where(hide, 0, batch.label),
        cell=torch.where(hide, 0, batch.cell),
    )


def other_liver(batch: Batch, share: float, g: torch.Generator) -> Batch:
    """Make some livers darker or brighter than what is around them, as fat or iron does."""
    chance = Chance(len(batch.hu), g)
    liver = _blurred((batch.label > 0).float(), torch.ones_like(batch.hu[:, :1, :1]))
    offset = chance.normal(25).clamp(-60, 60) * chance.happens(share)
    return batch._replace(hu=batch.hu + offset * liver)


def lesions(batch: Batch, share: float, g: torch.Generator) -> Batch:
    """Put up to three synthetic lesions into some livers; their pixels become tumour."""
    liver = (batch.label == 1) | (batch.label == 2)
    n_liver, mean = _size_and_mean(liver, batch.hu)
    some = Chance(len(batch.hu), g).happens(share) & (n_liver > 100)
    hu, label = batch.hu, batch.label
    for number in range(3):
        chance = Chance(len(hu), g)
        there = some & chance.happens(1.0 if number == 0 else 0.5)
        largest = (0.25 * n_liver.float().sqrt()).clamp(3, 35)
        radius = torch.exp(math.log(2) + (torch.log(largest) - math.log(2)) * chance.uniform(0, 1))
        distance = _blob(liver, radius, chance)
        width = torch.maximum(0.8 / radius, chance.uniform(0.03, 0.3))
        alpha = (0.5 + (1 - distance) / (2 * width)).clamp(0, 1) * (label > 0) * there
        faintest = 15 + 30 / radius  # what is small must differ more to be seen
        depth = faintest + (95 - faintest).clamp_min(0) * chance.uniform(0, 1)
        core = torch.where(chance.happens(0.9), -depth, 0.6 * depth)
        necrosis = chance.uniform(5, 30) * (1.5 - 2 * distance).clamp(0, 1) * chance.happens(0.25)
        rim = chance.uniform(10, 50) * torch.exp(-(((distance - 0.9) / 0.15) ** 2)) * chance.happens(0.25)
        # water is darker than this: bile and cysts must not be learnt as lesions
        core = torch.maximum(core - necrosis + rim, torch.minimum(25 - mean, -faintest))
        value = mean + core + chance.uniform(0.3, 1) * (hu - mean)  # keeps the grain of the scan
        hu = hu + alpha * (value - hu)
        label = torch.where((alpha > 0.5) & (label == 1), 2, label)
    return batch._replace(hu=hu, label=label)


def gallbladders(batch: Batch, share: float, g: torch.Generator) -> Batch:
    """Put something as dark as bile beside some livers, which is none of them."""
    chance = Chance(len(batch.hu), g)
    liver = batch.label > 0
    near = grown(liver, 7) > 0
    rim = near & ~liver & (batch.hu > -130) & (batch.hu < 150)
    distance = _blob(rim, chance.uniform(4, 16), chance)
    alpha = (0.5 + (1 - distance) / 0.1).clamp(0, 1) * ~liver
    alpha = alpha * chance.happens(share) * (rim.flatten(1).sum(1) > 20).view(-1, 1, 1)
    bile = chance.uniform(-5, 22) + 8 * torch.randn(batch.hu.shape, generator=g, device=batch.hu.device)
    return batch._replace(hu=batch.hu + alpha * (bile - batch.hu))


def masses(batch: Batch, share: float, g: torch.Generator) -> tuple[Batch, Tensor]:
    """Put a mass of kidney, adrenal gland or bowel beside some livers, which is none of them.

    It is darker than the liver and grainy. Half of the masses push into the liver from behind, where kidney and adrenal
    gland lie, unless too little of it would be left. Some have a dark core or a bright rim, or a layer of fat between
    them and the liver.

    Returns
    -------
    Batch
        Where a mass pushes into the liver, the label is 0.
    Tensor
        bool ``[B, H, W]``: what is mass or such a layer.
    """
    chance = Chance(len(batch.hu), g)
    liver = batch.label > 0
    n_liver, mean = _size_and_mean(liver, batch.hu)
    inside = grown(batch.hu < _AIR, 12) == 0  # a mass in the wall of the body is rare
    near = (grown(liver, 24) > 0) & (grown(liver, 4) == 0) & inside & (batch.hu < 150)
    row = torch.arange(liver.shape[1], device=liver.device).view(1, -1, 1)
    behind = row > _size_and_mean(liver, row)[1]
    pushes = chance.happens(0.5)
    near = near & (behind | ~pushes)
    some = chance.happens(share) & (n_liver > 400) & (near.flatten(1).sum(1) > 50).view(-1, 1, 1)
    distance = _blob(near, torch.exp(chance.uniform(math.log(10), math.log(45))), chance)
    taken = ((distance < 1) & liver).flatten(1).sum(1).view(-1, 1, 1)
    pushes = pushes & (taken < 0.35 * n_liver)
    apart = torch.where(chance.happens(0.5), grown(liver, 1), liver.float()) > 0
    there = some & (batch.hu > _AIR)
    alpha = ((1.05 - distance) / 0.1).clamp(0, 1) * (there & (pushes | ~apart))
    value = _growth(distance, mean, chance)
    near_liver = (grown(liver & (distance > 1), 2) > 0) & ~(liver & ~pushes)
    layer = there & (distance > 0.9) & (distance < 1.1) & near_liver & chance.happens(0.4)
    fat = -90 + 12 * torch.randn(alpha.shape, generator=g, device=g.device)
    hu = torch.where(layer, fat, batch.hu + alpha * (value - batch.hu))
    mass = (alpha > 0.5) | layer
    label, cell = (torch.where(mass, 0, values) for values in (batch.label, batch.cell))
    return batch._replace(hu=hu, label=label, cell=cell), (alpha > 0) | layer


def bulging(batch: Batch, share: float, g: torch.Generator) -> tuple[Batch, Tensor]:
    """Let a tumour bulge out of some livers; it looks like the masses beside others, but has its base in the liver.

    Returns
    -------
    Batch
        The tumour is labelled as such inside of the former border of the liver and outside of it.
    Tensor
        bool ``[B, H, W]``: what is such a tumour.
    """
    chance = Chance(len(batch.hu), g)
    liver = (batch.label == 1) | (batch.label == 2)
    n_liver, mean = _size_and_mean(liver, batch.hu)
    border = liver & (grown(~liver, 6) > 0)
    largest = (0.35 * n_liver.float().sqrt()).clamp(8, 40)
    distance = _blob(border, 8 * (largest / 8) ** chance.uniform(0, 1), chance)
    around = (batch.label == 0) & (grown(liver, 8) > 0) & (batch.hu > _AIR) & (batch.hu < 150)
    tissue = liver | around
    blob = (distance < 1) & tissue
    inside = (blob & liver).flatten(1).sum(1).view(-1, 1, 1)
    based = (inside > 0.5 * blob.flatten(1).sum(1).view(-1, 1, 1)) & (inside < 0.5 * n_liver)
    there = chance.happens(share) & (n_liver > 400) & based & tissue
    alpha = ((1.05 - distance) / 0.1).clamp(0, 1) * there
    hu = batch.hu + alpha * (_growth(distance, mean, chance) - batch.hu)
    tumour = alpha > 0.5
    return batch._replace(hu=hu, label=torch.where(tumour, 2, batch.label)), alpha > 0


def _size_and_mean(mask: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of masks ``[B, H, W]``, and the mean of values there, 0 of none, both ``[B, 1, 1]``."""
    size = mask.flatten(1).sum(1).view(-1, 1, 1)
    return size, (values * mask).flatten(1).sum(1).view(-1, 1, 1) / size.clamp_min(1)


def _growth(distance: Tensor, mean: Tensor, chance: Chance) -> Tensor:
    """HU of grainy tissue that is darker than a liver of that mean, some with a dark core or a bright rim."""
    n, h, w = distance.shape
    g, device = chance.g, distance.device
    level = torch.minimum(chance.uniform(15, 110), mean - chance.uniform(8, 60))
    coarse = torch.randn(n, 1, 24, 24, generator=g, device=device)
    coarse = F.interpolate(coarse, (h, w), mode="bicubic", align_corners=True)[:, 0]
    fine = F.avg_pool2d(torch.randn(distance.shape, generator=g, device=device)[:, None], 3, 1, 1)[:, 0]
    core = chance.uniform(10, 50) * (1.3 - 2 * distance).clamp(0, 1) * chance.happens(0.5)
    rim = chance.uniform(10, 40) * torch.exp(-(((distance - 0.9) / 0.12) ** 2)) * chance.happens(0.3)
    value = level + coarse * chance.uniform(0, 18) + fine * chance.uniform(8, 40) - core + rim
    return torch.maximum(value, chance.uniform(-10, 10))  # as dark as water at most


def _blob(where: Tensor, radius: Tensor, chance: Chance) -> Tensor:
    """Distance ``[B, H, W]`` from a random pixel of ``where``, 1 at the border of a bent ellipse of that radius."""
    _, h, w = where.shape
    # the pixel with the largest of random numbers: a draw without a copy to the CPU
    centre = (torch.rand(where.shape, generator=chance.g, device=where.device) * where).flatten(1).argmax(1)
    y = torch.arange(h, device=where.device).view(1, -1, 1) - (centre // w).view(-1, 1, 1)
    x = torch.arange(w, device=where.device).view(1, 1, -1) - (centre % w).view(-1, 1, 1)
    turn, stretch = chance.uniform(0, math.pi), torch.exp(chance.uniform(-0.3, 0.3))
    u, v = x * torch.cos(turn) + y * torch.sin(turn), y * torch.cos(turn) - x * torch.sin(turn)
    angle = torch.atan2(v, u)
    bend = sum(
        chance.normal(0.25 / k) * torch.cos(k * angle + chance.uniform(0, 2 * math.pi)) for k in (2, 3, 5)
    )
    return torch.hypot(u * stretch, v / stretch) / radius / torch.exp(bend.clamp(-0.5, 0.5))
