"""LiTS case 117, cropped to its liver and resampled to 128^3: many metastases of one more patient."""

from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path

import numpy as np

from training.cases import Case, Scan
from trtseg.errors import InputError
from trtseg.fit import AIR_HU

_SIDE = 128
#: Where a liver lies on a slice of 384 mm with pixels of 1.5 mm. The crop's own spacing is lost; by the vertebrae it
#: is about that.
_PLACE = (slice(None), slice(50, 50 + _SIDE), slice(25, 25 + _SIDE))
_PIXEL_MM = 1.5


def lits_crop(root: Path) -> list[Case]:
    """LiTS case 117 as ``img_117.mrc.gz`` and ``lab_117.mrc.gz``."""
    if not (root / "img_117.mrc.gz").is_file():
        raise InputError(f"{root}: no img_117.mrc.gz in it; expected the folder lits117_128")
    return [Case("case117", "lits_crop", "lits-117", partial(_read, root))]


def _read(root: Path) -> Scan:
    hu = np.full((_SIDE, 256, 256), AIR_HU, np.int16)
    label = np.zeros(hu.shape, np.uint8)
    hu[_PLACE] = np.rint(_mrc(root / "img_117.mrc.gz", np.float32).clip(AIR_HU, 3000))
    drawn = _mrc(root / "lab_117.mrc.gz", np.uint16)
    if drawn.max() > 2:
        raise InputError(f"lab_117.mrc.gz: labels: got {drawn.max()}; expected 0, 1 and 2")
    label[_PLACE] = drawn
    return Scan(hu, label, (np.nan, _PIXEL_MM, _PIXEL_MM), range(_SIDE))


def _mrc(path: Path, dtype: type) -> np.ndarray:
    """Voxels of an MRC file, stored ``[x, y, z]`` after a header of 1024 bytes, as ``[Z, Y, X]``."""
    with gzip.open(path) as file:
        data = file.read()
    expected = 1024 + _SIDE**3 * np.dtype(dtype).itemsize
    if len(data) != expected:
        raise InputError(
            f"{path.name}: got {len(data)} bytes; expected {expected}, 128^3 of {np.dtype(dtype)}"
        )
    return np.frombuffer(data, dtype, offset=1024).reshape(_SIDE, _SIDE, _SIDE).transpose(2, 1, 0)
