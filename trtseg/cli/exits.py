"""How a command ends: an error becomes a line on stderr and an exit code.

Exit codes: 0 all done; 1 a bug (with a traceback); 2 bad usage, input, output, model or device, and nothing
was written; 3 some of several cases failed and the others were written; 129 the terminal was closed; 130
interrupted; 143 terminated. A table of results that cannot be printed does not change the exit code.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from trtseg.cli.text import fail
from trtseg.errors import TrtsegError
from trtseg.resources import memory_for

# That NumPy and nibabel take when they are imported; without it OpenBLAS ends the process in its own way.
_MEMORY = 128 << 20


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """End the command with a line on stderr, and no traceback, on an error that the user can do something about."""
    try:
        with memory_for("trtseg", _MEMORY):
            yield
    except TrtsegError as error:
        fail(str(error))
        raise typer.Exit(2) from None
    except ImportError as error:
        if error.name != "trtseg._core":  # else it is a source tree that is not built
            raise
        fail(str(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        fail("interrupted; nothing is left half-written")
        raise typer.Exit(130) from None
    except FileNotFoundError:
        try:
            Path.cwd()
        except FileNotFoundError:
            fail("the current folder does not exist any more; change to another one")
            raise typer.Exit(2) from None
        raise


def exit_code(done: int, failed: int) -> int:
    """Exit code of a command with ``done`` cases that went well and ``failed`` cases that did not."""
    return 0 if not failed else 3 if done else 2


@dataclass
class Failures:
    """Counts the cases of a command that failed, and reports each on stderr, while the other cases go on."""

    count: int = 0
    bugs: int = 0

    def add(self, error: Exception, *paths: Path | str, alone: bool = False) -> str:
        """Say on stderr why a case failed, and return the reason.

        Parameters
        ----------
        error : Exception
            The reason. If it is no TrtsegError it is a bug, and its traceback is printed.
        *paths : Path or str
            Files of the case, or URLs. The first is put before a message that names none of them.
        alone : bool
            There is no other case, so the message need not name the case.
        """
        self.count += 1
        if isinstance(error, TrtsegError):
            named = alone or any(str(path) in str(error) for path in paths)
            reason = str(error) if named else f"{paths[0]}: {error}"
            fail(reason)
        else:
            self.bugs += 1
            reason = f"unexpected {type(error).__name__}"
            fail(f"{paths[0]}: unexpected, please report this:")
            traceback.print_exception(error)
        return reason

    def exit_code(self, done: int) -> int:
        """Exit code of the command, if ``done`` other cases went well."""
        return 1 if self.bugs else exit_code(done, self.count)
