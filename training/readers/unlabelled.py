"""CT with liver that nobody has labelled, for ``training.pseudo``."""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from trtseg.io.dicom import read_dicom_series


class Unlabelled(NamedTuple):
    """A scan, or some slices of one."""

    name: str
    group: str  # the patient
    hu: np.ndarray  # int16 [Z, Y, X]
    spacing: tuple[float, float]  # mm (y, x)
    z: list[int]  # number of each slice in its source


def unlabelled(shared: Path) -> Iterator[Unlabelled]:
    """The LiTS slices without labels (8-bit PNG), and the scan of TCIA patient CRLM-CT-1006 (DICOM, CC BY 4.0)."""
    rows = {row["id"]: row for row in json.loads((shared / "MANIFEST.json").read_text())}
    for folder in sorted((shared / "lits_slices").glob("case*")):
        images = sorted(folder.glob("image_*.png"))
        if images and not any(folder.glob("label_*.png")):
            grey = np.stack([np.asarray(Image.open(path), np.float32) for path in images])
            hu = np.rint(grey * 400 / 255 - 160).astype(np.int16)
            group = rows[f"lits0{folder.name[-2:]}_png"]["patient_group"]
            yield Unlabelled(folder.name, group, hu, (1, 1), [int(p.stem[-3:]) for p in images])
    with (
        tempfile.TemporaryDirectory() as folder,
        tarfile.open(shared / "crlm1006" / "image.tar.xz") as archive,
    ):
        archive.extractall(folder, filter="data")
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        ct = read_dicom_series(files, ignore_ids=True)
        yield Unlabelled("crlm1006", "CRLM-CT-1006", ct.array, ct.spacing[1:], list(range(len(ct.array))))
