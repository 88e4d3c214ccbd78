"""Many CTs in one go: what is written where, and no case that takes the others down with it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtseg.cli import text
from trtseg.errors import ArgumentError, OutputError, TrtsegError
from trtseg.io.atomic import resolve_target
from trtseg.io.nifti import ENDINGS

if TYPE_CHECKING:
    from trtseg.api import Segmenter
    from trtseg.result import Segmentation

_LISTED = 10  # lesions listed one by one; the report has all


@dataclass(frozen=True)
class Case:
    """One input and the files that are written for it."""

    source: Path
    labels: Path
    report: Path | None
    preview: Path | None

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Labels first, then what else was asked for."""
        return tuple(p for p in (self.labels, self.report, self.preview) if p is not None)


@dataclass(frozen=True)
class Done:
    """What the summary says of a case."""

    case: Case
    result: Segmentation
    seconds: float


def stem(path: Path) -> str:
    """File name without ``.nii.gz``, ``.nii``, or whatever its last ending is."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def is_folder(path: Path) -> bool:
    """Tell whether there is a folder of that name; False where that cannot be known."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where it may not look


def file_in(output: Path, name: str) -> Path:
    """Path to write: ``output`` itself if it is named as a NIfTI file, ``name`` in it if it is a folder."""
    if is_folder(output):
        return output / name
    if not output.name.lower().endswith(ENDINGS):
        raise ArgumentError(
            f"--output: got {output}; expected a name ending in .nii.gz or .nii, or a folder that exists"
        )
    return output


@contextmanager
def plan(inputs: Sequence[Path], output: Path | None, *, report: bool, preview: bool) -> Iterator[list[Case]]:
    """Decide what is written where; refuse what would overwrite an input or write a file twice.

    The folder of several outputs is there while the cases are worked on, and stays if something was written.

    Raises
    ------
    ArgumentError
        If ``output`` does not suit the number of inputs, or outputs and inputs collide.
    OutputError
        If an output cannot be written, as far as can be known before.
    """
    several = len(inputs) > 1
    folder = output if output is not None else Path()
    names = [f"{stem(path)}_seg.nii.gz" for path in inputs]
    if several and folder.name.lower().endswith(ENDINGS) and not is_folder(folder):
        raise ArgumentError(f"--output: got the file {folder} for {len(inputs)} inputs; expected a folder")
    labels = [folder / name for name in names] if several else [file_in(folder, names[0])]
    cases = [
        Case(
            source,
            target,
            target.with_name(f"{stem(target)}.json") if report else None,
            target.with_name(f"{stem(target)}.png") if preview else None,
        )
        for source, target in zip(inputs, labels, strict=True)
    ]
    with made_folder(folder) if several else nullcontext():
        _check_targets(cases)
        check_writable(labels[0].parent)
        yield cases


@contextmanager
def made_folder(folder: Path, option: str = "--output") -> Iterator[None]:
    """Create a folder where needed; what was created and has stayed empty is removed at the end."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{option}: {folder} cannot be created ({error.strerror}); choose another folder"
            ) from error
        yield
    finally:
        for path in missing:  # the innermost first
            with contextlib.suppress(OSError):
                path.rmdir()


def _check_targets(cases: Sequence[Case]) -> None:
    sources = {os.path.realpath(case.source): case.source for case in cases}
    claimed: dict[str, Path] = {}
    for case in cases:
        for output in case.outputs:
            target = os.fspath(resolve_target(output))
            if target in sources:
                raise ArgumentError(f"--output: {output} is the input {sources[target]}; choose another name")
            if target in claimed:
                raise ArgumentError(
                    f"inputs: {claimed[target]} and {case.source} would both be written to {output}; "
                    "rename one, or segment them into different folders"
                )
            claimed[target] = case.source


def check_writable(folder: Path, option: str = "--output") -> None:
    """Find out now, not after the segmentation; only trying tells."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{option}: the folder {folder} cannot be written ({error.strerror}); choose another one"
        ) from error


def run(cases: Sequence[Case], segmenter: Segmenter, *, quiet: bool) -> int:
    """Segment all cases, report each failure on stderr, print a table on stdout; return the exit code."""
    done: list[Done] = []
    bugs = 0
    try:
        with _progress(quiet) as bar:
            for number, case in enumerate(cases, 1):
                label = f"{number}/{len(cases)} {case.source.name}" if len(cases) > 1 else case.source.name
                start = time.perf_counter()
                try:
                    result = _segment(case, segmenter, _follow(bar, label))
                except TrtsegError as error:
                    named = str(case.source) in str(error) or len(cases) == 1
                    text.fail(str(error) if named else f"{case.source}: {error}")
                except Exception:
                    # A bug, to be seen in full; the other cases still get their turn.
                    bugs += 1
                    text.fail(f"{case.source}: unexpected, please report this:")
                    traceback.print_exc()
                else:
                    done.append(Done(case, result, time.perf_counter() - start))
    finally:
        if done and not quiet:
            try:
                _print(done, details=len(cases) == 1)
            except OutputError as error:  # the results are where they belong all the same
                text.fail(str(error))
    if bugs:
        return 1
    return 0 if len(done) == len(cases) else 3 if done else 2


def _segment(case: Case, segmenter: Segmenter, tell: Callable[[str, float], None]) -> Segmentation:
    from trtseg.io import load

    tell("reading", 0)
    start = time.perf_counter()
    volume = load(case.source)  # here, not by the segmenter: the preview shows it too
    read = time.perf_counter() - start
    result = segmenter.segment(volume, progress=lambda fraction: tell("segmenting", fraction))
    result = dataclasses.replace(result, timings={**result.timings, "read": read})
    tell("writing", 1)
    result.save(case.labels, report=case.report, preview=case.preview, volume=volume)
    return result


def _progress(quiet: bool) -> Any:
    """Make a progress bar on stderr for people, and none for files and scripts."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        return nullcontext()
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def _follow(bar: Any, label: str) -> Callable[[str, float], None]:
    """Make the function that moves the bar (None: no bar) of one case."""
    if bar is None:
        return lambda stage, fraction: None
    for old in bar.task_ids:
        bar.remove_task(old)
    task = bar.add_task(label, total=1.0)
    return lambda stage, fraction: bar.update(task, completed=fraction, description=f"{label}: {stage}")


def _print(done: Sequence[Done], *, details: bool) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, caption=text.NOT_CLINICAL, caption_justify="left", show_header=not details)
    if details:
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for heading, content in _details(done[0]):
            table.add_row(heading, Text(content))
    else:
        table.add_column("case", overflow="fold")
        for heading in ("liver mL", "tumour mL", "lesions", "seconds"):
            table.add_column(heading, justify="right")
        table.add_column("labels", overflow="fold")
        for row in done:
            r = row.result
            numbers = (f"{r.liver_ml:.1f}", f"{r.tumour_ml:.1f}", str(len(r.lesions)), f"{row.seconds:.1f}")
            table.add_row(Text(row.case.source.name), *numbers, Text(str(row.case.labels)))
    text.show(table)


def _details(done: Done) -> list[tuple[str, str]]:
    """Lay the report of one case out as headings and texts."""
    case, result, made = done.case, done.result, done.result.provenance
    rows = [
        ("case", case.source.name),
        ("liver", f"{result.liver_ml:.1f} mL"),
        ("tumour", f"{result.tumour_ml:.1f} mL, {result.burden:.1%} of the liver"),
        ("lesions", str(len(result.lesions))),
    ]
    for number, lesion in enumerate(result.lesions[:_LISTED], 1):
        first, last = lesion.slices
        size = f"{lesion.volume_ml:.1f} mL, {lesion.diameter_mm:.0f} mm across, slices {first} to {last}"
        rows.append((f"  {number}", size))
    if len(result.lesions) > _LISTED:
        rows.append(("", f"and {len(result.lesions) - _LISTED} smaller ones"))
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.timings.items())
    rows.append(("seconds", f"{done.seconds:.1f}: {stages}"))
    rows.append(
        ("made by", f"model {made['model']} {made['model_version']}, {made['device']}, {made['precision']}")
    )
    rows.append(("labels", str(case.labels)))
    rows += [("report", str(case.report))] if case.report else []
    rows += [("preview", str(case.preview))] if case.preview else []
    return rows
