"""The contract of both cascades: slices are pushed in as they come, labels come back in the order of the slices.

`begin` fixes how the slices lie on the nets' grid and gives a feed. ``push`` takes slices, in order, and returns the
labels that are ready; ``finish`` returns the rest. So the labels of a slice may come with a later call:

- The CPU returns the labels of all slices with the ``push`` that brings them.
- A GPU collects ``batch`` slices, and has at most `LANES` such chunks on their way. With a batch of 1 it returns the
  labels of all slices with the ``push`` that brings them, as soon as they can be there.

Buffers are bounded by that; none grows with the number of slices. A cascade has one feed at a time: `begin` ends the
feed before. After an error a feed has ended and the cascade can begin another. One thread at a time uses a cascade and
its feed. ``tests/cascade_cases.py`` holds both cascades to this text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trtseg import _core
from trtseg.body import Hu
from trtseg.cuda.arrays import CudaArray
from trtseg.errors import ArgumentError
from trtseg.fit import Fit

#: Slices of a volume that are pushed at a time: enough to keep every core busy in the ops, few enough for the caches.
CHUNK = 16

Labels = Any  # uint8 [n, Y, X]: an array on the host, or a CudaArray
Logits = dict[int, NDArray[np.float16]]  # by the number of a slice: [H, W] on the nets' grid
Timings = dict[str, float]

#: Called with a text, which says what is being done, and the fraction that is done, from 0 to 1.
Progress = Callable[[str, float], None]
#: Called with the number of slices whose labels are there.
Done = Callable[[int], None]


class Feed(Protocol):
    """Slices of one placement on their way through a cascade."""

    @property
    def timings(self) -> Timings:
        """Seconds in each stage so far."""

    def push(self, hu: Hu, out: Labels | None = None) -> list[tuple[int, Labels]]:
        """Take the next slices.

        Parameters
        ----------
        hu : int16 [n, Y, X]
            The slices, in HU; the caller may overwrite a host array when the call returns.
        out : uint8 [n, Y, X], optional
            Where their labels go; by default new arrays on the host. All pushes of a feed are from one place (host or
            GPU), and to one place.

        Returns
        -------
        list of (int, uint8 [m, Y, X])
            Number of the first slice of a piece, counted from 0 in this feed, and the labels of the piece. Pieces come
            in order and without gaps. A piece is a part of ``out`` where that was given.
        """

    def finish(self) -> list[tuple[int, Labels]]:
        """End the feed; the pieces that have not been returned before."""

    def close(self) -> None:
        """End the feed without its labels; a feed that has ended stays as it is."""


class Cascade(Protocol):
    """The nets of a model on a device."""

    @property
    def precisions(self) -> dict[str, str]:
        """Arithmetic of each net, by its role: the names of `trtseg.engines.precision`."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What a result tells of device and engines."""

    def view(self, array: Any, name: str, dtype: DTypeLike) -> CudaArray:
        """View another library's slices ``[Z, Y, X]`` on this GPU: no copy, no conversion.

        An ArgumentError, which calls them by ``name``, says that they have another layout or type, or are elsewhere.
        """

    def place(self, hu: Hu, spacing: tuple[float, float], *, stream: int = 0) -> Fit:
        """Find out how slices ``[Z, Y, X]`` lie on the nets' grid: one placement for all of them.

        ``stream`` is the CUDA stream on which slices on the GPU are made, beside the stream that they name.
        """

    def begin(self, fit: Fit, *, stream: int = 0, logits: Logits | None = None) -> Feed:
        """Begin a feed of slices.

        Parameters
        ----------
        fit : Fit
            How the slices lie on the nets' grid, as `place` gives it.
        stream : int
            CUDA stream on which arrays on the GPU are made and will be used, beside the streams that they name.
        logits : dict, optional
            Gets the logits of the tumour net for each slice with liver, no later than the labels of the slice. On the
            CPU they may be -65504 where no pixel of the liver is near. A one-step model has no such logits.
        """

    def run(
        self,
        hu: Hu,
        spacing: tuple[float, float],
        out: Labels | None = None,
        *,
        fit: Fit | None = None,
        stream: int = 0,
        logits: Logits | None = None,
        done: Done | None = None,
    ) -> tuple[Labels, Timings]:
        """Label a volume.

        Parameters
        ----------
        hu : int16 [Z, Y, X]
            The CT in HU, in canonical order.
        spacing : (float, float)
            Millimetres along the axes of a slice, ``(sy, sx)``.
        out : uint8 [Z, Y, X], optional
            Where the labels go; by default a new array on the host.
        fit : Fit, optional
            Placement of the slices; by default that which `place` finds.
        stream, logits
            As for `begin`.
        done : callable, optional
            Told of how many slices the labels are there.

        Returns
        -------
        labels : uint8 [Z, Y, X]
            0 background, 1 liver, 2 tumour.
        timings : dict
            Seconds in each stage.
        """

    def stages(self, hu: NDArray[np.int16], spacing: tuple[float, float]) -> Timings:
        """Seconds in each stage of a chunk ``hu`` ``[n, Y, X]``, in order; on a GPU ``n`` is at most the batch."""

    def close(self) -> None:
        """Give back engines and buffers; a cascade that is closed stays closed."""


def run_volume(
    feed: Feed,
    hu: Hu,
    out: Labels | None,
    done: Done | None,
) -> Labels:
    """Push a volume ``[Z, Y, X]`` through a feed, which it ends; see `Cascade.run`."""
    labels = np.empty(hu.shape, np.uint8) if out is None else out

    def tell(pieces: list[tuple[int, Labels]]) -> None:
        if done is not None and pieces:
            first, piece = pieces[-1]
            done(first + len(piece))

    try:
        for first in range(0, len(hu), CHUNK):
            tell(feed.push(hu[first : first + CHUNK], labels[first : first + CHUNK]))
        tell(feed.finish())
    finally:
        feed.close()
    return labels


def keep_logits(logits: Logits, first: int, l2: NDArray[Any], pixels: NDArray[np.int32]) -> None:
    """Keep the tumour logits ``[n, 1, H, W]`` of those slices, numbered from ``first``, that have liver ``pixels``."""
    for n in np.flatnonzero(pixels).tolist():
        logits[first + n] = plane = np.empty(l2.shape[2:], np.float16)
        move = _core.copy if l2.dtype == np.float16 else _core.to_half  # logits beyond FP16 become infinite
        move(plane, l2[n, 0])


def check_slices(hu: Hu, out: Labels | None, shape: tuple[int, int]) -> None:
    """Raise an ArgumentError unless slices have the shape ``(Y, X)`` of their feed, and ``out`` has that of ``hu``."""
    if tuple(hu.shape[1:]) != shape or len(hu.shape) != 3:
        raise ArgumentError(
            f"hu: got shape {tuple(hu.shape)}; expected [n, {shape[0]}, {shape[1]}], slices as they were placed"
        )
    if out is not None and tuple(out.shape) != tuple(hu.shape):
        raise ArgumentError(f"out: got shape {tuple(out.shape)}; expected the shape of hu, {tuple(hu.shape)}")


def ended() -> ArgumentError:
    """The error of a feed that gets slices after its end."""
    return ArgumentError("push: got slices for a feed that has ended; begin another")
