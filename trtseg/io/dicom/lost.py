"""Slices that a CT may have lost: their headers or files are damaged, so that nobody can tell where they belong."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trtseg.io.dicom.find import listed
from trtseg.io.dicom.grid import is_alike
from trtseg.io.dicom.header import text as text_of
from trtseg.io.dicom.series import NO_SERIES, NOT_AXIAL, Candidate, depth_of
from trtseg.io.dicom.volume import Instance
from trtseg.io.names import is_folder
from trtseg.warnings import ResultWarning

log = logging.getLogger("trtseg")

_CODE = "slices-unplaced"
_NEXT = 1.5  # steps from an end of a volume to the next slice, at most
_IS = 12  # the most characters of a whole number in text
_SEE = "'trtseg segment --series list' names them."


def unplaced(
    chosen: Candidate, candidates: Iterable[Candidate], instances: Sequence[Instance]
) -> Iterator[ResultWarning]:
    """Warn of slices that may belong to the chosen volume, but have no place in it.

    Parameters
    ----------
    chosen : Candidate
        The volume.
    candidates : iterable of Candidate
        All volumes that were found, the chosen one among them.
    instances : sequence of Instance
        All files that were found.
    """
    others = [one for one in candidates if one is not chosen]
    if lost := [one for one in others if one.problem is not None and not one.slices and not one.reason]:
        text = (
            f"{len(lost)} CT file{'s' * (len(lost) > 1)} could not be placed, and may belong to the series: "
            f"{_without_path(str(lost[0].problem), instances)}. Volumes are lower bounds if they do. {_SEE}"
        )
        yield ResultWarning(_CODE, text)
    depth, step = depth_of(chosen.slices)
    normal = chosen.slices[0].normal
    away = (
        max(depth.min() - at, at - depth.max())
        for other in others
        if _may_belong(other, chosen)
        for at in (one.position @ normal for one in other.slices)
    )
    if count := sum(0 < float(mm) <= _NEXT * step for mm in away):
        text = (
            f"{count} CT slice{'s' * (count > 1)} beside an end of the CT could not be joined to it, for other rows, "
            f"columns, directions, spacings or ids. Volumes are lower bounds if they show the liver. {_SEE}"
        )
        yield ResultWarning(_CODE, text)


def spoilt(slices: Iterable[Path], files: Iterable[Path], foreign: Iterable[Path]) -> Iterator[ResultWarning]:
    """Warn of files beside the files of slices that are named like them but for numbers, and are no DICOM files.

    Parameters
    ----------
    slices : iterable of Path
        Files of the volume.
    files : iterable of Path
        All DICOM files that were found, as `find_files` names them.
    foreign : iterable of Path
        Files that were found by a name of DICOM, and are none.
    """
    known = set(files)
    names = {(path.parent, _without_numbers(path)) for path in slices}
    alike = (
        path
        for folder in {folder for folder, _ in names}
        if is_folder(folder)  # not in a zip
        for path in listed(folder)
        if path not in known and (folder, _without_numbers(path)) in names and not is_folder(path)
    )
    if found := sorted({*alike, *foreign}):
        log.warning("named like slices, but no DICOM files: %s", ", ".join(map(str, found)))
        text = (
            f"{len(found)} file{'s' * (len(found) > 1)} named like slices of the CT or like DICOM are empty or none. "
            "Volumes are lower bounds if they were slices; fetch the series again."
        )
        yield ResultWarning(_CODE, text)


def fewer(chosen: Candidate, instances: Sequence[Instance]) -> Iterator[ResultWarning]:
    """Warn where headers say that the series of a volume has more instances than there are."""
    headers = [one.header for one in instances if text_of(one.header, "SeriesInstanceUID") == chosen.uid]
    counts = (text_of(one, "NumberOfSeriesRelatedInstances") for one in headers)
    said = max((int(count) for count in counts if count.isdecimal() and len(count) <= _IS), default=0)
    # Careless copies have no ids.
    here = len({text_of(one, "SOPInstanceUID") or n for n, one in enumerate(headers)})
    if said > here:
        text = (
            f"The headers say that the series has {said} instances, and {here} are here. If these are slices, volumes "
            "are lower bounds; fetch the series again."
        )
        yield ResultWarning("slices-missing", text)


def _may_belong(other: Candidate, chosen: Candidate) -> bool:
    """Whether slices are of the series of a volume, or are like its slices and by themselves or of no series."""
    if other.reason not in ("", NOT_AXIAL) or not other.slices:
        return False
    is_stray = len(other.slices) == 1 or other.uid == NO_SERIES
    return (is_stray and is_alike(other.slices[0], chosen.slices[0])) or other.uid == chosen.uid


def _without_path(told: str, instances: Sequence[Instance]) -> str:
    """Leave out the path before a message: a warning goes into pages and pictures, and paths may name the patient."""
    starts = (f"{os.fspath(one.path)}: " for one in instances)
    return told.removeprefix(next((start for start in starts if told.startswith(start)), ""))


def _without_numbers(path: Path) -> str:
    return re.sub(r"\d+", "", path.name)
