"""What the programs of ``training/`` and ``benchmarks/`` share: their ``--help``, and how a wrong option ends them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from trtseg.errors import TrtsegError


@contextmanager
def plain_errors() -> Iterator[None]:
    """As the decorator of ``main``: a wrong file or option ends the program with a line on stderr, no traceback."""
    try:
        yield
    except TrtsegError as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:
        if error.filename is None:
            raise
        raise SystemExit(f"error: {error.filename}: {error.strerror}") from None


def parser_of(module: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the docstring of the program, line by line."""
    return argparse.ArgumentParser(description=module, formatter_class=argparse.RawDescriptionHelpFormatter)
