"""Score a model on single slices whose neighbours nobody has: the sets with unknown pixels and with cells.

Each slice is labelled alone, and without post-processing, which needs neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.cases import UNKNOWN, Case, Scan
from training.kit import CLIPPED_HU, with_air
from training.place import place
from training.tables import grid
from training.weak import CELL_SHARE
from trtseg import Segmenter
from trtseg.metrics.overlap import Overlap, overlap

#: Sets that are scored together, by how their names begin.
FAMILIES = ("ircadb", "lits", "flare")


@dataclass(frozen=True)
class LooseScores:
    """How the slices of a case were labelled.

    Attributes
    ----------
    source, patient : str
        The set and the patient.
    slices : int
        Number of slices.
    liver : Overlap
        Of all known pixels together.
    tumour : Overlap or None
        The same of tumours; None where they are not known.
    cells : tuple of (bool, bool)
        For each known cell, whether more than 2 % of the cell are tumour, and whether so many were called tumour.
    """

    source: str
    patient: str
    slices: int
    liver: Overlap
    tumour: Overlap | None
    cells: tuple[tuple[bool, bool], ...]


def score_loose(segmenter: Segmenter, case: Case, scan: Scan) -> LooseScores:
    """Label each slice of a case alone, and compare with what is known of the slice."""
    liver, tumour = Overlap(0, 0, 0, 0), Overlap(0, 0, 0, 0)
    cells = []
    for i, (hu, truth) in enumerate(zip(scan.hu, scan.label, strict=True)):
        labels = label_alone(segmenter, hu, scan.spacing[1])
        known = truth != UNKNOWN
        liver += overlap((labels > 0)[known], (truth > 0)[known])
        tumour += overlap((labels == 2)[known], (truth == 2)[known])
        for row, y0, y1, x0, x1, flag in [] if scan.cells is None else scan.cells.tolist():
            if row == i and flag in (0, 1):
                found = (labels[y0:y1, x0:x1] == 2).mean() > CELL_SHARE
                cells.append((flag == 1, bool(found)))
    return LooseScores(
        case.source, case.group, len(scan.hu), liver, tumour if case.labels_tumour else None, tuple(cells)
    )


def label_alone(segmenter: Segmenter, hu: np.ndarray, mm: float) -> np.ndarray:
    """Labels uint8 ``[Y, X]`` of one slice; a NaN for ``mm`` is replaced by an estimate from the body's width."""
    if hu.min() > CLIPPED_HU:  # around the body is air, whatever the window of the 8 bits made of it
        hu = with_air(hu).astype(np.int16)
    if math.isnan(mm):
        where = place(hu, mm, 256, 1.5)
        mm = where.mm / where.step
    return segmenter.label(np.ascontiguousarray(hu[None]), spacing=(mm, mm))[0]


def liver_table(scores: Sequence[LooseScores]) -> str:
    """Liver Dice of each set as Markdown: the mean over its patients, their spread, and the worst."""
    rows: list[list[object]] = []
    for name in (*FAMILIES, ""):
        own = _by_patient(scores, name)
        if not own:
            continue
        dices = liver_dices(scores, name)
        worst = min(dices, key=dices.__getitem__)
        values = list(dices.values())
        slices = sum(s.slices for each in own.values() for s in each)
        mean, spread = f"{np.mean(values):.3f}", f"{np.std(values):.3f}"
        of_worst = f"{dices[worst]:.3f} ({worst})"
        rows.append([name or "all sets", len(own), slices, mean, spread, of_worst])
    return grid(["single slices", "patients", "slices", "liver Dice, mean", "SD", "worst"], rows)


def liver_dices(scores: Sequence[LooseScores], family: str = "") -> dict[str, float]:
    """Liver Dice of each patient, by name, in the sets of a family (of `FAMILIES`; by default in all)."""
    patients = _by_patient(scores, family)
    return {who: sum((s.liver for s in each), Overlap(0, 0, 0, 0)).dice for who, each in patients.items()}


def cells_table(scores: Sequence[LooseScores]) -> str:
    """What is known of tumours in single slices, of each patient and of all together, as Markdown."""
    rows: list[list[object]] = []
    patients: dict[str, list[LooseScores]] = {}
    for s in scores:
        patients.setdefault(s.patient, []).append(s)
    for name, each in (*sorted(patients.items()), ("all", list(scores))):
        cells = [cell for s in each for cell in s.cells]
        with_, without = ([found for truth, found in cells if truth == want] for want in (True, False))
        masks = [s.tumour for s in each if s.tumour is not None]
        tumour = sum(masks, Overlap(0, 0, 0, 0))
        if not cells and not tumour.true:
            continue
        sensitivity = f"{np.mean(with_):.2f}" if with_ else "–"
        specificity = f"{1 - np.mean(without):.2f}" if without else "–"
        dice = f"{tumour.dice:.3f}" if tumour.true else "–"
        rows.append([name, len(with_), sum(with_), sensitivity, len(without), specificity, dice])
    head = ("tumours in single slices", "cells with", "found", "sensitivity", "cells without", "specificity")
    return grid([*head, "Dice"], rows)


def _by_patient(scores: Sequence[LooseScores], wanted: str) -> dict[str, list[LooseScores]]:
    """The scores of each patient in a family of sets; of a patient in several families those of the last one."""
    found: dict[tuple[str, str], list[LooseScores]] = {}
    for s in scores:
        family = next((name for name in FAMILIES if s.source.startswith(name)), s.source)
        found.setdefault((family, s.patient), []).append(s)
    return {who: each for (family, who), each in found.items() if family.startswith(wanted)}
