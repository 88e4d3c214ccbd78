"""Holes of a mask: background that it encloses completely in 3-D."""

from __future__ import annotations

import numpy as np

from trtseg.labels.components import Runs, join, touching


def find_holes(mask: Runs, shape: tuple[int, int, int]) -> Runs:
    """Find the 6-connected holes of a mask, in its runs alone.

    A voxel of a hole lies in its row between two runs of the mask: in a *gap*. A gap is open if, in one of the four
    rows around it, a voxel beside it lies neither in the mask nor in a gap, that is before the row's first run or after
    its last. Gaps that touch are one, and what no open gap belongs to is a hole.

    Parameters
    ----------
    mask : Runs
        Runs of the mask, in raster order.
    shape : (int, int, int)
        Slices, rows and columns of the picture; beyond it all is open.

    Returns
    -------
    Runs
        The voxels of the holes, whose components are numbered from 1.
    """
    depth, rows, columns = shape
    # One row and one column more: what lies in them is open, and keeps apart what is in different rows and slices.
    width, height = columns + 1, rows + 1
    row = mask.z * height + mask.y
    starts = np.full((depth + 1) * height, columns)  # of the first run of each row
    ends = np.full((depth + 1) * height, -1)
    starts[row[::-1]] = mask.first[::-1]  # the last that is written stays
    ends[row] = mask.last
    left = np.flatnonzero(row[1:] == row[:-1])
    row, first, last = row[left], mask.last[left] + 1, mask.first[left + 1] - 1
    is_open = np.zeros(len(row), bool)
    for step in (1, -1, height, -height):  # before the first row there is, by its index, the last: open too
        beside = row + step
        is_open |= (first < starts[beside]) | (last > ends[beside])
    below = row * width
    number, count = join(len(row), touching(below + first, below + last, [width, height * width]))
    is_hole = np.ones(count, bool)
    is_hole[number[is_open]] = False
    z, y = np.divmod(row, height)
    gaps = Runs(z, y, first, last, np.cumsum(is_hole)[number])
    return gaps.of(is_hole[number])
