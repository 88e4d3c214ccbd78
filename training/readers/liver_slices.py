"""Slices with liver masks, unknown pixels and cells: one ``.npz`` a set. training/README.md describes the format."""

from __future__ import annotations

import re
import zipfile
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from training.cases import Case, Scan, unusable
from training.readers.nifti import patient_of_lits
from training.readers.slices import read_grey
from trtseg.errors import InputError

_COLUMNS = ("image8", "labels", "hu_of_grey", "tumour_known", "patient", "z", "pixel_mm", "cells")
#: Sets whose labels are free for research only: weights that are given away must not rest on them.
_NOT_TRAINABLE = ("flare",)


def liver_slices(root: Path) -> list[Case]:
    """Slices with liver masks and cells, as ``*.npz``.

    A case holds the slices of a patient in a set for which ``tumour_known`` is alike: those where it is false are a
    case of their own, named ``SET-PATIENT-fused``, which does not label tumours.
    """
    cases = []
    for path in sorted(root.glob("*.npz")):
        if path.stem.startswith("labels_of_"):
            continue
        try:
            with np.load(path) as file:
                patient, known = file["patient"], file["tumour_known"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            cases.append(Case(path.stem, path.stem, "", unusable(f"cannot be read ({error})")))
            continue
        for name in sorted(set(patient.tolist())):
            for labels_tumour in (True, False):
                rows = np.flatnonzero((patient == name) & (known == labels_tumour))
                if len(rows):
                    cases.append(
                        Case(
                            f"{path.stem}-{name}" + ("" if labels_tumour else "-fused"),
                            path.stem,
                            patient_group(name),
                            partial(_read, path, rows),
                            trainable=path.stem not in _NOT_TRAINABLE,
                            labels_tumour=labels_tumour,
                        )
                    )
    if not cases:
        raise InputError(f"{root}: no .npz in it; expected slices with liver masks")
    return cases


def labels_of_png_slices(labels: Path, root: Path) -> list[Case]:
    """Liver masks of LiTS slices that come as PNG without labels: ``labels_of_lits_slices_11_to_13.npz``.

    Parameters
    ----------
    labels : Path
        ``.npz`` with ``case``, ``z`` and ``labels``.
    root : Path
        Folder with the images, ``caseNN/image_ZZZ.png``.
    """
    with np.load(labels) as file:
        number = file["case"]
    return [
        Case(
            f"case{n:02d}", "lits_png", patient_of_lits(int(n)), partial(_read_png, labels, root, int(n)),
            labels_tumour=False,
        )
        for n in np.unique(number)
    ]  # fmt: skip


def patient_group(name: str) -> str:
    """The patient's name in all data sets: ``LiTS29`` is patient 2 of 3D-IRCADb-01, ``ircadb-2``."""
    number = re.fullmatch(r"LiTS(\d+)", name)
    return patient_of_lits(int(number[1])) if number else name


def _read(path: Path, rows: np.ndarray) -> Scan:
    columns = _arrays(path)
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise InputError(f"{path.name}: has no {', '.join(missing)}; see training/README.md for the format")
    scale, offset = columns["hu_of_grey"]
    mm = columns["pixel_mm"][rows]
    cells = columns["cells"]
    own = np.isin(cells[:, 0], rows)
    cells = cells[own].astype(np.int32)
    cells[:, 0] = np.searchsorted(rows, cells[:, 0])
    hu = np.rint(columns["image8"][rows] * scale + offset).astype(np.int16)
    spacing = float(np.median(mm)) if np.isfinite(mm).all() else np.nan
    z = columns["z"][rows].tolist()
    return Scan(hu, columns["labels"][rows], (np.nan, spacing, spacing), z, cells=cells)


def _read_png(labels: Path, root: Path, number: int) -> Scan:
    with np.load(labels) as file:
        own = file["case"] == number
        label, z = file["labels"][own], file["z"][own].tolist()
    hu = np.stack([read_grey(root / f"case{number:02d}" / f"image_{i:03d}.png") for i in z])
    return Scan(hu, label, (np.nan,) * 3, z)


@lru_cache(maxsize=1)  # a file is decompressed as a whole, and its cases are asked for in turn
def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
