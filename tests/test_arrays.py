"""Arrays, nibabel images and wrong things as sources."""

import sys
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

from trtseg.errors import ArgumentError, InputError
from trtseg.io import load
from trtseg.volume import Volume

SPACING = (5.0, 0.8, 0.7)
LPS = np.diag([-0.7, -0.8, 5.0, 1.0])


def ct(shape=(6, 20, 24), dtype=np.int16):
    """Make noise from air to bone, ``[Z, Y, X]``."""
    return np.random.default_rng(1).integers(-1000, 1000, shape).astype(dtype)


def test_spacing_means_canonical_order():
    hu = ct()
    volume = load(hu, spacing=SPACING)
    assert volume.spacing == SPACING
    assert volume.name == "array"
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")
    assert volume.geometry.shape == hu.shape
    assert volume.geometry.restore(volume.array).shape == hu.shape
    # The affine of the grid speaks of the array's own index order, (z, y, x).
    assert nib.aff2axcodes(volume.geometry.affine) == ("S", "P", "L")
    again = load(hu, affine=volume.geometry.affine)
    assert np.array_equal(again.array, volume.array)
    assert np.array_equal(again.affine, volume.affine)


def test_canonical_int16_is_not_copied():
    hu = ct()
    hu.setflags(write=False)
    assert load(hu, spacing=SPACING).array.__array_interface__["data"] == hu.__array_interface__["data"]
    other_order = np.ascontiguousarray(hu.T)
    assert not np.shares_memory(load(other_order, affine=LPS).array, other_order)
    index_order = hu.T  # a view of contiguous [Z,Y,X], as nibabel gives it
    assert np.shares_memory(load(index_order, affine=LPS).array, hu)
    assert np.shares_memory(load(index_order[..., None], affine=LPS).array, hu)


@pytest.mark.parametrize("dtype", ["i1", "<i2", ">i2", "i4", ">i4", "i8", "f2", "f4", ">f4", "f8"])
def test_types(dtype):
    hu = ct(dtype=np.int16).clip(-100, 100)
    volume = load(hu.astype(dtype), spacing=SPACING)
    assert volume.array.dtype == np.int16
    assert volume.array.dtype.isnative
    assert np.array_equal(volume.array, hu)


def test_rounding_and_saturation():
    hu = ct(dtype=np.float64)
    hu[0, 0, :8] = (-0.5, 0.5, 1.5, 2.5, 1e9, -1e9, 32767.6, -1023.5)
    assert load(hu, spacing=SPACING).array[0, 0, :8].tolist() == [0, 0, 2, 2, 32767, -32768, 32767, -1024]
    whole = ct(dtype=np.int64)
    whole[0, 0, :2] = (2**40, -(2**40))
    assert load(whole, spacing=SPACING).array[0, 0, :2].tolist() == [32767, -32768]


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_any_layout_read_only_and_untouched(dtype):
    base = ct((12, 40, 48), dtype)
    views = [base[::2, ::2, ::2], base[::-2, ::-2, ::2], np.asfortranarray(base)[6:, :20, 24:]]
    for view in views:
        view.setflags(write=False)
        before = view.copy()
        volume = load(view, spacing=SPACING)
        assert np.array_equal(volume.array, before)
        assert np.array_equal(view, before)
        assert volume.array.flags.c_contiguous


def test_affine_orders_and_one_frame():
    hu = ct()
    ras = load(np.flip(hu.T, (0, 1)), affine=np.diag([0.7, 0.8, 5.0, 1.0]))
    assert np.array_equal(ras.array, hu)
    assert ras.spacing == SPACING
    frame = load(np.flip(hu.T, (0, 1))[..., None], affine=np.diag([0.7, 0.8, 5.0, 1.0]))
    assert np.array_equal(frame.array, hu)
    assert frame.geometry.restore(frame.array).shape == (24, 20, 6, 1)


class ArrayLike:
    """Like a tensor of another library."""

    def __array__(self, dtype=None, copy=None):
        return ct()


def test_array_like():
    assert np.array_equal(load(ArrayLike(), spacing=SPACING).array, ct())


class OnAnotherDevice:
    """Like a tensor on a GPU."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert device tensor")


@pytest.mark.parametrize("module", ["nibabel.spatialimages", "SimpleITK"])
def test_an_array_while_another_thread_imports_what_makes_images(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, ModuleType(module))  # of which nothing is there yet
    assert load(ct(), spacing=SPACING).spacing == SPACING


def test_array_on_another_device():
    with pytest.raises(
        ArgumentError, match=r"got a OnAnotherDevice that NumPy cannot read .*expected one on the CPU"
    ):
        load(OnAnotherDevice(), spacing=SPACING)


def test_the_advice_about_a_tensor_that_numpy_cannot_read_helps():
    torch = pytest.importorskip("torch")
    hu = torch.arange(4 * 20 * 24).reshape(4, 20, 24) % 256 - 128.0
    for tensor in (hu.clone().requires_grad_(), hu.bfloat16()):
        with pytest.raises(ArgumentError, match=r"give \.detach\(\)\.cpu\(\)\.float\(\)$"):
            load(tensor, spacing=(1, 1, 1))
        assert np.array_equal(load(tensor.detach().cpu().float(), spacing=(1, 1, 1)).array, hu.numpy())


def test_volume_passes_through():
    volume = load(ct(), spacing=SPACING)
    assert load(volume) is volume


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "got neither; expected exactly one"),
        ({"affine": LPS, "spacing": SPACING}, "got both; expected exactly one"),
        ({"spacing": 1.0}, "expected three positive numbers"),
        ({"spacing": (1, 2)}, "expected three positive numbers"),
        ({"spacing": "544"}, "expected three positive numbers"),
        ({"spacing": (1, 0, 1)}, "expected three positive numbers"),
        ({"spacing": (1, np.nan, 1)}, "expected three positive numbers"),
        ({"affine": np.eye(3)}, "expected a 4x4 matrix"),
    ],
)
def test_bad_geometry_arguments(kwargs, message):
    with pytest.raises(ArgumentError, match=message):
        load(ct(), **kwargs)


def with_nan(n):
    hu = ct(dtype=np.float32)
    hu.flat[:n] = np.nan
    hu.flat[n] = np.inf
    return hu


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ct() > 0, "voxels of type bool"),
        (ct().astype(object), "voxels of type object"),
        (ct().astype(complex), "voxels of type complex128"),
        (ct().astype(np.longdouble), "voxels of type float128|longdouble"),
        (np.ma.masked_less(ct(), -999), "array: got a masked array, and voxels of it are masked"),
        (with_nan(4), "array: 5 of 2880 voxels are NaN or infinite"),
        (ct()[0], "2-D image of 20 x 24; expected a volume"),
        (ct()[:0], "array: got shape 0 x 20 x 24; expected at least one voxel"),
        (ct((6, 20, 24, 3)), "3 channels"),
        (ct((6, 20, 24, 7)), "7 frames; expected one: choose it"),
        (ct((1, 1, 1)), "axial slices of 1 x 1 pixels; expected at least 16"),
        (ct((6, 15, 24)), "axial slices of 15 x 24 pixels"),
        (
            (ct() + 1000) * 0.19 / 1000,
            "values run from 0 to 0, rounded to whole numbers, and 0 of 2880 voxels",
        ),
        (ct().clip(0, 255), "not in Hounsfield units: values run from 0 to 255 and 0 of 2880 voxels"),
        (np.zeros((2, 16, 16), np.uint8), "not in Hounsfield units"),
        (ct().clip(-49), "apply the rescale intercept"),
    ],
)
def test_bad_arrays(array, message):
    with pytest.raises(InputError, match=message):
        load(array, spacing=SPACING)


def test_an_image_of_complex_numbers_whose_header_says_that_they_are_to_be_floats():
    image = nib.Nifti1Image(ct().T.astype(complex), LPS, dtype=np.float32)
    with pytest.raises(InputError, match="voxels of type complex128"):
        load(image)


@pytest.mark.parametrize(("below", "good"), [(9, False), (10, True)])
def test_hounsfield_rule_is_one_in_a_thousand(below, good):
    hu = np.full((10, 25, 40), 40, np.int16)
    hu.flat[-below:] = -50
    if good:
        assert load(hu, spacing=SPACING).array is not None
    else:
        with pytest.raises(InputError, match="9 of 10000"):
            load(hu, spacing=SPACING)


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([1, 1, 0, 1.0]), "array: affine: the voxel spacing"),
        (np.full((4, 4), np.nan), "array: affine: holds NaN"),
        (np.diag([700, 700, 5000, 1.0]), "voxel spacing of 700 x 700 x 5000 mm; expected 0.01 to 100"),
        (np.diag([0.0007, 0.0007, 0.005, 1.0]), "give the geometry in millimetres"),
    ],
)
def test_bad_affine_names_the_input(affine, message):
    with pytest.raises(InputError, match=message):
        load(ct().T, affine=affine)


@pytest.mark.parametrize("source", [None, 3, [[1]], b"ct.nii", object()])
def test_wrong_source(source):
    with pytest.raises(ArgumentError, match=f"source: got a {type(source).__name__}; expected a path of an"):
        load(source)


def test_geometry_belongs_with_arrays_only(tmp_path):
    image = nib.Nifti1Image(ct().T, LPS)
    for source in ("ct.nii.gz", tmp_path / "ct.nii", image, load(ct(), spacing=SPACING)):
        with pytest.raises(ArgumentError, match="give them with arrays only"):
            load(source, spacing=SPACING)
        with pytest.raises(ArgumentError, match="give them with arrays only"):
            load(source, affine=LPS)


@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image, nib.Spm99AnalyzeImage, nib.MGHImage])
def test_images_in_memory(cls):
    volume = load(cls(np.flip(ct().T, 1), np.diag([-0.7, 0.8, 5.0, 1.0])))
    assert np.array_equal(volume.array, ct())
    assert (volume.geometry.source is not None) == cls.__name__.startswith("Nifti")
    assert isinstance(volume, Volume)
    codes = [warning.code for warning in volume.geometry.warnings]
    # Whoever makes an image of SPM says how it lies, as the .mat beside its files does.
    assert codes == []


def test_an_analyze_file_has_no_orientation_but_with_that_of_spm_beside_it(tmp_path):
    nib.save(nib.Spm99AnalyzeImage(np.flip(ct().T, 1), np.diag([-0.7, 0.8, 5.0, 1.0])), tmp_path / "a.img")
    assert (tmp_path / "a.mat").exists()
    assert load(tmp_path / "a.img").geometry.warnings == ()
    (tmp_path / "a.mat").unlink()
    assert [warning.code for warning in load(tmp_path / "a.img").geometry.warnings] == ["geometry-unknown"]


def test_image_without_an_affine():
    with pytest.raises(InputError, match=r"image: got an image without an affine; give .* spacing"):
        load(nib.Nifti1Image(ct().T, None))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".img"])
def test_images_from_files(tmp_path, ending):
    path = tmp_path / f"ct{ending}"
    cls = nib.Nifti1Pair if ending == ".img" else nib.Nifti1Image
    image = cls((ct().T + 1024).astype(np.uint16), LPS)
    image.header.set_slope_inter(1, -1024)
    nib.save(image, path)
    with open(tmp_path / "ct.hdr" if ending == ".img" else path, "r+b") as file:
        if not ending.endswith("gz"):  # nibabel changes the scale on saving: set it in the file
            file.seek(112)
            file.write(np.array([1, -1024], "<f4").tobytes())
    loaded = nib.load(path)
    want = np.asanyarray(loaded.dataobj)
    volume = load(loaded)
    assert np.array_equal(volume.geometry.restore(volume.array), np.rint(want))
    assert volume.name == path.name


def test_image_with_an_affine_of_its_own(tmp_path):
    stored = nib.Nifti1Image(ct().T, LPS)
    stored.set_qform(LPS, 1)
    nib.save(stored, tmp_path / "ct.nii")
    image = nib.load(tmp_path / "ct.nii")
    image.affine[2, 3] = 77  # nibabel allows it, and uses it when it saves
    volume = load(image)
    assert volume.affine[2, 3] == 77
    assert volume.geometry.source.get_best_affine()[2, 3] == 77
    assert volume.geometry.source["qform_code"] == 0  # some programs look at it first
    assert volume.warnings == load(nib.load(tmp_path / "ct.nii")).warnings
    assert image.header.get_best_affine()[2, 3] == 0


@pytest.mark.parametrize("ending", [".nii", ".img"])
def test_image_with_a_sform_that_is_no_geometry(tmp_path, ending):
    """The qform is used, as where trtseg reads the file itself."""
    cls = nib.Nifti1Pair if ending == ".img" else nib.Nifti1Image
    image = cls(ct().T, LPS)
    image.header.set_qform(LPS, 1)
    nib.save(image, tmp_path / f"ct{ending}")
    with (tmp_path / ("ct.hdr" if ending == ".img" else "ct.nii")).open("r+b") as file:
        file.seek(280)
        file.write(np.full(4, np.nan, "<f4").tobytes())  # srow_x
    for source in (tmp_path / f"ct{ending}", nib.load(tmp_path / f"ct{ending}")):
        volume = load(source)
        assert np.allclose(volume.affine, LPS)
        assert "geometry-conflict" in [warning.code for warning in volume.warnings]


@pytest.mark.parametrize(
    ("row", "message"),
    [([np.nan] * 4, "holds NaN"), ([0.0] * 4, "the voxel spacing is")],
)
def test_image_whose_own_affine_is_no_geometry(row, message):
    image = nib.Nifti1Image(ct().T, LPS)
    image.affine[1] = row
    with pytest.raises(InputError, match=f"image: affine: {message}"):
        load(image)


def test_an_analyze_file_whose_data_start_beyond_every_file(tmp_path):
    nib.save(nib.AnalyzeImage(ct().T, LPS), tmp_path / "ct.img")
    with (tmp_path / "ct.hdr").open("r+b") as file:
        file.seek(108)
        file.write(np.array(1e30, "<f4").tobytes())  # vox_offset
    with pytest.raises(InputError, match=r"ct\.img: cannot be read .*fetch it again"):
        load(tmp_path / "ct.img")


def test_truncated_file_behind_an_image(tmp_path):
    for ending in (".nii", ".nii.gz"):
        path = tmp_path / f"ct{ending}"
        nib.save(nib.Nifti1Image(ct().T, LPS), path)
        path.write_bytes(path.read_bytes()[:-1500])
        with pytest.raises(InputError, match=rf"ct{ending}: cannot be read .*fetch it again"):
            load(nib.load(path))
