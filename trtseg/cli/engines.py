"""``trtseg build`` and ``trtseg engines``: engines for NVIDIA GPUs, made ahead of time and looked after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtseg.cli import text
from trtseg.cli.exits import exit_code
from trtseg.engines.nvidia import cache
from trtseg.engines.nvidia.cache import Entry
from trtseg.engines.nvidia.driver import find_driver
from trtseg.engines.nvidia.machine import why_stale, why_unused
from trtseg.engines.nvidia.trust import engine_folder, is_own
from trtseg.errors import ArgumentError


def sizes(batch: str) -> list[int]:
    """Numbers of slices, from the text of ``--batch``."""
    return [_number(part) for part in batch.split(",")]


def show_built(built: Sequence[Entry]) -> None:
    """Print a table of the engines that were built."""
    rows = []
    for entry in built:
        if entry.sidecar is not None:
            made = entry.sidecar
            numbers = f"{made.size / 1e6:.1f}", f"{made.built['seconds']:.1f}", str(len(made.warnings))
            rows.append((str(made.key), *numbers, entry.path.name))
    headings = ("engine", "MB", "seconds", "warnings", "file")
    table = text.table(headings, rows, right=headings[1:4])
    text.show(table, _count(len(built), built[0].path.parent), text.NOT_CLINICAL)


def show(folder: Path | None) -> None:
    """Print a table of the engines in a folder, by default the cache, as their sidecars have it."""
    place = _place(folder)
    found = cache.entries(place)
    headings = ("engine", "runtime", "MB", "built", "accepted", "state")
    ready = "ready" if is_own(place) else "to be imported"
    tables = [text.table(headings, [_row(entry, ready) for entry in found], right=["MB"])] if found else []
    text.show(*tables, _count(len(found), place), text.NOT_CLINICAL)


def verify(folder: Path | None) -> int:
    """Check the engines in a folder, report what is wrong on stderr; return the exit code."""
    place = _place(folder)
    found = cache.entries(place, verify=True)
    broken = [entry.problem for entry in found if entry.problem is not None]
    for problem in broken:
        text.fail(problem)
    intact = len(found) - len(broken)
    text.out(f"{intact} of {_count(len(found), place)} intact\n")
    return exit_code(intact, len(broken))


def adopt(folder: Path, *, allow_foreign: bool) -> None:
    """Copy the engines of a folder into the cache, and say what they are, and which of them are of no use here."""
    adopted, driver = cache.adopt(folder, allow_foreign=allow_foreign), find_driver()
    keys = [entry.sidecar.key for entry in adopted if entry.sidecar]
    text.show(*(f"{key}\n" for key in keys), _count(len(adopted), _place(None)))
    unused: dict[str, list[str]] = {}
    for key in keys:
        if (why := why_unused(key, driver)) is not None:
            unused.setdefault(why, []).append(str(key))
    for why, names in unused.items():
        text.note(f"no GPU here will use {', '.join(names)}: {why}")


def clear(folder: Path | None) -> None:
    """Delete the engines in a folder, and say how much that was."""
    place = _place(folder)
    files, size = cache.clear(place)
    text.out(f"deleted {files} files, {size / 1e6:.1f} MB, in {place}\n")


def _place(folder: Path | None) -> Path:
    return engine_folder() if folder is None else folder


def _number(part: str) -> int:
    if not part.strip().isdecimal():
        raise ArgumentError(f"--batch: got {part!r}; expected numbers of slices with commas between them")
    return int(part)


def _count(number: int, folder: Path) -> str:
    return f"{number} engine{'s' * (number != 1)} in {folder}"


def _row(entry: Entry, ready: str) -> tuple[str, ...]:
    made = entry.sidecar
    if made is None:
        return entry.path.name, "", "", "", "", entry.problem or ""
    accepted = "not yet" if made.acceptance is None else "yes" if made.acceptance.get("accepted") else "no"
    state = entry.problem or why_stale(made.key.runtime, made.key.runtime_version) or ready
    about = f"{made.key.runtime} {made.key.runtime_version}", f"{made.size / 1e6:.1f}", made.built["at"][:16]
    return str(made.key), *about, accepted, state
