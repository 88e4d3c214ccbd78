"""A DICOM Segmentation, of trtseg or of anybody else -> labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from trtseg.errors import InputError
from trtseg.io.checks import ct_geometry
from trtseg.io.dicom.dataset import parse, read_bytes
from trtseg.io.dicom.header import text
from trtseg.resources import is_lack_of_memory
from trtseg.volume import LPS_TO_RAS, Geometry

_LIVER, _ABNORMAL = ("10200004", "SCT", "Liver"), ("49755003", "SCT", "Morphologically Abnormal Structure")
_SHOWN = 8  # segments listed in a message


def read_seg(name: str, meaning: Mapping[int, int] | None = None) -> tuple[np.ndarray, Geometry]:
    """Read the labels of a DICOM Segmentation or Label Map Segmentation, and the grid that its frames lie on.

    Slices without a frame are background. Those between two frames are on the grid; those before the first and after
    the last are not, since the object does not say how many there are.

    Parameters
    ----------
    name : str
        The file.
    meaning : mapping, optional
        Which of 1 (liver) and 2 (tumour) the segment of each number stands for; other segments are background. By
        default that is told by their codes: the liver, and whatever is abnormal in it; there may be no other segment.
        Where segments overlap, tumour counts.

    Returns
    -------
    labels : ndarray of uint8, [Z, Y, X]
        Canonical: 0 background, 1 liver, 2 tumour.
    geometry : Geometry
        The grid.

    Raises
    ------
    InputError
        If highdicom is not installed, the file is no such object or damaged, its frames lie unevenly, its values are
        shares or probabilities, or a segment stands for nothing.
    """
    dataset = parse(name, read_bytes(name), pixels=True)
    if (kind := text(dataset, "Modality")) != "SEG":
        raise InputError(
            f"{name}: is DICOM of the modality {kind or 'unknown'}; expected a Segmentation (SEG), or labels as .nii.gz"
        )
    try:
        import highdicom
    except ImportError as error:
        raise InputError(
            f"{name}: reading a Segmentation needs highdicom ({error}); pip install 'trtseg[dicom]'"
        ) from error
    if (kind := text(dataset, "SegmentationType")) == "FRACTIONAL":
        raise InputError(f"{name}: its segments are {kind}; expected BINARY or LABELMAP, convert it to masks")
    try:
        seg = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
        stands_for = _by_codes(name, seg.SegmentSequence) if meaning is None else meaning
        grid = seg.get_volume_geometry()
        if grid is None:
            raise InputError(f"{name}: its frames lie unevenly, or on a sheared grid; convert it to .nii.gz")
        geometry = ct_geometry(name, grid.spatial_shape, affine=LPS_TO_RAS @ grid.affine)
        labels = np.zeros(grid.spatial_shape, np.uint8)
        for label in (1, 2):
            numbers = [n for n in seg.segment_numbers if stands_for.get(n) == label]
            if numbers:
                part = seg.get_volume(
                    segment_numbers=numbers, combine_segments=True, relabel=True, skip_overlap_checks=True
                )
                np.copyto(labels, label, where=part.array > 0, casting="unsafe")
    except InputError:
        raise
    except Exception as error:  # damaged files make highdicom raise errors of many types
        if is_lack_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise InputError(
            f"{name}: cannot be read as a Segmentation ({type(error).__name__}: {reason}); fetch the file again"
        ) from error
    return np.ascontiguousarray(geometry.canonical(labels)), geometry


def _by_codes(name: str, segments: Iterable[Any]) -> dict[int, int]:
    """Tell by their codes which segments are liver, and which are something abnormal in it."""
    from pydicom.sr.coding import Code

    liver, abnormal = Code(*_LIVER), Code(*_ABNORMAL)  # older codes of the same meaning are equal to these
    meaning: dict[int, int] = {}
    others: list[str] = []
    for one in segments:
        if one.segmented_property_type == liver:
            meaning[one.segment_number] = 1
        elif one.segmented_property_category == abnormal and all(
            region == liver for region in one.anatomic_regions
        ):
            meaning[one.segment_number] = 2
        elif one.segment_number:  # 0 is what a label map calls its background
            others.append(f"{one.segment_number} ({one.segment_label})")
    if others:
        more = ", ..." if len(others) > _SHOWN else ""
        raise InputError(
            f"{name}: its codes do not say that these segments are liver, or an abnormal part of it: "
            f"{', '.join(others[:_SHOWN])}{more}; say which numbers are (meaning; of the truth of 'trtseg evaluate', "
            "--liver-label and --tumour-label)"
        )
    return meaning
