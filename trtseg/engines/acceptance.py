"""The acceptance gate: an engine is used only after its logits agreed with the FP32 reference's.

Engines that were built without an error can still come out black, full of NaN, or with other answers in other slots of
a batch. So an engine runs slices whose FP32 logits are known (`trtseg.engines.calibration`). Whoever opens the engine
keeps the `Acceptance` with it. The gate knows neither devices nor runtimes: it calls a function that runs the engine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from trtseg.engines.calibration import SETTLED, Reference
from trtseg.engines.precision import Precision
from trtseg.errors import ArgumentError
from trtseg.spec import ModelSpec

Array = npt.NDArray[Any]

#: Raised when the gate demands more or shows other slices: engines are then checked again.
CRITERIA = 4

#: Largest share of labels that may differ, however small their logits.
FLIP_SHARE = 0.001

#: Smallest Dice coefficient of a class with the reference.
DICE = 0.99

#: Pixels of a class in the reference below which a Dice coefficient says too little.
MIN_PIXELS = 200


@dataclass(frozen=True)
class Acceptance:
    """Result of comparing an engine with the FP32 reference.

    A slice counts once in the figures for each answer that differs in any bit: a sound engine gives one answer. The
    figures of a tumour net are of the pixels that the liver net calls liver: no other pixel gives a label.

    Attributes
    ----------
    reasons : tuple of str
        All faults, in sentences; none if the engine is accepted.
    slices, batch, runs : int
        Calibration slices, slices in a run, and runs of the engine.
    max_difference, rms_difference : float
        Of logits, largest and root mean square, over all that are finite. A logit that is further from the threshold
        than `trtseg.engines.calibration.SETTLED` counts as that far, and pixels where both are so on the same side are
        left out (not of ``one-step``).
    flipped, flipped_share : int, float
        Pixels with another label than the reference's, and their share of those that count.
    largest_flip_margin : float
        How far the reference's logit was from the threshold (``one-step``: the two largest from each other) where a
        label flipped; 0 without flips.
    dice : dict
        Class to Dice coefficient; None where the reference has too few pixels.
    compared_pixels : dict
        Class to the pixels that the reference has of it.
    reference, device, driver : str
        The reference's source, the device that the engine ran on, and the version of its driver or None.
    files : dict
        Of the reference, see `trtseg.engines.calibration.Reference`.
    at : str
        When, in UTC.
    criteria : int
        `CRITERIA` at that time.
    """

    reasons: tuple[str, ...]
    slices: int
    batch: int
    runs: int
    max_difference: float
    rms_difference: float
    flipped: int
    flipped_share: float
    largest_flip_margin: float
    dice: dict[str, float | None]
    compared_pixels: dict[str, int]
    reference: str
    device: str
    driver: str | None
    files: dict[str, str]
    at: str
    criteria: int = CRITERIA

    @property
    def accepted(self) -> bool:
        """Whether the engine may be used."""
        return not self.reasons

    def holds_for(self, device: str, driver: str | None, files: dict[str, str]) -> bool:
        """Whether an engine need not be checked again there, by a reference of these files and today's criteria."""
        return (self.device, self.driver, self.files, self.criteria) == (device, driver, files, CRITERIA)

    def to_json(self) -> dict[str, Any]:
        """Values that JSON can hold; the inverse of `from_json`."""
        return {"accepted": self.accepted, **dataclasses.asdict(self), "reasons": list(self.reasons)}

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> Acceptance | None:
        """Read the values that `to_json` made; None for any others: then the engine is to be checked."""
        fields = {name: value for name, value in (values or {}).items() if name != "accepted"}
        try:
            found = cls(**{**fields, "reasons": tuple(fields["reasons"])})
            return found if str(found) and found.to_json() == values else None
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            return None

    def __str__(self) -> str:
        where = self.device + (f", driver {self.driver}" if self.driver else "")
        if not self.accepted:
            return f"rejected on {where}: {'; '.join(self.reasons)}"
        few = {name: f"in {pixels} pixels only" for name, pixels in self.compared_pixels.items()}
        dice = [f"{name} {few[name] if d is None else f'Dice {d:.4f}'}" for name, d in self.dice.items()]
        told = f"{self.slices} slices in each of {self.batch} slots, {self.flipped} pixels unlike {self.reference}"
        return f"accepted on {where}: {told}, {', '.join(dice)}"


def check(
    run: Callable[[Array], Array],
    reference: Reference,
    *,
    spec: ModelSpec,
    precision: Precision,
    batch: int,
    device: str,
    driver: str | None = None,
) -> Acceptance:
    """Compare an engine with the FP32 reference: every slice in every slot, alone and among others, all of it twice.

    Parameters
    ----------
    run : callable
        Runs the engine: slices ``[batch, 1, H, W]`` to logits ``[batch, channels, H, W]``, on the host, in its type.
    reference : Reference
        Slices and the FP32 reference's logits.
    spec : ModelSpec
        What the logits mean.
    precision : Precision
        Of the engine: its type and its bound.
    batch : int
        Slices in a run. For an engine that takes any number, as many as shall be tried at a time.
    device, driver : str
        What the engine runs on, and the version of its driver or None.

    Returns
    -------
    Acceptance
        An engine that is wrong is no exception, but an exception in ``run`` is passed on.
    """
    images, logits = reference.images, reference.logits
    if not len(images) or images.shape[1:] != (1, *spec.size) or len(logits) != len(images):
        raise ArgumentError(
            f"reference: got images {images.shape} and logits {logits.shape}; expected slices and logits of a "
            f"{spec.role} net of {spec.size[0]}x{spec.size[1]}"
        )
    inputs, batches = images.astype(precision.dtype), _batches(len(images), batch)
    answers = np.empty((2, *batches.shape), np.uint64)
    comparison, seen = _Comparison(reference, spec, precision.logit_bound), set()
    for turn, number in np.ndindex(2, len(batches)):  # the second run of a batch comes after all others
        got = run(inputs[batches[number]])
        expected = (batch, *logits.shape[1:])
        if got.dtype != inputs.dtype or got.shape != expected:
            raise ArgumentError(f"run: gave {got.dtype} {got.shape}; expected {inputs.dtype} {expected}")
        for slot, image in enumerate(batches[number].tolist()):
            digest = hashlib.blake2b(got[slot].tobytes(), digest_size=8).digest()
            answers[turn, number, slot] = int.from_bytes(digest)
            if (image, digest) not in seen:
                seen.add((image, digest))
                comparison.add(got[slot], image, slot)
    return Acceptance(
        reasons=(*_inconsistencies(answers, batches, len(images)), *comparison.faults()),
        slices=len(images),
        batch=batch,
        runs=2 * len(batches),
        **comparison.figures(),
        reference=reference.source,
        device=device,
        driver=driver,
        files=reference.files,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _batches(images: int, slots: int) -> Array:
    """Image in each slot of each batch: first each image in all slots, then each in every slot among others."""
    image, slot = np.arange(images)[:, None], np.arange(slots)
    alone, mixed = np.repeat(image, slots, axis=1), (image + slot + slot // images) % images
    return alone if slots == 1 else np.concatenate([alone, mixed])


def _inconsistencies(answers: Array, batches: Array, images: int) -> Iterator[str]:
    """Where the answers (a hash of each) of two runs ``[2, batches, slots]`` differ that should be the same."""
    alone, mixed = answers[0, :images], answers[0, images:]
    for fault, differs in (
        ("identical slices in one batch gave different logits", alone != alone[:, :1]),
        ("the slot or the neighbours of a slice changed its logits", mixed != alone[batches[images:], 0]),
        ("a second run of the same batch gave other logits", answers[0] != answers[1]),
    ):
        if differs.any():
            slots = ", ".join(map(str, np.flatnonzero(differs.any(axis=0))))
            yield f"{fault}, in {np.count_nonzero(differs.any(axis=1))} of {len(differs)} batches (slots {slots})"


class _Comparison:
    """Sums over an engine's answers, each compared with the reference's logits of the same image."""

    def __init__(self, reference: Reference, spec: ModelSpec, bound: float) -> None:
        self._reference, self._spec, self._bound = reference.logits, spec, bound
        self._labels = _labels(reference.logits, spec)  # [k, H, W]
        self._margin = _margin(reference.logits, spec)
        self._counts = np.isfinite(self._margin)  # pixels whose label is compared
        if reference.counts is not None:
            self._counts &= reference.counts
        self._classes = dict(enumerate(spec.classes[1:] or spec.classes, start=1))
        self._overlap = {label: np.zeros(2, np.int64) for label in self._classes}  # common, sum of both sizes
        self._bad_slots: set[int] = set()
        self._bad = self._finite = self._compared = self._flipped = self._far = 0
        self._squares = self._largest = self._largest_flip = 0.0

    def add(self, logits: Array, image: int, slot: int) -> None:
        """Compare an answer ``[channels, H, W]`` to an image; the slot is for the report only."""
        reference, counts = self._reference[image], self._counts[image]
        finite = np.isfinite(logits) & np.isfinite(reference)
        compared = finite & counts
        difference = self._difference(logits[compared], reference[compared])
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
        """The figures of an `Acceptance`."""
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
        """Each bound that is exceeded, in a sentence."""
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

    def _difference(self, got: Array, expected: Array) -> Array:
        """Absolute differences of logits; those are left out where both are settled on the same side."""
        got, expected = got.astype(np.float64), expected.astype(np.float64)
        compared = np.ones(got.shape, bool)
        if self._spec.role != "one-step":
            low, high = self._spec.logit_threshold - SETTLED, self._spec.logit_threshold + SETTLED
            got, expected = got.clip(low, high), expected.clip(low, high)
            compared = (got != expected) | ((expected > low) & (expected < high))
        difference: Array = np.abs(got - expected)[compared]
        return difference


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
