"""Give cases to workers, hire new ones for those that are lost, and try again what they were at."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import replace
from typing import Protocol

from trtseg.cohort.tasks import Done, Failed, Lost, Ready, Reply, Setup, Task
from trtseg.errors import DeviceError, OutOfMemoryError, WorkerError

log = logging.getLogger("trtseg")

_STARTS = 3  # in a row that may fail before a place stays empty


class Crew(Protocol):
    """Workers, however they are reached.

    Attributes
    ----------
    size : int
        How many there may be.
    is_shared : bool
        The workers write into the folder of the results; else their files come with the answers.
    together : bool
        Whether cases that are tried again, since a worker was lost or had too little memory, may run side by side.
    """

    size: int
    is_shared: bool
    together: bool

    def hire(self, setup: Setup) -> Hashable:
        """Start a worker, whose first answer is Ready, Failed or Lost."""

    def give(self, worker: Hashable, task: Task) -> None:
        """Ask a worker that has nothing to do for a case."""

    def wait(self, seconds: float) -> Sequence[tuple[Hashable, Reply]]:
        """Wait for answers, at most so long."""

    def close(self) -> None:
        """End all workers at once."""


class Dispatcher:
    """Keeps every worker of a crew busy with one case, and holds no more than these cases in memory.

    Parameters
    ----------
    crew : Crew
        The workers.
    setup : Setup
        What they are made for.
    retries : int
        How often a case is tried again whose worker was lost, or that found too little memory.
    """

    def __init__(self, crew: Crew, setup: Setup, retries: int) -> None:
        self._crew, self._setup, self._retries = crew, setup, retries
        self._size = crew.size
        self._idle: list[Hashable] = []
        self._starting: set[Hashable] = set()
        self._busy: dict[Hashable, Task] = {}
        self._again: deque[Task] = deque()
        self._failed_starts = 0
        self._fingerprint = ""

    def start(self) -> str:
        """Wait for the first worker, and return its fingerprint; raise what keeps it from starting."""
        self._hire()
        while not self._idle:
            for worker, reply in self._crew.wait(1.0):
                self._begin(worker, reply)
            if not self._starting and not self._idle:
                self._hire()
        return self._fingerprint

    def run(
        self, count: int, next_task: Callable[[], Task | None]
    ) -> Generator[tuple[Task, Done | Failed], None, None]:
        """Yield each task with its answer, as they come.

        Parameters
        ----------
        count : int
            About how many tasks there are.
        next_task : callable
            Makes the next task when a worker has nothing to do; None if there is none any more.
        """
        left = count
        while True:
            while self._idle:
                task = next_task() if left else None
                if task is None:
                    left = 0
                    task = self._next_again()
                if task is None:
                    break
                left = max(0, left - (task.attempt == 1))
                worker = self._idle.pop()
                self._busy[worker] = task
                self._crew.give(worker, task)
            again = len(self._again)
            if not self._crew.together:  # one at a time, when all others are done
                again = min(again, int(not self._busy))
            wanted = min(self._size, left + again + len(self._busy))
            while len(self._idle) + len(self._starting) + len(self._busy) < wanted:
                self._hire()
            if not self._busy and not left and not self._again:
                return
            for worker, reply in self._crew.wait(1.0):
                if worker in self._starting:
                    self._begin(worker, reply)
                else:
                    yield from self._end(worker, reply)

    def _hire(self) -> None:
        self._starting.add(self._crew.hire(self._setup))

    def _next_again(self) -> Task | None:
        may = self._again and (self._crew.together or not self._busy)
        return self._again.popleft() if may else None

    def _begin(self, worker: Hashable, reply: Reply) -> None:
        """Take a new worker, or do with fewer."""
        self._starting.discard(worker)
        if isinstance(reply, Ready):
            self._fingerprint = self._fingerprint or reply.fingerprint
            if reply.fingerprint != self._fingerprint:
                raise DeviceError(
                    f"workers: {reply.about} would give other labels than the first worker; choose a --device and a "
                    "--precision that all machines have, and one version of trtseg"
                )
            self._failed_starts = 0
            self._idle.append(worker)
            return
        is_first = not self._fingerprint
        if isinstance(reply, Failed) and is_first:
            raise reply.error
        self._failed_starts += 1
        why = str(reply.error) if isinstance(reply, Failed) else getattr(reply, "reason", "")
        if self._failed_starts < _STARTS:
            return
        if is_first or not (self._busy or self._idle or self._starting):
            raise WorkerError(f"workers: {_STARTS} in a row could not start ({why}); try fewer with --jobs")
        log.warning("a worker cannot start (%s); going on with %d", why, self._size - 1)
        self._failed_starts, self._size = 0, self._size - 1

    def _end(self, worker: Hashable, reply: Reply) -> Generator[tuple[Task, Done | Failed], None, None]:
        """Yield what became of a task, unless it is tried again."""
        task = self._busy.pop(worker, None)
        if not isinstance(reply, Lost):
            self._idle.append(worker)
        elif worker in self._idle:
            self._idle.remove(worker)
        if task is None:
            return
        is_unlucky = isinstance(reply, Lost) or (
            isinstance(reply, Failed) and isinstance(reply.error, OutOfMemoryError)
        )
        if is_unlucky and task.attempt <= self._retries:
            self._again.append(replace(task, attempt=task.attempt + 1))
        elif isinstance(reply, Lost):
            said = f"{task.case.input}: its worker was lost {task.attempt} times: {reply.reason}"
            yield task, Failed(WorkerError(f"{said}; give it more memory, or leave it out"))
        elif isinstance(reply, (Done, Failed)):
            yield task, reply
