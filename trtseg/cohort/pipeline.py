"""One `Segmenter` and many CTs: the next CT is read, and the last one written, while the nets run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtseg.cohort.case import Case, Outcome
from trtseg.cohort.pace import Pace
from trtseg.cohort.remote import fetched, look
from trtseg.cohort.table import row_of
from trtseg.errors import OutputError
from trtseg.io import load
from trtseg.resources import memory_for

if TYPE_CHECKING:
    from trtseg.api import Segmenter
    from trtseg.result import Segmentation
    from trtseg.volume import Volume


def pipeline(
    cases: Sequence[Case],
    segmenter: Segmenter,
    write: Callable[[Case, Segmentation, str, float], None],
    *,
    orientation: str | None,
    pace: Pace,
) -> Generator[Outcome, None, None]:
    """Segment cases one after the other, see `trtseg.cohort.run`.

    ``write`` makes the files of a case; it is called with the `look` of the CT before it was read, and the
    seconds that the case has taken.
    """
    stopped = threading.Event()

    def check_stopped() -> None:
        if stopped.is_set():
            raise CancelledError

    def tell(index: int, case: Case, doing: str, fraction: float) -> None:
        check_stopped()
        pace.tell(f"{case.source.name}: {doing}", index, fraction)

    def read() -> Iterator[_Work]:
        for case in cases:
            check_stopped()
            work = _Work(case, look(case))
            with work.attempt(), fetched(case) as source:
                work.volume = load(source, series=case.series, orientation=orientation)
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
                        # The segmenter does not know it, since it is handed a Volume, which is read already.
                        timings = {**work.result.timings, "read": work.read_seconds}
                        work.result = replace(work.result, timings=timings)
                        write(work.case, work.result, work.seen, work.seconds)
                yield work.outcome()
        finally:
            stopped.set()


def save(case: Case, result: Segmentation, keep_identity: bool, staged: Path | None = None) -> None:
    """Write the files of a case, or for now into the folder ``staged``; errors name where they belong."""
    own = case if staged is None else case.into(staged)
    more: dict[str, Any] = {name: getattr(own, name) for name in ("report", "preview", "html")}
    try:
        if case.dicom:
            result.save_dicom(own.labels.parent, case.dicom, **more, keep_identity=keep_identity)
        else:
            result.save(own.labels, **more, keep_identity=keep_identity)
    except OutputError as error:
        error.args = (str(error).replace(str(own.labels.parent), str(case.labels.parent)),)
        raise


@dataclass
class _Work:
    """A case on its way through the three steps of `pipeline`."""

    case: Case
    seen: str
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
            with memory_for(self.case.input, 0):
                yield
        except Exception as error:
            self.volume, self.result, self.error = None, None, error
        self.seconds += time.perf_counter() - start

    def outcome(self) -> Outcome:
        """Give result and error away; the work keeps nothing large."""
        result, error, self.volume, self.result, self.error = self.result, self.error, None, None, None
        if result is None:
            return Outcome(self.case, None, error, self.seconds)
        # Whoever keeps many results would keep their CTs too.
        result, row = replace(result, volume=None), row_of(result, self.seconds)
        return Outcome(self.case, result, None, self.seconds, row, result.warnings)


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
