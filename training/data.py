"""Real CT slices for training and validation, read through trtseg's own ``prepare``.

Everything is held in memory as ``[N, S, S]`` with ``S`` twice the net's size: augmentation resamples at that size,
and the mean of 2x2 pixels then takes it to the net's grid, just as ``prepare`` averages a 512x512 slice.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trtseg import _core, load
from trtseg.fit import Fit

#: Patients whose slices never take part in training. Group A (LiTS cases 0 and 1) has liver and tumours.
VALIDATION_GROUP = "A"
#: Sources under non-commercial licences: the shipped weights must not rest on them.
VALIDATION_NEGATIVES = ("nsclc_lung1_001", "ibsi_pat1_lung", "ricord1a_1012")


@dataclass(frozen=True)
class Slices:
    """Slices of one subset.

    ``hu`` is int16 ``[N, S, S]``, ``label`` uint8 ``[N, S, S]`` (0, 1 liver, 2 tumour), ``group`` text ``[N]``. A group
    is what must not be split between training and validation: a patient, or for the negatives a source.
    """

    hu: Tensor
    label: Tensor
    group: np.ndarray

    def where(self, keep: np.ndarray) -> Slices:
        """The slices for which ``keep`` (bool ``[N]``) is true."""
        index = torch.from_numpy(np.flatnonzero(keep))
        return Slices(self.hu[index], self.label[index], self.group[keep])


def resize(hu: np.ndarray, spacing: tuple[float, float], size: int) -> np.ndarray:
    """Fit slices ``[n, Y, X]`` onto ``[n, size, size]``, exactly as the cascade does."""
    fit = Fit.whole_field_of_view(hu.shape[1:], spacing, (size, size))
    out = np.empty((len(hu), size, size), np.int16)
    x = np.empty((len(hu), 1, size, size), np.float32)
    _core.prepare(np.ascontiguousarray(hu), fit, (-1000.0, 1000.0), out, x)
    return out


def lits(root: Path, size: int) -> Slices:
    """The labelled LiTS slices: 8-bit PNG with HU = g * 400 / 255 - 160; their labels are 512x512 already."""
    groups = {row["id"]: row.get("patient_group") for row in json.loads((root / "MANIFEST.json").read_text())}
    hu, label, group = [], [], []
    for path in sorted((root / "lits_slices").glob("case*/label_*.png")):
        grey = np.asarray(Image.open(path.with_name(path.name.replace("label", "image"))), np.float32)
        hu.append(resize(np.rint(grey * 400 / 255 - 160).astype(np.int16)[None], (1, 1), size)[0])
        label.append(np.asarray(Image.open(path).resize((size, size), Image.Resampling.NEAREST)))
        group.append(groups[f"lits0{path.parent.name[-2:]}_png"])
    return Slices(torch.from_numpy(np.stack(hu)), torch.from_numpy(np.stack(label)), np.array(group))


def negatives(root: Path, size: int) -> tuple[Slices, np.ndarray]:
    """CT slices without liver, and which are for validation: split by patient, and all that is non-commercial."""
    hu, group, validation = [], [], []
    for path in sorted((root / "negatives").glob("*.npz")):
        with np.load(path) as file:
            for image, spacing, box, patient in zip(
                file["hu"], file["spacing_mm"], file["valid_box"], file["patient"], strict=True
            ):
                y0, y1, x0, x1 = map(int, box)
                hu.append(resize(image[None, y0:y1, x0:x1], (float(spacing[0]), float(spacing[1])), size)[0])
                group.append(path.stem)
                held_out = path.stem in VALIDATION_NEGATIVES or zlib.crc32(str(patient).encode()) % 6 == 0
                validation.append(held_out)
    images = torch.from_numpy(np.stack(hu))
    return Slices(images, torch.zeros_like(images, dtype=torch.uint8), np.array(group)), np.array(validation)


def chaos(root: Path, size: int) -> Slices:
    """The complete CT of a healthy liver, for validation only (non-commercial licence)."""
    volume = load(root / "chaos3" / "volume.nii.gz")
    truth = load_labels(root / "chaos3" / "segmentation.nii.gz", volume.geometry)
    hu = resize(volume.array, volume.spacing[1:], size)
    label = np.stack(
        [np.asarray(Image.fromarray(t).resize((size, size), Image.Resampling.NEAREST)) for t in truth]
    )
    return Slices(torch.from_numpy(hu), torch.from_numpy(label), np.full(len(hu), "chaos3"))


def load_labels(path: Path, geometry) -> np.ndarray:  # type: ignore[no-untyped-def]
    """A label map on the grid of ``geometry``, in canonical order ``[Z, Y, X]``."""
    import nibabel as nib

    labels = np.asanyarray(nib.load(path).dataobj).astype(np.uint8)
    return np.ascontiguousarray(geometry.canonical(labels))


def read(root: Path, size: int) -> tuple[Slices, Slices, dict[str, Slices]]:
    """Liver slices and negatives to train on, and the validation subsets by name."""
    liver = lits(root, size)
    empty, held_out = negatives(root, size)
    own = liver.group == VALIDATION_GROUP
    validation = {
        f"lits_{VALIDATION_GROUP}": liver.where(own),
        "chaos3": chaos(root, size),
        "negatives": empty.where(held_out),
    }
    return liver.where(~own), empty.where(~held_out), validation
