"""The files that a CT consists of, where it is named by one of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from trtseg.io.dicom.find import find_files, is_dicom
from trtseg.io.names import ANALYZE, ITK, ZIP, is_folder

_DATA = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file\s*:)\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
_HEADER = 1 << 16  # bytes in which a header of NRRD or MetaImage names its data


def files_of(path: Path) -> Iterator[Path]:
    """All files that reading ``path`` may look at: those of a folder and below it, both of a pair, and so on.

    Of a DICOM file these are the DICOM files beside it, of which its series is read; of a detached header, the data
    that it names too.

    Raises
    ------
    InputError, OSError
        There is no such file or folder, or it cannot be read.
    """
    name = path.name.lower()
    if is_folder(path):
        for top, folders, files in os.walk(path):
            folders.sort()
            yield from (Path(top, file) for file in sorted(files))
    elif name.endswith(ANALYZE):
        yield from (one for one in sorted(path.parent.iterdir()) if _is_half(one, path))
    elif name.endswith(ITK):
        yield path
        with path.open("rb") as file:
            found = _DATA.search(file.read(_HEADER))
        if found and (data := path.parent / os.fsdecode(found[1])).is_file():
            yield data
    elif is_dicom(path) and not name.endswith(ZIP):
        yield from (one.path for one in find_files(path))
    else:
        yield path


def _is_half(one: Path, of: Path) -> bool:
    return one.stem == of.stem and one.name.lower().endswith(ANALYZE)
