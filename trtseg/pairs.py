"""Label maps to be judged and the true ones: which belong together by their file names, and how well they agree."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trtseg.errors import ArgumentError, InputError
from trtseg.io import atomic, load, read_labels
from trtseg.io.dicom import is_dicom
from trtseg.io.dicom.find import listed
from trtseg.io.dicom.seg import may_be_seg
from trtseg.io.names import (
    IMAGES,
    LABEL_ENDS,
    LABEL_OBJECTS,
    LABEL_START,
    SEG,
    case_name,
    is_folder,
    says_labels,
    stem,
)
from trtseg.labels.components import Array
from trtseg.metrics.cases import CaseScores, evaluate_case
from trtseg.volume import SAME_GRID, Geometry, check_same_grid, corners_apart, is_same_grid

# What tools add to the name of a case for its CT: nnU-Net (its first channel), LiTS.
_CT_ENDS, _CT_START = ("_0000",), "volume-"
_MOST_SLICES = 4096  # of a CT, from which a Segmentation may have left out the empty ones


@dataclass(frozen=True)
class Pair:
    """Two label maps of one case, and its CT if it was looked for and found."""

    name: str
    prediction: Path
    truth: Path
    ct: Path | None = None


@dataclass(frozen=True)
class Matched:
    """All pairs in the order of their names, and the predictions and truths that have no partner."""

    pairs: tuple[Pair, ...]
    predictions: tuple[Path, ...] = ()
    truths: tuple[Path, ...] = ()


def match(
    prediction: Path,
    truth: Path,
    ct: Path | None = None,
    *,
    names: tuple[str, str, str] = ("prediction", "truth", "ct"),
) -> Matched:
    """Pair two files, or the files of two folders.

    Files of one name belong together. So do files whose names differ only in what tools add to the name of a case:
    ``volume-3_seg`` and ``segmentation-3``, ``case_0000_seg`` and ``case``. Files in folders below belong together if
    their folders have the same name too. If a folder holds a CT and its labels, the labels are taken.

    A ``.dcm`` file is a label map if it is a Segmentation, and no file of another format is of the same case but one
    whose name, or that of the Segmentation, says that it is the CT. ``case_dicom/seg.dcm``, as `trtseg segment` writes
    it, is of ``case``. So is a Segmentation of any name that is the only one below a folder ``case``. Where a folder
    holds other DICOM files, as slices of a CT, only those are looked into whose name a label map has on the other side.

    Parameters
    ----------
    prediction, truth : Path
        Two files, or two folders with files.
    ct : Path, optional
        The CT of two files, which may be a folder of DICOM files. Of folders, a folder of CTs that are paired likewise,
        where labels beside a CT are passed over; DICOM files lie in a folder with the name of their case.
    names : (str, str, str)
        How messages call the other arguments.

    Raises
    ------
    ArgumentError
        If one is a file and the other a folder, or the CT is one file for several cases.
    InputError
        If a folder cannot be read, nothing belongs together, or two files of a folder might be the same case.
    """
    if is_folder(prediction) != is_folder(truth):
        folder, file = (prediction, truth) if is_folder(prediction) else (truth, prediction)
        raise ArgumentError(
            f"{names[0]}, {names[1]}: got the folder {folder} and the file {file}; "
            "expected two files or two folders"
        )
    if not is_folder(prediction):
        return Matched(
            (
                Pair(
                    _name(prediction, _folder_of(prediction)),
                    prediction,
                    truth,
                    _ct_of(prediction, truth, ct),
                ),
            )
        )
    if ct is not None and not is_folder(ct):
        raise ArgumentError(f"{names[2]}: got {ct}; expected a folder, as the predictions are in one")
    predictions, truths = _files(prediction, labels=True), _files(truth, labels=True)
    cts = {} if ct is None else _files(ct, labels=False)
    paired = predictions.keys() & truths.keys()
    predictions, truths = _label_maps(predictions, paired), _label_maps(truths, paired)
    predictions, truths = _by_folder(predictions, truths), _by_folder(truths, predictions)
    common = sorted(predictions.keys() & truths.keys(), key=lambda case: (predictions[case].name, case))
    if not common:
        raise InputError(
            f"{prediction}: none of its {len(predictions)} label maps has the name of one of "
            f"the {len(truths)} in {truth}; name a prediction like its truth, also DICOM Segmentations, or give two "
            "files"
        )
    if ct is not None:
        cts |= {case: ct / case for case in common if case not in cts and is_folder(ct / case)}
    return Matched(
        tuple(Pair(_name(predictions[c], prediction), predictions[c], truths[c], cts.get(c)) for c in common),
        tuple(path for case, path in sorted(predictions.items()) if case not in truths),
        tuple(path for case, path in sorted(truths.items()) if case not in predictions),
    )


def score(pair: Pair, *, liver_only: bool = False, meaning: Mapping[int, int] | None = None) -> CaseScores:
    """Read both label maps of a pair and compare them, see `trtseg.metrics.cases.evaluate_case`.

    ``meaning`` says which labels of the truth are liver and tumour, see `trtseg.io.read_labels`.

    Raises
    ------
    InputError
        If a file cannot be read, holds other labels than 0, 1 and 2, or the grids are not the same.
    """
    prediction, truth, grid, warnings = _read(pair, meaning, liver_only=liver_only)
    steps = grid.sheared_steps()
    spacing = grid.spacing if steps is None else steps
    scores = evaluate_case(prediction, truth, spacing, name=pair.name, liver_only=liver_only)
    if meaning and not truth.any():
        named = ", ".join(map(str, meaning))
        warnings += (f"{pair.truth}: has none of the labels {named}, so its truth is that there is no liver",)
    return replace(scores, warnings=warnings)


def draw(
    pair: Pair,
    scores: CaseScores,
    path: Path,
    *,
    meaning: Mapping[int, int] | None = None,
    series: str | None = None,
) -> tuple[str, ...]:
    """Draw both label maps on the CT, on the slice where they differ most, as a PNG file.

    Tumours are drawn as liver if ``scores`` do not judge tumours. ``meaning`` is that of `score`,
    ``series`` says which series of DICOM the CT is, see `trtseg.io.load`.

    Returns
    -------
    tuple of str
        Warnings that the picture may show another CT than that of the labels: its folder holds several series.

    Raises
    ------
    InputError
        If the pair has no CT, a file cannot be read, or the grids are not the same.
    OutputError
        If the picture cannot be written.
    """
    from trtseg.report.pictures import disagreement_png

    if pair.ct is None:
        raise InputError(f"{pair.prediction}: --ct has no CT of that name to draw; name it like the case")
    volume = load(pair.ct, series=series)
    prediction, truth, grid, _ = _read(pair, meaning, volume.geometry)
    check_same_grid(str(pair.ct), volume.geometry, str(pair.truth), grid)
    summary = f"liver Dice {scores.liver.overlap.dice:.3f}"
    if scores.tumour is None:
        prediction, truth = np.minimum(prediction, 1), np.minimum(truth, 1)
    else:
        summary += f", tumour Dice {scores.tumour.overlap.dice:.3f}"
    with atomic(path) as (part,):
        part.write_bytes(disagreement_png(volume, prediction, truth, summary))
    return tuple(f"{pair.ct}: {one.text}" for one in volume.warnings if one.code == "series-choice")


def _read(
    pair: Pair, meaning: Mapping[int, int] | None, ct: Geometry | None = None, *, liver_only: bool = False
) -> tuple[Array, Array, Geometry, tuple[str, ...]]:
    """Read prediction and truth, uint8 ``[Z, Y, X]``; the grid that they share, and warnings. ``ct``: that of their CT.

    Files of one CT have the same warnings, but for those of Segmentations, which are of their segments and frames, and
    that there are tumours but no liver.
    """
    prediction, grid = read_labels(pair.prediction)
    truth, true_grid = read_labels(pair.truth, meaning)
    own = [one for one in grid.warnings if one.code == "liver-segment" or is_dicom(pair.prediction)]
    warned = [
        (pair.prediction, own if pair.prediction != pair.truth else []),
        (pair.truth, true_grid.warnings),
    ]
    if is_dicom(pair.prediction):
        prediction, grid = _widened(prediction, grid, true_grid, ct)
    if is_dicom(pair.truth):
        truth, true_grid = _widened(truth, true_grid, grid, ct)
    check_same_grid(str(pair.prediction), grid, str(pair.truth), true_grid)
    texts = (
        f"{path}: {one.text}"
        for path, warnings in warned
        for one in warnings
        if not (liver_only and one.code == "tumour-segment")
    )
    return prediction, truth, true_grid, tuple(texts)


def _widened(labels: Array, grid: Geometry, *others: Geometry | None) -> tuple[Array, Geometry]:
    """Add background before and after the slices of a DICOM Segmentation, which has no empty ones at its ends.

    The steps are then those of the other grid: those of few slices may be rounded. Grids that differ along more than
    one axis, or lie apart, are those of other CTs, which `check_same_grid` tells.
    """
    for other in others:
        if other is None:
            continue
        index = np.linalg.solve(other.canonical_affine(), grid.canonical_affine()[:, 3])
        begin = np.rint(index[:3]).astype(int)  # x, y, z
        own, its = np.array(labels.shape[::-1]), np.array(other.canonical_shape[::-1])
        before, after = np.maximum(begin, 0), np.maximum(its - begin - own, 0)
        missing = before + after
        if np.count_nonzero(missing) != 1 or missing.max() > _MOST_SLICES:
            continue
        there = _part(other, begin, own)
        # The steps of few slices, whose places are rounded, may differ more than those of a whole CT.
        is_near = corners_apart(grid, there).max() <= SAME_GRID * min(grid.spacing)
        if not (is_near or is_same_grid(grid, there)):
            continue
        labels = np.pad(labels, list(zip(before[::-1], after[::-1], strict=True)))
        grid = replace(_part(other, np.minimum(begin, 0), labels.shape[::-1]), warnings=grid.warnings)
    return labels, grid


def _part(grid: Geometry, begin: Array, shape: Sequence[int] | Array) -> Geometry:
    """The grid of so many voxels (x, y, z) from one of them on, which may lie beside it."""
    affine = grid.canonical_affine()
    affine[:3, 3] += affine[:3, :3] @ begin
    return Geometry.from_affine(tuple(shape), affine)


def _ct_of(prediction: Path, truth: Path, ct: Path | None) -> Path | None:
    if ct is None or not is_folder(ct):
        return ct
    cts = _files(ct, labels=False)
    if not cts:
        return ct  # with the DICOM files of the CT; if there are none, loading it says so
    return cts.get(_case_of(truth), cts.get(_case_of(prediction)))


def _files(folder: Path, *, labels: bool) -> dict[str, Path]:
    """Find the label maps, or the CTs, of a folder and the folders below it, by folder and name of their cases.

    With the label maps come DICOM files; which of them are Segmentations only their content tells.
    """
    paths = sorted(_images(folder, (*IMAGES, SEG) if labels else IMAGES))
    groups: dict[str, list[Path]] = {}
    for path in paths:
        own = _own(path, folder)
        groups.setdefault(os.fspath(own.parent / _case_of(own)), []).append(path)
    chosen = {}
    for case, found in groups.items():
        group = _candidates(found) if len(found) > 1 else found
        if not group:
            continue
        wanted = [path for path in group if says_labels(path) == labels] if len(group) > 1 else group
        if len(wanted) != 1:
            names = " and ".join(path.name for path in group)
            raise InputError(f"{folder}: {names} might be the same case; rename them or move one away")
        chosen[case] = wanted[0]
    return chosen


def _candidates(found: Sequence[Path]) -> list[Path]:
    """Choose of the files of one case those of another format than DICOM, or its Segmentations; none may be left."""
    segs = [path for path in found if _is_dcm(path) and may_be_seg(path)]
    others = [path for path in found if not _is_dcm(path)]
    if not segs or any(map(says_labels, others)):
        return others
    if others and not any(map(says_labels, segs)) and not all(map(_says_ct, others)):
        return others  # label maps by their place, since nothing says otherwise
    # Of the two objects of one result the one that more programs read.
    return [path for path in segs if path.name != LABEL_OBJECTS[1]] or segs


def _label_maps(files: Mapping[str, Path], paired: Container[str]) -> dict[str, Path]:
    """Leave out DICOM files that are no Segmentations, without a look at each slice of a CT."""
    kept: dict[str, Path] = {}
    mixed: set[Path] = set()  # folders that hold other DICOM files
    for case, path in files.items():
        if _is_dcm(path):
            is_named = case in paired or path.name in LABEL_OBJECTS
            if (path.parent in mixed and not is_named) or not may_be_seg(path):
                mixed.add(path.parent)
                continue
        kept[case] = path
    return kept


def _by_folder(files: Mapping[str, Path], others: Container[str]) -> dict[str, Path]:
    """Name a Segmentation after a folder with the name of a case of the other side, if it is the only one below it."""
    below: dict[str, list[str]] = {}
    for case, path in files.items():
        if _is_dcm(path) and case not in others:
            for folder in reversed(Path(case).parents):  # so that of two the nearer names it
                below.setdefault(os.fspath(folder), []).append(case)
    wanted = {folder: found for folder, found in below.items() if folder in others and folder not in files}
    named = {found[0]: folder for folder, found in wanted.items() if len(found) == 1}
    return {named.get(case, case): path for case, path in files.items()}


def _is_dcm(path: Path) -> bool:
    return path.name.lower().endswith(SEG)


def _says_ct(path: Path) -> bool:
    name = stem(path)
    return name.startswith(_CT_START) or name.endswith(_CT_ENDS)


def _own(path: Path, folder: Path) -> Path:
    """The path below ``folder``; ``a/ct.dcm`` for ``a/ct_dicom/seg.dcm``, which `trtseg segment` made of ``a/ct``."""
    own = path.relative_to(folder)
    case = own.parent.name.removesuffix("_dicom")
    if own.name in LABEL_OBJECTS and case not in ("", own.parent.name):
        return own.parent.with_name(case + SEG)
    return own


def _images(folder: Path, endings: tuple[str, ...], above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Image files of a folder and below it. Hidden ones are not for users, and some (._name) only look like images.

    Links are followed, but not to a folder that they lie in.
    """
    if (real := os.path.realpath(folder)) in above:
        return
    for path in listed(folder):
        if is_folder(path):
            yield from _images(path, endings, above | {real})
        elif path.name.lower().endswith(endings):
            yield path


def _name(path: Path, folder: Path) -> str:
    """Name of a case that no other case has, as the table of a cohort names it, see `trtseg.io.names.case_name`."""
    return case_name(path.relative_to(folder))


def _folder_of(file: Path) -> Path:
    """The folder of the results that a file is one of: above that of its case, if it has one."""
    has_own = file.name in LABEL_OBJECTS and file.parent.name.endswith("_dicom")
    return file.parent.parent if has_own else file.parent


def _case_of(path: Path) -> str:
    """Name of the case: the file name without what tools add to it."""
    name = stem(path)
    for end in (*LABEL_ENDS, *_CT_ENDS):  # in this order: labels of x_0000 are x_0000_seg
        name = name.removesuffix(end)
    for start in (LABEL_START, _CT_START):
        if (number := name.removeprefix(start)).isdigit():
            return number
    return name
