"""How probable a net calls tumour what lies at a voxel, from its logits on its own grid."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from trtseg.fit import Fit
from trtseg.labels.components import Array, stretches

_LIMIT = 65504.0  # as in the operations: the largest FP16 number


@dataclass(frozen=True, eq=False)
class TumourLogits:
    """Logits of the tumour net for the slices of a volume.

    Attributes
    ----------
    fit : Fit
        How the slices lie on the net's grid.
    planes : dict of int to ndarray
        float16 ``[H, W]`` by slice ``z``; slices on which the net did not run are not there. None at all are known of
        a model without a net for tumours alone.
    corners : dict of int to (int, int)
        First row and column of planes that `narrow` has cut.
    """

    fit: Fit
    planes: dict[int, Array] = field(default_factory=dict)
    corners: dict[int, tuple[int, int]] = field(default_factory=dict)

    def narrow(self, z: int, rows: slice, columns: slice) -> None:
        """Keep of slice ``z`` what `probability` needs for native ``rows`` and ``columns``; they may be empty."""
        plane = self.planes.pop(z, None)
        if plane is not None and rows.stop > rows.start:
            box = []
            for axis, part in enumerate((rows, columns)):
                first, last, *_ = _taps(self.fit, axis)
                box.append(slice(int(first[part.start]), int(last[part.stop - 1]) + 1))
            self.planes[z] = plane[tuple(box)].copy()
            self.corners[z] = box[0].start, box[1].start

    def probability(self, z: Array, y: Array, x: Array) -> Array:
        """Probability at native voxels, float64 ``[n]``; ``z`` is in order.

        The logits are interpolated to a voxel as the operation ``label`` does, and go through the logistic function.
        Where the net did not run, where its engine left logits out since no pixel of the liver is near, and outside
        its grid, the probability is 0. NaN is the lowest logit.
        """
        rows, columns = _taps(self.fit, 0), _taps(self.fit, 1)
        result = np.zeros(len(z))
        first = stretches(z)
        for part in map(slice, first, [*first[1:], len(z)]):
            plane = self.planes.get(int(z[part.start]))
            if plane is None:
                continue
            corner = self.corners.get(int(z[part.start]), (0, 0))
            y0, y1, gy, fy = (tap[y[part]] for tap in rows)
            x0, x1, gx, fx = (tap[x[part]] for tap in columns)
            y0, y1, x0, x1 = y0 - corner[0], y1 - corner[0], x0 - corner[1], x1 - corner[1]
            top, left = y0.min(), x0.min()
            d = plane[top : y1.max() + 1, left : x1.max() + 1].astype(np.float32)
            d = np.clip(np.where(np.isnan(d), -_LIMIT, d), -_LIMIT, _LIMIT)
            above, below = (y0 - top) * d.shape[1] - left, (y1 - top) * d.shape[1] - left
            low, high = (gy * d.take(above + at) + fy * d.take(below + at) for at in (x0, x1))
            inside = (gy + fy > 0) & (gx + fx > 0)
            value = (gx * low + fx * high).astype(np.float64)
            result[part] = inside * (0.5 + 0.5 * np.tanh(0.5 * value))
        return result


@functools.lru_cache(maxsize=8)  # both axes of the placements at hand
def _taps(fit: Fit, axis: int) -> tuple[Array, Array, Array, Array]:
    """The two net pixels that make each native pixel of an axis, and their weights; both are 0 outside the grid."""
    size, step = fit.net[axis], float(fit.step[axis])
    at = (np.arange(fit.native[axis]) - fit.origin[axis] + 0.5) / step + fit.offset[axis] - 0.5
    clipped = np.clip(at, 0.0, size - 1.0)
    low = np.floor(clipped).astype(np.int64)
    share = (clipped - low).astype(np.float32)
    inside = ((at >= -0.5) & (at < size - 0.5)).astype(np.float32)
    return low, np.minimum(low + 1, size - 1), inside * (1 - share), inside * share
