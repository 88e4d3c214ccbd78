"""A wrong volume is never silent: geometry, values, slices and livers that are not whole."""

import re

import nibabel as nib
import numpy as np
import pytest
from nifti_files import image, save

from trtseg.errors import InputError
from trtseg.io import load
from trtseg.io.checks import check_slices, find_jumps
from trtseg.io.hounsfield import check_hu
from trtseg.labels.components import bounding_box
from trtseg.labels.whole import _at_edges, check_liver
from trtseg.volume import spacing_zyx


def codes(warnings):
    return [warning.code for warning in warnings]


def body():
    """Air around a body of fat and muscle, [Z, Y, X]."""
    hu = np.random.default_rng(0).normal(0, 12, (12, 64, 64))
    hu -= 1000
    hu[:, 8:56, 8:56] += 900
    hu[:, 14:50, 14:50] += 150
    return np.rint(hu).astype(np.int16)


AFFINE = np.diag([-0.7, -0.8, 5.0, 1.0])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"pixdim": [1, 1, 1, 1, 0, 0, 0, 0]}, ["geometry-conflict"]),
        ({"srow_x": 0, "srow_y": 0, "srow_z": 0}, ["geometry-conflict"]),
        ({"srow_x": [-0.7, 0, 0, np.nan]}, ["geometry-conflict"]),
        ({"srow_z": [0, 0, np.inf, 0]}, ["geometry-conflict"]),
        ({"quatern_b": 1, "quatern_c": 0, "quatern_d": 0}, ["geometry-conflict"]),
        ({"qoffset_x": 30}, ["geometry-conflict"]),
        ({"qoffset_x": 0.08}, ["geometry-conflict"]),  # more than a tenth of the shortest step
        ({"qoffset_x": 0.06}, []),
        ({"sform_code": 0, "quatern_d": 1.0005}, []),
        ({"sform_code": 0, "qform_code": 0}, ["geometry-unknown"]),
    ],
)
def test_headers(tmp_path, fields, expected):
    img = image(body().T, AFFINE)
    img.set_qform(AFFINE, 1)
    path = save(tmp_path, img, **fields)
    volume = load(path)
    assert codes(volume.warnings) == expected
    assert volume.spacing == pytest.approx((5, 0.8, 0.7), rel=1e-3) or "pixdim" in fields
    if {"srow_x", "srow_z"} & fields.keys():  # its sform is no geometry
        assert np.allclose(volume.geometry.affine, AFFINE, atol=1e-5)
        assert codes(load(nib.load(path)).warnings) == expected


def test_identity_and_planes_of_a_tilted_gantry():
    assert codes(load(body().T, affine=np.eye(4)).warnings) == ["geometry-unknown"]
    tilted = AFFINE.copy()
    tilted[1, 2] = 5 * np.tan(np.radians(15))
    assert spacing_zyx(load(body().T, affine=tilted).affine) == pytest.approx((5, 0.8, 0.7))


@pytest.mark.parametrize(
    ("size", "grid", "unknown"),
    [
        ((64, 64), {"spacing": (1, 1, 1)}, False),
        ((128, 128), {"spacing": (1, 1, 1)}, True),  # as scanners have
        ((64, 128), {"spacing": (1, 1, 1)}, False),
        ((128, 128), {"spacing": (1.01, 1, 1)}, False),
        ((128, 128), {"spacing": (1, 1, 0.99)}, False),
        ((64, 64), {"affine": np.diag([-1.0, -1, 1, 1])}, True),  # no origin either
        ((64, 64), {"affine": np.diag([-1.0, -1, 1, 1]) + np.eye(4, k=1) * [0, 0, 0, 9]}, False),
        ((128, 128), {"affine": np.diag([-1.0, -1, 1, 1]) + np.eye(4, k=1) * [0, 0, 0, 9]}, True),
    ],
)
def test_a_spacing_that_stands_for_an_unknown_one(size, grid, unknown):
    hu = np.tile(body(), (1, 2, 2))[:, : size[0], : size[1]]
    volume = load(hu.T if "affine" in grid else hu, **grid)
    assert ("geometry-unknown" in codes(volume.warnings)) == unknown


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda h: h, []),
        (lambda h: h - 1024, InputError),
        (lambda h: h + 1024, InputError),
        (lambda h: np.where(h < -900, -2000, h + 1024), InputError),
        (lambda h: (h.clip(-160, 240) + 160) * 255 // 400, InputError),
        (lambda h: h * 2, ["values-scale"]),
    ],
)
def test_values(fault, expected):
    hu = fault(body().astype(np.int32)).astype(np.int16)
    if expected is InputError:
        with pytest.raises(InputError, match="not in Hounsfield units"):
            list(check_hu("ct", hu))
    else:
        assert codes(check_hu("ct", hu)) == expected


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        (lambda h: h.clip(max=60), "values-clipped", "end at -1047 and 60 HU"),
        (lambda h: h.clip(min=-880), "values-clipped", "end at -880 and 99 HU"),
        (
            lambda h: h[:, 9:55, 9:55],
            "values-clipped",
            "end at -147 and 99 HU",
        ),  # 246 values are a window of 8 bits
        (lambda h: h.clip(min=-920), None, ""),
        (lambda h: np.where(h > 50, 900, h), "values-padding", "are exactly 900 HU"),  # no window ends there
        (lambda h: np.where(np.arange(12)[:, None, None] < 8, h, 0), "values-padding", "33% .* exactly 0 HU"),
        (lambda h: np.where(np.arange(12)[:, None, None] < 8, h, -1000), None, ""),
        (lambda h: np.where(np.arange(64) % 25, h, 30), None, ""),  # less than 5 %
        (lambda h: np.where(np.arange(64) % 15, h, 30), "values-padding", "8% .* exactly 30 HU"),
        (lambda h: h // 2 * 2 + 1, "values-scale", "all of them are multiples of 2, but for an offset"),
        (lambda h: h + 150, None, ""),
        (lambda h: h + 250, "values-scale", "the median of tissue is 285"),
        (lambda h: h - 250, "values-scale", "near -1250 and near -215"),
        (lambda h: h * 6 // 5, None, ""),
        (lambda h: h * 3 // 2, "values-scale", "near -1500 and near 52"),
        (lambda h: h * 3 // 5, "values-scale", "near -600 and near 21"),
        (lambda h: np.where(h < -900, -1024, h + 1024), "values-scale", "the median of tissue is 1059"),
    ],
)
def test_values_with_one_fault(fault, code, text):
    found = list(check_hu("ct", np.ascontiguousarray(fault(body().astype(np.int32)), np.int16)))
    assert codes(found) == [code] * (code is not None)
    for warning in found:
        assert re.search(text, warning.text), warning.text


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda h: np.where(h < -900, -2000, h + 1024),
            "and 0 of 49152 voxels besides padding of -2000 are at",
        ),
        (lambda h: np.where(h < -48, 30, h), "and 0 of 49152 voxels are at or below -50"),
        (lambda h: h + 450, "most voxels lie near -550 and near 485"),
        (lambda h: h - 450, "most voxels lie near -1450 and near -415"),
    ],
)
def test_values_that_are_refused(fault, message):
    with pytest.raises(InputError, match=message):
        list(check_hu("ct", fault(body().astype(np.int32)).astype(np.int16)))


def test_values_of_a_large_ct_are_counted_in_an_even_sample():
    hu = np.tile(body(), (2, 6, 6))  # 3.5 million voxels
    hu[21:] = 0  # 3 of 24 slices
    (warning,) = check_hu("ct", hu)
    assert warning.text.startswith("12% of the voxels are exactly 0 HU")


@pytest.mark.parametrize("seed", range(5))
def test_a_jump_is_a_step_that_is_larger_than_those_around_it(seed):
    rng = np.random.default_rng(seed)
    small = 40 * np.cumsum(rng.normal(1, 0.2, (30, 1, 1)), axis=0) * (rng.random((1, 6, 6)) < 0.2)
    few = (small[np.sort(rng.choice(30, 22, replace=False))] - 200).astype(np.int16)
    shown = np.minimum(np.maximum(few.astype(int), -200), 300)
    steps = [np.abs(shown[z + 1] - shown[z]).mean() for z in range(21)]
    expected = []
    for z in range(21):
        near = [steps[n] for n in range(21) if n != z and abs(n - z) <= 5]
        if np.median(near) > 0 and steps[z] > 1.4 * np.median(near):
            expected.append(z)
    assert expected
    assert find_jumps(few) == expected
    assert find_jumps(few[:6]) == []  # a step with four others says nothing


def test_slices():
    blank, doubled = body(), body()
    blank[5:7] = -1000
    doubled[5] = doubled[4]
    assert codes(load(blank, spacing=(5, 0.8, 0.7)).warnings) == ["slices-blank"]
    assert codes(load(doubled, spacing=(5, 0.8, 0.7)).warnings) == ["slices-doubled"]
    blank[5:7, 1, 1] = -999, -998  # no slice is blank, and none is another's copy, with a voxel of its own
    doubled[5, 1, 1] += 1
    for hu in (blank, doubled):
        assert not {"slices-blank", "slices-doubled"} & {*codes(load(hu, spacing=(5, 0.8, 0.7)).warnings)}


def test_slices_are_named_by_their_numbers_from_the_feet_whatever_is_blank_there():
    hu = np.zeros((14, 40, 40), np.int16)
    hu[:, 10:30] = 30 * np.arange(14)[:, None, None] - 200  # the same step from slice to slice
    hu[:2] = -1000
    blank, doubled, jump = hu.copy(), hu.copy(), hu.copy()
    blank[5:7] = -1000
    doubled[5] = doubled[4]
    jump[8:, 10:30] += 60
    for ct, text in (
        (blank, "Slices 5, 6 held nothing"),
        (doubled, "Slice 4 came twice in a row"),
        (jump, "The picture changes suddenly after slice 7:"),
    ):
        assert next(check_slices(ct)).text.startswith(text)


def test_livers():
    hu, labels = body(), np.zeros((12, 64, 64), np.uint8)
    labels[2:10, 20:40, 20:40] = 1
    spacing = (5, 8.0, 8.0)

    def found(labels, hu=hu, ml=1024.0, steps=None):
        return codes(check_liver(labels, hu, spacing, ml, steps or {}))

    assert found(labels) == []
    assert found(labels, ml=5000.0) == found(labels, ml=200.0) == ["liver-size"]
    assert found(labels * 0, ml=0.0) == ["liver-none"]
    assert found(labels[3:], hu[3:]) == found(labels[:, 20:], hu[:, 20:]) == ["liver-cut"]
    assert found(labels[3:], hu[3:], ml=200.0) == ["liver-cut"]  # of a part nobody knows how large it is
    assert found(labels[3:], hu[3:], ml=5000.0) == ["liver-cut", "liver-size"]
    for ml, expected in (
        (19.9, "none"),
        (20.0, "size"),
        (299.0, "size"),
        (300.0, ""),
        (4000.0, ""),
        (4001.0, "size"),
    ):
        assert found(labels, ml=ml) == [f"liver-{expected}"] * bool(expected)
    masked = hu.copy()
    masked[:, :, 40:] = -1000
    assert found(labels, masked) == ["liver-cut"]
    for ml, dropped in ((400.0, 50.0), (500.0, 50.0), (1000.0, 100.0)):  # mL, and a tenth of the rest
        for removed, expected in ((dropped, []), (dropped + 0.1, ["liver-parts"])):
            assert found(labels, ml=ml, steps={"largest_liver": {"removed_ml": removed}}) == expected
    assert found(labels, steps={"largest_liver": "off"}) == []
    tip = labels[2:].copy()
    for pixels, expected in ((1, []), (2, ["liver-cut"])):  # 64 and 128 mm2, from 100 on it is worth a word
        tip[0] = 0
        tip[0, 30, 30 : 30 + pixels] = 1
        assert found(tip, hu[2:]) == found(tip[::-1], hu[2:][::-1]) == expected
    labels[1:11] = labels[5]
    for end in (0, -1):  # a slice beyond shows that the liver ends, unless it is blank
        blank = hu.copy()
        blank[end] = -1000
        assert (found(labels), found(labels, blank)) == ([], ["liver-cut"])


@pytest.mark.parametrize("seed", range(40))
def test_the_area_at_the_edges_is_that_of_every_voxel_looked_at(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, [4, 8, 8]))
    sz, sy, sx = 2.0, 0.7, 0.9
    labels = (rng.random(shape) < rng.choice([0.2, 0.5, 0.9])).astype(np.uint8)
    labels[rng.integers(shape[0]), rng.integers(shape[1]), rng.integers(shape[2])] = 2
    hu = rng.choice([-1000, -1000, -950, 0], shape).astype(np.int16)
    area = 0.0
    for z, y, x in np.argwhere(labels):
        for dy, dx, mm2 in ((-1, 0, sz * sx), (1, 0, sz * sx), (0, -1, sz * sy), (0, 1, sz * sy)):
            beside, beyond = (y + dy, x + dx), (y + 2 * dy, x + 2 * dx)
            if not (0 <= beside[0] < shape[1] and 0 <= beside[1] < shape[2]):
                area += mm2
            elif 0 <= beyond[0] < shape[1] and 0 <= beyond[1] < shape[2] and not labels[z][beside]:
                area += mm2 * (hu[z][beyond] <= -900 and hu[z][beside] == hu[z][beyond])
    assert _at_edges(labels, hu, bounding_box(labels), (sz, sy, sx)) == pytest.approx(area)
