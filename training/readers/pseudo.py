"""Slices that a net has labelled: what ``training.pseudo`` wrote."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from training.cases import Case, Scan
from trtseg.errors import InputError


def pseudo(path: Path) -> list[Case]:
    """Slices labelled by ``training.pseudo``: its ``.npz`` file. They know no tumours."""
    try:
        with np.load(path) as file:
            case, group = file["case"], file["group"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); expected the file that training.pseudo wrote"
        ) from error
    return [
        Case(
            str(name), "pseudo", str(group[case == name][0]), partial(_read, path, name), labels_tumour=False
        )
        for name in np.unique(case)
    ]


def _read(path: Path, name: str) -> Scan:
    with np.load(path) as file:
        own = np.flatnonzero(file["case"] == name)
        return Scan(file["hu"][own], file["label"][own], (np.nan, np.nan, np.nan), file["z"][own].tolist())
