"""Files and arrays -> Volume; labels -> files. Which module reads or writes a format is decided here."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

from trtseg.errors import ArgumentError, OutputError
from trtseg.io.arrays import from_array, from_image
from trtseg.io.atomic import atomic
from trtseg.io.dicom import read_dicom_folder
from trtseg.io.nifti import ENDINGS, read_labels, read_nifti, write_nifti
from trtseg.volume import Geometry, Volume

__all__ = ["atomic", "check_target", "load", "read_labels", "read_nifti", "save", "write_nifti"]


def load(source: Any, *, affine: Any = None, spacing: Any = None) -> Volume:
    """Load a CT from whatever holds it.

    Parameters
    ----------
    source : path, array, nibabel image or Volume
        A ``.nii`` or ``.nii.gz`` file; a folder that holds the DICOM files of one CT series; an array in HU
        (anything with ``__array__``, for example a torch CPU tensor); an image loaded with nibabel; or a
        Volume, which is returned as it is.
    affine, spacing : array_like, optional
        Exactly one of the two for an array, see `trtseg.io.arrays.from_array`; neither for any other source.

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
        # Path.is_dir raises where it may not look; then read_nifti says why the path cannot be opened.
        return read_dicom_folder(source) if os.path.isdir(source) else read_nifti(source)  # noqa: PTH112
    if is_image:
        return from_image(source)
    if hasattr(source, "__array__"):
        return from_array(source, affine=affine, spacing=spacing)
    raise ArgumentError(
        f"source: got a {type(source).__name__}; expected a path of a .nii or .nii.gz file or of a folder of DICOM "
        "files, an array in HU, a nibabel image or a trtseg Volume"
    )


def save(path: str | os.PathLike[str], labels: np.ndarray, geometry: Geometry) -> None:
    """Write labels on the grid of their input, in the format that the target's name asks for.

    The file is written in place: call this with a temporary path of `atomic`.

    Parameters
    ----------
    path : path
        ``.nii`` or ``.nii.gz``: see `trtseg.io.nifti.write_nifti`.
    labels : ndarray
        uint8, canonical ``[Z, Y, X]``: 0 background, 1 liver, 2 tumour.
    geometry : Geometry
        The grid of the input. Its source may be of another format than the target.

    Raises
    ------
    ArgumentError
        If the labels do not lie on that grid.
    OutputError
        If no format has this ending.
    OSError
        If writing fails; `atomic` turns it into an OutputError that names the target.
    """
    check_target(path)
    write_nifti(path, labels, geometry)


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise an OutputError unless `save` can write a file of this name."""
    name = os.fspath(path)
    if not name.lower().endswith(ENDINGS):
        raise OutputError(f"{name}: cannot write this file type; expected .nii or .nii.gz")


def _is_nibabel_image(source: Any) -> bool:
    """Tell whether this is a nibabel image, without importing nibabel if nobody has imported it yet."""
    spatialimages = sys.modules.get("nibabel.spatialimages")
    return spatialimages is not None and isinstance(source, spatialimages.SpatialImage)
