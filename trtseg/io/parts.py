"""The files that a CT consists of, where it is named by one of them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from trtseg.io.dicom.find import files_below, find_files, is_dicom_file
from trtseg.io.itk import DATA, read_header
from trtseg.io.names import ANALYZE, ITK, is_folder

_NUMBER = re.compile(r"%\d*[du]")  # of a slice, in the pattern of its file


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
        yield from (one for one in _data_of(path) if one.is_file())
    elif is_dicom_file(path):
        yield from (one.path for one in find_files(path))
    else:
        yield path


def _data_of(header: Path) -> Iterator[Path]:
    """The files that a header names: one, a list of them on the lines to the end, or all of a numbered pattern."""
    found = DATA.search(read_header(header))
    if found is None:
        return
    named = os.fsdecode(found[1])
    if named.split()[0] == "LIST":
        lines = header.read_bytes()[found.end() :].splitlines()
        yield from (header.parent / os.fsdecode(line.strip()) for line in lines)
    elif number := _NUMBER.search(named):
        pattern = f"{glob.escape(named[: number.start()])}*{glob.escape(named.split()[0][number.end() :])}"
        beside = os.path.join(glob.escape(os.fspath(header.parent)), pattern)  # noqa: PTH118 - a pattern
        yield from map(Path, sorted(glob.glob(beside)))  # noqa: PTH207 - may be absolute
    else:
        yield header.parent / named


def _is_half(one: Path, of: Path) -> bool:
    return one.stem == of.stem and one.name.lower().endswith(ANALYZE)
