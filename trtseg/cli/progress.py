"""The progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from trtseg.cli import text

if TYPE_CHECKING:
    from rich.progress import Progress

_EVERY = 60.0  # seconds between lines about the progress


def bar(quiet: bool) -> AbstractContextManager[Progress | None]:
    """Make a progress bar on stderr if stderr is a terminal and the user does not want quiet; else None."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        return nullcontext()
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def follow(shown: Progress | None, label: str = "") -> Callable[[str, float], None]:
    """Start a progress bar at zero, and make the function that moves it.

    Parameters
    ----------
    shown : Progress or None
        The bar that `bar` made; for None the function does nothing.
    label : str
        Stands before each text that the function is given.

    Returns
    -------
    callable
        To be called with a text, and the fraction of the work that is done.
    """
    if shown is None:
        return lambda doing, fraction: None
    for old in shown.task_ids:
        shown.remove_task(old)
    task = shown.add_task(label, total=1.0)
    start = f"{label}: " if label else ""
    return lambda doing, fraction: shown.update(task, completed=fraction, description=f"{start}{doing}")


@contextmanager
def told(quiet: bool, several: bool) -> Iterator[Callable[[str, float], None]]:
    """Make a function to be called with a text and the fraction that is done.

    It moves a progress bar; where stderr is no terminal, as in the log of a cluster's job, it writes a line a minute
    about a work with ``several`` cases.
    """
    with bar(quiet) as shown:
        last = time.monotonic()

        def line(doing: str, fraction: float) -> None:
            nonlocal last
            if time.monotonic() - last >= _EVERY:
                last = time.monotonic()
                text.note(f"{fraction:.0%} done: {doing}")

        yield line if shown is None and several and not quiet else follow(shown)
