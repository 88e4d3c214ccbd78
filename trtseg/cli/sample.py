"""``trtseg sample``: a CT to try."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from trtseg.cli import text
from trtseg.cli.exits import errors_as_exit_codes
from trtseg.terminal import visible


def sample(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|DIR",
            help="File to write (.nii.gz, .nii), or an existing folder.",
            show_default="the cache; for a phantom the current folder",
            parser=text.path,
        ),
    ] = None,
    phantom: Annotated[
        bool,
        typer.Option("--phantom", help="Make a procedural phantom and its truth instead; needs no network."),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Which phantom.")] = 0,
) -> None:
    """Get a CT to try, or draw a phantom.

    The CT is a public one, fetched through pip once and cached. The command prints the path of the CT on stdout, so
    that it can be used in scripts, and where it comes from on stderr.
    """
    with errors_as_exit_codes():
        from trtseg import sample as public
        from trtseg.cohort import file_in
        from trtseg.io.names import NIFTI, stem

        if phantom:
            from trtseg.phantom import abdomen

            path = file_in(
                output if output is not None else Path(), "phantom.nii.gz", name="--output", endings=NIFTI
            )
            labels = path.with_name(f"{stem(path)}_labels.nii.gz")
            public.write_phantom(abdomen(seed=seed), path, labels)
            typer.echo(
                f"procedural phantom of seed {seed}, no patient: its organs end so suddenly that 'trtseg segment' "
                f"warns of slices-jump; its truth: {visible(str(labels))}",
                err=True,
            )
        else:
            if public.cached() is None:
                typer.echo("downloading the sample CT through pip (38 MB, once) ...", err=True)
            path = public.fetch()
            if output is not None:
                path = public.copy(path, file_in(output, public.FILE_NAME, name="--output", endings=NIFTI))
            typer.echo(public.SOURCE, err=True)
        text.out(os.fsencode(path) + b"\n")  # the very bytes of its name, whatever the locale
