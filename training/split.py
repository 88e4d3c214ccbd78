"""Which slices train, validate and test: decided by patient, never by slice."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from training.cases import Case
from trtseg.errors import InputError

#: Patients that validate when nothing else is said: LiTS cases 0 and 1, one patient with liver and tumours.
VALIDATION_GROUPS = ("A",)
#: Slices of LiTS that the paper trains, validates and tests on.
PAPER = {"train": 765, "validation": 50, "test": 50}
LITS_SOURCES = ("lits", "msd", "lits_png")


def check_patients(option: str, named: Collection[str], patients: Collection[str]) -> None:
    """Refuse patients that an option names and that are none: a typo would let them train."""
    if unknown := sorted(set(named) - set(patients)):
        known = ", ".join(sorted(patients)[:20])
        raise InputError(f"{option}: no patients {', '.join(unknown)}; there are {known}, ...")


def by_patient(cases: Sequence[Case], validation: Collection[str]) -> dict[str, str]:
    """The split of each patient: to validate are those named, those held out, and all that must not train."""
    split = dict.fromkeys((case.group for case in cases), "train")
    for case in cases:
        if case.group in validation or case.held_out or not case.trainable:
            split[case.group] = "validation"
    return split


def draw_paper(
    cases: Sequence[Case], liver: Sequence[np.ndarray], split: dict[str, str], seed: int
) -> tuple[dict[str, str], list[np.ndarray], list[str]]:
    """Draw as many slices of LiTS as the paper has, each subset from patients of its own.

    The patients are shuffled. The first of them test, the next validate, the rest train: each time as many patients
    as the subset's share of the slices, at least one, and more until they have enough slices with liver. From the
    slices with liver of each subset's patients the wanted number is then drawn, each slice alike. Cases that are not
    of LiTS, and patients that must not train, keep their split and all their slices.

    Parameters
    ----------
    cases : sequence of Case
    liver : sequence of bool [Z]
        For each case, which slices hold liver.
    split : dict
        Split of each patient without the draw, see `by_patient`.
    seed : int

    Returns
    -------
    split : dict
        Of each patient.
    keep : list of int arrays
        For each case, the slices to keep, ascending.
    warnings : list of str
        Where there are fewer slices than in the paper.
    """
    rng = np.random.default_rng(seed)
    available: dict[str, int] = {}  # slices with liver, by patient
    for case, has_liver in zip(cases, liver, strict=True):
        if case.source in LITS_SOURCES and split[case.group] == "train":
            available[case.group] = available.get(case.group, 0) + int(has_liver.sum())
    if len(available) < len(PAPER):
        raise InputError(
            f"paper: got {len(available)} patients of LiTS; expected at least {len(PAPER)}, one for each subset"
        )
    patients = [sorted(available)[i] for i in rng.permutation(len(available))]
    dealt = _deal(patients, available)
    split = split | {patient: subset for subset, own in dealt.items() for patient in own}

    keep, warnings = [np.arange(len(has_liver)) for has_liver in liver], []
    for subset, wanted in PAPER.items():
        own = [
            i for i, case in enumerate(cases) if case.source in LITS_SOURCES and case.group in dealt[subset]
        ]
        slices = [(i, z) for i in own for z in np.flatnonzero(liver[i])]
        if len(slices) < wanted:
            warnings.append(
                f"paper: {subset} has {len(slices)} slices with liver, not {wanted}: all of them taken"
            )
        drawn = np.sort(rng.permutation(len(slices))[:wanted])
        for i in own:
            keep[i] = np.array([slices[k][1] for k in drawn if slices[k][0] == i], np.int64)
    return split, keep, warnings


def _deal(patients: list[str], available: dict[str, int]) -> dict[str, list[str]]:
    """Give each subset its patients, the first of the list to the test and the last to training."""
    dealt: dict[str, list[str]] = {}
    left = list(patients)
    for subset, others in (("test", 2), ("validation", 1)):
        share = max(1, round(len(patients) * PAPER[subset] / sum(PAPER.values())))
        own = dealt[subset] = []
        while len(left) > others and (len(own) < share or sum(available[p] for p in own) < PAPER[subset]):
            own.append(left.pop(0))
    dealt["train"] = left
    return dealt
