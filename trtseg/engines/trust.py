"""Which engine files may be read: files in this user's own cache that nobody else can have written.

A serialised engine can run any code, so it is read as carefully as a program. The folder must belong to this user and
be closed to everybody else. It stays open while a file in it is read, so that nobody can exchange it in between. The
file must be a regular file, belong to this user, and be writable by nobody else.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trtseg.errors import ModelError, OutputError
from trtseg.io.folders import cache_folder

_LOCK = ".lock"


def engine_folder() -> Path:
    """Return the folder of this user's engines, in `cache_folder`."""
    return cache_folder() / "engines"


def is_own(folder: Path) -> bool:
    """Whether a folder is `engine_folder`."""
    return folder.resolve() == engine_folder().resolve()


def read(path: Path, *, own: bool) -> bytes:
    """Read a file of a folder of engines.

    Parameters
    ----------
    path : Path
        The file.
    own : bool
        Whether the file is in this user's cache and must be as the module's docstring says. Other files are read as
        they are: whether to allow them is the caller's decision.

    Raises
    ------
    ModelError
        The file cannot be read, or is refused.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (os.O_NOFOLLOW if own else 0)  # a pipe would block
    with opened(path.parent, own=own) as folder:
        try:
            with os.fdopen(os.open(path.name, flags, dir_fd=folder), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ModelError(f"{path}: is not a regular file; delete it")
                if own:
                    _check_mine(path, status, 0o022)
                return file.read()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror}); build the engine") from error


@contextmanager
def locked(waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the one lock of this user's cache; it is released with the process at the latest.

    Parameters
    ----------
    waiting : callable, optional
        Called before waiting for another process.
    """
    with prepared() as folder:
        try:
            lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        except OSError as error:
            raise _unusable("written", error) from error
        try:
            _wait_for(lock, waiting)
            yield
        finally:
            os.close(lock)


def _wait_for(lock: int, waiting: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is not None:
            waiting()
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems
        raise _unusable("locked", error) from error


@contextmanager
def prepared() -> Iterator[int]:
    """Make the cache folder where needed, check it, and hold it open."""
    folder = engine_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unusable("created", error) from error
    with opened(folder, own=True) as handle:
        yield handle


def _unusable(how: str, error: OSError) -> OutputError:
    return OutputError(
        f"{engine_folder()}: cannot be {how} ({error.strerror}); set TRTSEG_CACHE to a folder of your own"
    )


@contextmanager
def opened(folder: Path, *, own: bool) -> Iterator[int]:
    """Open a folder, so that files are read from that very folder; this user's own must be private."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ModelError(f"{folder}: no folder that can be read ({error.strerror})") from error
    try:
        if own:
            _check_mine(folder, os.fstat(handle), 0o077)
        yield handle
    finally:
        os.close(handle)


def _check_mine(path: Path, status: os.stat_result, forbidden: int) -> None:
    """Refuse a path that is another user's, or has one of the ``forbidden`` bits in its mode."""
    mode, mine = stat.S_IMODE(status.st_mode), os.getuid()
    if status.st_uid == mine and not mode & forbidden:
        return
    why = f"others may change it (mode {mode:o})"
    if status.st_uid != mine:
        why = f"it belongs to user {status.st_uid} and you are {mine}"
    cure = "delete the file, and it is made again"
    if stat.S_ISDIR(status.st_mode):
        cure = "delete the folder, or set TRTSEG_CACHE to a folder of your own"
    raise ModelError(f"{path}: refused, since an engine file can run any code and {why}; {cure}")
