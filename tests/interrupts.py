"""An interrupt, as of Ctrl-C, at any moment of a call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType


def interrupt(call: Callable[[], object], number: int, *modules: ModuleType) -> KeyboardInterrupt | None:
    """Make a call, and interrupt it at a moment, counted from 0; return the interrupt, or None if the call ended first.

    Moments are those in the files of ``modules`` in which Python looks for signals: where a function begins, and after
    the call of one in C. What the call raises of itself is raised.
    """
    left, places = number, {module.__file__ for module in modules}

    def look(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename in places and event in ("call", "c_return"):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        call()
    except KeyboardInterrupt as error:
        return error
    finally:
        sys.setprofile(None)
    return None
