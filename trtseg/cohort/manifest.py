"""The manifest of a cohort: a file beside the results that knows which of them are complete, whatever happens.

A line of JSON for each case that ended, appended and flushed to the disk, in this order:

1. the files of a case are written, and flushed, into a folder of their own that is hidden in the folder of the results;
2. the line of the case is written;
3. the files are renamed to where they belong.

A process that is killed before 2 leaves a case that is not done, and files that the next start removes. Killed after 2,
it leaves a case that is done, and the next start renames what was not. A line that was not written to its end is cut
off. One process writes, which needs no more of a file system than appending, renaming and a lock; a database would ask
shared file systems for more than they keep.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtseg.cohort.case import Case
from trtseg.cohort.remote import is_there, is_url, look
from trtseg.cohort.table import TABLE, write_table
from trtseg.errors import ArgumentError, OutputError
from trtseg.io.atomic import explain, resolve_target
from trtseg.io.dicom_out import left_over
from trtseg.io.names import case_name

#: Name of the file.
MANIFEST = "cohort.jsonl"
_UNFINISHED = ".cohort-unfinished"
_HEAD = {"trtseg cohort": 1}
# What a line says at least; lines of earlier versions have no "written".
_FAILED = {"case", "state", "input"}
_DONE = _FAILED | {"seen", "made_by", "files", "staged", "row"}


class Manifest:
    """The manifest of a folder of results; open it with ``with``, one process at a time.

    The file appears with the first case that is done: where all fail, nothing is written. At the end of the ``with``
    block the table of all measurements is written.

    Parameters
    ----------
    folder : Path
        The folder of the results, which exists.

    Raises
    ------
    OutputError
        If the folder cannot be written, another process works there, or another version made the manifest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / MANIFEST
        self._records: dict[str, dict[str, Any]] = {}
        self._done: dict[str, dict[str, Any]] = {}  # of the files there, though a later run failed
        self._waiting: list[dict[str, Any]] = []  # failures, until something is done
        self._file = -1
        self._table_is_old = False

    def __enter__(self) -> Manifest:
        self._lock = _locked(self.folder)
        try:
            self._read()
            self._tidy()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with contextlib.suppress(OutputError):  # the next start tries again
                self._tidy()
            if self._table_is_old or (self._path.exists() and not (self.folder / TABLE).exists()):
                write_table(self.folder / TABLE, (self._row(key) for key in sorted(self._records)))
        finally:
            if self._file >= 0:
                os.close(self._file)
            os.close(self._lock)

    def is_done(self, case: Case, made_by: str) -> bool:
        """Tell whether the case is complete, of this very CT and of the model and options ``made_by`` stands for."""
        record = self._records.get(self.key(case))
        if record is None or record["state"] != "done" or record["made_by"] != made_by:
            return False
        if not {path.name for path in case.outputs} <= record["files"].keys():
            return False
        try:
            sizes = {name: (case.labels.parent / name).stat().st_size for name in record["files"]}
        except OSError:
            return False
        return bool(sizes == record["files"] and record["seen"] and record["seen"] == look(case))

    def changed(self, case: Case) -> Path | None:
        """Find a file of the case that somebody changed after it was put there; None if there is none."""
        record = self._done.get(self.key(case))
        path = None if record is None else _changed(record, case.labels.parent)
        self._table_is_old = self._table_is_old or path is not None
        return path

    def check_inputs(self, cases: Sequence[Case]) -> None:
        """Raise an ArgumentError where a case would replace what is not its own.

        That is what was made of another CT that is still there, and labels that trtseg did not write.
        """
        for case in cases:
            record = self._done.get(self.key(case))
            if record is None:
                case.check_own("choose another folder, or overwrite")
            elif case.labels.exists() and _is_another(record["input"], case):
                raise ArgumentError(
                    f"inputs: {case.labels} holds the labels of {record['input']}, and those of {case.input} would "
                    "replace them; choose another folder, or overwrite"
                )

    def row(self, case: Case) -> dict[str, Any]:
        """The row of a case in the table."""
        return self._row(self.key(case))

    def stage(self) -> Path:
        """Make a folder for the files of a case, on the disk of the results."""
        path = self.folder / _UNFINISHED / secrets.token_hex(8)
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise OutputError(explain(error, os.fspath(self.folder))) from error
        return path

    def finish(self, case: Case, seen: str, made_by: str, staged: Path, row: Mapping[str, Any]) -> None:
        """Note that a case is done, and put its files where they belong.

        Parameters
        ----------
        case : Case
            The case.
        seen : str
            The `look` of its CT from before it was read.
        made_by : str
            What stands for model and options.
        staged : Path
            A folder of `stage` with the files.
        row : mapping
            The measurements, see `trtseg.cohort.table.row_of`.
        """
        paths = sorted(staged.iterdir())
        key = self.key(case)
        record: dict[str, Any] = {
            "case": key,
            "state": "done",
            "input": _input(case),
            "seen": seen,
            "made_by": made_by,
            "files": {path.name: path.stat().st_size for path in paths},
            "staged": staged.name,
            "row": dict(row),
        }
        written = {path.name: _content(path) for path in paths}
        old = self._done.get(key, {})
        others = {name: content for name, content in old.get("written", {}).items() if name not in written}
        if (old.get("seen"), old.get("made_by")) == (seen, made_by):
            written |= others  # of the same labels
        else:
            record["outdated"] = sorted(others)
        record["written"] = written
        for early in (*self._waiting, record):
            self._append(early)
        self._waiting.clear()
        self._place(record, staged)

    def fail(self, case: Case, error: Exception) -> None:
        """Note why a case failed; the next run tries it again."""
        said = f"{type(error).__name__}: {error}".strip()
        record = {"case": self.key(case), "state": "failed", "input": _input(case), "error": said}
        self._records[record["case"]] = record
        if self._file >= 0 or self._path.exists():
            self._append(record)
        else:
            self._waiting.append(record)

    def key(self, case: Case) -> str:
        """Name a case by the path of its labels from the folder of the results."""
        try:
            return case.labels.relative_to(self.folder).as_posix()
        except ValueError:
            raise ArgumentError(
                f"folder: got {self.folder}, in which {case.labels} does not lie; expected the folder of all results"
            ) from None

    def _row(self, key: str) -> dict[str, Any]:
        record = self._records[key]
        is_done = record["state"] == "done"
        names = {"case": case_name(Path(key)), "labels": key if is_done else ""}
        facts = {name: record.get(name, "") for name in ("state", "input", "error")}
        if is_done and _changed(record, (self.folder / key).parent) is not None:
            facts["state"] = "changed"
        return {**names, **facts, **record.get("row", {})}

    def _append(self, record: dict[str, Any]) -> None:
        try:
            if self._file < 0:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            end = os.fstat(self._file).st_size
            lines = [record] if end else [_HEAD, record]
            data = "".join(json.dumps(line) + "\n" for line in lines).encode()
            try:
                if os.write(self._file, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, end)
                raise
        except OSError as error:
            raise OutputError(explain(error, os.fspath(self._path))) from error
        self._take(record)
        self._table_is_old = True

    def _take(self, record: dict[str, Any]) -> None:
        """Let a line stand for its case."""
        self._records[record["case"]] = record
        if record["state"] == "done":
            self._done[record["case"]] = record

    def _read(self) -> None:
        """Read the last line of each case; cut off a line without an end."""
        try:
            data = self._path.read_bytes()
            if (end := data.rfind(b"\n") + 1) < len(data):
                os.truncate(self._path, end)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be read and written ({error.strerror})") from error
        lines = []
        for line in data[:end].splitlines():
            with contextlib.suppress(ValueError):  # a power cut may leave zeros
                if isinstance(one := json.loads(line), dict):
                    lines.append(one)
        if lines and "case" not in lines[0] and lines[0] != _HEAD:
            raise OutputError(f"{self._path}: is of another version of trtseg; choose another folder")
        for record in lines:
            if record.keys() >= (_DONE if record.get("state") == "done" else _FAILED):
                self._take(record)

    def _tidy(self) -> None:
        """Rename what was left complete, and remove what was left unfinished."""
        top = self.folder / _UNFINISHED
        if not top.exists():
            return
        done = {record["staged"]: record for record in self._records.values() if record["state"] == "done"}
        for staged in top.iterdir():
            if staged.name in done:
                self._place(done[staged.name], staged)
            else:
                shutil.rmtree(staged, ignore_errors=True)
        with contextlib.suppress(OSError):
            top.rmdir()

    def _place(self, record: Mapping[str, Any], staged: Path) -> None:
        """Rename the files of a case to where they belong; removes what they have made wrong there."""
        place = (self.folder / record["case"]).parent
        try:
            place.mkdir(parents=True, exist_ok=True)
            for path in sorted(staged.iterdir()):
                path.replace(resolve_target(place / path.name))
            staged.rmdir()
            for path in left_over(place, record["files"]):
                path.unlink()
            for name in record.get("outdated", ()):
                (place / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(explain(error, os.fspath(place))) from error


def _locked(folder: Path) -> int:
    """Be the only process that writes a cohort into a folder; the lock ends with the process."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be opened ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise OutputError(
            f"{folder}: another trtseg writes there; wait until it has ended, or choose another folder"
        ) from error
    except OSError:
        pass  # a file system without locks
    return handle


def _changed(record: Mapping[str, Any], place: Path) -> Path | None:
    """A file of a case that is no longer as its line says; one that is gone or empty holds nothing to be kept."""
    for name, content in record.get("written", {}).items():
        path: Path = place / name
        try:
            found = path.stat()
            is_same = [found.st_size, found.st_mtime_ns] == content[:2]
            if found.st_size and not is_same and _content(path)[2] != content[2]:  # a copy has another time
                return path
        except FileNotFoundError:
            continue
        except OSError:
            return path
    return None


def _content(path: Path) -> list[Any]:
    """Size, time of change and hash of a file."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        return [found.st_size, found.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()]


def _input(case: Case) -> str:
    """The URL, or else the path of the CT from any folder: the next command may be called in another one."""
    return case.url or os.path.abspath(case.source)  # noqa: PTH100 - links stay


def _is_another(made_of: str, case: Case) -> bool:
    """Tell whether labels were made of another CT than that of the case, one that is still there: none was moved."""
    if made_of == _input(case):
        return False
    if case.url is not None or is_url(made_of):
        return is_there(made_of)
    try:
        return not os.path.samefile(made_of, case.source)  # noqa: PTH121 - of the manifest
    except OSError:
        return False
