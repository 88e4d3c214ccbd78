"""Arrays and nibabel images -> Volume; images in memory, or Analyze files and NIfTI pairs, which nibabel opens."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from trtseg.errors import ArgumentError, InputError
from trtseg.io.checks import ct_geometry, ct_volume
from trtseg.io.header import header_affine, no_orientation
from trtseg.io.nifti import header_of
from trtseg.io.voxels import Convert, check_dtype, slabs, to_hu
from trtseg.volume import Geometry, Volume
from trtseg.warnings import ResultWarning


def from_array(array: Any, *, affine: Any = None, spacing: Any = None) -> Volume:
    """Take a CT in Hounsfield units from an array.

    The array is never modified. An array that is int16, C-contiguous and in canonical order already is used
    without a copy, so do not change it while the volume is in use; any other array is copied once.

    Parameters
    ----------
    array : array_like
        Integers or floats in HU. Floats are rounded half to even, and values are saturated to int16.
    affine : (4, 4) array_like, optional
        Index ``(i, j, k)`` of the array to RAS mm, as nibabel gives it; any orientation. The array is 3-D, or
        4-D with one frame.
    spacing : (float, float, float), optional
        Millimetres ``(sz, sy, sx)``. The array is ``[Z, Y, X]`` in canonical order: feet to head, anterior to
        posterior, the patient's right to left.

    Returns
    -------
    Volume

    Raises
    ------
    ArgumentError
        Unless exactly one of ``affine`` and ``spacing`` is given, and it has the right shape.
    InputError
        If the array is not one CT volume in HU.

    Examples
    --------
    >>> hu = np.full((8, 64, 64), -1000, np.int16)
    >>> from_array(hu, spacing=(5.0, 0.8, 0.8)).spacing
    (5.0, 0.8, 0.8)
    """
    if (affine is None) == (spacing is None):
        got = "neither" if affine is None else "both"
        raise ArgumentError(
            f"affine, spacing: got {got}; expected exactly one: spacing=(sz, sy, sx) in mm for an array "
            "[Z,Y,X] in canonical order, or affine= for an array in nibabel's index order"
        )
    if np.ma.is_masked(array):
        raise InputError(
            "array: got a masked array, and voxels of it are masked; expected HU everywhere: array.filled(-1000) makes "
            "them air"
        )
    try:
        array = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"array: got a {type(array).__name__} that NumPy cannot read ({error}); expected one on the CPU, without a "
            "gradient and of a type that NumPy has: of a torch tensor give .detach().cpu().float()"
        ) from error
    check_dtype("array", array.dtype)
    geometry = ct_geometry("array", array.shape, affine=affine, spacing=spacing)
    hu = geometry.canonical(array)
    if not (hu.dtype == np.int16 and hu.flags.c_contiguous and hu.flags.aligned):
        hu = to_hu("array", geometry, slabs(geometry.grid(array)))
    return ct_volume("array", hu, geometry)


def from_image(image: Any) -> Volume:
    """Take a CT in Hounsfield units from a nibabel image of any format, by its affine.

    A NIfTI header is kept to write results with. Values that ``get_fdata`` has cached are not looked at.

    Raises
    ------
    InputError
        If the file behind the image cannot be read, or is not one CT volume in HU.
    """
    name = image.get_filename() or "image"
    return ct_volume(name, *_read(name, image, to_hu))


def read_pair(name: str, convert: Convert) -> tuple[np.ndarray, Geometry]:
    """Read the voxels of an Analyze file or a NIfTI pair, ``.img`` beside ``.hdr``, either named; and its grid.

    An Analyze header has no orientation: it is taken for left to right as radiologists see it, as in nibabel.

    Raises
    ------
    InputError
        If the files cannot be read, or have no grid or no values of their kind.
    """
    return _read(name, _open_pair(name), convert)


def _open_pair(name: str) -> Any:
    import nibabel as nib

    try:
        image: Any = nib.load(name)
    except FileNotFoundError as error:
        raise InputError(
            f"{name}: no such file, or half of a pair of .hdr and .img; check the path"
        ) from error
    except Exception as error:  # damaged headers make nibabel raise errors of many types
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: cannot be read as Analyze or NIfTI ({reason}); fetch it again") from error
    return image


def _read(name: str, image: Any, convert: Convert) -> tuple[np.ndarray, Geometry]:
    """Read the voxels of an image, and its grid."""
    from nibabel.analyze import AnalyzeImage
    from nibabel.arrayproxy import ArrayProxy

    if image.affine is None:
        raise InputError(f"{name}: got an image without an affine; give its array and its spacing instead")
    check_dtype(name, image.get_data_dtype())
    affine, header = image.affine, header_of(image)
    warnings: tuple[ResultWarning, ...] = ()
    is_plain = isinstance(image, AnalyzeImage) and np.allclose(affine, image.header.get_best_affine())
    if header is None and is_plain:  # else there is a .mat of SPM beside it
        warnings = (no_orientation("left to right, back to front, feet to head"),)
    if header is not None:
        affine, warnings = header_affine(name, header)
    geometry = ct_geometry(name, image.shape, affine=affine, source=header, warnings=warnings)
    slope, inter = 1.0, 0.0
    try:
        if isinstance(image.dataobj, ArrayProxy):
            # Slicing a proxy of a .gz file would decompress it again from the start for every piece.
            stored = np.asarray(image.dataobj.get_unscaled())
            slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
        else:
            stored = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        reason = " ".join(str(error).split())  # nibabel's has line breaks
        raise InputError(
            f"{name}: cannot be read ({reason}), truncated or corrupt; fetch it again"
        ) from error
    check_dtype(name, stored.dtype)
    return convert(name, geometry, slabs(geometry.grid(stored)), slope, inter), geometry
