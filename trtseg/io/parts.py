"""The files that a CT consists of, where it is named by one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trtseg.io.dicom.find import files_below, find_files, is_dicom_file
from trtseg.io.itk_header import data_files
from trtseg.io.names import ANALYZE, ITK, is_folder


def files_of(path: Path) -> Iterator[Path]:
    """All files that reading ``path`` may look at: those of a folder and below it, both of a pair, and so on.

    Nothing that is hidden is read from a folder, and links to other folders are followed. Of a DICOM file these are the
    DICOM files beside it, of which its series is read; of a detached header, the data that it names too.

    Raises
    ------
    InputError, OSError
        There is no such file or folder, or it cannot be read.
    """
    name = path.name.lower()
    if is_folder(path):
        yield from (one for one in files_below(path) if one.is_file())  # a link may lead nowhere
    elif name.endswith(ANALYZE):
        yield from (one for one in sorted(path.parent.iterdir()) if _is_half(one, path))
    elif name.endswith(ITK):
        yield path
        yield from (one for one in data_files(path) if one.is_file())
    elif is_dicom_file(path):
        yield from (one.path for one in find_files(path))
    else:
        yield path


def _is_half(one: Path, of: Path) -> bool:
    return one.stem == of.stem and one.name.lower().endswith(ANALYZE)
