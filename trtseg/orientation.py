"""Which way a patient lies in a CT, told from the picture alone, to be compared with the header.

1. *The long axis.* A body fills the first and the last slice along its own axis, and tapers off along the others.
2. *The axial slices.* Around the muscles of each slice lies a frame, cut into 12 x 12 cells. A linear score of how much
   of each cell is air or fat, soft tissue, contrast-filled tissue and bone says how much a slice looks like an upper
   abdomen seen in the usual way: spine behind, liver at the patient's right. All 8 ways to turn and mirror a slice get
   a score. Slices whose best score is below 0 show other parts of the body, or nothing known, and have no say. Where
   the picture cuts the body along more than half a side in most slices, nothing is told: the frame is not the body's.
3. *Head and feet.* A second linear score of the same cells grows from the lower to the upper end of the liver. It is
   asked in the longest row of slices with a say, because a liver is in one piece.

Neither the table nor gas has a say, so a patient may lie prone or on a side. A patient who has lost the right part of
the liver seems to be mirrored. ``training.orientation`` fits the weights.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trtseg.errors import ArgumentError
from trtseg.labels.components import Components
from trtseg.volume import Volume
from trtseg.warnings import ResultWarning

CELLS = 12
_MUSCLE_HU = 10
_CLASSES_HU = (_MUSCLE_HU, 85, 190)  # air and fat | soft tissue | tissue with contrast | bone
_SAMPLES, _SLICES = 128, 32  # pixels across a slice, about; slices of a CT, at most
_MIN_SLICES = 3  # of an abdomen
# A wrong axis, a wrong slice and a wrong direction are told only by this much.
_FACE, _FACE_OF_HEADER, _MARGIN, _MARGIN_UPWARDS = 0.2, 0.35, 1.0, 0.5
_CUT, _MOST_CUT = 0.5, 0.5  # of a side of the frame; of the slices
#: (transposed, rows reversed, columns reversed), in the order of the scores.
TURNS = tuple((t, y, x) for t, y, x in itertools.product((False, True), repeat=3))
_TOWARDS = ("SI", "PA", "LR")  # canonical axes Z, Y, X: along and against


class View(NamedTuple):
    """The patient's real axes in an array: real canonical axis ``a`` is array axis ``axes[a]``, perhaps reversed."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    seen: str


class Described(NamedTuple):
    """What is known of a slice with a body."""

    cells: np.ndarray  # float32 [12, 12, 4]: shares of the tissues
    aspect: float  # log of height by width
    is_cut: bool  # by the edge of the picture, see `_CUT`


class Weights(NamedTuple):
    """Two linear scores of the cells of a slice, as ``training.orientation`` fits them."""

    abdomen: np.ndarray  # [12, 12, 4]: how much the slice looks like an upper abdomen
    aspect: np.ndarray  # scalar, by the log of height by width: belongs to the same score
    bias: np.ndarray  # scalar, the same
    upwards: np.ndarray  # [12, 12, 4]: how far up the slice lies


def check_orientation(volume: Volume) -> tuple[ResultWarning, ...]:
    """Warn if the picture shows a patient who lies otherwise than the header says.

    Values that are no HU have no say: their classes of tissue are not those that the weights know.
    """
    codes = {warning.code for warning in volume.warnings}
    is_without_bone = "values-clipped" in codes and int(volume.array.max()) <= _CLASSES_HU[-1]
    if "values-scale" in codes or is_without_bone:
        return ()
    view = likeliest_view(volume.array, volume.spacing)
    if view is None or (view.axes, view.flips) == ((0, 1, 2), (False, False, False)):
        return ()
    grid = volume.geometry
    flips = [flip != grid.flips[a] for flip, a in zip(view.flips, view.axes, strict=True)]
    code = _code([grid.axes[a] for a in view.axes], flips)
    text = (
        f"The patient seems to lie otherwise than the header says: {view.seen}. The header says "
        f"{_code(grid.axes, grid.flips)}, the picture looks like {code} (where the axes of the array point to). "
        "Volumes are then wrong. Look at the CT, and if the header is wrong, name the orientation: "
        f"--orientation {code}, or orientation= in Python."
    )
    if any(known.startswith("values-") for known in codes):
        text += " The values look spoilt, which may mislead this warning: mend them first."
    return (ResultWarning("orientation", text),)


def likeliest_view(hu: np.ndarray, spacing: tuple[float, float, float]) -> View | None:
    """Find out which of the 48 orientations an array has.

    Parameters
    ----------
    hu : ndarray
        int16 ``[Z, Y, X]``, in what should be canonical order.
    spacing : (float, float, float)
        Millimetres along the axes.

    Returns
    -------
    View or None
        The array's own order unless the picture clearly shows another; None if it shows no abdomen.
    """
    faces = _faces(hu)
    long = int(np.argmax(faces))
    if faces[long] - faces[0] < _FACE or faces[0] > _FACE_OF_HEADER:
        long = 0
    rows, columns = (axis for axis in range(3) if axis != long)
    pages = hu.transpose(long, rows, columns)
    chosen = np.unique(np.linspace(0, len(pages) - 1, _SLICES).astype(int))
    bodies = [one for one in describe([pages[z] for z in chosen], (spacing[rows], spacing[columns])) if one]
    if sum(one.is_cut for one in bodies) > _MOST_CUT * len(bodies):
        return None
    cells = np.array([one.cells for one in bodies]).reshape(-1, CELLS, CELLS, 4)
    scores = score(shipped(), cells, np.array([one.aspect for one in bodies]))
    known = scores.max(1) > 0
    turn, down = 0, False
    if np.count_nonzero(known) >= _MIN_SLICES:
        mean = scores[known].mean(0)
        if long != 0 or mean.max() - mean[0] >= _MARGIN:
            turn = int(mean.argmax())
        down = _is_upside_down(turned(cells[_longest_run(known)], TURNS[turn]))
    elif long == 0:
        return None
    transposed, back, side = TURNS[turn]
    said = {
        "slices lie on their side": transposed,
        "the spine is where the front should be": back and not transposed,
        "the liver is on the left": (transposed + back + side) % 2 == 1,
        "the upper end of the liver points to the feet": down,
    }
    if long != 0:
        said = {"the axis from slice to slice runs across the body": True}
    axes = (long, columns, rows) if transposed else (long, rows, columns)
    seen = ", ".join(text for text, is_so in said.items() if is_so)
    return View(axes, (down, back, side), seen)


def reorient(volume: Volume, orientation: str) -> Volume:
    """Turn a volume into the canonical order that an orientation other than its header's asks for.

    The grid of the source, on which results are written, stays as it is, and so does the size of its voxels.

    Parameters
    ----------
    volume : Volume
        As it was read.
    orientation : str
        Where the source's axes ``i``, ``j`` and ``k`` point to, a letter for each: ``R`` or ``L``, ``A`` or ``P``,
        ``S`` or ``I``. ``LPS`` is an array whose first index grows to the patient's left.

    Raises
    ------
    ArgumentError
        If these are no three such letters.
    """
    letters = orientation.upper() if isinstance(orientation, str) else ""
    axes = [next((i for i, letter in enumerate(letters) if letter in pair), -1) for pair in _TOWARDS]
    if len(letters) != 3 or sorted(axes) != [0, 1, 2]:
        raise ArgumentError(
            f"orientation: got {orientation!r}; expected three letters that say where the axes of the array point to, "
            "one each of R or L, A or P, S or I: RAS or LPS, for example"
        )
    flips = [letters[i] == pair[1] for i, pair in zip(axes, _TOWARDS, strict=True)]
    old = volume.geometry
    new = dataclasses.replace(old, axes=(axes[0], axes[1], axes[2]), flips=(flips[0], flips[1], flips[2]))
    array = np.ascontiguousarray(new.canonical(old.restore(volume.array)))
    kept = tuple(warning for warning in volume.warnings if warning.code != "orientation")
    affine = new.canonical_affine()
    return dataclasses.replace(volume, array=array, affine=affine, geometry=new, warnings=kept)


def describe(pages: Sequence[np.ndarray], spacing: tuple[float, float]) -> list[Described | None]:
    """Describe slices ``[Y, X]`` of one size, with millimetres between rows and columns; None if there is no body."""
    step = max(1, min(pages[0].shape) // _SAMPLES)
    few = np.stack([page[::step, ::step] for page in pages])  # what lies together is read faster
    return [_described(page, box, spacing) for page, box in zip(few, _frames(few), strict=True)]


def _described(page: np.ndarray, box: list[int], spacing: tuple[float, float]) -> Described | None:
    y0, y1, x0, x1 = box
    if min(y1 - y0, x1 - x0) < CELLS:
        return None
    rows, columns = (np.arange(n) * CELLS // n for n in (y1 - y0, x1 - x0))
    where = (rows[:, None] * CELLS + columns) * 4
    for bound in _CLASSES_HU:
        where += page[y0:y1, x0:x1] >= bound
    counts = np.bincount(where.ravel(), minlength=CELLS * CELLS * 4).reshape(CELLS, CELLS, 4)
    shares = (counts / counts.sum(-1, keepdims=True)).astype(np.float32)
    aspect = float(np.log((y1 - y0) * spacing[0] / ((x1 - x0) * spacing[1])))
    return Described(shares, aspect, _is_cut(page, box))


def _is_cut(page: np.ndarray, box: list[int]) -> bool:
    """Whether tissue lies at an edge of the picture along more than `_CUT` of a side of the frame."""
    y0, y1, x0, x1 = box
    height, width = page.shape
    sides = (
        (y0 <= 3, page[0, x0:x1]),
        (y1 == height, page[-1, x0:x1]),
        (x0 <= 3, page[y0:y1, 0]),
        (x1 == width, page[y0:y1, -1]),
    )
    return any(
        is_there and np.count_nonzero(side > _MUSCLE_HU) > _CUT * side.size for is_there, side in sides
    )


def turned(cells: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """View cells ``[..., 12, 12, 4]`` transposed and reversed."""
    transposed, back, side = turn
    cells = cells.swapaxes(-3, -2) if transposed else cells
    return cells[..., :: -1 if back else 1, :: -1 if side else 1, :]


def score(weights: Weights, cells: np.ndarray, aspects: np.ndarray) -> np.ndarray:
    """Score how much slices ``[n, 12, 12, 4]`` look like an upper abdomen in each of the `TURNS`; ``[n, 8]``."""
    parts = [np.tensordot(turned(cells, turn), weights.abdomen, 3) for turn in TURNS]
    signs = np.array([-1 if transposed else 1 for transposed, _, _ in TURNS])
    scores: np.ndarray = np.stack(parts, 1) + signs * aspects[:, None] * weights.aspect + weights.bias
    return scores


def climbs(cells: np.ndarray) -> np.ndarray:
    """How the cells of slices in a row, ``[n, 12, 12, 4]``, change over a third of them."""
    third = max(1, len(cells) // 3)
    changes: np.ndarray = cells[third:] - cells[:-third]
    return changes


def _is_upside_down(cells: np.ndarray) -> bool:
    """Whether slices of one liver clearly lie in the order from head to feet; False if there are too few to tell."""
    enough = len(cells) >= _MIN_SLICES
    return enough and bool(np.tensordot(climbs(cells), shipped().upwards, 3).mean() < -_MARGIN_UPWARDS)


def _longest_run(flags: np.ndarray) -> np.ndarray:
    """Indices of the true flags in the longest row of them with gaps of one flag at most."""
    at = np.flatnonzero(flags)
    return max(np.split(at, np.flatnonzero(np.diff(at) > 2) + 1), key=len)


def _faces(hu: np.ndarray) -> list[float]:
    """For each axis: tissue in the first and in the last page that show any, by that in the page with the most."""
    tissue = hu[tuple(slice(None, None, max(1, n // 96)) for n in hu.shape)] > _MUSCLE_HU
    rows = np.count_nonzero(tissue, axis=2)
    found = []
    for counts in (rows.sum(1), rows.sum(0), np.count_nonzero(tissue, axis=(0, 1))):
        some = counts[counts > 0.03 * counts.max()]
        found.append(float((some[0] + some[-1]) / (2 * counts.max())) if some.size else 0.0)
    return found


def _frames(pages: np.ndarray) -> list[list[int]]:
    """The boxes around the largest pieces of tissue, with gaps of some pixels closed, and without the table.

    A box is first row, end of the rows, first column, end of the columns; all are 0 where there is no such piece.
    """
    _, height, width = pages.shape
    # An empty slice lies between two slices, so no piece is in both.
    stack = np.zeros((2 * len(pages), height, width), bool)
    stack[::2] = _grow(~_grow(pages <= _MUSCLE_HU, 1), 4)
    parts = Components(stack)
    sizes, found = parts.sizes(), []
    ends = np.searchsorted(parts.runs.z, 2 * np.arange(len(pages) + 1))
    for start, end in itertools.pairwise(ends.tolist()):
        runs = parts.runs.of(slice(start, end))
        largest = max(np.unique(runs.component), key=lambda n: int(sizes[n]), default=0)
        box = [0] * 4
        found.append(box)
        if sizes[largest] < 0.03 * height * width:
            continue
        body = runs.of(runs.component == largest)
        columns = body.first.min(), body.last.max()
        for axis, (first, last), size in ((0, body.y[[0, -1]], height), (1, columns, width)):
            begin, stop = min(first + 3, last), max(0, last - 2)
            box[2 * axis : 2 * axis + 2] = int(begin), size if size - 1 - stop < 3 else int(stop)
    return found


def _grow(masks: np.ndarray, by: int) -> np.ndarray:
    """Masks ``[n, Y, X]``, larger by some pixels on all sides."""
    for _ in "YX":
        grown = masks.copy()
        for i in range(1, by + 1):
            grown[:, i:] |= masks[:, :-i]
            grown[:, :-i] |= masks[:, i:]
        masks = grown.swapaxes(1, 2)
    return masks


def _code(axes: Any, flips: Any) -> str:
    """Where the axes of a source point to, for nibabel's ``aff2axcodes`` and for ``--orientation``."""
    letters = {i: pair[flip] for i, flip, pair in zip(axes, flips, _TOWARDS, strict=True)}
    return "".join(letters[i] for i in range(3))


@functools.cache
def shipped() -> Weights:
    """The weights that come with the package."""
    with np.load(Path(__file__).with_name("orientation.npz")) as file:
        return Weights(**file)
