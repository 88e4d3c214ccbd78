"""Many CTs in one go: what is written where, and no case that takes the others down with it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtseg.cli import progress, text
from trtseg.cli.exits import Failures
from trtseg.errors import ArgumentError
from trtseg.io.atomic import resolve_target
from trtseg.io.folders import check_writable, made_folder
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
    with made_folder(folder, "--output") if several else nullcontext():
        _check_targets(cases)
        check_writable(labels[0].parent, "--output")
        yield cases


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


def run(cases: Sequence[Case], segmenter: Segmenter, *, quiet: bool) -> int:
    """Segment all cases, report each failure on stderr, print a table on stdout; return the exit code."""
    done: list[Done] = []
    failures = Failures()
    try:
        with progress.bar(quiet) as bar:
            for number, case in enumerate(cases, 1):
                label = f"{number}/{len(cases)} {case.source.name}" if len(cases) > 1 else case.source.name
                start = time.perf_counter()
                try:
                    result = _segment(case, segmenter, progress.follow(bar, label))
                except Exception as error:
                    failures.add(error, case.source, alone=len(cases) == 1)
                else:
                    done.append(Done(case, result, time.perf_counter() - start))
    finally:
        if done and not quiet:
            _print(done, details=len(cases) == 1)
    return failures.exit_code(len(done))


def _segment(case: Case, segmenter: Segmenter, tell: Callable[[str, float], None]) -> Segmentation:
    from trtseg.io import load

    tell("reading", 0)
    start = time.perf_counter()
    volume = load(case.source)  # here, not by the segmenter: the preview shows it too
    read = time.perf_counter() - start
    result = segmenter.segment(volume, progress=tell)
    result = dataclasses.replace(result, timings={**result.timings, "read": read})
    tell("writing", 1)
    result.save(case.labels, report=case.report, preview=case.preview, volume=volume)
    return result


def _print(done: Sequence[Done], *, details: bool) -> None:
    if details:
        table = text.listing(_details(done[0]), caption=text.NOT_CLINICAL, indent=True)
    else:
        headings = ("case", "liver mL", "tumour mL", "lesions", "seconds", "labels")
        rows = [
            (
                one.case.source.name,
                f"{one.result.liver_ml:.1f}",
                f"{one.result.tumour_ml:.1f}",
                str(len(one.result.lesions)),
                f"{one.seconds:.1f}",
                str(one.case.labels),
            )
            for one in done
        ]
        table = text.table(headings, rows, right=headings[1:5], caption=text.NOT_CLINICAL)
    text.show_results(table)


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
