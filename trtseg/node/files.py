"""The files of a store: on the disk for good, still there, as they were written."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

_META = 144  # bytes of a DICOM file up to the length of the rest of its file meta information, that included
# For good, of a file that was written.
_UNREADABLE = (errno.ENOENT, errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO))


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_lost(path: Path, size: int) -> bool:
    """Tell whether the file of a result or an instance is no longer there, or not as long as it was written."""
    try:
        return path.stat().st_size != size
    except FileNotFoundError:
        return True


def is_intact(path: Path, sha256: bytes, size: int | None = None) -> bool:
    """Tell whether an instance's file still ends with the data set of that hash, of ``size`` bytes if given.

    An OSError that another attempt may not meet, as of too many open files, says nothing of it, and is raised.
    """
    try:
        with path.open("rb") as opened:
            if size is None:  # after the file meta information, which begins with its length
                opened.seek(_META + int.from_bytes(opened.read(_META)[-4:], "little"))
            else:
                opened.seek(max(0, os.fstat(opened.fileno()).st_size - size))
            return hashlib.file_digest(opened, "sha256").digest() == sha256
    except OSError as error:
        if not is_unreadable(error):
            raise
        return False


def is_unreadable(error: OSError) -> bool:
    """Tell whether an error says that a file is lost or on a bad sector, and not that it cannot be read just now."""
    return error.errno in _UNREADABLE
