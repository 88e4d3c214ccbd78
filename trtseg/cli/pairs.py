"""Which prediction belongs to which truth, by their file names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trtseg.cli.batch import is_folder, stem
from trtseg.errors import ArgumentError, InputError
from trtseg.io.nifti import ENDINGS

# What tools add to the name of a case: `trtseg segment`, `trtseg sample --phantom`, nnU-Net (its first channel).
_LABEL_ENDS, _CT_ENDS = ("_seg", "_labels"), ("_0000",)
# LiTS numbers a CT and its labels alike.
_LABEL_START, _CT_START = "segmentation-", "volume-"


@dataclass(frozen=True)
class Pair:
    """Two label maps of one case, and its CT where overlays are wanted and it was found."""

    name: str
    prediction: Path
    truth: Path
    ct: Path | None = None


@dataclass(frozen=True)
class Matched:
    """All pairs by name, and the files that have no partner."""

    pairs: tuple[Pair, ...]
    predictions: tuple[Path, ...] = ()
    truths: tuple[Path, ...] = ()


def match(prediction: Path, truth: Path, ct: Path | None = None) -> Matched:
    """Pair two files, or the files of two folders.

    Files of one name belong together, and so do those whose names differ only in what tools add to them:
    ``volume-3_seg`` and ``segmentation-3``, ``case_0000_seg`` and ``case``. In a folder with a CT beside its
    labels, that CT is passed over.

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
            f"PREDICTION, TRUTH: got the folder {folder} and the file {file}; expected two files or two folders"
        )
    if not is_folder(prediction):
        return Matched((Pair(stem(prediction), prediction, truth, _ct_of(prediction, truth, ct)),))
    if ct is not None and not is_folder(ct):
        raise ArgumentError(f"--ct: got {ct}; expected a folder, as the predictions are in one")
    ours, theirs = _labels(prediction), _labels(truth)
    images = _cts(ct) if ct is not None else {}
    common = sorted(ours.keys() & theirs.keys(), key=lambda key: ours[key].name)
    if not common:
        raise InputError(
            f"{prediction}: none of its {len(ours)} label maps (.nii, .nii.gz) has the name of one of the "
            f"{len(theirs)} in {truth}; name a prediction like its truth"
        )
    return Matched(
        tuple(Pair(stem(ours[key]), ours[key], theirs[key], images.get(key)) for key in common),
        tuple(path for key, path in sorted(ours.items()) if key not in theirs),
        tuple(path for key, path in sorted(theirs.items()) if key not in ours),
    )


def _ct_of(prediction: Path, truth: Path, ct: Path | None) -> Path | None:
    if ct is None or not is_folder(ct):
        return ct
    images = _cts(ct)
    return images.get(_key(truth), images.get(_key(prediction)))


def _labels(folder: Path) -> dict[str, Path]:
    return _files(folder, labels=True)


def _cts(folder: Path) -> dict[str, Path]:
    return _files(folder, labels=False)


def _files(folder: Path, *, labels: bool) -> dict[str, Path]:
    """Find the label maps, or the CTs, of a folder by the key of their case."""
    try:
        # Hidden files are not for users, and some (._name) only look like images.
        paths = [p for p in sorted(folder.iterdir()) if p.name[0] != "." and p.name.lower().endswith(ENDINGS)]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check its mode") from error
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(_key(path), []).append(path)
    chosen = {}
    for key, group in groups.items():
        fitting = [path for path in group if _is_label(path) == labels] if len(group) > 1 else group
        if len(fitting) != 1:
            names = " and ".join(path.name for path in group)
            raise InputError(f"{folder}: {names} might be the same case; rename them or move one away")
        chosen[key] = fitting[0]
    return chosen


def _key(path: Path) -> str:
    """Name of the case, without what tools add to it."""
    name = stem(path)
    for end in (*_LABEL_ENDS, *_CT_ENDS):  # in this order: labels of x_0000 are x_0000_seg
        name = name.removesuffix(end)
    for start in (_LABEL_START, _CT_START):
        if name.startswith(start) and name.removeprefix(start).isdigit():
            return name.removeprefix(start)
    return name


def _is_label(path: Path) -> bool:
    """Whether the name says that it is no CT."""
    name = stem(path)
    return name.startswith(_LABEL_START) or name.endswith(_LABEL_ENDS)
