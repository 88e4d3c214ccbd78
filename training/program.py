"""What the programs of ``training/`` and ``benchmarks/`` share: their ``--help``, and how a wrong option ends them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, fields
from typing import Any

from trtseg.errors import TrtsegError


@contextmanager
def plain_errors() -> Iterator[None]:
    """As the decorator of ``main``: a wrong file or option ends the program with a line on stderr, no traceback.

    The exit codes are those of ``trtseg``: 2 then, and 130 if it was interrupted. A bug keeps its traceback: 1.
    """
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


def _stopped(line: str, code: int) -> SystemExit:
    """Print why the program ends, and make the exception that ends it; of itself that would be printed with code 1."""
    print(line, file=sys.stderr)
    stopped = SystemExit(line)
    stopped.code = code
    return stopped


def parser_of(module: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the docstring of the program, line by line."""
    return argparse.ArgumentParser(description=module, formatter_class=argparse.RawDescriptionHelpFormatter)


def option(default: Any, meaning: str) -> Any:
    """A field of a dataclass that `add_options` makes an option of."""
    return field(default=default, metadata={"help": meaning})


def add_options(
    parser: argparse.ArgumentParser,
    settings: type,
    names: Iterable[str] | None = None,
    choices: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
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
            choices=(choices or {}).get(one.name),
            help=f"{meaning} (default: {default})" if default != "" else meaning,
        )
