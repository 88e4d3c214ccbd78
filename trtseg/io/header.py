"""The affine of a NIfTI header, whose parts may contradict each other."""

from __future__ import annotations

from typing import Any

import numpy as np

from trtseg.errors import InputError
from trtseg.volume import ROUNDING, SAME_GRID, is_independent, spacing_mm
from trtseg.warnings import ResultWarning


def header_affine(name: str, header: Any) -> tuple[np.ndarray, tuple[ResultWarning, ...]]:
    """Find index to RAS mm: the sform if its code is set, else the qform, else the spacing alone.

    A form that is no geometry (zeros, or not finite) counts as not set.

    Parameters
    ----------
    name : str
        The file, for messages.
    header : nibabel.Nifti1Header
        A header of NIfTI-1 or NIfTI-2; not changed.

    Returns
    -------
    affine : ndarray
        4x4 float64.
    warnings : tuple of ResultWarning
        What the header contradicts itself in, or does not say.

    Raises
    ------
    InputError
        If the quaternion is invalid, and no other form is a geometry.
    """
    fixed = header.copy()
    pixdim = fixed["pixdim"]
    if pixdim[0] not in (-1, 1):
        pixdim[0] = 1  # as the standard says
    pixdim[1:4] = np.abs(pixdim[1:4])
    quaternion = [fixed[f"quatern_{part}"] for part in "bcd"]
    length = float(np.sqrt(sum(float(part) ** 2 for part in quaternion)))
    if 1 < length <= 1 + ROUNDING:
        for part in "bcd":
            fixed[f"quatern_{part}"] /= length * (1 + 1e-7)
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    sform = np.asarray(fixed.get_sform(), np.float64) if has_sform else None
    try:
        qform = np.asarray(fixed.get_qform(), np.float64) if has_qform else None
    except (ValueError, ArithmeticError) as error:
        if sform is None or not is_independent(sform):
            raise InputError(
                f"{name}: the header's quaternion is invalid ({error}); repair its geometry"
            ) from error
        qform = None
    if sform is None:
        if qform is not None:
            return qform, ()
        assumed = no_orientation("right to left, back to front, feet to head")
        return np.asarray(fixed.get_base_affine(), np.float64), (assumed,)
    if not is_independent(sform):
        if qform is None or not is_independent(qform):
            return sform, ()
        text = "The sform of the header is no geometry, although its code is set: the qform is used instead."
        return qform, (ResultWarning("geometry-conflict", text),)
    found = _conflicts(sform, qform, np.asarray(pixdim[1:4], np.float64))
    if not found:
        return sform, ()
    text = (
        f"The header contradicts itself: {'; '.join(found)}. The sform is used; volumes or orientation are wrong if it "
        "is wrong. Convert the CT again from its DICOM files."
    )
    return sform, (ResultWarning("geometry-conflict", text),)


def no_orientation(assumed: str) -> ResultWarning:
    """Warn of a header without orientation, for which the given order of the voxel axes is assumed."""
    return ResultWarning(
        "geometry-unknown",
        f"The header has no orientation: voxels are taken to go from {assumed}; if that is wrong, the result is wrong. "
        "Convert the CT again from its DICOM files.",
    )


def _conflicts(sform: np.ndarray, qform: np.ndarray | None, pixdim: np.ndarray) -> list[str]:
    """Say what a sform has otherwise than the qform and the spacing."""
    sizes = spacing_mm(sform)
    found = []
    if not (np.abs(pixdim / sizes - 1) <= ROUNDING).all():
        texts = (" x ".join(f"{size:.4g}" for size in each) for each in (sizes, pixdim))
        found.append("its sform has voxels of {} mm, its pixdim {} mm".format(*texts))
    if qform is not None and is_independent(qform):
        # A quaternion cannot hold the shear of a tilted gantry; tools store the rotation that comes closest.
        rotations = []
        for form in (sform, qform):
            u, _, v = np.linalg.svd(form[:3, :3] / spacing_mm(form))
            rotations.append(u @ v)
        if np.linalg.norm(rotations[0] - rotations[1], axis=0).max() > ROUNDING:
            found.append("its sform and its qform have different directions")
        apart = float(np.linalg.norm(sform[:3, 3] - qform[:3, 3]))
        if apart > SAME_GRID * min(sizes):
            found.append(f"its sform and its qform begin {apart:.4g} mm apart")
    return found
