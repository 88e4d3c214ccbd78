"""How fast a cohort goes, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Tells of the progress of a cohort: which case of how many, how many an hour, and the time left.

    Parameters
    ----------
    total : int
        Cases to do.
    progress : callable or None
        Called with a text and the fraction that is done.
    """

    def __init__(self, total: int, progress: Callable[[str, float], None] | None) -> None:
        self._total, self._progress = total, progress
        self._start = time.monotonic()

    def tell(self, text: str, done: int, fraction: float = 0.0) -> None:
        """Tell what is done for the case after ``done`` others, which itself is done to a ``fraction``."""
        if self._progress is not None:
            which = f"{min(done + 1, self._total)}/{self._total} " if self._total > 1 else ""
            self._progress(f"{which}{text}{self.speed(done)}", (done + fraction) / self._total)

    def speed(self, done: int) -> str:
        """Cases an hour and the time left, in words, once a case is done."""
        seconds = time.monotonic() - self._start
        if done == 0 or seconds <= 0:
            return ""
        left = seconds / done * (self._total - done)
        return f", {3600 * done / seconds:.0f} CTs an hour, {_duration(left)} left"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.0f} h"
