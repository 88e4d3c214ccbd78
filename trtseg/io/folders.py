"""Folders to write to: the cache of this user, and those that the user names."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trtseg.errors import OutputError


def cache_folder() -> Path:
    """Return the folder of what trtseg keeps: ``$TRTSEG_CACHE``, or the user's cache folder of this system."""
    chosen = os.environ.get("TRTSEG_CACHE")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("trtseg", appauthor=False))


@contextmanager
def made_folder(folder: Path, name: str) -> Iterator[None]:
    """Create a folder where needed; what was created and has stayed empty is removed at the end.

    Parameters
    ----------
    folder : Path
        The folder; folders above it are created too.
    name : str
        Argument or option that it was given by, for the message.

    Raises
    ------
    OutputError
        If it cannot be created.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{name}: {folder} cannot be created ({error.strerror}); choose another folder"
            ) from error
        yield
    finally:
        for path in missing:  # the innermost first
            with contextlib.suppress(OSError):
                path.rmdir()


def check_writable(folder: Path, name: str) -> None:
    """Find out now, not after the work, that a folder cannot be written; only trying tells.

    Parameters
    ----------
    folder : Path
        A folder that exists.
    name : str
        Argument or option that it was given by, for the message.

    Raises
    ------
    OutputError
        If no file can be made in it.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{name}: the folder {folder} cannot be written ({error.strerror}); choose another one"
        ) from error
