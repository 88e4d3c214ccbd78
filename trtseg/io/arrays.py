"""Arrays and nibabel images in memory -> Volume."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from trtseg.errors import ArgumentError, InputError
from trtseg.io.checks import (
    check_dtype,
    check_geometry,
    check_hounsfield,
    check_shape,
    make_geometry,
    make_volume,
    slabs,
)
from trtseg.volume import Geometry, Volume


def from_array(array: Any, *, affine: Any = None, spacing: Any = None) -> Volume:
    """Take a CT in Hounsfield units from an array.

    The array is never modified. One that is int16, C-contiguous and in canonical order already is used
    without a copy, so do not change it while the volume is in use; anything else is copied once.

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
            "[Z,Y,X] in canonical order, or affine= for one in nibabel's index order"
        )
    try:
        array = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"array: got a {type(array).__name__} that NumPy cannot read ({error}); copy it to the CPU first"
        ) from error
    check_dtype("array", array.dtype)
    if spacing is None:
        geometry = make_geometry("array", array.shape, affine)
    else:
        check_shape("array", array.shape)
        if array.ndim != 3:
            raise InputError(f"array: got shape {array.shape}; expected [Z,Y,X] when spacing is given")
        geometry = _canonical_grid(array.shape, spacing)
        check_geometry("array", geometry)
    hu = geometry.canonical(array)
    if hu.dtype == np.int16 and hu.dtype.isnative and hu.flags.c_contiguous:
        check_hounsfield("array", hu)
        return Volume(hu, geometry.canonical_affine(), geometry)
    return make_volume("array", geometry, slabs(array[(slice(None),) * 3 + (0,) * (array.ndim - 3)]))


def from_image(image: Any) -> Volume:
    """Take a CT in Hounsfield units from a nibabel image of any format, by its affine.

    The header is kept to write results with if it is a NIfTI header. What ``get_fdata`` cached is not looked
    at.

    Raises
    ------
    InputError
        If the file behind the image cannot be read, or is not one CT volume in HU.
    """
    from nibabel.arrayproxy import ArrayProxy
    from nibabel.nifti1 import Nifti1Header

    name = image.get_filename() or "image"
    if image.affine is None:
        raise InputError(f"{name}: got an image without an affine; give its array and its spacing instead")
    check_dtype(name, image.get_data_dtype())
    header = None
    if isinstance(image.header, Nifti1Header):  # also the base of those of NIfTI-2 and of pairs
        header = image.header.copy()
        if not np.allclose(header.get_best_affine(), image.affine):
            # Here the image's affine is the truth, as it is when nibabel saves the image.
            header.set_sform(image.affine, code="aligned")
            header.set_qform(image.affine, code="unknown")
    geometry = make_geometry(name, image.shape, image.affine, header)
    slope, inter = 1.0, 0.0
    try:
        if isinstance(image.dataobj, ArrayProxy):
            # Slicing a proxy of a .gz file would decompress it again from the start for every piece.
            stored = np.asarray(image.dataobj.get_unscaled())
            slope, inter = float(image.dataobj.slope), float(image.dataobj.inter)
        else:
            stored = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split())  # nibabel's has line breaks
        raise InputError(
            f"{name}: cannot be read ({reason}), truncated or corrupt; fetch it again"
        ) from error
    check_dtype(name, stored.dtype)
    stored = stored[(slice(None),) * 3 + (0,) * (stored.ndim - 3)]
    return make_volume(name, geometry, slabs(stored), slope=slope, inter=inter)


def _canonical_grid(shape: tuple[int, ...], spacing: Any) -> Geometry:
    """Make the geometry of an array ``[Z, Y, X]`` that is in canonical order already; spacing in mm."""
    try:
        z, y, x = (float(s) for s in spacing)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"spacing: got {spacing!r}; expected three numbers (sz, sy, sx) in mm") from error
    if not all(np.isfinite(s) and s > 0 for s in (z, y, x)):
        raise ArgumentError(f"spacing: got {spacing!r}; expected three positive numbers (sz, sy, sx) in mm")
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = z, -y, -x, 1
    return Geometry(shape, affine, (0, 1, 2), (False, False, False))
