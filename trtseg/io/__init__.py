"""Files and arrays -> Volume; labels -> files. Which module reads or writes a format is decided here."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from trtseg.errors import ArgumentError, OutputError
from trtseg.io.arrays import from_array, from_image, read_pair
from trtseg.io.atomic import atomic, name_of
from trtseg.io.checks import check_planes, check_slices_again, ct_volume
from trtseg.io.dicom import is_dicom, read_dicom
from trtseg.io.dicom.seg import read_seg
from trtseg.io.itk import check_installed, from_itk, read_itk, write_itk
from trtseg.io.names import ANALYZE, ITK, NIFTI, SEG, WRITTEN, is_folder
from trtseg.io.nifti import read_nifti, write_nifti
from trtseg.io.voxels import Convert, check_meaning, to_hu, to_labels
from trtseg.orientation import check_orientation, reorient
from trtseg.volume import Geometry, Volume
from trtseg.warnings import ResultWarning

__all__ = ["atomic", "check_target", "load", "read_labels", "save", "write_nifti"]


def load(
    source: Any,
    *,
    affine: Any = None,
    spacing: Any = None,
    orientation: str | None = None,
    series: str | None = None,
) -> Volume:
    """Load a CT from whatever holds it.

    Parameters
    ----------
    source : path, array, nibabel image, SimpleITK image or Volume
        A ``.nii`` or ``.nii.gz`` file, or a pipe that one comes through; a ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``
        file; ``.hdr`` or ``.img`` of Analyze or of a NIfTI pair; a folder or a ``.zip`` with the DICOM files of a CT
        and perhaps others, or one of these files; an array in HU (anything with ``__array__``, for example a torch
        CPU tensor); an image of nibabel or of SimpleITK; or a Volume, which is returned as it is.
    affine, spacing : array_like, optional
        Exactly one of the two for an array, see `trtseg.io.arrays.from_array`; neither for any other source.
    orientation : str, optional
        Three letters that replace what the source says of its orientation, see `trtseg.orientation.reorient`.
    series : str, optional
        Series Instance UID of the DICOM series to take; by default see `trtseg.io.dicom.series.choose`.

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
    is_image = _is_instance(source, "nibabel.spatialimages", "SpatialImage")
    is_itk = _is_instance(source, "SimpleITK", "Image")
    is_path = isinstance(source, (str, os.PathLike))
    has_grid = is_path or is_image or is_itk or isinstance(source, Volume)
    if has_grid and (affine is not None or spacing is not None):
        raise ArgumentError(
            f"affine, spacing: got one with a {type(source).__name__}, which has its own geometry; "
            "give them with arrays only"
        )
    is_series = is_path and (is_folder(source) or is_dicom(source))
    if series is not None and not is_series:
        raise ArgumentError(f"series: got {series!r} with a source that is not DICOM; leave it out")
    if isinstance(source, Volume):
        if orientation is None:
            return source
        volume = source
    elif is_series:
        volume = read_dicom(source, series)
    elif is_path:
        name = os.fspath(source)
        volume = ct_volume(name, *_read_voxels(name, to_hu))
    elif is_image:
        volume = from_image(source)
    elif is_itk:
        volume = from_itk(source)
    elif hasattr(source, "__array__"):
        volume = from_array(source, affine=affine, spacing=spacing)
    else:
        raise ArgumentError(
            f"source: got a {type(source).__name__}; expected a path of an image file or of a folder of DICOM files, "
            "an array in HU, an image of nibabel or SimpleITK, or a trtseg Volume"
        )
    if orientation is not None:
        volume = _turned(volume, orientation)
    check_planes(os.fspath(source) if is_path else volume.name, volume.array.shape[1:])
    if orientation is None:
        volume = dataclasses.replace(volume, warnings=(*volume.warnings, *check_orientation(volume)))
    return volume


def _turned(volume: Volume, orientation: str) -> Volume:
    """Another orientation of a volume, and what is to be said of its slices in that."""
    turned = reorient(volume, orientation)
    old, new = ((grid.axes, grid.flips) for grid in (volume.geometry, turned.geometry))
    return turned if old == new else check_slices_again(turned)


def read_labels(
    path: str | os.PathLike[str], meaning: Mapping[int, int] | None = None
) -> tuple[np.ndarray, Geometry]:
    """Read a label map from a file: one of the images that `load` takes, or a DICOM Segmentation.

    Parameters
    ----------
    path : path
        The file.
    meaning : mapping, optional
        Which of 0 (background), 1 (liver) and 2 (tumour) each value of the file stands for, as ``{6: 1}``; other values
        are background. By default 0, 1 and 2 stand for themselves, and there may be no other value. Of a Segmentation
        it is numbers of segments that have a meaning, see `trtseg.io.dicom.seg.read_seg`.

    Returns
    -------
    labels : ndarray of uint8, [Z, Y, X]
        In canonical order, like every `trtseg.volume.Volume`.
    geometry : Geometry
        The file's own grid; a Segmentation has no slices before the first and after the last that is not empty.
        Its warnings say what is strange about it, and that there are tumours but no liver.

    Raises
    ------
    ArgumentError
        If the path is none, or a value of the file stands for something else.
    InputError
        If there is no such file, it is truncated or corrupt, or it holds a value that stands for nothing.
    """
    name = name_of(path)
    check_meaning(meaning)
    if is_dicom(path):
        labels, geometry = read_seg(name, meaning)
    else:
        labels, geometry = _read_voxels(name, partial(to_labels, meaning=meaning))

    def has(label: int) -> bool:
        return any((plane == label).any() for plane in labels)  # one by one, for the sake of memory

    if has(2) and not has(1):
        text = (
            "Nothing is liver but the tumours, which are taken for it: the volume of the liver is wrong, and so is "
            "whatever is compared with it."
        )
        warning = ResultWarning("liver-segment", text)
        geometry = dataclasses.replace(geometry, warnings=(*geometry.warnings, warning))
    return labels, geometry


def save(path: str | os.PathLike[str], labels: np.ndarray, geometry: Geometry, fingerprint: str = "") -> None:
    """Write labels on the grid of their input, in the format that the target's name asks for.

    The file is written in place: call this with a temporary path of `atomic`.

    Parameters
    ----------
    path : path
        ``.nii`` or ``.nii.gz``: see `trtseg.io.nifti.write_nifti`. ``.nrrd`` or ``.mha``: see
        `trtseg.io.itk.write_itk`. A ``.dcm`` needs more than labels, see `trtseg.io.dicom_out.write_dicom`.
    labels : ndarray
        uint8, canonical ``[Z, Y, X]``: 0 background, 1 liver, 2 tumour.
    geometry : Geometry
        The grid of the input. Its source may be of another format than the target.
    fingerprint : str
        What the labels were made by; the file bears it, see `trtseg.notice.signature`.

    Raises
    ------
    ArgumentError
        If the labels do not lie on that grid.
    OutputError
        If no format has this ending, or SimpleITK is needed and not installed.
    OSError
        If writing fails; `atomic` turns it into an OutputError that names the target.
    """
    check_target(path)
    if os.fspath(path).lower().endswith(NIFTI):
        write_nifti(path, labels, geometry, fingerprint)
    else:
        write_itk(path, labels, geometry, fingerprint)


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise an OutputError unless `save` can write a file of this name."""
    name = name_of(path)
    if not name.lower().endswith(WRITTEN):
        raise OutputError(f"{name}: cannot write this file type; expected .nii.gz, .nii, .nrrd, .mha or .dcm")
    if not name.lower().endswith((*NIFTI, SEG)):
        check_installed(name)


def _read_voxels(name: str, convert: Convert) -> tuple[np.ndarray, Geometry]:
    """Read a file's voxels as a CT or as labels, and its grid."""
    if name.lower().endswith(ITK):
        return read_itk(name, convert)
    if name.lower().endswith(ANALYZE):
        return read_pair(name, convert)
    return read_nifti(name, convert)  # which says why a path cannot be opened


def _is_instance(source: Any, module: str, name: str) -> bool:
    """Tell whether this is of a class of a module, without importing the module if nobody has imported it yet."""
    # While another thread imports the module the class may not be there yet.
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(source, kind)
