"""``trtseg segment``: labels for one or several CTs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtseg.cli import lean, progress, text
from trtseg.cli.exits import Failures, errors_as_exit_codes
from trtseg.errors import OutputError
from trtseg.terminal import visible

if TYPE_CHECKING:
    from trtseg.api import Segmenter
    from trtseg.cohort import Case, Outcome, Workers
    from trtseg.result import Segmentation

_LISTED = 10  # lesions printed one by one; the report has all. Failures that leave the table on the screen
_MOST_ROWS = 1000  # of the table that is printed


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
                shown = ", ".join(map(str, left_out[:_LISTED])) + ", ..." * (len(left_out) > _LISTED)
                text.note(
                    "left out as label maps (trtseg wrote them, their names say so, or voxels have 8 bits): "
                    + shown
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
                failures, done, failed, changed = _show(
                    stack.enter_context(closing(outcomes)), len(cases), quiet
                )
            if failures.count > _LISTED and folder and not quiet and (table := folder / TABLE).exists():
                text.note(f"{failures.count} of {len(cases)} cases failed: {table} says why")
            if html and folder and not is_alone:
                from trtseg.report.index import write_index

                try:
                    index = write_index([case.html for case in cases if case.html], folder, failed, changed)
                except OutputError as error:  # the files of the cases are there all the same
                    failures.add(error, folder)
                else:
                    if index is not None and not quiet:
                        text.note(f"all cases on a page: {index}")
            raise typer.Exit(failures.exit_code(done))


def _list_series(inputs: Sequence[str]) -> None:
    """Print the volumes in each DICOM input on stdout, each with its UID in a line of its own, to be copied."""
    from trtseg.io.dicom import list_series

    for path in inputs:
        found = list_series(Path(path))
        free = "is taken" if sum(not one.reason for one in found) == 1 else "can be chosen"
        for one in found:
            text.out(visible(f"{one.series}\n    {one.about}: {one.reason or free}\n"))


def _show(
    outcomes: Iterable[Outcome], count: int, quiet: bool
) -> tuple[Failures, int, dict[Path, str], set[Path]]:
    """Report each failure on stderr and print a table.

    Return the failures, how many cases are well, for the pages of those that failed why, and the pages of those whose
    files somebody changed. ``count`` is the number of cases.
    """
    from trtseg.cohort.table import TABLE

    failures = Failures()
    failed: dict[Path, str] = {}
    outdated: set[Path] = set()
    rows: list[tuple[str, ...]] = []  # what the table shows of each case
    changed: list[Path] = []
    done = old = 0
    try:
        for outcome in outcomes:
            if outcome.changed is not None:
                changed.append(outcome.changed)
                outdated |= {outcome.case.html} if outcome.case.html else set()
                continue
            if outcome.is_old:
                old += 1
                continue
            if not done and not failures.count:
                _say_old(old, changed, count, quiet)
            if outcome.error is not None:
                case = outcome.case
                reason = failures.add(outcome.error, case.input, alone=count == 1)
                if case.html is not None:
                    failed[case.html] = reason.replace(case.input, case.source.name)
                continue
            done += 1
            for warning in outcome.warnings:
                text.warn(f"{outcome.case.input}: {warning.text} [{warning.code}]")
            if outcome.result is not None and count == 1:
                rows += _details(outcome, outcome.result)
                _warn_of_earlier(outcome.case)
            elif outcome.row is not None and len(rows) < _MOST_ROWS:
                rows.append(_row(outcome, outcome.row))
        if not done and not failures.count:
            _say_old(old, changed, count, quiet)
    finally:
        if rows and not quiet and count == 1:
            text.show_results(text.listing(rows, caption=text.NOT_CLINICAL, indent=True))
        elif rows and not quiet:
            headings = ("case", "liver mL", "tumour mL", "lesions", "seconds", "labels")
            table = text.table(headings, rows, right=range(1, 5), caption=text.NOT_CLINICAL)
            text.show_results(table)
    if done > len(rows) == _MOST_ROWS and not quiet:
        text.note(f"{done - len(rows)} more cases are in the table of the folder, {TABLE}")
    return failures, done + old + len(changed), failed, outdated


def _say_old(old: int, changed: Sequence[Path], count: int, quiet: bool) -> None:
    """Say how many cases were complete before, on stderr; and always, which of them are as others have left them."""
    if changed:
        from trtseg.cohort.manifest import MANIFEST

        shown = ", ".join(map(str, changed[:_LISTED])) + ", ..." * (len(changed) > _LISTED)
        text.warn(
            f"{len(changed)} of {count} cases are left alone, for these files are not as {MANIFEST} has them, so "
            f"somebody changed or replaced them: {shown}; --overwrite replaces them"
        )
    if old and not quiet:
        text.note(
            f"{old} of {count} cases are complete, made by this model and these options; "
            "--overwrite does them again"
        )


def _warn_of_earlier(case: Case) -> None:
    """Say that a report, preview or page is there that was not written with these labels."""
    from trtseg.io.names import stem
    from trtseg.notice import bears_notice

    beside = (case.labels.with_name(f"{stem(case.labels)}{end}") for end in (".json", ".png", ".html"))
    left = [path for path in beside if path not in case.outputs and path.is_file() and bears_notice(path)]
    if left:
        names = ", ".join(map(str, left))
        text.warn(
            f"{names}: may be of earlier labels; write them anew (--report, --preview, --html), or remove them"
        )


def _row(outcome: Outcome, row: Mapping[str, Any]) -> tuple[str, ...]:
    """Lay out one case of several in a row."""
    return (
        outcome.case.source.name,
        f"{row['liver_ml']:.1f}",
        f"{row['tumour_ml']:.1f}",
        str(row["lesion_count"]),
        f"{outcome.seconds:.1f}",
        str(outcome.case.labels),
    )


def _details(outcome: Outcome, result: Segmentation) -> list[tuple[str, ...]]:
    """Lay out the only case as headings and texts."""
    case, made = outcome.case, result.provenance
    rows: list[tuple[str, ...]] = [
        ("case", case.source.name),
        ("liver", f"{result.liver_ml:.1f} mL"),
        ("tumour", f"{result.tumour_ml:.1f} mL, {result.burden:.1%} of the liver"),
        ("lesions", str(len(result.lesions))),
    ]
    for number, lesion in enumerate(result.lesions[:_LISTED], 1):
        first, last = lesion.slices
        size = f"{lesion.volume_ml:.1f} mL, {lesion.diameter_mm:.0f} mm across, slices {first} to {last}"
        if lesion.probability is not None:
            size += f", probability {lesion.probability:.2f}"
        rows.append((f"  {number}", size))
    if len(result.lesions) > _LISTED:
        rows.append(("", f"and {len(result.lesions) - _LISTED} smaller ones"))
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.timings.items())
    rows.append(("seconds", f"{outcome.seconds:.1f}: {stages}"))
    rows.append(
        ("made by", f"model {made['model']} {made['model_version']}, {made['device']}, {made['precision']}")
    )
    if "search_mm" in made:
        slices = f"{made['labelled_slices']} of {len(result.canonical)} slices labelled"
        rows.append(("search", f"for the liver on slices {made['search_mm']:g} mm apart, {slices}"))
    rows.append(("labels", str(case.labels)))
    rows += [("report", str(case.report))] if case.report else []
    rows += [("preview", str(case.preview))] if case.preview else []
    rows += [("page", str(case.html))] if case.html else []
    return rows
