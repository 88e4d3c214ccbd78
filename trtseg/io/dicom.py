"""A CT series of DICOM files -> Volume."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trtseg.errors import InputError
from trtseg.io.checks import ct_geometry, ct_volume
from trtseg.io.names import IMAGES
from trtseg.io.voxels import slabs, to_hu
from trtseg.resources import is_lack_of_memory
from trtseg.volume import Volume

# Coordinates of DICOM point to the left and to the back, coordinates of trtseg to the right and to the front.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NO_DICOM = (*IMAGES, ".json", ".png")


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """The files that a volume was read from: the source of its geometry, whose grid is ``[slice, row, column]``.

    Attributes
    ----------
    files : tuple of Path
        In the order given.
    index : tuple of int
        Slice of each file on that grid.
    position : ndarray
        Centre of the first voxel of each file, float64 ``[n, 3]``, LPS mm.
    """

    files: tuple[Path, ...]
    index: tuple[int, ...]
    position: np.ndarray


def read_dicom_series(files: Sequence[str | os.PathLike[str]], *, ignore_ids: bool = False) -> Volume:
    """Read the files of one CT series; spacing, order and rescale are as DICOM says, whatever the files are called.

    Parameters
    ----------
    files : sequence of path
        All files of the series, in any order.
    ignore_ids : bool
        Take the files as one series although their ids differ: each file of an anonymised copy may have been
        given ids of its own.

    Returns
    -------
    Volume
        Named after the folder of the first file. The source of its geometry is a `DicomSeries`.

    Raises
    ------
    InputError
        If highdicom is not installed, a file cannot be read, the files are of several series, their slices are
        not evenly spaced, or the values are not Hounsfield units.
    """
    check_installed()
    import highdicom
    import pydicom

    paths = tuple(Path(file) for file in files)
    if not paths:
        raise InputError("files: got none; expected the DICOM files of one CT series")
    name = os.fspath(paths[0].parent)
    try:
        datasets = [pydicom.dcmread(path) for path in paths]
        ids = {str(dataset.get("SeriesInstanceUID", "")) for dataset in datasets}
        if len(ids) > 1 and not ignore_ids:
            raise InputError(
                f"{name}: got files of {len(ids)} series; expected one, put each series into a folder of its own"
            )
        own = pydicom.uid.generate_uid()
        for dataset in datasets:  # highdicom asks for both ids, and anonymised copies may have lost them
            if ignore_ids or "SeriesInstanceUID" not in dataset:
                dataset.SeriesInstanceUID = own
            if ignore_ids or "FrameOfReferenceUID" not in dataset:
                dataset.FrameOfReferenceUID = own
        position = np.array([dataset.ImagePositionPatient for dataset in datasets], float)
        image = highdicom.get_volume_from_series(datasets, dtype=np.float32)
        index = np.rint(image.map_reference_to_indices(position)[:, 0]).astype(int)
    except InputError:
        raise
    except Exception as error:  # damaged files make pydicom and highdicom raise errors of many types
        if is_lack_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(
            f"{name}: cannot be read as a CT series ({reason}); expected a folder with all DICOM files of one "
            "series and no others"
        ) from error
    series = DicomSeries(paths, tuple(index.tolist()), position)
    geometry = ct_geometry(name, image.array.shape, affine=_LPS_TO_RAS @ image.affine, source=series)
    return ct_volume(name, to_hu(name, geometry, slabs(geometry.grid(image.array))), geometry)


def read_dicom_folder(folder: str | os.PathLike[str]) -> Volume:
    """Read a folder that holds the DICOM files of one CT series, under any names.

    Hidden files, a DICOMDIR, and image files, reports and previews, as results are, are left out.

    Raises
    ------
    InputError
        If the folder cannot be listed or holds no file; else see `read_dicom_series`.
    """
    name = os.fspath(folder)
    try:
        files = sorted(p for p in Path(folder).iterdir() if p.is_file() and _may_be_slice(p.name))
    except OSError as error:
        raise InputError(f"{name}: cannot be listed ({error.strerror}); check the path") from error
    if not files:
        raise InputError(
            f"{name}: is a folder; expected a .nii or .nii.gz file, or a folder that holds the DICOM files of one "
            "CT series"
        )
    return read_dicom_series(files)


def _may_be_slice(name: str) -> bool:
    return not name.startswith(".") and name != "DICOMDIR" and not name.lower().endswith(_NO_DICOM)


def check_installed() -> None:
    """Raise an InputError unless the packages that read DICOM are installed."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise InputError(f"reading DICOM needs highdicom ({error}); pip install 'trtseg[dicom]'") from error
