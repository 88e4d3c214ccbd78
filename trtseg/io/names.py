"""What names of files say: which format they are of, and how the case is called."""

from __future__ import annotations

import os
import re
from pathlib import Path

#: Endings of NIfTI files, the longer first. Upper and lower case are the same in all endings.
NIFTI = (".nii.gz", ".nii")
#: Endings of NRRD and MetaImage files, which SimpleITK reads.
ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
#: Endings of Analyze files and of NIfTI pairs, which nibabel reads: voxels, and their header.
ANALYZE = (".img", ".hdr")
#: Endings of DICOM files, which may have any name, and of archives with DICOM files in them.
DICOM: tuple[str, ...] = (".dcm", ".dicom", ".ima")
ZIP: tuple[str, ...] = (".zip",)
#: Endings of archives, of which zips alone are read.
ARCHIVES = (*ZIP, ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst", ".7z", ".rar")
#: Ending of a DICOM segmentation.
SEG = ".dcm"
#: Of the DICOM files of a result, in a folder of the case, those that hold labels.
LABEL_OBJECTS = ("seg.dcm", "labelmap.dcm")
#: Endings of files that labels are written to.
WRITTEN = (*NIFTI, ".nrrd", ".mha", SEG)
#: The page of many cases.
INDEX = "index.html"
#: Endings of files in a folder that hold an image; of a pair, the voxels.
IMAGES = (*NIFTI, *ITK, ".img")

# What tools add to the name of a case for its labels: `trtseg segment`, `trtseg sample --phantom`, LiTS.
LABEL_ENDS, LABEL_START = ("_seg", "_labels"), "segmentation-"


def stem(path: Path) -> str:
    """File name without ``.nii.gz``, or whatever its last ending is; the whole name of a folder."""
    if is_folder(path):
        return Path(os.path.abspath(path)).name  # noqa: PTH100 - of "." too, and links stay
    return path.name[: -len(NIFTI[0])] if path.name.lower().endswith(NIFTI[0]) else path.stem


def case_name(file: Path) -> str:
    """Name of a case by one of its files, seen from the folder of the results: ``a/ct`` of ``a/ct_dicom/seg.dcm``."""
    return re.sub(r"(?<=[^/])(_seg|_dicom/(seg|labelmap|sc_\d+))?(\.nii\.gz|\.[^./]+)$", "", file.as_posix())


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Tell whether there is a folder of that name; False where that cannot be known."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where it may not look


def says_labels(path: Path) -> bool:
    """Whether the name says that the file is no CT but its labels."""
    name = stem(path)
    return name.startswith(LABEL_START) or name.endswith(LABEL_ENDS)
