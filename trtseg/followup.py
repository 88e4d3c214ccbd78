"""Two segmentations of one patient: which lesions grew, shrank, are new or gone.

>>> from trtseg.followup import compare
>>> compare("before.nii.gz", "after.nii.gz").findings          # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trtseg.errors import InputError
from trtseg.io import read_labels
from trtseg.io.atomic import name_of
from trtseg.io.dicom import is_dicom
from trtseg.io.find import made_by
from trtseg.io.names import ITK, NIFTI, SEG
from trtseg.labels.components import Array, bounding_box, join
from trtseg.labels.lesions import Lesion, lesions, number_lesions
from trtseg.labels.shift import Placed, find_shift, look_up
from trtseg.labels.whole import EDGES_MM2
from trtseg.notice import NOTICE
from trtseg.volume import spacing_zyx, voxel_ml
from trtseg.warnings import ResultWarning

#: Version of the layout of `Comparison.report`; raised when a key changes its meaning or goes away.
SCHEMA = 1
#: A lesion grew or shrank if its volume changed by more than this share; smaller changes may be the segmentation's.
CHANGE = 0.25
#: Smallest long axis of a lesion that counts in the sum of diameters, and how many lesions count, as in RECIST 1.1.
MEASURABLE_MM, TARGETS = 10.0, 2

_READ = (*NIFTI, *ITK, SEG)
_MOST = 254  # lesions of a scan that are compared, the largest
_OVERLAP = 0.1  # of the smaller of two lesions, from which the two are the same
_NEAR_MM = 10.0  # centroids of two lesions without overlap that may be the same
_POOR_DICE = 0.85

_Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Side:
    """A lesion in one of the scans; where it fell apart or grew together, all parts of it.

    Attributes
    ----------
    lesions : tuple of int
        Numbers in the scan's list of lesions, from 1.
    volume_ml : float
        Of all parts.
    long_mm, short_mm : float
        Diameters of the part with the longest.
    sum_mm : float
        Long diameters of all parts together.
    parts_mm : tuple of float
        Long diameter of each part, in the order of `lesions`.
    slice : int
        Where that part is widest; from 0, feet to head. A DICOM Segmentation may not hold the empty slices of its CT:
        there it counts from the first that it holds.
    """

    lesions: tuple[int, ...]
    volume_ml: float
    long_mm: float
    short_mm: float
    sum_mm: float
    parts_mm: tuple[float, ...]
    slice: int


@dataclass(frozen=True)
class Finding:
    """A lesion: ``grown``, ``shrunk``, ``unchanged``, ``new`` (``before`` is None) or ``gone`` (``after`` is None)."""

    status: str
    before: Side | None
    after: Side | None


@dataclass(frozen=True)
class Comparison:
    """Two scans of one patient.

    Attributes
    ----------
    names : (str, str)
        File names of both label maps.
    liver_ml : (float, float)
        Volumes before and after.
    tumour_ml : (float, float) or None
        Likewise; None if the label maps do not know tumours, so that there are no findings either.
    shift_mm : (float, float, float)
        What was added to the places of the later scan so that its liver lies on the earlier, RAS mm.
    liver_dice : float
        How well the livers agree then.
    findings : tuple of Finding
        All lesions: matched, then gone, then new; the largest first.
    warnings : tuple of str
        Why the comparison may be wrong.
    """

    names: tuple[str, str]
    liver_ml: tuple[float, float]
    tumour_ml: tuple[float, float] | None
    shift_mm: _Vector
    liver_dice: float
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]

    def diameters(self) -> tuple[float, float] | None:
        """Sum the long axes of the two largest lesions of at least 10 mm before, and of the same after; None: none.

        Parts of a lesion that fell apart count each, as in RECIST 1.1, and so do lesions of 10 mm that grew together.
        """
        targets = self._targets()
        if not targets:
            return None
        sum_before = sum(mm for before, _ in targets for mm in _measurable(before))
        return sum_before, sum(after.sum_mm for _, after in targets if after is not None)

    def response(self) -> str | None:
        """Judge like RECIST 1.1 by `diameters`, from two scans only and by a machine; None without such lesions.

        ``complete``: no lesion is left. ``progression``: the sum grew by 20 % and 5 mm, or a new lesion of 10 mm is
        there. ``partial``: it fell by 30 %. ``stable``: the rest.
        """
        sums = self.diameters()
        return None if sums is None else self._judged(sums)

    def rests_on_parts(self) -> bool:
        """Tell whether `response` is a change that goes if the largest part alone stands for a lesion of several."""
        targets, said = self._targets(), self.response()
        sums = sum(b.long_mm for b, _ in targets), sum(a.long_mm for _, a in targets if a is not None)
        return said in ("progression", "partial") and self._judged(sums) != said

    def _targets(self) -> list[tuple[Side, Side | None]]:
        """The lesions whose diameters are summed, before and after."""
        pairs = [(f.before, f.after) for f in self.findings if f.before is not None]
        targets: list[tuple[Side, Side | None]] = []
        for before, after in sorted(pairs, key=lambda sides: -sides[0].long_mm):
            if before.long_mm < MEASURABLE_MM or sum(len(_measurable(b)) for b, _ in targets) >= TARGETS:
                break
            targets.append((before, after))
        return targets

    def _judged(self, sums: tuple[float, float]) -> str:
        # In hundredths of a millimetre: a fall from 45 to 31.5 is one of 30 %, in binary fractions it is not.
        before, after = (round(100 * mm) for mm in sums)
        is_new = any(
            f.status == "new" and f.after is not None and f.after.long_mm >= MEASURABLE_MM
            for f in self.findings
        )
        if is_new or (10 * after >= 12 * before and after - before >= 500):
            return "progression"
        if all(f.after is None for f in self.findings):
            return "complete"
        return "partial" if 10 * after <= 7 * before else "stable"

    def report(self) -> dict[str, Any]:
        """Return everything as a dict that can be stored as JSON; volumes in mL, lengths in mm."""
        sums = self.diameters()
        return {
            "schema": SCHEMA,
            "notice": NOTICE,
            **_rounded(asdict(self)),
            "sum_of_diameters_mm": _rounded(sums),
            "recist_like": self.response(),
        }


def compare(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    *,
    meaning: Mapping[int, int] | None = None,
) -> Comparison:
    """Compare the label maps of two scans of one patient.

    The later liver is moved, without turning it, to where it overlaps the earlier one most. Then lesions are the same
    if they share a tenth of the smaller one, or, of those that overlap none, if their centroids lie within 10 mm.
    Lesions that fell apart or grew together are one finding.

    Parameters
    ----------
    before, after : path
        Label maps as `trtseg.io.read_labels` takes them, or the JSON reports that lie beside them.
    meaning : mapping, optional
        Which labels of both are liver (1) and tumour (2), as ``{5: 1, 9: 2}``, see `trtseg.io.read_labels`. If none is
        tumour, livers alone are compared.

    Raises
    ------
    ArgumentError
        If an argument is of another kind.
    InputError
        If a file cannot be read, holds no liver, or beside a report there is no label map.
    """
    paths = label_map(Path(name_of(before, "before"))), label_map(Path(name_of(after, "after")))
    scans = _Scan.read(paths[0], meaning), _Scan.read(paths[1], meaning)
    knows_tumours = meaning is None or 2 in meaning.values()
    shift, dice = find_shift(*scans)
    same = ["before and after are one file, so nothing can have changed"] * paths[0].samefile(paths[1])
    warnings = same + [
        f"{when}: {text}"
        for when, scan in zip(("before", "after"), scans, strict=True)
        for text in _warnings(scan)
    ]
    # trtseg looks for tumours, and of the Segmentations of others a warning tells.
    without = [
        when
        for when, scan, path in zip(("before", "after"), scans, paths, strict=True)
        if not scan.lesions and (meaning is not None or (made_by(path) is None and not scan.is_seg))
    ]
    if knows_tumours and without:
        named = ", ".join(str(value) for value, label in (meaning or {2: 2}).items() if label == 2)
        which = "neither scan has a" if len(without) == 2 else f"{without[0]} has no"
        warnings.append(
            f"{which} label that is tumour ({named}); if others are tumour, or nobody looked for tumours there, "
            "lesions are missing here"
        )
    makers = {made_by(path) for path in paths} - {None, ""}
    if len(makers) > 1:
        warnings.append(
            "the label maps were made by different models, options or versions, which change labels, too"
        )
    if dice < _POOR_DICE:
        warnings.append(
            f"the livers agree poorly (Dice {dice:.2f}) after the shift; lesions may be matched wrongly, look at both"
        )
    findings = [_finding(scans, *pair) for pair in _match(*scans, shift)]
    order = {"gone": 1, "new": 2}
    findings.sort(
        key=lambda f: (order.get(f.status, 0), *(-side.volume_ml for side in (f.before, f.after) if side))
    )
    result = Comparison(
        (paths[0].name, paths[1].name),
        (scans[0].ml(0), scans[1].ml(0)),
        (scans[0].ml(1), scans[1].ml(1)) if knows_tumours else None,
        (float(shift[0]), float(shift[1]), float(shift[2])),
        dice,
        tuple(findings),
        tuple(warnings),
    )
    if not result.rests_on_parts():
        return result
    text = (
        f"the word {result.response()!r} rests on a lesion that fell apart or grew together, whose parts count each; "
        "a slice that one of the label maps misses is enough for that, look at both"
    )
    return replace(result, warnings=(*warnings, text))


def _measurable(side: Side) -> list[float]:
    return [mm for mm in side.parts_mm if mm >= MEASURABLE_MM]


def _warnings(scan: _Scan) -> Iterator[str]:
    yield from (warning.text for warning in scan.warnings)
    reaches_end = scan.labels[0].any() or scan.labels[-1].any()
    if reaches_end and scan.is_seg:  # some hold the empty slices, too
        yield (
            "the liver reaches the end of the slices that this DICOM Segmentation holds, so it does not tell "
            "whether the scan cuts the liver, and slices count from the first that it holds, perhaps not that of the CT"
        )
    elif reaches_end:
        yield "the liver reaches the end of the scan, so its volume is a lower bound and lesions may be missing"
    sz, sy, sx = spacing_zyx(scan.affine)
    rows, columns = (np.count_nonzero(scan.labels.take((0, -1), axis)) for axis in (1, 2))
    if rows * sz * sx + columns * sz * sy > EDGES_MM2:
        where = "the pictures that this DICOM Segmentation holds" if scan.is_seg else "the picture"
        yield f"the liver reaches the edge of {where}, so its volume is a lower bound and lesions may be missing"
    if len(scan.lesions) > _MOST:
        yield f"has {len(scan.lesions)} lesions; the {_MOST} largest are compared"


@dataclass(frozen=True)
class _Scan(Placed):
    """A label map with its lesions."""

    lesions: tuple[Lesion, ...]
    warnings: tuple[ResultWarning, ...]
    is_seg: bool

    @classmethod
    def read(cls, path: Path, meaning: Mapping[int, int] | None) -> _Scan:
        labels, grid = read_labels(path, meaning)
        if not labels.any():
            named = "" if meaning is None else f" (has none of the labels {', '.join(map(str, meaning))})"
            raise InputError(
                f"{path}: holds no liver{named}; a comparison needs the labels of a liver in both scans"
            )
        affine = grid.canonical_affine()
        return cls(labels, affine, lesions(labels, affine), grid.warnings, is_dicom(path))


def label_map(path: Path) -> Path:
    """Find the label map that lies beside a report, else InputError; any other path is one."""
    if path.suffix.lower() != ".json":
        return path
    for ending in _READ:
        found = path.with_name(path.name[: -len(".json")] + ending)
        if found.is_file() and (ending != SEG or made_by(found) is not None):
            return found
    raise InputError(f"{path}: has no label map beside it, as {path.stem}.nii.gz; give the label map itself")


def _match(before: _Scan, after: _Scan, shift: Array) -> list[tuple[list[int], list[int]]]:
    """Group lesions that are the same: numbers before and after, from 0; either list may be empty."""
    olds, news = (scan.lesions[:_MOST] for scan in (before, after))
    smaller = np.minimum.outer([lesion.volume_ml for lesion in olds], [lesion.volume_ml for lesion in news])
    old, new = np.nonzero(_shared_ml(before, after, shift)[: len(olds), : len(news)] >= _OVERLAP * smaller)
    group, _ = join(len(olds) + len(news), [(old, len(olds) + new)])  # first those before, then those after
    is_alone = (np.bincount(group)[group] == 1).tolist()
    apart = (
        (float(np.linalg.norm(np.subtract(one.centroid, other.centroid) - shift)), i, j)
        for i, one in enumerate(olds)
        for j, other in enumerate(news, len(olds))
        if is_alone[i] and is_alone[j]
    )
    for _, i, j in sorted(found for found in apart if found[0] <= _NEAR_MM):
        if is_alone[i] and is_alone[j]:
            group[j] = group[i]
            is_alone[i] = is_alone[j] = False
    groups: dict[int, tuple[list[int], list[int]]] = {}
    for number, key in enumerate(group.tolist()):
        is_new = number >= len(olds)
        groups.setdefault(key, ([], []))[is_new].append(number - len(olds) * is_new)
    return list(groups.values())


def _shared_ml(before: _Scan, after: _Scan, shift: Array) -> Array:
    """Volume that each lesion before, row, shares with each lesion after, column, once the later ones are moved.

    It is counted in voxels of either scan, and the larger volume is taken: a flat lesion of one may lie between two
    slices of the other.
    """
    old, new = (number_lesions(scan.labels, _MOST + 1) for scan in (before, after))
    if not (old.any() and new.any()):
        return np.zeros((len(before.lesions), len(after.lesions)))
    return np.maximum(_inside(before, old, after, new, shift), _inside(after, new, before, old, -shift).T)


def _inside(scan: _Scan, numbers: Array, other: _Scan, theirs: Array, shift: Array) -> Array:
    """Volume of the lesions of another scan, column, inside those of a scan, row, in voxels of the other."""
    shared = np.zeros((len(scan.lesions), len(other.lesions)))
    box = bounding_box(theirs)
    moved = theirs[box][theirs[box] > 0]
    under = look_up(scan, numbers, other.places(theirs) + shift)
    both = under > 0
    np.add.at(shared, (under[both] - 1, moved[both] - 1), voxel_ml(other.affine))
    return shared


def _finding(scans: Sequence[_Scan], before: list[int], after: list[int]) -> Finding:
    sides = [_side(scan, numbers) for scan, numbers in zip(scans, (before, after), strict=True)]
    old, new = sides
    if old is None:
        return Finding("new", None, new)
    if new is None:
        return Finding("gone", old, None)
    ratio = new.volume_ml / old.volume_ml
    status = "grown" if ratio > 1 + CHANGE else "shrunk" if ratio < 1 - CHANGE else "unchanged"
    return Finding(status, old, new)


def _side(scan: _Scan, numbers: list[int]) -> Side | None:
    if not numbers:
        return None
    parts = [scan.lesions[n] for n in numbers]
    widest = max(parts, key=lambda lesion: lesion.diameter_mm)
    return Side(
        tuple(n + 1 for n in numbers),
        sum(lesion.volume_ml for lesion in parts),
        widest.diameter_mm,
        widest.short_mm,
        sum(lesion.diameter_mm for lesion in parts),
        tuple(lesion.diameter_mm for lesion in parts),
        widest.diameter_slice,
    )


def _rounded(value: Any) -> Any:
    """Round every number of a nested dict, as far as it means anything."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return round(value, 4) + 0.0 if isinstance(value, float) else value  # + 0.0: no -0.0
