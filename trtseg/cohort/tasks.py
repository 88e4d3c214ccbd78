"""What a worker is asked to do, what it does, and what it answers."""

from __future__ import annotations

import pickle
import platform
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trtseg.cohort.case import Case
from trtseg.cohort.pipeline import save
from trtseg.cohort.remote import fetched
from trtseg.cohort.table import row_of
from trtseg.resources import memory_for
from trtseg.warnings import ResultWarning


@dataclass(frozen=True)
class Setup:
    """What a worker is made for: arguments of its `Segmenter`, and what is the same for all cases."""

    options: Mapping[str, Any]
    orientation: str | None
    keep_identity: bool
    is_shared: bool = True  # as of `trtseg.cohort.dispatch.Crew`


@dataclass(frozen=True)
class Task:
    """A case for a worker, and the folder that its files go into in the end."""

    case: Case
    seen: str
    staged: Path
    attempt: int = 1


@dataclass(frozen=True)
class Ready:
    """A worker has loaded its model, which has this fingerprint."""

    fingerprint: str
    about: str


@dataclass(frozen=True)
class Done:
    """The files of a case are made."""

    row: dict[str, Any]
    warnings: tuple[ResultWarning, ...]
    seconds: float
    files: dict[str, bytes]  # those that the worker could not write itself


@dataclass(frozen=True)
class Failed:
    """A worker cannot start, or cannot do a case."""

    error: Exception
    seconds: float = 0.0


@dataclass(frozen=True)
class Lost:
    """A worker is not there any more."""

    reason: str


Reply = Ready | Done | Failed | Lost


class Bench:
    """A place to work at: the `Segmenter`, loaded once, and what is done with it, case by case.

    A worker does one case at a time and keeps nothing of it, so its memory is that of the nets and of one CT.
    """

    def __init__(self, setup: Setup) -> None:
        from trtseg.api import Segmenter

        self._setup = setup
        self._segmenter = Segmenter(**setup.options)

    def ready(self) -> Ready:
        """Say what the worker computes with."""
        fingerprint = self._segmenter.fingerprint(self._setup.orientation)
        about = f"{platform.node()}: {self._segmenter.device}, {self._segmenter.precision}"
        return Ready(fingerprint, about)

    def do(self, task: Task) -> Done | Failed:
        """Read, segment and write a case."""
        start = time.perf_counter()
        try:
            if self._setup.is_shared:
                for left in task.staged.iterdir():  # by a worker that was lost
                    left.unlink()
                return self._do(task.case, task.staged, start)
            with TemporaryDirectory(prefix="trtseg-") as folder:
                return self._do(task.case, Path(folder), start, take=True)
        except Exception as error:
            return Failed(portable(error), time.perf_counter() - start)

    def _do(self, case: Case, folder: Path, start: float, take: bool = False) -> Done:
        with memory_for(case.input, 0):
            with fetched(case) as source:
                result = self._segmenter.segment(
                    source, series=case.series, orientation=self._setup.orientation
                )
            save(case, result, self._setup.keep_identity, folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()} if take else {}
        seconds = time.perf_counter() - start
        return Done(row_of(result, seconds), result.warnings, seconds, files)


def portable(error: Exception) -> Exception:
    """The same error, fit to be sent to another process; what cannot be sent becomes a RuntimeError that says it.

    The traceback, which would be lost, becomes a note.
    """
    lines = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
        sent = error.with_traceback(None)
    except Exception:
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(f"In the worker:\n{lines}")
    return sent
