"""Real CT slices for training and validation, read through trtseg's own ``prepare``.

Everything is held in memory as ``[N, S, S]`` with ``S`` twice the net's size: augmentation resamples at that size,
and the mean of 2x2 pixels then takes it to the net's grid, just as ``prepare`` averages a 512x512 slice.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trtseg import _core, load
from trtseg.fit import Fit
from trtseg.volume import Geometry

#: Patients whose slices never take part in training. Group A (LiTS cases 0 and 1) has liver and tumours.
VALIDATION_GROUP = "A"
#: Sources under non-commercial licences: the shipped weights must not rest on them.
VALIDATION_NEGATIVES = ("nsclc_lung1_001", "ibsi_pat1_lung", "ricord1a_1012")


@dataclass(frozen=True)
class Slices:
    """Slices of one subset.

    ``hu`` is int16 ``[N, S, S]``, ``label`` uint8 ``[N, S, S]`` (0, 1 liver, 2 tumour). ``case`` and ``group`` name for
    each slice the scan or patient that it is of, and what is drawn alike in training: the patient, or for slices
    without liver the source.
    """

    hu: Tensor
    label: Tensor
    case: np.ndarray
    group: np.ndarray

    def where(self, keep: np.ndarray) -> Slices:
        """The slices for which ``keep`` (bool ``[N]``) is true."""
        index = torch.from_numpy(np.flatnonzero(keep))
        return Slices(self.hu[index], self.label[index], self.case[keep], self.group[keep])


def resize(hu: np.ndarray, spacing: tuple[float, float], size: int) -> np.ndarray:
    """Fit slices ``[n, Y, X]`` onto ``[n, size, size]``, two pixels where the cascade's grid has one."""
    fit = Fit.whole_field_of_view(hu.shape[1:], spacing, (size // 2, size // 2))
    fit = Fit(
        fit.native,
        (size, size),
        (fit.step[0] / 2, fit.step[1] / 2),
        (fit.offset[0] * 2, fit.offset[1] * 2),
        (fit.extent[0] * 2, fit.extent[1] * 2),
    )
    out = np.empty((len(hu), size, size), np.int16)
    x = np.empty((len(hu), 1, size, size), np.float32)
    _core.prepare(np.ascontiguousarray(hu), fit, (-1000.0, 1000.0), out, x)
    return out


def lits(root: Path, size: int) -> Slices:
    """The labelled LiTS slices: 8-bit PNG with HU = g * 400 / 255 - 160; their labels are 512x512 already."""
    groups = {row["id"]: row.get("patient_group") for row in json.loads((root / "MANIFEST.json").read_text())}
    hu, label, case, group = [], [], [], []
    for path in sorted((root / "lits_slices").glob("case*/label_*.png")):
        grey = np.asarray(Image.open(path.with_name(path.name.replace("label", "image"))), np.float32)
        hu.append(resize(np.rint(grey * 400 / 255 - 160).astype(np.int16)[None], (1, 1), size)[0])
        label.append(np.asarray(Image.open(path).resize((size, size), Image.Resampling.NEAREST)))
        case.append(path.parent.name)
        group.append(groups[f"lits0{path.parent.name[-2:]}_png"])
    return Slices(
        torch.from_numpy(np.stack(hu)), torch.from_numpy(np.stack(label)), np.array(case), np.array(group)
    )


class Negative(NamedTuple):
    """A CT slice without liver."""

    hu: np.ndarray  # int16 [Y, X], without padding
    spacing: tuple[float, float]  # (sy, sx) mm
    patient: str
    source: str
    body_part: str
    held_out: bool  # for validation: split by patient, and all that is non-commercial


def read_negatives(root: Path) -> Iterator[Negative]:
    """Every CT slice without liver, at its own size."""
    for path in sorted((root / "negatives").glob("*.npz")):
        with np.load(path) as file:
            columns = ("hu", "spacing_mm", "valid_box", "patient", "body_part")
            for hu, spacing, box, patient, part in zip(*(file[c] for c in columns), strict=True):
                y0, y1, x0, x1 = map(int, box)
                held_out = path.stem in VALIDATION_NEGATIVES or zlib.crc32(str(patient).encode()) % 6 == 0
                yield Negative(
                    hu[y0:y1, x0:x1],
                    (float(spacing[0]), float(spacing[1])),
                    str(patient),
                    path.stem,
                    str(part),
                    held_out,
                )


def negatives(root: Path, size: int, *, held_out: bool) -> Slices:
    """The slices without liver that are for validation, or those that are not."""
    chosen = [n for n in read_negatives(root) if n.held_out == held_out]
    hu = torch.from_numpy(np.stack([resize(n.hu[None], n.spacing, size)[0] for n in chosen]))
    return Slices(
        hu,
        torch.zeros_like(hu, dtype=torch.uint8),
        np.array([n.patient for n in chosen]),
        np.array([n.source for n in chosen]),
    )


def chaos(root: Path, size: int) -> Slices:
    """The complete CT of a healthy liver, for validation only (non-commercial licence)."""
    volume = load(root / "chaos3" / "volume.nii.gz")
    truth = load_labels(root / "chaos3" / "segmentation.nii.gz", volume.geometry)
    hu = resize(volume.array, volume.spacing[1:], size)
    label = np.stack(
        [np.asarray(Image.fromarray(t).resize((size, size), Image.Resampling.NEAREST)) for t in truth]
    )
    name = np.full(len(hu), "chaos3")
    return Slices(torch.from_numpy(hu), torch.from_numpy(label), name, name)


def load_labels(path: Path, geometry: Geometry) -> np.ndarray:
    """A label map on the grid of ``geometry``, in canonical order ``[Z, Y, X]``."""
    import nibabel as nib

    labels = np.asanyarray(nib.load(path).dataobj).astype(np.uint8)
    return np.ascontiguousarray(geometry.canonical(labels))


def read(root: Path, size: int) -> tuple[Slices, Slices, dict[str, Slices]]:
    """Liver slices and negatives to train on, and the validation subsets by name."""
    liver = lits(root, size)
    own = liver.group == VALIDATION_GROUP
    validation = {
        f"lits_{VALIDATION_GROUP}": liver.where(own),
        "chaos3": chaos(root, size),
        "negatives": negatives(root, size, held_out=True),
    }
    return liver.where(~own), negatives(root, size, held_out=False), validation
