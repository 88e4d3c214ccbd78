"""NIfTI data sets: LiTS, the Medical Segmentation Decathlon's Task03_Liver, and one CHAOS case as NIfTI."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from training.cases import Case, Scan, notes_of, unusable
from trtseg import load
from trtseg.errors import InputError
from trtseg.volume import Geometry, Volume, spacing_mm

#: LiTS numbers known to be of one patient: follow-ups, recognised by eye. A to I are the names that the manifest of
#: the 8-bit slices of the same scans uses.
PATIENT_OF_LITS = dict(zip(range(14), "AABCDEFFFFFGHI", strict=True))
# These LiTS scans are those of 3D-IRCADb-01. One published comparison leaves out 45, so that 46 to 48 would be its
# patients 18 to 20. With 48 in the group of 47, no patient both trains and validates, whichever is right.
PATIENT_OF_LITS |= {n: f"ircadb-{n - 27}" for n in range(28, 48)} | {48: "ircadb-20"}

_NO_GEOMETRY = "the header is an identity matrix"
#: Labels may lie off the image by less than this share of a voxel.
_MAX_SHIFT = 0.1


def lits(root: Path) -> list[Case]:
    """LiTS: ``volume-N.nii[.gz]`` and ``segmentation-N.nii[.gz]``, in one folder or in folders below it."""
    volumes = _numbered(root.rglob("*"), r"volume-(\d+)\.nii(\.gz)?")
    labels = _numbered(root.rglob("*"), r"segmentation-(\d+)\.nii(\.gz)?")
    if not volumes:
        raise InputError(
            f"{root}: no volume-N.nii or volume-N.nii.gz in it; expected the LiTS training volumes"
        )
    return [
        Case(f"volume-{n}", "lits", patient_of_lits(n), _reader(f"volume-{n}", volumes[n], labels[n]))
        for n in sorted({*volumes, *labels})
    ]


def msd(root: Path) -> list[Case]:
    """MSD Task03_Liver: ``imagesTr/liver_N.nii.gz`` and ``labelsTr/liver_N.nii.gz``. It holds the scans of LiTS."""
    if (root / "Task03_Liver").is_dir():
        root = root / "Task03_Liver"
    about = root / "dataset.json"
    if about.is_file():
        names = _names_of_labels(about)
        if names.get("1") != "liver" or names.get("2") not in ("cancer", "tumour", "tumor"):
            raise InputError(
                f"{about}: its labels are {names}; expected 1 liver and 2 cancer, as in Task03_Liver"
            )
    volumes = _numbered((root / "imagesTr").glob("*"), r"liver_(\d+)\.nii(\.gz)?")
    labels = _numbered((root / "labelsTr").glob("*"), r"liver_(\d+)\.nii(\.gz)?")
    if not volumes:
        raise InputError(f"{root}: no imagesTr/liver_N.nii.gz in it; expected the folder Task03_Liver")
    return [
        Case(f"liver_{n}", "msd", patient_of_lits(n), _reader(f"liver_{n}", volumes[n], labels[n]))
        for n in sorted({*volumes, *labels})
    ]


def _names_of_labels(about: Path) -> dict[str, str]:
    try:
        names = json.loads(about.read_bytes())["labels"]
        return {str(label): str(name) for label, name in names.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{about}: names no labels ({error!r}); expected the file of the Medical Segmentation Decathlon"
        ) from error


def chaos_nifti(folder: Path) -> list[Case]:
    """Set 3 of CHAOS (non-commercial licence) as ``volume.nii.gz`` and ``segmentation.nii.gz``; liver only."""
    read = partial(read_pair, folder / "volume.nii.gz", folder / "segmentation.nii.gz")
    return [Case("chaos3", "chaos", "chaos-3", read, trainable=False, labels_tumour=False)]


def read_pair(volume: Path, labels: Path) -> Scan:
    """Read an image and its labels, which must lie on the same grid; nothing is moved to fit."""
    return _read_on_grid(load(volume), labels)


def _read_on_grid(ct: Volume, labels: Path) -> Scan:
    label = load_labels(labels, ct.geometry)
    return Scan(ct.array, label, ct.spacing, range(len(ct.array)), notes_of(ct))


def _read_lits(volume: Path, labels: Path) -> Scan:
    """Read a case of LiTS; an identity matrix, which its cases 28 to 47 have as affine, is not taken for millimetres.

    How the axes run is not known then either, and by others' account these scans are mirrored if the matrix is taken
    at its word. So the liver must lie on the patient's right. Whether slices run to the head or to the feet is the
    same to a 2-D net.
    """
    ct = load(volume)
    scan = _read_on_grid(ct, labels)
    if not np.array_equal(ct.geometry.affine, np.eye(4)):
        return scan
    columns = np.count_nonzero(scan.label, axis=(0, 1))  # they run to the patient's left
    seen = columns.any()
    if not seen or np.average(np.arange(len(columns)), weights=columns) >= len(columns) / 2:
        found = "the liver on the patient's left" if seen else "no liver"
        raise InputError(
            f"{_NO_GEOMETRY}; taken at its word, it shows {found}, expected on the right. How the axes run is not "
            "known: repair the header, or use the same scan of 3D-IRCADb-01 (--ircadb), which is DICOM"
        )
    others = (note for note in scan.notes if "[geometry-unknown]" not in note)
    return scan._replace(
        spacing=(np.nan,) * 3,
        notes=(f"{_NO_GEOMETRY}: the spacing is not known, square pixels are assumed", *others),
    )


def load_labels(path: Path, geometry: Geometry) -> np.ndarray:
    """A label map on the grid of ``geometry``, in canonical order, uint8 ``[Z, Y, X]``."""
    image = nib.load(path)
    if image.shape[:3] != geometry.shape[:3]:
        raise InputError(f"shape mismatch: the image is {geometry.shape[:3]}, {path.name} is {image.shape}")
    shift = _largest_shift(geometry, image.affine)
    if not shift <= _MAX_SHIFT * min(spacing_mm(geometry.affine)):
        raise InputError(
            f"affine mismatch: {path.name} lies up to {shift:.4g} mm off its image; repair a header (known of LiTS "
            "48 to 52, see training/README.md)"
        )
    values = np.asanyarray(image.dataobj)
    with np.errstate(invalid="ignore"):
        labels = values.astype(np.uint8)
    if labels.max() > 2 or not np.array_equal(labels, values):
        raise InputError(
            f"labels outside 0..2: {path.name} holds values from {values.min()} to {values.max()}"
        )
    return np.ascontiguousarray(geometry.canonical(labels))


def _largest_shift(geometry: Geometry, affine: np.ndarray) -> float:
    """Largest distance in mm between where two affines put a voxel of the grid; it is at one of the corners."""
    corners = np.array(list(itertools.product(*((0, n - 1) for n in geometry.shape[:3]))))
    difference = geometry.affine - affine
    return float(np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max())


def _numbered(paths, pattern: str) -> defaultdict[int, list[Path]]:
    """Files whose whole name matches, by the number in it. ``._volume-0.nii`` and the like do not."""
    found = defaultdict(list)
    for path in sorted(paths):
        if match := re.fullmatch(pattern, path.name):
            found[int(match[1])].append(path)
    return found


def _reader(name: str, volumes: list[Path], labels: list[Path]):
    for what, paths in (("image", volumes), ("label file", labels)):
        if len(paths) != 1:
            here = ", ".join(f"{p.parent.name}/{p.name}" for p in paths)
            return unusable(
                f"{name} has {f'{len(paths)} {what}s ({here})' if paths else f'no {what}'}; expected one"
            )
    return partial(_read_lits, volumes[0], labels[0])


def patient_of_lits(number: int) -> str:
    """The patient of a LiTS case, by the one name that all data sets use."""
    return PATIENT_OF_LITS.get(number, f"lits-{number}")
