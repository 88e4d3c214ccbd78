"""Left lobes that hang down: below the hilum the left lobe of a liver is an island.

Few slices of few patients show it so, and nets that have not seen more take it for stomach or bowel. But in every scan
slices further up show the lobe, where it is joined to the rest.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter
from scipy.ndimage import label as components


def hang_lobe(
    hu: np.ndarray, label: np.ndarray, above: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> None:
    """Let the left lobe of a slice further up hang down into one slice, in place, apart from the rest of the liver.

    Parameters
    ----------
    hu : ndarray
        int16 ``[Y, X]``, columns from the patient's right to the left.
    label : ndarray
        uint8 ``[Y, X]``: 0, 1 liver, 2 tumour. Pixels of the lobe get the label that they have further up.
    above : (ndarray, ndarray)
        HU and label of a slice of the same scan, nearer to the head.
    rng : numpy.random.Generator
        Source of all randomness.
    """
    liver = label > 0
    if int(liver.sum()) < 400:
        return
    shift = int(rng.integers(0, 15)), int(rng.integers(-5, 60))  # backwards, and mostly to the left
    above_hu, above_label = (np.roll(x, shift, (0, 1)) for x in above)
    columns = np.nonzero(above_label)[1]
    if len(columns) < 400:
        return
    lobe = (above_label > 0) & ~binary_dilation(liver, iterations=int(rng.integers(3, 14)))
    # in front and to the left, where the left lobe lies
    body = np.nonzero((hu > -200) | liver)[0]  # rows
    lobe[int(np.quantile(body, 0.42)) :] = False
    lobe[:, : int(np.quantile(columns, rng.uniform(0.55, 0.8)))] = False
    parts, count = components(gaussian_filter(lobe.astype(np.float32), rng.uniform(4, 10)) > 0.5)
    sizes = np.bincount(parts.ravel())[1:]
    if not count or sizes.max() < 1000:
        return
    alpha = (parts == 1 + sizes.argmax()).astype(np.float32)
    # what lies further behind is no left lobe, and would pass for the duodenum
    if np.nonzero(alpha)[0].mean() > np.quantile(body, 0.33):
        return
    if rng.random() < 0.6:  # fat around it
        rim = gaussian_filter(
            binary_dilation(alpha > 0, iterations=int(rng.integers(2, 8))).astype(np.float32), 1.0
        )
        rim[liver] = 0
        fat = rng.uniform(-115, -80) + 12 * rng.normal(0, 1, hu.shape)
        hu[...] = np.rint(hu + rim * (np.minimum(fat, hu) - hu)).astype(np.int16)
    alpha = gaussian_filter(alpha, 1.0)
    alpha[liver] = 0
    hu[...] = np.rint(hu + alpha * (above_hu - hu)).astype(np.int16)
    inside = alpha > 0.5
    label[inside] = np.maximum(above_label[inside], 1)
