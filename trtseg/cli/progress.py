"""The progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trtseg.cli import text
from trtseg.terminal import visible

_EVERY = 60.0  # seconds between lines about the progress


@contextmanager
def told(quiet: bool, several: bool = False, label: str = "") -> Iterator[Callable[[str, float], None]]:
    """Make a function to be called with a text and the fraction that is done.

    It moves a progress bar on stderr, where the ``label`` stands before each text; where stderr is no terminal, as in
    the log of a cluster's job, it writes a line a minute about a work with ``several`` cases.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not quiet and console.is_terminal:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        described = TextColumn("{task.description}", markup=False)
        columns = described, BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True) as shown:
            task = shown.add_task(label, total=1.0)
            start = f"{label}: " if label else ""
            yield lambda doing, done: shown.update(
                task, completed=done, description=visible(f"{start}{doing}")
            )
        return
    last = time.monotonic()

    def line(doing: str, fraction: float) -> None:
        nonlocal last
        if several and not quiet and time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            text.note(f"{fraction:.0%} done: {doing}")

    yield line
