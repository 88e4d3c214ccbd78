"""Lesions in healthy liver: synthetic ones, and those of other patients.

Masks of tumours are scarce and all of a few patients. Blobs that are darker (seldom brighter) than the liver around
them, with the noise of the scan, teach size, place, number and contrast that those patients do not have. That nets
trained on such lesions find real ones was shown by Hu et al., *Label-Free Liver Tumor Segmentation* (CVPR 2023); shapes
and numbers here are our own, in two dimensions.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter, rotate, zoom
from scipy.ndimage import label as components

#: Mean HU of the darkest part of a lesion.
DARKEST_HU = 25.0


def add_lesions(hu: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> None:
    """Put lesions into the liver of one slice, in place.

    Parameters
    ----------
    hu : ndarray
        int16 ``[Y, X]``.
    label : ndarray
        uint8 ``[Y, X]``: 0, 1 liver, 2 tumour. Pixels of a lesion become 2.
    rng : numpy.random.Generator
        Source of all randomness.
    """
    healthy = np.argwhere(label == 1)
    if len(healthy) < 400:  # too small for anything that one would call a lesion
        return
    liver = _median_and_noise(hu[label == 1])
    largest = min(70.0, 0.5 * np.sqrt(len(healthy)))
    for _ in range(int(rng.choice([1, 2, 3, 5, 8], p=[0.35, 0.25, 0.2, 0.12, 0.08]))):
        centre = healthy[rng.integers(len(healthy))]
        radius = float(np.exp(rng.uniform(np.log(3), np.log(max(largest, 4)))))
        _paint(hu, label, centre, radius, liver, rng)


def paste_lesion(
    hu: np.ndarray, label: np.ndarray, donor: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> None:
    """Put a lesion of another slice into the liver of one slice, in place.

    It keeps what it is darker or brighter by than its own liver. It is mirrored, turned and scaled at random.

    Parameters
    ----------
    hu, label, rng
        As for `add_lesions`.
    donor : (ndarray, ndarray)
        HU and label of the other slice.
    """
    healthy = np.argwhere(label == 1)
    donor_hu, donor_label = donor
    parts, count = components(donor_label == 2)
    if min(len(healthy), int((donor_label == 1).sum())) < 400 or not count:
        return
    shape = parts == rng.integers(1, count + 1)
    y, x = (np.flatnonzero(shape.any(axis)) for axis in (1, 0))
    box = slice(max(y[0] - 4, 0), y[-1] + 5), slice(max(x[0] - 4, 0), x[-1] + 5)
    mine, its = (_median_and_noise(h[mark == 1])[0] for h, mark in ((hu, label), donor))
    # a border of two pixels, in which the lesion fades into the liver that it comes to
    alpha = gaussian_filter(binary_dilation(shape[box]).astype(np.float32), 1.0) * (donor_label[box] > 0)
    both = np.stack([alpha, (donor_hu[box] - its) * alpha])
    both = both[:, :: rng.choice((1, -1)), :: rng.choice((1, -1))]
    both = rotate(both, rng.uniform(0, 360), axes=(1, 2), order=1)
    both = zoom(both, (1, *[np.exp(rng.uniform(-0.4, 0.4))] * 2), order=1)

    centre = healthy[rng.integers(len(healthy))]
    first = centre - np.array(both.shape[1:]) // 2
    low = np.maximum(first, 0)
    high = np.minimum(first + both.shape[1:], hu.shape)
    there, here = (tuple(map(slice, low - o, high - o)) for o in (0, first))
    alpha, difference = both[:, *here]
    part, mark = hu[there], label[there]
    inside = mark > 0
    value = part + alpha * (mine - part) + rng.uniform(0.8, 1.2) * difference
    part[inside] = np.rint(value[inside]).astype(np.int16)
    mark[inside & (alpha > 0.5)] = 2


def add_gallbladder(hu: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> None:
    """Put something as dark as bile beside the liver of one slice, in place, and leave the label as it is.

    Synthetic lesions at the liver's edge would else teach a liver net that a gallbladder is one.

    Parameters
    ----------
    hu, label, rng
        As for `add_lesions`.
    """
    liver = label > 0
    rim = binary_dilation(liver, iterations=int(rng.integers(2, 13))) & ~liver
    rim = np.argwhere(rim & (hu > -130) & (hu < 150))  # not in the lung, nor in bone
    if len(rim) == 0:
        return
    _, noise = _median_and_noise(hu[liver])
    box, distance = _blob(hu.shape, rim[rng.integers(len(rim))], float(rng.uniform(8, 32)), rng)
    part = hu[box]
    alpha = np.clip(0.5 + (1 - distance) / 0.1, 0, 1) * ~liver[box]
    bile = rng.uniform(-5, 22) + _grain(part.shape, noise, rng)
    part[...] = np.rint(part + alpha * (bile - part)).astype(np.int16)


def _median_and_noise(hu: np.ndarray) -> tuple[float, float]:
    """Of a liver's HU; vessels and edges are the tails of their distribution, the quartiles hold what is noise."""
    low, median, high = np.percentile(hu, (25, 50, 75))
    return float(median), float(high - low) / 1.35


def _grain(shape: tuple[int, ...], noise: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of that standard deviation, as fine as that of a scan."""
    grain = gaussian_filter(rng.normal(0, 1, shape), rng.uniform(0.4, 0.9))
    return grain * (noise / max(float(grain.std()), 1e-3))


def _blob(
    shape: tuple[int, ...], centre: np.ndarray, radius: float, rng: np.random.Generator
) -> tuple[tuple[slice, slice], np.ndarray]:
    """A bent ellipse of ``radius`` pixels: a box of the slice, and of its pixels a distance that is 1 at the border."""
    reach = int(2 * radius) + 4
    box = tuple(slice(max(c - reach, 0), min(c + reach + 1, n)) for c, n in zip(centre, shape, strict=True))
    y, x = np.mgrid[box].astype(np.float32) - np.float32(centre)[:, None, None]
    angle = np.arctan2(y, x)
    turn, stretch = rng.uniform(0, np.pi), np.exp(rng.uniform(-0.3, 0.3))
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    distance = np.hypot(u * stretch, v / stretch) / radius
    bend = sum(rng.normal(0, 0.25 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
    return box, distance / np.exp(np.clip(bend, -0.5, 0.5))


def _paint(
    hu: np.ndarray,
    label: np.ndarray,
    centre: np.ndarray,
    radius: float,
    liver: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    """One lesion of ``radius`` pixels at ``centre`` in a liver of that (median, noise)."""
    box, distance = _blob(hu.shape, centre, radius, rng)
    part, mark = hu[box], label[box]
    # soft borders: a pixel or two for sharp ones, a third of the radius for diffuse ones
    width = max(0.8 / radius, rng.uniform(0.03, 0.3))
    alpha = np.clip(0.5 + (1 - distance) / (2 * width), 0, 1) * (mark > 0)

    median, noise = liver
    faintest = 15 + 60 / radius  # what is small must differ more to be seen
    contrast = -rng.uniform(faintest, 95) if rng.random() < 0.9 else rng.uniform(faintest, 60)
    core = contrast * np.ones(part.shape, np.float32)
    kind = rng.random()
    if kind < 0.25:  # necrosis: a darker centre
        core -= rng.uniform(5, 30) * np.clip(1.5 - 2 * distance, 0, 1)
    elif kind < 0.45:  # an enhancing rim
        core += rng.uniform(10, 50) * np.exp(-(((distance - 0.9) / 0.15) ** 2))
    # bile and cysts are darker than this: what is as dark as water must not be learnt as a lesion, nor as liver
    core = np.maximum(core, min(DARKEST_HU - median, -faintest))
    coarse = zoom(rng.normal(0, 1, (4, 4)), np.array(part.shape) / 4, order=1)[
        : part.shape[0], : part.shape[1]
    ]
    core += _grain(part.shape, noise, rng) + coarse * rng.uniform(0, 10)

    keep = rng.uniform(0, 0.4)  # of what was there before: vessels shine through a diffuse lesion
    value = median + core + keep * (part - median)
    part[...] = np.rint(part + alpha * (value - part)).astype(np.int16)
    mark[(alpha > 0.5) & (mark > 0)] = 2
