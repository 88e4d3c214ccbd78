"""All labelled cases of the shared data, as ``training.kit`` packs them, and who of them validates."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from training.archive import unpack
from training.cases import Case, Scan
from training.readers.crop import lits_crop
from training.readers.dicom import read_series, scan
from training.readers.liver_slices import labels_of_png_slices, liver_slices
from training.readers.nifti import chaos_nifti, patient_of_lits, read_pair
from training.readers.slices import negatives, png_slices

#: Patients that validate. LiTS 0 and 1 are ``A``, LiTS 28 is ``ircadb-1``. Of the other patients of ``liver_slices``
#: those of 3D-IRCADb-01 (LiTS 29 to 47) whose LiTS number ends in 4 or 9, and those from 14 on whose number ends in 4.
#: Sets whose licence forbids training (FLARE, CHAOS, 3D-IRCADb-01) validate in any case.
VALIDATION = (
    "A",
    "ircadb-1",
    "amos-1",
    "totalseg",
    *(patient_of_lits(n) for n in (29, 34, 39, 44)),
    *(patient_of_lits(n) for n in (14, 24, 54, 64, 74, 84, 94, 104, 114, 124)),
)
#: mm per pixel of the LiTS slices that are stored as PNG of 512x512, by case: PNG have lost it, ``lits256`` knows it.
PNG_MM = (.703, .676, .775, .693, .902, .969, .873, .748, .848, .820, .770, .672, .654, .848)  # fmt: skip
#: Label of the liver in the masks of AMOS.
_AMOS_LIVER = 6
_LABELS_OF_PNG = "labels_of_lits_slices_11_to_13.npz"
#: Sets of ``liver_slices`` that are free for research only: weights that are given away must not rest on them.
_NOT_TRAINABLE = ("flare",)


def shared_cases(shared: Path) -> list[Case]:
    """All labelled cases of the folder that training/README.md describes, those that validate included."""
    slices = shared / "liver_slices"
    cases = png_slices(shared / "lits_slices")
    cases = [case for case in cases if int(case.name[-2:]) < 11]  # the others have no labels there
    cases += labels_of_png_slices(slices / _LABELS_OF_PNG, shared / "lits_slices")
    cases = [replace(case, read=partial(_with_png_mm, case)) for case in cases]
    cases += shared_liver_slices(shared)
    cases = [
        replace(case, read=partial(_with_png_mm, case))
        if case.source in ("lits011", "lits012", "lits013")
        else case
        for case in cases
    ]
    cases += lits_crop(shared / "lits117_128")
    cases += negatives(shared / "negatives")
    cases += chaos_nifti(shared / "chaos3")
    cases += [
        Case("ircadb01", "ircadb01", "ircadb-1", partial(_ircadb01, shared / "ircadb01"), trainable=False),
        Case("amos0001", "amos0001", "amos-1", partial(_amos, shared / "amos0001"), labels_tumour=False),
        Case(
            "totalseg", "totalseg_example", "totalseg", partial(_totalseg, shared / "totalseg_example"),
            labels_tumour=False,
        ),
    ]  # fmt: skip
    return cases


def shared_liver_slices(shared: Path) -> list[Case]:
    """The sets of slices with liver masks and cells of that folder."""
    cases = liver_slices(shared / "liver_slices", left_out=[_LABELS_OF_PNG])
    return [replace(case, trainable=case.source not in _NOT_TRAINABLE) for case in cases]


def _with_png_mm(case: Case) -> Scan:
    scan = case.read()
    mm = PNG_MM[int("".join(c for c in case.name.removesuffix("-fused")[-2:] if c.isdigit()))]
    return scan._replace(spacing=(scan.spacing[0], mm, mm))


def _ircadb01(folder: Path) -> Scan:
    """The CT of patient 1 of 3D-IRCADb-01; its labels are in the order of the file names ``image_N``."""
    labels = np.load(folder / "labels.npz")
    labels = labels[labels.files[0]]
    return _with_files(folder / "PATIENT_DICOM.tar.xz", lambda files: _ircadb01_scan(files, labels))


def _ircadb01_scan(files: list[Path], labels: np.ndarray) -> Scan:
    files = sorted(files, key=lambda path: int(path.name.rsplit("_")[-1]))
    ct, series = read_series(files)
    label = np.zeros(ct.geometry.shape[::-1], np.uint8)
    for plane, index in zip(labels, series.index, strict=True):
        label[index] = plane
    return scan(ct, label)


def _amos(folder: Path) -> Scan:
    return _with_files(folder / "DICOM.tar.xz", _amos_scan)


def _amos_scan(files: list[Path]) -> Scan:
    import pydicom

    images = sorted(path for path in files if path.parent.name == "img")
    masks = {path.name: path for path in files if path.parent.name == "msk"}
    ct, series = read_series(images)
    label = np.zeros(ct.geometry.shape[::-1], np.uint8)
    for path, index in zip(images, series.index, strict=True):
        label[index] = pydicom.dcmread(masks[path.name]).pixel_array == _AMOS_LIVER
    return scan(ct, label)


def _totalseg(folder: Path) -> Scan:
    return read_pair(folder / "example_ct.nii.gz", folder / "example_seg_liver.nii.gz")


def _with_files(archive: Path, read: Callable[[list[Path]], Scan]) -> Scan:
    with tempfile.TemporaryDirectory() as folder:
        unpack(archive, Path(folder))
        return read([path for path in Path(folder).rglob("*") if path.is_file() and path.name[0] != "."])
