"""``trtseg build``: engines for NVIDIA GPUs, made ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtseg.cli import progress, text
from trtseg.cli.exits import errors_as_exit_codes
from trtseg.errors import ArgumentError

if TYPE_CHECKING:
    from trtseg.engines.nvidia.cache import Built


def build(
    model: Annotated[
        str,
        typer.Option(metavar="NAME|DIR", help="Model whose nets to build (see 'trtseg info'), or a folder."),
    ] = "default",
    runtime: Annotated[
        str,
        typer.Option(
            metavar="tensorrt|tensorrt-rtx|torch",
            help="What builds and runs the engines; tensorrt-rtx builds without a GPU, torch needs Triton to build.",
        ),
    ] = "tensorrt-rtx",
    target: Annotated[
        str,
        typer.Option(
            metavar="native|portable|sm_86,...",
            help="native: the GPU here; portable: any from Ampere on (tensorrt-rtx); or compute capabilities.",
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
            parser=text.path,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Build engines for NVIDIA GPUs.

    It builds one of each net, target and batch size, all of them or none. Beside each engine lies a JSON file that
    says what it was made from and how. An engine runs on the machine that loads it as a program does: take none
    from where you would not take a program.
    """
    with errors_as_exit_codes():
        from trtseg.engines.nvidia.build import build_engines

        sizes = [_slices(part) for part in batch.split(",")]
        with progress.told(quiet) as tell:
            built = build_engines(
                model,
                runtime=runtime,
                target=target.split(","),
                precision=precision,
                batch=sizes,
                output=output,
                progress=tell,
            )
        if not quiet:
            _show(built)


def _slices(part: str) -> int:
    """Read one number of the option ``--batch``."""
    if not part.strip().isdecimal():
        raise ArgumentError(f"--batch: got {part!r}; expected numbers of slices with commas between them")
    return int(part)


def _show(built: Sequence[Built]) -> None:
    """Print a table of the engines that were built."""
    rows = []
    for path, made in built:
        numbers = f"{made.size / 1e6:.1f}", f"{made.built['seconds']:.1f}", str(len(made.warnings))
        rows.append((str(made.key), *numbers, path.name))
    headings = ("engine", "MB", "seconds", "warnings", "file")
    table = text.table(headings, rows, right=range(1, 4))
    text.show(table, text.count_engines(len(built), built[0].path.parent), text.NOT_CLINICAL)
