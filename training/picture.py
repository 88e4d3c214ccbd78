"""Plots as files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtseg.io.atomic import atomic


@contextmanager
def drawn(path: Path, *shape: int, **options: Any) -> Iterator[Any]:
    """Give axes to draw on, as `matplotlib.pyplot.subplots` does, and write the picture, complete or not at all."""
    import matplotlib  # which machines that only train need not have

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(*shape, layout="constrained", **options)
    yield axes
    with atomic(path) as (temporary,):
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
