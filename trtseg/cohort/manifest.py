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

from trtseg.cohort.case import Case, is_empty, is_of_others
from trtseg.cohort.remote import is_there, is_url, look
from trtseg.cohort.table import TABLE, write_table
from trtseg.errors import ArgumentError, OutputError
from trtseg.io.atomic import explain, keep_permissions, resolve_target
from trtseg.io.dicom_out import left_over
from trtseg.io.names import case_name

#: Name of the file.
MANIFEST = "cohort.jsonl"
_UNFINISHED = ".cohort-unfinished"
_HEAD = {"trtseg cohort": 1}
# What a line says at least; lines of earlier versions have no "written".
_FAILED = {"case", "state", "input"}
_DONE = _FAILED | {"seen", "made_by", "files", "staged", "row"}
# Size, time of change and hash of a file; earlier versions noted the size.
_Content = tuple[int, int | None, str | None]


class Manifest:
    """The manifest of a folder of results; open it with ``with``, one process at a time.

    The file appears with the first case that is done: where all fail, nothing is written. At the end of the ``with``
    block the table of all measurements is written.

    Parameters
    ----------
    folder : Path
        The folder of the results, which exists.
    overwrite : bool
        Whether cases may replace what is not their own.

    Raises
    ------
    OutputError
        If the folder cannot be written, another process works there, or another version made the manifest.
    """

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        self.folder = folder
        self._overwrites = overwrite
        self._path = folder / MANIFEST
        self._records: dict[str, dict[str, Any]] = {}
        self._done: dict[str, dict[str, Any]] = {}  # of the files there, though a later run failed
        self._wrote: dict[Path, tuple[str, _Content]] = {}  # the case that wrote a file last, and what
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
            if self._table_is_old or not self._table_is_sound():
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
        """Find a file of the case that somebody changed after it was put there, and that may not be replaced."""
        path = None if self._overwrites else self._changed(self.key(case))
        self._table_is_old = self._table_is_old or path is not None
        return path

    def check_inputs(self, cases: Sequence[Case]) -> None:
        """Raise an ArgumentError where a case would replace what is not its own, unless that may be replaced.

        That is what was made of another CT that is still there, and labels that trtseg did not write.
        """
        for case in () if self._overwrites else cases:
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

        Raises
        ------
        OutputError
            The files cannot be written, or somebody changed those that are there while the case was done.
        """
        self.check_inputs([case])
        if (changed := self.changed(case)) is not None:
            raise OutputError(
                f"{changed}: was changed by somebody while the case was done; it is left alone, overwrite replaces it"
            )
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
        record["written"] = {path.name: _content(path)[1:] for path in paths}
        old = self._done.get(key, {})
        of_same_labels = (old.get("seen"), _labels_by(old.get("made_by", ""))) == (seen, _labels_by(made_by))
        record["beside" if of_same_labels else "outdated"] = [
            path.name
            for path in self._files(key)
            if path.name not in record["files"] and self._is_as_written(path)
        ]
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
        if self._changed(key) is not None:
            record = {**self._done[key], "state": "changed"}
        names = {"case": case_name(Path(key)), "labels": "" if record["state"] == "failed" else key}
        facts = {name: record.get(name, "") for name in ("state", "input", "error")}
        return {**names, **facts, **record.get("row", {})}

    def _changed(self, key: str) -> Path | None:
        """A file of a case that is no longer as it was written."""
        files = self._files(key)
        return next((path for path in files if not (self._is_as_written(path) or is_empty(path))), None)

    def _files(self, key: str) -> list[Path]:
        """The files that a case wrote, and before for the same labels, and that no other case wrote since."""
        record, place = self._done.get(key, {}), (self.folder / key).parent
        paths = [place / name for name in sorted({*record.get("files", ()), *record.get("beside", ())})]
        return [path for path in paths if self._wrote.get(path, ("",))[0] == key]

    def _is_as_written(self, path: Path) -> bool:
        owner, (size, when, digest) = self._wrote[path]
        try:
            found = path.stat()
            if found.st_size != size:
                return False
            if digest is None:  # noted by an earlier version
                return path != self.folder / owner or not is_of_others(path)
            if found.st_mtime_ns == when:
                return True
            content = _content(path)  # a copy has another time
        except OSError:
            return False
        if content[2] != digest:
            return False
        self._wrote[path] = owner, content
        return True

    def _table_is_sound(self) -> bool:
        """Whether the table is there, if there is a manifest, and speaks of no changes, which may be undone."""
        try:
            return b",changed," not in (self.folder / TABLE).read_bytes()
        except OSError:
            return not self._path.exists()

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
        key = record["case"]
        self._records[key] = record
        if record["state"] != "done":
            return
        self._done[key] = record
        for name, size in record["files"].items():
            noted = record.get("written", {}).get(name, (None, None))
            self._wrote[(self.folder / key).parent / name] = key, (size, *noted)
        for name in record.get("outdated", ()):
            self._wrote.pop((self.folder / key).parent / name, None)

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
        done = {record["staged"]: record for record in self._done.values()}
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
                target = resolve_target(place / path.name)
                keep_permissions(path, target)
                path.replace(target)
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


def _labels_by(made_by: str) -> str:
    """What decides on the labels of what stands for model and options: not that pages show a name."""
    return made_by.partition("+")[0]


def _content(path: Path) -> _Content:
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        return found.st_size, found.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest()


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
