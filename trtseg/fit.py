"""How a CT slice of any size and pixel spacing lies on the grid of a net."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trtseg.errors import ArgumentError
from trtseg.volume import SPACING_MM, check_spacing

_MOST_PIXELS = 32767  # of an axis that the operations take
#: What lies outside the field of view, in Hounsfield units.
AIR_HU = -1000


@dataclass(frozen=True)
class Fit:
    """Placement of a native slice ``[Y, X]`` on a net's grid ``[H, W]``.

    Net pixel ``i`` of an axis covers the native interval from ``origin + (i - offset) * step`` to
    ``origin + (i - offset + 1) * step``, in native pixels. Net pixels that lie outside the slice, or outside
    ``offset <= i < offset + extent``, hold air. Native pixels whose centre lies outside the net's grid are background.

    Attributes
    ----------
    native, net : (int, int)
        Rows and columns of the native slice and of the net's input.
    step : (float, float)
        Native pixels per net pixel, per axis. Both axes have the same millimetres per net pixel.
    offset, extent : (int, int)
        First net pixel that may show the slice, and the number of net pixels that may, per axis.
    origin : (int, int)
        Native pixel with which net pixel ``offset`` begins, per axis: negative where the net's grid begins beside the
        slice, positive where it begins inside. A slice that is padded by whole pixels, with its origin moved along,
        gives the net the same input bit for bit.
    """

    native: tuple[int, int]
    net: tuple[int, int]
    step: tuple[float, float]
    offset: tuple[int, int]
    extent: tuple[int, int]
    origin: tuple[int, int] = (0, 0)

    @classmethod
    def whole_field_of_view(
        cls, native: tuple[int, int], spacing: tuple[float, float], net: tuple[int, int]
    ) -> Fit:
        """Scale the whole field of view uniformly (in mm) so that it just fits into ``net``, and centre it.

        Parameters
        ----------
        native : (int, int)
            Rows and columns of the slice.
        spacing : (float, float)
            Millimetres per pixel along rows' and columns' index, ``(sy, sx)``.
        net : (int, int)
            Rows and columns of the net's input.
        """
        check_sizes(native, spacing, net)
        mm_per_pixel = max(n * s / m for n, s, m in zip(native, spacing, net, strict=True))
        step, offset, extent = [], [], []
        for n, s, m in zip(native, spacing, net, strict=True):
            r = mm_per_pixel / s
            covered = min(m, max(1, math.ceil(n / r - 0.5)))  # net pixels whose centre is inside
            step.append(r)
            extent.append(covered)
            offset.append((m - covered) // 2)
        return cls(native, net, (step[0], step[1]), (offset[0], offset[1]), (extent[0], extent[1]))

    @classmethod
    def identity(cls, shape: tuple[int, int]) -> Fit:
        """Lay a slice on a grid of its own size, pixel on pixel."""
        return cls(shape, shape, (1.0, 1.0), (0, 0), shape)


def check_sizes(native: tuple[int, int], spacing: tuple[float, float], net: tuple[int, int]) -> None:
    """Raise an `ArgumentError` unless there may be a slice and a net of these sizes, and such a spacing of a CT."""
    if not 1 <= min(*native, *net) <= max(*native, *net) <= _MOST_PIXELS:
        raise ArgumentError(
            f"shape: got slices of {native} pixels and a net of {net}; expected 1 to {_MOST_PIXELS} an axis"
        )
    if not SPACING_MM[0] <= min(sizes := check_spacing(spacing, "yx")) <= max(sizes) <= SPACING_MM[1]:
        low, high = SPACING_MM
        raise ArgumentError(f"spacing: got {spacing!r}; expected {low:g} to {high:g} mm: give millimetres")
