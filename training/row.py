"""A row of the paper's table, once: train the nets of a method from a kit, label the slices of the test patients."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training import appearance, batch, kit_score
from training.checkpoint import Settings, build
from training.kit import Kit
from training.methods import Liver, Method
from training.tally import Tally, tallies
from training.trainer import Run, Trainer


@dataclass(frozen=True)
class Split:
    """Patients by their names; what a row trains on is without both."""

    test: Sequence[str]
    validation: Sequence[str]


def training_rows(kit: Kit, split: Split) -> np.ndarray:
    """Slices with liver whose tumours are known, of patients that may train and neither test nor validate."""
    kept_out = np.isin(kit.group, [*split.test, *split.validation])
    return np.flatnonzero(kit.has_liver & kit.tumour_known & (kit.split == "train") & ~kept_out)


def scored_rows(kit: Kit, patients: Sequence[str]) -> np.ndarray:
    """Slices of some patients whose tumours are known."""
    return np.flatnonzero(np.isin(kit.group, patients) & kit.tumour_known)


class RowTrainer(Trainer):
    """Trains on the loss of a method as the paper has it; all methods see the same samples in the same order."""

    @torch.no_grad()
    def samples(self) -> tuple[batch.Batch, Tensor]:
        """`ahead` batches, and their HU, for which there is no other use."""
        b = batch.draw(self.store, self.p, self.ahead * self.run.batch, self.g, self.settings.size)
        b = b._replace(hu=appearance.unclip(b.hu, self.store.lowest_hu[b.row], self.g))
        b = appearance.lesions(b, self.run.lesions, self.g)
        b = b._replace(hu=appearance.scanner(b.hu, self.g))
        return b, b.hu

    def _loss(self, b: batch.Batch, mask: Tensor) -> Tensor:
        loss: Tensor = self.method(b.hu, b.label)
        return loss


def trained(settings: Settings, store: batch.DeviceKit, p: Tensor, liver: Liver | None = None) -> Method:
    """The method of some settings, trained for their steps on the slices of a store, drawn with probabilities ``p``."""
    torch.manual_seed(settings.seed)
    method = build(settings, liver)
    kit_score.to_device(method, store.image.device)
    run = Run(
        steps=settings.steps, batch=settings.batch, lr=settings.lr, ema=settings.ema, lesions=settings.lesions
    )
    trainer = RowTrainer(settings.method, method, settings, run, store, p)
    for _ in trainer.steps():
        pass
    return trainer.result()


def run(kit: Kit, settings: Settings, split: Split, device: torch.device) -> dict[str, Any]:
    """Train a row and label its validation and its test patients.

    Parameters
    ----------
    settings : Settings
        Of the method ``one-step``, ``joint``, or ``sequential``: a liver net and a tumour net behind it, each trained
        for all steps.

    Returns
    -------
    dict
        For a JSON file: ``validation`` and ``test``, each with `Tally` s by patient, and the figures of the training.
    """
    began = time.perf_counter()
    rows = training_rows(kit, split)
    store = batch.DeviceKit.of(kit, rows, device)
    p = torch.from_numpy(batch.weights(kit, rows, "liver").astype(np.float32)).to(device)
    if settings.method == "sequential":
        liver = trained(replace(settings, method="liver"), store, p)
        assert isinstance(liver, Liver)
        method = trained(replace(settings, method="tumour"), store, p, liver)
    else:
        method = trained(settings, store, p)
    trained_s = time.perf_counter() - began
    result: dict[str, Any] = {
        "steps": settings.steps,
        "batch": settings.batch,
        "training_slices": len(rows),
        "training_patients": len(np.unique(kit.group[rows])),
        "precision": "BF16" if device.type == "cuda" else "FP32",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "kit": kit.sha256,
    }
    method.compute_in(torch.float32)
    for name, patients in (("validation", split.validation), ("test", split.test)):
        rows = scored_rows(kit, patients)
        found = tallies(kit, rows, batch.DeviceKit.of(kit, rows, device), method, settings.size)
        result[name] = {patient: tally.to_json() for patient, tally in found.items()}
    result["seconds"] = [round(trained_s, 1), round(time.perf_counter() - began - trained_s, 1)]
    return result


def read_tallies(stored: dict[str, Any]) -> dict[str, Tally]:
    """The `Tally` s of what `run` returned as ``validation`` or ``test``."""
    return {patient: Tally.from_json(value) for patient, value in stored.items()}
