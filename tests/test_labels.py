"""Label maps in NIfTI files: which are read, and how they are written on the grid of a CT."""

import gzip
import struct
import zlib

import nibabel as nib
import numpy as np
import pytest
from nifti_files import LPS, ct, image, raw_header, save

from trtseg import io
from trtseg.errors import ArgumentError, InputError, OutputError
from trtseg.io import load, read_labels, write_nifti
from trtseg.volume import Geometry

AFFINE = np.diag([-0.8, -0.9, 5.0, 1.0])
LABELS = np.zeros((4, 17, 16), np.uint8)  # canonical [Z, Y, X]
LABELS[1:3, 2:9, 3:12] = 1
LABELS[2, 4:6, 5:9] = 2


def write(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def grid():
    return LABELS.transpose(2, 1, 0)  # index order (i, j, k) for AFFINE


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_labels_of_any_type_come_as_uint8_in_canonical_order(tmp_path, dtype, name):
    labels, geometry = read_labels(write(tmp_path / name, grid().astype(dtype)))
    assert labels.dtype == np.uint8
    assert (labels == LABELS).all()
    assert np.allclose(geometry.affine, AFFINE)


def test_orientation_comes_from_the_affine(tmp_path):
    image = nib.Nifti1Image(grid(), AFFINE)
    for orientation in ("RAS", "SPL", "ILA"):
        turned = image.as_reoriented(
            nib.orientations.ornt_transform(
                nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(orientation)
            )
        )
        nib.save(turned, tmp_path / "turned.nii.gz")
        labels, geometry = read_labels(tmp_path / "turned.nii.gz")
        assert (labels == LABELS).all()
        assert np.allclose(geometry.canonical_affine(), AFFINE, atol=1e-6)


def test_a_scale_and_a_fourth_axis_of_one_are_understood(tmp_path):
    path = write(tmp_path / "a.nii", grid()[..., None])
    assert (read_labels(path)[0] == LABELS).all()
    data = bytearray(path.read_bytes())
    data[112:116] = np.float32(0.5).tobytes()  # the header's scl_slope
    data[352:] = (2 * grid()).tobytes(order="F")
    path.write_bytes(data)
    assert (read_labels(path)[0] == LABELS).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "got the label 3; expected 0"),
        (-1, "got the label -1"),
        (0.5, "got the label 0.5"),
        (np.nan, "label nan"),
    ],
)
def test_foreign_labels_are_refused_by_name(tmp_path, value, message):
    array = grid().astype(np.float32)
    array[0, 0, 0] = value
    with pytest.raises(InputError, match=message):
        read_labels(write(tmp_path / "a.nii.gz", array))


@pytest.mark.parametrize(
    ("name", "ending"),
    [("a.mha", ".mha"), ("a.mhd", ".zraw"), ("a.nrrd", ".nrrd"), ("a.nhdr", ".raw.gz")],
)
def test_compressed_voxels_are_checked(tmp_path, name, ending):
    """ITK itself takes what comes out of them, of NRRD at least if their end is damaged."""
    sitk = pytest.importorskip("SimpleITK")
    header = tmp_path / name
    values = np.random.default_rng(0).integers(0, 3, (9, 64, 64)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(header), True)
    path = header.with_suffix(ending)
    labels, _ = read_labels(header)
    assert np.array_equal(np.bincount(labels.ravel()), np.bincount(values.ravel()))
    data = path.read_bytes()
    path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])  # in the checksum, or the size
    with pytest.raises(InputError, match=rf"{path.name}: (cannot be decompressed|is cut off or damaged)"):
        read_labels(header)
    path.write_bytes(data[:-2000])
    with pytest.raises(InputError, match=rf"{path.name}: is cut off or damaged \(got \d+ bytes of voxels"):
        read_labels(header)


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
def test_a_header_that_has_too_few_compressed_bytes_is_refused(tmp_path, name):
    """ITK reads so many, and leaves in the other voxels what was in memory."""
    sitk = pytest.importorskip("SimpleITK")
    values = np.random.default_rng(0).integers(0, 3, (9, 64, 64)).astype(np.uint8)
    header = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(values), str(header), True)
    header.write_bytes(header.read_bytes().replace(b"CompressedDataSize = ", b"CompressedDataSize = 1x"))
    with pytest.raises(InputError, match="is cut off or damaged \\(got 0 bytes of voxels; expected 36864\\)"):
        read_labels(header)


def test_labels_that_cannot_be_read_are_named(tmp_path):
    for name in ("a.mha", "text.nii"):
        (tmp_path / name).write_text("text")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "folder.nii").mkdir()
    values = np.random.default_rng(0).integers(0, 3, (64, 64, 9)).astype(np.uint8)
    data = write(tmp_path / "whole.nii.gz", values).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "flipped.nii.gz").write_bytes(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
    (tmp_path / "cut.nii").write_bytes(gzip.decompress(data)[:-100])
    for name, message in {
        "none.nii": "no such file",
        "a.mha": "no NRRD or MetaImage file, or damaged",
        "folder.nii": "is a folder",
        "text.nii": "neither gzip nor NIfTI",
        "empty.nii.gz": "is empty",
        "cut.nii.gz": "truncated or corrupt",
        "flipped.nii.gz": "truncated or corrupt",  # in the checksum
        "cut.nii": "truncated or corrupt",
    }.items():
        with pytest.raises(InputError, match=f"{name}: .*{message}"):
            read_labels(tmp_path / name)


def test_several_frames_are_refused(tmp_path):
    with pytest.raises(InputError, match="2 frames"):
        read_labels(write(tmp_path / "a.nii.gz", np.zeros((16, 17, 4, 2), np.uint8)))


# ---- written ----

CHANGED = {"datatype": 2, "bitpix": 8, "scl_slope": 1, "cal_max": 2, "intent_code": 1002}
CHANGED |= dict.fromkeys(["intent_name", "aux_file", "db_name", "data_type", "unused_str"], b"")
CHANGED |= dict.fromkeys(["scl_inter", "cal_min", "intent_p1", "intent_p2", "intent_p3", "glmax", "glmin"], 0)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("cls", [nib.Nifti1Image, nib.Nifti2Image])
def test_header_field_by_field(tmp_path, cls, order):
    affine = LPS @ np.array([[0.96, 0.28, 0, 3], [-0.28, 0.96, 0, 5], [0, 0, 1, 7], [0, 0, 0, 1.0]])
    img = image(affine=affine, cls=cls, order=order)
    img.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe, born 1970"))
    img.set_qform(affine, code=1)
    img.set_sform(affine + 0.125, code=3)
    img.header["xyzt_units"] = 10
    img.header["aux_file"] = b"Jane Doe"
    img.header["descrip"] = b"Jane Doe"
    img.header["intent_name"] = b"Jane Doe"
    img.header["toffset"] = 2.5
    if cls is nib.Nifti1Image:
        img.header["db_name"] = b"Jane Doe"
        img.header["glmax"] = 9
    img.header["dim_info"] = 57
    path = save(tmp_path, img, pixdim=[-1, 0.7, 0.8, 5, 2.5, 0, 0, 0], cal_max=500)
    volume = load(path)
    labels = (volume.array % 3).astype(np.uint8)
    for name in ("labels.nii", "labels.nii.gz"):
        write_nifti(tmp_path / name, labels, volume.geometry)
        before, after = raw_header(path), raw_header(tmp_path / name)
        assert after.dtype == before.dtype  # the byte order too
        for field in before.dtype.names:
            if field == "vox_offset":
                assert after[field] == before["sizeof_hdr"] + 4
            elif field == "descrip":
                sum_ = f"{zlib.crc32(labels.tobytes()):08x}"
                assert after[field] == f"trtseg, not for clinical use, labels {sum_}".encode()
            elif field in CHANGED:
                assert after[field] == CHANGED[field], field
            else:
                assert after[field].tobytes() == before[field].tobytes(), field
        written = nib.load(tmp_path / name)
        assert not written.header.extensions
        assert written.get_data_dtype() == np.uint8
        assert np.array_equal(written.affine, nib.load(path).affine)
        assert np.array_equal(np.asanyarray(written.dataobj), ct() % 3)
        data = (tmp_path / name).read_bytes()
        data = gzip.decompress(data) if name.endswith("gz") else data
        assert b"Jane" not in data
        assert len(data) == before["sizeof_hdr"] + 4 + labels.size
    assert volume.geometry.source["datatype"] == 4  # the geometry's own header stays as it was


def test_same_labels_same_bytes(tmp_path):
    volume = load(save(tmp_path))
    labels = (volume.array % 3).astype(np.uint8)
    write_nifti(tmp_path / "a.nii.gz", labels, volume.geometry)
    write_nifti(tmp_path / "b.nii.gz", labels, volume.geometry)
    data = (tmp_path / "a.nii.gz").read_bytes()
    assert data == (tmp_path / "b.nii.gz").read_bytes()
    assert data[3] == 0  # no flags: no file name
    assert struct.unpack("<L", data[4:8]) == (0,)  # no time


@pytest.mark.parametrize("steps", ["straight", "oblique", "sheared"])
def test_labels_of_arrays_get_a_header(tmp_path, steps):
    affine = LPS.copy()
    if steps == "oblique":
        affine[:3, :3] = np.array([[0.96, 0.28, 0], [-0.28, 0.96, 0], [0, 0, 1]]) @ LPS[:3, :3]
    if steps == "sheared":
        affine[1, 2] = 2.0
    affine[:3, 3] = (-10, 20, 30)
    volume = load(ct(), affine=affine)
    write_nifti(tmp_path / "labels.nii.gz", (volume.array % 3).astype(np.uint8), volume.geometry)
    written = nib.load(tmp_path / "labels.nii.gz")
    assert np.allclose(written.affine, affine, atol=1e-5)
    assert written.header["sform_code"] == 1
    assert written.header["qform_code"] == (0 if steps == "sheared" else 1)
    assert written.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(written.header.get_zooms(), np.sqrt(np.square(affine[:3, :3]).sum(axis=0)))
    assert np.array_equal(np.asanyarray(written.dataobj), ct() % 3)


def test_labels_of_arrays_with_spacing(tmp_path):
    hu = ct().T.copy()
    volume = load(hu, spacing=(5.0, 0.8, 0.7))
    write_nifti(tmp_path / "labels.nii.gz", (hu % 3).astype(np.uint8), volume.geometry)
    written = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), hu % 3)
    assert nib.aff2axcodes(written.affine) == ("S", "P", "L")


def test_long_axis_needs_nifti2(tmp_path):
    geometry = Geometry.from_affine((16, 16, 33000), np.diag([-1.0, -1, 1, 1]))
    write_nifti(tmp_path / "labels.nii.gz", np.zeros((33000, 16, 16), np.uint8), geometry)
    assert nib.load(tmp_path / "labels.nii.gz").shape == (16, 16, 33000)


def test_labels_of_a_pair_become_one_file(tmp_path):
    nib.save(nib.Nifti1Pair(ct(), LPS), tmp_path / "ct.img")
    volume = load(nib.load(tmp_path / "ct.img"))
    write_nifti(tmp_path / "labels.nii", (volume.array % 3).astype(np.uint8), volume.geometry)
    assert np.array_equal(np.asanyarray(nib.load(tmp_path / "labels.nii").dataobj), ct() % 3)


class OfAnotherFormat:
    """A source that the NIfTI module knows nothing of."""

    def __getattr__(self, name):
        raise AssertionError(f"nobody may look into it, not even for {name}")


@pytest.mark.parametrize("name", ["labels.nii", "labels.nii.gz"])
def test_a_source_of_another_format_gives_a_new_header(tmp_path, name):
    labels = (ct() % 3).astype(np.uint8).T
    for folder, source in (("array", None), ("other", OfAnotherFormat())):
        (tmp_path / folder).mkdir()
        io.save(tmp_path / folder / name, labels, Geometry.from_affine(ct().shape, LPS, source))
    assert np.allclose(nib.load(tmp_path / "other" / name).affine, LPS)
    assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "array" / name).read_bytes()


def test_bad_outputs(tmp_path):
    volume = load(save(tmp_path))
    labels = np.zeros(volume.array.shape, np.uint8)
    with pytest.raises(OutputError, match=r"labels\.hdr: cannot write this file type; expected \.nii"):
        io.save(tmp_path / "labels.hdr", labels, volume.geometry)
    with pytest.raises(ArgumentError, match="labels: got int16"):
        io.save(tmp_path / "labels.nii", labels.astype(np.int16), volume.geometry)
    with pytest.raises(ArgumentError, match="labels: got uint8"):
        io.save(tmp_path / "labels.nii", labels.T, volume.geometry)
    assert not list(tmp_path.glob("labels*"))
