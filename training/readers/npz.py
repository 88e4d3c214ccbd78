"""Arrays of ``.npz`` files, whatever is wrong with a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trtseg.errors import InputError


def read_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Some arrays of a file by name, all if no names are given; an `InputError` if it does not give them."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in (file.files if names is None else names)}
    except Exception as error:  # whatever a broken file makes NumPy and its decompressors raise
        raise InputError(f"{path.name}: cannot be read ({type(error).__name__}: {error})") from error
