"""Loose slices: LiTS as 8-bit PNG, and CT slices without liver."""

from __future__ import annotations

import json
import re
import zlib
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from training.cases import Case, Scan, check_labels, unusable
from training.readers.npz import read_arrays
from trtseg.errors import InputError

#: Sources under non-commercial licences: weights that are given away must not rest on them.
NOT_TRAINABLE = ("nsclc_lung1_001", "ibsi_pat1_lung", "ricord1a_1012")
#: Sources whose patient validates with a complete CT too: his name there.
_VALIDATES_ELSEWHERE = {"totalseg_pelvis_3mm": "totalseg"}
#: What a file of slices without liver says of each, besides its HU: numbers of a row, none for text.
_NEGATIVE_ROWS = {"spacing_mm": (2,), "valid_box": (4,), "patient": (), "body_part": ()}
#: Of the patients without liver, one in so many is for validation.
_VALIDATION_SHARE = 6


def png_slices(root: Path) -> list[Case]:
    """LiTS slices as ``caseNN/image_ZZZ.png`` and ``label_ZZZ.png``; MANIFEST.json there or above names the patients.

    HU = grey * 400 / 255 - 160, so that values are saturated outside [-160, 240]. The spacing is lost.
    """
    folders = sorted(path for path in root.glob("case*") if path.is_dir())
    if not folders:
        raise InputError(f"{root}: no caseNN with image_ZZZ.png in it; expected the folder lits_slices")
    manifest = next((p for p in (root / "MANIFEST.json", root.parent / "MANIFEST.json") if p.is_file()), None)
    if manifest is None:
        raise InputError(f"{root}: no MANIFEST.json in it or above, which says what cases are of one patient")
    patients = _patients(manifest)
    cases = []
    for folder in folders:
        group = patients.get(f"lits{int(re.sub(r'[^0-9]', '', folder.name) or -1):03d}_png")
        labels = sorted(folder.glob("label_*.png"))
        read = partial(_read_png, labels) if labels else unusable("no labels (label_ZZZ.png)")
        if not group:
            read = unusable(f"{manifest.name} does not say of which patient it is (patient_group)")
        cases.append(Case(folder.name, "lits_png", group or "", read))
    return cases


def _patients(manifest: Path) -> dict[str, str | None]:
    """The patient of each case by its id, None where the manifest does not name one."""
    try:
        return {row["id"]: row.get("patient_group") for row in json.loads(manifest.read_bytes())}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{manifest}: cannot be read ({type(error).__name__}: {error}); expected a list of rows with id and "
            "patient_group"
        ) from error


def _read_png(labels: list[Path]) -> Scan:
    images = {path.name.replace("image", "label") for path in labels[0].parent.glob("image_*.png")}
    if alone := sorted(images ^ {path.name for path in labels}):
        number = alone[0].removeprefix("label_")
        raise InputError(f"of image_{number} and label_{number} one is missing; copy the folder again")
    hu, label = [], []
    for path in labels:
        hu.append(read_grey(path.with_name(path.name.replace("label", "image"))))
        label.append(_read_label(path))
    z = [int(path.stem.removeprefix("label_")) for path in labels]
    return Scan(np.stack(hu), np.stack(label), (np.nan, np.nan, np.nan), z)


def _read_label(path: Path) -> np.ndarray:
    label = _read_8bit(path)
    try:
        check_labels(label, unknown=False)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None
    return label


def read_grey(path: Path) -> np.ndarray:
    """Read an 8-bit PNG slice of LiTS: HU, int16 ``[Y, X]``."""
    return np.rint(_read_8bit(path).astype(np.float32) * 400 / 255 - 160).astype(np.int16)


def _read_8bit(path: Path) -> np.ndarray:
    grey = np.asarray(Image.open(path))
    if grey.dtype != np.uint8 or grey.ndim != 2:
        raise InputError(f"{path.name}: got {grey.dtype} {grey.shape}; expected 8-bit grey")
    return grey


def negatives(root: Path) -> list[Case]:
    """CT slices without liver: ``*.npz`` with hu, spacing_mm, valid_box, patient and body_part a slice.

    Every slice is a case: neighbours in a file need not be neighbours in a patient.
    """
    paths = sorted(root.glob("*.npz"))
    if not paths:
        raise InputError(f"{root}: no .npz in it; expected the slices without liver")
    cases = []
    for path in paths:
        try:
            columns = read_arrays(path, _NEGATIVE_ROWS)
            _check_rows(path, columns)
        except InputError as error:
            cases.append(Case(path.stem, path.stem, "", unusable(str(error))))
            continue
        elsewhere = _VALIDATES_ELSEWHERE.get(path.stem)
        for i, (spacing, box, patient, part) in enumerate(zip(*columns.values(), strict=True)):
            cases.append(
                Case(
                    f"{path.stem}-{i:03d}",
                    path.stem,
                    elsewhere or str(patient),
                    partial(_read_negative, path, i, box.tolist(), spacing.tolist()),
                    trainable=path.stem not in NOT_TRAINABLE,
                    held_out=bool(elsewhere) or zlib.crc32(str(patient).encode()) % _VALIDATION_SHARE == 0,
                    body_part=str(part),
                )
            )
    return cases


def _check_rows(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Refuse a file that does not say the same number of slices everywhere, or does not name a body part."""
    n = columns["patient"].size
    for name, row in _NEGATIVE_ROWS.items():
        if (shape := columns[name].shape) != (n, *row):
            raise InputError(
                f"{path.name}: {name}: got the shape {shape}; expected {(n, *row)}, a row a slice"
            )
    if not (columns["body_part"] != "").all():
        raise InputError(f"{path.name}: body_part: got an empty one; expected what each slice shows")


def _read_negative(path: Path, i: int, box: list[int], spacing: list[float]) -> Scan:
    y0, y1, x0, x1 = box  # what is outside is padding
    pixels = _pixels(path)
    _, h, w = pixels.shape
    if not (0 <= y0 < y1 <= h and 0 <= x0 < x1 <= w):
        raise InputError(f"valid_box: got {box}; expected 0 <= y0 < y1 <= {h} and 0 <= x0 < x1 <= {w}")
    if min(spacing) <= 0:
        raise InputError(f"spacing_mm: got {spacing}; expected mm above 0, or NaN where nobody knows")
    hu = np.ascontiguousarray(pixels[i : i + 1, y0:y1, x0:x1])
    return Scan(hu, np.zeros(hu.shape, np.uint8), (np.nan, spacing[0], spacing[1]), [i])


@lru_cache(maxsize=1)  # a file is decompressed as a whole, and its slices are asked for in turn
def _pixels(path: Path) -> np.ndarray:
    return read_arrays(path, ["hu"])["hu"]
