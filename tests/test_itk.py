"""NRRD and MetaImage files, as SimpleITK has them: where voxels lie, how they are stored, and what is refused."""

import bz2
import gzip
import os
import shutil
import zlib

import numpy as np
import pytest
import training_data

from trtseg.errors import ArgumentError, InputError
from trtseg.io import load, read_labels
from trtseg.io.itk import peek_itk, write_itk
from trtseg.io.parts import files_of
from trtseg.notice import checksum_of
from trtseg.phantom import abdomen
from trtseg.result import Segmentation
from trtseg.volume import Geometry

sitk = pytest.importorskip("SimpleITK")

VALUES = np.random.default_rng(3).integers(-1000, 1000, (16, 17, 18)).astype(np.int16)  # [k, j, i]
MASK = (VALUES > 0).astype(np.uint8)
SPACING, ORIGIN = (0.7, 0.8, 5.0), (-61.0, 32.5, 1204.0)
C, S = np.cos(0.3), np.sin(0.3)
TURN = np.array([[C, -S, 0], [S, C, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, C, -S], [0, S, C]])
DIRECTIONS = {
    "upright": np.eye(3),
    "oblique": TURN,
    "oblique, mirrored": TURN @ np.diag([-1.0, 1, 1]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
}
NRRD = (
    "NRRD0004\ntype: {type}\ndimension: 3\nsizes: 18 17 16\nendian: little\nencoding: {encoding}\n"
    "space: left-posterior-superior\nspace directions: (0.7,0,0) (0,0.8,0) (0,0,5)\nspace origin: (0,0,1)\n"
)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = {compressed}\n"
    "{more}ElementSpacing = 0.7 0.8 5\nDimSize = 18 17 16\nElementType = MET_UCHAR\nElementDataFile = {file}\n"
)


def image(values, direction):
    made = sitk.GetImageFromArray(values)
    made.SetSpacing(SPACING)
    made.SetOrigin(ORIGIN)
    made.SetDirection(direction.ravel().tolist())
    return made


@pytest.mark.parametrize("way", DIRECTIONS)
@pytest.mark.parametrize("stored", [np.int16, np.float64])
def test_an_image_of_simpleitk(tmp_path, way, stored):
    given = image(VALUES.astype(stored), DIRECTIONS[way])
    volume = load(given)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.geometry.restore(volume.array), VALUES.transpose(2, 1, 0))
    for index in ((0, 0, 0), (17, 0, 0), (0, 16, 0), (0, 0, 15), (3, 8, 2)):
        x, y, z = given.TransformIndexToPhysicalPoint(index)  # to the left, the back and the head
        assert volume.geometry.affine @ (*index, 1) == pytest.approx([-x, -y, z, 1])
    volume.array[:] = 7
    assert np.array_equal(sitk.GetArrayFromImage(given), VALUES)  # it is not written into
    result = Segmentation.measure(np.zeros(volume.array.shape, np.uint8), volume)
    result.save(tmp_path / "seg.mha")
    assert sitk.ReadImage(str(tmp_path / "seg.mha")).IsSameImageGeometryAs(given)


def test_images_of_simpleitk_that_are_no_ct():
    upright = image(VALUES, np.eye(3))
    with pytest.raises(
        ArgumentError, match="affine, spacing: got one with a Image, which has its own geometry"
    ):
        load(upright, spacing=(5.0, 0.8, 0.7))
    with pytest.raises(InputError, match="image: got a 2-D image; expected a volume"):
        load(upright[:, :, 3])
    with pytest.raises(InputError, match="image: got 2 numbers a voxel; expected one in HU"):
        load(sitk.Compose(upright, upright))
    with pytest.raises(InputError, match=r"image: .* NaN or infinite"):
        load(image(np.full(VALUES.shape, np.nan), np.eye(3)))
    with pytest.raises(InputError, match="image: got shape 0 x 17 x 16; expected at least one voxel an axis"):
        load(sitk.Image([0, 17, 16], sitk.sitkInt16))


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("way", DIRECTIONS)
def test_every_voxel_lies_where_itk_has_it(tmp_path, way, ending):
    path = tmp_path / f"ct{ending}"
    sitk.WriteImage(image(VALUES, DIRECTIONS[way]), str(path))
    written, volume = sitk.ReadImage(str(path)), load(path)
    assert volume.geometry.shape == (18, 17, 16)
    assert volume.geometry.warnings == ()
    assert np.array_equal(volume.geometry.restore(volume.array), VALUES.transpose(2, 1, 0))
    for index in ((0, 0, 0), (17, 0, 0), (0, 16, 0), (0, 0, 15), (3, 8, 2)):
        x, y, z = written.TransformIndexToPhysicalPoint(index)  # to the left, the back and the head
        assert volume.geometry.affine @ (*index, 1) == pytest.approx([-x, -y, z, 1])


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("way", DIRECTIONS)
def test_labels_are_written_on_the_grid_of_the_ct(tmp_path, way, ending):
    sitk.WriteImage(image(VALUES, DIRECTIONS[way]), str(tmp_path / "ct.mha"))
    volume = load(tmp_path / "ct.mha")
    labels = (volume.array > 0).astype(np.uint8)
    target = tmp_path / f"seg{ending}"
    write_itk(target, labels, volume.geometry, "abc1")
    ct, made = sitk.ReadImage(str(tmp_path / "ct.mha")), sitk.ReadImage(str(target))
    assert np.array_equal(sitk.GetArrayFromImage(made), MASK)
    for same in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(made, same)() == pytest.approx(getattr(ct, same)(), rel=1e-14)
    assert peek_itk(target) == (("abc1", checksum_of(labels)), True)
    assert peek_itk(tmp_path / "ct.mha") == (None, False)
    other = Geometry.from_affine((18, 17, 16), volume.geometry.affine)  # as of a NIfTI file
    write_itk(target, labels, other)
    made = sitk.ReadImage(str(target))
    for same in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(made, same)() == pytest.approx(getattr(ct, same)(), abs=1e-12)
    assert peek_itk(target) == (("", checksum_of(labels)), True)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_labels_of_dicom_lie_as_itk_reads_its_files(tmp_path, ending):
    for z, plane in enumerate(training_data.phantom(0).ct):
        training_data.save_dicom(
            tmp_path / f"ct/{z}", plane, 100 + z * training_data.SPACING[0], 0, series="1.2"
        )
    result = Segmentation.measure(training_data.phantom(0).labels, load(tmp_path / "ct"))
    result.save(tmp_path / f"seg{ending}")
    ct = sitk.ReadImage([str(tmp_path / f"ct/{z}") for z in range(6)])
    made = sitk.ReadImage(str(tmp_path / f"seg{ending}"))
    assert made.GetSize() == ct.GetSize() == tuple(result.report()["input"]["shape"])
    assert made.GetSpacing() == pytest.approx(ct.GetSpacing(), rel=1e-5)
    assert made.GetOrigin() == pytest.approx(ct.GetOrigin(), rel=1e-5)
    assert made.GetDirection() == pytest.approx(ct.GetDirection(), abs=1e-6)
    assert np.array_equal(sitk.GetArrayFromImage(made), training_data.phantom(0).labels)


def test_a_fourth_axis_of_one_is_understood_and_a_longer_one_is_not(tmp_path):
    for frames in (1, 2):
        made = sitk.JoinSeries([image(VALUES, TURN)] * frames)
        sitk.WriteImage(made, str(tmp_path / f"{frames}.nrrd"))
    volume = load(tmp_path / "1.nrrd")
    assert np.array_equal(
        volume.geometry.restore(volume.array).reshape(18, 17, 16), VALUES.transpose(2, 1, 0)
    )
    x, y, z = image(VALUES, TURN).TransformIndexToPhysicalPoint((3, 8, 2))
    assert volume.geometry.affine @ (3, 8, 2, 1) == pytest.approx([-x, -y, z, 1])
    with pytest.raises(InputError, match=r"2\.nrrd: .*2 frames"):
        load(tmp_path / "2.nrrd")


def test_pictures_and_colours_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(VALUES[0]), str(tmp_path / "flat.mha"))
    with pytest.raises(InputError, match=r"flat\.mha: got a 2-D image; expected a volume"):
        load(tmp_path / "flat.mha")
    colours = sitk.GetImageFromArray(np.repeat(VALUES[..., None], 3, axis=3), isVector=True)
    sitk.WriteImage(colours, str(tmp_path / "rgb.nrrd"))
    with pytest.raises(InputError, match=r"rgb\.nrrd: got 3 numbers a voxel; expected one in HU"):
        load(tmp_path / "rgb.nrrd")
    (tmp_path / "folder.mha").mkdir()
    for name, problem in (("none.mha", "no such file"), ("folder.mha", "is no regular file")):
        with pytest.raises(InputError, match=rf"{name}: {problem}; check the path"):
            read_labels(tmp_path / name)


def test_a_nrrd_file_without_a_space_of_a_patient_is_warned_of(tmp_path):
    head = NRRD.format(type="short", encoding="raw")
    bare = "".join(line for line in head.splitlines(keepends=True) if not line.startswith("space"))
    scanners = head.replace("left-posterior-superior", "scanner-xyz")
    for name, text, warns in (
        ("a.nrrd", head, False),
        ("b.nrrd", f"{bare}spacings: 0.7 0.8 5\n", True),
        ("c.nrrd", scanners, True),
    ):
        (tmp_path / name).write_bytes(text.encode() + b"\n" + VALUES.tobytes())
        volume = load(tmp_path / name)
        assert volume.spacing == pytest.approx((5, 0.8, 0.7))
        assert ["right to left, front to back" in w.text for w in volume.geometry.warnings] == [True] * warns


@pytest.mark.parametrize(
    ("directions", "warns"), [("", True), ("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", False)]
)
def test_a_metaimage_file_without_directions_is_warned_of(tmp_path, directions, warns):
    head = META.format(compressed=False, more=directions, file="LOCAL").replace("UCHAR", "SHORT")
    (tmp_path / "a.mha").write_bytes(head.encode() + VALUES.tobytes())
    found = [
        (w.code, "right to left, front to back" in w.text) for w in load(tmp_path / "a.mha").geometry.warnings
    ]
    assert found == [("geometry-unknown", True)] * warns


def test_a_nrrd_file_whose_header_names_many_segments(tmp_path):
    """As Slicer writes the label map of a hundred organs."""
    more = "".join(f"Segment{n}_Tags:={'x' * 600}\n" for n in range(150))
    head = NRRD.format(type="uint8", encoding="gzip") + more
    (tmp_path / "a.nrrd").write_bytes(head.encode() + b"\n" + gzip.compress(MASK.tobytes()))
    labels, geometry = read_labels(tmp_path / "a.nrrd")
    assert np.array_equal(geometry.restore(labels), MASK.transpose(2, 1, 0))


def test_an_encoding_that_itk_does_not_know_is_named(tmp_path):
    head = NRRD.format(type="uint8", encoding="bzip2")
    (tmp_path / "a.nrrd").write_bytes(head.encode() + b"\n" + bz2.compress(MASK.tobytes()))
    with pytest.raises(
        InputError, match=r"a\.nrrd: the voxels cannot be read \(.*bzip2.*or write it uncompressed"
    ):
        read_labels(tmp_path / "a.nrrd")


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("skip", ["", "byte skip: 5\n", "line skip: 1\n"])
def test_how_a_nrrd_file_may_hold_voxels(tmp_path, name, encoding, skip):
    before = b"1234\n" if skip else b""
    pack = gzip.compress if encoding == "gzip" else bytes
    # A byte skip counts bytes that were compressed, a line skip lines before what is compressed.
    data = before + pack(MASK.tobytes()) if skip.startswith("line") else pack(before + MASK.tobytes())
    head = NRRD.format(type="uint8", encoding=encoding) + skip
    if name == "a.nrrd":
        (tmp_path / name).write_bytes(head.encode() + b"\n" + data)
    else:
        (tmp_path / "a.data").write_bytes(data)
        (tmp_path / name).write_text(f"{head}data file: a.data\n\n")
    labels, geometry = read_labels(tmp_path / name)
    assert np.array_equal(geometry.restore(labels), MASK.transpose(2, 1, 0))


@pytest.mark.parametrize("file", ["LOCAL", "a.data"])
@pytest.mark.parametrize("way", ["raw", "compressed", "compressed, of known size", "too few", "not a stream"])
def test_how_a_metaimage_file_may_hold_voxels(tmp_path, file, way):
    plain = MASK.tobytes()
    data = {"raw": plain, "too few": zlib.compress(plain[:-1]), "not a stream": b"x" * 99}.get(
        way, zlib.compress(plain)
    )
    more = f"CompressedDataSize = {len(data)}\n" if "known" in way else ""
    head = META.format(compressed=way != "raw", more=more, file=file)
    inside = file == "LOCAL"
    (tmp_path / "a.mhd").write_bytes(head.encode() + data * inside)
    (tmp_path / "a.data").write_bytes(data)
    named = "a.mhd" if inside else "a.data"
    if inside and "known" not in way and way != "raw":  # ITK would give what was in memory
        with pytest.raises(
            InputError, match=r"a\.mhd: has compressed voxels, but no CompressedDataSize; expected"
        ):
            read_labels(tmp_path / "a.mhd")
    elif way == "too few":
        with pytest.raises(InputError, match=rf"{named}: .* \(got 4895 bytes of voxels; expected 4896\)"):
            read_labels(tmp_path / "a.mhd")
    elif way == "not a stream":
        with pytest.raises(InputError, match=rf"{named}: cannot be decompressed"):
            read_labels(tmp_path / "a.mhd")
    else:
        labels, geometry = read_labels(tmp_path / "a.mhd")
        assert np.array_equal(geometry.restore(labels), MASK.transpose(2, 1, 0))


@pytest.mark.parametrize("count", ["20", "1000000", "-1", "4294967299", "2e1", "3\n NDims: 50", ""])
def test_a_number_of_dimensions_for_which_metaio_has_no_memory(tmp_path, count):
    """It ended the process: MetaIO 1.x writes as many numbers as the header asks for into arrays of ten."""
    head = META.format(compressed=False, more="", file="LOCAL")
    assert "NDims = 3\n" in head
    (tmp_path / "a.mha").write_bytes(
        head.replace("NDims = 3\n", f"NDims = {count}\n").encode() + MASK.tobytes()
    )
    with pytest.raises(InputError, match=r"a\.mha: is no NRRD or MetaImage file, or damaged \(NDims is "):
        read_labels(tmp_path / "a.mha")
    assert peek_itk(tmp_path / "a.mha") == (None, False)


LINES = "".join(f"\ns{n}.raw" for n in range(16))


@pytest.mark.parametrize(
    ("named", "is_whole"),
    [
        (f"LIST{LINES}\n", True),
        (f"LIST 2D{LINES}\n", True),
        ("s%d.raw 0 15 1\n", True),
        ("s%d.raw 0 30 1\n", True),
        ("s%d.raw 0\n", True),
        ("s%d.raw\n", True),
        (f"LIST{LINES}", False),
        (f"LIST{LINES[:-8]}\n", False),
        (f"LIST 3{LINES}\n", False),
        (f"LIST -1{LINES}\n", False),
        ("LIST\n", False),
        ("LISTing.raw\n", False),
        ("s%d.raw 0 14 1\n", False),
        ("s%d.raw 0 30 3\n", False),
        ("s%d.raw 15 0 -1\n", False),
        ("s%d.raw   -1\n", False),
        (f"LIST{LINES[:-8]}\n\n", False),
        ("s%d.raw 0 15 1 3\n", False),
        ("s%d.raw 0 15 0\n", False),
        ("s%d.raw 0 15\n", False),
    ],
)
def test_a_metaimage_header_names_the_files_of_all_slices(tmp_path, named, is_whole):
    """Of others the voxels were whatever was in memory; some ended the process."""
    first = named == "s%d.raw\n"  # counts from 1 then
    for n, one in enumerate(MASK):
        (tmp_path / f"s{n + first}.raw").write_bytes(one.tobytes())
    (tmp_path / "LISTing.raw").write_bytes(MASK.tobytes())
    head = META.format(compressed=False, more="", file="")
    (tmp_path / "a.mhd").write_text(f"{head.removesuffix(chr(10))}{named}")
    if is_whole:
        labels, geometry = read_labels(tmp_path / "a.mhd")
        assert np.array_equal(geometry.restore(labels), MASK.transpose(2, 1, 0))
        return
    with pytest.raises(
        InputError, match=r"a\.mhd: names the data '\S+.*'; expected 16 files: LIST and a line"
    ):
        read_labels(tmp_path / "a.mhd")


@pytest.mark.parametrize("pattern", ["%d", "s%03d.raw", "s%.3d.raw", "s%3.3d.raw", "s%i.raw", "sub/%u"])
def test_a_pattern_of_metaimage_beside_a_folder_that_is_like_it(tmp_path, pattern):
    for folder in ("sub", "older.raw", "sub/s.raw"):
        (tmp_path / folder).mkdir()
    for n, one in enumerate(MASK):
        (tmp_path / (pattern % n)).write_bytes(one.tobytes())
    (tmp_path / "a.mhd").write_text(META.format(compressed=False, more="", file=f"{pattern} 0 15 1"))
    labels, geometry = read_labels(tmp_path / "a.mhd")
    assert np.array_equal(geometry.restore(labels), MASK.transpose(2, 1, 0))
    assert {*files_of(tmp_path / "a.mhd")} >= {
        tmp_path / "a.mhd",
        *(tmp_path / (pattern % n) for n in range(16)),
    }


def test_compressed_slices_in_files_of_their_own(tmp_path):
    """ITK does not see that one is damaged, and has what was in memory in its place."""
    for n, one in enumerate(MASK):
        (tmp_path / f"s{n}.raw").write_bytes(zlib.compress(one.tobytes())[: 20 if n == 7 else None])
    (tmp_path / "a.mhd").write_text(META.format(compressed=True, more="", file="s%d.raw 0 15 1"))
    with pytest.raises(InputError, match=r"a\.mhd: has compressed slices in several files; write it again"):
        read_labels(tmp_path / "a.mhd")


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("{outside}", "expected a file in the folder of the header or below it, put it there"),
        ("../data.raw", "expected a file in the folder of the header or below it"),
        ("sub/../../data.raw", "expected a file in the folder of the header or below it"),
        ("LIST\n../data.raw", "expected a file in the folder of the header or below it"),
        ("%d/../../data.raw 1 1 1", "expected a file in the folder of the header or below it"),
        ("pipe", "pipe, is no regular file"),
        ("lacks.raw", r"lacks\.raw, is no regular file"),
        ("-", "-, is no regular file"),
        ("s%s%n%d.raw 1 16 1", r"expected a name, or a pattern with one number, as slice%03d\.raw"),
        ("s%100000000d.raw 1 16 1", r"expected a name, or a pattern with one number, as slice%03d\.raw"),
    ],
)
def test_a_header_reaches_no_file_beside_its_folder_and_no_memory_of_others(tmp_path, ending, named, said):
    """Those of the one kind were read, and shown in pages; the others waited for ever, or ended the process."""
    (tmp_path / "data.raw").write_bytes(MASK.tobytes())
    (tmp_path / "ct/sub").mkdir(parents=True)
    os.mkfifo(tmp_path / "ct/pipe")
    named = named.format(outside=tmp_path / "data.raw")
    path = tmp_path / f"ct/a{ending}"
    if ending == ".mhd":
        path.write_text(META.format(compressed=False, more="", file=named))
    else:
        path.write_text(f"{NRRD.format(type='uint8', encoding='raw')}data file: {named}\n")
    with pytest.raises(InputError, match=said):
        read_labels(path)
    assert peek_itk(path) == (None, False)


@pytest.mark.parametrize(
    "before",
    [
        "elementdatafile = a.raw\n",
        "data file: a.raw\n",
        " ElementDataFile = ../data.raw\n",
        "Comment = x\rElementDataFile = ../data.raw\n",
        "\x0bElementDataFile: ../data.raw\n",
        " ElementDataFile: ../data.raw\nElementDataFile = a.raw\n#",
        f"Comment = {'x' * 500}\n" * 2200,
    ],
)
def test_data_that_a_metaimage_header_names_otherwise_are_not_overlooked(tmp_path, before):
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct/a.raw").write_bytes(MASK.tobytes())
    (tmp_path / "data.raw").write_bytes(MASK.tobytes())
    head = META.format(compressed=False, more="", file="../data.raw")
    (tmp_path / "ct/a.mhd").write_text(
        head.replace("ElementDataFile", f"{before}ElementDataFile"), newline=""
    )
    with pytest.raises(InputError, match=r"the header has no end, or several|expected a file in the folder"):
        read_labels(tmp_path / "ct/a.mhd")


@pytest.mark.parametrize(
    "before", ["data file:=a.raw\n", "ElementDataFile = a.raw\n", "# x\r", f"# {'x' * 500}\n" * 2200]
)
def test_data_that_a_nrrd_header_names_otherwise_are_not_overlooked(tmp_path, before):
    (tmp_path / "ct").mkdir()
    for name in ("ct/a.raw", "data.raw"):
        (tmp_path / name).write_bytes(MASK.tobytes())
    head = f"{NRRD.format(type='uint8', encoding='raw')}{before}data file: ../data.raw\n"
    (tmp_path / "ct/a.nhdr").write_text(head, newline="")
    with pytest.raises(InputError, match=r"the header has no end, or several|expected a file in the folder"):
        read_labels(tmp_path / "ct/a.nhdr")


def test_a_per_cent_sign_is_no_pattern_in_nrrd(tmp_path):
    (tmp_path / "50%.raw").write_bytes(MASK.tobytes())
    (tmp_path / "a.nhdr").write_text(f"{NRRD.format(type='uint8', encoding='raw')}data file: 50%.raw\n")
    labels, geometry = read_labels(tmp_path / "a.nhdr")
    assert np.array_equal(geometry.restore(labels), MASK.transpose(2, 1, 0))


@pytest.mark.parametrize("kind", ["hdf5", "tif"])
def test_a_file_of_another_format_is_not_given_to_the_reader_of_that(tmp_path, kind):
    sitk.WriteImage(sitk.GetImageFromArray(MASK), str(tmp_path / f"a.{kind}"))
    for name in ("a.mha", "a.nrrd"):
        shutil.copy(tmp_path / f"a.{kind}", tmp_path / name)
        with pytest.raises(InputError, match=r"is no NRRD or MetaImage file, or damaged"):
            read_labels(tmp_path / name)


@pytest.mark.parametrize(
    ("unit", "message"), [("mm", None), ("cm", "its space units are cm; expected mm, in which ITK")]
)
def test_lengths_of_a_nrrd_are_millimetres(tmp_path, unit, message):
    path = tmp_path / "ct.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(abdomen((4, 40, 52), (20.0, 8.0, 7.0)).ct), path)
    start, _, rest = path.read_bytes().partition(b"\n\n")
    path.write_bytes(start + f'\nspace units: "{unit}" "{unit}" "{unit}"'.encode() + b"\n\n" + rest)
    if message is None:
        assert load(path).array.shape == (4, 40, 52)
    else:
        with pytest.raises(InputError, match=message):
            load(path)


@pytest.mark.parametrize(("field", "value"), [("Slope", "2"), ("Offset", "-1024"), ("Slope", "one")])
def test_a_scale_that_itk_does_not_apply_is_refused(tmp_path, field, value):
    path = tmp_path / "ct.mha"
    sitk.WriteImage(sitk.GetImageFromArray(abdomen((4, 40, 52), (20.0, 8.0, 7.0)).ct), path)
    data = path.read_bytes()
    none = {"Slope": "1", "Offset": "0.0"}[field]
    line = f"ElementToIntensityFunction{field} = "
    path.write_bytes(data.replace(b"ElementType", f"{line}{none}\nElementType".encode(), 1))
    assert load(path).array.shape == (4, 40, 52)
    path.write_bytes(data.replace(b"ElementType", f"{line}{value}\nElementType".encode(), 1))
    with pytest.raises(
        InputError, match=rf"its ElementToIntensityFunction{field} is {value}, which ITK does not"
    ):
        load(path)
