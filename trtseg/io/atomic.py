"""Write files completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtseg.errors import ArgumentError, OutputError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def atomic(*paths: str | os.PathLike[str], without: Sequence[Path] = ()) -> Iterator[tuple[Path, ...]]:
    """Write files so that either all of them appear, complete, or none does.

    Temporary files are made at once, hidden, beside their targets and with the same ending (``.nii.gz``), so
    an unwritable folder fails before any work is done. They have the permissions of the targets that exist. When
    the body ends, the temporary files are renamed onto the targets. On any exception, ``KeyboardInterrupt`` too,
    they are removed, and targets that existed stay as they were.

    Data are flushed to the disk before the renames. Results are small, and without the flush a power cut just
    after could leave an empty file under the final name. The folder itself is not flushed, so a power cut may
    undo the renames.

    Several renames cannot be a single step. If a later rename fails, the earlier targets are put back as they
    were. That needs hard links: on a file system without them, a target that existed keeps its new, complete
    content. A process that is killed between two renames leaves some targets new and some as they were.

    Parameters
    ----------
    *paths : path
        Targets. A symbolic link stays, and the file that it points to is replaced.
    without : sequence of Path
        Files that the new ones make wrong. They go when the targets appear, and stay when these do not.

    Yields
    ------
    tuple of Path
        A temporary path, of an empty file, for each target in the same order. Write there.

    Raises
    ------
    OutputError
        If a target cannot be written, or a file of ``without`` not removed, at entry, in the body (an OSError there)
        or at the end.

    Examples
    --------
    >>> with atomic("labels.nii.gz", "report.json") as (labels, report):  # doctest: +SKIP
    ...     report.write_text("{}")
    """
    targets = [resolve_target(p) for p in paths]
    for n, target in enumerate(targets):
        if target in targets[:n]:
            raise OutputError(f"{os.fspath(paths[n])}: given twice as an output; choose another path for one")
    for path in without:
        if path.is_dir():
            raise OutputError(
                f"{path}: is a folder, where an earlier result has a file that is to go; move it away. "
                "Nothing was written"
            )
    temporary: list[Path] = []
    try:
        try:
            for target in targets:
                path = _hidden(target)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
                temporary.append(path)
                keep_permissions(path, target)  # now, so that nobody else reads it meanwhile
            yield tuple(temporary)
            for path in temporary:
                _flush(path)
            _rename_all(temporary, targets, without)
        except OSError as error:
            raise OutputError(explain(error, _hit(error, paths, temporary))) from error
    finally:
        for path in temporary:
            with contextlib.suppress(OSError):
                path.unlink()


def resolve_target(path: str | os.PathLike[str]) -> Path:
    """Find the file that writing to ``path`` makes or replaces, behind all links; the file need not exist.

    Raises
    ------
    OutputError
        If the file exists and is not regular, its folder does not exist, or the path is impossible.
    ArgumentError
        If it is no path.
    """
    name = name_of(path)
    mode = stat.S_IFREG  # stays if there is no file
    target = Path(name)  # if the current folder is gone
    try:
        target = Path(os.path.realpath(path))
        target.parent.stat()
        with contextlib.suppress(FileNotFoundError):
            mode = target.stat().st_mode
    except FileNotFoundError:
        raise OutputError(f"{name}: the folder {target.parent} does not exist; create it first") from None
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise OutputError(explain(error, name)) from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"{name}: is a folder; give the path of a file in it")
    if not stat.S_ISREG(mode):
        raise OutputError(f"{name}: is not a regular file; give the path of a file")
    return target


def name_of(path: str | os.PathLike[str], argument: str = "path") -> str:
    """Return a path as text; an ArgumentError says of an argument that it is none."""
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(name, str):  # nor bytes
        raise ArgumentError(
            f"{argument}: got a {type(path).__name__}; expected a file's path, a str or a Path"
        )
    return name


def _hidden(target: Path) -> Path:
    """Make up an unused name beside a target, from the end of its name: the whole name might become too long."""
    return target.with_name(f".{secrets.token_hex(8)}-{target.name[-40:]}")


def keep_permissions(path: Path, target: Path) -> None:
    """Give a file the permissions of that which it will replace, if there is one: others may not read a patient's."""
    with contextlib.suppress(OSError):  # no such file, or a file system without permissions
        path.chmod(target.stat().st_mode & 0o777 | stat.S_IRUSR | stat.S_IWUSR)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename_all(temporary: Sequence[Path], targets: Sequence[Path], without: Sequence[Path]) -> None:
    """Rename each file onto its target, and remove others; if a rename fails, put back what was there."""
    if len(targets) == 1 and not without:
        temporary[0].replace(targets[0])
        return
    undo: list[tuple[Path, Path | None]] = []  # target, and a second name of the old file if there is one
    gone: list[tuple[Path, Path]] = []
    done = 0
    try:
        for path in without:
            hidden = _hidden(path)
            gone.append((path, hidden))  # first: an interrupt may come right after the rename
            with contextlib.suppress(FileNotFoundError):  # somebody else has removed it
                path.replace(hidden)
        for target in targets:
            old = _hidden(target) if target.exists() else None
            undo.append((target, old))
            if old is not None:
                with contextlib.suppress(OSError):  # not every file system has hard links
                    os.link(target, old)
        for path, target in zip(temporary, targets, strict=True):
            path.replace(target)
            done += 1
    except BaseException:
        for target, old in undo[:done]:
            with contextlib.suppress(OSError):
                if old is not None:
                    old.replace(target)
                else:
                    target.unlink()
        for path, hidden in gone:
            with contextlib.suppress(OSError):
                hidden.replace(path)
        gone.clear()  # what cannot be put back is not removed either
        raise
    finally:
        for _, old in (*undo, *gone):
            if old is not None:
                with contextlib.suppress(OSError):
                    old.unlink()


def _hit(error: OSError, paths: Sequence[Any], temporary: Sequence[Path]) -> str:
    """Name the targets that an error is about: all targets if the error names no file."""
    names: list[str] = [os.fspath(p) for p in paths]
    if len(temporary) < len(names):
        return names[len(temporary)]  # its temporary file could not be created
    involved = {os.fspath(n) for n in (error.filename, error.filename2) if isinstance(n, (str, os.PathLike))}
    hit = [name for name, path in zip(names, temporary, strict=True) if os.fspath(path) in involved]
    return ", ".join(hit or names)


def explain(error: OSError | ValueError, name: str) -> str:
    """Say why a target cannot be written, and what to do."""
    code = getattr(error, "errno", None)
    if code in _FULL:
        return f"{name}: no space left to write it; free some or choose another folder. Nothing was written"
    if code == errno.EFBIG:
        return (
            f"{name}: no space left to write it, for files may not be that large here (ulimit -f); raise the limit or "
            "choose another folder. Nothing was written"
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{name}: no permission to write there; choose another folder. Nothing was written"
    if code == errno.ENAMETOOLONG:
        return f"{name}: the name is too long to write it; choose a shorter one. Nothing was written"
    return f"{name}: cannot be written ({error}). Nothing was written"
