"""Results of which a test knows which labels belong to which DICOM file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from dicom_made import instance, save

from trtseg.io.dicom import read_dicom_series
from trtseg.phantom import abdomen
from trtseg.result import Segmentation
from trtseg.volume import Geometry

SHAPE = (7, 44, 50)  # pixels are no multiple of 8, nor are columns
STEP, SPACING = 12.0, (8.0, 7.0)
MADE = {
    "model": "test",
    "model_version": "1.2",
    "device": "cpu",
    "precision": "fp32",
    "fingerprint": "0123456789abcdef",
    "versions": {"trtseg": "0.0"},
}
T = np.radians(12)
TURN = np.array([[1, 0, 0], [0, np.cos(T), -np.sin(T)], [0, np.sin(T), np.cos(T)]])
# Directions of rows, of columns, and of slices, LPS.
AXIAL = np.eye(3)
WAYS = {
    "axial": (AXIAL[0], AXIAL[1], AXIAL[2]),
    "rows from the back": (AXIAL[0], -AXIAL[1], -AXIAL[2]),
    "columns from the left": (-AXIAL[0], AXIAL[1], -AXIAL[2]),
    "oblique": tuple(TURN.T),
    "tilted gantry": (TURN[:, 0], TURN[:, 1], AXIAL[2]),
    "coronal": (AXIAL[0], -AXIAL[2], AXIAL[1]),
}


@dataclasses.dataclass
class Case:
    """A series of which the test knows which labels belong to which file."""

    result: Segmentation
    uids: list[str]  # of each file
    labels: np.ndarray  # of each file, [n, row, column]
    points: np.ndarray  # of the centres of its voxels, LPS mm, [n, row, column, 3]


def phantom_labels(shape) -> tuple[np.ndarray, np.ndarray]:
    """A CT and labels with three lesions; one of them on one slice, one on all."""
    ct = abdomen(shape, (STEP, *SPACING)).ct
    labels = np.zeros(shape, np.uint8)
    labels[1:-1, 10:30, 5:30] = 1
    labels[1:-1, 12:16, 8:11] = 2
    labels[3, 20:23, 12:20] = 2
    labels[3:5, 26:28, 20:23] = 2
    return ct, labels


def make(folder: Path, way: str, **attributes: object) -> Case:
    """Write the phantom as a series, in no order, and measure its labels."""
    along_row, along_column, along_slices = WAYS[way]
    steps = np.stack([along_slices * STEP, along_column * SPACING[0], along_row * SPACING[1]], 1)
    count = {"coronal": (44, 7, 50)}.get(way, SHAPE)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.diag([-1, -1, 1]) @ steps, (20, -30, 40)
    geometry = Geometry.from_affine(count, affine)
    ct, labels = phantom_labels(geometry.canonical_shape)
    stored, expected = geometry.restore(ct), geometry.restore(labels)
    origin = np.diag([-1, -1, 1]) @ affine[:3, 3]
    order = np.random.default_rng(0).permutation(count[0])
    uids, files, grid = [], [], np.indices(count[1:])
    for n, k in enumerate(order):
        position = origin + steps[:, 0] * k
        slice_ = instance(
            stored[k],
            ImagePositionPatient=[f"{mm:.8g}" for mm in position],
            ImageOrientationPatient=[f"{c:.10g}" for c in (*along_row, *along_column)],
            **attributes,
        )
        uids.append(slice_.SOPInstanceUID)
        files.append(save(folder / f"{n}", slice_))
    volume = read_dicom_series(files)
    assert np.array_equal(volume.array, ct)
    points = np.stack(
        [(origin + steps[:, 0] * k)[:, None, None] + np.tensordot(steps[:, 1:], grid, 1) for k in order]
    )
    result = Segmentation.measure(labels, volume, provenance=MADE)
    return Case(result, uids, expected[order], np.moveaxis(points, 1, -1))
