"""A labelled CT, whatever data set it is from: the one interface between the readers and the slice store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trtseg.errors import InputError
from trtseg.volume import Volume

#: Label of pixels of which nobody knows what they are: they count in cells alone. Only scans with cells may have it.
UNKNOWN = 255
#: Most cells of a slice.
MAX_CELLS = 63


class Scan(NamedTuple):
    """What reading a case gives, in trtseg's canonical order: feet to head, anterior to posterior, right to left."""

    hu: np.ndarray  # int16 [Z, Y, X]
    label: np.ndarray  # uint8 [Z, Y, X]: 0 background, 1 liver, 2 tumour; 255 unknown, beside cells
    spacing: tuple[float, float, float]  # mm (z, y, x); NaN where nobody knows
    z: Sequence[int]  # number of each slice in its source
    notes: tuple[str, ...] = ()  # what a user should know about it
    # int [M, 6], a row a cell: index of the slice, y0, y1, x0, x1 in its pixels, and a flag: 0 at most 2 % of the cell
    # are tumour, 1 more than that are, 2 nobody knows
    cells: np.ndarray | None = None


@dataclass(frozen=True)
class Case:
    """A labelled CT that is read when it is needed, and not kept.

    Attributes
    ----------
    name, source : str
        The case in its data set, and the data set.
    group : str
        The patient. Cases that share it are never split, whatever data set they are of.
    read : callable
        Reads the case; `InputError` or any other exception if it cannot be used.
    trainable : bool
        False if the licence keeps the data out of weights that are given away: such cases only validate.
    labels_tumour : bool
        False if the truth knows the liver only.
    held_out : bool
        Whether the reader keeps the case for validation by a rule of its own.
    body_part : str
        What a slice without liver shows; empty for cases with liver.
    dicom : bool
        True if read from DICOM, whose orientation and spacing are the scanner's own.
    """

    name: str
    source: str
    group: str
    read: Callable[[], Scan]
    trainable: bool = True
    labels_tumour: bool = True
    held_out: bool = False
    body_part: str = ""
    dicom: bool = False


def notes_of(ct: Volume) -> tuple[str, ...]:
    """What is strange about a CT, as ``trtseg segment`` would say it: a patient who lies otherwise, lost slices, ..."""
    return tuple(f"{warning.text} [{warning.code}]" for warning in ct.warnings)


def unusable(reason: str) -> Callable[[], Scan]:
    """Make a ``read`` for a case of which the listing knows already why it cannot be read."""

    def read() -> Scan:
        raise InputError(reason)

    return read


def read_checked(case: Case) -> Scan:
    """Read a case and check it; an `InputError` says what is wrong with it."""
    try:
        scan = case.read()
    except InputError:
        raise
    except Exception as error:  # whatever a broken file makes a library raise
        raise InputError(
            f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    hu, label = scan.hu, scan.label
    if hu.dtype != np.int16 or hu.ndim != 3 or label.dtype != np.uint8:
        raise InputError(
            f"got {hu.dtype} {hu.shape} and labels {label.dtype}; expected int16 [Z,Y,X] and uint8"
        )
    if hu.shape != label.shape:
        raise InputError(f"shape mismatch: the image is {hu.shape}, its labels are {label.shape}")
    if hu.size == 0 or len(scan.z) != len(hu):
        raise InputError(f"no slices, or not as many numbers as slices: {hu.shape} and {len(scan.z)}")
    check_labels(label, unknown=scan.cells is not None)
    return scan


def check_labels(label: np.ndarray, *, unknown: bool) -> None:
    """Refuse labels (uint8) other than 0, 1 and 2; `UNKNOWN` too, unless it is allowed."""
    found = np.flatnonzero(np.bincount(label.ravel(), minlength=UNKNOWN + 1)).tolist()
    if set(found) - {0, 1, 2} - ({UNKNOWN} if unknown else set()):
        raise InputError(
            f"labels: got {', '.join(map(str, found))}; expected 0 background, 1 liver, 2 tumour"
            + (" or 255 unknown" if unknown else "; write the masks anew with these")
        )


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def value_digest(hu: np.ndarray) -> str:
    """SHA-256 of how often each HU occurs (int16 ``[Z, Y, X]``): the same however the axes are ordered and flipped."""
    counts = np.zeros(1 << 16, np.int64)
    for plane in hu:
        counts += np.bincount(plane.ravel().astype(np.int32) + (1 << 15), minlength=1 << 16)
    return digest(counts)
