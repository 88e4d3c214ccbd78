"""DICOM slices, from files or from elsewhere -> Volume."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trtseg.errors import InputError
from trtseg.io.checks import ct_geometry, ct_volume
from trtseg.io.dicom.dataset import parse, read_bytes
from trtseg.io.dicom.frames import Slice, marks_of, slices_of
from trtseg.io.dicom.grid import SAME_PLACE_MM, common, place
from trtseg.io.dicom.header import text
from trtseg.io.dicom.pixels import padding_hu, to_hu
from trtseg.resources import memory_for
from trtseg.volume import Volume
from trtseg.warnings import ResultWarning

log = logging.getLogger("trtseg")
_PIXELS = 0x7FE00000  # the group of the pixels
_IS = 12  # the most characters of a whole number in text
_TISSUE_HU = (-900, 3000)


class Instance(NamedTuple):
    """A DICOM file: its path, its header, and all its slices."""

    path: Path
    header: Any
    slices: tuple[Slice, ...]


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """The files that a volume was read from: the source of its geometry, whose grid is ``[column, row, slice]``.

    A slice of the grid has exactly one file, or one frame of a multi-frame file.

    Attributes
    ----------
    files : tuple of Path
        In the order given; inside a zip, the path of the zip and that of the file in it. Duplicates are left out.
    headers : tuple of pydicom.Dataset
        Of each file, without its pixels.
    index : tuple of int
        Slice of each file on that grid; of a multi-frame file, of each of its frames, -1 for those of other volumes.
    slices : tuple of Slice
        Of each file, or of each of its frames, in the order of ``index``; the files are counted as here.
    chosen : str
        What ``--series`` takes for this volume, see `trtseg.io.dicom.series.Candidate`; ``""`` if none was chosen.
    """

    files: tuple[Path, ...]
    headers: tuple[Any, ...] = field(repr=False)  # they tell who the patient is
    index: tuple[int, ...]
    slices: tuple[Slice, ...]
    chosen: str = ""

    def told(self) -> dict[str, Any]:
        """Say which series it is, for a report: ``series``, as ``--series`` takes it, and ``series_number``."""
        number = text(self.headers[0], "SeriesNumber")
        return {
            **({"series": self.chosen} if self.chosen else {}),
            **({"series_number": int(number)} if number.isdecimal() and len(number) <= _IS else {}),
        }


def read_slice(source: Any) -> tuple[Any, np.ndarray]:
    """Read one instance exactly as it is read in a series.

    Parameters
    ----------
    source : pydicom.Dataset or path
        A CT slice, or an Enhanced CT.

    Returns
    -------
    header : pydicom.Dataset
        Without the pixels.
    hu : ndarray
        int16 ``[row, column]``; of an Enhanced CT ``[frame, row, column]``.

    Raises
    ------
    InputError
        If it is no CT, or damaged. The message begins with the path, or with the SOP Instance UID.
    """
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        dataset = parse(name, read_bytes(source), pixels=True)
    else:
        name, dataset = f"instance {source.get('SOPInstanceUID', '')}", source
    hu = to_hu(name, dataset, slices_of(name, dataset))
    try:
        header = dataset[:_PIXELS]  # a Dataset of its own; a copy of pydicom's would share its elements
    except Exception as error:  # damaged elements make pydicom raise errors of many types
        raise InputError(f"{name}: the header is damaged; fetch the file again") from error
    if hasattr(dataset, "file_meta"):
        header.file_meta = dataset.file_meta
    return header, hu if "PerFrameFunctionalGroupsSequence" in header else hu[0]


def assemble(
    name: str,
    instances: Sequence[Instance],
    slices: Sequence[Slice],
    read: Callable[[int], np.ndarray],
    chosen: str = "",
) -> Volume:
    """Put the slices of one volume together.

    Parameters
    ----------
    name : str
        The series, for messages and for the volume.
    instances : sequence of Instance
        The files.
    slices : sequence of Slice
        Slices of these files, those that belong to the volume.
    read : callable
        Pixels of a file by its number, int16 ``[frame, row, column]`` in HU. Called in the order of the files.
    chosen : str
        See `DicomSeries`.

    Raises
    ------
    InputError
        If the slices are not those of one volume.
    """
    first = common(name, slices)
    kept = _without_duplicates(name, instances, slices, read)
    position = np.array([one.position for one in kept])
    index, affine, warnings = place(name, position, first.orientation, first.spacing, first.thickness)
    places = {(one.file, one.frame): int(k) for one, k in zip(kept, index, strict=True)}
    used = sorted({one.file for one in kept})
    series = DicomSeries(
        tuple(instances[file].path for file in used),
        tuple(instances[file].header for file in used),
        tuple(places.get((file, one.frame), -1) for file in used for one in instances[file].slices),
        tuple(replace(one, file=n) for n, file in enumerate(used) for one in instances[file].slices),
        chosen,
    )
    warnings = (*warnings, *_padding_warning([instances[file] for file in used]))
    rows, columns = first.size
    geometry = ct_geometry(
        name, (columns, rows, len(kept)), affine=affine[:, [2, 1, 0, 3]], source=series, warnings=warnings
    )
    with memory_for(name, 2 * len(kept) * rows * columns):
        hu = np.empty(geometry.canonical_shape, np.int16)
        grid = geometry.restore(hu).T  # [slice, row, column]
        for file in used:
            frames = read(file)
            for one in instances[file].slices:
                if (one.file, one.frame) in places:
                    grid[places[one.file, one.frame]] = frames[one.frame]
    return ct_volume(name, hu, geometry)


def _without_duplicates(
    name: str, instances: Sequence[Instance], slices: Sequence[Slice], read: Callable[[int], np.ndarray]
) -> list[Slice]:
    """Leave out slices whose place and pixels another has too; refuse those of one place that differ in pixels."""
    kept: list[Slice] = []
    for group in same_places(slices):
        first = group[0]
        kept.append(first)
        for other in group[1:]:
            apart = np.abs(first.position - other.position).max() > SAME_PLACE_MM
            if apart or not np.array_equal(read(first.file)[first.frame], read(other.file)[other.frame]):
                raise InputError(
                    f"{name}: two different pictures at {_mm(first.position)}"
                    f"{_difference(instances, first, other)}; expected one phase, acquisition or reconstruction"
                )
    if dropped := len(slices) - len(kept):
        log.info("%s: %d slices were there twice, with the same pixels; each was taken once", name, dropped)
    return sorted(kept, key=lambda one: (one.file, one.frame))


def _mm(position: np.ndarray) -> str:
    return f"({', '.join(f'{value:g}' for value in position)}) mm"


def same_places(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Group slices of one orientation by their depth, each group in the order given."""
    depth = np.array([one.position @ slices[0].normal for one in slices])
    order = np.argsort(depth, kind="stable")
    groups: list[list[int]] = []
    for n in order:
        if groups and depth[n] - depth[groups[-1][0]] <= SAME_PLACE_MM:
            groups[-1].append(int(n))
        else:
            groups.append([int(n)])
    return [[slices[n] for n in sorted(group)] for group in groups]


def _difference(instances: Sequence[Instance], one: Slice, other: Slice) -> str:
    """Say in which marks two slices of one place differ."""
    a, b = (marks_of(instances[each.file].header, each.frame) for each in (one, other))
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    return f", which differ in {', '.join(keys)}" if keys else ", which nothing in their headers tells apart"


def _padding_warning(instances: Iterable[Instance]) -> tuple[ResultWarning, ...]:
    for path, header, slices in instances:
        hu = padding_hu(os.fspath(path), header, slices)
        if hu is not None and hu[0] < _TISSUE_HU[1] and hu[1] > _TISSUE_HU[0]:
            values = " to ".join(f"{end:g}" for end in dict.fromkeys(hu))
            text = (
                f"The header calls {values} HU padding, which tissue may have too: these voxels were filled with "
                "air."
            )
            return (ResultWarning("values-padding", text),)
    return ()
