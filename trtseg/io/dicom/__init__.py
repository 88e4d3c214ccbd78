"""DICOM files -> Volume: which files are there, which series is taken, and how its slices make a volume."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from trtseg.errors import InputError
from trtseg.io.atomic import name_of
from trtseg.io.dicom.dataset import SNIFFED, check_installed, looks_like_dicom, parse, read_bytes
from trtseg.io.dicom.find import DicomFile, archives, find_files, is_dicom, one_of_each_series, study_of
from trtseg.io.dicom.frames import slices_of
from trtseg.io.dicom.header import text
from trtseg.io.dicom.lost import fewer, spoilt, unplaced
from trtseg.io.dicom.pixels import to_hu
from trtseg.io.dicom.series import Candidate, as_good, choose, keys_of, volumes, why_no_picture
from trtseg.io.dicom.volume import DicomSeries, Instance, assemble, read_slice
from trtseg.io.names import is_folder
from trtseg.volume import Volume

__all__ = [
    "Candidate",
    "DicomSeries",
    "check_installed",
    "is_dicom",
    "list_series",
    "one_of_each_series",
    "read_dicom",
    "read_dicom_series",
    "read_slice",
    "study_of",
]

log = logging.getLogger("trtseg")
# Of a file, by which it is known again.
_OWN = ("SOPInstanceUID", "SeriesInstanceUID", "ImagePositionPatient")


def read_dicom(path: str | os.PathLike[str], series: str | None = None) -> Volume:
    """Read a CT from a folder with DICOM files in it and below it, from a zip, or from a file and those beside it.

    Parameters
    ----------
    path : path
        A file stands for its series, whose other files are looked for in the same folder.
    series : str, optional
        Which series to take, by default see `trtseg.io.dicom.series.choose`. The log says which, and why no other.

    Returns
    -------
    Volume
        Named after ``path``. The source of its geometry is a `DicomSeries`.

    Raises
    ------
    InputError
        If there is no CT, it cannot be told which to take, or the chosen one is incomplete or damaged.
    """
    name = name_of(path)
    files, instances, every, foreign = _sorted(path)
    candidates = every
    own = next((n for n, file in enumerate(files) if file.path == Path(path)), None)
    if own is not None and files[own].path.name.upper() == "DICOMDIR":
        raise InputError(f"{name}: is a list of files; give the folder that it is in, or one of the files")
    if own is not None:
        candidates = [one for one in every if any(slice_.file == own for slice_ in one.slices)]
        if why := why_no_picture(instances[own].header):
            raise InputError(f"{name}: cannot be segmented: {why}; give a CT")
        if not candidates:
            slices_of(name, instances[own].header)  # which says what is wrong
    chosen, others = choose(name, candidates, series)
    log.info("%s: series %s is taken (%s)", name, chosen.series, chosen.about)
    for one in others:
        log.info("%s: series %s is left out (%s): %s", name, one.series, one.about, one.reason)
    doubts = () if series is not None else tuple(as_good(chosen, others))
    volume = assemble(name, instances, chosen.slices, partial(_pixels, files, instances), chosen.series)
    own_files = (files[one.file].path for one in chosen.slices)
    lost = (*unplaced(chosen, every, instances), *spoilt(own_files, (file.path for file in files), foreign))
    if own is None:  # else the others may lie elsewhere
        lost += (*fewer(chosen, instances),)
    return replace(volume, warnings=(*volume.warnings, *doubts, *lost))


def list_series(path: str | os.PathLike[str]) -> list[Candidate]:
    """List the volumes of a folder, a zip or a file as `read_dicom` finds them, each with its reason.

    Returns
    -------
    list of Candidate
        The one that `read_dicom` takes comes first, with the reason ``""``; it is not there if none can be told.
    """
    name = name_of(path)
    _, _, candidates, _ = _sorted(path)
    try:
        chosen, others = choose(name, candidates, None)
    except InputError:
        return candidates
    return [chosen, *others]


def read_dicom_series(files: Sequence[str | os.PathLike[str]], *, ignore_ids: bool = False) -> Volume:
    """Read the files of one CT series; spacing, order and rescale are as DICOM says, whatever the files are called.

    Parameters
    ----------
    files : sequence of path
        All files of the series, in any order.
    ignore_ids : bool
        Take the files as one series although their ids differ: each file of an anonymised copy may have been
        given ids of its own.

    Returns
    -------
    Volume
        Named after the folder of the first file. The source of its geometry is a `DicomSeries`.

    Raises
    ------
    InputError
        If pydicom is not installed, a file cannot be read, the files are of several series, their slices are
        not evenly spaced, or the values are not Hounsfield units.
    """
    if not files:
        raise InputError("files: got none; expected the DICOM files of one CT series")
    given = [DicomFile(Path(file), partial(read_bytes, file)) for file in files]
    name = os.fspath(given[0].path.parent)
    headers = [_header(file) for file in given]
    ids = {(uid, *owners) for uid, _, *owners in keys_of(headers)}
    if len(ids) > 1 and not ignore_ids:
        raise InputError(
            f"{name}: got files of {len(ids)} series; expected one, put each series into a folder of its own"
        )
    instances = [
        Instance(file.path, header, slices_of(os.fspath(file.path), header, n))
        for n, (file, header) in enumerate(zip(given, headers, strict=True))
    ]
    slices = [one for instance in instances for one in instance.slices]
    return assemble(name, instances, slices, partial(_pixels, given, instances))


def _sorted(
    path: str | os.PathLike[str],
) -> tuple[list[DicomFile], list[Instance], list[Candidate], list[Path]]:
    """Find the files, the volumes that they make, and files that are DICOM by their names alone.

    An InputError says that there are no files.
    """
    files = find_files(path)
    if not files:
        if packed := archives(path):
            raise InputError(
                f"{os.fspath(path)}: holds no image, but {packed[0].name}; give that zip itself, or unpack archives of "
                "other kinds"
            )
        kind = "is a folder" if is_folder(path) else "holds no DICOM files"
        raise InputError(
            f"{os.fspath(path)}: {kind}; expected a .nii or .nii.gz file, or a folder that holds the DICOM files of "
            "one CT series"
        )
    headers, foreign = [], []
    for file in files:
        data = file.read()
        if file.path == Path(path) or looks_like_dicom(data[:SNIFFED]):
            headers.append((file.path, parse(os.fspath(file.path), data, pixels=False)))
        else:
            foreign.append(file)
    if not headers:
        _header(foreign[0])  # which says that it is none
    instances, candidates = volumes(headers)
    return [one for one in files if one not in foreign], instances, candidates, [one.path for one in foreign]


def _header(file: DicomFile) -> Any:
    return parse(os.fspath(file.path), file.read(), pixels=False)


def _pixels(files: Sequence[DicomFile], instances: Sequence[Instance], number: int) -> Any:
    """Decode a file: int16 ``[frame, row, column]``."""
    name, header = os.fspath(files[number].path), instances[number].header
    dataset = parse(name, files[number].read(), pixels=True)
    if any(text(dataset, key) != text(header, key) for key in _OWN):
        raise InputError(f"{name}: was replaced by another while the CT was read; read the CT again")
    return to_hu(name, dataset, instances[number].slices)
