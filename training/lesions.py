"""Synthetic lesions in healthy liver.

Masks of tumours are scarce and all of a few patients. Blobs that are darker (seldom brighter) than the liver around
them, with the noise of the scan, teach size, place, number and contrast that those patients do not have. That nets
trained on such lesions find real ones was shown by Hu et al., *Label-Free Liver Tumor Segmentation* (CVPR 2023); shapes
and numbers here are our own, in two dimensions.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, zoom


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
    inside = hu[label == 1].astype(np.float32)
    median = float(np.median(inside))
    # vessels and edges are the tails of the distribution; the quartiles hold what is noise
    noise = float(np.subtract(*np.percentile(inside, (75, 25)))) / 1.35
    largest = min(70.0, 0.5 * np.sqrt(len(healthy)))
    for _ in range(int(rng.choice([1, 2, 3, 5, 8], p=[0.35, 0.25, 0.2, 0.12, 0.08]))):
        centre = healthy[rng.integers(len(healthy))]
        radius = float(np.exp(rng.uniform(np.log(3), np.log(max(largest, 4)))))
        _paint(hu, label, centre, radius, (median, noise), rng)


def _paint(
    hu: np.ndarray,
    label: np.ndarray,
    centre: np.ndarray,
    radius: float,
    liver: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    """One lesion of ``radius`` pixels at ``centre`` in a liver of that (median, noise)."""
    reach = int(2 * radius) + 4
    y0, x0 = np.maximum(centre - reach, 0)
    box = (slice(y0, centre[0] + reach + 1), slice(x0, centre[1] + reach + 1))
    part, mark = hu[box], label[box]
    y, x = np.indices(part.shape, np.float32)
    y, x = y - (centre[0] - y0), x - (centre[1] - x0)

    # an ellipse whose border is bent by a few harmonics: distance 1 is the border
    angle = np.arctan2(y, x)
    turn, stretch = rng.uniform(0, np.pi), np.exp(rng.uniform(-0.3, 0.3))
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    distance = np.hypot(u * stretch, v / stretch) / radius
    bend = sum(rng.normal(0, 0.25 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
    distance = distance / np.exp(np.clip(bend, -0.5, 0.5))

    # soft borders: a pixel or two for sharp ones, a third of the radius for diffuse ones
    width = max(0.8 / radius, rng.uniform(0.03, 0.3))
    alpha = np.clip(0.5 + (1 - distance) / (2 * width), 0, 1) * (mark > 0)

    median, noise = liver
    faintest = 15 + 60 / radius  # what is small must differ more to be seen
    contrast = -rng.uniform(faintest, 95) if rng.random() < 0.9 else rng.uniform(faintest, 60)
    contrast = max(contrast, min(-faintest, -median - 5))  # seldom below water
    core = contrast * np.ones(part.shape, np.float32)
    kind = rng.random()
    if kind < 0.25:  # necrosis: a darker centre
        core -= rng.uniform(5, 30) * np.clip(1.5 - 2 * distance, 0, 1)
    elif kind < 0.45:  # an enhancing rim
        core += rng.uniform(10, 50) * np.exp(-(((distance - 0.9) / 0.15) ** 2))
    texture = rng.normal(0, 1, part.shape).astype(np.float32)
    fine = gaussian_filter(texture, rng.uniform(0.4, 0.9))
    coarse = zoom(rng.normal(0, 1, (4, 4)), np.array(part.shape) / 4, order=1)[
        : part.shape[0], : part.shape[1]
    ]
    core += fine * (noise / max(float(fine.std()), 1e-3)) + coarse * rng.uniform(0, 10)

    keep = rng.uniform(0, 0.4)  # of what was there before: vessels shine through a diffuse lesion
    value = median + core + keep * (part - median)
    part[...] = np.rint(part + alpha * (value - part)).astype(np.int16)
    mark[(alpha > 0.5) & (mark > 0)] = 2
