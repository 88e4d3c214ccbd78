"""Tables as Markdown, and documents that hold printed ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from trtseg.errors import InputError
from trtseg.io.atomic import atomic


def grid(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table with a heading for each column."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def put_below(mark: str, text: str, document: Path) -> None:
    """Replace what stands below the line ``mark`` of a document; an `InputError` if it has no such line."""
    above, found, _ = document.read_text(encoding="utf-8").partition(mark)
    if not found:
        raise InputError(f"{document}: has no line {mark!r}; the tables go below it")
    with atomic(document) as (temporary,):
        temporary.write_text(above + mark + text, encoding="utf-8")
