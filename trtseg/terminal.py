"""Texts that a terminal shows and does not obey: names of files and values of headers may hold anything."""

from __future__ import annotations

import logging
import re

# Control characters but the tab and the end of a line; marks that write what follows from right to left.
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Escape what a terminal would obey, and what turns the order of letters."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def make_log_visible() -> None:
    """Escape what a process logs to stderr because nobody has said where to: for a process of trtseg's own."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Visible())
