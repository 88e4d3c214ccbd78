"""The CTs in a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from trtseg.errors import InputError
from trtseg.io.dicom import study_of
from trtseg.io.dicom_out.seg import peek_seg
from trtseg.io.itk import peek_itk
from trtseg.io.names import ARCHIVES, IMAGES, ITK, SEG, is_folder, says_labels
from trtseg.io.nifti import peek_nifti

log = logging.getLogger("trtseg")


def find_cts(folder: Path, leave: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Find the CTs in a folder and in the folders below it: image files, and folders of DICOM files.

    Folders whose DICOM files are of one study are one CT: the folder that they all lie in. Which of the series to take
    is decided when it is read. Hidden files are passed over. A file holds labels and no CT if trtseg wrote it, if its
    name says so (``x_seg``, ``x_labels``, ``segmentation-3``), or if its voxels have 8 bits, too few for HU. The log
    names archives, which are not looked into.

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
    studies: dict[Path, str] = {}
    for path in _images(folder, leave, set(), studies):
        (labels if not is_folder(path) and _holds_labels(path) else cts).append(path)
    tops = _tops(studies)
    return list(dict.fromkeys(tops.get(path, path) for path in cts)), labels


def made_by(path: Path) -> str | None:
    """Tell which fingerprint a label map of trtseg bears, "" for none; None: no label map of trtseg.

    No pipe is opened.
    """
    return _peek(path)[0]


def _images(folder: Path, leave: Path | None, seen: set[str], studies: dict[Path, str]) -> Iterator[Path]:
    """Yield image files and folders of DICOM files; ``studies`` gets the study of each of these folders."""
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
    files += [path for path in paths if path.is_symlink() and not os.path.exists(path)]  # noqa: PTH110 - to be told
    for path in files:
        if path.name.lower().endswith(ARCHIVES):
            log.warning("%s: is not looked into; give a zip itself, and unpack archives of other kinds", path)
    images = [path for path in files if path.name.lower().endswith(IMAGES)]
    yield from images
    study = study_of(path for path in files if path not in images)
    if study is not None:
        studies[folder] = study
        yield folder
    for below in folders:
        yield from _images(below, leave, seen, studies)


def _tops(studies: Mapping[Path, str]) -> dict[Path, Path]:
    """For each folder of a study with several, the folder that holds them all, if it holds no other study."""
    tops: dict[Path, Path] = {}
    for study in set(studies.values()) - {""}:
        own = [folder for folder, other in studies.items() if other == study]
        top = Path(os.path.commonpath(own))
        if all(other == study for folder, other in studies.items() if folder.is_relative_to(top)):
            tops |= dict.fromkeys(own, top)
    return tops


def _holds_labels(path: Path) -> bool:
    made, small = _peek(path)
    return made is not None or small or says_labels(path)


def _peek(path: Path) -> tuple[str | None, bool]:
    """Fingerprint of a label map of trtseg, and whether the voxels are too small for HU."""
    if not os.path.isfile(path):  # noqa: PTH113
        return None, False
    name = path.name.lower()
    if name.endswith(SEG):
        return peek_seg(path), False
    return peek_itk(path) if name.endswith(ITK) else peek_nifti(path)
