"""Slices to train and to validate on, out of a store that ``training.prepare`` wrote."""

from __future__ import annotations

import mmap
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.split import check_patients
from training.store import Store, open_array
from trtseg.errors import InputError


class _File(NamedTuple):
    """A memory-mapped array on its way to another process."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Slices:
    """Some slices of a store, read from disk one by one.

    Attributes
    ----------
    hu, label : ndarray
        int16 and uint8 ``[M, S, S]`` of the whole store: HU; 0, 1 liver, 2 tumour.
    index : ndarray of int, [N]
        Which of them.
    case, group : ndarray of str, [N]
        Of each slice the scan, and whose slices share one weight in training: the patient, or of slices without liver
        the source.
    has_liver, has_tumour : ndarray of bool, [N]
        What its label holds.
    knows_tumour : ndarray of bool, [N]
        False where tumours were not looked for.
    """

    hu: np.ndarray
    label: np.ndarray
    index: np.ndarray
    case: np.ndarray
    group: np.ndarray
    has_liver: np.ndarray
    has_tumour: np.ndarray
    knows_tumour: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """HU and label ``[S, S]`` of one slice, to be kept and changed."""
        return np.array(self.hu[self.index[i]]), np.array(self.label[self.index[i]])

    def __getstate__(self) -> dict[str, Any]:
        """Name the files of memory-mapped arrays instead of copying them.

        Workers of a data loader that are not forked get their slices pickled: else each would hold the whole store.
        """
        return {
            name: _File(Path(value.filename), value.dtype, value.shape)
            if isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap)  # not a part of a file
            else value
            for name, value in vars(self).items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the files again, read-only; an `InputError` if they are not as they were."""
        for name, value in state.items():
            object.__setattr__(self, name, open_array(*value) if isinstance(value, _File) else value)

    def where(self, keep: np.ndarray) -> Slices:
        """The slices for which ``keep`` (bool ``[N]``) is true."""
        rows = (self.index, self.case, self.group, self.has_liver, self.has_tumour, self.knows_tumour)
        return Slices(self.hu, self.label, *(row[keep] for row in rows))


def _slices(store: Store) -> Slices:
    return Slices(
        store.hu,
        store.label,
        np.arange(len(store.case)),
        store.case,
        np.where(store.body_part == "", store.group, store.source),
        store.liver_pixels > 0,
        store.tumour_pixels > 0,
        store.labels_tumour,
    )


def read(root: Path, size: int, without: Collection[str] = ()) -> tuple[Slices, dict[str, Slices]]:
    """Slices to train on, and the subsets of the validation by name.

    Parameters
    ----------
    root : Path
        Folder of the store.
    size : int
        Rows and columns that its slices must have.
    without : collection of str
        Patients that must not train.
    """
    store = _open(root, size)
    check_patients("without", without, set(store.group.tolist()))
    slices = _slices(store)
    validates = store.split == "validation"
    subsets = {"negatives": slices.where(validates & (store.body_part != ""))}
    for group in np.unique(store.group[validates & (store.body_part == "")]):
        subsets[str(group)] = slices.where(validates & (store.group == group))
    trains = (store.split == "train") & ~np.isin(store.group, list(without))
    return slices.where(trains), {name: subset for name, subset in subsets.items() if len(subset)}


def of_split(root: Path, size: int, split: str) -> Slices:
    """All slices of one split of a store whose slices have ``size`` rows; an `InputError` if it has none."""
    store = _open(root, size)
    slices = _slices(store).where(store.split == split)
    if not len(slices):
        raise InputError(
            f"{root}: has no slices to {split} on; training.prepare makes some with --paper SEED"
        )
    return slices


def _open(root: Path, size: int) -> Store:
    store = Store.open(root)
    if store.hu.shape[1] != size:
        raise InputError(
            f"{root}: its slices have {store.hu.shape[1]} rows, but {size} are needed, twice the net's; "
            f"run training.prepare with --size {size}"
        )
    return store
