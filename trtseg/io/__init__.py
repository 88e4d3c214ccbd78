"""Files and arrays -> Volume; results -> files."""

from __future__ import annotations

import os
import sys
from typing import Any

from trtseg.errors import ArgumentError
from trtseg.io.arrays import from_array, from_image
from trtseg.io.atomic import atomic
from trtseg.io.nifti import read_nifti, write_nifti
from trtseg.volume import Volume

__all__ = ["atomic", "load", "read_nifti", "write_nifti"]


def load(source: Any, *, affine: Any = None, spacing: Any = None) -> Volume:
    """Load a CT from whatever holds it.

    Parameters
    ----------
    source : path, array, nibabel image or Volume
        A ``.nii`` or ``.nii.gz`` file; an array in HU (anything with ``__array__``, for example a torch CPU
        tensor); an image loaded with nibabel; or a Volume, which is returned as it is.
    affine, spacing : array_like, optional
        Exactly one of them for an array, see `trtseg.io.arrays.from_array`; neither for anything else.

    Returns
    -------
    Volume
        int16 ``[Z, Y, X]`` in HU and canonical order, with the way back to the source's own grid.

    Raises
    ------
    ArgumentError
        If the source is of another type, or affine or spacing do not belong with it.
    InputError
        If it cannot be read, or is not one CT volume in HU.

    Examples
    --------
    >>> load("ct.nii.gz")  # doctest: +SKIP
    >>> load(hu, spacing=(5.0, 0.8, 0.8))  # doctest: +SKIP
    """
    is_image = _is_nibabel_image(source)
    is_path = isinstance(source, (str, os.PathLike))
    if (affine is not None or spacing is not None) and (is_path or is_image or isinstance(source, Volume)):
        raise ArgumentError(
            f"affine, spacing: got one with a {type(source).__name__}, which has its own geometry; "
            "give them with arrays only"
        )
    if isinstance(source, Volume):
        return source
    if is_path:
        return read_nifti(source)
    if is_image:
        return from_image(source)
    if hasattr(source, "__array__"):
        return from_array(source, affine=affine, spacing=spacing)
    raise ArgumentError(
        f"source: got a {type(source).__name__}; expected a path of a .nii or .nii.gz file, an array in HU, "
        "a nibabel image or a trtseg Volume"
    )


def _is_nibabel_image(source: Any) -> bool:
    """Tell whether this is a nibabel image, without importing nibabel for those who do not use it."""
    spatialimages = sys.modules.get("nibabel.spatialimages")
    return spatialimages is not None and isinstance(source, spatialimages.SpatialImage)
