"""Which volumes lie in a set of DICOM files, and which of them is the CT to segment."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trtseg.errors import InputError
from trtseg.io.dicom.frames import CT_CLASSES, Slice, marks_of, slices_of
from trtseg.io.dicom.grid import is_alike
from trtseg.io.dicom.header import text, texts
from trtseg.io.dicom.volume import Instance, same_places
from trtseg.warnings import ResultWarning

log = logging.getLogger("trtseg")

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_AXIAL = 0.8  # cosine between the axis of the patient and that of the slices
_LONG_MM = 80  # of a patient; a liver is longer
_THIN_MM = 1.0  # thinner slices are no better
_OWNERS = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")
Key = tuple[str, ...]  # series id, kind, and a value for each of `_OWNERS`
_SHOWN = 5  # other series in a warning, which goes into pages and pictures
_HALF = 0.5  # of the slices of another volume in the same series
# Of stacks that lie between each other: slices of each at least, stacks at most, and how uneven, as a share of a step.
_LEAST_SLICES, _MOST_PHASES, _EVEN = 8, 64, 0.1
# Words of ImageType and of SeriesDescription that no stack of plain CT slices has.
_NO_CT = {
    "localizer": r"LOCALI[SZ]ER|SCOUT|TOPOGRAM|SURVIEW|SCANOGRAM",
    "projection (MIP)": r"MIP|MINIP|MAX_IP|MIN_IP|PROJECTION IMAGE|(?<=\\)(?:MAXIMUM|MINIMUM)",
    "rendering": r"RENDERED|VRT",
    "dose report": r"DOSE[ _](INFO|REPORT)|PATIENT PROTOCOL",
    "timing of contrast": r"MONITORING|PREMONITORING|SMARTPREP|BOLUS TRACKING|TEST BOLUS",
}
# Of these the ImageType alone, where that says that slices are plain: a description may name what is made of them.
_OF_TYPE = ("localizer", "projection (MIP)", "rendering")
_PLAIN = ["ORIGINAL", "PRIMARY", "AXIAL"]
_ABDOMEN = re.compile(r"ABD|LIVER|TRUNK|BODY|\b[TC]AP\b")
# Kernels by word, then those of Siemens (B70f, Br59), Canon and Philips.
_SHARP = re.compile(r"LUNG|BONE\w*|EDGE|SHARP|ULTRA|[BHIJQTU][A-Z]?[5-9]\d[A-Z]*|FC[358]\d|[DEL]|Y[A-F]")
NOT_AXIAL = "not axial"
#: Stands for the Series Instance UID of files that have none.
NO_SERIES = "none"
# Why a series was left out of which nobody can tell that it is worse, another phase for example.
_NO_WORSE = "no better than the series that was taken"
_RANKS = (
    "derived, not original",
    "covers less of the patient",
    "another part of the body",
    "a sharp kernel",
    "thicker slices",
    "fewer slices",
)
_PART = _RANKS.index("another part of the body")


@dataclass(frozen=True, eq=False)
class Candidate:
    """Slices that make a volume, or would if nothing were wrong.

    Attributes
    ----------
    series : str
        Series Instance UID, and ``/2`` after it for the second volume in the series; what ``--series`` takes.
    study : str
        Study Instance UID.
    patient : str
        Patient ID, which no message tells.
    slices : tuple of Slice
        Of all its files.
    about : str
        How many slices, how large, how far apart, which kernel, SeriesNumber, and what tells it from other volumes in
        its series; nothing of the patient.
    reason : str
        Why it is no CT to segment, ``""`` if it is one; after the choice, why another one was taken.
    rank : tuple of float
        The greater, the better, see `_RANKS`.
    problem : InputError or None
        Why one of its files cannot be used.
    """

    series: str
    study: str
    patient: str
    slices: tuple[Slice, ...]
    about: str
    reason: str
    rank: tuple[float, ...]
    problem: InputError | None

    @property
    def uid(self) -> str:
        """Series Instance UID."""
        return self.series.partition("/")[0]


def volumes(
    instances: Sequence[tuple[Path, Any]], known: Sequence[tuple[Slice, ...]] = ()
) -> tuple[list[Instance], list[Candidate]]:
    """Sort files into the volumes that they make.

    Parameters
    ----------
    instances : sequence of (Path, pydicom.Dataset)
        Files and their headers.
    known : sequence of tuple of Slice, optional
        The slices of each, where they were found before, with any number of their file.

    Returns
    -------
    instances : list of Instance
        The same files, with their slices; none where the header is no CT's or is damaged.
    candidates : list of Candidate
        In the order of the files.
    """
    found: list[Instance] = []
    problems: dict[int, InputError] = {}
    for number, (path, header) in enumerate(instances):
        slices: tuple[Slice, ...] = ()
        if not why_no_picture(header):
            try:
                if known:
                    slices = tuple(replace(one, file=number) for one in known[number])
                else:
                    slices = slices_of(os.fspath(path), header, number)
            except InputError as error:
                problems[number] = error
        found.append(Instance(path, header, slices))
    groups: dict[Key, list[int]] = {}
    for number, key in enumerate(keys_of([header for _, header in instances])):
        groups.setdefault(key, []).append(number)
    candidates = []
    for (uid, *_), numbers in _without_own_ids(found, groups).items():
        problem = next((problems[n] for n in numbers if n in problems), None)
        slices_of_all = [one for n in numbers for one in found[n].slices]
        for part, mark in list(_stacks(found, slices_of_all)) or [([], "")]:
            first = found[part[0].file if part else numbers[0]]
            candidates.append(_candidate(uid or NO_SERIES, first, part, mark, problem))
    total, seen = Counter(one.series for one in candidates), Counter[str]()
    for n, one in enumerate(candidates):
        if total[one.series] > 1:
            seen[one.series] += 1
            candidates[n] = replace(one, series=f"{one.series}/{seen[one.series]}")
    return found, candidates


def choose(
    name: str, candidates: Sequence[Candidate], series: str | None
) -> tuple[Candidate, list[Candidate]]:
    """Choose the volume to segment.

    Parameters
    ----------
    name : str
        The input, for messages.
    candidates : sequence of Candidate
        At least one.
    series : str, optional
        Series Instance UID of the wanted one, perhaps with ``/2``. By default the best by these rules, each of which
        decides where those before it do not: original before derived, 80 mm of the patient or more, abdomen by what the
        header says, no sharp kernel, thinner slices (down to 1 mm), more slices, the first by file name.

    Returns
    -------
    chosen : Candidate
    others : list of Candidate
        Each with the reason why it was not taken.

    Raises
    ------
    InputError
        If none can be taken, it cannot be told which, or a file of the chosen one is damaged.
    """
    usable = [one for one in candidates if not one.reason]
    if series is not None:
        usable = [one for one in candidates if series in (one.series, one.uid)]
        usable = [one for one in usable if not one.reason] or usable
        if not usable:
            raise InputError(f"{name}: holds no series {series}; it holds: {listing(candidates)}")
        if usable[0].problem is None and not usable[0].slices:
            raise InputError(f"{name}: the series {series} cannot be segmented: {usable[0].reason}")
    if not usable:
        problem = next((one.problem for one in candidates if one.problem), None)
        raise problem or InputError(f"{name}: holds no CT that can be segmented: {listing(candidates)}")
    best = max(usable, key=lambda one: one.rank)
    known = [one for one in usable if one.slices] or usable  # a damaged header may lack its ids
    studies = {one.study for one in known}
    patients = {one.patient for one in known if one.patient}
    for found, what in ((studies, "studies"), (patients, "patients")):
        if len(found) > 1:
            raise InputError(
                f"{name}: holds CTs of {len(found)} {what}; give the folder of one, or choose with trtseg segment "
                f"--series (series= in Python): {listing(usable)}"
            )
    rivals = [one for one in usable if _is_rival(one, best)]
    if len(rivals) > 1:
        raise InputError(
            f"{name}: holds {len(rivals)} volumes in one series (phases, energies or reconstructions); choose with "
            f"trtseg segment --series (series= in Python): {listing(usable)}"
        )
    if best.problem is not None:
        raise best.problem
    return best, [_compared(one, best) for one in candidates if one is not best]


def as_good(chosen: Candidate, others: Sequence[Candidate]) -> Iterator[ResultWarning]:
    """Warn of volumes that `choose` left out although nobody can tell that they are worse, or that show the abdomen."""
    of_abdomen = [
        one for one in others if one.reason in _RANKS and one.rank[_PART] > max(0, chosen.rank[_PART])
    ]
    if of_abdomen and chosen.rank[_PART] <= 0:
        text = (
            f"By what the headers say, the series that was taken does not show the abdomen, and one that was left out "
            f"does: {of_abdomen[0].about}. 'trtseg segment --series list' lists all series, and --series takes another "
            "(series= in Python)."
        )
        yield ResultWarning("series-choice", text)
    if found := [one for one in others if one.reason == _NO_WORSE]:
        count = len(found)
        ways, it = (
            ("another series is", "It") if count == 1 else (f"{count} other series are", "Each of them")
        )
        named = "; ".join(
            [*(one.about for one in found[:_SHOWN]), *[f"and {count - _SHOWN} more"] * (count > _SHOWN)]
        )
        text = (
            f"By what the headers say, {ways} as good a choice as the one that was taken: {named}. {it} may show "
            "another phase of contrast, in which lesions look otherwise. 'trtseg segment --series list' lists all "
            "series, and --series takes another (series= in Python)."
        )
        yield ResultWarning("series-choice", text)


def listing(candidates: Iterable[Candidate]) -> str:
    """Say in a line which volumes there are."""
    return "; ".join(f"{one.series} ({one.about}{': ' * bool(one.reason)}{one.reason})" for one in candidates)


def depth_of(slices: Sequence[Slice]) -> tuple[np.ndarray, float]:
    """How far each slice lies along the first one's axis, and the usual distance of slices, both in mm."""
    normal = slices[0].normal
    depth = np.array([one.position @ normal for one in slices])
    steps = np.diff(np.unique(depth.round(2)))
    return depth, float(np.median(steps)) if steps.size else slices[0].thickness or 0.0


def _is_rival(one: Candidate, best: Candidate) -> bool:
    """Whether a volume of the same series is as good a choice as the best."""
    return one.uid == best.uid and len(one.slices) >= _HALF * len(best.slices)


def _compared(one: Candidate, best: Candidate) -> Candidate:
    """Add the reason why the other one was taken."""
    if one.reason:
        return one
    if one.problem is not None:
        return replace(one, reason=str(one.problem))
    worse = (why for why, a, b in zip(_RANKS, one.rank, best.rank, strict=True) if a < b)
    return replace(one, reason=next(worse, _NO_WORSE))


def _candidate(
    series: str, first: Instance, slices: Sequence[Slice], mark: str, problem: InputError | None
) -> Candidate:
    """Describe a volume by its first file, and by what tells it from others in its series."""
    header = first.header
    image_type = [value.upper() for value in texts(header, "ImageType")]
    kernel = "\\".join(texts(header, "ConvolutionKernel"))
    study, patient = text(header, "StudyInstanceUID"), text(header, "PatientID")
    reason = _kind(header)
    if not slices:
        modality = text(header, "Modality") or "no modality"
        return Candidate(series, study, patient, (), modality, reason, (), problem)
    one = slices[0]
    if not reason and abs(one.normal[2]) < _AXIAL:
        reason = NOT_AXIAL
    depth, step = depth_of(slices)
    length = float(np.ptp(depth))
    part, said, protocol = (
        text(header, key).upper() for key in ("BodyPartExamined", "SeriesDescription", "ProtocolName")
    )
    # A protocol is often one for several parts of the body.
    abdomen = (
        2 if _ABDOMEN.search(f"{part} {said}") else 1 if _ABDOMEN.search(protocol) else -1 if part else 0
    )
    rank = (
        float(image_type[:1] != ["DERIVED"]),
        float(length >= _LONG_MM),
        float(abdomen),
        float(not any(_SHARP.fullmatch(word) for word in re.split(r"[\\ _.]+", kernel.upper()))),
        -max(step, _THIN_MM),
        float(len(slices)),
    )
    number = text(header, "SeriesNumber")
    known = mark.partition(" ")[0]  # is not said twice
    facts = [
        f"{len(slices)} slice{'s' * (len(slices) > 1)} of {one.size[0]} x {one.size[1]}, {step:.3g} mm apart",
        f"kernel {kernel}" if kernel and known != "ConvolutionKernel" else "",
        " ".join(image_type) if known != "ImageType" else "",
        f"SeriesNumber {number}" if number.isdecimal() else "",
        mark,
    ]
    about = ", ".join(filter(None, facts))
    return Candidate(series, study, patient, tuple(slices), about, reason, rank, problem)


def why_no_picture(header: Any) -> str:
    """Why a file holds no CT slices at all."""
    modality, kind = text(header, "Modality"), text(header, "SOPClassUID")
    if modality not in ("CT", ""):
        return f"modality {modality}, not CT"
    if kind.startswith(_SECONDARY_CAPTURE):
        return "secondary capture: a screenshot or a dose report"
    return "" if "Rows" in header or kind in CT_CLASSES else "holds no pictures"


def _kind(header: Any) -> str:
    """Why a file is no slice of a plain CT, which keeps it apart from others of its series id; "" for such a slice."""
    if why := why_no_picture(header):
        return why
    kind = [value.upper() for value in texts(header, "ImageType")]
    described = text(header, "SeriesDescription").upper()
    for why, pattern in _NO_CT.items():
        words = ["\\".join(kind), *[described] * (kind[:3] != _PLAIN or why not in _OF_TYPE)]
        if any(re.search(rf"(?<![A-Z])({pattern})(?![A-Z])", found) for found in words):
            return why
    return ""


def keys_of(headers: Sequence[Any]) -> list[Key]:
    """What tells the series of files apart: series id and kind; with more than one of them, patient, study and frame.

    A series id is nobody else's by the standard, and yet there are copies of two patients under one. A file that lacks
    the id of its patient, study or frame of reference belongs to the only one that there is in its series.
    """
    keys: list[Key] = [(text(header, "SeriesInstanceUID"), _kind(header)) for header in headers]
    for keyword in _OWNERS:
        values = [text(header, keyword) for header in headers]
        known: dict[Key, set[str]] = {key: set() for key in keys}
        for key, value in zip(keys, values, strict=True):
            known[key].add(value)
        several = {key for key, found in known.items() if len(found - {""}) > 1}
        keys = [(*key, value if key in several else "") for key, value in zip(keys, values, strict=True)]
    return keys


def _without_own_ids(instances: Sequence[Instance], groups: dict[Key, list[int]]) -> dict[Key, list[int]]:
    """Put files of a patient together that have a series id each, as careless anonymous copies have."""
    alone: dict[tuple[Path, str], list[Key]] = {}
    for key, numbers in groups.items():
        first = instances[numbers[0]]
        if len(numbers) == 1 and not key[1] and len(first.slices) == 1:
            alone.setdefault((first.path.parent, text(first.header, "PatientID")), []).append(key)
    merged = dict(groups)
    for (folder, _), keys in alone.items():
        slices = [instances[groups[key][0]].slices[0] for key in keys]
        if len(keys) > 2 and all(is_alike(one, slices[0]) for one in slices):
            log.info("%s: %d files have a series id each; they are taken as one series", folder, len(keys))
            merged[keys[0]] = [n for key in keys for n in merged.pop(key)]
    return merged


def _stacks(instances: Sequence[Instance], slices: Sequence[Slice]) -> Iterator[tuple[list[Slice], str]]:
    """Cut the slices of a series into stacks of one size and orientation that have no two pictures of one place."""
    alike: list[list[Slice]] = []
    for one in slices:
        stack = next((stack for stack in alike if is_alike(one, stack[0])), None)
        if stack is None:
            alike.append([one])
        else:
            stack.append(one)
    for stack in alike:
        yield from _phases(instances, stack)


def _phases(instances: Sequence[Instance], stack: list[Slice]) -> Iterator[tuple[list[Slice], str]]:
    """Cut a stack by the first attribute that tells all pictures of one place apart; whole if there is none.

    Slices of two phases may also lie between each other: then by the first attribute, but for times, that gives whole
    stacks of each. Each part comes with what it has there: the value, or of times, which may tell who the patient is,
    their order.
    """
    is_single = _is_single(stack)
    marks = [marks_of(instances[one.file].header, one.frame, times=not is_single) for one in stack]
    for key in dict.fromkeys(key for mark in marks for key in mark):
        is_time = key.endswith("Time")
        parts: dict[str, list[Slice]] = {}
        for one, mark in zip(stack, marks, strict=True):
            parts.setdefault(mark.get(key, ""), []).append(one)
        if is_single:
            is_told = _lie_between_each_other(list(parts.values()))
        else:
            is_told = all(len(part) > 1 and _is_single(part) for part in parts.values())
        if len(parts) > 1 and is_told:
            for n, value in enumerate(sorted(parts), 1):
                told = f"{n} of {len(parts)}" if is_time else value or "missing"
                yield parts[value], f"{key} {told}"
            return
    yield stack, ""


def _lie_between_each_other(parts: Sequence[Sequence[Slice]]) -> bool:
    """Whether slices that differ in a mark are whole stacks, each even in itself, of the same part of the patient."""
    if not 1 < len(parts) <= _MOST_PHASES or min(map(len, parts)) < _LEAST_SLICES:
        return False
    depths = [np.sort([one.position @ parts[0][0].normal for one in part]) for part in parts]
    steps = [np.diff(depth) for depth in depths]
    if any(np.abs(step - np.median(step)).max() > _EVEN * np.median(step) for step in steps):
        return False
    shared = min(depth[-1] for depth in depths) - max(depth[0] for depth in depths)
    return bool(shared > _HALF * max(depth[-1] - depth[0] for depth in depths))


def _is_single(part: Sequence[Slice]) -> bool:
    return len(same_places(part)) == len(part)
