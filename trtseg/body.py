"""Where the patient is in a CT, and how a net's grid is laid around the patient instead of the picture.

The rule has four steps, and each depends on the values in the picture alone, not on where they stand in it:

1. The *frame* is the smallest box, over all slices, that holds every voxel above -1000 HU. The frame of a CT with noise
   in its air is the picture, and is known after one slice. The frame of a padded CT is the CT without the padding. A
   frame that is wider than high grows at its front to a square: some scanners mask the air in front of a patient,
   more in one slice than in another, and a field of view is square.
2. The *body* is the smallest box, over all slices, that holds everything above -400 HU that is at least 24 mm thick.
   Table tops, cushions, blankets and tubes are thinner.
3. The net's pixels have the size that the model wants. Where the body would be cut, they grow in steps of one eighth.
4. The net's grid is centred on the frame. Where the body's centre is more than 24 net pixels away from the centre of
   the grid, the grid moves by as few steps of 16 net pixels as bring it there, or by as many as a body needs that would
   be cut. Sixteen is the largest stride of the nets: they see a picture that moved by 16 pixels almost as before.

Steps 3 and 4 are coarse on purpose. The first slices of a CT mostly give the placement of the whole CT, and CTs of one
protocol share one placement.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trtseg import _core
from trtseg.cuda.arrays import CudaArray
from trtseg.errors import ArgumentError
from trtseg.fit import Fit, check_sizes

#: Voxels of the body are above this many HU: fat is, lung and foam are not. csrc/voxel.h says the same.
BODY_HU = -400
#: What is thinner than this, in mm, is no body.
THICK_MM = 24.0
#: The body is searched on voxels about this far apart, in mm.
SAMPLE_MM = 6.0
#: A grid grows by this fraction of its pixel size at a time.
GROWTH = 1 / 8
#: A grid moves by this many net pixels at a time.
MOVE = 16
#: A grid stays where it is while the body's centre is at most this many net pixels away from the grid's centre.
OFF_CENTRE = 24

Hu = NDArray[np.int16] | CudaArray  # [n, Y, X]

#: First row, end of the rows, first column, end of the columns.
Box = tuple[int, int, int, int]

#: Calls an op that lacks nothing but its output, with an array of a shape and dtype; returns the output on the host.
Run = Callable[[Callable[..., None], tuple[int, ...], DTypeLike], NDArray[Any]]


def on_host(op: Callable[..., None], shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """The `Run` of slices on the host."""
    out = np.empty(shape, dtype)
    op(out)
    return out


def on_threads(threads: int) -> Run:
    """The `Run` of slices on the host whose ops take so many threads; 0: one for each processor."""
    return lambda op, shape, dtype: on_host(partial(op, threads=threads), shape, dtype)


def place_body(
    hu: Hu, spacing: tuple[float, float], net: tuple[int, int], pixel_mm: float, run: Run = on_host
) -> Fit:
    """Lay a net's grid around the patient: one placement for all slices of a CT.

    Parameters
    ----------
    hu : int16 [Z, Y, X]
        The CT in HU, on the host, or where ``run`` runs ops.
    spacing : (float, float)
        Millimetres between rows and between columns.
    net : (int, int)
        Rows and columns of the net's input.
    pixel_mm : float
        Size of a net pixel in mm, unless the body needs larger ones.
    run : callable, optional
        Runs the two ops that look at voxels; see `Run`.

    Returns
    -------
    Fit
        The placement. Where nothing is thick enough for a body, everything above -1000 HU counts as the body. A CT of
        nothing but air, or without slices, is placed by the centre of the picture.

    Raises
    ------
    ArgumentError
        ``hu`` has not three axes, or a size is not positive.
    """
    if len(hu.shape) != 3:
        raise ArgumentError(f"hu: got shape {hu.shape}; expected slices [Z, Y, X]")
    shape = (hu.shape[1], hu.shape[2])
    check_sizes(shape, spacing, net)
    if isinstance(hu, np.ndarray):
        hu = np.ascontiguousarray(hu)
    frame = _frame(hu, run)
    if frame is None:
        return place_picture(shape, spacing, net, pixel_mm)
    body = _body(_thick(hu, spacing, frame, run), spacing, frame)
    return _place(shape, spacing, net, pixel_mm, frame, body or frame)


def find_body(hu: NDArray[np.int16], spacing: tuple[float, float]) -> Box | None:
    """Box of the body, by step 2 of the rule, in C-contiguous slices ``[Z, Y, X]`` on the host; None without one."""
    frame = _frame(hu, on_host)
    return frame and _body(_thick(hu, spacing, frame, on_host), spacing, frame)


class Placement:
    """The placement of slices that come one by one, in any order.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of a slice.
    spacing, net, pixel_mm
        As for `place_body`.

    Attributes
    ----------
    fit : Fit
        That which `place_body` finds for all slices so far.
    """

    def __init__(
        self, shape: tuple[int, int], spacing: tuple[float, float], net: tuple[int, int], pixel_mm: float
    ) -> None:
        self._of = shape, spacing, net, pixel_mm
        self._slices: list[NDArray[np.int16]] = []
        self._frame: Box | None = None
        self._mask = np.zeros((0, 0), bool)
        self.fit = place_picture(*self._of)

    def add(self, plane: NDArray[np.int16]) -> None:
        """Take a slice ``[Y, X]``, C-contiguous, which must not change afterwards.

        A slice for which there is no memory was not taken.
        """
        _, spacing, _, _ = self._of
        frame = _frame(plane[None], on_host, self._frame)
        if frame is not None:
            # in another frame, other voxels are looked at
            looked = [plane] if frame == self._frame else [*self._slices, plane]
            mask = np.logical_or.reduce([_thick(p[None], spacing, frame, on_host) for p in looked])
            if frame == self._frame:
                mask |= self._mask
            fit = _place(*self._of, frame, _body(mask, spacing, frame) or frame)
            self._frame, self._mask, self.fit = frame, mask, fit
        self._slices.append(plane)


def place_picture(
    shape: tuple[int, int], spacing: tuple[float, float], net: tuple[int, int], pixel_mm: float
) -> Fit:
    """Lay a net's grid around the centre of a picture of which nobody knows yet where the patient is.

    `place_body` gives the same placement for most CTs.
    """
    check_sizes(shape, spacing, net)
    centre = (shape[0] // 2, shape[0] // 2 + shape[0] % 2, shape[1] // 2, shape[1] // 2 + shape[1] % 2)
    frame = (0, shape[0], 0, shape[1])
    return _place(shape, spacing, net, pixel_mm, frame, centre)


def _frame(hu: Hu, run: Run, known: Box | None = None) -> Box | None:
    """The box of all voxels above air, over all slices and in the box that is known; None if there is none."""
    y0, y1, x0, x1 = run(partial(_core.frame, hu), (4,), np.int32).tolist()
    if known is not None:
        y0, y1, x0, x1 = min(y0, known[0]), max(y1, known[1]), min(x0, known[2]), max(x1, known[3])
    return (y0, y1, x0, x1) if y0 < y1 else None


def _samples(spacing: tuple[float, float], frame: Box) -> list[tuple[int, int]]:
    """For each axis of a slice: pixels from sample to sample, and how many samples are as thick as a body."""
    found = []
    for axis, mm in enumerate(spacing):
        stride = max(1, round(SAMPLE_MM / mm))
        n = -(-(frame[2 * axis + 1] - frame[2 * axis]) // stride)
        found.append((stride, min(n, max(1, round(THICK_MM / (stride * mm))))))
    return found


def _thick(hu: Hu, spacing: tuple[float, float], frame: Box, run: Run) -> NDArray[np.bool_]:
    """Samples ``[y, x]`` at which something thick above `BODY_HU` begins in any slice.

    The samples begin at the frame's corner, so that padding does not change which voxels are looked at.
    """
    rows, columns = _samples(spacing, frame)
    shape = [-(-(frame[a + 1] - frame[a]) // s) - k + 1 for a, (s, k) in ((0, rows), (2, columns))]
    return run(partial(_core.thick, hu, frame, rows, columns), tuple(shape), np.uint8).view(bool)


def _body(thick: NDArray[np.bool_], spacing: tuple[float, float], frame: Box) -> Box | None:
    """The box of everything thick, to half a `SAMPLE_MM`, by the mask of `_thick`; None if there is nothing."""
    found = _bounds(thick)
    if found is None:
        return None
    box = []
    for axis, (stride, k) in enumerate(_samples(spacing, frame)):
        half = stride // 2
        first, last = found[2 * axis], found[2 * axis + 1] - 1 + k - 1  # samples inside the body
        begin, end = frame[2 * axis], frame[2 * axis + 1]
        box += [max(begin, begin + first * stride - half), min(end, begin + last * stride + half + 1)]
    return box[0], box[1], box[2], box[3]


def _bounds(mask: NDArray[np.bool_]) -> Box | None:
    """The box of the true elements of a mask ``[Y, X]``; None if there are none."""
    rows, columns = mask.any(1).tobytes(), mask.any(0).tobytes()
    if 1 not in rows:
        return None
    return rows.find(1), rows.rfind(1) + 1, columns.find(1), columns.rfind(1) + 1


def _place(
    shape: tuple[int, int],
    spacing: tuple[float, float],
    net: tuple[int, int],
    pixel_mm: float,
    frame: Box,
    body: Box,
) -> Fit:
    """The grid on a frame with a body in it; steps 3 and 4 of the rule."""
    if not (math.isfinite(pixel_mm) and pixel_mm > 0):
        raise ArgumentError(f"pixel_mm: got {pixel_mm}; expected a positive number of millimetres")
    size_mm = [(body[2 * a + 1] - body[2 * a]) * spacing[a] for a in (0, 1)]
    needed = max(size / (m * pixel_mm) for size, m in zip(size_mm, net, strict=True))
    mm = pixel_mm * (1 + GROWTH * max(0, math.ceil((needed - 1) / GROWTH - 1e-9)))
    step = (mm / spacing[0], mm / spacing[1])
    height, width = frame[1] - frame[0], frame[3] - frame[2]
    square = max(height, width * spacing[1] / spacing[0])
    rows = _origin(frame[1], square, (body[0], body[1]), step[0], net[0])
    columns = _origin(frame[3], width, (body[2], body[3]), step[1], net[1])
    return Fit(shape, net, step, (0, 0), net, (rows, columns))


def _origin(end: int, length: float, body: tuple[int, int], step: float, net: int) -> int:
    """The native pixel with which the net's grid begins, on one axis.

    All positions are counted from the end of the frame, so that they do not change where the frame moves in the
    picture. ``length`` is that of the frame.
    """
    first, last = body[0] - end, body[1] - end
    centred = -length / 2 - net / 2 * step
    off = ((first + last) / 2 - centred) / step - net / 2  # net pixels
    room = net / 2 - (last - first) / (2 * step)  # how far off its centre a body is not cut
    allowed = min(OFF_CENTRE, room)
    move = MOVE * max(0, math.ceil((abs(off) - allowed) / MOVE))
    if move - abs(off) > allowed:  # a step of 16 pixels is too coarse for a body this large
        move = round(abs(off))
    return end + round(centred + math.copysign(move, off) * step)
