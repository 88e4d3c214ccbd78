"""A procedural abdominal CT with its ground truth: something to run on where no patient's CT is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trtseg.errors import ArgumentError
from trtseg.volume import check_spacing

Array = np.ndarray[Any, np.dtype[Any]]
Point = tuple[float, float, float]  # (z, y, x) in mm

NOISE_SD_HU = 12.0


class Phantom(NamedTuple):
    """What `abdomen` makes.

    Attributes
    ----------
    ct : int16 [Z, Y, X]
        Hounsfield units, canonical order: feet to head, anterior to posterior, patient right to left.
    labels : uint8 [Z, Y, X]
        0 background, 1 liver, 2 lesion; the exact shapes, before blurring and noise.
    affine : float64 [4, 4]
        Voxel (x, y, z) to RAS mm.
    """

    ct: Array
    labels: Array
    affine: Array


def abdomen(
    shape: tuple[int, int, int] = (64, 256, 256),
    spacing: tuple[float, float, float] = (5.0, 1.5, 1.5),
    *,
    seed: int = 0,
    lesions: int = 4,
    liver: bool = True,
) -> Phantom:
    """Draw an abdomen in the portal venous phase.

    It shows what a pipeline needs to be exercised: a body with fat, muscle, ribs and spine on a table,
    lungs above the diaphragm, a liver of about 1.5 L with vessels and round hypodense lesions between
    spleen, kidneys, stomach and bowel, with Hounsfield units and noise like a CT's. It does **not** show
    how well a model works on patients: no pathology but the lesions, no texture, no motion or metal, and
    edges as clean as formulas draw them.

    Parameters
    ----------
    shape : (int, int, int)
        Voxels ``(Z, Y, X)``. The anatomy has its size in millimetres and the grid is centred on it: a field
        of view below about 340 x 250 mm cuts the body off, one shorter than 200 mm does not hold the whole
        liver.
    spacing : (float, float, float)
        Millimetres per voxel ``(sz, sy, sx)``.
    seed : int
        Same seed, same voxels. The anatomy varies by some per cent from seed to seed.
    lesions : int
        How many lesions to place in the liver, 10 to 40 mm across, apart from each other, as far as they fit.
    liver : bool
        Without it, bowel and fat lie in its place and ``labels`` is 0 everywhere.

    Returns
    -------
    Phantom

    Examples
    --------
    >>> ct, labels, affine = abdomen((16, 64, 64), (20.0, 6.0, 6.0), seed=1)
    >>> ct.shape, str(ct.dtype), int(labels.max())
    ((16, 64, 64), 'int16', 2)
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ArgumentError(f"shape: got {shape}; expected three positive numbers of voxels (Z, Y, X)")
    check_spacing(spacing)
    if lesions < 0:
        raise ArgumentError(f"lesions: got {lesions}; expected 0 or more")
    rng = np.random.default_rng(seed)
    canvas = _Canvas(shape, spacing, size=float(rng.uniform(0.96, 1.04)))
    _draw_body(canvas, rng)
    _draw_chest(canvas)
    labels = np.zeros(shape, np.uint8)
    if liver:
        _draw_liver(canvas, labels, rng, lesions)
    _draw_organs(canvas)
    labels[canvas.covered] = 0  # organs drawn over the liver's edge
    ct = np.clip(np.rint(_blur(canvas.image) + _noise(shape, rng)), -1024, 3071).astype(np.int16)
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    affine[:3, 3] = (np.array(shape[::-1]) - 1) / 2 * spacing[::-1] * np.array([1, 1, -1])
    return Phantom(ct, labels, affine)


class _Canvas:
    """The image being painted, and mm from its middle: z up, y to the back, x to the patient's left."""

    def __init__(self, shape: tuple[int, int, int], spacing: Point, size: float) -> None:
        self.image = np.full(shape, -1000, np.float32)
        self.covered = np.zeros(shape, bool)  # voxels that an organ drawn after the liver has taken
        axes = [(np.arange(n) - (n - 1) / 2) * s / size for n, s in zip(shape, spacing, strict=True)]
        self.z = axes[0].astype(np.float32)[:, None, None]
        self.y = axes[1].astype(np.float32)[None, :, None]
        self.x = axes[2].astype(np.float32)[None, None, :]
        self.edge = float(max(spacing[1:])) / size  # an edge blends over two pixels: partial volume

    def part(
        self, low: Sequence[float], high: Sequence[float]
    ) -> tuple[tuple[slice, ...], Array, Array, Array]:
        """Index of the box between two corners, and the coordinates in it."""
        index = []
        for axis, lo, hi in zip((self.z, self.y, self.x), low, high, strict=True):
            first, last = np.searchsorted(axis.ravel(), (lo, hi))
            index.append(slice(int(first), int(last)))
        z, y, x = index
        return (z, y, x), self.z[z], self.y[:, y], self.x[:, :, x]

    def paint(
        self, index: tuple[slice, ...], distance: Array, hu: float | Array, *, over_liver: bool = False
    ) -> None:
        """Blend ``hu`` in where ``distance`` (mm to the surface, negative inside) says so."""
        weight = np.clip(0.5 - distance / (2 * self.edge), 0, 1, dtype=np.float32)
        view = self.image[index]
        view += weight * (hu - view)
        if over_liver:
            self.covered[index] |= weight > 0.5

    def ellipsoid(self, centre: Point, radii: Point, hu: float, *, over_liver: bool = True) -> None:
        """Paint an ellipsoid."""
        margin = 2 * self.edge
        low = tuple(c - r - margin for c, r in zip(centre, radii, strict=True))
        high = tuple(c + r + margin for c, r in zip(centre, radii, strict=True))
        index, z, y, x = self.part(low, high)
        self.paint(index, _ball(z, y, x, centre, radii), hu, over_liver=over_liver)

    def tube(self, start: Point, end: Point, radius: float, hu: float, *, over_liver: bool = False) -> None:
        """Paint a cylinder with round ends."""
        margin = radius + 2 * self.edge
        low = tuple(min(a, b) - margin for a, b in zip(start, end, strict=True))
        high = tuple(max(a, b) + margin for a, b in zip(start, end, strict=True))
        index, z, y, x = self.part(low, high)
        a = np.array(start, np.float32)
        d = np.array(end, np.float32) - a
        z, y, x = z - a[0], y - a[1], x - a[2]
        along = np.clip((z * d[0] + y * d[1] + x * d[2]) / max(float(d @ d), 1e-6), 0, 1)
        distance = (
            np.sqrt((z - along * d[0]) ** 2 + (y - along * d[1]) ** 2 + (x - along * d[2]) ** 2) - radius
        )
        self.paint(index, distance, hu, over_liver=over_liver)


def _ball(z: Array, y: Array, x: Array, centre: Point, radii: Point) -> Array:
    """Estimate the distance to an ellipsoid's surface: 0 on it, and never too deep inside."""
    scaled = [((v - c) / r) ** 2 for v, c, r in zip((z, y, x), centre, radii, strict=True)]
    distance: Array = (np.sqrt(scaled[0] + scaled[1] + scaled[2]) - 1) * min(radii)
    return distance


def _ring(y: Array, x: Array, centre: tuple[float, float], radii: tuple[float, float]) -> Array:
    """Do the same for an ellipse in the axial plane."""
    q = np.sqrt(((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2)
    distance: Array = (q - 1) * min(radii)
    return distance


def _waves(z: Array, y: Array, x: Array, wavelength: float, rng: np.random.Generator) -> Array:
    """Make a smooth random field of about unit amplitude."""
    directions = rng.normal(size=(8, 3))
    k = directions / np.linalg.norm(directions, axis=1, keepdims=True) * 2 * np.pi / wavelength
    plane = z * k[:, 0] + y.reshape(1, -1, 1) * k[:, 1] + rng.uniform(0, 2 * np.pi, 8)  # [Z, Y, 8]
    row = x.reshape(1, -1) * k[:, 2:]  # [8, X]
    waves = np.sin(plane) @ np.cos(row) + np.cos(plane) @ np.sin(row)  # sin(plane + row), summed over the 8
    field: Array = (waves / 2).astype(np.float32)
    return field


# Centre and radii in mm.
_CAVITY = ((-6.0, 0.0), (84.0, 132.0))  # (y, x): what lies inside the muscles
_RIGHT_KIDNEY = ((-66.0, 44.0, -64.0), (52.0, 24.0, 24.0))  # (z, y, x)
_LEFT_KIDNEY = ((-50.0, 44.0, 64.0), (52.0, 24.0, 24.0))
_GALLBLADDER = ((-42.0, -30.0, -48.0), (28.0, 14.0, 14.0))


def _draw_body(canvas: _Canvas, rng: np.random.Generator) -> None:
    everywhere = (slice(None), slice(None), slice(None))
    z, y, x = canvas.z, canvas.y, canvas.x
    canvas.paint(everywhere, np.abs(y - 123 + (x / 45) ** 2) - 7, -700)  # table: foam between two shells
    canvas.paint(everywhere, np.abs(np.abs(y - 123 + (x / 45) ** 2) - 7) - 2, 80)
    canvas.paint(everywhere, _ring(y, x, (0, 0), (112, 166)), -100)  # subcutaneous fat
    canvas.paint(everywhere, _ring(y, x, (0, 0), (96, 146)), 55)  # muscles of the wall and the back
    canvas.paint(everywhere, _ring(y, x, *_CAVITY), -100)
    bowel = 14 * (0.35 - _waves(z, y, x, 45, rng))  # winding loops between which fat shows
    canvas.paint(everywhere, np.maximum(bowel, _ring(y, x, *_CAVITY) + 5), 40)
    for i in range(6):  # gas rises to the front
        centre = (float(rng.uniform(-150, -40)), float(rng.uniform(-72, -50)), -80 + 32.0 * i)
        canvas.ellipsoid(centre, (16, 7, 11), -850, over_liver=False)
    for side in (-1, 1):  # psoas
        canvas.tube((-40, 52, side * 26), (-200, 44, side * 46), 17, 55)


def _dome(y: Array, x: Array) -> Array:
    """Height of the diaphragm in mm."""
    right = 86 - ((x + 72) / 9) ** 2 / 3.2 - ((y + 2) / 9) ** 2 / 1.7
    left = 78 - ((x - 72) / 9) ** 2 / 2.6 - ((y + 2) / 9) ** 2 / 1.7
    height: Array = np.maximum(right, left)
    return height


def _draw_chest(canvas: _Canvas) -> None:
    everywhere = (slice(None), slice(None), slice(None))
    z, y, x = canvas.z, canvas.y, canvas.x
    cavity = _ring(y, x, *_CAVITY)
    lung = np.maximum(np.maximum(cavity, _dome(y, x) - z), 24 - np.abs(x - 2))  # the mediastinum stays
    canvas.paint(everywhere, lung, -850)
    index, z, y, x = canvas.part((-400, -140, -180), (400, 140, 180))
    angle = np.arctan2(y, x)
    level = (z - 60 * np.sin(angle)) / 27  # ribs slope down to the front
    band = (np.abs(level - np.rint(level)) - 0.19) * 27
    shell = np.abs(_ring(y, x, (-3, 0), (90, 139))) - 3.2
    lowest = (-60 - 70 * np.sin(angle)) - z  # no ribs below the costal arch, which rises to the front
    front = 25 - np.abs(x) + 0 * y  # nor at the breastbone and the spine
    canvas.paint(index, np.maximum(np.maximum(band, shell), np.maximum(lowest, front)), 450)


def _draw_liver(canvas: _Canvas, labels: Array, rng: np.random.Generator, lesions: int) -> None:
    index, z, y, x = canvas.part((-130, -110, -150), (120, 110, 110))
    if labels[index].size == 0:
        return
    right_lobe = _ball(z, y, x, (2, 0, -70), (84, 78, 62 * float(rng.uniform(0.92, 1.08))))
    left_lobe = _ball(z, y, x, (34, -42, 0), (38, 36, 72 * float(rng.uniform(0.9, 1.1))))
    blend = np.clip(0.5 + (left_lobe - right_lobe) / 50, 0, 1)  # a smooth union: no crease between the lobes
    distance = left_lobe + (right_lobe - left_lobe) * blend - 25 * blend * (1 - blend)
    distance += 2.5 * _waves(z, y, x, 90, rng)
    distance = np.maximum(distance, _ring(y, x, *_CAVITY) + 3)
    distance = np.maximum(distance, z - _dome(y, x) + 4)
    distance = np.maximum(distance, 34 - np.sqrt((y - 62) ** 2 + x**2))  # room for the spine
    for (centre, radii), gap in ((_RIGHT_KIDNEY, 5), (_GALLBLADDER, 1)):
        room = (radii[0] + gap, radii[1] + gap, radii[2] + gap)
        distance = np.maximum(distance, -_ball(z, y, x, centre, room))
    canvas.paint(index, distance, 110)
    inside = distance < 0
    labels[index][inside] = 1

    hilum = (5.0, 12.0, -28.0)
    for end in ((40, -20, -85), (10, 30, -105), (-35, 0, -90), (45, 20, -60), (30, -45, 10), (38, -48, 40)):
        tip = tuple(float(v + rng.uniform(-8, 8)) for v in end)
        middle = tuple((2 * a + b) / 3 for a, b in zip(hilum, tip, strict=True))
        _vessel(canvas, index, distance, hilum, middle, 5.0)  # type: ignore[arg-type]
        _vessel(canvas, index, distance, middle, tip, 3.0)  # type: ignore[arg-type]
    _draw_lesions(canvas, index, (z, y, x), distance, labels, rng, lesions)


def _vessel(
    canvas: _Canvas, index: tuple[slice, ...], liver: Array, start: Point, end: Point, radius: float
) -> None:
    before = canvas.image[index].copy()
    canvas.tube(start, end, radius, 165)
    view = canvas.image[index]
    np.copyto(view, before, where=liver > -2)  # vessels stay inside the liver


def _draw_lesions(
    canvas: _Canvas,
    index: tuple[slice, ...],
    axes: tuple[Array, Array, Array],
    liver: Array,
    labels: Array,
    rng: np.random.Generator,
    count: int,
) -> None:
    z, y, x = axes
    taken: Array = np.full(liver.shape, np.inf, np.float32)  # distance to the lesions so far
    for number in range(count):
        # The first lesion is the largest, so that space is there for it; sizes spread over 10 to 40 mm.
        radius = 20 - 15 * number / max(count - 1, 1) if count > 1 else 12.0
        free = np.flatnonzero(np.maximum(liver + 3, 12 - taken) < -radius)
        while free.size == 0 and radius > 5:
            radius = max(radius - 3, 5)
            free = np.flatnonzero(np.maximum(liver + 3, 12 - taken) < -radius)
        if free.size == 0:
            break
        at = np.unravel_index(int(rng.choice(free)), liver.shape)
        centre = (float(z[at[0], 0, 0]), float(y[0, at[1], 0]), float(x[0, 0, at[2]]))
        # Up to a tenth of the radius off a sphere, so that outlines are not perfect circles.
        bumps = 0.1 * radius * np.clip(_waves(z, y, x, 2.5 * radius, rng), -1, 1)
        sphere = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) - radius
        distance = np.maximum(sphere + bumps, liver + 1)
        canvas.paint(index, distance, 60 + float(rng.uniform(-12, 8)))
        labels[index][distance < 0] = 2
        taken = np.minimum(taken, sphere)


def _draw_organs(canvas: _Canvas) -> None:
    canvas.ellipsoid((100, -25, 30), (38, 45, 55), 150)  # heart
    canvas.ellipsoid((28, 28, 98), (52, 42, 25), 120)  # spleen
    canvas.ellipsoid((38, -35, 62), (46, 30, 34), 30)  # stomach ...
    canvas.ellipsoid((40, -50, 62), (34, 14, 24), -950)  # ... with a bubble of gas
    canvas.tube((-12, 8, -30), (22, 22, 60), 11, 95, over_liver=True)  # pancreas
    canvas.ellipsoid(*_GALLBLADDER, 8)
    for (z, y, x), radii in (_RIGHT_KIDNEY, _LEFT_KIDNEY):
        canvas.ellipsoid((z, y, x), radii, 180)
        canvas.ellipsoid((z, y - 2, 0.85 * x), (26, 9, 12), -60)  # sinus, towards the midline
    canvas.tube((-400, 32, -22), (400, 32, -22), 11.5, 150, over_liver=True)  # inferior vena cava
    canvas.tube((-400, 34, 12), (400, 34, 12), 10.5, 165, over_liver=True)  # aorta
    _draw_spine(canvas)


def _draw_spine(canvas: _Canvas) -> None:
    index, z, y, x = canvas.part((-1000, 35, -60), (1000, 120, 60))
    shape = canvas.image[index].shape
    vertebra = np.broadcast_to(_ring(y, x, (64, 0), (18, 23)), shape)
    canvas.paint(index, vertebra, 620, over_liver=True)  # cortical bone ...
    canvas.paint(index, vertebra + 2.5, 280)  # ... around cancellous bone
    disc = np.abs(z / 34 - np.rint(z / 34)) * 34 - 4  # negative inside the discs, every 34 mm
    canvas.paint(index, np.maximum(disc, vertebra), 90)
    arch = _ring(y, x, (88, 0), (13, 16))
    process = np.maximum(np.abs(x) - 3.5, np.abs(y - 100) - 9)
    wings = np.maximum(np.abs(y - 82) - 4, np.abs(x) - 36)
    canvas.paint(index, np.maximum(arch, 1 - disc), 480)
    canvas.paint(index, np.maximum(process, 4 - disc), 420)
    canvas.paint(index, np.maximum(wings, 7 - disc), 380)
    canvas.paint(index, np.broadcast_to(_ring(y, x, (89, 0), (8, 10)), shape), 30)  # canal


def _blur(image: Array) -> Array:
    """Apply a scanner's point spread in the axial plane: 1-4-1 along both axes, borders kept."""
    for axis in (1, 2):
        if image.shape[axis] < 3:
            continue
        a = np.moveaxis(image, axis, 0)
        out = np.moveaxis(np.empty_like(image), axis, 0)
        out[1:-1] = (a[:-2] + 4 * a[1:-1] + a[2:]) / 6
        out[0], out[-1] = a[0], a[-1]
        image = np.moveaxis(out, 0, axis)
    return image


def _noise(shape: tuple[int, int, int], rng: np.random.Generator) -> Array:
    """Make Gaussian noise that is correlated over neighbouring pixels, as reconstruction makes it."""
    white = rng.standard_normal((shape[0], shape[1] + 1, shape[2] + 1), dtype=np.float32)
    pairs = white[:, :-1] + white[:, 1:]
    noise: Array = (pairs[:, :, :-1] + pairs[:, :, 1:]) * np.float32(NOISE_SD_HU / 2)
    return noise
