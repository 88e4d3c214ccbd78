"""The CTs of `benchmarks.compare`, as NIfTI files that every contender reads without turning them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import trtseg
from benchmarks import robustness
from benchmarks.compare_table import STACK
from trtseg import models
from trtseg.io.atomic import atomic
from trtseg.metrics.overlap import overlap

NAMES = ("chaos3", "ircadb01", "sample")
STACK_SLICES = 800


def prepare(data: Path, folder: Path, names: list[str], slices: int | None) -> None:
    """Write the CTs that are missing into ``folder``.

    The voxels are those of the source, in the order of DICOM (to the left, to the back, to the head), because nnU-Net
    gives its net the voxels as they are stored. ``slices`` takes that many from the middle. The stack is chaos3 and
    ircadb01 in turns, on the grid of chaos3.
    """
    wanted = {name for name in names if not (folder / f"{name}.nii.gz").exists()}
    stacked = STACK in wanted
    if stacked:
        wanted |= {"chaos3", "ircadb01"}
    if not wanted:
        return
    arrays: dict[str, np.ndarray] = {}
    affines: dict[str, np.ndarray] = {}
    for name, path in robustness.cts(data):
        if name in wanted:
            volume = trtseg.load(path)
            arrays[name], affines[name] = volume.array, volume.affine
            if slices is not None:
                first = max(0, (len(volume.array) - slices) // 2)
                arrays[name] = volume.array[first : first + slices]
            _save(arrays[name], affines[name], folder / f"{name}.nii.gz")
    if stacked:
        both = np.concatenate([arrays["chaos3"], arrays["ircadb01"]])
        whole = np.concatenate([both] * -(-STACK_SLICES // len(both)))[:STACK_SLICES]
        _save(whole, affines["chaos3"], folder / f"{STACK}.nii.gz")


def _save(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    with atomic(path) as (temporary,):
        nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), temporary)


def describe(path: Path, model: str) -> dict[str, Any]:
    """Shape and spacing of a CT, where its patient is (the square of pixels that the nets look at), and whether there
    are several livers, as in the stack.
    """
    volume = trtseg.load(path)
    spec = models.find(model).spec.nets[0]
    fit = spec.fit_volume(volume.array, volume.spacing[1:])
    return {
        "shape": list(volume.array.shape),
        "spacing": [round(mm, 4) for mm in volume.spacing],
        "origin": list(fit.origin),
        "extent": [round(step * n) for step, n in zip(fit.step, fit.net, strict=True)],
        "several_livers": path.name.startswith(STACK),
    }


def labels(path: Path) -> np.ndarray:
    """A label map as it is stored."""
    return np.asanyarray(nib.load(path).dataobj).astype(np.uint8)


def dice(found: np.ndarray, reference: np.ndarray) -> dict[str, float | None]:
    """Dice of the liver (tumours included) and of the tumours; None where the reference has none."""
    scores: dict[str, float | None] = {}
    for name, least in (("liver", 1), ("tumour", 2)):
        a, b = found >= least, reference >= least
        scores[name] = overlap(a, b).dice if b.any() else None
    return scores
