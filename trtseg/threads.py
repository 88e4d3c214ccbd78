"""What threads do with each other: take turns, tell without waiting, and work ahead."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from numbers import Real
from queue import SimpleQueue
from typing import Generic, TypeVar

from trtseg.errors import ArgumentError

log = logging.getLogger("trtseg")

#: Seconds after which a thread that has nothing to do ends, so that what nobody closes keeps no memory.
IDLE_S = 60.0
#: Seconds after which a thread that waits looks again.
LOOK_S = 0.2

T = TypeVar("T")

_Thread = tuple[int, int]  # number of the process and of the thread


def check_timeout(timeout: object) -> None:
    """Raise an ArgumentError unless this is a number of seconds, or None: as long as it takes."""
    if timeout is None:
        return
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, Real)
        or not 0 <= float(timeout) <= threading.TIMEOUT_MAX
    ):
        raise ArgumentError(f"timeout: got {timeout!r}; expected a number of seconds, 0 or more, or None")


def wait_for(changed: threading.Condition, is_so: Callable[[], object], timeout: float | None = None) -> bool:
    """Wait as ``changed.wait_for`` does, and tell whether it is so in the end.

    What a signal handler of this very thread changes between the look and the wait, nobody would tell this thread: so
    it looks again now and then. The lock of ``changed`` is taken by its own ``with``, not by that of ``changed``, whose
    methods are written in Python: an interrupt in the first or the last line of one would leave the lock taken.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while not is_so():
        left = LOOK_S if end is None else min(LOOK_S, end - time.monotonic())
        if left <= 0:
            return False
        try:
            changed.wait(left)
        except BaseException:
            try:
                changed.notify(0)  # for nobody: it fails if this thread does not have the lock
            except RuntimeError:  # just after that was given up; the caller's `with` gives it back
                changed.acquire()
            raise
    return True


class _Place:
    """That of a call in the queue of `Turns`; nothing equals it but itself."""

    def __init__(self) -> None:
        self.process, self.bell = os.getpid(), SimpleQueue[None]()


class Turns:
    """A lock that threads get in the order in which they ask for it, so that none that asks often keeps it.

    Who would wait for ever gets an ArgumentError about ``name``: a thread that has the lock or waits for it already, as
    a signal handler may find it, and a process that was forked while a thread had it.

    A thread takes a place in the queue and waits until it is the first. No other lock guards that, so that whatever
    comes in the middle, an interrupt or a signal handler, finds none taken: each step is one call of a deque, a set or
    a queue. To leave takes no deeper calls than to look whether one may come: else a thread near the recursion limit
    could get the lock, and not give it back. So places are told apart by what they are, and not by what they hold.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._threads = set[_Thread]()  # those that have the lock or wait for it
        self._queue = deque[_Place]()  # theirs, in the order in which they asked; the first has the lock

    def run(self, function: Callable[[], T]) -> T:
        """Call a function once it is this thread's turn, and return what it returns."""
        self.check()
        me, place = (os.getpid(), threading.get_ident()), _Place()
        try:
            self._wait(me, place)
            return function()
        finally:  # no `with`: an interrupt before the first line of its __exit__ would leave the lock taken
            try:
                self._leave(me, place)
            finally:  # once more, for an interrupt may come in there
                self._leave(me, place)

    def _wait(self, me: _Thread, place: _Place) -> None:
        self._threads.add(me)  # from here on handlers are refused
        self._queue.append(place)
        while (first := self._queue[0]) is not place:
            if first.process != place.process:
                raise ArgumentError(
                    f"{self._name}: got a call in a process that was forked during another call; make another "
                    f"{self._name} in this process, or fork while no call runs"
                )
            place.bell.get()

    def _leave(self, me: _Thread, place: _Place) -> None:
        """Let the next thread have the lock; this thread may have it, wait for it, or have left already."""
        if place in self._queue:
            self._queue.remove(place)
        try:
            first = self._queue[0]
        except IndexError:
            pass  # nobody waits
        else:
            # Once too often does no harm. If that thread has left meanwhile, it has told the next one.
            first.bell.put(None)
        self._threads.discard(me)

    @property
    def is_mine(self) -> bool:
        """Whether this thread has the lock or waits for it: it is not to wait for a thread that waits for the lock."""
        return (os.getpid(), threading.get_ident()) in self._threads

    def check(self) -> None:
        """Raise an ArgumentError if this thread has the lock or waits for it."""
        if self.is_mine:
            raise ArgumentError(
                f"{self._name}: got a call from within another call of this thread, from a progress function or a "
                "signal handler; raise an exception there, and make the call after that"
            )


class Ahead(Generic[T]):
    """What a function returns or raises, which a thread of its own finds out; nobody waits for it but who asks.

    Parameters
    ----------
    function : callable
        Called once, at once.

    Attributes
    ----------
    seconds : float
        How long the function took.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self.seconds = 0.0
        self._function, self._found, self._error = function, list[T](), list[BaseException]()
        self._thread = threading.Thread(target=self._work, name="trtseg ahead", daemon=True)
        self._thread.start()

    def result(self) -> T:
        """Wait for what the function returns; what it raises is raised here."""
        self._thread.join()
        for error in self._error:
            raise error
        return self._found[0]

    def _work(self) -> None:
        start = time.perf_counter()
        try:
            self._found.append(self._function())
        except BaseException as error:
            self._error.append(error)
        self.seconds = time.perf_counter() - start


class Teller(Generic[T]):
    """A thread that calls a function with things, in the order in which they come; who tells does not wait.

    A thing that waits already is told once. An error of the function is kept and logged, and the next thing is told.

    Parameters
    ----------
    name : str
        Of the function, for the log.
    function : callable
        Called with one thing.

    Attributes
    ----------
    failure : BaseException or None
        The first error; SystemExit and KeyboardInterrupt too, for they would end this thread alone, and silently.
    """

    def __init__(self, name: str, function: Callable[[T], None]) -> None:
        self._name, self._function = name, function
        self.failure: BaseException | None = None
        self._failed = 0
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._due: dict[T, None] = {}
        self._ended = self._is_done = False
        self._thread: threading.Thread | None = None

    def tell(self, thing: T) -> None:
        """Call the function with a thing soon."""
        with self._lock:
            self._due[thing] = None
            if self._thread is None:
                thread = threading.Thread(target=self._work, name=f"trtseg {self._name}", daemon=True)
                thread.start()  # which may fail
                self._thread = thread
            self._changed.notify_all()

    def end(self) -> None:
        """Let the thread end when everything has been told."""
        with self._lock:
            self._ended = True
            self._changed.notify_all()

    def drop(self) -> None:
        """Forget what has not been told, and let the thread end; after `end` everything is told all the same."""
        with self._lock:
            if not self._ended:
                self._due.clear()
        self.end()

    def join(self) -> None:
        """Wait until the thread has ended; the function itself cannot wait for that, and goes on."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            with self._lock:  # a signal handler may be amid `end`, with the lock, which a wait gives up
                wait_for(
                    self._changed,
                    lambda: self._is_done or self._thread is not thread or not thread.is_alive(),
                )
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._due or self._ended, IDLE_S)
                if not self._due:
                    if self._failed:
                        log.warning(
                            "%s failed %d times, first with %r", self._name, self._failed, self.failure
                        )
                    if self._ended:
                        self._is_done = True
                        del self._function  # which may refer to the maker of this Teller: memory goes at once
                    else:
                        self._thread = None  # the next thing begins another
                    self._changed.notify_all()
                    return
                thing = next(iter(self._due))
                del self._due[thing]
            try:
                self._function(thing)
            except BaseException as error:
                with self._lock:
                    self.failure = self.failure or error
                    self._failed += 1
