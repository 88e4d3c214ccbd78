"""Tar files, as data sets come in."""

from __future__ import annotations

import tarfile
from pathlib import Path


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar file, compressed or not, into a folder; members that would lie outside of it are an error."""
    with tarfile.open(archive) as tar:
        # Assigned, not an argument: Python 3.11.0 to 3.11.3 know no filters, and ignore it.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(folder)
