"""Bring labelled CT of several data sets into one slice store, split by patient.

    python -m training.prepare --shared ../shared/data -o STORE
    python -m training.prepare --lits DIR --chaos DIR --negatives DIR -o STORE --paper 0

Cases that cannot be used are named, left out, and recorded in the store's manifest with the reason: image and labels
of different shapes or places, labels other than 0, 1 and 2, files that cannot be read, and scans that were there
before. Nothing is repaired in silence.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from training import split as splitting
from training import store
from training.cases import Case, digest, read_checked, value_digest
from training.program import plain_errors
from training.readers import READERS, chaos_nifti
from trtseg import __version__
from trtseg.errors import InputError


@dataclass(frozen=True)
class Settings:
    """What decides which slices of the cases go into the store, and where."""

    size: int = 512  # twice the net's
    validation: tuple[str, ...] | None = None  # patients; None: the default ones
    paper: int | None = None  # seed
    every: int = 1  # K: every K-th slice of a case is kept


@dataclass(frozen=True)
class Looked:
    """What a first look at a case has found, of the slices that ``every`` leaves."""

    case: Case
    slices: np.ndarray  # int [n]: their index in the case
    liver: np.ndarray  # bool [n]: whether they hold liver
    hu_sha256: str
    label_sha256: str
    values_sha256: str  # whatever the order of the axes
    notes: tuple[str, ...]


def prepare(cases: Sequence[Case], out: Path, settings: Settings) -> dict[str, Any]:
    """Write the store of ``cases`` to the folder ``out``; return its manifest.

    Every case is read twice, one at a time: to check it, and to write it once it is known what else there is.

    Raises
    ------
    InputError
        If no case can be used, or the settings do not fit the cases.
    OutputError
        If the store cannot be written. What was in ``out`` before is as it was.
    """
    check(settings, cases)
    with store.writing(out) as files:
        looked, left_out, patient = look(cases, settings.every)
        parts, warnings = choose(cases, looked, patient, settings)
        about = {
            "trtseg": __version__,
            "seed": settings.paper,
            "every": settings.every,
            "warnings": warnings,
            "left_out": left_out,
        }
        return store.fill(files, parts, settings.size, about)


def check(settings: Settings, cases: Sequence[Case]) -> None:
    """Raise an `InputError`, before anything is read, if the settings do not fit together or not to the cases."""
    if settings.size < 2 or settings.size % 2 or settings.every < 1:
        raise InputError(
            f"size, every: got {settings.size}, {settings.every}; expected an even size, and 1 or more"
        )
    if settings.paper is not None and settings.paper < 0:
        raise InputError(f"paper: got the seed {settings.paper}; expected 0 or more")
    if settings.validation is not None and settings.paper is not None:
        raise InputError("validation, paper: got both; --paper draws the patients itself, leave one out")
    splitting.check_patients("validation", settings.validation or (), {case.group for case in cases})


def look(cases: Sequence[Case], every: int) -> tuple[list[Looked], list[dict[str, str]], dict[str, str]]:
    """Read every case once: what can be used, what cannot, with the reason, and the patient of each group's name.

    Two cases with the same voxels are of one patient, whatever their data sets call him: their groups become one.
    One of them is kept, see `best_copy`.
    """
    looked: dict[int, Looked] = {}
    reasons: dict[int, str] = {}
    copies: dict[str, list[int]] = {}  # cases by their values
    for i, case in enumerate(tqdm(cases, "checking", leave=False, disable=None)):
        try:
            looked[i] = one = _look_at(case, every)
        except InputError as error:
            reasons[i] = str(error)
            continue
        copies.setdefault(one.values_sha256, []).append(i)
    same = {case.group: case.group for case in cases}  # a patient's name -> an earlier one, or itself
    for indices in copies.values():
        own = [looked[i] for i in indices]
        best = best_copy(own)
        for i, one in zip(indices, own, strict=True):
            same[_first_name(one.case.group, same)] = _first_name(own[0].case.group, same)
            if one is not best:
                reasons[i] = _duplicate(one, best, own)
    patient = {group: _first_name(group, same) for group in same}
    found = [
        replace(one, case=replace(one.case, group=patient[one.case.group]))
        for i, one in looked.items()
        if i not in reasons
    ]
    left_out = [
        {"name": cases[i].name, "source": cases[i].source, "reason": reason}
        for i, reason in sorted(reasons.items())
    ]
    if not found:
        few = "; ".join(f"{row['name']}: {row['reason']}" for row in left_out[:3])
        raise InputError(f"no case can be used, of {len(cases)} ({few or 'none was given'})")
    return found, left_out, patient


def _look_at(case: Case, every: int) -> Looked:
    scan = read_checked(case)
    if scan.cells is not None:
        raise InputError("has cells and unknown pixels, which a slice store cannot hold; use training.kit")
    return Looked(
        case,
        np.arange(0, len(scan.hu), every),
        scan.label.any(axis=(1, 2))[::every],
        digest(scan.hu),
        digest(scan.label),
        value_digest(scan.hu),
        scan.notes,
    )


def best_copy(copies: Sequence[Looked]) -> Looked | None:
    """Choose one of the cases with the same voxels: in DICOM if there is one, else the first.

    None if they are ordered differently and none is DICOM: some are upside down or mirrored, and nobody knows which.
    """
    sure = [one for one in copies if one.case.dicom] or copies
    return sure[0] if len({one.hu_sha256 for one in sure}) == 1 else None


def _first_name(group: str, same: dict[str, str]) -> str:
    while same[group] != group:
        group = same[group]
    return group


def _duplicate(one: Looked, best: Looked | None, copies: Sequence[Looked]) -> str:
    """Say why a case is left out for another with the same voxels."""
    other = best or next(copy for copy in copies if copy.hu_sha256 != one.hu_sha256)
    reason = f"duplicate: the same voxels as {other.case.source}/{other.case.name}"
    if best is None:
        return (
            f"{reason}, in another order: one of the two has a wrong orientation, and neither is DICOM; "
            "leave one out or repair its header"
        )
    if one.hu_sha256 != best.hu_sha256:
        return f"{reason}, in another order: its own orientation is wrong"
    return reason if one.label_sha256 == best.label_sha256 else f"{reason}, with other labels"


def choose(
    cases: Sequence[Case], looked: Sequence[Looked], patient: dict[str, str], settings: Settings
) -> tuple[list[store.Part], list[str]]:
    """Split by patient, and choose slices; also what the user should know about it.

    Of whom one case must not train, no case does: all ``cases`` count here, also those that were left out.
    """
    named = splitting.VALIDATION_GROUPS if settings.validation is None else settings.validation
    if settings.paper is not None:
        named = ()
    named = tuple(patient.get(name, name) for name in named)
    split = splitting.by_patient([replace(case, group=patient[case.group]) for case in cases], named)
    own = [one.case for one in looked]
    keep = [np.arange(len(one.slices)) for one in looked]
    warnings: list[str] = []
    if settings.paper is not None:
        split, keep, warnings = splitting.draw_paper(
            own, [one.liver for one in looked], split, settings.paper
        )
    there = {split[case.group] for case in own}
    warnings += [f"no slices for {s}" for s in ("train", "validation") if s not in there]
    for note in sorted({note for one in looked for note in one.notes}):
        names = (f"{one.case.source}/{one.case.name}" for one in looked if note in one.notes)
        warnings.append(f"{', '.join(names)}: {note}")
    parts = [
        store.Part(one.case, split[one.case.group], one.slices[some], one.hu_sha256, one.label_sha256)
        for one, some in zip(looked, keep, strict=True)
        if len(some)
    ]
    return parts, warnings


def show(manifest: dict[str, Any]) -> None:
    """Print what a store holds, and what it does not."""
    for row in manifest["left_out"]:
        print(f"left out: {row['source']}/{row['name']}: {row['reason']}")
    for warning in manifest["warnings"]:
        print(f"warning: {warning}")
    for split, numbers in manifest["totals"].items():
        counts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in numbers.items())
        sources = Counter()
        for row in manifest["cases"]:
            if row["split"] == split:
                sources[row["source"]] += row["last"] + 1 - row["first"]
        print(f"{split}: {counts}" + "".join(f"\n  {source}: {n}" for source, n in sources.items()))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, reader in READERS.items():
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=(reader.__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--shared",
        type=Path,
        metavar="DIR",
        help="--png DIR/lits_slices --crop DIR/lits117_128 --negatives DIR/negatives, and DIR/chaos3 for validation",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="STORE", help="folder of the store"
    )
    parser.add_argument("--size", type=int, default=512, help="rows and columns, twice the net's (512)")
    parser.add_argument("--validation", nargs="+", metavar="GROUP", help="patients that validate (A)")
    parser.add_argument(
        "--paper",
        type=int,
        metavar="SEED",
        help="draw 765, 50 and 50 slices of LiTS to train, validate and test on",
    )
    parser.add_argument("--every", type=int, default=1, metavar="K", help="keep every K-th slice of a case")
    args = parser.parse_args(argv)
    if args.shared:
        args.png = args.png or args.shared / "lits_slices"
        args.crop = args.crop or args.shared / "lits117_128"
        args.negatives = args.negatives or args.shared / "negatives"
    if not any(getattr(args, name) for name in READERS):
        parser.error(
            f"no data set; give at least one of {', '.join(f'--{name}' for name in READERS)}, --shared"
        )
    return args


@plain_errors()
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, list the data sets, write the store."""
    args = parse(argv)
    cases: list[Case] = []
    for name, reader in READERS.items():
        if folder := getattr(args, name):
            cases += reader(folder)
    if args.shared:
        cases += chaos_nifti(args.shared / "chaos3")
    validation = None if args.validation is None else tuple(args.validation)
    settings = Settings(args.size, validation, args.paper, args.every)
    show(prepare(cases, args.output, settings))


if __name__ == "__main__":
    main()
