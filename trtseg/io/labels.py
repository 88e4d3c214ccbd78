"""Label maps from NIfTI files, and whether two grids are one."""

from __future__ import annotations

import gzip
import itertools
import os
import zlib
from typing import Any

import numpy as np

from trtseg.errors import InputError
from trtseg.io.checks import check_dtype, make_geometry, slabs
from trtseg.io.nifti import ENDINGS
from trtseg.volume import Geometry, spacing_mm

#: How far two grids may lie apart, in voxels: headers are rounded, and less than this changes no voxel.
_TOLERANCE = 0.1
_SHOWN = 5  # values listed in a message


def read_labels(path: str | os.PathLike[str]) -> tuple[np.ndarray[Any, Any], Geometry]:
    """Read a label map (0 background, 1 liver, 2 tumour) in canonical order from a NIfTI file.

    Returns
    -------
    labels : ndarray of uint8, [Z, Y, X]
        In canonical order, like every `trtseg.volume.Volume`.
    geometry : Geometry
        The file's own grid.

    Raises
    ------
    InputError
        If there is no such file, it is truncated or corrupt, or it holds anything but these labels.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    name = os.fspath(path)
    if not name.lower().endswith(ENDINGS):
        raise InputError(f"{name}: unknown file type; expected labels as .nii or .nii.gz")
    try:
        image: Any = nib.load(name)
        check_dtype(name, image.get_data_dtype())
        geometry = make_geometry(name, image.shape, image.affine)
        stored = np.asanyarray(image.dataobj)
        if name.lower().endswith(".gz"):
            with gzip.open(name) as stream:
                while stream.read(1 << 20):  # to the end, where the checksum is: nibabel does not look at it
                    pass
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file; check the path") from error
    except PermissionError as error:
        raise InputError(f"{name}: no permission to read it; change the file's mode or owner") from error
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).split())  # nibabel's has line breaks
        raise InputError(
            f"{name}: cannot be read ({reason}); the file is truncated, corrupt or no NIfTI image"
        ) from error
    labels = np.empty(geometry.canonical_shape, np.uint8)
    grid = geometry.restore(labels).reshape(stored.shape[:3])
    foreign: set[float] = set()
    for where, piece in slabs(stored.reshape(stored.shape[:3])):
        bad = (piece != 0) & (piece != 1) & (piece != 2)  # NaN is none of them
        if bad.any():
            foreign.update(np.unique(piece[bad]).tolist())
        else:
            grid[where] = piece
    if foreign:
        shown = ", ".join(f"{value:g}" for value in sorted(foreign)[:_SHOWN])
        more = ", ..." if len(foreign) > _SHOWN else ""
        raise InputError(
            f"{name}: got the label{'s' * (len(foreign) > 1)} {shown}{more}; expected 0 (background), 1 (liver) "
            "and 2 (tumour) only, map the others to one of these"
        )
    return labels, geometry


def check_same_grid(name: str, grid: Geometry, other_name: str, other: Geometry) -> None:
    """Raise an InputError unless two grids have their canonical voxels at the same places.

    How the axes are stored does not matter. Corners may lie a tenth of a voxel apart.
    """
    shape = grid.canonical_shape
    if shape != other.canonical_shape:
        shapes = (" x ".join(map(str, g.canonical_shape[::-1])) for g in (grid, other))
        raise InputError(
            f"{name}: its grid of {next(shapes)} voxels (x, y, z) is not that of {other_name}, {next(shapes)}; "
            "they must belong to the same CT, resample one onto the other's grid"
        )
    corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in shape[::-1]))]).T  # [4, 8]
    steps = (grid.canonical_affine() - other.canonical_affine()) @ corners
    apart = float(np.sqrt(np.square(steps[:3]).sum(axis=0)).max())
    if apart > _TOLERANCE * min(spacing_mm(other.affine)):
        raise InputError(
            f"{name}: its affine is not that of {other_name}: the same voxel lies up to {apart:.4g} mm apart; "
            "they must belong to the same CT, repair the header that is wrong"
        )
