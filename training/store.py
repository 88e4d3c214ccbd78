"""The slice store: all slices at one size in two memory-mapped arrays, and a manifest of where they are from.

``hu.npy`` is int16 ``[N, S, S]``, ``label.npy`` uint8 ``[N, S, S]``, and ``manifest.json`` has a row a case. ``S`` is
twice the net's size: augmentation resamples there, and the mean of 2x2 pixels then takes a slice to the net's grid,
just as ``prepare`` averages a 512x512 slice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from training.cases import Case, digest, read_checked
from training.place import labels_at
from trtseg.errors import InputError
from trtseg.fit import Fit
from trtseg.io import atomic
from trtseg.io.folders import made_folder

FORMAT, VERSION = "trtseg slice store", 1
SPLITS = ("train", "validation", "test")
HU, LABEL, MANIFEST = "hu.npy", "label.npy", "manifest.json"
#: Slices resized at a time.
_CHUNK = 16
#: Slices whose hash says that arrays and manifest belong together.
_SAMPLE = 8


def resize(hu: np.ndarray, spacing: tuple[float, float], size: int) -> np.ndarray:
    """Fit slices ``[n, Y, X]`` onto ``[n, size, size]``, two pixels where the cascade's grid has one."""
    from trtseg import _core

    out = np.empty((len(hu), size, size), np.int16)
    x = np.empty((len(hu), 1, size, size), np.float32)
    _core.prepare(np.ascontiguousarray(hu), _fit(hu.shape[1:], spacing, size), (-1000.0, 1000.0), out, x)
    return out


def resize_labels(label: np.ndarray, spacing: tuple[float, float], size: int) -> np.ndarray:
    """Fit labels ``[n, Y, X]`` onto the same ``[n, size, size]``: those at the pixels' centres, 0 outside."""
    return place_labels(label, _fit(label.shape[1:], spacing, size))


def place_labels(label: np.ndarray, fit: Fit) -> np.ndarray:
    """Labels ``[n, Y, X]`` on the net's grid of ``fit``: those at the pixels' centres, 0 outside."""
    axes = zip(fit.net, fit.step, fit.offset, fit.origin, strict=True)
    at = (
        origin + np.floor((np.arange(n) - offset + 0.5) * step).astype(np.int64)
        for n, step, offset, origin in axes
    )
    return labels_at(label, *at)


def _fit(native: tuple[int, ...], spacing: tuple[float, float], size: int) -> Fit:
    """Place a slice on ``[size, size]`` as the net's ``[size / 2, size / 2]`` has it."""
    fit = Fit.whole_field_of_view((native[0], native[1]), spacing, (size // 2, size // 2))
    return Fit(
        fit.native,
        (size, size),
        (fit.step[0] / 2, fit.step[1] / 2),
        (fit.offset[0] * 2, fit.offset[1] * 2),
        (fit.extent[0] * 2, fit.extent[1] * 2),
    )


class Part(NamedTuple):
    """What goes into a store of one case."""

    case: Case
    split: str  # one of SPLITS
    keep: np.ndarray  # int [n]: which slices, ascending
    hu_sha256: str  # of the case when it was looked at
    label_sha256: str


@contextmanager
def writing(folder: Path) -> Iterator[tuple[Path, ...]]:
    """Make the three files of a store, all of them or none: temporary paths that become the store at the end.

    Folders that are made for it go again if that fails, and a store that was there stays as it was.
    """
    with made_folder(folder, "--output"), atomic(folder / HU, folder / LABEL, folder / MANIFEST) as files:
        yield files


def fill(
    files: tuple[Path, ...],
    parts: Sequence[Part],
    size: int,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write the slices of all parts, one case in memory at a time, then the manifest, which is returned."""
    count = sum(len(part.keep) for part in parts)
    arrays = ((files[0], np.int16), (files[1], np.uint8))
    for path, dtype in arrays:
        array = np.lib.format.open_memmap(path, "w+", dtype, (count, size, size))
        end = array.offset + array.nbytes
        del array
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, end)  # a full disk is an error now, not a crash on the way
    rows, first = [], 0
    for part in tqdm(parts, "writing", leave=False, disable=None):
        hu, label = (np.lib.format.open_memmap(path, "r+") for path, _ in arrays)  # anew: so pages are let go
        own = slice(first, first + len(part.keep))
        rows.append(_write_part(part, hu[own], label[own], first))
        first = own.stop
    hu, label = (np.load(path, mmap_mode="r") for path, _ in arrays)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "size": size,
        "slices": count,
        "sample_sha256": _sample_sha256(hu, label),
        **about,
        "totals": {split: _total([row for row in rows if row["split"] == split]) for split in SPLITS},
        "cases": rows,
    }
    files[2].write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return manifest


def _write_part(part: Part, hu: np.ndarray, label: np.ndarray, first: int) -> dict[str, Any]:
    """Write the slices of a case to ``hu`` and ``label`` ``[n, S, S]``; return its row of the manifest."""
    case, size = part.case, hu.shape[1]
    scan = read_checked(case)
    if (digest(scan.hu), digest(scan.label)) != (part.hu_sha256, part.label_sha256):
        raise InputError(f"{case.source}/{case.name}: changed while it was being prepared; run again")
    y, x = scan.spacing[1:]
    spacing = (1.0, 1.0) if math.isnan(y) or math.isnan(x) else (y, x)  # square pixels where nobody knows
    for start in range(0, len(part.keep), _CHUNK):
        keep, to = part.keep[start : start + _CHUNK], slice(start, start + _CHUNK)
        hu[to] = resize(scan.hu[keep], spacing, size)
        label[to] = resize_labels(scan.label[keep], spacing, size)
    return {
        "name": case.name,
        "source": case.source,
        "group": case.group,
        "split": part.split,
        "first": first,
        "last": first + len(part.keep) - 1,
        "z": [int(scan.z[i]) for i in part.keep],
        "shape": list(scan.hu.shape),
        "spacing_mm": [None if math.isnan(s) else float(s) for s in scan.spacing],
        "trainable": case.trainable,
        "labels_tumour": case.labels_tumour,
        "body_part": case.body_part,
        "liver_pixels": [int(np.count_nonzero(plane)) for plane in label],
        "tumour_pixels": [int(np.count_nonzero(plane == 2)) for plane in label],
        "hu_sha256": part.hu_sha256,
        "label_sha256": part.label_sha256,
    }


def _total(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "cases": len(rows),
        "patients": len({row["group"] for row in rows}),
        "slices": sum(len(row["z"]) for row in rows),
        "slices_with_liver": sum(n > 0 for row in rows for n in row["liver_pixels"]),
        "slices_with_tumour": sum(n > 0 for row in rows for n in row["tumour_pixels"]),
    }


def _sample_sha256(hu: np.ndarray, label: np.ndarray) -> str:
    index = np.linspace(0, len(hu) - 1, min(_SAMPLE, len(hu))).astype(int)
    return digest(np.concatenate([hu[index], label[index]]))


@dataclass(frozen=True)
class Store:
    """A slice store, memory-mapped. All arrays have a row a slice.

    Attributes
    ----------
    hu, label : ndarray
        int16 and uint8 ``[N, S, S]``: HU, and 0 background, 1 liver, 2 tumour. Read-only.
    case, group, source, split, body_part : ndarray of str, [N]
        Case, patient, data set; ``train``, ``validation`` or ``test``; what a slice without liver shows, else "".
    z : ndarray of int, [N]
        Number of the slice in its source.
    liver_pixels, tumour_pixels : ndarray of int, [N]
        Pixels of ``label`` that are at least 1, and those that are 2.
    labels_tumour : ndarray of bool, [N]
        False where the truth knows the liver only.
    manifest : dict
        All that is known: a row a case, totals, what was left out and why.
    """

    hu: np.ndarray
    label: np.ndarray
    case: np.ndarray
    group: np.ndarray
    source: np.ndarray
    split: np.ndarray
    body_part: np.ndarray
    z: np.ndarray
    liver_pixels: np.ndarray
    tumour_pixels: np.ndarray
    labels_tumour: np.ndarray
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path | str) -> Store:
        """Open the store in ``folder``; an `InputError` says if it is none, or is not complete."""
        folder = Path(folder)
        manifest = _read_manifest(folder / MANIFEST)
        rows, count, size = manifest["cases"], manifest["slices"], manifest["size"]
        hu = open_array(folder / HU, np.int16, (count, size, size))
        label = open_array(folder / LABEL, np.uint8, (count, size, size))
        lengths = [row["last"] + 1 - row["first"] for row in rows]
        if [row["first"] for row in rows] != [0, *np.cumsum(lengths)[:-1]] or sum(lengths) != count:
            raise InputError(f"{folder / MANIFEST}: its rows do not cover {count} slices; {_AGAIN}")
        if _sample_sha256(hu, label) != manifest["sample_sha256"]:
            raise InputError(f"{folder}: {HU} and {LABEL} are not those that {MANIFEST} describes; {_AGAIN}")

        def by_case(key: str) -> np.ndarray:
            return np.repeat([row[key] for row in rows], lengths)

        def by_slice(key: str) -> np.ndarray:
            return np.concatenate([row[key] for row in rows])

        return cls(
            hu,
            label,
            *(by_case(key) for key in ("name", "group", "source", "split", "body_part")),
            *(by_slice(key) for key in ("z", "liver_pixels", "tumour_pixels")),
            by_case("labels_tumour"),
            manifest,
        )


_AGAIN = "make the store again with python -m training.prepare"


def store_sha256(folder: Path) -> str:
    """SHA-256 of the manifest of the store in ``folder``, by which a run knows the store again."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"], manifest["version"]
    except FileNotFoundError as error:
        raise InputError(f"{path.parent}: no slice store there ({path.name} is missing); {_AGAIN}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not the manifest of a slice store ({error}); {_AGAIN}") from error
    if found != (FORMAT, VERSION):
        raise InputError(f"{path}: got {found[0]} {found[1]}; expected {FORMAT} {VERSION}; {_AGAIN}")
    return manifest


def open_array(path: Path, dtype: np.typing.DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """Map an array of a store, read-only; an `InputError` if it is not what was expected."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be opened ({error}); {_AGAIN}") from error
    if array.dtype != dtype or array.shape != shape:
        raise InputError(
            f"{path}: got {array.dtype} {array.shape}; expected {np.dtype(dtype)} {shape} as in {MANIFEST}; {_AGAIN}"
        )
    return array
