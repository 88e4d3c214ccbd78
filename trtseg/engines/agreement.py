"""How far an engine's logits are from the FP32 reference's, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from trtseg.spec import ModelSpec

Array = npt.NDArray[Any]

#: A label may differ only where the reference's logit is closer than this to the threshold (0.2 is a probability of
#: 0.55), and the root mean square of all differences must be smaller too, which finds a black net even where the
#: reference has no object. For the shipped nets emulated FP16 is within half of this and of the two bounds below
#: (tests/test_acceptance.py). Of FP32 only the order of its sums may differ.
LOGIT_BOUND = {"fp16": 0.2, "fp32": 0.005}

#: Largest share of labels that may differ, however small their logits.
FLIP_SHARE = 0.001

#: Smallest Dice coefficient of a class with the reference.
DICE = 0.99

#: Pixels of a class in the reference below which a Dice coefficient says too little.
MIN_PIXELS = 200


class Agreement:
    """Sums over answers of an engine, each compared with the reference's logits of the same image.

    Labels are compared where they count: those of a tumour net only where the liver mask let the slice through.

    Parameters
    ----------
    reference, images : ndarray
        Logits float32 ``[k, channels, H, W]`` of the slices ``[k, 1, H, W]``.
    spec : ModelSpec
        What the logits mean.
    bound : float
        See `LOGIT_BOUND`.
    """

    def __init__(self, reference: Array, images: Array, spec: ModelSpec, bound: float) -> None:
        self._reference, self._spec, self._bound = reference, spec, bound
        self._labels = _labels(reference, spec)  # [k, H, W]
        self._margin = _margin(reference, spec)
        self._counts = np.isfinite(self._margin)
        if spec.role == "tumour":
            self._counts &= images[:, 0] > 0
        self._classes = dict(enumerate(spec.classes[1:] or spec.classes, start=1))
        self._overlap = {label: np.zeros(2, np.int64) for label in self._classes}  # common, sum of both sizes
        self._bad_slots: set[int] = set()
        self._bad = self._finite = self._compared = self._flipped = self._far = 0
        self._squares = self._largest = self._largest_flip = 0.0

    def add(self, logits: Array, image: int, slot: int) -> None:
        """Compare an answer ``[channels, H, W]`` to an image; the slot is for the report only."""
        reference, counts = self._reference[image].astype(np.float64), self._counts[image]
        finite = np.isfinite(logits) & np.isfinite(reference)
        difference = np.abs(logits[finite].astype(np.float64) - reference[finite])
        self._finite += difference.size
        self._squares += float(np.square(difference).sum())
        self._largest = max(self._largest, float(difference.max(initial=0)))
        bad = int(np.count_nonzero(~finite & np.isfinite(reference)))
        self._bad += bad
        self._bad_slots |= {slot} if bad else set()

        got, expected = _labels(logits, self._spec), self._labels[image]
        margins = self._margin[image][(got != expected) & counts]
        self._compared += int(np.count_nonzero(counts))
        self._flipped += margins.size
        self._far += int(np.count_nonzero(margins >= self._bound))
        self._largest_flip = max(self._largest_flip, float(margins.max(initial=0)))
        for label, sums in self._overlap.items():
            a, b = (got == label) & counts, (expected == label) & counts
            sums += np.count_nonzero(a & b), np.count_nonzero(a) + np.count_nonzero(b)

    def figures(self) -> dict[str, Any]:
        """Those of a `Verdict`."""
        pixels = {n: int(np.count_nonzero((self._labels == n) & self._counts)) for n in self._classes}
        return {
            "max_difference": self._largest,
            "rms_difference": math.sqrt(self._squares / max(self._finite, 1)),
            "flipped": self._flipped,
            "flipped_share": self._flipped / max(self._compared, 1),
            "largest_flip_margin": self._largest_flip,
            "dice": {
                name: float(2 * sums[0] / sums[1]) if pixels[label] >= MIN_PIXELS else None
                for (label, name), sums in zip(self._classes.items(), self._overlap.values(), strict=True)
            },
            "compared_pixels": {name: pixels[label] for label, name in self._classes.items()},
        }

    def faults(self) -> Iterator[str]:
        """All that is further off than it may be."""
        figures = self.figures()
        if self._bad:
            slots = ", ".join(map(str, sorted(self._bad_slots)))
            yield f"NaN or infinity instead of {self._bad} logits that are finite in the reference (slots {slots})"
        if (rms := figures["rms_difference"]) >= self._bound:
            yield f"logits are off by {rms:.3g} (root mean square), not by less than {self._bound:g}"
        if self._far:
            yield (
                f"another label in {self._far} pixels where the reference is {self._bound:g} or more, up to "
                f"{self._largest_flip:.3g}, from the threshold"
            )
        if (share := figures["flipped_share"]) > FLIP_SHARE:
            yield f"another label in {share:.2%} of the pixels, not in at most {FLIP_SHARE:.2%}"
        for name, dice in figures["dice"].items():
            if dice is not None and dice < DICE:
                pixels = figures["compared_pixels"][name]
                yield f"{name}: Dice {dice:.4f} with the reference's {pixels} pixels, not {DICE:g} or more"


def _labels(logits: Array, spec: ModelSpec) -> Array:
    """Class of each pixel, of logits ``[..., channels, H, W]``; NaN is the lowest logit, as in the ops."""
    known: Array = np.where(np.isnan(logits), -np.inf, logits.astype(np.float32))
    if spec.role != "one-step":
        return (known[..., 0, :, :] > spec.logit_threshold).astype(np.intp)
    labels: Array = np.argmax(known, axis=-3)  # the first of equals, as in the ops
    return labels


def _margin(logits: Array, spec: ModelSpec) -> Array:
    """How far the logits ``[k, channels, H, W]`` are from another label."""
    if spec.role != "one-step":
        return np.abs(logits[:, 0] - np.float32(spec.logit_threshold))
    ordered = np.sort(logits, axis=1)
    margin: Array = ordered[:, -1] - ordered[:, -2]
    return margin
