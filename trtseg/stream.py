"""Slices of a scan in, one by one and in any order: their labels as soon as they are there, and the scan's at the end.

A thread of its own runs the nets, so `Stream.push` returns at once. Another thread calls the callback, so a slow or
failing callback holds nothing up. All slices of a scan share one placement on the nets' grid. It comes from the slices
that are there; where a new slice changes it, the slices before it are labelled again, after those that wait.
"""

from __future__ import annotations

import atexit
import bisect
import copy
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtseg import threads
from trtseg.body import Placement, on_threads
from trtseg.cascade.base import Logits, Timings
from trtseg.errors import ArgumentError, BusyError, InputError
from trtseg.fit import Fit
from trtseg.io.dicom.grid import SAME_PLACE_MM
from trtseg.io.slices import SliceGrid
from trtseg.labels.components import count_voxels
from trtseg.labels.postprocess import PostProcess
from trtseg.labels.probability import TumourLogits
from trtseg.resources import check_memory, memory_for
from trtseg.result import Segmentation, conclude
from trtseg.spec import ModelSpec
from trtseg.threads import Teller, Turns, check_timeout, wait_for
from trtseg.volume import Volume

#: Bytes of memory for a voxel, for the labels, the median over slices and the logits.
BYTES_A_VOXEL = 3
#: Name of the thread that runs the nets of a stream.
THREAD = "trtseg stream"
_EXIT_S = 10.0  # that a process which ends waits at most, for the nets may be another thread's
_ROOM = 64  # slices for which there must be memory when a slice comes; a look at the memory takes a moment

Plane = NDArray[np.int16]
#: Called with the position of a slice, as it was pushed, and its labels, uint8 ``[rows, columns]``, read-only.
OnLabels = Callable[[Any, NDArray[np.uint8]], None]


@dataclass(frozen=True)
class Labeller:
    """What a stream needs of a Segmenter.

    Attributes
    ----------
    spec : ModelSpec
        Of the first net.
    label : callable
        Labels canonical slices ``[n, Y, X]`` with a placement and keeps logits; returns labels, and seconds in stages.
    at_once : int
        Slices that are labelled together where several wait.
    threads : int
        Of operations on the whole volume.
    steps : PostProcess
        What follows the nets.
    provenance : callable
        Returns what the result tells of its making.
    turns : Turns
        The lock that ``label`` takes.
    """

    spec: ModelSpec
    label: Callable[[NDArray[np.int16], Fit, Logits], tuple[NDArray[np.uint8], Timings]]
    at_once: int
    threads: int
    steps: PostProcess
    provenance: Callable[[], dict[str, Any]]
    turns: Turns


@dataclass(eq=False)
class _Slice:
    """A slice in canonical order; ``depth`` grows along row direction x column direction, ``fit`` is of the labels."""

    hu: Plane
    position: Any = None
    depth: float = 0.0
    labels: NDArray[np.uint8] | None = None
    logits: NDArray[np.float16] | None = None
    fit: Fit | None = None
    counts: tuple[int, int] = (0, 0)


class Stream:
    """The slices of one scan on their way; made by `trtseg.Segmenter.stream`, which gives ``labeller``.

    Several threads may push. The end of ``with``, or `close`, gives everything back; without a `finish` before, slices
    that wait are dropped. A stream that nobody refers to any more does so a minute after its last slice. Streams of a
    Segmenter take turns, a few slices each, and wait for a `Segmenter.segment`.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of a slice.
    spacing : (float, float)
        Millimetres between rows and between columns: PixelSpacing of DICOM.
    directions : six numbers, optional
        ImageOrientationPatient of DICOM: unit vectors along the rows and along the columns. The position of a slice is
        then its ImagePositionPatient: three numbers, LPS mm. By default slices are in canonical order (rows front to
        back, columns from the patient's right to left), and the position is a number of mm that grows to the head.
    on_labels : callable, optional
        Called as ``on_labels(position, labels)`` with each slice that is labelled, on a thread of its own. Labels are
        those of the nets alone, uint8 ``[rows, columns]``, read-only, on the slice as it was pushed. A slice that is
        labelled again, since a later slice showed more of the patient, comes again.
    queue : int
        Slices that may wait for the nets. While so many wait, `push` waits too.
    """

    def __init__(
        self,
        labeller: Labeller,
        shape: tuple[int, int],
        spacing: Sequence[float],
        directions: Sequence[float] | None,
        on_labels: OnLabels | None,
        queue: int,
    ) -> None:
        if not isinstance(queue, int) or isinstance(queue, bool) or queue < 1:
            raise ArgumentError(f"queue: got {queue!r}; expected a number of slices, at least 1")
        if on_labels is not None and not callable(on_labels):
            raise ArgumentError(f"on_labels: got {on_labels!r}; expected a function of position and labels")
        self._labeller, self._queue, self._process = labeller, queue, os.getpid()
        self._grid = SliceGrid(shape, spacing, directions)
        grid, size, mm = self._grid, labeller.spec.size, labeller.spec.pixel_mm
        self._placement = None if mm is None else Placement(grid.shape, grid.spacing, size, mm)
        self._fit = self._find_fit()
        # Guards all that follows; see `wait_for` why it is taken, not `_changed`.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._slices: list[_Slice] = []  # by depth
        self._waiting: deque[_Slice] = deque()  # for their first labels
        self._stale: deque[_Slice] = deque()  # labelled with another placement
        self._busy: list[_Slice] = []  # which the worker labels
        self._stages: Counter[str] = Counter()
        self._again = 0
        self._is_over = self._stopped = False
        self._error: BaseException | None = None
        self._worker: threading.Thread | None = None
        self._teller: Teller[_Slice] | None = None
        if on_labels is not None:
            self._teller = Teller("on_labels", lambda one: on_labels(one.position, self._shown(one)))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def push(self, hu: Plane, position: Any, *, timeout: float | None = None) -> None:
        """Take a slice, in any order; a slice that is here already is ignored.

        Parameters
        ----------
        hu : int16 [rows, columns]
            The slice in Hounsfield units. It is copied.
        position : float or (float, float, float)
            Where the slice lies, in mm, see the class. It is copied.
        timeout : float, optional
            While ``queue`` slices wait for the nets, the call waits too: this many seconds at most, by default as long
            as it takes.

        Raises
        ------
        ArgumentError
            The slice has another type or shape, the position is none, or the stream has ended or was opened before this
            process was forked.
        InputError
            Another slice lies at this position. The stream goes on with the slice that came first.
        BusyError
            The nets are behind and ``timeout`` has passed. The slice was not taken: push it again.
        OutOfMemoryError
            There is no memory for more slices, or no thread for the nets. The slice was not taken.
        TrtsegError
            The nets have failed. The stream has ended.
        """
        plane, depth = self._grid.plane(hu), self._grid.depth(position)
        check_timeout(timeout)
        self._check_process()
        with self._lock:

            def is_free() -> bool:
                return len(self._waiting) < self._queue or self._is_over or self._stopped

            if not is_free():
                self._labeller.turns.check()  # else this thread would wait for itself
            if not wait_for(self._changed, is_free, timeout):
                raise BusyError(
                    f"push: {self._queue} slices have waited for the nets for {timeout:g} s; push this slice again "
                    "later, send slices more slowly, or take a faster device"
                )
            self._check_open()
            at = bisect.bisect(self._slices, depth, key=lambda one: one.depth)
            for one in self._slices[max(0, at - 1) : at + 1]:
                if abs(one.depth - depth) <= SAME_PLACE_MM:
                    if np.array_equal(one.hu, plane):
                        return
                    raise InputError(
                        f"position: got {position} with two different slices; expected a slice for each position: "
                        "these may be two phases or reconstructions, give each a stream of its own"
                    )
            if len(self._slices) % _ROOM == 0:
                check_memory("stream", _ROOM * plane.size * (2 + 1 + 2 + BYTES_A_VOXEL))
            self._go_on()  # before the slice is here: there may be no thread for it
            if self._placement is not None:
                with memory_for("stream", 0):
                    self._placement.add(plane)
            self._slices.insert(at, _Slice(plane, copy.deepcopy(position), depth))
            self._waiting.append(self._slices[at])
            self._set_fit(self._find_fit(), self._slices)

    def labels_at(self, position: Any) -> NDArray[np.uint8] | None:
        """Labels of a slice by the nets alone, uint8 ``[rows, columns]``, read-only; None as long as there are none."""
        depth = self._grid.depth(position)
        self._check_process()
        with self._lock:
            near = (one for one in self._slices if abs(one.depth - depth) <= SAME_PLACE_MM)
            return next((self._shown(one) for one in near if one.labels is not None), None)

    @property
    def counts(self) -> tuple[int, int]:
        """How many slices have been taken, and how many of them are labelled."""
        self._check_process()
        with self._lock:
            return len(self._slices), sum(one.labels is not None for one in self._slices)

    @property
    def liver_ml(self) -> float:
        """Volume of liver and tumours in the slices so far, by the nets alone, in mL; 0 for less than two slices."""
        return self._ml(0)

    @property
    def tumour_ml(self) -> float:
        """Volume of the tumours in the slices so far, see `liver_ml`."""
        return self._ml(1)

    @property
    def failure(self) -> BaseException | None:
        """The first error that the callback raised; the segmentation goes on without regard to it."""
        return None if self._teller is None else self._teller.failure

    def finish(self, volume: Volume | None = None) -> Segmentation:
        """Say that all slices have been pushed, and wait for the result.

        Parameters
        ----------
        volume : Volume, optional
            The whole CT, where somebody has made it with more knowledge than a stream has, as of DICOM headers. Slices
            of it that were not pushed are labelled now, without a word to the callback; slices that were pushed and are
            not in it are left out.

        Returns
        -------
        Segmentation
            That of `trtseg.Segmenter.segment` for this volume, bit for bit but for timings and ``provenance``, which
            tells in ``relabelled_slices`` how many slices were labelled again.

        Raises
        ------
        InputError
            The slices are no CT that can be segmented: slices are missing or lie unevenly, or values are not HU; or
            there is but one, which does not tell how thick it is, and no ``volume``. The stream has not ended: slices
            that are missing can be pushed, and `finish` called again.
        ArgumentError
            The stream has ended, or was opened before this process was forked.
        TrtsegError
            The nets have failed.
        """
        if not isinstance(volume, (Volume, type(None))):
            raise ArgumentError(
                f"volume: got a {type(volume).__name__}; expected a trtseg Volume: make one with trtseg.load"
            )
        self._check_process()
        self._labeller.turns.check()
        with self._lock:
            self._check_open()
            self._is_over = True
        is_open = False
        try:
            start = time.perf_counter()
            try:
                made, slices = self._made() if volume is None else (volume, self._found(volume))
            except InputError:  # the slices that are missing may come
                with self._lock:
                    self._is_over, is_open = False, True
                raise
            read = time.perf_counter() - start
            with memory_for(made.name, BYTES_A_VOXEL * made.array.size):
                labels, logits = self._labels(made, slices)
                timings = {"read": read, **self._stages}
                provenance = {**self._labeller.provenance(), "relabelled_slices": self._again}
                result = conclude(labels, made, self._labeller.steps, timings, provenance, logits)
        finally:
            if not is_open:
                self._stop()
        if self._teller is not None:
            self._teller.end()
        return result

    def close(self) -> None:
        """End the stream, from the callback and from a signal handler too.

        It waits for the slices on which the nets are, unless a call of the Segmenter by this very thread has the nets:
        they follow then. After `finish` it waits until the callback has got all slices.
        """
        if os.getpid() != self._process:
            return  # the threads are not in this process, which was forked, and their locks may be taken for ever
        self._stop()
        if self._teller is not None:
            self._teller.drop()
            self._teller.join()

    def _labels(self, volume: Volume, slices: list[_Slice]) -> tuple[NDArray[np.uint8], TumourLogits]:
        """Labels ``[Z, Y, X]`` of a volume of these slices: those that are there, and the rest once they are made."""
        fit = self._labeller.spec.fit_volume(
            volume.array, volume.spacing[1:], on_threads(self._labeller.threads)
        )
        with self._lock:
            for one, plane in zip(slices, volume.array, strict=True):
                one.hu = plane  # equal values; the copy that was pushed can go
            self._placement = None  # which has these copies, too
            self._waiting = deque(one for one in slices if one.labels is None and one not in self._busy)
            self._set_fit(fit, slices)
            self._go_on()
            have = [one.labels for one in slices]
        labels = np.empty(volume.array.shape, np.uint8)
        for plane, known in zip(labels, have, strict=True):  # while the nets are at the last slices
            if known is not None:
                plane[...] = known
        with self._lock:
            wait_for(self._changed, lambda: self._stopped or not (self._waiting or self._stale or self._busy))
            self._check_open(finishing=True)
            for plane, one, known in zip(labels, slices, have, strict=True):
                if one.labels is not known:
                    plane[...] = one.labels
            planes = {z: one.logits for z, one in enumerate(slices) if one.logits is not None}
        return labels, TumourLogits(fit, planes)

    def _made(self) -> tuple[Volume, list[_Slice]]:
        """The volume of the slices that were pushed, and these in its order."""
        if not self._slices:
            raise InputError("finish: got no slice; expected the slices of a CT")
        if len(self._slices) == 1:
            raise InputError(
                "finish: got a single slice, of which nobody said how thick it is; expected two slices or more, or the "
                "CT itself: finish(trtseg.load(source)), of its file, or of its array with spacing or affine"
            )
        slices = self._slices[::-1] if self._grid.is_downwards else self._slices[:]
        return self._grid.volume([one.hu for one in slices], [one.position for one in slices]), slices

    def _found(self, volume: Volume) -> list[_Slice]:
        """The slices of a volume: those that were pushed with the same values, and new ones."""
        pushed: dict[bytes, list[_Slice]] = {}  # by a few of their values
        for one in self._slices:
            pushed.setdefault(one.hu[::16, ::16].tobytes(), []).append(one)
        found = []
        for plane in volume.array:
            alike = pushed.get(plane[::16, ::16].tobytes(), [])
            match = next((one for one in alike if np.array_equal(one.hu, plane)), None)
            if match is not None:
                alike.remove(match)
            found.append(match or _Slice(plane))
        return found

    def _work(self) -> None:
        """Label slices until there are no more; the body of the worker."""
        try:
            while (taken := self._take()) is not None:
                slices, fit = taken
                hu = slices[0].hu[None] if len(slices) == 1 else np.stack([one.hu for one in slices])
                labels, stages = self._labeller.label(hu, fit, logits := Logits())
                counts = [count_voxels(plane[None]) for plane in labels]
                with self._lock:
                    self._stages.update(stages)
                    for z, (one, plane, count) in enumerate(zip(slices, labels, counts, strict=True)):
                        self._again += one.labels is not None
                        one.labels, one.logits, one.fit, one.counts = plane, logits.get(z), fit, count
                        if fit != self._fit and plane.shape == self._fit.native:  # else not of the volume
                            self._stale.append(one)
                    self._busy = []
                    self._changed.notify_all()
                if self._teller is not None:
                    for one in slices:
                        if one.position is not None:  # else nobody pushed it
                            self._teller.tell(one)
        except BaseException as error:
            with self._lock:
                self._error, self._stopped = error, True
                atexit.unregister(self._at_exit)
                self._changed.notify_all()

    def _take(self) -> tuple[list[_Slice], Fit] | None:
        """Wait for slices; the next of them and their placement, or None at the end."""
        with self._lock:
            if self._worker is not threading.current_thread():
                return None  # an interrupt came amid its start, and another worker has begun or will
            is_told = self._changed.wait_for(
                lambda: self._stopped or self._waiting or self._stale, threads.IDLE_S
            )
            if self._stopped or not is_told:
                self._worker = None  # the next slice begins another
                atexit.unregister(self._at_exit)
                self._changed.notify_all()
                return None
            source = self._waiting or self._stale
            self._busy = [source.popleft() for _ in range(min(len(source), self._labeller.at_once))]
            self._changed.notify_all()
            return self._busy, self._fit

    def _go_on(self) -> None:
        """Tell the worker that there is something new; it begins with the first slice."""
        if self._worker is None:
            worker = threading.Thread(target=self._work, name=THREAD, daemon=True)
            with memory_for("stream", 0):
                worker.start()
            self._worker = worker
            atexit.register(self._at_exit)
        self._changed.notify_all()

    def _stop(self) -> None:
        """End the worker, after the slices on which it works."""
        with self._lock:
            self._stopped = True
            self._changed.notify_all()
            worker = self._worker
            # The collector and signal handlers come here too, in the middle of any call: where this thread has the nets
            # the worker may wait for them, and of `push` it has the lock, which a wait gives up and a join does not.
            if worker is None or worker is threading.current_thread() or self._labeller.turns.is_mine:
                return
            wait_for(self._changed, lambda: self._worker is not worker or self._error is not None)
        worker.join()

    def _at_exit(self) -> None:
        """Wait for the slices on which the nets are: Python ends threads amid foreign code, which may abort then."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._stopped = True
            self._changed.notify_all()
            wait_for(self._changed, lambda: self._worker is None or self._error is not None, _EXIT_S)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ArgumentError(
                "stream: got a call in a process that was forked after the stream was opened, where it has no threads; "
                "open a stream in this process"
            )

    def _check_open(self, finishing: bool = False) -> None:
        if self._error is not None:
            with memory_for("stream", 0):
                raise self._error
        if self._stopped or (self._is_over and not finishing):
            raise ArgumentError("stream: got a call after its end; open another with Segmenter.stream")

    def _find_fit(self) -> Fit:
        if self._placement is not None:
            return self._placement.fit
        return self._labeller.spec.fit_slice(self._grid.shape, self._grid.spacing)

    def _set_fit(self, fit: Fit, slices: list[_Slice]) -> None:
        """Take a placement for slices; those that were labelled with another one are labelled again."""
        if fit != self._fit:
            old = (one for one in slices if one.labels is not None and one.fit != fit)
            self._stale = deque(one for one in old if one not in self._busy)
            # Last: after an interrupt before this line the next slice, or `finish`, does it again.
            self._fit = fit

    def _shown(self, one: _Slice) -> NDArray[np.uint8]:
        """Labels of a slice that has some, as the slice was pushed."""
        assert one.labels is not None
        return self._grid.as_given(one.labels)

    def _ml(self, label: int) -> float:
        self._check_process()
        with self._lock:
            done = [(one.depth, one.counts[label]) for one in self._slices if one.labels is not None]
        return self._grid.ml(done)
