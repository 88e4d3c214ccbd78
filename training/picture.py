"""Plots as files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtseg.io.atomic import atomic


@contextmanager
def drawn(path: Path, *shape: int, **options: Any) -> Iterator[Any]:
    """Give axes to draw on, as ``Figure.subplots`` of matplotlib does, and write the picture, complete or not at all.

    The figure is none of pyplot's, which would keep it after an exception, and close those of a notebook.
    """
    from matplotlib.figure import Figure  # which machines that only train need not have

    figure = Figure(layout="constrained", **options)
    yield figure.subplots(*shape)
    with atomic(path) as (temporary,):
        figure.savefig(temporary, dpi=120)
