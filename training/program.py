"""What the programs of ``training/`` and ``benchmarks/`` share: their ``--help``, and how a wrong option ends them."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import field, fields
from typing import Any

from trtseg.errors import ArgumentError, TrtsegError


@contextmanager
def plain_errors() -> Iterator[None]:
    """As the decorator of ``main``: a wrong file or option ends the program with a line on stderr, no traceback.

    The exit codes are those of ``trtseg``: 2 then, 130 if it was interrupted, and 143 if it was terminated, which
    removes temporary files too. A bug keeps its traceback: 1.
    """
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except TrtsegError as error:
        raise _stopped(f"error: {error}", 2) from None
    except OSError as error:
        if error.filename is None:
            raise
        raise _stopped(f"error: {error.filename}: {error.strerror}", 2) from None
    except KeyboardInterrupt:
        raise _stopped("interrupted", 130) from None
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: object) -> None:
    """End the program by an exception; of itself after five seconds, where that is lost in a finaliser."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would stop the cleaning up
    signal.signal(signal.SIGALRM, lambda *_: os._exit(143))
    signal.alarm(5)
    sys.exit(143)


def _stopped(line: str, code: int) -> SystemExit:
    """Print why the program ends, and make the exception that ends it; of itself that would be printed with code 1."""
    print(line, file=sys.stderr)
    stopped = SystemExit(line)
    stopped.code = code
    return stopped


def parser_of(module: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the docstring of the program, line by line."""
    return argparse.ArgumentParser(description=module, formatter_class=argparse.RawDescriptionHelpFormatter)


#: Bounds of an `option`, both included.
AT_LEAST_0, AT_LEAST_1, SHARE = (0, math.inf), (1, math.inf), (0, 1)


def option(default: Any, meaning: str, allowed: tuple[Any, ...] | None = None) -> Any:
    """A field of a dataclass that `add_options` makes an option of: a number in bounds, or one of the allowed words."""
    return field(default=default, metadata={"help": meaning, "allowed": allowed})


def check_options(values: Any) -> None:
    """Raise an `ArgumentError` where an `option` of a dataclass has a value that is not allowed."""
    for one in fields(values):
        got, allowed = getattr(values, one.name), one.metadata.get("allowed")
        if allowed is None:
            continue
        if isinstance(one.default, str):
            valid, expected = got in allowed, ", ".join(allowed)
        else:
            low, high = allowed
            valid = low <= got <= high and math.isfinite(got)
            bounds = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of {low:g} or more"
            expected = f"a number {bounds}"
        if not valid:
            raise ArgumentError(f"{one.name}: got {got!r}; expected {expected}")


def add_options(parser: argparse.ArgumentParser, settings: type, names: Iterable[str] | None = None) -> None:
    """Add an option for each `option` of a dataclass, or for those that are named; their help says the defaults."""
    for one in fields(settings):
        if "help" not in one.metadata or (names is not None and one.name not in names):
            continue
        flag, meaning = f"--{one.name.replace('_', '-')}", one.metadata["help"]
        if isinstance(one.default, bool):
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=one.default, help=meaning
            )
            continue
        default = f"{one.default:g}" if isinstance(one.default, float) else one.default
        parser.add_argument(
            flag,
            type=type(one.default),
            default=one.default,
            choices=one.metadata["allowed"] if isinstance(one.default, str) else None,
            help=f"{meaning} (default: {default})" if default != "" else meaning,
        )
