"""Checks of the arguments of metrics, and the import of the packages that metrics need."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from trtseg.errors import ArgumentError, TrtsegError
from trtseg.volume import check_spacing, is_independent

Array = np.ndarray[Any, Any]


def check_masks(prediction: Array, truth: Array, *, volumes: bool = False) -> None:
    """Raise an ArgumentError unless both are boolean masks of the same shape; with ``volumes``, ``[Z, Y, X]``."""
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
            got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ArgumentError(f"{name}: got {got}; expected a boolean mask, such as labels >= 1")
        if volumes and mask.ndim != 3:
            raise ArgumentError(f"{name}: got a mask of shape {mask.shape}; expected a volume [Z, Y, X]")
    check_same_shape(prediction, truth)


def check_same_shape(prediction: Array, truth: Array) -> None:
    """Raise an ArgumentError unless both arrays have the same shape."""
    if prediction.shape != truth.shape:
        raise ArgumentError(
            f"prediction, truth: got shapes {prediction.shape} and {truth.shape}; expected the same grid, "
            "resample one onto the other's"
        )


def check_steps(spacing: Sequence[float] | Array) -> Array:
    """Return the steps in mm along z, y and x, a row each, from a spacing or from the steps of a sheared grid.

    ArgumentError unless a spacing is three positive numbers, and steps are independent.
    """
    if not isinstance(spacing, np.ndarray) or spacing.ndim != 2:
        return np.diag(check_spacing(spacing))
    if spacing.shape != (3, 3) or not is_independent(spacing.T):
        raise ArgumentError(
            f"spacing: got {spacing.tolist()}; expected (sz, sy, sx) in mm, or for a sheared grid a 3x3 array: "
            "a row in mm each for the steps along z, y and x, which lie in no plane"
        )
    return spacing


def needs(module: str) -> ModuleType:
    """Import a module of the ``evaluate`` extra; a TrtsegError says how to install it if it is missing."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TrtsegError(
            f"{module.partition('.')[0]}: cannot be imported ({error}); "
            'install what metrics need: pip install "trtseg[evaluate]"'
        ) from error
