"""A wrong volume is never silent: geometry, values, slices and livers that are not whole."""

import nibabel as nib
import numpy as np
import pytest
from nifti_files import image, save

from trtseg.errors import InputError
from trtseg.io import load
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
        ({"quatern_b": 1, "quatern_c": 0, "quatern_d": 0}, ["geometry-conflict"]),
        ({"qoffset_x": 30}, ["geometry-conflict"]),
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
    if fields.get("srow_x") == 0:
        assert np.allclose(volume.geometry.affine, AFFINE, atol=1e-5)
        assert codes(load(nib.load(path)).warnings) == expected


def test_identity_and_planes_of_a_tilted_gantry():
    assert codes(load(body().T, affine=np.eye(4)).warnings) == ["geometry-unknown"]
    tilted = AFFINE.copy()
    tilted[1, 2] = 5 * np.tan(np.radians(15))
    assert spacing_zyx(load(body().T, affine=tilted).affine) == pytest.approx((5, 0.8, 0.7))


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
    masked = hu.copy()
    masked[:, :, 40:] = -1000
    assert found(labels, masked) == ["liver-cut"]
    assert found(labels, steps={"largest_liver": {"removed_ml": 453.0}}) == ["liver-parts"]
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
