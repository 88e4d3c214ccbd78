"""The CTs in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from trtseg.errors import InputError
from trtseg.io.itk import peek_itk
from trtseg.io.names import IMAGES, ITK, is_folder, says_labels
from trtseg.io.nifti import peek_nifti

_DICOM_AT, _DICOM = 128, b"DICM"


def find_cts(folder: Path, leave: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Find the CTs in a folder and in the folders below it: image files, and folders of DICOM files.

    Hidden files are passed over. A file holds labels and no CT if trtseg wrote it, if its name says so (``x_seg``,
    ``x_labels``, ``segmentation-3``), or if its voxels have 8 bits, too few for HU.

    Parameters
    ----------
    folder : Path
        Where to look.
    leave : Path, optional
        A folder below it not to look into.

    Returns
    -------
    cts, labels : list of Path
        In the order of their names.

    Raises
    ------
    InputError
        If a folder cannot be listed.
    """
    cts: list[Path] = []
    labels: list[Path] = []
    for path in _images(folder, leave, set()):
        (labels if not is_folder(path) and _holds_labels(path) else cts).append(path)
    return cts, labels


def made_by(path: Path) -> str | None:
    """Tell which fingerprint a label map of trtseg bears, "" for none; None: no label map of trtseg.

    No pipe is opened.
    """
    return _peek(path)[0]


def _images(folder: Path, leave: Path | None, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen or (leave is not None and seen and real == os.path.realpath(leave)):
        return  # a link that leads back, or the folder of the results
    seen.add(real)
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); check its mode") from error
    folders = [path for path in paths if is_folder(path)]
    files = [path for path in paths if os.path.isfile(path)]  # noqa: PTH113 - as in `is_folder`
    images = [path for path in files if path.name.lower().endswith(IMAGES)]
    yield from images
    if any(_is_dicom(path) for path in files if path not in images):
        yield folder
    for below in folders:
        yield from _images(below, leave, seen)


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(_DICOM_AT + len(_DICOM))[_DICOM_AT:] == _DICOM and path.name != "DICOMDIR"
    except OSError:
        return False


def _holds_labels(path: Path) -> bool:
    made, small = _peek(path)
    return made is not None or small or says_labels(path)


def _peek(path: Path) -> tuple[str | None, bool]:
    """Fingerprint of a label map of trtseg, and whether the voxels are too small for HU."""
    if not os.path.isfile(path):  # noqa: PTH113
        return None, False
    return peek_itk(path) if path.name.lower().endswith(ITK) else peek_nifti(path)
