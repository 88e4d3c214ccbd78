"""The state of a node on disk: instances and results as files, what is known of them in SQLite.

A file gets its name, and its row, only when its bytes are on the disk; a file without a row was promised to nobody
and is swept away at the next start. Names are random: nothing that a sender wrote ever becomes part of a path.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from trtseg.errors import OutputError
from trtseg.node import status
from trtseg.node.files import flush_folder, is_intact
from trtseg.node.log import say
from trtseg.node.schema import SCHEMA, VERSION

FOLDERS = ("instances", "results", "dead")  # of the store


class Refused(Exception):
    """An instance that the node does not take: the status for its sender, and why, in words without any of its data."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.status = code


class Facts(NamedTuple):
    """What the header of an instance says about itself and the series that it belongs to."""

    sop: str
    sop_class: str
    study: str
    series: str
    related: int | None = None  # NumberOfSeriesRelatedInstances
    acquisition: str | None = None  # AcquisitionNumber
    in_acquisition: int | None = None  # ImagesInAcquisition

    @property
    def key(self) -> str:
        """What the series is known by."""
        return f"{self.study}/{self.series}"


class Made(NamedTuple):
    """A result that was written with `Spool.write` and is to be sent."""

    kind: str
    sop_class: str
    sop: str
    file: str


def _check_empty(folder: Path) -> None:
    """Raise an OutputError where files lie in a store of which nothing is known: they would be swept away."""
    if any(path for name in ("instances", "results") for path in (folder / name).iterdir()):
        raise OutputError(
            f"{folder}: holds files in instances and results, but spool.sqlite, which says what they are, is lost or "
            "empty, or its spool.sqlite-wal is lost; put both back, or choose another folder and send again what lies "
            "here"
        )


class Spool:
    """The folder of a node. Each process opens it for itself; threads of a process share a Spool.

    Raises
    ------
    OutputError
        If the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for name in ("", *FOLDERS):
                (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            index = folder / "spool.sqlite"
            # Now, since SQLite would remove a spool.sqlite-wal that is left of it.
            if not index.exists() or index.stat().st_size == 0:
                _check_empty(folder)
            self._lock = threading.RLock()
            self._db = sqlite3.connect(index, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # a commit is on the disk
            with self.transaction():
                (version,) = self.row("PRAGMA user_version")
                if version == 0:
                    _check_empty(folder)
                    for statement in SCHEMA.split(";"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version={VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"{folder}: cannot be used as the store of a node ({error})") from error
        if version not in (0, VERSION):
            raise OutputError(
                f"{folder}: was made by another version of trtseg (its tables are of version {version}, here they are "
                f"of {VERSION}); let that one finish what lies in it, or choose another folder"
            )
        self._used = (-math.inf, 0)  # when it was counted, bytes

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def check(self) -> None:
        """Raise an OutputError if the database is damaged, with which a node would start, and fail at all it does."""
        try:
            is_well = self.row("PRAGMA quick_check(1)")[0] == "ok"
        except sqlite3.DatabaseError:
            is_well = False
        if not is_well:
            raise OutputError(
                f"{self.folder}: spool.sqlite is damaged; put a copy of the whole store back, or choose another folder "
                "and send again what lies here"
            )

    def lock(self, role: str, wait: bool = True) -> IO[str]:
        """Be the only process with this role, once the one before has ended; the lock ends with the process."""
        try:
            handle = (self.folder / f"{role}.lock").open("w")
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be used as the store of a node ({error})") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            handle.close()
            raise OutputError(
                f"{self.folder}: another node uses this store; give each node its own"
            ) from error
        return handle

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes of the body, or none; on the disk when it ends."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """All rows that a query gives."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    def row(self, query: str, *values: Any) -> Any:
        """The first row that a query gives, or None."""
        with self._lock:
            return self._db.execute(query, values).fetchone()

    def do(self, statement: str, *values: Any) -> int:
        """Change something; the id of the row that was added."""
        with self._lock:
            return self._db.execute(statement, values).lastrowid or 0

    def count(self, name: str, by: float = 1) -> None:
        """Add to a counter of the metrics."""
        self.do("INSERT INTO counter VALUES(?, ?) ON CONFLICT DO UPDATE SET value=value+?", name, by, by)

    def blame(self, number: int) -> None:
        """Note that the instance or, negative, the series of this id has ended the segmenting process."""
        if number:
            table = "instance" if number > 0 else "series"
            self.do(f"UPDATE {table} SET crashes=crashes+1 WHERE id=?", abs(number))  # noqa: S608

    # files

    def path(self, folder: str, file: str) -> Path:
        """Where a file of the spool lies."""
        return self.folder / folder / file

    def write(self, folder: str, *parts: Any, flush_name: bool = True) -> str:
        """Write a new file of bytes and flush it and, unless told otherwise, its name to the disk; returns its name."""
        name = secrets.token_hex(16) + ".dcm"
        temporary = self.path(folder, "." + name)
        try:
            with temporary.open("xb", buffering=0) as file:
                for part in parts:
                    view = memoryview(part).cast("B")
                    while view:
                        view = view[file.write(view) :]
                os.fsync(file.fileno())
            temporary.rename(self.path(folder, name))
            if flush_name:
                flush_folder(self.folder / folder)
        except BaseException:
            temporary.unlink(missing_ok=True)
            self.path(folder, name).unlink(missing_ok=True)
            raise
        return name

    def adopt(self, folder: str, path: Path) -> str:
        """Take a file that lies on the spool's disk, flushed, under a new name, which is flushed too and returned."""
        name = secrets.token_hex(16) + ".dcm"
        try:
            path.rename(self.path(folder, name))
            flush_folder(self.folder / folder)
        except BaseException:
            self.remove(folder, [name])
            raise
        return name

    def remove(self, folder: str, files: Iterable[str]) -> None:
        """Remove files that no row needs any more."""
        for file in files:
            self.path(folder, file).unlink(missing_ok=True)

    def used(self) -> int:
        """Bytes of all instances and results, counted anew every few seconds."""
        when, used = self._used
        if time.monotonic() - when >= 5:
            (used,) = self.row(
                "SELECT (SELECT IFNULL(SUM(bytes), 0) FROM instance) + (SELECT IFNULL(SUM(bytes), 0) FROM result)"
            )
            self._used = time.monotonic(), used
        return used

    def sweep(self, folder: str, table: str) -> int:
        """Remove files without a row, which a killed process left; only the one process that writes them may."""
        known = set(self.files(table))
        left = [path for path in (self.folder / folder).iterdir() if path.name not in known]
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if left:
            say("files without a row removed", level=logging.WARNING, folder=folder, files=len(left))
        return len(left)

    def files(self, where: str, *values: Any) -> list[str]:
        """Names of the files of rows, as ``result WHERE id=?``."""
        return [row["file"] for row in self.rows(f"SELECT file FROM {where}", *values)]  # noqa: S608

    # instances

    def add(self, facts: Facts, association: int, parts: Sequence[Any], limits: tuple[int, int]) -> bool:
        """Store an instance so that nothing short of a broken disk can lose it.

        Parameters
        ----------
        facts : Facts
            Of its header.
        association : int
            That it came by.
        parts : sequence of buffer
            What stands before the data set in a file, and the data set.
        limits : (int, int)
            The most instances of a series, and series that are not finished: open, or with a part of their results.

        Returns
        -------
        bool
            False if the very same instance was there before, and nothing was done. One whose file was lost or has
            changed on the disk is not there.

        Raises
        ------
        Refused
            There is another instance with its UID, or too much of the series or of series.
        OSError, sqlite3.Error
            It cannot be written.
        """
        digest = hashlib.sha256(parts[-1]).digest()
        length = memoryview(parts[-1]).nbytes
        if self._known(facts.sop, digest, length):
            return False
        file = self.write("instances", *parts)
        size = sum(memoryview(part).nbytes for part in parts)
        try:
            with self.transaction():
                if self._known(facts.sop, digest, length):
                    self.remove("instances", [file])
                    return False
                broken = self.files("instance WHERE sop=?", facts.sop)
                self.do("DELETE FROM instance WHERE sop=?", facts.sop)
                series = self._series(facts, *limits)
                self.do(
                    "INSERT INTO instance(series, association, sop, sop_class, sha256, file, bytes, received, related, "
                    "acquisition, in_acquisition) VALUES(?,?,?,?,?,?,?,?,?,?,?)",
                    *(series, association, facts.sop, facts.sop_class, digest, file, size, time.time()),
                    *(facts.related, facts.acquisition, facts.in_acquisition),
                )
                self.count("instances_stored")
                self.count("bytes_stored", size)
        except BaseException:
            self.remove("instances", [file])
            raise
        self.remove("instances", broken)
        self._used = self._used[0], self._used[1] + size
        return True

    def _known(self, sop: str, digest: bytes, size: int) -> bool:
        known = self.row("SELECT sha256, file FROM instance WHERE sop=?", sop)
        if known is not None and known["sha256"] != digest:
            raise Refused(status.OTHER_CONTENTS, "another instance with the same UID is stored")
        return known is not None and is_intact(self.path("instances", known["file"]), digest, size)

    def _series(self, facts: Facts, most_instances: int, most_series: int) -> int:
        """The row of the series of an instance, which is open from now on."""
        known = self.row("SELECT id, state FROM series WHERE uid=?", facts.key)
        if known is None or known["state"] not in ("open", "part"):
            (unfinished,) = self.row("SELECT COUNT(*) FROM series WHERE state IN ('open', 'part')")
            if unfinished >= most_series:
                raise Refused(status.OUT_OF_RESOURCES, "too many series are unfinished")
        if known is None:
            return self.do("INSERT INTO series(uid, state) VALUES(?, 'open')", facts.key)
        (instances,) = self.row("SELECT COUNT(*) FROM instance WHERE series=?", known["id"])
        if instances >= most_instances:
            raise Refused(status.OUT_OF_RESOURCES, "the series has too many instances")
        self.do("UPDATE series SET state='open', crashes=0 WHERE id=?", known["id"])
        return int(known["id"])

    # results

    def begin_results(self, series: int, last: int) -> bool:
        """Begin a revision of the results of a series; False if it goes on after ``last``, or was dropped."""
        with self.transaction():
            if not self._ends_with(series, last):
                return False
            self.do("UPDATE series SET state='part', revision=revision+1 WHERE id=?", series)
        return True

    def add_results(self, series: int, results: Sequence[Made], destinations: Sequence[str]) -> None:
        """Note results of the revision that was begun, to be sent to each destination; remove them if that fails."""
        now = time.time()
        try:
            with self.transaction():
                (revision,) = self.row("SELECT revision FROM series WHERE id=?", series)
                for made in results:
                    row = self.do(
                        "INSERT INTO result(series, revision, kind, sop_class, sop, file, bytes, made)"
                        " VALUES(?,?,?,?,?,?,?,?)",
                        *(series, revision, *made, self.path("results", made.file).stat().st_size, now),
                    )
                    for destination in destinations:
                        self.do(
                            "INSERT INTO delivery(result, destination, state, due) VALUES(?, ?, 'waiting', ?)",
                            *(row, destination, now),
                        )
        except BaseException:
            self.remove("results", [made.file for made in results])
            raise

    def end(self, series: int, last: int, reason: str | None = None) -> bool:
        """End a series, with the reason if it has no results; False if it goes on after ``last``, or was dropped."""
        with self.transaction():
            if not self._ends_with(series, last):
                return False
            self.do(
                "UPDATE series SET state=?, crashes=0, reason=?, ended=? WHERE id=?",
                *("failed" if reason else "done", reason, time.time(), series),
            )
            self.count("series_failed" if reason else "series_done")
        return True

    def _ends_with(self, series: int, last: int) -> bool:
        """Whether a series is unfinished, and has no instances after that of the id ``last``."""
        query = (
            "SELECT 1 FROM series s WHERE id=? AND state IN ('open', 'part')"
            " AND NOT EXISTS (SELECT 1 FROM instance WHERE series=s.id AND id>?)"
        )
        return self.row(query, series, last) is not None

    def bury(self, result: int, destination: str, file: str, reason: str) -> None:
        """Put a result that a destination rejected aside, with the reason."""
        # The same name if this is tried again.
        name = uuid.uuid5(uuid.NAMESPACE_OID, f"{result} {destination}").hex
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            os.link(self.path("results", file), self.path("dead", name + ".dcm"))
        note = {"result": result, "destination": destination, "reason": reason, "time": time.time()}
        self.path("dead", name + ".json").write_text(json.dumps(note) + "\n", encoding="utf-8")
        flush_folder(self.folder / "dead")
        with self.transaction():
            self.do(
                "UPDATE delivery SET state='dead', reason=?, ended=? WHERE result=? AND destination=?",
                *(reason, time.time(), result, destination),
            )
            self.count("results_dead")
