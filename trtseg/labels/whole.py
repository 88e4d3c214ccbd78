"""Is the liver in a label map a whole liver? Warnings, if not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from trtseg.labels.components import Array, Box, bounding_box, is_liver
from trtseg.warnings import ResultWarning

#: Livers of adults, small cirrhotic and very large fatty ones among them, have volumes between these, in mL.
LIVER_ML = (300, 4000)
#: Less than this is no liver, in mL.
NO_LIVER_ML = 20
#: A liver is cut where its label reaches the end of the picture with more than this area, in mm2.
CUT_MM2 = 100
#: Likewise for all edges of the slices together.
EDGES_MM2 = 4 * CUT_MM2
_FLAT_HU = -900
#: Parts that were dropped make a warning above this volume, in mL, or above this share of the rest.
DROPPED_ML, DROPPED = 50, 0.1
_CAUSES = (
    "the scan shows no abdomen, the patient lies otherwise than the header says, the voxel spacing is wrong, or the "
    "values are no Hounsfield units"
)


def check_liver(
    labels: Array, hu: Array, spacing: tuple[float, float, float], liver_ml: float, steps: dict[str, Any]
) -> Iterator[ResultWarning]:
    """Yield a warning for each reason why the volume of the liver may be wrong.

    Parameters
    ----------
    labels : ndarray
        uint8 ``[Z, Y, X]``: 0 background, 1 liver, 2 tumour.
    hu : ndarray
        int16 ``[Z, Y, X]``: the CT.
    spacing : (float, float, float)
        Millimetres, ``(sz, sy, sx)``.
    liver_ml : float
        Volume of the liver in millilitres.
    steps : dict
        The report of `trtseg.labels.postprocess.postprocess`; may be empty.
    """
    removed = steps.get("largest_liver", "off")
    dropped = removed["removed_ml"] if isinstance(removed, dict) else 0.0
    if dropped > max(DROPPED_ML, DROPPED * liver_ml):
        yield ResultWarning(
            "liver-parts",
            f"{dropped:.0f} mL that the nets called liver were dropped, because they are not connected to the largest "
            "part: the liver's volume is a lower bound if slices are missing or blank. Look at the preview, or keep "
            "all parts (--no-largest-liver).",
        )
    if liver_ml < NO_LIVER_ML:
        yield ResultWarning(
            "liver-none", f"Nothing that can be called a liver was found ({liver_ml:.1f} mL): {_CAUSES}."
        )
        return
    ends = list(_ends(labels, hu, spacing))
    if ends:
        yield ResultWarning(
            "liver-cut",
            f"The liver is not whole: it reaches {' and '.join(ends)}, and its volume and its tumours' are lower "
            "bounds.",
        )
    if liver_ml > LIVER_ML[1] or (liver_ml < LIVER_ML[0] and not ends):
        yield ResultWarning(
            "liver-size",
            f"The liver has {liver_ml:.0f} mL, and livers of adults have {LIVER_ML[0]} to {LIVER_ML[1]} mL: perhaps "
            f"{_CAUSES}.",
        )


def _ends(labels: Array, hu: Array, spacing: tuple[float, float, float]) -> Iterator[str]:
    """Name each end of the picture that the liver reaches with an area worth a word."""
    box = bounding_box(labels)
    _, sy, sx = spacing
    shown = range(box[0].start, box[0].stop)
    for z, step, text in ((shown[0], -1, "the first slice (feet)"), (shown[-1], 1, "the last slice (head)")):
        at_end = not 0 <= z + step < len(hu) or hu[z + step].min() == hu[z + step].max()
        if at_end and np.count_nonzero(labels[z]) * sy * sx > CUT_MM2:
            yield text
    if _at_edges(labels, hu, box, spacing) > EDGES_MM2:
        yield "the edge of the field of view"


def _at_edges(labels: Array, hu: Array, box: Box, spacing: tuple[float, float, float]) -> float:
    """The area, in mm2, with which the liver in ``box`` reaches the edges of the pictures, or what stands for them."""
    sz, sy, sx = spacing
    _, rows, columns = labels.shape
    area = 0.0
    for part, axis, n, mm in ((box[1], 1, rows, sx), (box[2], 2, columns, sy)):
        for is_at_edge, edge in ((part.start == 0, 0), (part.stop == n, n - 1)):
            if is_at_edge:
                area += np.count_nonzero(labels.take(edge, axis)) * sz * mm
    # Pictures that were masked or cut to a circle hold one value where the patient goes on.
    near = (box[0], *(slice(max(0, part.start - 2), part.stop + 2) for part in box[1:]))
    width = labels[near].shape[2]
    for plane, ct in zip(labels[near], hu[near], strict=True):  # one by one, for the sake of memory
        liver, dark = is_liver(plane).ravel(), (ct <= _FLAT_HU).ravel()
        for step, mm, room in ((width, sx, width), (1, sy, width - 2)):
            for inside, beyond, way in ((0, 2 * step, step), (2 * step, 0, -step)):
                pairs = max(0, liver.size - 2 * step)
                edge = np.flatnonzero(liver[inside:][:pairs] & dark[beyond:][:pairs])  # seldom any
                edge = edge[edge % width < room]  # not from the end of a row to the begin of the next
                if edge.size:
                    values, beside = ct.ravel(), edge + inside + way
                    is_flat = values[beside + way] == values[beside]
                    area += np.count_nonzero(is_flat & ~liver[beside]) * sz * mm
    return area
