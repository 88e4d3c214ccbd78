"""Folders to write to: this user's cache, and folders that the user names."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trtseg.errors import ArgumentError, OutputError
from trtseg.io.atomic import resolve_target


def cache_folder() -> Path:
    """Return the folder for files that trtseg keeps: ``$TRTSEG_CACHE``, or this system's cache folder of the user.

    Raises
    ------
    OutputError
        If there is neither.
    """
    chosen = os.environ.get("TRTSEG_CACHE")
    if chosen:
        return Path(chosen)
    import platformdirs

    try:
        folder = Path(platformdirs.user_cache_dir("trtseg", appauthor=False))
    except RuntimeError:  # this user has no home
        folder = Path("~")
    if not folder.is_absolute():
        raise OutputError("cache: this user has no home folder; set TRTSEG_CACHE to a folder of your own")
    return folder


@contextmanager
def made_folder(folder: Path, name: str) -> Iterator[None]:
    """Create a folder and the folders above it; at the end, remove the created folders that have stayed empty.

    Parameters
    ----------
    folder : Path
        The folder; it may exist.
    name : str
        Argument or option that named the folder, for the message.

    Raises
    ------
    OutputError
        If the folder cannot be created.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        make_folder(folder, name)
        yield
    finally:
        for path in missing:  # the innermost first
            with contextlib.suppress(OSError):
                path.rmdir()


def make_folder(folder: Path, name: str) -> None:
    """Create a folder and the folders above it; an OutputError, which calls it by ``name``, says why that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{name}: {folder} cannot be created ({error.strerror}); choose another folder"
        ) from error


def check_writable(folder: Path, name: str) -> None:
    """Find out before the work whether a folder can be written, by writing a file there.

    Parameters
    ----------
    folder : Path
        A folder that exists.
    name : str
        Argument or option that named the folder, for the message.

    Raises
    ------
    OutputError
        If no file can be made in the folder.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{name}: the folder {folder} cannot be written ({error.strerror}); choose another one"
        ) from error


def check_reports(reports: Mapping[str, Path | None], inputs: Iterable[Path]) -> None:
    """Refuse, before the work, reports that could not be written, or would overwrite an input or each other.

    Parameters
    ----------
    reports : mapping
        Option or argument, for messages, to the file that it names, if it names one.
    inputs : iterable of Path
        What is read.

    Raises
    ------
    ArgumentError
        If two are one file.
    OutputError
        If the folder of a report cannot be written.
    """
    taken = {os.path.realpath(path) for path in inputs}
    for name, path in reports.items():
        if path is None:
            continue
        target = resolve_target(path)
        if os.fspath(target) in taken:
            raise ArgumentError(f"{name}: {path} is an input or the other report; choose another name")
        check_writable(target.parent, name)
        taken.add(os.fspath(target))
