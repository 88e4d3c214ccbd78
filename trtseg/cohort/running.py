"""Segment all cases of a cohort: in this process, in others, or on other machines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtseg.cohort.case import Case, Outcome
from trtseg.cohort.dispatch import Crew, Dispatcher
from trtseg.cohort.manifest import Manifest
from trtseg.cohort.pace import Pace
from trtseg.cohort.pipeline import pipeline, save
from trtseg.cohort.processes import Processes
from trtseg.cohort.remote import look
from trtseg.cohort.table import row_of
from trtseg.cohort.tasks import Done, Failed, Setup, Task
from trtseg.errors import ArgumentError
from trtseg.io.atomic import atomic
from trtseg.resources import available_cpus, check_threads

if TYPE_CHECKING:
    from trtseg.api import Segmenter
    from trtseg.result import Segmentation

_Outcomes = Generator[Outcome, None, None]


@dataclass(frozen=True)
class Workers:
    """Processes that segment, each with a `Segmenter` of its own.

    Attributes
    ----------
    jobs : int or None
        How many; by default one for each processor that this process may use, with Ray one for each ``threads`` of
        the cluster's processors.
    ray : str or None
        Address of a Ray cluster, whose machines the workers run on: ``host:port``, ``auto``, or ``local`` for a
        cluster on this machine, for a try. Nodes need trtseg, and the inputs under the same paths or URLs.
    retries : int
        How often a case is tried again whose worker was lost, or that found too little memory.
    options : mapping
        Arguments of `Segmenter`. ``threads`` are those of each worker; by default the processors of this process are
        shared out, and with Ray each worker has one.
    """

    jobs: int | None = None
    ray: str | None = None
    retries: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)

    def crew(self) -> Crew:
        """Make the crew; nobody is hired yet."""
        if self.jobs is not None and (not isinstance(self.jobs, int) or self.jobs < 1):
            raise ArgumentError(f"jobs: got {self.jobs!r}; expected a whole number of at least 1")
        threads = check_threads(self.options.get("threads"))
        if self.ray is not None:
            from trtseg.cohort.ray_crew import RayCrew

            is_gpu = str(self.options.get("device", "auto")).startswith("cuda")
            return RayCrew(self.ray, self.jobs, threads or 1, is_gpu)
        cpus = available_cpus()
        jobs = self.jobs or max(1, cpus // (threads or 1))
        return Processes(jobs, threads or max(1, cpus // jobs))


def run(
    cases: Sequence[Case],
    segmenter: Segmenter | Workers,
    *,
    folder: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    orientation: str | None = None,
    keep_identity: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> _Outcomes:
    """Segment cases and write their files; a case that fails does not stop the others.

    With a `Segmenter`, three steps run side by side: one thread reads the next CT, one thread segments, and the thread
    that iterates writes. At most one CT is read ahead, and at most one finished result waits to be written. With
    `Workers`, each does one case at a time. Nothing starts before the first outcome is asked for.

    When the iteration ends early (an exception in the caller, ``KeyboardInterrupt``, ``close()``), nothing is left
    half-written, the nets stop, and threads and processes have ended before the iterator is closed. Files of earlier
    cases stay. With a ``folder``, the same call goes on from there, also after the process was killed.

    Parameters
    ----------
    cases : sequence of Case
        What `plan` made.
    segmenter : Segmenter or Workers
        Segments all cases.
    folder : Path, optional
        The folder of the results, for the manifest of what is complete (``cohort.jsonl``) and the table of all
        measurements (``cohort.csv``), see `trtseg.cohort.manifest`. `Workers` need it.
    overwrite : bool
        Do cases again that the manifest says are complete, of the same CT, model and options, and replace what was made
        of another CT, what was changed after trtseg had written it, and labels that trtseg did not write.
    orientation : str, optional
        How all cases lie, see `trtseg.load`.
    keep_identity : bool
        Pages show the name of the input.
    progress : callable, optional
        Called with a text, such as ``2/3 b.nii.gz: segmenting, 120 CTs an hour, 2 min left``, and the fraction of all
        cases that is done. Two threads call it.

    Yields
    ------
    Outcome
        Of each case as soon as its files are written: first the cases that were complete before; then, from a
        `Segmenter`, in the order of ``cases``, and from `Workers` as they come.

    Raises
    ------
    ArgumentError
        Workers without a folder, or results of another CT or labels of others would be replaced.
    OutputError
        The manifest cannot be written, or another process writes there.
    TrtsegError
        No worker can start.
    """
    if folder is None:
        if isinstance(segmenter, Workers):
            raise ArgumentError("folder: got None with Workers; expected the folder of the results")
        pace = Pace(len(cases), progress)

        def write(case: Case, result: Segmentation, seen: str, seconds: float) -> None:
            save(case, result, keep_identity)

        yield from pipeline(cases, segmenter, write, orientation=orientation, pace=pace)
        return
    with ExitStack() as stack:
        manifest = stack.enter_context(Manifest(Path(folder), overwrite))
        manifest.check_inputs(cases)
        if isinstance(segmenter, Workers):
            crew = segmenter.crew()
            stack.callback(crew.close)
            setup = Setup(segmenter.options, orientation, keep_identity, crew.is_shared)
            dispatcher = Dispatcher(crew, setup, segmenter.retries)
            fingerprint = dispatcher.start()
            segmented = partial(_Staged.by_workers, dispatcher=dispatcher)
        else:
            fingerprint = segmenter.fingerprint(orientation)
            segmented = partial(_Staged.here, segmenter=segmenter, orientation=orientation)
        todo = []
        for case in cases:
            changed = manifest.changed(case)
            is_done = not overwrite and manifest.is_done(case, _made_by(fingerprint, case, keep_identity))
            if is_done or changed is not None:
                row = manifest.row(case)
                yield Outcome(case, None, None, row.get("seconds", 0.0), row, is_old=True, changed=changed)
            else:
                todo.append(case)
        staged = _Staged(manifest, fingerprint, keep_identity, Pace(len(todo), progress))
        for outcome in stack.enter_context(closing(segmented(staged, todo))):
            if outcome.error is not None:
                manifest.fail(outcome.case, outcome.error)
            yield outcome


@dataclass
class _Staged:
    """Cases whose files are staged, and put where they belong when the manifest says that they are done."""

    manifest: Manifest
    fingerprint: str
    keep_identity: bool
    pace: Pace

    def here(self, cases: Sequence[Case], segmenter: Segmenter, orientation: str | None) -> _Outcomes:
        """Segment in this process."""

        def write(case: Case, result: Segmentation, seen: str, seconds: float) -> None:
            staged = self.manifest.stage()
            save(case, result, self.keep_identity, staged)
            self._finish(case, seen, staged, row_of(result, seconds))

        return pipeline(cases, segmenter, write, orientation=orientation, pace=self.pace)

    def by_workers(self, cases: Sequence[Case], dispatcher: Dispatcher) -> _Outcomes:
        """Segment in other processes."""
        tasks = (Task(case, look(case), self.manifest.stage()) for case in cases)
        replies = dispatcher.run(len(cases), lambda: next(tasks, None))
        with closing(replies):
            for done, (task, reply) in enumerate(replies, 1):
                yield self._take(task, reply)
                self.pace.tell(f"{task.case.source.name}: done", done)  # last, since it may raise

    def _take(self, task: Task, reply: Done | Failed) -> Outcome:
        """Take the answer of a worker, and put the files of a case that is done where they belong."""
        if isinstance(reply, Failed):
            shutil.rmtree(task.staged, ignore_errors=True)
            return Outcome(task.case, None, reply.error, reply.seconds)
        try:
            for name, data in reply.files.items():
                with atomic(task.staged / name) as (temporary,):
                    temporary.write_bytes(data)
            self._finish(task.case, task.seen, task.staged, reply.row)
        except Exception as error:
            return Outcome(task.case, None, error, reply.seconds)
        return Outcome(task.case, None, None, reply.seconds, reply.row, reply.warnings)

    def _finish(self, case: Case, seen: str, staged: Path, row: Mapping[str, Any]) -> None:
        """Note a case as done, and put its files where they belong."""
        made_by = _made_by(self.fingerprint, case, self.keep_identity)
        self.manifest.finish(case, seen, made_by, staged, row)


def _made_by(fingerprint: str, case: Case, keep_identity: bool) -> str:
    """What stands for the model and all options that decide on the content of the case's files."""
    return f"{fingerprint}+name" if keep_identity and case.html else fingerprint
