"""What a node says, as a line of JSON each: numbers and fixed words of its own, never anything of a patient."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

_LOG = logging.getLogger("trtseg.node")
# Value representations that may hold names, ids, dates or free text.
_PERSONAL = frozenset({"PN", "LO", "SH", "ST", "LT", "UT", "UC", "DA", "DT", "TM", "AS", "UI", "CS"})
_HIDDEN = "(hidden)"


def say(event: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """Log an event with its facts: own ids, numbers, AE titles, fixed words or texts that went through `scrub`."""
    _LOG.log(level, event, extra={"facts": facts})


def scrub(text: str, headers: Iterable[Dataset] = ()) -> str:
    """Take out of a message whatever stands in the headers that it is about, UIDs, and all quoted values.

    The random names of files in the store stay, by which they are found.
    """
    text = re.sub(r"'[^']*'|\"[^\"]*\"", _HIDDEN, " ".join(text.split()))
    text = re.sub(r"(\b[0-9a-f]{32}\.dcm\b)|\d+(\.\d+){4,}|\d{8,}", lambda found: found[1] or _HIDDEN, text)
    values = set[str]()
    for header in headers:
        for element in _elements(header):
            if element.VR in _PERSONAL and element.value is not None:
                # One by one, and no pattern of what is not there: a sender may write megabytes into an element.
                parts = (found[0] for found in re.finditer(r"[^\\^=,\[\]']{3,}", str(element.value)))
                values |= {part for part in parts if part in text}
    for value in sorted(values, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", _HIDDEN, text)
    return text[:500]


def _elements(header: Dataset) -> Iterator[Any]:
    """All elements of a header and of its sequences, but those that cannot be read, which no message quotes."""
    for tag in header.keys():  # noqa: SIM118 - not elements
        try:
            element = header[tag]
        except Exception:  # noqa: S112 - pydicom raises errors of many types
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)
        else:
            yield element


def where(error: BaseException) -> str:
    """Name an unexpected error by its type and place alone: its message might quote a header."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f" at {frame.tb_frame.f_code.co_filename.rpartition('/')[2]}:{frame.tb_lineno}" if frame else ""
    words = error.strerror if isinstance(error, OSError) else getattr(error, "sqlite_errorname", "")
    return f"{type(error).__name__}{f' ({words})' if words else ''}{place}"


def shown(destination: str) -> str:
    """A destination in the log, without the user and the password of a URL."""
    place = destination.partition(":")[2]
    if not destination.startswith("stow:"):
        return place
    scheme, _, rest = place.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


class _Lines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
        }
        if record.name == _LOG.name:
            line |= {"event": record.getMessage(), **getattr(record, "facts", {})}
        else:  # a library's message may quote what a sender wrote
            line |= {"event": "library", "logger": record.name, "line": record.lineno}
        return json.dumps(line, default=str)


def start(process: str) -> None:
    """Send the log of this process to stderr, that of all libraries and errors that nobody caught included."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(process))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    _LOG.setLevel(logging.INFO)
    warnings.simplefilter("ignore")  # they quote values
    logging.raiseExceptions = False  # a log that cannot be written stops nothing

    def fall(kind: type[BaseException], error: BaseException | None, _: TracebackType | None) -> None:
        say("failed", level=logging.ERROR, reason=where(error) if error else kind.__name__)

    sys.excepthook = fall
    threading.excepthook = lambda args: fall(args.exc_type, args.exc_value, args.exc_traceback)
