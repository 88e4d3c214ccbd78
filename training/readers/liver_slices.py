"""Slices with liver masks, unknown pixels and cells: one ``.npz`` a set. training/README.md describes the format."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from training.cases import MAX_CELLS, Case, Scan, unusable
from training.readers.nifti import patient_of_lits
from training.readers.npz import read_arrays
from training.readers.slices import read_grey
from trtseg.errors import InputError

#: What each array holds: in words, and as NumPy's type or one above it.
_COLUMNS = {
    "image8": ("uint8", np.uint8),
    "labels": ("uint8", np.uint8),
    "hu_of_grey": ("float", np.number),
    "tumour_known": ("bool", np.bool_),
    "patient": ("str", np.str_),
    "z": ("int", np.integer),
    "pixel_mm": ("float", np.floating),
    "cells": ("int", np.integer),
}
#: HU that a grey may stand for, and sizes that a pixel may have in mm.
_HU, _PIXEL_MM = (-5000, 5000), (0.05, 10)
#: Sizes of pixels that are alike when rounded so are those of one scan.
_DECIMALS = 3


def liver_slices(root: Path, left_out: Collection[str] = ()) -> list[Case]:
    """Slices with liver masks and cells, as ``*.npz`` but for files with the names ``left_out``.

    A case holds the slices of a patient in a set for which ``tumour_known`` is alike, and ``pixel_mm``: those where the
    first is false are a case of their own, named ``SET-PATIENT-fused``, which does not label tumours, and where there
    are several sizes of a pixel, as of several scans, the name begins with ``SET-PATIENT-MMmm``.
    """
    cases = []
    for path in sorted(root.glob("*.npz")):
        if path.name in left_out:
            continue
        try:
            patient, known, mm = read_arrays(path, ["patient", "tumour_known", "pixel_mm"]).values()
            _check_array(path, "patient", patient, (patient.size,))
            _check_array(path, "tumour_known", known, patient.shape)
            _check_array(path, "pixel_mm", mm, patient.shape)
        except InputError as error:
            cases.append(Case(path.stem, path.stem, "", unusable(str(error))))
            continue
        mm = np.where(np.isnan(mm), 0, mm.round(_DECIMALS))  # 0: nobody knows
        for name in sorted(set(patient.tolist())):
            for labels_tumour in (True, False):
                own = (patient == name) & (known == labels_tumour)
                sizes = np.unique(mm[own])
                for size in sizes:
                    of_size = f"-{size:g}mm" if len(sizes) > 1 else ""
                    cases.append(
                        Case(
                            f"{path.stem}-{name}{of_size}" + ("" if labels_tumour else "-fused"),
                            path.stem,
                            patient_group(name),
                            partial(_read, path, np.flatnonzero(own & (mm == size))),
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
    number = read_arrays(labels, ["case"])["case"]
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
    columns = read_arrays(labels, ["case", "labels", "z"])
    label, z = (columns[name][columns["case"] == number] for name in ("labels", "z"))
    hu = np.stack([read_grey(root / f"case{number:02d}" / f"image_{i:03d}.png") for i in z])
    return Scan(hu, label, (np.nan,) * 3, z.tolist())


@lru_cache(maxsize=1)  # a file is decompressed as a whole, and its cases are asked for in turn
def _arrays(path: Path) -> dict[str, np.ndarray]:
    columns = read_arrays(path)
    _check(path, columns)
    return columns


def _check(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Refuse arrays that are not as training/README.md says."""
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise InputError(f"{path.name}: has no {', '.join(missing)}; see training/README.md for the format")
    image, cells, mm = columns["image8"], columns["cells"], columns["pixel_mm"]
    if image.ndim != 3:
        raise _unlike(path, "image8", f"the shape {image.shape}", "[N, H, W]")
    shapes = {
        "image8": image.shape,
        "labels": image.shape,
        "hu_of_grey": (2,),
        "cells": (*cells.shape[:1], 6),
    }
    for name in _COLUMNS:
        _check_array(path, name, columns[name], shapes.get(name, image.shape[:1]))
    scale, offset = columns["hu_of_grey"].astype(np.float64)
    low, high = sorted((offset, scale * 255 + offset))
    if not (_HU[0] <= low < high <= _HU[1]):
        raise _unlike(
            path, "hu_of_grey", f"HU from {low:g} to {high:g}", f"HU within {list(_HU)}, not all alike"
        )
    if (wrong := mm[~(np.isnan(mm) | ((mm >= _PIXEL_MM[0]) & (mm <= _PIXEL_MM[1])))]).size:
        raise _unlike(
            path, "pixel_mm", f"{wrong[0]:g}", f"mm within {list(_PIXEL_MM)}, or NaN where nobody knows"
        )
    _check_cells(path, cells.astype(np.int64), image.shape)


def _check_array(path: Path, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse an array of another type or shape."""
    words, kind = _COLUMNS[name]
    if not np.issubdtype(array.dtype, kind) or array.shape != shape:
        raise _unlike(path, name, f"{array.dtype} {array.shape}", f"{words} {shape}")


def _check_cells(path: Path, cells: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse cells ``[M, 6]`` that do not lie in a slice of ``[N, H, W]``, lie on one another, or are too many."""
    n, h, w = shape
    row, y0, y1, x0, x1, flag = cells.T
    right = (row >= 0) & (row < n) & (flag >= 0) & (flag <= 2)
    right &= (y0 >= 0) & (y0 < y1) & (y1 <= h) & (x0 >= 0) & (x0 < x1) & (x1 <= w)
    if not right.all():
        raise _unlike(
            path,
            "cells",
            f"{cells[right.argmin()].tolist()}",
            f"a slice of 0 to {n - 1}, 0 <= y0 < y1 <= {h}, 0 <= x0 < x1 <= {w}, and a flag of 0, 1 or 2",
        )
    for i in np.unique(row):
        own = cells[row == i]
        if len(own) > MAX_CELLS:
            raise _unlike(path, "cells", f"{len(own)} in slice {i}", f"at most {MAX_CELLS} a slice")
        first, last = own[:, [1, 3]], own[:, [2, 4]]
        shared = (np.maximum(first[:, None], first) < np.minimum(last[:, None], last)).all(2)
        if pairs := np.argwhere(np.triu(shared, 1)).tolist():
            one, two = (own[k].tolist() for k in pairs[0])
            raise _unlike(path, "cells", f"{one} and {two}", "cells of a slice that do not overlap")


def _unlike(path: Path, name: str, got: str, expected: str) -> InputError:
    return InputError(
        f"{path.name}: {name}: got {got}; expected {expected}; see training/README.md for the format"
    )
