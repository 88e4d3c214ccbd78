"""The gate that an engine passes before it is used on a GPU: it must agree with the FP32 net on calibration slices.

Engines that were built without an error can still come out black, full of NaN, or with other answers in other slots of
a batch. So an engine is run on slices whose FP32 logits are known, and the verdict is kept with it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from trtseg import _core
from trtseg.engines.agreement import LOGIT_BOUND, Agreement
from trtseg.engines.base import Engine
from trtseg.engines.nvidia.sidecar import EngineKey
from trtseg.errors import ArgumentError, ModelError
from trtseg.models import ModelFiles
from trtseg.phantom import abdomen
from trtseg.spec import ModelSpec

Array = npt.NDArray[Any]

#: Raised when what is asked of an engine, or the slices, change: engines are judged again.
CRITERIA = 2

_DTYPE: dict[str, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}
_SEED, _SLICES, _SLICE_MM = 2, 8, 26.0  # from below the liver to well above it: one slice shall be empty
_FIELD_MM = (320.0, 400.0)


def calibration(files: ModelFiles) -> dict[str, tuple[Array, Array]]:
    """Role of each net of a model to slices float32 ``[k, 1, H, W]`` and their FP32 logits ``[k, channels, H, W]``.

    The slices are of a phantom, with liver and lesions, with liver only, and without. Each net gets what it gets in the
    cascade, and is run by the FP32 engine of the CPU. What the slices show depends on the specs only.

    Raises
    ------
    ModelError
        A net cannot be read or run, or gives NaN or infinity in FP32.
    DeviceError
        Nothing that runs a net on the CPU is installed.
    """
    first = files.spec.nets[0]
    hu, images = _slices(first)
    found: dict[str, tuple[Array, Array]] = {}
    for spec in files.spec.nets:
        if spec.role == "tumour":
            images, pixels = np.empty_like(images), np.empty(len(hu), np.int32)
            _core.gate(found["liver"][1], hu, first.logit_threshold, spec.window, images, pixels)
        logits = np.empty((len(hu), spec.channels, *spec.size), np.float32)
        open_reference(files.read(spec.role), spec).run(images, logits)
        if not np.isfinite(logits).all():
            raise ModelError(
                f"{spec.role} net: gives NaN or infinity in FP32 on the calibration slices, so no engine can be "
                "compared with it; train or export the model again"
            )
        found[spec.role] = images, logits
    return found


def open_reference(onnx: bytes, spec: ModelSpec) -> Engine:
    """The FP32 engine of the CPU with which others are compared: OpenVINO's, or ONNX Runtime's where that is not here.

    Raises
    ------
    ModelError
        The net cannot be run, or is not what ``spec`` says.
    DeviceError
        Neither is installed.
    """
    from trtseg.engines.onnxruntime import OnnxRuntimeEngine
    from trtseg.engines.openvino import OpenVinoEngine

    if _reference_package() == "onnxruntime":
        return OnnxRuntimeEngine(onnx, spec)
    return OpenVinoEngine(onnx, spec, "fp32")


def _reference_package() -> str:
    return "onnxruntime" if find_spec("openvino") is None and find_spec("onnxruntime") else "openvino"


def _slices(spec: ModelSpec) -> tuple[Array, Array]:
    """Slices of the phantom on the grid of a net, as `prepare` gives them: HU ``[k, H, W]`` and ``[k, 1, H, W]``."""
    shape, mm = spec.size, max(f / n for f, n in zip(_FIELD_MM, spec.size, strict=True))
    if spec.fit == "fit":  # pixels that must be shrunk, and rows of air to be added
        mm /= 1.3
        shape = round(_FIELD_MM[0] / mm), round(_FIELD_MM[1] / mm)
    ct = abdomen((_SLICES, *shape), (_SLICE_MM, mm, mm), seed=_SEED, lesions=6).ct
    hu, images = np.empty((_SLICES, *spec.size), np.int16), np.empty((_SLICES, 1, *spec.size), np.float32)
    _core.prepare(ct, spec.fit_slice(shape, (mm, mm)), spec.window, hu, images)
    return hu, images


@dataclass(frozen=True)
class Verdict:
    """What came out of comparing an engine with the FP32 reference.

    In the figures a slice counts once for each answer that differs in any bit: a sound engine gives one. Flips and Dice
    of a tumour net are of the pixels that the liver mask lets through: the others give no label.

    Attributes
    ----------
    reasons : tuple of str
        All that was wrong, in sentences; none if the engine is accepted.
    slices, batch, runs : int
        Calibration slices, slices in a run, and runs of the engine.
    max_difference, rms_difference : float
        Of logits, largest and root mean square, over all that are finite.
    flipped, flipped_share : int, float
        Pixels with another label than the reference's, and their share of those that count.
    largest_flip_margin : float
        How far the reference's logit was from the threshold (``one-step``: the two largest from each other) where a
        label flipped; 0 without flips.
    dice : dict
        Class to Dice coefficient; None where the reference has too few pixels.
    compared_pixels : dict
        Class to the pixels that the reference has of it.
    reference, gpu, driver : str
        What the engine was compared with, what it ran on, and the driver's version or None.
    at : str
        When, in UTC.
    criteria : int
        `CRITERIA` when it was judged.
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
    gpu: str
    driver: str | None
    at: str
    criteria: int = CRITERIA

    @property
    def accepted(self) -> bool:
        """Whether the engine may be used."""
        return not self.reasons

    def holds_for(self, gpu: str, driver: str | None) -> bool:
        """Whether an engine need not be judged again on that GPU with that driver, by what is asked today."""
        return (self.gpu, self.driver, self.criteria) == (gpu, driver, CRITERIA)

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold, for the sidecar; the inverse of `from_json`."""
        return {"accepted": self.accepted, **dataclasses.asdict(self), "reasons": list(self.reasons)}

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> Verdict | None:
        """Read what `to_json` made; None if it is anything else: then the engine is to be judged."""
        fields = {name: value for name, value in (values or {}).items() if name != "accepted"}
        try:
            verdict = cls(**{**fields, "reasons": tuple(fields["reasons"])})
            return verdict if str(verdict) and verdict.to_json() == values else None
        except (TypeError, ValueError, KeyError, AttributeError):
            return None

    def __str__(self) -> str:
        where = f"{self.gpu}, driver {self.driver or 'unknown'}"
        if not self.accepted:
            return f"rejected on {where}: {'; '.join(self.reasons)}"
        few = {name: f"in {pixels} pixels only" for name, pixels in self.compared_pixels.items()}
        dice = [f"{name} {few[name] if d is None else f'Dice {d:.4f}'}" for name, d in self.dice.items()]
        told = f"{self.slices} slices in each of {self.batch} slots, {self.flipped} pixels unlike {self.reference}"
        return f"accepted on {where}: {told}, {', '.join(dice)}"


def judge(
    run: Callable[[Array], Array],
    reference: Array,
    images: Array,
    *,
    engine: EngineKey,
    spec: ModelSpec,
    gpu: str,
    driver: str | None,
) -> Verdict:
    """Compare an engine with the FP32 reference: every slice in every slot, alone and among others, all of it twice.

    Parameters
    ----------
    run : callable
        Runs the engine: slices ``[batch, 1, H, W]`` to logits ``[batch, channels, H, W]``, on the host, in its type.
    reference, images : ndarray
        Logits and slices, float32, as `calibration` gives them.
    engine : EngineKey
        Its batch and precision.
    spec : ModelSpec
        What the logits mean.
    gpu, driver : str
        What it runs on, and the driver's version or None.

    Returns
    -------
    Verdict
        An engine that is wrong is no exception, but what ``run`` raises is passed on.
    """
    if not len(images) or images.shape[1:] != (1, *spec.size) or len(reference) != len(images):
        raise ArgumentError(
            f"images, reference: got {images.shape} and {reference.shape}; expected slices and logits of a "
            f"{spec.role} net of {spec.size[0]}x{spec.size[1]}"
        )
    inputs, batches = images.astype(_DTYPE[engine.precision]), _batches(len(images), engine.batch)
    answers = np.empty((2, *batches.shape), np.uint64)
    agreement, seen = Agreement(reference, images, spec, LOGIT_BOUND[engine.precision]), set()
    for turn, number in np.ndindex(2, len(batches)):  # the second run of a batch comes after all others
        logits = run(inputs[batches[number]])
        if logits.dtype != inputs.dtype or logits.shape != (engine.batch, *reference.shape[1:]):
            raise ArgumentError(f"run: gave {logits.dtype} {logits.shape}; expected the logits of {engine}")
        for slot, image in enumerate(batches[number].tolist()):
            digest = hashlib.blake2b(logits[slot].tobytes(), digest_size=8).digest()
            answers[turn, number, slot] = int.from_bytes(digest)
            if (image, digest) not in seen:
                seen.add((image, digest))
                agreement.add(logits[slot], image, slot)
    return Verdict(
        reasons=(*_inconsistencies(answers, batches, len(images)), *agreement.faults()),
        slices=len(images),
        batch=engine.batch,
        runs=2 * len(batches),
        **agreement.figures(),
        reference=f"{_reference_package()} {importlib.metadata.version(_reference_package())} fp32",
        gpu=gpu,
        driver=driver,
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
    for what, differs in (
        ("identical slices in one batch gave different logits", alone != alone[:, :1]),
        ("the slot or the neighbours of a slice changed its logits", mixed != alone[batches[images:], 0]),
        ("a second run of the same batch gave other logits", answers[0] != answers[1]),
    ):
        if differs.any():
            slots = ", ".join(map(str, np.flatnonzero(differs.any(axis=0))))
            yield f"{what}, in {np.count_nonzero(differs.any(axis=1))} of {len(differs)} batches (slots {slots})"
