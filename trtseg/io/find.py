"""The CTs in a folder."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from trtseg.errors import InputError
from trtseg.io import read_labels
from trtseg.io.dicom import study_of
from trtseg.io.dicom.find import files_below
from trtseg.io.dicom_out.seg import peek_seg
from trtseg.io.itk import peek_itk
from trtseg.io.names import ARCHIVES, IMAGES, ITK, SEG, says_labels
from trtseg.io.nifti import peek_nifti
from trtseg.notice import Signature, checksum_of

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
    results = set() if leave is None else {os.path.realpath(leave)} - {os.path.realpath(folder)}
    for below, paths in itertools.groupby(files_below(folder, results), key=lambda path: path.parent):
        # A link that leads nowhere is to be told of; a pipe is no file.
        files = [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]  # noqa: PTH110, PTH113
        for path in files:
            if path.name.lower().endswith(IMAGES):
                (labels if _holds_labels(path) else cts).append(path)
            elif path.name.lower().endswith(ARCHIVES):
                log.warning("%s: is not looked into; give a zip itself, unpack archives of other kinds", path)
        study = study_of(files)
        if study is not None:
            studies[below] = study
            cts.append(below)
    tops = _tops(studies)
    return list(dict.fromkeys(tops.get(path, path) for path in cts)), labels


def made_by(path: Path) -> str | None:
    """Tell which fingerprint a label map of trtseg bears, "" for none; None: no label map of trtseg.

    No pipe is opened.
    """
    said = _peek(path)[0]
    return None if said is None else said.fingerprint


def is_changed(path: Path) -> bool:
    """Tell whether a label map says that trtseg wrote it, and holds other labels than trtseg wrote."""
    said = _peek(path)[0]
    if said is None or not said.checksum:
        return False
    try:
        return checksum_of(read_labels(path)[0]) != said.checksum
    except InputError:  # other labels than those of trtseg, for example
        return True


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


def _peek(path: Path) -> tuple[Signature | None, bool]:
    """What a label map of trtseg says of itself, and whether the voxels are too small for HU."""
    if not os.path.isfile(path):  # noqa: PTH113
        return None, False
    name = path.name.lower()
    if name.endswith(SEG):
        return peek_seg(path), False
    return peek_itk(path) if name.endswith(ITK) else peek_nifti(path)
