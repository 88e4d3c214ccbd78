"""CT in NIfTI files: which files are read and how, and which are refused and why."""

import gzip
import itertools
import stat
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from isal import igzip
from nifti_files import LPS, ct, image, raw_header, save

from trtseg.errors import InputError
from trtseg.io import load, read_labels, write_nifti

ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "CT.NII.GZ", "Ct.Nii"])
def test_versions_orders_endings(tmp_path, cls, order, name):
    path = save(tmp_path, image(cls=cls, order=order), name if name != "CT.NII.GZ" else "ct.nii.gz")
    path = path.rename(tmp_path / name)
    volume = load(path)
    assert volume.array.flags.c_contiguous
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, ct().T)
    assert volume.name == name
    assert volume.spacing == pytest.approx((5.0, 0.8, 0.7))
    assert isinstance(volume.geometry.source, cls.header_class)
    assert np.array_equal(load(str(path)).array, volume.array)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("scale", [(np.nan, np.nan), (0, 5), (1, 0), (1, -1024), (0.5, -300.25), (-2, 3)])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_types_and_scales(tmp_path, dtype, scale, order):
    stored = (
        ct() // 10
        if dtype == "i1"
        else ct() // 10 + 101
        if dtype == "u1"
        else ct() + 1000 * (dtype[0] == "u")
    )
    stored = stored.astype(dtype)
    if dtype[0] == "f":
        stored = stored / stored.dtype.type(4)
    # A slope of 0 or NaN means that there is no scale, whatever the intercept says.
    slope, inter = scale if scale[0] in (1, 0.5, -2) else (1, 0)
    want = np.rint(stored.astype(np.float64) * np.float32(slope) + np.float32(inter)).clip(-32768, 32767)
    path = save(tmp_path, image(stored, order=order), scl_slope=scale[0], scl_inter=scale[1])
    if (want <= -50).mean() < 0.001:
        with pytest.raises(InputError, match="not in Hounsfield units"):
            load(path)
        return
    assert np.array_equal(load(path).array, want.T)
    assert np.array_equal(load(nib.load(path)).array, want.T)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
@pytest.mark.parametrize("tilt", [0, 0.4])
def test_orientations_and_labels_back(tmp_path, order, signs, tilt):
    steps = LPS[:3, :3] @ np.array([[1, 0.05, 0], [0, 1, tilt], [0.03, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = steps[:, order] * signs
    affine[:3, 3] = (10, 20, -30)
    path = save(tmp_path, image(affine=affine))
    volume = load(path)
    assert nib.aff2axcodes(volume.affine) == ("L", "P", "S")
    to_input = np.linalg.inv(nib.load(path).affine) @ volume.affine
    for z, y, x in np.random.default_rng(3).integers(0, volume.array.shape, (50, 3)):
        i, j, k = np.rint(to_input @ (x, y, z, 1)).astype(int)[:3]
        assert volume.array[z, y, x] == ct()[i, j, k]
    labels = (volume.array % 3).astype(np.uint8)
    write_nifti(tmp_path / "labels.nii.gz", labels, volume.geometry)
    written = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), ct() % 3)
    assert np.array_equal(written.affine, nib.load(path).affine)


def test_qform_only_and_no_orientation(tmp_path, caplog):
    affine = np.diag([0.7, -0.8, -5.0, 1.0])
    img = image(affine=affine)
    img.set_sform(affine, code=0)
    img.set_qform(affine, code=1)
    path = save(tmp_path, img)
    assert np.allclose(load(path).geometry.affine, affine)
    assert not caplog.records
    path = save(tmp_path, img, qform_code=0)
    volume = load(path)
    assert np.allclose(volume.geometry.affine, nib.load(path).affine)
    assert [warning.code for warning in volume.warnings] == ["geometry-unknown", "values-scale"]  # noise


def test_slips_of_pixdim_are_forgiven_and_kept(tmp_path):
    img = image()
    img.set_sform(LPS, code=0)
    img.set_qform(LPS, code=1)
    path = save(tmp_path, img, pixdim=[0, -0.7, 0.8, 5, 0, 0, 0, 0])
    volume = load(path)
    assert np.allclose(volume.geometry.affine[:3, :3], LPS[:3, :3])
    write_nifti(tmp_path / "labels.nii", np.zeros(volume.array.shape, np.uint8), volume.geometry)
    assert raw_header(tmp_path / "labels.nii")["pixdim"].tobytes() == raw_header(path)["pixdim"].tobytes()


def test_one_frame_and_one_slice(tmp_path):
    for shape in ((24, 20, 6, 1), (24, 20, 6, 1, 1), (24, 20, 1)):
        volume = load(save(tmp_path, image(ct(shape))))
        assert volume.array.shape == (shape[2], 20, 24)
        assert volume.geometry.shape == shape
        write_nifti(tmp_path / "labels.nii.gz", np.zeros(volume.array.shape, np.uint8), volume.geometry)
        assert nib.load(tmp_path / "labels.nii.gz").shape == shape


def test_misnamed_files_are_read(tmp_path):
    plain = save(tmp_path, name="a.nii").rename(tmp_path / "plain.nii.gz")
    packed = save(tmp_path, name="b.nii.gz").rename(tmp_path / "packed.nii")
    assert np.array_equal(load(plain).array, load(packed).array)


def test_extensions_offsets_and_several_gzip_members(tmp_path):
    img = image()
    img.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe " * 50))
    path = tmp_path / "ct.nii"
    nib.save(img, path)
    assert raw_header(path)["vox_offset"] > 352
    assert np.array_equal(load(path).array, ct().T)
    data = path.read_bytes()
    (tmp_path / "two.nii.gz").write_bytes(gzip.compress(data[:5000]) + gzip.compress(data[5000:]))
    assert np.array_equal(load(tmp_path / "two.nii.gz").array, ct().T)
    assert np.array_equal(load(save(tmp_path, vox_offset=0)).array, ct().T)


# ---- refused files ----


def test_no_such_file_folder_ending(tmp_path):
    with pytest.raises(InputError, match=r"none\.nii: no such file; check the path"):
        load(tmp_path / "none.nii")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(InputError, match=r"folder\.nii: is a folder"):
        load(tmp_path / "folder.nii")
    with pytest.raises(InputError, match=r"is a folder; expected a \.nii or \.nii\.gz file"):
        load(tmp_path)
    for name in ("ct.png", "ct.gz", "ct", "ct.nii.bz2"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InputError, match=r"unknown file type; expected \.nii, \.nii\.gz"):
            load(tmp_path / name)


@pytest.mark.parametrize("name", ["n" * 300 + ".nii", "a\0b.nii.gz", "loop.nii", "file/ct.nii"])
def test_paths_that_cannot_be_opened(tmp_path, name):
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"\.nii(\.gz)?: cannot be opened \(.*\); check the path"):
        load(tmp_path / name)


def test_no_permission_as_any_user(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path)
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(InputError, match=r"ct\.nii\.gz: no permission to read it; change"):
        load(path)


def test_not_nifti(tmp_path):
    path = tmp_path / "text.nii.gz"
    path.write_text("this is a text file\n" * 100)
    with pytest.raises(InputError, match="neither gzip nor NIfTI"):
        load(path)
    path.write_bytes(gzip.compress(b"this is a text file\n" * 100))
    with pytest.raises(InputError, match="gzip, but what is inside is not NIfTI"):
        load(path)
    for data in (b"", b"\x5c", b"\x1f\x8b"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"text\.nii\.gz"):
            load(path)
    with pytest.raises(InputError, match=r"half of a \.hdr/\.img pair"):
        load(save(tmp_path, magic=b"ni1"))
    with pytest.raises(InputError, match="perhaps Analyze"):
        load(save(tmp_path, magic=b""))


@pytest.mark.parametrize("keep", [3, 200, 348, 352, 1000, -2000, -9, -4, -1])
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz"])
def test_truncated(tmp_path, name, keep):
    path = save(tmp_path, name=name)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=rf"{name}: .*fetch it again"):
        load(path)


def test_wrong_checksum_and_damaged_stream(tmp_path):
    path = save(tmp_path)
    data = bytearray(path.read_bytes())
    for position in (-8, -1, len(data) // 2):
        damaged = data.copy()
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="truncated or corrupt, fetch it again"):
            load(path)


def test_the_checksum_is_looked_at_however_much_lies_after_the_voxels(tmp_path):
    data = bytearray(gzip.compress(save(tmp_path, name="ct.nii").read_bytes() + bytes(3 << 20), 1))
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(data)
    load(path)
    data[-8] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match="truncated or corrupt"):
        load(path)


def test_damage_is_found_before_its_effects(tmp_path):
    array = ct().astype(np.float32)
    array[1, 2, 3] = np.nan
    path = save(tmp_path, image(array))
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(InputError, match="truncated or corrupt"):
        load(path)


def test_too_much_promised_is_not_allocated(tmp_path):
    for name in ("ct.nii", "ct.nii.gz"):
        path = save(tmp_path, name=name, dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
        with pytest.raises(InputError, match=r"promises 54000000000352 bytes \(30000 x 30000 x 30000 voxels"):
            load(path)
    huge = save(tmp_path, image(cls=nib.Nifti2Image), dim=[3, 2**40, 2**40, 2**40, 1, 1, 1, 1])
    with pytest.raises(InputError, match="promises"):
        load(huge)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": [3, 24, 20, 0, 1, 1, 1, 1]}, "24 x 20 x 0; expected at least one voxel an axis"),
        ({"dim": [3, 24, -20, 18, 1, 1, 1, 1]}, "24 x -20 x 18; expected at least one voxel an axis"),
        ({"dim": [2, 24, 20, 18, 1, 1, 1, 1]}, "2-D image of 24 x 20; expected a volume"),
        ({"dim": [0, 24, 20, 18, 1, 1, 1, 1]}, "promises 0 dimensions"),
        ({"dim": [9, 24, 20, 18, 1, 1, 1, 1]}, "promises 9 dimensions"),
        ({"dim": [3, 1, 1, 1, 1, 1, 1, 1]}, "axial slices of 1 x 1 pixels; expected at least 16"),
        ({"dim": [3, 24, 15, 18, 1, 1, 1, 1]}, "axial slices of 15 x 24 pixels"),
        ({"dim": [4, 24, 20, 6, 3, 1, 1, 1]}, "3 channels"),
        ({"dim": [5, 24, 20, 6, 1, 3, 1, 1]}, "3 channels"),
        ({"dim": [4, 24, 20, 9, 2, 1, 1, 1]}, r"2 frames; expected one: choose it"),
        ({"datatype": 128}, r"colour \(RGB\) voxels"),
        ({"datatype": 2304}, r"colour \(RGB\) voxels"),
        ({"datatype": 32}, "voxels of type complex64"),
        ({"datatype": 1792}, "voxels of type complex128"),
        ({"datatype": 1}, "voxels of type"),
        ({"datatype": 77}, "unknown voxel type, code 77"),
        ({"vox_offset": 100}, "lets voxels start at byte 100"),
        ({"vox_offset": np.nan}, "lets voxels start at byte nan"),
        ({"vox_offset": 1e9}, "promises"),
        ({"scl_slope": 1, "scl_inter": np.nan}, "rescale intercept is nan"),
        ({"scl_slope": 1, "scl_inter": 1024}, "not in Hounsfield units: values run from 24 to 2023"),
        ({"srow_x": [0, 0, 0, 0]}, "ct.nii.gz: affine: the voxel spacing"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "ct.nii.gz: affine: holds NaN or infinity"),
        ({"srow_x": [0, -0.7, 0, 0], "srow_y": [1, 1, 1, 0], "srow_z": [0, 0, 0, 0]}, "affine: singular"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 5}, "quaternion is invalid"),
        ({"sform_code": 0, "pixdim": [1, 0, 1, 1, 0, 0, 0, 0]}, "affine: the voxel spacing"),
    ],
)
def test_bad_headers(tmp_path, fields, message):
    with pytest.raises(
        InputError, match=rf"ct\.nii\.gz: .*{message}|^{message}" if "ct.nii" not in message else message
    ):
        load(save(tmp_path, **fields))


def test_nan_voxels_are_counted(tmp_path):
    array = ct().astype(np.float32)
    array[0, 0, :4] = np.nan
    array[5, 5, 5] = -np.inf
    with pytest.raises(InputError, match=r"ct\.nii\.gz: 5 of 8640 voxels are NaN or infinite"):
        load(save(tmp_path, image(array)))


# ---- memory ----


def peak_mb(function):
    """Run and return the result and the most MiB that Python and NumPy held beyond what they held before."""
    tracemalloc.start()
    try:
        result = function()
        return result, tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", "<f4"])
def test_peak_memory(tmp_path, dtype):
    shape = (512, 512, 200)
    slices = np.tile(np.random.default_rng(4).integers(-1000, 1000, 512 * 16), 32).astype(np.int16)
    header = nib.Nifti1Header(endianness=dtype[0])
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_sform(np.diag([0.7, 0.8, 2, 1]), code=1)  # both in-plane axes must be flipped
    header["vox_offset"] = 352
    header["scl_slope"], header["scl_inter"] = (1, -1024) if "u" in dtype else (1, 0)
    path = tmp_path / "ct.nii.gz"
    with igzip.open(path, "wb", 1) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(shape[2]):
            file.write((slices + 1024 * ("u" in dtype)).astype(dtype).tobytes())
    load(save(tmp_path, name="first.nii.gz"))  # imports what it needs
    volume, read = peak_mb(lambda: load(path))
    assert volume.array.nbytes == 100 * 2**20
    assert read < 100 + 30
    labels = (volume.array > 0).astype(np.uint8)
    _, write = peak_mb(lambda: write_nifti(tmp_path / "labels.nii.gz", labels, volume.geometry))
    assert write < 10


# ---- real CT ----


@pytest.mark.parametrize("name", ["chaos3/volume.nii.gz", "totalseg_example/example_ct.nii.gz"])
def test_real_ct(shared_data, tmp_path, name):
    path = shared_data / name
    img = nib.load(path)
    want = np.asanyarray(img.dataobj)
    volume = load(path)
    assert np.array_equal(volume.geometry.restore(volume.array), want)
    closest = nib.as_closest_canonical(img)  # RAS+
    assert np.array_equal(volume.array, np.flip(np.asanyarray(closest.dataobj), (0, 1)).T)
    labels = (volume.array > 100).astype(np.uint8)
    write_nifti(tmp_path / "labels.nii.gz", labels, volume.geometry)
    written = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), want > 100)
    assert np.array_equal(written.affine, img.affine)


def test_real_single_slices(shared_data):
    for path in sorted((shared_data / "lits_hu_slices").glob("volume-*.nii.gz")):
        volume = load(path)
        assert volume.array.shape == (1, 512, 512)
        assert np.array_equal(volume.geometry.restore(volume.array), np.rint(nib.load(path).get_fdata()))


def test_labels_that_are_no_number_are_listed_once(tmp_path):
    values = np.zeros((80, 80, 60), np.float32)  # several slabs
    values[::2], values[0, 0, 0], values[0, 0, 1] = np.nan, np.inf, 7
    path = save(tmp_path, nib.Nifti1Image(values, np.diag([-1.0, -1, 1, 1])))
    with pytest.raises(InputError, match=r"got the labels 7, inf, nan; expected 0 \(background\)"):
        read_labels(path)


def test_real_labels_are_not_a_ct(shared_data):
    with pytest.raises(InputError, match=r"segmentation\.nii\.gz: not in Hounsfield units: values run from"):
        load(shared_data / "chaos3" / "segmentation.nii.gz")


def test_the_file_read_is_left_as_it_is(tmp_path):
    path = save(tmp_path)
    path.chmod(stat.S_IRUSR)
    before = path.read_bytes()
    load(path)
    assert path.read_bytes() == before
