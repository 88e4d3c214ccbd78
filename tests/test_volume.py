"""Geometry: every orientation, there and back, against the affine as the only oracle."""

import itertools
import math
from contextlib import nullcontext

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtseg.errors import ArgumentError, InputError
from trtseg.fit import Fit
from trtseg.volume import Geometry, Volume, check_same_grid, check_spacing, spacing_mm, voxel_ml

ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
SHAPE = (5, 4, 3)  # of the input; all axes differ


def rotation(x, y, z):
    """Rotate by three angles in degrees."""
    (a, b, c), (d, e, f) = np.cos(np.radians((x, y, z))), np.sin(np.radians((x, y, z)))
    return (
        np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
        @ np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
        @ np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    )


# Columns: steps of canonical x (to the left), y (to the back), z (to the head) in RAS mm.
ALIGNED = np.diag([-0.7, -0.8, 2.5])
OBLIQUE = rotation(12, -17, 23) @ ALIGNED
SHEARED = ALIGNED @ np.array([[1, 0, 0], [0, 1, 2.5 / 0.8 * math.tan(math.radians(24))], [0, 0, 1]])
STEPS = {"aligned": ALIGNED, "oblique": OBLIQUE, "sheared": SHEARED, "both": rotation(5, 8, -9) @ SHEARED}


def oriented(steps, order, signs):
    """Make the affine of an input whose axis n runs along ``signs[n]`` times canonical axis ``order[n]``."""
    affine = np.eye(4)
    affine[:3, :3] = steps[:, order] * signs
    affine[:3, 3] = (31.5, -120.25, 900.125)
    return affine


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
@pytest.mark.parametrize("trailing", [(), (1,), (1, 1)])
def test_round_trip_and_world_coordinates(steps, order, signs, trailing):
    affine = oriented(steps, order, signs)
    geometry = Geometry.from_affine(SHAPE + trailing, affine)
    assert geometry.axes == tuple(order.index(2 - a) for a in range(3))
    assert geometry.flips == tuple(signs[order.index(2 - a)] < 0 for a in range(3))

    array = np.arange(60, dtype=np.int16).reshape(SHAPE + trailing)
    canonical = geometry.canonical(array)
    restored = geometry.restore(canonical)
    assert canonical.shape == geometry.canonical_shape
    assert restored.shape == geometry.shape
    assert np.array_equal(restored, array)
    assert np.shares_memory(canonical, array)
    assert restored.__array_interface__["data"] == array.__array_interface__["data"]
    assert np.array_equal(geometry.canonical(array.reshape(SHAPE)), canonical)

    to_world, to_input = geometry.canonical_affine(), np.linalg.inv(affine)
    for z, y, x in np.ndindex(canonical.shape):
        index = to_input @ to_world @ (x, y, z, 1)
        i, j, k = np.rint(index[:3]).astype(int)
        assert np.allclose(index[:3], (i, j, k), atol=1e-6)
        assert canonical[z, y, x] == array.reshape(SHAPE)[i, j, k]
    assert nib.aff2axcodes(to_world) == ("L", "P", "S")
    assert np.allclose(to_world[:3, :3], steps)
    assert math.isclose(np.linalg.det(to_world[:3, :3]), np.linalg.det(steps))


@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    tilt=st.floats(-40, 40),
)
def test_any_affine_gives_a_permutation(angles, spacing, tilt):
    affine = np.eye(4)
    shear = np.array([[1, 0, 0], [0, 1, math.tan(math.radians(tilt))], [0, 0, 1]])
    affine[:3, :3] = rotation(*angles) @ shear @ np.diag(spacing)
    geometry = Geometry.from_affine(SHAPE, affine)
    array = np.arange(60).reshape(SHAPE)
    assert sorted(geometry.axes) == [0, 1, 2]
    assert np.array_equal(geometry.restore(geometry.canonical(array)), array)
    assert math.isclose(abs(np.linalg.det(geometry.canonical_affine())), abs(np.linalg.det(affine)))


def test_orientation_is_never_guessed_from_the_shape():
    affine = oriented(ALIGNED, (2, 0, 1), (1, 1, 1))  # axis 0 is Z although it is the longest
    geometry = Geometry.from_affine((512, 20, 30), affine)
    assert geometry.canonical_shape == (512, 30, 20)


@pytest.mark.parametrize(
    ("affine", "error", "message"),
    [
        (np.eye(3), ArgumentError, r"got shape \(3, 3\)"),
        ("nonsense", ArgumentError, "expected a 4x4 array of numbers"),
        (np.full((4, 4), np.nan), InputError, "NaN or infinity"),
        (np.diag([1, 1, np.inf, 1]), InputError, "NaN or infinity"),
        (np.diag([1, 1, 0, 1.0]), InputError, "voxel spacing"),
        (np.diag([1, 1, 1, 2.0]), InputError, "last row"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), InputError, "singular"),
        # Tiny voxels are not singular voxels, and large ones do not hide it.
        (
            np.array([[900, 900, 0, 0], [900, 900, 0, 0], [0, 0, 900, 0], [0, 0, 0, 1]]),
            InputError,
            "singular",
        ),
    ],
)
def test_bad_affine(affine, error, message):
    with pytest.raises(error, match=message):
        Geometry.from_affine(SHAPE, affine)


def test_tiny_voxels_are_not_singular():
    assert Geometry.from_affine(SHAPE, np.diag([1e-6, 1e-6, 1e-6, 1])).axes == (2, 1, 0)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((1, 4, 5, 6), (4, 5, 6)),  # a channel axis
        ((1, 1, 4, 5, 6), (4, 5, 6)),
        ((1, 1, 5, 6), (1, 5, 6)),
        ((1, 4, 1, 6), (4, 1, 6)),
        ((1, 4, 5, 1), (1, 4, 5)),  # a single column, with a frame
        ((1, 4, 5, 1, 1), (1, 4, 5)),
        ((4, 5, 6, 1), (4, 5, 6)),
        ((1, 4, 5, 6, 1), (4, 5, 6)),
        ((1, 1, 1, 1), (1, 1, 1)),
    ],
)
def test_ones_before_and_after_the_axes_of_space(shape, grid):
    geometry = Geometry.from_affine(shape, np.eye(4))
    assert geometry.grid_shape == grid
    array = np.arange(np.prod(shape)).reshape(shape)
    assert np.array_equal(geometry.restore(geometry.canonical(array)), array)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 4), "2-D image of 4 x 4; expected a volume"),
        ((4, 4, 0), "got shape 4 x 4 x 0; expected at least one voxel"),
        ((4, 4, 4, 2), "2 frames; expected one"),
        ((2, 4, 5, 6), "6 frames; expected one"),
        ((4, 5, 6, 3), "3 channels"),
    ],
)
def test_bad_shape(shape, message):
    with pytest.raises(InputError, match=message):
        Geometry.from_affine(shape, np.eye(4))
    with pytest.raises(InputError, match=message):  # and not that the spacing is no spacing of a volume
        Geometry.from_spacing(shape, (1,) * len(shape))


def test_arrays_of_another_shape_are_refused():
    geometry = Geometry.from_affine(SHAPE, np.diag([-1, -1, 1, 1]))
    with pytest.raises(ArgumentError, match=r"got shape \(3, 4, 5\); expected the input's \(5, 4, 3\)"):
        geometry.canonical(np.zeros((3, 4, 5)))
    with pytest.raises(ArgumentError, match="expected the input's"):
        geometry.canonical(np.zeros((*SHAPE, 2)))
    with pytest.raises(ArgumentError, match=r"expected \[Z,Y,X\] = \(3, 4, 5\)"):
        geometry.restore(np.zeros(SHAPE))


def test_affine_is_the_geometrys_own():
    affine = np.diag([-1.0, -1, 1, 1])
    geometry = Geometry.from_affine(SHAPE, affine)
    affine[0, 0] = 5
    assert geometry.affine[0, 0] == -1
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 5


def test_volume_spacing_and_size():
    for steps, step in ((ALIGNED, 2.5), (OBLIQUE, 2.5), (SHEARED, 2.5 / math.cos(math.radians(24)))):
        geometry = Geometry.from_affine(SHAPE, oriented(steps, (2, 0, 1), (-1, 1, -1)))
        volume = Volume(
            np.zeros(geometry.canonical_shape, np.int16), geometry.canonical_affine(), geometry, "ct"
        )
        assert volume.spacing == pytest.approx((2.5, 0.8, 0.7))  # from plane to plane
        assert all(type(s) is float for s in volume.spacing)
        assert spacing_mm(geometry.affine) == pytest.approx((step, 0.7, 0.8))  # in the input's own order
        assert voxel_ml(geometry.affine) == pytest.approx(volume.voxel_ml)
        assert volume.voxel_ml == pytest.approx(0.7 * 0.8 * 2.5 / 1000)  # shear keeps the volume


def test_volume_refuses_other_arrays():
    geometry = Geometry.from_affine(SHAPE, np.diag([-1, -1, 1, 1]))
    affine = geometry.canonical_affine()
    for array in (
        np.zeros((3, 4, 5), np.float32),
        np.zeros(SHAPE, np.int16),
        np.zeros((3, 5, 4), np.int16).transpose(0, 2, 1),
        np.zeros((3, 4, 5), ">i2"),
    ):
        with pytest.raises(ArgumentError, match="expected C-contiguous, aligned int16"):
            Volume(array, affine, geometry)


def test_a_volume_has_the_affine_of_its_geometry():
    geometry = Geometry.from_affine(SHAPE, np.diag([-1, -1, 1, 1]))
    array = np.zeros(geometry.canonical_shape, np.int16)
    with pytest.raises(
        ArgumentError, match=r"^affine: got .*; expected that of the geometry, .*trtseg.load makes"
    ):
        Volume(array, np.diag([-1, -1, 10, 1]), geometry)


def test_grids_are_compared_by_where_their_voxels_lie():
    def geometry(shape=(16, 17, 4), shift=0.0, scale=1.0, high=1.0):
        affine = np.diag([-0.8, -0.9, 5.0, 1.0]) * [scale, 1, high, 1]
        affine[0, 3] = shift
        return Geometry.from_affine(shape, affine)

    check_same_grid("a", geometry(), "b", geometry(shift=0.05))  # 0.08 mm is a tenth of a voxel
    with pytest.raises(InputError, match=r"a: its affine is not that of b: .* up to 0\.4 mm apart"):
        check_same_grid("a", geometry(shift=0.4), "b", geometry())
    with pytest.raises(InputError, match=r"up to 0\.12 mm apart"):  # 1 % of 0.8 mm, 15 voxels on
        check_same_grid("a", geometry(scale=1.01), "b", geometry())
    for share, message in (
        (0.0019, None),
        (0.0021, "its affine is not that of b"),
    ):  # of a step, however long it is
        for other in (geometry(scale=1 + share), geometry(high=1 + share)):
            with pytest.raises(InputError, match=message) if message else nullcontext():
                check_same_grid("a", other, "b", geometry())
    with pytest.raises(InputError, match=r"a: its grid of 16 x 17 x 5 voxels .* is not that of b, 16 x 17"):
        check_same_grid("a", geometry((16, 17, 5)), "b", geometry())
    turned = Geometry.from_affine((4, 16, 17), geometry().affine[:, [2, 0, 1, 3]])
    check_same_grid("a", turned, "b", geometry())  # the same voxels in another index order


@pytest.mark.parametrize(
    "spacing", [1.0, None, "ab", (1,), (1, 2, 3, 4), (1, 0), (1, -2), (1, np.nan), (1, np.inf)]
)
def test_a_spacing_is_positive_for_every_axis(spacing):
    message = "spacing: got .*; expected {} positive numbers .*{} in mm"
    with pytest.raises(ArgumentError, match=message.format("two", r"\(sy, sx\)")):
        check_spacing(spacing, "yx")
    with pytest.raises(ArgumentError, match=message.format("three", r"\(sz, sy, sx\)")):
        check_spacing(spacing)
    with pytest.raises(ArgumentError, match=message.format("two", r"\(sy, sx\)")):
        Fit.whole_field_of_view((4, 4), spacing, (8, 8))
    assert check_spacing(np.array([1, 2, 3])) == (1.0, 2.0, 3.0)
