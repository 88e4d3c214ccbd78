"""DICOM data sets: 3D-IRCADb-01 and the CT of CHAOS. Both have non-commercial licences, so they only validate."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from training.cases import Case, Scan, notes_of
from trtseg.errors import InputError
from trtseg.io.dicom import DicomSeries, check_installed, read_dicom_series
from trtseg.volume import Volume

# IRCADb's names of the folders. Cysts ("liverkyst" there) are part of the liver and no tumours.
_LIVER = re.compile(r"liver|liver[ck]yst.*")
_TUMOUR = re.compile(r"livertumo.*")
_MAX_OFF_MM = 0.01


def ircadb(root: Path) -> list[Case]:
    """3D-IRCADb-01: ``3Dircadb1.N/PATIENT_DICOM/*`` and ``3Dircadb1.N/MASKS_DICOM/{liver,livertumor*,...}/*``."""
    check_installed()
    folders = _numbered(root, "PATIENT_DICOM", r"3Dircadb1\.(\d+)")
    if not folders:
        raise InputError(
            f"{root}: no 3Dircadb1.N/PATIENT_DICOM in it; unpack the archives inside 3D-IRCADb-01 too"
        )
    return [
        Case(
            f"3Dircadb1.{n}", "ircadb", f"ircadb-{n}", partial(_read_ircadb, folder), trainable=False, dicom=True
        )
        for n, folder in folders
    ]  # fmt: skip


def chaos(root: Path) -> list[Case]:
    """The CT of CHAOS: ``N/DICOM_anon/*.dcm`` and ``N/Ground/*.png``; the truth knows the liver only."""
    check_installed()
    folders = _numbered(root, "DICOM_anon", r"(\d+)")
    if not folders:
        raise InputError(f"{root}: no N/DICOM_anon in it; expected the folder CT of CHAOS's Train_Sets")
    return [
        Case(
            f"chaos{n}", "chaos", f"chaos-{n}", partial(_read_chaos, folder),
            trainable=False, labels_tumour=False, dicom=True,
        )
        for n, folder in folders
    ]  # fmt: skip


def read_series(files: list[Path]) -> tuple[Volume, DicomSeries]:
    """Read the files of one folder as one series: anonymised copies have ids that differ, or none at all."""
    ct = read_dicom_series(files, ignore_ids=True)
    return ct, ct.geometry.source


def scan(ct: Volume, label: np.ndarray) -> Scan:
    """Put labels ``[slice, row, column]`` beside the CT whose stored slices they belong to."""
    label = np.ascontiguousarray(ct.geometry.canonical(label.T))
    return Scan(ct.array, label, ct.spacing, range(len(label)), notes_of(ct))


def _read_ircadb(folder: Path) -> Scan:
    files = _files(folder / "PATIENT_DICOM")
    ct, series = read_series(files)
    label = np.zeros(ct.geometry.shape[::-1], np.uint8)
    masks = {path.name.lower(): path for path in sorted((folder / "MASKS_DICOM").glob("*")) if path.is_dir()}
    if list(masks) == ["masks_dicom"]:  # unpacked into a folder of the archive's name
        masks = {path.name.lower(): path for path in sorted(masks["masks_dicom"].glob("*")) if path.is_dir()}
    if "liver" not in masks:
        raise InputError(f"no MASKS_DICOM/liver, only {', '.join(masks) or 'nothing'}; unpack MASKS_DICOM")
    for value, pattern in ((1, _LIVER), (2, _TUMOUR)):
        for name, mask in masks.items():
            if pattern.fullmatch(name):
                _draw(label, value, mask, series)
    return scan(ct, label)


def _draw(label: np.ndarray, value: int, folder: Path, series: DicomSeries) -> None:
    """Write ``value`` into ``label`` where the masks of a folder are set: one mask a slice, of the same file name."""
    import pydicom

    masks = {path.name: path for path in _files(folder)}
    if set(masks) != {path.name for path in series.files}:
        raise InputError(
            f"MASKS_DICOM/{folder.name} has other file names than PATIENT_DICOM; which slice is which?"
        )
    for path, index, one in zip(series.files, series.index, series.slices, strict=True):
        dataset = pydicom.dcmread(masks[path.name])
        own = dataset.get("ImagePositionPatient")
        if own is not None and np.abs(np.array(own, float) - one.position).max() > _MAX_OFF_MM:
            raise InputError(
                f"MASKS_DICOM/{folder.name}/{path.name} lies at {[float(x) for x in own]}, its image elsewhere"
            )
        label[index][_binary(dataset.pixel_array, label.shape[1:], folder.name)] = value


def _read_chaos(folder: Path) -> Scan:
    files = [path for path in _files(folder / "DICOM_anon") if path.suffix.lower() == ".dcm"]
    masks = [path for path in _files(folder / "Ground") if path.suffix.lower() == ".png"]
    if len(files) != len(masks) or not files:
        raise InputError(
            f"{len(files)} slices in DICOM_anon and {len(masks)} masks in Ground; expected as many"
        )
    ct, series = read_series(files)
    # Masks and slices belong together in the order of their names, if that order is an order in space too.
    if list(series.index) not in (sorted(series.index), sorted(series.index, reverse=True)):
        raise InputError(
            "the names in DICOM_anon are not in the order of the slices; which mask belongs to which?"
        )
    label = np.zeros(ct.geometry.shape[::-1], np.uint8)
    for mask, index in zip(masks, series.index, strict=True):
        label[index] = _binary(np.asarray(Image.open(mask)), label.shape[1:], mask.name)
    return scan(ct, label)


def _binary(mask: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    if mask.shape != shape:
        raise InputError(f"shape mismatch: the mask {name} is {mask.shape}, the slices are {shape}")
    if not np.isin(mask, (0, mask.max())).all():
        raise InputError(f"the mask {name} holds {np.unique(mask)[:5]}; expected 0 and one other value")
    return mask != 0


def _files(folder: Path) -> list[Path]:
    """The files of a folder, in the order of their names but for leading zeros, without hidden files."""
    files = [path for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")]
    if not files and (folder / folder.name).is_dir():  # unpacked into a folder of the archive's name
        return _files(folder / folder.name)
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key: image_2 before image_10."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d*)", path.name)]


def _numbered(root: Path, below: str, pattern: str) -> list[tuple[int, Path]]:
    """Folders that hold a folder ``below`` and whose name matches, with the number in it, sorted by that."""
    parents = {path.parent for path in root.rglob(below) if path.is_dir()}
    found = [(int(m[1]), folder) for folder in parents if (m := re.fullmatch(pattern, folder.name))]
    return sorted(found)
