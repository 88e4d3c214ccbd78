"""Reading label maps, and telling whether two grids are one."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from trtseg.errors import InputError
from trtseg.io.labels import check_same_grid, read_labels
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
        check_same_grid("turned", geometry, "straight", Geometry.from_affine(grid().shape, AFFINE))


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


def test_only_some_of_many_foreign_labels_are_listed(tmp_path):
    array = np.arange(16 * 17 * 4, dtype=np.int16).reshape(16, 17, 4)
    with pytest.raises(InputError, match=r"got the labels 3, 4, 5, 6, 7, \.\.\.; expected"):
        read_labels(write(tmp_path / "a.nii.gz", array))


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.nii: no such file"):
        read_labels(tmp_path / "none.nii")
    with pytest.raises(InputError, match="unknown file type"):
        read_labels(tmp_path / "a.mha")
    (tmp_path / "text.nii").write_text("text")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "folder.nii").mkdir()
    whole = write(
        tmp_path / "whole.nii.gz", np.random.default_rng(0).integers(0, 3, (64, 64, 9)).astype(np.uint8)
    )
    data = whole.read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "flipped.nii.gz").write_bytes(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
    plain = gzip.decompress(data)
    (tmp_path / "cut.nii").write_bytes(plain[:-100])
    for name in ("text.nii", "empty.nii.gz", "folder.nii", "cut.nii.gz", "flipped.nii.gz", "cut.nii"):
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            read_labels(tmp_path / name)


def test_several_frames_are_refused(tmp_path):
    with pytest.raises(InputError, match="2 frames"):
        read_labels(write(tmp_path / "a.nii.gz", np.zeros((16, 17, 4, 2), np.uint8)))


def test_grids_are_compared_by_where_their_voxels_lie():
    def geometry(shape=(16, 17, 4), shift=0.0, scale=1.0):
        affine = AFFINE * [scale, 1, 1, 1]
        affine[0, 3] = shift
        return Geometry.from_affine(shape, affine)

    check_same_grid("a", geometry(), "b", geometry(shift=0.05))  # 0.08 mm is a tenth of a voxel
    with pytest.raises(InputError, match=r"a: its affine is not that of b: .* up to 0\.4 mm apart"):
        check_same_grid("a", geometry(shift=0.4), "b", geometry())
    with pytest.raises(InputError, match=r"up to 0\.12 mm apart"):  # 1 % of 0.8 mm, 15 voxels on
        check_same_grid("a", geometry(scale=1.01), "b", geometry())
    with pytest.raises(
        InputError, match=r"a: its grid of 16 x 17 x 5 voxels .* is not that of b, 16 x 17 x 4"
    ):
        check_same_grid("a", geometry((16, 17, 5)), "b", geometry())
