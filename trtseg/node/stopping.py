"""How a process of a node is told to end by a signal."""

from __future__ import annotations

import os
import select
import signal


class Stop:
    """Is set by any of these signals, and waited for by any thread.

    A handler runs in the middle of whatever the main thread does, of another handler too, so it takes no lock: an Event
    that is set while the same thread waits for it, or sets it, may block for ever.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._is_set = False
        for number in signals:
            signal.signal(number, self._set)

    def is_set(self) -> bool:
        """Tell whether a signal has come."""
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Wait until a signal comes, at most so long; tell whether one has come."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000)
        return self._is_set

    def _set(self, *_: object) -> None:
        if not self._is_set:
            self._is_set = True
            os.write(self._write, b"1")  # stays there: every wait ends at once
