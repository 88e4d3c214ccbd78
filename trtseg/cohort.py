"""Several CTs through one `Segmenter`: `plan` says which files are written for each of them, `run` makes the files.

>>> from trtseg import Segmenter, cohort
>>> with cohort.plan(["a.nii.gz", "b.nii.gz"], "results") as cases:      # doctest: +SKIP
...     for outcome in cohort.run(cases, Segmenter()):
...         print(outcome.case.source, outcome.error or outcome.result.liver_ml)
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trtseg.errors import ArgumentError, InputError
from trtseg.io import check_target, load
from trtseg.io.atomic import resolve_target
from trtseg.io.find import find_cts, made_by
from trtseg.io.folders import check_writable, made_folder
from trtseg.io.names import WRITTEN, is_folder, stem
from trtseg.resources import memory_for

if TYPE_CHECKING:
    from trtseg.api import Segmenter
    from trtseg.result import Segmentation
    from trtseg.volume import Volume

_PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Case:
    """A CT and the files that are written for it; ``report`` and ``preview`` are None where nobody wants them."""

    source: Path
    labels: Path
    report: Path | None = None
    preview: Path | None = None

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files to write, labels first."""
        return tuple(path for path in (self.labels, self.report, self.preview) if path is not None)

    def is_done(self, fingerprint: str) -> bool:
        """Tell whether all files to write are there, later than the CT, and of the Segmenter with this fingerprint."""
        try:
            times = [path.stat().st_mtime_ns for path in (self.source, *self.outputs)]
        except OSError:
            return False
        # The files of a case are written in this order: a report that is older than its labels is of another run.
        return times == sorted(times) and made_by(self.labels) == fingerprint


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes
    ----------
    case : Case
        The case.
    result : Segmentation or None
        The segmentation, once its files are written; None if the case failed. It is large: whoever goes through many
        cases takes the figures out of it and lets it go.
    error : Exception or None
        Why the case failed: a TrtsegError, or any other exception, which is a bug of trtseg.
    seconds : float
        Time to read, segment and write this case, without waiting for other cases.
    """

    case: Case
    result: Segmentation | None
    error: Exception | None
    seconds: float


@contextmanager
def plan(
    inputs: Sequence[_PathLike],
    output: _PathLike | None = None,
    *,
    report: bool = False,
    preview: bool = False,
    name: str = "output",
) -> Iterator[tuple[Case, ...]]:
    """Decide which files are written, and find out now whether they can be.

    For several CTs, the folder ``output`` exists inside the ``with`` block. If `plan` created the folder and nothing
    was written to it, the folder is removed at the end of the block.

    Parameters
    ----------
    inputs : sequence of path
        The CTs, and folders of CTs, see `trtseg.io.find.find_cts`. Whether CTs can be read is found out by `run`, since
        one bad CT must not stop the others. Of several files, label maps that trtseg wrote are left out.
    output : path, optional
        For one CT a file, ``.nii.gz``, ``.nii``, ``.nrrd`` or ``.mha``, or an existing folder. For several CTs, and for
        those of a folder, a folder, created where needed. In a folder, labels are named ``<input>_seg.nii.gz``. CTs
        from folders keep the folders that they are in, and so do files if two of them have the same name. The default
        is the current folder.
    report, preview : bool
        Whether each case gets a report (``.json``) and a preview (``.png``) beside its labels.
    name : str
        How messages call ``output``.

    Yields
    ------
    tuple of Case
        The cases, in the order of ``inputs``.

    Raises
    ------
    ArgumentError
        If there is no input, ``output`` does not suit the number of inputs, an output is an input, or two cases
        would be written to one file.
    InputError
        If a folder holds no CT, or cannot be listed.
    OutputError
        If an output cannot be written.
    """
    folder = Path() if output is None else Path(output)
    is_file = folder.name.lower().endswith(WRITTEN) and not is_folder(folder)
    found = _find([Path(path) for path in inputs], folder)
    sources = [source for source, _ in found]
    if is_file and len(found) > 1:
        raise ArgumentError(f"{name}: got the file {folder} for {len(found)} inputs; expected a folder")
    several = not is_file and (len(found) > 1 or sources[0] != Path(inputs[0]))
    names = [place.with_name(f"{place.name}_seg.nii.gz") for _, place in found]
    labels = [folder / file for file in names] if several else [file_in(folder, names[0].name, name=name)]
    check_target(labels[0])
    cases = tuple(
        Case(
            source,
            target,
            target.with_name(f"{stem(target)}.json") if report else None,
            target.with_name(f"{stem(target)}.png") if preview else None,
        )
        for source, target in zip(sources, labels, strict=True)
    )
    folders = dict.fromkeys(path.parent for path in labels)
    with ExitStack() as made:
        for path in (folder, *folders) if several else ():
            made.enter_context(made_folder(path, name))
        _check_targets(cases, name)
        for path in folders:
            check_writable(path, name)
        yield cases


def run(
    cases: Sequence[Case],
    segmenter: Segmenter,
    *,
    orientation: str | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Generator[Outcome, None, None]:
    """Segment cases and write their files, one case after the other; a case that fails does not stop the others.

    Three steps run side by side: one thread reads the next CT, one thread segments, and the thread that iterates
    writes. At most one CT is read ahead, and at most one finished result waits to be written. Nothing starts before
    the first outcome is asked for.

    When the iteration ends early (an exception in the caller, ``KeyboardInterrupt``, ``close()``), a file that is
    being written is removed, the nets stop after the slices that they have begun, and both threads have ended before
    the iterator is closed. Files of earlier cases stay.

    Parameters
    ----------
    cases : sequence of Case
        What `plan` made.
    segmenter : Segmenter
        Segments all cases.
    orientation : str, optional
        How all cases lie, see `trtseg.load`.
    progress : callable, optional
        Called with a text, such as ``2/3 b.nii.gz: segmenting``, and the fraction of all cases that is done. Two
        threads call it.

    Yields
    ------
    Outcome
        Of each case, in the order of ``cases``, as soon as its files are written.
    """
    stopped = threading.Event()

    def check_stopped() -> None:
        if stopped.is_set():
            raise CancelledError

    def tell(index: int, case: Case, doing: str, fraction: float) -> None:
        check_stopped()
        if progress is not None:
            which = f"{index + 1}/{len(cases)} " if len(cases) > 1 else ""
            progress(f"{which}{case.source.name}: {doing}", (index + fraction) / len(cases))

    def read() -> Iterator[_Work]:
        for case in cases:
            check_stopped()
            work = _Work(case)
            with work.attempt():
                work.volume = load(case.source)
            work.read_seconds = work.seconds
            yield work

    def segment(works: Iterator[_Work]) -> Iterator[_Work]:
        for index, case in enumerate(cases):
            tell(index, case, "reading", 0.0)
            work = next(works)
            if work.volume is not None:
                with work.attempt():
                    told = partial(tell, index, case)
                    work.result = segmenter.segment(work.volume, orientation=orientation, progress=told)
            yield work

    with _ahead(read()) as volumes, _ahead(segment(volumes)) as segmented:
        try:
            for index, work in enumerate(segmented):
                if work.result is not None:
                    with work.attempt():
                        tell(index, work.case, "writing", 1.0)
                        work.result = _written(work.case, work.result, work.read_seconds)
                yield work.outcome()
        finally:
            stopped.set()


def file_in(
    output: Path, file_name: str, *, name: str = "output", endings: tuple[str, ...] = WRITTEN
) -> Path:
    """Path to write: ``output`` itself if its name has one of the endings, ``file_name`` in it if it is a folder.

    An ArgumentError, which calls ``output`` by ``name``, says that it is neither.
    """
    if is_folder(output):
        return output / file_name
    if not output.name.lower().endswith(endings):
        known = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise ArgumentError(
            f"{name}: got {output}; expected a name ending in {known}, or a folder that exists"
        )
    return output


def _find(inputs: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """Find the CTs, each with its place in the folder of the results: a path without an ending."""
    if not inputs:
        raise ArgumentError("inputs: got none; expected the path of at least one CT")
    files = [path for path in inputs if not is_folder(path)]
    if len(inputs) > 1:
        files = [path for path in files if made_by(path) is None]
    parents = [Path(os.path.abspath(path.parent)) for path in files]  # noqa: PTH100 - links stay
    is_unique = len({stem(path) for path in files}) == len(set(files))
    top = Path(os.path.commonpath(parents)) if parents else Path()
    places = {
        path: Path(stem(path)) if is_unique else parent.relative_to(top) / stem(path)
        for path, parent in zip(files, parents, strict=True)
    }
    found: list[tuple[Path, Path]] = []
    for path in inputs:
        if not is_folder(path):
            found += [(path, places[path])] if path in places else []
            continue
        cts, labels = find_cts(path, output)
        if labels and not cts:
            raise InputError(f"{path}: holds no CT, but {len(labels)} label maps; give the folder of the CTs")
        start = Path(stem(path)) if len(inputs) > 1 else Path()
        for ct in cts or [path]:  # reading a folder without CTs says what is wrong with it
            inside = Path(stem(path)) if ct == path else start / ct.relative_to(path).parent / stem(ct)
            found.append((ct, inside))
    if not found:
        raise InputError("inputs: got label maps that trtseg wrote, and no CT; give the CTs")
    return found


def _check_targets(cases: Sequence[Case], name: str) -> None:
    """Refuse outputs that would replace an input, or the output of another case."""
    sources = {os.path.realpath(case.source): case.source for case in cases}
    claimed: dict[str, Path] = {}
    for case in cases:
        for output in case.outputs:
            target = os.fspath(resolve_target(output))
            if target in sources:
                raise ArgumentError(f"{name}: {output} is the input {sources[target]}; choose another name")
            if target in claimed:
                raise ArgumentError(
                    f"inputs: {claimed[target]} and {case.source} would both be written to {output}; "
                    "rename one, or segment them into different folders"
                )
            claimed[target] = case.source


@dataclass
class _Work:
    """A case on its way through the three steps of `run`."""

    case: Case
    volume: Volume | None = None
    result: Segmentation | None = None
    error: Exception | None = None
    seconds: float = 0.0
    read_seconds: float = 0.0

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Add the time of the body; an exception in the body becomes the case's error, and ends its way."""
        start = time.perf_counter()
        try:
            with memory_for(os.fspath(self.case.source), 0):
                yield
        except Exception as error:
            self.volume, self.result, self.error = None, None, error
        self.seconds += time.perf_counter() - start

    def outcome(self) -> Outcome:
        """Give result and error away; the work keeps nothing large."""
        outcome = Outcome(self.case, self.result, self.error, self.seconds)
        self.volume = self.result = self.error = None
        return outcome


def _written(case: Case, result: Segmentation, seconds: float) -> Segmentation:
    """Write the files of a case, and return the result without its CT, which whoever keeps many results would keep too.

    The segmenter does not know the ``seconds`` of reading: it is handed a Volume, which is read already.
    """
    result = dataclasses.replace(result, timings={**result.timings, "read": seconds})
    result.save(case.labels, report=case.report, preview=case.preview)
    return dataclasses.replace(result, volume=None)


@contextmanager
def _ahead(works: Iterator[_Work]) -> Iterator[Iterator[_Work]]:
    """Let a thread of its own advance ``works``, always one item before the item that is asked for.

    The thread has ended when the ``with`` block ends.
    """
    with ThreadPoolExecutor(1) as thread:

        def taken() -> Iterator[_Work]:
            coming = thread.submit(next, works, None)
            while (work := coming.result()) is not None:
                coming = thread.submit(next, works, None)
                yield work

        yield taken()
