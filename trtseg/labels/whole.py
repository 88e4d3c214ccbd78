"""Is the liver in a label map a whole liver? Warnings, if not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from trtseg.labels.components import Array, bounding_box, is_liver
from trtseg.warnings import ResultWarning

#: Livers of adults, small cirrhotic and very large fatty ones among them, have volumes between these, in mL.
LIVER_ML = (300, 4000)
#: Less than this is no liver, in mL.
NO_LIVER_ML = 20
#: A liver is cut where its label reaches the end of the picture with more than this area, in mm2.
CUT_MM2 = 100
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
    sz, sy, sx = spacing
    shown = range(box[0].start, box[0].stop)
    for z, step, text in ((shown[0], -1, "the first slice (feet)"), (shown[-1], 1, "the last slice (head)")):
        at_end = not 0 <= z + step < len(hu) or hu[z + step].min() == hu[z + step].max()
        if at_end and np.count_nonzero(labels[z]) * sy * sx > CUT_MM2:
            yield text
    _, rows, columns = labels.shape
    wide = (box[0], *(slice(max(0, part.start - 2), part.stop + 2) for part in box[1:]))
    area = 0.0
    for plane, ct in zip(labels[wide], hu[wide], strict=True):  # one by one, for the sake of memory
        liver, dark = is_liver(plane), ct <= _FLAT_HU
        for axis, mm, start, stop, n in (
            (0, sx, box[1].start, box[1].stop, rows),
            (1, sy, box[2].start, box[2].stop, columns),
        ):
            across = np.moveaxis(liver, axis, 0)
            area += (start == 0) * np.count_nonzero(across[0]) * sz * mm
            area += (stop == n) * np.count_nonzero(across[-1]) * sz * mm
            # Pictures that were masked or cut to a circle hold one value where the patient goes on.
            three: list[tuple[slice, ...]] = [
                (slice(None),) * axis + (part,) for part in (slice(-2), slice(1, -1), slice(2, None))
            ]
            for inside, beside, beyond in (three, three[::-1]):
                edge = liver[inside] & dark[beyond]  # seldom, and all that follows is only there
                at = np.divmod(np.flatnonzero(edge), edge.shape[1])
                flat = ct[beyond][at] == ct[beside][at]
                area += np.count_nonzero(flat & ~liver[beside][at]) * sz * mm
    if area > 4 * CUT_MM2:
        yield "the edge of the field of view"
