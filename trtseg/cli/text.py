"""What the commands say, and to whom: results on stdout, the rest on stderr."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from trtseg.errors import OutputError
from trtseg.notice import NOTICE

if TYPE_CHECKING:
    from rich.table import Table

NOT_CLINICAL = f"{NOTICE.capitalize()}."


def fail(message: str) -> None:
    """Write one line about what went wrong to stderr; if that cannot be written, there is nobody to tell."""
    _tell(f"error: {message}")


def note(message: str) -> None:
    """Write one line to stderr about what is no error, but should be known."""
    _tell(f"note: {message}")


def _tell(line: str) -> None:
    with contextlib.suppress(OutputError), _written(2, "standard error"):
        typer.echo(" ".join(line.split()), err=True)


def out(text: str | bytes) -> None:
    """Write to stdout; an OutputError if that fails."""
    with _written(1, "standard output"):
        typer.echo(text, nl=False)


def show(*parts: Any) -> None:
    """Write what rich can draw to stdout: as wide as a terminal is, or so wide that a file has whole paths."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    # Captured: rich itself would end the program where a pipe is closed.
    with _written(1, "standard output"), console.capture() as drawn:
        console.print(*parts, sep="\n")
    out(drawn.get())


def show_results(*parts: Any) -> None:
    """Show what the files hold that are written anyway: if it cannot be shown, only stderr says so."""
    try:
        show(*parts)
    except OutputError as error:
        fail(str(error))


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
    caption: str | None = None,
) -> Table:
    """Make a table for `show`; ``right`` are the headings of columns that are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def listing(rows: Iterable[tuple[str, str]], *, caption: str | None = None, indent: bool = False) -> Table:
    """Make a table for `show` of one line for each heading and its text."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        box=box.SIMPLE if indent else None,
        pad_edge=indent,
        show_header=False,
        caption=caption,
        caption_justify="left",
    )
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


@contextlib.contextmanager
def _written(descriptor: int, name: str) -> Iterator[None]:
    """Turn the failure of a standard stream into an OutputError."""
    try:
        yield
    except OSError as error:
        # What is left in the buffer would fail once more when Python exits, and decide the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        raise OutputError(f"{name}: cannot be written ({error.strerror})") from error
