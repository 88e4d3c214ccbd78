"""``trtseg build`` and ``trtseg engines``: engines for NVIDIA GPUs, made ahead of time and looked after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtseg.cli import _errors_as_exit_codes, text
from trtseg.errors import ArgumentError

if TYPE_CHECKING:
    from trtseg.engines.cache import Entry

app: typer.Typer = typer.Typer(
    no_args_is_help=True, help="List, verify and delete built engines.", rich_markup_mode=None
)

Folder = Annotated[
    Path | None,
    typer.Argument(metavar="DIR", help="Folder of engines.", show_default="your cache", readable=False),
]


def build(
    model: Annotated[
        str,
        typer.Option(metavar="NAME|DIR", help="Model whose nets to build (see 'trtseg info'), or a folder."),
    ] = "default",
    runtime: Annotated[
        str,
        typer.Option(
            metavar="tensorrt|tensorrt-rtx",
            help="What builds and runs them; tensorrt-rtx builds without a GPU.",
        ),
    ] = "tensorrt-rtx",
    target: Annotated[
        str,
        typer.Option(
            metavar="native|portable|sm_86,...",
            help="GPU here, any from Ampere on (tensorrt-rtx), or compute capabilities.",
        ),
    ] = "native",
    precision: Annotated[str, typer.Option(metavar="fp16|fp32", help="Arithmetic of the nets.")] = "fp16",
    batch: Annotated[
        str, typer.Option(metavar="N,...", help="Slices in one run; each size is an engine.")
    ] = "1,16",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder to write to, created where needed.",
            show_default="your cache",
            readable=False,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Build engines for NVIDIA GPUs: one of each net, target and batch size, all of them or none.

    Beside each engine lies a JSON file that says what it was made from and how. An engine runs on the machine that
    loads it as a program does: take none from where you would not take a program.
    """
    with _errors_as_exit_codes():
        from trtseg.cli.batch import _progress
        from trtseg.engines.build import build_engines

        sizes = [_number(part) for part in batch.split(",")]
        with _progress(quiet) as bar:
            task = None if bar is None else bar.add_task("", total=1.0)
            built = build_engines(
                model,
                runtime=runtime,
                target=target.split(","),
                precision=precision,
                batch=sizes,
                output=output,
                progress=lambda what, done: (
                    None if bar is None else bar.update(task, completed=done, description=what)
                ),
            )
        if not quiet:
            _show_built(built)


@app.command("list", epilog=text.NOT_CLINICAL)
def list_(folder: Folder = None) -> None:
    """Say which engines there are; read only what lies beside them."""
    with _errors_as_exit_codes():
        from trtseg.engines import cache
        from trtseg.engines.trust import cache_folder

        found = cache.entries(folder)
        rows = [_row(entry) for entry in found]
        headings = ("engine", "runtime", "MB", "built", "accepted", "state")
        place = cache_folder() if folder is None else folder
        text.show(*([_table(headings, rows)] if rows else []), _count(len(found), place), text.NOT_CLINICAL)


@app.command(epilog=text.NOT_CLINICAL)
def verify(folder: Folder = None) -> None:
    """Check engines as loading them does: hash, sidecar and, in your cache, owner and mode.

    Exit codes: 0 all are intact, 3 some are not, 2 none is.
    """
    with _errors_as_exit_codes():
        from trtseg.engines import cache
        from trtseg.engines.trust import cache_folder

        found = cache.entries(folder, verify=True)
        broken = [entry.problem for entry in found if entry.problem is not None]
        for problem in broken:
            text.fail(problem)
        place = cache_folder() if folder is None else folder
        text.out(f"{len(found) - len(broken)} of {_count(len(found), place)} intact\n")
        raise typer.Exit(0 if not broken else 3 if len(broken) < len(found) else 2)


@app.command(epilog=text.NOT_CLINICAL)
def clear(folder: Folder = None) -> None:
    """Delete built engines; those in your cache are built again when they are needed."""
    with _errors_as_exit_codes():
        from trtseg.engines import cache
        from trtseg.engines.trust import cache_folder

        files, size = cache.clear(folder)
        place = cache_folder() if folder is None else folder
        text.out(f"deleted {files} files, {size / 1e6:.1f} MB, in {place}\n")


def _number(part: str) -> int:
    if not part.strip().isdecimal():
        raise ArgumentError(f"--batch: got {part!r}; expected numbers of slices with commas between them")
    return int(part)


def _count(number: int, folder: Path) -> str:
    return f"{number} engine{'s' * (number != 1)} in {folder}"


def _show_built(built: list[Entry]) -> None:
    rows = []
    for entry in built:
        if entry.sidecar is not None:
            made = entry.sidecar
            numbers = f"{made.size / 1e6:.1f}", f"{made.built['seconds']:.1f}", str(len(made.warnings))
            rows.append((str(made.key), *numbers, entry.path.name))
    headings = ("engine", "MB", "seconds", "warnings", "file")
    text.show(_table(headings, rows), _count(len(built), built[0].path.parent), text.NOT_CLINICAL)


def _row(entry: Entry) -> tuple[str, ...]:
    from trtseg.engines.probe import why_stale

    made = entry.sidecar
    if made is None:
        return entry.path.name, "", "", "", "", entry.problem or ""
    accepted = "not yet" if made.acceptance is None else "yes" if made.acceptance.get("accepted") else "no"
    state = entry.problem or why_stale(made.key.runtime, made.key.runtime_version) or "ready"
    about = f"{made.key.runtime} {made.key.runtime_version}", f"{made.size / 1e6:.1f}", made.built["at"][:16]
    return str(made.key), *about, accepted, state


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for heading in headings:
        right = heading in ("MB", "seconds", "warnings")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
