"""How the commands speak: results go to stdout, notes and errors to stderr."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from trtseg.errors import OutputError
from trtseg.notice import NOTICE
from trtseg.terminal import visible

if TYPE_CHECKING:
    from rich.table import Table

NOT_CLINICAL = f"{NOTICE.capitalize()}."


def path(text: str) -> Path:
    """Parse a path; an empty text, as of a shell's unset variable, is not the current folder."""
    if not text:
        raise typer.BadParameter("got an empty path")
    return Path(text)


def path_or_url(text: str) -> str:
    """Parse an input that may be a path, a pattern or a URL."""
    path(text)
    return text


def fail(message: str) -> None:
    """Write one line about an error to stderr. If stderr cannot be written, there is nobody to tell."""
    _tell(f"error: {message}")


def warn(message: str) -> None:
    """Write one line to stderr about a result that may be wrong."""
    _tell(f"warning: {message}")


def note(message: str) -> None:
    """Write one line to stderr about something that is no error, but should be known."""
    _tell(f"note: {message}")


def line(text: str) -> str:
    """Lay out a text in one line, `visible`: after the end of a line in a name something else would begin."""
    return visible(" ".join(text.split()))


def _tell(message: str) -> None:
    with contextlib.suppress(OutputError), _written(2, "standard error"):
        typer.echo(line(message), err=True)


def out(text: str | bytes) -> None:
    """Write to stdout; an OutputError says that stdout cannot be written."""
    with _written(1, "standard output"):
        typer.echo(text, nl=False)


def show(*parts: Any) -> None:
    """Write tables and texts to stdout, as wide as the terminal; in a file, so wide that paths are not broken."""
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200
    # rich draws into a string, since it would end the program where stdout is a closed pipe.
    with _written(1, "standard output"), console.capture() as drawn:
        console.print(*(visible(one) if isinstance(one, str) else one for one in parts), sep="\n")
    out(drawn.get())


def show_results(*parts: Any) -> None:
    """Show results that are in files as well: if stdout cannot be written, a line on stderr says so, and no more."""
    try:
        show(*parts)
    except OutputError as error:
        fail(str(error))


def write(reports: Mapping[Path | None, str]) -> None:
    """Write the reports that have a path; all appear, complete, or none does."""
    from trtseg.io import atomic

    wanted = {path: report for path, report in reports.items() if path is not None}
    with atomic(*wanted) as parts:
        for part, report in zip(parts, wanted.values(), strict=True):
            part.write_text(report, encoding="utf-8", errors="replace")  # a file name may not be Unicode


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[int] = (),
    caption: str | None = None,
) -> Table:
    """Make a table for `show`; the columns of the numbers ``right``, from 0, are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    for n, heading in enumerate(headings):
        made.add_column(heading, justify="right" if n in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(visible(cell)) for cell in row))
    return made


def listing(rows: Iterable[Sequence[str]], *, caption: str | None = None, indent: bool = False) -> Table:
    """Make a table for `show` without headings above: each row is a heading and its text."""
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
        made.add_row(*(Text(visible(cell)) for cell in row))
    return made


def count_engines(number: int, folder: Path) -> str:
    """Say how many engines there are in a folder."""
    return f"{number} engine{'s' * (number != 1)} in {folder}"


@contextlib.contextmanager
def _written(descriptor: int, name: str) -> Iterator[None]:
    """Turn the failure of a standard stream into an OutputError."""
    try:
        yield
    except OSError as error:
        # Text is left in Python's buffer. Writing it would fail again when Python exits, and change the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        raise OutputError(f"{name}: cannot be written ({error.strerror})") from error
