"""``trtseg segment``: labels for one or several CTs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtseg.cli import lean, progress, text
from trtseg.cli.exits import errors_as_exit_codes
from trtseg.cli.outcomes import LISTED, show, warn_of_earlier
from trtseg.errors import OutputError
from trtseg.terminal import visible

if TYPE_CHECKING:
    from trtseg.api import Segmenter
    from trtseg.cohort import Workers


def segment(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS",
            help="CT volumes in Hounsfield units: NIfTI, NRRD, MetaImage, Analyze, DICOM (a file, a folder, a zip); a "
            "folder with CTs in it and below it; a quoted pattern; a list, as .csv with a column 'input'; URLs.",
            parser=text.path_or_url,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|DIR",
            help="One input: a file (.nii.gz, .nii, .nrrd, .mha, .dcm), or an existing folder. Several: a folder, "
            "created where needed. Names in a folder are <input>_seg.nii.gz; CTs of one name keep their folders.",
            show_default="the current folder",
            parser=text.path,
        ),
    ] = None,
    report: Annotated[
        bool,
        typer.Option("--report", help="Write volumes, lesions, timings and provenance to <output>.json."),
    ] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Write a montage of slices with outlines too: <output>.png.")
    ] = False,
    html: Annotated[
        bool,
        typer.Option(
            "--html",
            help="Write a page to look at too, <output>.html: the CT with outlines in three planes, lesions, warnings. "
            "Of several cases, also index.html and index.csv in the folder, with a row for each.",
        ),
    ] = False,
    keep_identity: Annotated[
        bool,
        typer.Option(
            "--keep-identity", help="The page shows the name of the input, which may tell who the patient is."
        ),
    ] = False,
    model: Annotated[
        str,
        typer.Option(metavar="NAME|DIR", help="Model to run (see 'trtseg info'), or a folder with one."),
    ] = "default",
    device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda|cuda:N",
            help="Where to run. A named device that does not work is an error.",
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            metavar="auto|fp32|bf16|int8|fp16", help="Arithmetic of the nets; auto: the fastest here."
        ),
    ] = "auto",
    runtime: Annotated[
        str,
        typer.Option(metavar="auto|tensorrt|tensorrt-rtx|torch", help="What runs the nets on a GPU."),
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Threads on the CPU.", show_default="as many as it may use"),
    ] = None,
    search_mm: Annotated[
        float,
        typer.Option(
            metavar="MM",
            help="Look for the liver on slices this far apart first, 10 to 50, then label slices near it only: quicker "
            "where more was scanned; docs/performance.md. 0 labels all.",
        ),
    ] = 0.0,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            metavar="N",
            min=1,
            help="Do N cases at a time, each in a process of its own: one that fails does not stop the others. See "
            "docs/cohorts.md.",
            show_default="one, in this process",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Do several cases on a Ray cluster: host:port, auto, or local. --jobs says how many at a time.",
            show_default="this machine",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Do cases again even if they are complete for this model and these options, and replace labels that "
            "trtseg did not write or that somebody changed.",
        ),
    ] = False,
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
    orientation: Annotated[
        str | None,
        typer.Option(
            metavar="ABC",
            help="Where the axes of the arrays point to, if the headers are wrong: RAS, LPS, ...",
            show_default="as the header says",
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            metavar="UID|list",
            help="Series Instance UID of the DICOM series to take; list prints the series of the input, and why each "
            "is taken or not.",
            show_default="the best axial CT",
        ),
    ] = None,
    dicom: Annotated[
        str | None,
        typer.Option(
            metavar="seg,sr,sc",
            help="Write DICOM objects into <output>/<input>_dicom instead of labels: seg, a segmentation; labelmap, "
            "the same as one label map; sr, a report on seg; sc, pictures for any viewer.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")] = False,
) -> None:
    """Label liver (1) and tumour (2) in CTs.

    Each CT, one or many, is labelled on its own grid. The files of a case appear together, complete, or not at all.
    Of several cases, one that fails is reported and the others go on.

    Exit codes: 0 all done, 2 error and nothing written, 3 some cases failed, 130 interrupted. After an interruption
    the same command goes on with the cases that are not complete.
    """
    with errors_as_exit_codes():
        lean.import_nibabel()
        from trtseg import cohort
        from trtseg.cohort.table import TABLE

        if series == "list":
            _list_series(inputs)
            return
        left_out: list[Path] = []
        with cohort.plan(
            inputs,
            output,
            report=report,
            preview=preview,
            html=html,
            series=series,
            dicom=() if dicom is None else [kind.strip() for kind in dicom.split(",")],
            left_out=left_out,
            overwrite=overwrite,
            name="--output",
        ) as cases:
            from trtseg.labels.postprocess import PostProcess

            steps = PostProcess(
                median_mm=median_mm,
                largest_liver=not no_largest_liver,
                fill_holes=not no_fill_holes,
                min_tumour_ml=min_tumour_ml,
            )
            options: dict[str, Any] = {
                "model": model, "device": device, "precision": precision, "runtime": runtime,
                "postprocess": steps, "threads": threads, "search_mm": search_mm,
            }  # fmt: skip
            # The only CT of a folder, a pattern or a list, too, if a file was named for its labels.
            is_alone = cohort.is_alone(cases, inputs) or cases[0].labels == output
            folder: Path | None = output or Path()
            if is_alone:
                folder = cases[0].labels.parent if jobs or ray else None
            if left_out and not quiet:
                names = ", ".join(map(str, left_out[:LISTED])) + ", ..." * (len(left_out) > LISTED)
                text.note(
                    "left out as label maps (trtseg wrote them, their names say so, or voxels have 8 bits): "
                    + names
                )
            with ExitStack() as stack:
                segmenter: Segmenter | Workers
                if jobs is None and ray is None:
                    from trtseg.api import Segmenter

                    with progress.told(quiet, label="building") as tell:
                        segmenter = Segmenter(**options, progress=tell)
                    stack.enter_context(segmenter)
                else:
                    segmenter = cohort.Workers(jobs, ray, options=options)
                tell = stack.enter_context(progress.told(quiet, len(cases) > 1))
                outcomes = cohort.run(
                    cases,
                    segmenter,
                    folder=folder,
                    overwrite=overwrite,
                    orientation=orientation,
                    keep_identity=keep_identity,
                    progress=tell,
                )
                shown = show(stack.enter_context(closing(outcomes)), len(cases), quiet)
            failures = shown.failures
            if failures.count > LISTED and folder and not quiet and (table := folder / TABLE).exists():
                text.note(f"{failures.count} of {len(cases)} cases failed: {table} says why")
            if html and folder and not is_alone:
                from trtseg.report.index import write_index

                try:
                    pages = [case.html for case in cases if case.html]
                    index = write_index(pages, folder, shown.failed, shown.outdated)
                except OutputError as error:  # the files of the cases are there all the same
                    failures.add(error, folder)
                else:
                    if index is not None and not quiet:
                        text.note(f"all cases on a page: {index}")
            elif folder and not is_alone and shown.new:
                from trtseg.io.names import INDEX

                warn_of_earlier([folder / INDEX], "--html")
            raise typer.Exit(failures.exit_code(shown.well))


def _list_series(inputs: Sequence[str]) -> None:
    """Print the volumes in each DICOM input on stdout, each with its UID in a line of its own, to be copied."""
    from trtseg.io.dicom import list_series

    for path in inputs:
        found = list_series(Path(path))
        free = "is taken" if sum(not one.reason for one in found) == 1 else "can be chosen"
        for one in found:
            text.out(visible(f"{one.series}\n    {one.about}: {one.reason or free}\n"))
