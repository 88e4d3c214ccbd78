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
        self._made_of: dict[str, str] = {}  # the CT of the labels there, though a later run failed
        self._waiting: list[dict[str, Any]] = []  # failures, until something is done
        self._file = -1
        self._has_changed = False

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
            if self._has_changed or (self._path.exists() and not (self.folder / TABLE).exists()):
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

    def check_inputs(self, cases: Sequence[Case]) -> None:
        """Raise an ArgumentError where a case would replace what was made of another CT that is still there."""
        for case in cases:
            made_of = self._made_of.get(self.key(case))
            if made_of is not None and case.labels.exists() and _is_another(made_of, case):
                raise ArgumentError(
                    f"inputs: {case.labels} holds the labels of {made_of}, and those of {case.input} would "
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
        record = {
            "case": self.key(case),
            "state": "done",
            "input": _input(case),
            "seen": seen,
            "made_by": made_by,
            "files": {path.name: path.stat().st_size for path in sorted(staged.iterdir())},
            "staged": staged.name,
            "row": dict(row),
        }
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
        names = {"case": case_name(Path(key)), "labels": key if record["state"] == "done" else ""}
        facts = {name: record.get(name, "") for name in ("state", "input", "error")}
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
        self._records[record["case"]] = record
        self._has_changed = True

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
                lines.append(json.loads(line))
        if lines and "case" not in lines[0] and lines[0] != _HEAD:
            raise OutputError(f"{self._path}: is of another version of trtseg; choose another folder")
        self._records = {line["case"]: line for line in lines if "case" in line}
        self._made_of = {line["case"]: line["input"] for line in lines if line.get("state") == "done"}

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
