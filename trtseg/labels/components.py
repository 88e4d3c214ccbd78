"""Connected components of label maps, in little memory however large the volume is.

All work is done inside a bounding box, in slabs of slices. Label maps are ``[Z, Y, X]``, uint8: 0 background, 1 liver,
2 tumour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from trtseg.errors import ArgumentError

Array = np.ndarray[Any, Any]
Box = tuple[slice, slice, slice]
#: Voxels that are labelled at a time; bounds the memory, which is about 8 bytes for each.
_SLAB_VOXELS = 1 << 22


def bounding_box(labels: Array, at_least: int = 1) -> Box:
    """Find the smallest box ``(z, y, x)`` that holds every voxel >= ``at_least``; it is empty if none is."""
    z = _extent(np.array([plane.max(initial=0) for plane in labels]) >= at_least)
    outline = labels[z].max(axis=0, initial=0) >= at_least
    return z, _extent(outline.any(axis=1)), _extent(outline.any(axis=0))


def count_voxels(labels: Array) -> tuple[int, int]:
    """Count the voxels of the liver (labels 1 and 2) and of the tumour (label 2)."""
    liver = sum(int(np.count_nonzero(is_liver(plane))) for plane in labels)
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


def is_background(labels: Array, out: Array | None = None) -> Array:
    """Mask of label 0."""
    return np.equal(labels, 0, out=out)


def is_liver(labels: Array, out: Array | None = None) -> Array:
    """Mask of the liver with its tumours, labels 1 and 2."""
    return np.not_equal(labels, 0, out=out)


def is_tumour(labels: Array, out: Array | None = None) -> Array:
    """Mask of label 2."""
    return np.equal(labels, 2, out=out)


class Runs(NamedTuple):
    """Runs of mask voxels along x, in raster order; one array element a run, indices on the crop."""

    z: Array
    y: Array
    first: Array
    last: Array  # included
    component: Array

    def voxels(self) -> tuple[Array, Array, Array, Array]:
        """Component, z, y and x of each voxel, in the order of the runs."""
        lengths = self.last - self.first + 1
        ends = np.cumsum(lengths)
        x = np.arange(ends[-1] if ends.size else 0) + np.repeat(self.first - ends + lengths, lengths)
        component, z, y = (np.repeat(of, lengths) for of in (self.component, self.z, self.y))
        return component, z, y, x


class Components:
    """Connected components of a mask of ``crop``, numbered from 1 in raster order, kept as runs of voxels.

    Runs take a few per cent of the memory of a label array, and are quicker to count and to paint. A slab is
    labelled together with the first slice of the next one: on the slice that both label, equal voxels tell
    which components of the two slabs are one, whatever the connectivity.
    """

    def __init__(self, crop: Array, mask_of: Callable[..., Array], connectivity: Literal[6, 26]) -> None:
        import cc3d

        self._crop = crop
        depth, self._rows, self._columns = crop.shape[0], crop.shape[1] + 1, crop.shape[2] + 1
        step = max(1, _SLAB_VOXELS // (self._rows * self._columns))
        #: first slice; starts, lengths and ids of the runs
        self._slabs: list[tuple[int, Array, Array, Array]] = []
        links: list[tuple[int, int]] = []
        faces = [np.zeros(1, bool)]
        total = 1  # ids of all slabs in one row; 0 is what is not in the mask
        shared = np.zeros(0)
        for z in range(0, depth, step):
            own = min(step, depth - z)
            slab = crop[z : z + own + 1]
            # One more row and column of False: a gap ends every run, and cc3d 4.1.1 raises "maximum length
            # exception" on some 26-connected masks that have two axes of length 1.
            mask = np.zeros((slab.shape[0], self._rows, self._columns), bool)
            mask_of(slab, out=mask[:, :-1, :-1])
            local, n = cc3d.connected_components(
                mask, connectivity=connectivity, binary_image=True, return_N=True, out_dtype=np.uint32
            )
            ids = np.append(0, np.arange(total, total + n))
            if z > 0:
                inside = mask[0]
                above, here = shared[inside], ids[local[0][inside]]
                changes = stretches(above, here)  # neighbours are mostly alike: drop the repeats early
                links += sorted(set(zip(above[changes].tolist(), here[changes].tolist(), strict=True)))
            shared = ids[local[-1]]
            on_face = np.zeros(n + 1, bool)
            for face in (local[:, 0], local[:, -2], local[:, :, 0], local[:, :, -2]):
                on_face[face] = True
            on_face[local[0] if z == 0 else 0] = True
            on_face[local[-1] if z + own == depth else 0] = True
            faces.append(on_face[1:])
            inside = mask[:own].reshape(-1)
            edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
            if inside[0]:
                edges = np.append(0, edges)
            starts, lengths = edges[::2].astype(np.int32), (edges[1::2] - edges[::2]).astype(np.int32)
            self._slabs.append((z, starts, lengths, ids[local.reshape(-1)[starts]].astype(np.int32)))
            total += n
        self._number, self.count = _merge(total, links)
        self.on_faces = np.zeros(self.count + 1, bool)  # [component]: it reaches a face of the crop
        self.on_faces[self._number[np.concatenate(faces)]] = True

    def runs(self) -> Iterator[Runs]:
        """Yield the runs of all components, slab by slab."""
        for z, starts, lengths, ids in self._slabs:
            row, first = np.divmod(starts.astype(np.int64), self._columns)
            layer, y = np.divmod(row, self._rows)
            yield Runs(layer + z, y, first, first + lengths - 1, self._number[ids])

    def sizes(self) -> Array:
        """Voxels of each component, int64 ``[count + 1]``; 0 at index 0."""
        total = np.zeros(self.count + 1)  # bincount adds up in float64: exact up to 2 ** 53
        for _, _, lengths, ids in self._slabs:
            total += np.bincount(self._number[ids], lengths, self.count + 1)
        return total.astype(np.int64)

    def paint(self, wanted: Array, label: int) -> int:
        """Set the voxels of the components with ``wanted[component]`` to ``label``; return their number."""
        painted = 0
        for runs in self.runs():
            _, z, y, x = Runs(*(axis[wanted[runs.component]] for axis in runs)).voxels()
            self._crop[z, y, x] = label
            painted += len(x)
        return painted


def _merge(total: int, links: list[tuple[int, int]]) -> tuple[Array, int]:
    """Join linked ids: component of each id in ``0 .. total - 1``, by lowest id, and the last component."""
    parent = np.arange(total)
    for pair in links:
        roots = []
        for i in pair:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = int(parent[i])
            roots.append(i)
        parent[max(roots)] = min(roots)
    while (parent != parent[parent]).any():
        parent = parent[parent]
    lowest = parent == np.arange(total)
    return (np.cumsum(lowest) - 1)[parent], int(np.count_nonzero(lowest)) - 1


def stretches(*keys: Array) -> Array:
    """Index of the first element of every stretch in which all ``keys`` stay the same."""
    changed = np.zeros(len(keys[0]), bool)
    changed[:1] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changed)
