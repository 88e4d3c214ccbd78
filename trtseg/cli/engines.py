"""``trtseg engines``: what is done with built engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtseg.cli import text
from trtseg.cli.exits import errors_as_exit_codes, exit_code

if TYPE_CHECKING:
    from trtseg.engines.nvidia.cache import Entry

_Folder = Annotated[
    Path | None,
    typer.Argument(metavar="DIR", help="Folder of engines.", show_default="your cache", parser=text.path),
]


def list_engines(folder: _Folder = None) -> None:
    """Say which engines there are.

    The command reads only what lies beside them.
    """
    with errors_as_exit_codes():
        from trtseg.engines.nvidia import cache
        from trtseg.engines.trust import is_own

        place = _place(folder)
        found = cache.entries(place)
        headings = ("engine", "runtime", "MB", "built", "accepted", "state")
        ready = "ready" if is_own(place) else "to be imported"
        tables = [text.table(headings, [_row(entry, ready) for entry in found], right=[2])] if found else []
        text.show(*tables, text.count_engines(len(found), place), text.NOT_CLINICAL)


def verify(folder: _Folder = None) -> None:
    """Check engines as loading them does.

    It checks the hash, the sidecar and, in your cache, owner and mode.

    Exit codes: 0 all are intact, 3 some are not, 2 none is.
    """
    with errors_as_exit_codes():
        from trtseg.engines.nvidia import cache

        place = _place(folder)
        found = cache.entries(place, verify=True)
        broken = [entry.problem for entry in found if entry.problem is not None]
        for problem in broken:
            text.fail(problem)
        intact = len(found) - len(broken)
        text.out(f"{intact} of {text.count_engines(len(found), place)} intact\n")
        raise typer.Exit(exit_code(intact, len(broken)))


def import_engines(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What 'trtseg build -o DIR' wrote.", parser=text.path)
    ],
    allow_foreign: Annotated[
        bool,
        typer.Option(
            "--allow-foreign",
            help="Say that you trust where they are from: an engine can run any code with your rights.",
        ),
    ] = False,
) -> None:
    """Copy engines into your cache.

    They were built elsewhere; in the cache they are found, and this GPU checks them anew.
    """
    with errors_as_exit_codes():
        from trtseg.engines.nvidia import cache
        from trtseg.engines.nvidia.driver import find_driver
        from trtseg.engines.nvidia.machine import why_unused

        adopted, driver = cache.adopt(folder, allow_foreign=allow_foreign), find_driver()
        keys = [engine.sidecar.key for engine in adopted]
        text.show(*(f"{key}\n" for key in keys), text.count_engines(len(adopted), _place(None)))
        unused: dict[str, list[str]] = {}
        for key in keys:
            if (why := why_unused(key, driver)) is not None:
                unused.setdefault(why, []).append(str(key))
        for why, names in unused.items():
            text.note(f"no GPU here will use {', '.join(names)}: {why}")


def clear(folder: _Folder = None) -> None:
    """Delete built engines.

    Those in your cache are built again when they are needed.
    """
    with errors_as_exit_codes():
        from trtseg.engines.nvidia import cache

        place = _place(folder)
        files, size = cache.clear(place)
        text.out(f"deleted {files} files, {size / 1e6:.1f} MB, in {place}\n")


def _place(folder: Path | None) -> Path:
    """Folder of engines: the named one, or the user's cache."""
    from trtseg.engines.trust import engine_folder

    return engine_folder() if folder is None else folder


def _row(entry: Entry, ready: str) -> tuple[str, ...]:
    """Lay out an engine as its sidecar describes it; its state is ``ready`` if nothing speaks against it."""
    from trtseg.engines.nvidia.machine import why_stale

    made = entry.sidecar
    if made is None:
        return entry.path.name, "", "", "", "", entry.problem or ""
    accepted = "not yet" if made.acceptance is None else "yes" if made.acceptance.get("accepted") else "no"
    state = entry.problem or why_stale(made.key.runtime, made.key.runtime_version) or ready
    about = f"{made.key.runtime} {made.key.runtime_version}", f"{made.size / 1e6:.1f}", made.built["at"][:16]
    return str(made.key), *about, accepted, state
