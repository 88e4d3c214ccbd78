"""Several CTs through one `Segmenter`: `plan` says which files are written for each of them, `run` makes the files.

>>> from trtseg import Segmenter, cohort
>>> with cohort.plan(["a.nii.gz", "b.nii.gz"], "results") as cases:      # doctest: +SKIP
...     for outcome in cohort.run(cases, Segmenter()):
...         print(outcome.case.source, outcome.error or outcome.result.liver_ml)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtseg.errors import ArgumentError, InputError
from trtseg.io import check_target, load
from trtseg.io.atomic import resolve_target
from trtseg.io.dicom import one_of_each_series
from trtseg.io.dicom_out import check_inputs, check_kinds, file_names
from trtseg.io.find import find_cts, made_by
from trtseg.io.folders import check_writable, made_folder
from trtseg.io.names import SEG, WRITTEN, is_folder, stem
from trtseg.report.index import read_facts
from trtseg.resources import memory_for

if TYPE_CHECKING:
    from trtseg.api import Segmenter
    from trtseg.result import Segmentation
    from trtseg.volume import Volume

_PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Case:
    """A CT and the files that are written for it; what nobody wants besides is None.

    ``series`` is that of `trtseg.load`. With kinds of ``dicom`` objects, ``labels`` is the first of their files,
    and the folder that it is in belongs to the case.
    """

    source: Path
    labels: Path
    report: Path | None = None
    preview: Path | None = None
    html: Path | None = None
    series: str | None = None
    dicom: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The files to write, labels first; of DICOM pictures the first."""
        more = [self.labels.with_name(name) for _, name in file_names(self.dicom)[1:]]
        paths = (self.labels, *more, self.report, self.preview, self.html)
        return tuple(path for path in paths if path is not None)

    def is_done(self, fingerprint: str, *, keep_identity: bool = False) -> bool:
        """Tell whether all files are there, newer than the CT, of this Segmenter, pages as ``keep_identity`` says."""
        try:
            times = [path.stat().st_mtime_ns for path in (self.source, *self.outputs)]
        except OSError:
            return False
        # The files of a case are written in this order: a report that is older than its labels is of another run.
        named = keep_identity if self.html is None else read_facts(self.html).get("named")
        return times == sorted(times) and (made_by(self.labels), named) == (fingerprint, keep_identity)


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
    html: bool = False,
    series: str | None = None,
    dicom: Sequence[str] = (),
    name: str = "output",
) -> Iterator[tuple[Case, ...]]:
    """Decide which files are written, and find out now whether they can be.

    For several CTs, the folder ``output`` exists inside the ``with`` block. If `plan` created the folder and nothing
    was written to it, the folder is removed at the end of the block.

    Parameters
    ----------
    inputs : sequence of path
        The CTs, and folders of CTs, see `trtseg.io.find.find_cts`. Whether CTs can be read is found out by `run`, since
        one bad CT must not stop the others. Of several files, label maps that trtseg wrote are left out, and DICOM
        files that lie beside an earlier one of their series.
    output : path, optional
        For one CT a file, ``.nii.gz``, ``.nii``, ``.nrrd``, ``.mha`` or ``.dcm``, or an existing folder. For several
        CTs, and for those of a folder, a folder, created where needed. In a folder, labels are named
        ``<input>_seg.nii.gz``. CTs from folders keep the folders that they are in, and so do files if two of them have
        the same name. The default is the current folder.
    report, preview, html : bool
        Whether each case gets a report (``.json``), a preview (``.png``) and a page (``.html``) beside its labels.
    series : str, optional
        Series Instance UID of the DICOM series to take of the only input.
    dicom : sequence of str
        Kinds of DICOM objects, see `trtseg.result.Segmentation.save_dicom`: each case gets a folder
        ``<input>_dicom`` with them, instead of a file of labels.
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
    if series is not None and len(inputs) != 1:
        raise ArgumentError(
            f"series: got one for {len(inputs)} inputs; expected one input, a folder or a zip"
        )
    kinds = check_kinds(dicom, "dicom") if dicom else ()
    if is_file and kinds:
        raise ArgumentError(f"{name}: got the file {folder} for several DICOM objects; expected a folder")
    found = _find([Path(path) for path in inputs], folder) if series is None else [_single(Path(inputs[0]))]
    sources = [source for source, _ in found]
    if is_file and len(found) > 1:
        got = f"{len(found)} inputs ({', '.join(map(str, sources[:3]))}{', ...' * (len(found) > 3)})"
        raise ArgumentError(f"{name}: got the file {folder} for {got}; expected a folder, or one input")
    if kinds or folder.name.lower().endswith(SEG):
        check_inputs(sources, name)
    several = not is_file and (len(found) > 1 or sources[0] != Path(inputs[0]) or bool(kinds))
    names = [place.with_name(f"{place.name}_seg.nii.gz") for _, place in found]
    if kinds:
        names = [place.with_name(f"{place.name}_dicom") / file_names(kinds)[0][1] for _, place in found]
    labels = [folder / file for file in names] if several else [file_in(folder, names[0].name, name=name)]
    check_target(labels[0])
    cases = tuple(
        Case(
            source,
            target,
            target.with_name(f"{stem(target)}.json") if report else None,
            target.with_name(f"{stem(target)}.png") if preview else None,
            target.with_name(f"{stem(target)}.html") if html else None,
            series,
            kinds,
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
    keep_identity: bool = False,
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
                work.volume = load(case.source, series=case.series)
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
                        work.result = _written(work.case, work.result, work.read_seconds, keep_identity)
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


def _single(path: Path) -> tuple[Path, Path]:
    """Take a path as one CT, whatever is in it."""
    return path, Path(stem(path))


def _find(inputs: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """Find the CTs, each with its place in the folder of the results: a path without an ending."""
    if not inputs:
        raise ArgumentError("inputs: got none; expected the path of at least one CT")
    files = [path for path in inputs if not is_folder(path)]
    if len(inputs) > 1:
        files = one_of_each_series(path for path in files if made_by(path) is None)
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


def _written(case: Case, result: Segmentation, seconds: float, keep_identity: bool) -> Segmentation:
    """Write the files of a case, and return the result without its CT, which whoever keeps many results would keep too.

    The segmenter does not know the ``seconds`` of reading: it is handed a Volume, which is read already.
    """
    result = replace(result, timings={**result.timings, "read": seconds})
    more: dict[str, Any] = {name: getattr(case, name) for name in ("report", "preview", "html")}
    if case.dicom:
        result.save_dicom(case.labels.parent, case.dicom, **more, keep_identity=keep_identity)
    else:
        result.save(case.labels, **more, keep_identity=keep_identity)
    return replace(result, volume=None)


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
