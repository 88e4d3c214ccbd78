"""Tiny data sets in the layouts that `training.readers` knows, made of a phantom."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_made import instance, save
from PIL import Image
from pydicom.uid import generate_uid

from training.cases import Case, Scan, read_checked
from trtseg.errors import InputError
from trtseg.phantom import Phantom, abdomen

SPACING = (40.0, 8.0, 7.0)  # (z, y, x) mm


@cache
def phantom(seed: int) -> Phantom:
    """6 slices of 40 x 52 pixels; liver in some, tumour in some of those."""
    return abdomen(shape=(6, 40, 52), spacing=SPACING, seed=seed, lesions=2)


def save_nifti(path: Path, volume: np.ndarray, order: str = "LPS", affine: np.ndarray | None = None) -> None:
    """Write a canonical volume ``[Z, Y, X]``, or labels, with its axes stored in ``order``.

    ``order`` names where index i, j and k run to; canonical x, y and z run to L, P and S.
    """
    affine = phantom(0).affine if affine is None else affine
    names = ("RL", "AP", "IS")
    axes = [next(n for n, pair in enumerate(names) if letter in pair) for letter in order]
    array = volume.transpose(2, 1, 0).transpose(axes)  # [i, j, k]
    stored = np.zeros((4, 4))
    stored[3, 3], stored[:3, 3] = 1, affine[:3, 3]
    for i, (axis, letter) in enumerate(zip(axes, order, strict=True)):
        step = affine[:3, axis]
        if letter not in "LPS":
            array = np.flip(array, i)
            stored[:3, 3] += step * (array.shape[i] - 1)
            step = -step
        stored[:3, i] = step
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array), stored), path)


def save_without_geometry(
    path: Path, volume: np.ndarray, order: str = "RAS", affine: np.ndarray | None = None
) -> None:
    """Write a canonical volume with its axes stored in ``order``, whatever the header says: identity, or ``affine``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flips = tuple(slice(None, None, 1 if a in "LPS" else -1) for a in order)
    array = np.ascontiguousarray(volume.transpose(2, 1, 0)[flips])
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def lits(root: Path, numbers: range | list[int], ending: str = ".nii") -> Path:
    """``volume-N`` and ``segmentation-N`` of `phantom` N."""
    for n in numbers:
        save_nifti(root / f"volume-{n}{ending}", phantom(n).ct)
        save_nifti(root / f"segmentation-{n}{ending}", phantom(n).labels)
    return root


def msd(root: Path, numbers: range | list[int], order: str = "LPS") -> Path:
    """``imagesTr/liver_N.nii.gz`` and ``labelsTr/liver_N.nii.gz`` of `phantom` N, and what a Mac leaves beside."""
    for n in numbers:
        save_nifti(root / f"imagesTr/liver_{n}.nii.gz", phantom(n).ct, order)
        save_nifti(root / f"labelsTr/liver_{n}.nii.gz", phantom(n).labels, order)
        (root / f"imagesTr/._liver_{n}.nii.gz").write_bytes(b"\0")
    labels = {"0": "background", "1": "liver", "2": "cancer"}
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return root


def save_dicom(
    path: Path, pixels: np.ndarray, z: float | None, intercept: int = 0, series: str | None = None
) -> None:
    """Write a slice as stored values, ``pixels`` less ``intercept``; without ``z`` it has no place.

    Without ``series`` each file has a series id of its own, as in careless anonymous copies.
    """
    stored = (pixels.astype(np.int32) - intercept).astype(np.uint16 if intercept else np.int16)
    absent = ["ImageType", "PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"]
    absent += [] if z is not None else ["ImagePositionPatient", "ImageOrientationPatient"]
    dataset = instance(
        stored,
        z or 0.0,
        SeriesInstanceUID=series or generate_uid(),
        PixelSpacing=list(SPACING[1:]),
        SliceThickness=99,  # never to be believed
        RescaleIntercept=intercept,
        **dict.fromkeys(absent),
    )
    save(path, dataset)


def ircadb(root: Path, number: int = 1, seed: int = 0) -> Path:
    """3D-IRCADb-01: files without ending, names in no order of the slices, tumours and cysts in folders."""
    scan, case = phantom(seed), root / f"3Dircadb1.{number}"
    first, second = (
        (scan.labels == 2) & (np.arange(52) % 2 == 0),
        (scan.labels == 2) & (np.arange(52) % 2 == 1),
    )
    masks = {"liver": scan.labels == 1, "livertumor01": first, "livertumors2": second}
    masks |= {
        "liverkyst": scan.labels == 1,
        "leftkidney": np.ones_like(first),
        "livervessel": np.ones_like(first),
    }
    for i, z in enumerate((3, 0, 5, 1, 4, 2)):
        save_dicom(case / f"PATIENT_DICOM/image_{i}", scan.ct[z], z * SPACING[0])
        for name, mask in masks.items():
            save_dicom(case / f"MASKS_DICOM/{name}/image_{i}", mask[z] * 255, z * SPACING[0])
    return root


def chaos(
    root: Path, number: int = 7, seed: int = 0, names: tuple[int, ...] = (5, 4, 3, 2, 1, 0), digits: int = 4
) -> Path:
    """CHAOS CT: slice z is file ``names[z]`` (head to foot by default), and so is its mask."""
    scan, case = phantom(seed), root / f"Train_Sets/CT/{number}"
    (case / "Ground").mkdir(parents=True)
    for z, name in enumerate(names):
        save_dicom(
            case / f"DICOM_anon/i{name:0{digits}d},0000b.dcm",
            scan.ct[z],
            100 + z * SPACING[0],
            intercept=-1024,
        )
        Image.fromarray(scan.labels[z] > 0).save(case / f"Ground/liver_GT_{name:03d}.png")
    save_dicom(root / "Train_Sets/MR/7/T2SPIR/DICOM_anon/IMG.dcm", scan.ct[0], 0)
    return root


def png_slices(root: Path, groups: dict[int, str | None]) -> Path:
    """``lits_slices`` with two slices a case, grey ``z * 50 + case`` in the first row; no labels without a group."""
    folder, rows = root / "lits_slices", []
    for case, group in groups.items():
        (folder / f"case{case:02d}").mkdir(parents=True)
        rows.append({"id": f"lits{case:03d}_png", "patient_group": group or "Z"})
        for z in (3, 12):
            scan = phantom(case)
            grey = np.clip((scan.ct[z % 6].astype(float) + 160) * 255 / 400, 0, 255).round().astype(np.uint8)
            grey[0] = z * 20 + case
            Image.fromarray(grey).save(folder / f"case{case:02d}/image_{z:03d}.png")
            if group:
                Image.fromarray(scan.labels[z % 6]).save(folder / f"case{case:02d}/label_{z:03d}.png")
    (root / "MANIFEST.json").write_text(json.dumps(rows))
    return folder


def negatives(root: Path, patients: dict[str, list[str]]) -> Path:
    """``negatives`` with a slice for each patient named for a file; row and column 0 are padding."""
    folder = root / "negatives"
    folder.mkdir(parents=True)
    for number, (name, own) in enumerate(patients.items()):
        hu = np.stack([phantom(100 + number).ct[i % 6] + np.int16(i) for i in range(len(own))])
        np.savez(
            folder / f"{name}.npz",
            hu=hu,
            spacing_mm=np.array([[2.0 + i, 3.0] for i in range(len(own))], np.float32),
            valid_box=np.array([[1, 40, 1, 52]] * len(own), np.int16),
            patient=own,
            body_part=["pelvis"] * len(own),
        )
    return folder


def crop(root: Path) -> Path:
    """``lits117_128``: an empty 128^3 cube of 50 HU."""
    folder = root / "lits117_128"
    folder.mkdir(parents=True)
    for name, voxels in (("img", np.full(128**3, 50, np.float32)), ("lab", np.zeros(128**3, np.uint16))):
        (folder / f"{name}_117.mrc.gz").write_bytes(gzip.compress(bytes(1024) + voxels.tobytes(), 1))
    return folder


def case(name, group, seed=0, read=None, **fields):
    """A case that gives a phantom."""
    scan = phantom(seed)
    return Case(
        name,
        fields.pop("source", "lits"),
        group,
        read or (lambda: Scan(scan.ct, scan.labels, SPACING, range(6))),
        **fields,
    )


def lesions_case(group: str, source: str = "phantom") -> Case:
    """A patient of eight slices with lesions, who is named by a letter."""
    made = abdomen(shape=(8, 64, 64), spacing=(20.0, 6.0, 6.0), seed=ord(group), lesions=3)
    return Case(group, source, group, lambda: Scan(made.ct, made.labels, (20.0, 6.0, 6.0), range(8)))


def check(scan: Scan, seed: int, labels: np.ndarray | None = None) -> None:
    """A scan is the phantom that it was written from, exactly."""
    assert (scan.hu == phantom(seed).ct).all()
    assert (scan.label == (phantom(seed).labels if labels is None else labels)).all()
    assert scan.spacing == pytest.approx(SPACING)
    assert list(scan.z) == list(range(6))


def refusal(case: Case) -> str:
    """Why a case cannot be used."""
    with pytest.raises(InputError) as error:
        read_checked(case)
    return str(error.value)
