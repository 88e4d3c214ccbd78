"""Series to results: each instance is decoded and segmented as it comes, and the series is ended when it is complete.

Everything here can be lost and made again from the spool: after a restart the instances of a series that is not
finished are simply read once more.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trtseg.errors import ArgumentError, DeviceError, InputError, ModelError
from trtseg.node.config import Config
from trtseg.node.ending import Evidence, due, look
from trtseg.node.files import is_intact
from trtseg.node.log import say, scrub, where
from trtseg.node.results import begun, series_of_pictures, write_results
from trtseg.node.spool import Spool
from trtseg.node.stopping import Stop
from trtseg.warnings import ResultWarning

if TYPE_CHECKING:
    import numpy as np

    from trtseg.api import Segmenter
    from trtseg.io.dicom.volume import Instance
    from trtseg.result import Segmentation
    from trtseg.stream import Stream

_CRASHES = 2  # of the process, after which it leaves an instance alone
_NICE = 5  # by how much the nets give way
_TOGETHER = 8  # instances of a series that are decoded before the next series has its turn
_AHEAD = 48  # slices that may wait for the nets


def lower_nets() -> None:
    """Let the nets of streams give way to all else: what arrives is acknowledged, and a series ended, first.

    On Linux, each thread has a priority of its own, which the threads that it starts have too: those of trtseg's own
    engine. OpenVINO's threads keep theirs.
    """
    from trtseg.stream import THREAD

    for thread in threading.enumerate():
        if thread.name == THREAD and thread.native_id:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread.native_id, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)


class Series:
    """A series on its way through the nets."""

    def __init__(self, number: int, segmenter: Segmenter) -> None:
        self.number = number
        self.last = 0  # the last instance that was taken
        self.unreadable = 0
        self.instances: list[Instance] = []
        self._planes: list[np.ndarray] = []  # of each
        self._segmenter = segmenter
        self._stream: Stream | None = None

    @property
    def is_ahead(self) -> bool:
        """So many slices wait for the nets that no more should be decoded."""
        if self._stream is None:
            return False
        taken, labelled = self._stream.counts
        return taken - labelled > _AHEAD

    def take(self, file: Any) -> None:
        """Decode an instance and give its slices to the nets; an InputError if it cannot be decoded."""
        from trtseg.io.dicom import read_slice
        from trtseg.io.dicom.frames import slices_of
        from trtseg.io.dicom.series import volumes
        from trtseg.io.dicom.volume import Instance

        header, hu = read_slice(file)
        slices = slices_of("instance", header)
        why_not = volumes([(file, header)], [slices])[1][0].reason  # a localizer, for example
        self.instances.append(Instance(file, header, slices))
        planes = hu[None] if hu.ndim == 2 else hu
        self._planes.append(planes)
        if why_not:
            return
        # Slices that do not fit among those before are not streamed; at the end they are segmented or refused by name.
        with contextlib.suppress(ArgumentError, InputError, ModelError):
            if self._stream is None:
                first = slices[0]
                directions, room = tuple(first.orientation), max(2 * _AHEAD, len(planes))
                self._stream = self._segmenter.stream(
                    first.size, spacing=first.spacing, directions=directions, queue=room
                )
            for one in slices:
                self._stream.push(planes[one.frame], one.position)
                lower_nets()

    def finish(self, warnings: Sequence[ResultWarning] = ()) -> Segmentation:
        """Segment what has come, by the rules that a folder is read by; an InputError says why it is no CT.

        The result has ``warnings`` too.
        """
        from trtseg.io.dicom.lost import unplaced
        from trtseg.io.dicom.series import choose, volumes
        from trtseg.io.dicom.volume import assemble

        if not self.instances:
            raise InputError("no instance of the series can be decoded")
        known = [one.slices for one in self.instances]
        instances, candidates = volumes([(one.path, one.header) for one in self.instances], known)
        chosen, _ = choose("the series", candidates, None)
        volume = assemble("the series", instances, chosen.slices, self._planes.__getitem__, chosen.series)
        warnings = (*unplaced(chosen, candidates, instances), *warnings)
        volume = replace(volume, warnings=(*volume.warnings, *warnings))
        self._planes.clear()
        if self._stream is None:
            return self._segmenter.segment(volume)
        return self._stream.finish(volume=volume)

    def close(self) -> None:
        """Give memory back."""
        if self._stream is not None:
            self._stream.close()


def _missing(evidence: Evidence, unreadable: int) -> list[ResultWarning]:
    """Warn of instances without which a series is segmented: nothing else tells of slices that lack at its ends."""
    refused, absent = evidence.refused, max(0, (evidence.related or 0) - evidence.instances)
    again = "send the series again."
    found: list[tuple[str, str]] = []
    if refused and not evidence.is_complete:
        text = f"The node refused {_instances(refused)} that came with this CT; {again}"
        found.append(("slices-refused", text))
    elif absent:
        text = f"Headers speak of {evidence.related} instances, of which {absent} did not come; {again}"
        found.append(("slices-missing", text))
    elif evidence.broken_off and not evidence.is_complete:
        text = f"This CT was broken off while it came, and its sender did not go on; {again}"
        found.append(("slices-missing", text))
    if unreadable:
        text = f"The node could not decode {_instances(unreadable)} of this CT; its log says why."
        found.append(("slices-missing", text))
    told = "Slices may be missing at the ends of the CT, and volumes are lower bounds then."
    return [ResultWarning(code, f"{text} {told}") for code, text in found]


def _instances(count: int) -> str:
    return f"{count} instance{'s' * (count > 1)}"


class Worker:
    """All open series, and what is done for them in turn."""

    def __init__(self, config: Config, spool: Spool, segmenter: Segmenter, current: Any) -> None:
        self.config = config
        self.spool = spool
        self.segmenter = segmenter
        self._current = current
        self._series: dict[int, Series] = {}

    def step(self) -> bool:
        """Take the next instances of series, and end the first that is complete; False if there was nothing to do."""
        open_series = look(self.spool)
        for number in self._series.keys() - open_series.keys():
            self._drop(number)
        busy = False
        for number, evidence in sorted(open_series.items(), key=lambda item: item[1].last):
            if number not in self._series:
                if len(self._series) >= self.config.streams:
                    continue
                self._series[number] = Series(number, self.segmenter)
            series = self._series[number]
            if self._take(series):  # since then, perhaps, the evidence is not that of all its instances
                busy = True
                continue
            ends = due(evidence, self.config.quiet_s, self.config.long_quiet_s)
            if time.time() >= ends and not self._waiting(series, 1):
                self._finish(series, evidence, ends)
                return True  # in the meantime, the evidence of the others has become old
        return busy

    def close(self) -> None:
        """Let all series go; they stay in the spool."""
        for number in list(self._series):
            self._drop(number)

    def _waiting(self, series: Series, most: int) -> Sequence[Any]:
        return self.spool.rows(
            "SELECT id, file, sha256, crashes FROM instance WHERE series=? AND id>? ORDER BY id LIMIT ?",
            *(series.number, series.last, most),
        )

    def _take(self, series: Series) -> bool:
        rows = [] if series.is_ahead else self._waiting(series, _TOGETHER)
        for row in rows:
            try:
                if row["crashes"] >= _CRASHES:
                    raise InputError("decoding it has ended the process")
                if not is_intact(self.spool.path("instances", row["file"]), row["sha256"]):
                    raise InputError(
                        "its file in the store was lost or has changed since it came; send it again"
                    )
                with self._at(row["id"]):
                    series.take(self.spool.path("instances", row["file"]))
            except InputError as error:
                series.unreadable += 1
                say(
                    "instance unreadable", level=logging.WARNING, series=series.number, instance=row["id"],
                    reason=self._reason(error, series),
                )  # fmt: skip
                self.spool.count("instances_unreadable")
            series.last = row["id"]
        return bool(rows)

    def _finish(self, series: Series, evidence: Evidence, ends: float) -> None:
        """End a series with its results or the reason why there are none."""
        try:
            facts = self._make(series, _missing(evidence, series.unreadable))
        except (InputError, ModelError) as error:
            reason = self._reason(error, series)
            facts = {"reason": reason} if self.spool.end(series.number, series.last, reason) else None
        finally:
            self._drop(series.number)
        if facts is None:
            say("series goes on, or was dropped", series=series.number)
            return
        took = time.time() - ends
        self.spool.count("tail_seconds_sum", took)
        self.spool.count("tail_seconds_count")
        is_failed = "reason" in facts
        say(
            "series failed" if is_failed else "series done", level=logging.WARNING if is_failed else logging.INFO,
            series=series.number, instances=len(series.instances), unreadable=series.unreadable,
            refused=evidence.refused, took_s=round(took, 3), **facts,
        )  # fmt: skip

    def _make(self, series: Series, warnings: Sequence[ResultWarning]) -> dict[str, Any] | None:
        """Make the results of a series, and say what they are; None if instances came meanwhile, or it was dropped.

        Each is on its way before the next is written. After a restart in between, those that are missing follow.
        """
        spool, number = self.spool, series.number
        (crashes,) = spool.row("SELECT crashes FROM series WHERE id=?", number)
        if crashes >= _CRASHES:
            raise InputError("segmenting it has ended the process")
        with self._at(-number):
            result = series.finish(warnings)
            have = begun(spool, number, self.segmenter.fingerprint())
            if have is None:
                if not spool.begin_results(number, series.last):
                    return None
                have = {}
            pictures = series_of_pictures(spool, number, series.last)
            count = 0
            with contextlib.closing(
                write_results(spool, result, self.config.results, have, pictures)
            ) as parts:
                for made in parts:
                    spool.add_results(number, made, self.config.destinations)
                    count += len(made)
        if not spool.end(number, series.last):
            return None
        facts = {"results": count, "warnings": [warning.code for warning in result.warnings]}
        return facts | ({"note": "no liver found"} if result.liver_ml == 0 else {})

    def _drop(self, number: int) -> None:
        self._series.pop(number).close()

    def _reason(self, error: Exception, series: Series) -> str:
        headers = [one.header for one in series.instances[:3]]
        return scrub(str(error).replace(str(self.config.store), ""), headers)

    @contextlib.contextmanager
    def _at(self, number: int) -> Iterator[None]:
        """Leave word what this process works at, for the case that it does not survive it."""
        self._current.value = number
        try:
            yield
        except (InputError, ModelError, OSError, sqlite3.Error):  # has a reason, or is not of the instance
            raise
        except Exception:  # memory that may be there next time, or a fault that would keep the others waiting
            self.spool.blame(number)
            raise
        finally:
            self._current.value = 0


def work(config: Config, current: Any) -> None:
    """Segment until SIGTERM; the body of the segmenting process."""
    if config.worker_mb:
        resource.setrlimit(resource.RLIMIT_AS, (config.worker_mb * 1_000_000,) * 2)
    stop = Stop(signal.SIGTERM)
    import highdicom  # noqa: F401 - takes seconds, which the first series should not

    import trtseg.io.dicom_out
    import trtseg.report.captures  # noqa: F401
    from trtseg.api import Segmenter

    spool = Spool(config.store)
    lock = spool.lock("work")
    spool.sweep("results", "result")
    with Segmenter(
        config.model, device=config.device, precision=config.precision, threads=config.threads
    ) as segmenter:
        gc.collect()
        gc.freeze()  # else a collection in the middle of a series looks through all modules, for 0.2 s
        say("ready", device=segmenter.device, precision=segmenter.precision)
        worker = Worker(config, spool, segmenter, current)
        while not stop.is_set():
            start = time.monotonic()
            try:
                busy = worker.step()
            except (OSError, MemoryError, DeviceError, sqlite3.Error) as error:  # a full disk, for example
                say("failed", level=logging.ERROR, reason=where(error))
                worker.close()  # begins again from the spool
                stop.wait(5)
                continue
            stop.wait(0 if busy else max(0.02, 5 * (time.monotonic() - start)))
        worker.close()
    lock.close()
    say("stopped")
    os._exit(0)
