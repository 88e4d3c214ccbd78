"""Connected components of label maps, in little memory however large the volume is.

All work is done inside a bounding box, on runs of voxels. Label maps are ``[Z, Y, X]``, uint8: 0 background, 1 liver,
2 tumour.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from trtseg.errors import ArgumentError

Array = np.ndarray[Any, Any]
Box = tuple[slice, slice, slice]
#: Voxels of which the runs are searched at a time: so few that they stay in the processor's cache.
_SLAB_VOXELS = 1 << 17
#: Voxels of which the coordinates are in memory at a time, 32 bytes each.
_PIECE_VOXELS = 1 << 20


def bounding_box(labels: Array, at_least: int = 1) -> Box:
    """Find the smallest box ``(z, y, x)`` that holds every voxel >= ``at_least``; it is empty if none is."""
    z = _extent(np.array([plane.max(initial=0) for plane in labels]) >= at_least)
    outline = labels[z].max(axis=0, initial=0) >= at_least
    return z, _extent(outline.any(axis=1)), _extent(outline.any(axis=0))


def count_voxels(labels: Array) -> tuple[int, int]:
    """Count the voxels of the liver (labels 1 and 2) and of the tumour (label 2)."""
    liver = sum(int(np.count_nonzero(plane)) for plane in labels)
    return liver, sum(int(np.count_nonzero(is_tumour(plane))) for plane in labels)


def check_labels(labels: Array) -> None:
    """Raise ArgumentError unless ``labels`` is a uint8 volume of labels 0 to 2."""
    if not isinstance(labels, np.ndarray) or labels.dtype != np.uint8 or labels.ndim != 3:
        got = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
        raise ArgumentError(f"labels: got {got}; expected a uint8 array [Z, Y, X]")
    if (highest := max((int(plane.max(initial=0)) for plane in labels), default=0)) > 2:
        raise ArgumentError(
            f"labels: got a label {highest}; expected 0 (background), 1 (liver) and 2 (tumour)"
        )


def _extent(line: Array) -> slice:
    hits = np.flatnonzero(line)
    return slice(int(hits[0]), int(hits[-1]) + 1) if hits.size else slice(0, 0)


def is_liver(labels: Array, out: Array | None = None) -> Array:
    """Mask of the liver with its tumours, labels 1 and 2."""
    return np.not_equal(labels, 0, out=out)


def is_tumour(labels: Array, out: Array | None = None) -> Array:
    """Mask of label 2."""
    return np.equal(labels, 2, out=out)


class Runs(NamedTuple):
    """Runs of voxels of a mask along x, in raster order; one array element a run, indices on the crop."""

    z: Array
    y: Array
    first: Array
    last: Array  # included
    component: Array

    @property
    def lengths(self) -> Array:
        """Voxels of each run."""
        return self.last - self.first + 1

    def of(self, which: Array | slice) -> Runs:
        """Some of the runs, by a mask or a slice."""
        return Runs(*(axis[which] for axis in self))

    def pieces(self) -> Iterator[Runs]:
        """The runs in pieces of about a million voxels, all runs of a slice in one of them."""
        slices = stretches(self.z)
        pieces = np.cumsum(self.lengths)[slices] // _PIECE_VOXELS
        cuts = slices[stretches(pieces)].tolist()
        for start, stop in itertools.pairwise([*cuts, len(self.z)]):
            yield self.of(slice(start, stop))

    def voxels(self) -> tuple[Array, Array, Array, Array]:
        """Component, z, y and x of each voxel, in the order of the runs."""
        lengths = self.lengths
        ends = np.cumsum(lengths)
        x = np.arange(ends[-1] if ends.size else 0) + np.repeat(self.first - ends + lengths, lengths)
        component, z, y = (np.repeat(of, lengths) for of in (self.component, self.z, self.y))
        return component, z, y, x

    def paint(self, crop: Array, label: int) -> int:
        """Set the voxels of the runs to ``label``; return their number."""
        for runs in self.pieces():
            _, z, y, x = runs.voxels()
            crop[z, y, x] = label
        return int(self.lengths.sum())


class Components:
    """26-connected components of a mask, numbered from 1 in raster order.

    Runs take a few per cent of the memory of a label array, and there are so few of them that linking those that touch
    is quicker than looking at every voxel.

    Parameters
    ----------
    crop : ndarray
        Labels or a mask, ``[Z, Y, X]``.
    mask_of : callable
        Gives the mask of labels, as `is_tumour` does; by default it is all that is not 0.

    Attributes
    ----------
    runs : Runs
        Of all components.
    count : int
        Components.
    """

    def __init__(self, crop: Array, mask_of: Callable[..., Array] = is_liver) -> None:
        self._crop = crop
        _, rows, columns = crop.shape
        row, first, last = _find_runs(crop, mask_of)
        z, y = np.divmod(row, max(1, rows))
        # One row and one column more, with nothing in them, keep apart what is in different rows and slices.
        width, height = columns + 1, rows + 1
        below = (z * height + y) * width
        steps = [width, height * width - width, height * width, height * width + width]
        number, self.count = join(len(row), touching(below + first, below + last, steps, beside=1))
        self.runs = Runs(z, y, first, last, number + 1)

    def sizes(self) -> Array:
        """Voxels of each component, int64 ``[count + 1]``; 0 at index 0."""
        # In float64, which is exact up to 2 ** 53.
        total = np.bincount(self.runs.component, self.runs.lengths, self.count + 1)
        return total.astype(np.int64)

    def paint(self, wanted: Array, label: int) -> int:
        """Set the voxels of the components with ``wanted[component]`` to ``label``; return their number."""
        return self.runs.of(wanted[self.runs.component]).paint(self._crop, label)


def _find_runs(crop: Array, mask_of: Callable[..., Array]) -> tuple[Array, Array, Array]:
    """Row, counted through all slices, first and last column of each run of a mask."""
    depth, rows, columns = crop.shape
    edges = [np.zeros(0, np.int64)]  # where runs begin and end, in a picture with one column more
    step = max(1, _SLAB_VOXELS // max(1, rows * columns))
    for z in range(0, depth, step):
        slab = crop[z : z + step]
        # A column of False ends every run, and a row of False is before the first.
        mask = np.zeros((1 + len(slab) * rows, columns + 1), bool)
        mask_of(slab, out=mask[1:].reshape(len(slab), rows, columns + 1)[:, :, :-1])
        flat = mask.reshape(-1)
        edges.append(np.flatnonzero(flat[1:] != flat[:-1]) + z * rows * (columns + 1) - columns)
    edge = np.concatenate(edges)
    row, first = np.divmod(edge[::2], columns + 1)
    return row, first, first + (edge[1::2] - edge[::2]) - 1


def touching(low: Array, high: Array, steps: Sequence[int], beside: int = 0) -> Iterator[tuple[Array, Array]]:
    """Find pairs of runs that touch, step by step: those of one step are in memory at a time.

    Parameters
    ----------
    low, high : ndarray
        First and last position of each run, in order; positions of different rows do not mix.
    steps : sequence of int
        From the positions of a row to those of the rows that are looked at.
    beside : int
        Runs touch so many positions beyond their ends.
    """
    number = np.arange(len(low))
    for step in steps:
        begin = np.searchsorted(high, low + (step - beside))
        count = np.searchsorted(low, high + (step + beside), side="right") - begin
        one = np.repeat(number, count)
        yield one, np.arange(len(one)) + np.repeat(begin - np.cumsum(count) + count, count)


def join(total: int, pairs: Iterable[tuple[Array, Array]]) -> tuple[Array, int]:
    """Join things ``0 .. total - 1`` that are linked in pairs.

    Returns
    -------
    number : ndarray [total]
        Group of each thing; groups are numbered from 0, by their first thing.
    count : int
        Groups.
    """
    first = np.arange(total)  # of the group, as far as it is known
    for one, other in pairs:
        one, other = first[one], first[other]
        while (apart := one != other).any():
            one, other = one[apart], other[apart]
            np.minimum.at(first, np.maximum(one, other), np.minimum(one, other))
            while (first != (further := first[first])).any():
                first = further
            one, other = first[one], first[other]
    is_first = first == np.arange(total)
    return (np.cumsum(is_first) - 1)[first], int(np.count_nonzero(is_first))


def stretches(*keys: Array) -> Array:
    """Index of the first element of every stretch in which all ``keys`` stay the same."""
    changed = np.zeros(len(keys[0]), bool)
    changed[:1] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changed)
