"""Tar files, as data sets come in."""

from __future__ import annotations

import tarfile
from pathlib import Path


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar file, compressed or not, into a folder.

    A member that would lie outside of it is an error, but for Python 3.11.0 to 3.11.3, which do not look.
    """
    with tarfile.open(archive) as tar:
        # Assigned, not an argument, which these versions do not know.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)
