"""The phantom must look like a CT to whatever reads it, and be the same everywhere."""

import numpy as np
import pytest
from scipy import ndimage

from trtseg import load
from trtseg.errors import ArgumentError
from trtseg.phantom import abdomen

SMALL = ((32, 128, 128), (10.0, 3.0, 3.0))


def test_liver_and_lesions_have_realistic_sizes_and_densities():
    ct, labels, _ = abdomen(seed=1)
    liver = labels == 1
    assert ct.shape == labels.shape == (64, 256, 256)
    assert (ct.dtype, labels.dtype) == (np.int16, np.uint8)
    assert 1200 < np.count_nonzero(labels) * 5 * 1.5 * 1.5 / 1000 < 2000  # mL
    assert 100 < ct[liver].mean() < 120
    assert 45 < ct[labels == 2].mean() < 75
    parts, _ = ndimage.label(labels > 0, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    assert sizes.max() > 0.99 * sizes.sum()


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_holds_as_many_lesions_as_asked_for(seed, count):
    _, labels, _ = abdomen((48, 128, 128), (6.0, 3.0, 3.0), seed=seed, lesions=count)
    assert ndimage.label(labels == 2, np.ones((3, 3, 3)))[1] == count


def test_the_patient_lies_as_in_canonical_order():
    ct, labels, _ = abdomen(*SMALL)
    z, _, x = np.nonzero(labels)
    assert x.mean() < 60, "the liver is on the patient's right: low x"
    spine = np.argwhere(ct > 250)
    assert spine[:, 1].mean() > 70, "the spine is at the back: high y"
    lung = np.argwhere((ct < -700) & (ct > -950))
    assert lung[:, 0].mean() > z.mean(), "the lungs are above the liver: high z"


def test_all_of_a_cts_densities_occur():
    ct, _, _ = abdomen(*SMALL, seed=3)
    for name, low, high, fraction in [
        ("air", -1024, -950, 0.2),
        ("lung", -900, -800, 0.02),
        ("fat", -130, -70, 0.05),
        ("muscle", 30, 80, 0.02),
        ("kidney", 150, 210, 0.002),
        ("bone", 300, 800, 0.002),
    ]:
        assert np.count_nonzero((ct >= low) & (ct <= high)) > fraction * ct.size, name


def test_same_seed_same_voxels():
    first, again, other = abdomen(*SMALL, seed=5), abdomen(*SMALL, seed=5), abdomen(*SMALL, seed=6)
    assert (first.ct == again.ct).all()
    assert (first.labels == again.labels).all()
    assert (first.labels != other.labels).any()


def test_without_a_liver_there_is_nothing_to_find():
    ct, labels, _ = abdomen(*SMALL, liver=False)
    assert not labels.any()
    _, with_liver, _ = abdomen(*SMALL)
    assert ct[with_liver == 1].mean() < 60


def test_affine_is_canonical_and_centred():
    ct, _, affine = abdomen((4, 20, 30), (5.0, 2.0, 3.0))
    assert (affine[:3, :3] == np.diag([-3.0, -2.0, 5.0])).all()
    assert np.allclose(affine @ [14.5, 9.5, 1.5, 1], [0, 0, 0, 1])
    volume = load(np.ascontiguousarray(ct.transpose(2, 1, 0)), affine=affine)
    assert (volume.array == ct).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 64, 64), (3, 2, 5), (7, 33, 31)])
def test_any_grid_can_be_drawn_on(shape):
    ct, labels, _ = abdomen(shape, (10.0, 6.0, 6.0))
    assert ct.shape == labels.shape == shape


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"shape": (0, 8, 8)}, "shape"),
        ({"shape": (8, 8)}, "shape"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing"),
        ({"spacing": (1.0, float("nan"), 1.0)}, "spacing"),
        ({"lesions": -1}, "lesions"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ArgumentError, match=f"^{named}: got"):
        abdomen(**arguments)
