"""Every form in which Segmentations come: voxels and their volume are right, or doubted, or it is an error."""

from __future__ import annotations

import zipfile

import nibabel as nib
import numpy as np
import pytest
from dicom_made import save
from dicom_segs import ABNORMAL, ANATOMY, LIVER, MASS, ORIGIN, SPACING, code, frames_of, seg, segment
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from trtseg.errors import InputError
from trtseg.io import read_labels
from trtseg.io.dicom.grid import place
from trtseg.pairs import Pair, score
from trtseg.volume import voxel_ml

SHAPE = (9, 33, 37)  # frames are no multiple of 8 pixels
WHOLE, TUMOUR = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
WHOLE[1:8, 3:25, 4:30] = 1
TUMOUR[3:5, 8:12, 9:14] = TUMOUR[6, 20:22, 20:27] = 1
LABELS = WHOLE + TUMOUR  # they overlap
FRAMES = frames_of(WHOLE, TUMOUR)
ML = 2 * SPACING[0] * SPACING[1] / 1000
C, S = np.cos(0.25), np.sin(0.25)


def read(folder, made, meaning=None):
    labels, grid = read_labels(save(folder / "seg.dcm", made), meaning)
    return labels, grid, [warning.code for warning in grid.warnings]


def check(folder, made, expected=LABELS, step=(0, 0, 2), along_column=(0, 1, 0)):
    """Every voxel lies where it belongs; returns the codes of the warnings."""
    labels, grid, codes = read(folder, made)
    affine = np.diag([-1, -1, 1, 1]) @ grid.canonical_affine()  # LPS
    for label in (1, 2):
        z, y, x = np.nonzero(labels == label)
        got = (affine @ np.stack([x, y, z, np.ones(len(x))]))[:3].T
        k, row, column = np.nonzero(expected == label)
        wanted = np.add(ORIGIN, np.outer(k, step) + np.outer(row * SPACING[0], along_column))
        wanted[:, 0] += column * SPACING[1]
        assert len(got) == len(wanted) > 0
        order = [np.lexsort(points.round(1).T) for points in (got, wanted)]
        assert np.abs(got[order[0]] - wanted[order[1]]).max() < 0.05
    return codes


@pytest.mark.parametrize("order", ["by segment", "by slice", "backwards", "shuffled"])
def test_frames_may_come_in_any_order(tmp_path, order):
    frames = {
        "by segment": FRAMES,
        "by slice": sorted(FRAMES, key=lambda frame: frame[1]),
        "backwards": FRAMES[::-1],
        "shuffled": [FRAMES[n] for n in np.random.default_rng(3).permutation(len(FRAMES))],
    }[order]
    assert check(tmp_path, seg(frames)) == []


@pytest.mark.parametrize(
    ("orientation", "step", "codes"),
    [
        ((1, 0, 0, 0, 1, 0), (0, 0, -2), []),
        ((1, 0, 0, 0, C, S), (0, -2 * S, 2 * C), []),
        ((1, 0, 0, 0, 0, -1), (0, 2, 0), []),
        ((1, 0, 0, 0, C, S), (0, 0, 2 / C), ["geometry-tilt"]),
        ((1, 0, 0, 0, np.cos(0.02), np.sin(0.02)), (0, 0, 2), ["geometry-tilt"]),
    ],
    ids=["from the head", "oblique", "coronal", "tilted", "tilted a little"],
)
def test_frames_may_lie_anyhow_on_a_grid(tmp_path, orientation, step, codes):
    made = seg(FRAMES, orientation=orientation, step=step)
    assert check(tmp_path, made, step=step, along_column=orientation[3:]) == codes


@pytest.mark.parametrize("between", [2, 2.003, -2, 0, None, 4])
@pytest.mark.parametrize("thickness", [2, 5, None])
def test_places_tell_the_distance_of_slices_whatever_the_header_says(tmp_path, between, thickness):
    frames = [frame for frame in FRAMES if frame[1] != 2]  # and a gap
    made = seg(frames, between=between, thickness=thickness, noise=2e-3)
    expected = LABELS.copy()
    expected[2] = 0
    assert check(tmp_path, made, expected) == (["geometry-conflict"] if between == 4 else [])
    assert voxel_ml(read(tmp_path, made)[1].affine) == pytest.approx(ML, rel=1e-3)


@pytest.mark.parametrize(
    ("between", "thickness", "factor", "codes"),
    [
        (2, 5, 1, []),
        (None, 2, 1, ["geometry-unknown"]),
        (None, 5, 2.5, ["geometry-unknown"]),
    ],
)
def test_slices_of_one_place_are_as_thick_as_the_header_says(tmp_path, between, thickness, factor, codes):
    frames = [frame for frame in FRAMES if frame[1] == 3]
    labels, grid, found = read(tmp_path, seg(frames, between=between, thickness=thickness))
    assert (labels.tolist(), found) == (LABELS[3:4].tolist(), codes)
    assert voxel_ml(grid.affine) == pytest.approx(factor * ML)


def test_slices_of_one_place_and_unknown_thickness_are_an_error(tmp_path):
    with pytest.raises(InputError, match="all frames lie on one slice, and neither SpacingBetweenSlices nor"):
        read(tmp_path, seg(FRAMES[:1], between=None, thickness=None))


@pytest.mark.parametrize(
    ("between", "factor", "codes"),
    [
        (2, 1, ["geometry-unknown"]),
        (1, 0.5, ["geometry-unknown"]),
        (4, 2, []),
        (None, 2, ["geometry-unknown"]),
    ],
)
def test_a_distance_that_no_two_neighbours_prove_is_doubted(tmp_path, between, factor, codes):
    labels, grid, found = read(tmp_path, seg([f for f in FRAMES if f[1] % 2], between=between))
    assert (np.count_nonzero(labels), found) == (np.count_nonzero(LABELS[1::2]), codes)
    assert voxel_ml(grid.affine) == pytest.approx(factor * ML)


@pytest.mark.parametrize(("noise", "codes"), [(4e-3, []), (8e-3, ["geometry-uneven"])])
@pytest.mark.parametrize("between", [0.5, None])
def test_places_that_are_rounded_tell_how_many_slices_a_long_gap_has(tmp_path, between, noise, codes):
    """The least distance of frames, by which the gap has 61 slices or more, is not that of slices."""
    places = [*range(6), *range(66, 72)]
    made = seg([(1, k, WHOLE[4]) for k in places], step=(0, 0, 0.5), between=between, noise=noise)
    labels, grid, found = read(tmp_path, made)
    assert (labels.any((1, 2)).nonzero()[0].tolist(), found) == (places, codes)
    assert grid.spacing[0] == pytest.approx(0.5, rel=1e-3)


def test_a_frame_beside_the_grid_is_put_on_it_where_the_header_says_how_far_slices_lie_apart(tmp_path):
    def made(between, beside):
        shifted = seg(frames_of(WHOLE), between=between)
        last = shifted.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0]
        last.ImagePositionPatient[2] += beside
        return shifted

    labels, _, codes = read(tmp_path, made(2, 0.2))
    assert (labels.tolist(), codes) == (WHOLE[1:8].tolist(), ["geometry-uneven"])
    for between, beside in ((2, 0.3), (None, 0.2), (5, 0.2)):  # 5 mm is what no frames bear out
        with pytest.raises(InputError, match="which are no multiples of one distance of slices"):
            read(tmp_path, made(between, beside))


@pytest.mark.parametrize(("k", "mm"), [(1, 0.1), (4, -0.1), (4, 0.1), (4, 0.19), (7, -0.1), (7, -0.2)])
def test_a_frame_near_its_neighbour_is_put_on_the_grid_like_a_slice_of_a_ct(tmp_path, k, mm):
    """The least distance of frames is then not that of slices, which is what SpacingBetweenSlices says."""
    made = seg(frames_of(WHOLE))
    groups = made.PerFrameFunctionalGroupsSequence
    groups[k - 1].PlanePositionSequence[0].ImagePositionPatient[2] += mm
    labels, grid, codes = read(tmp_path, made)
    assert (labels.tolist(), codes) == (WHOLE[1:8].tolist(), ["geometry-uneven"])
    position = np.array([group.PlanePositionSequence[0].ImagePositionPatient for group in groups], float)
    _, affine, warnings = place("ct", position, np.array([1.0, 0, 0, 0, 1, 0]), SPACING)
    assert [warning.code for warning in warnings] == codes
    assert grid.spacing[0] == pytest.approx(affine[2, 0])
    groups[k - 1].PlanePositionSequence[0].ImagePositionPatient[2] += 0.3 * np.sign(mm)
    with pytest.raises(InputError, match="which are no multiples of one distance of slices"):
        read(tmp_path, made)


@pytest.mark.parametrize(
    ("slices", "warned"),
    [((0, 5, 9, 30, 37), True), ((0, 2, 5), True), ((0, 6, 9, 11, 16, 22), True), ((0, 1, 3, 6), False)],
)
@pytest.mark.parametrize("mm", [2, 3, 0.7])
def test_gaps_of_several_sizes_are_counted_by_what_the_header_says(tmp_path, slices, warned, mm):
    """Gaps of 4 and of 5 slices are near to each other, and no mean of them is a multiple of that distance."""
    made = seg([(1, k, WHOLE[4]) for k in slices], step=(0, 0, mm), thickness=mm, between=mm)
    labels, grid, codes = read(tmp_path, made)
    assert codes == ["geometry-unknown"] * warned
    assert grid.spacing[0] == pytest.approx(mm)
    assert tuple(np.flatnonzero(labels.any(axis=(1, 2)))) == slices


def test_a_gap_that_is_counted_by_uneven_frames_is_doubted(tmp_path):
    """Two frames 0.983 mm apart say that the gap has 33 steps, and not 32."""
    made = seg([(1, k, WHOLE[4]) for k in (5, 6, 38)], step=(0, 0, 1), between=1)
    for group, mm in zip(made.PerFrameFunctionalGroupsSequence, (54.998, 55.981, 88.01), strict=True):
        group.PlanePositionSequence[0].ImagePositionPatient[2] = mm
    _, grid, codes = read(tmp_path, made)
    assert abs(grid.spacing[0] - 1) > 0.02
    assert codes[0] == "geometry-conflict"


def test_what_all_frames_share_need_not_be_said_of_each(tmp_path):
    made = seg(frames_of(WHOLE))
    shared = made.SharedFunctionalGroupsSequence[0]
    shared.SegmentIdentificationSequence = made.PerFrameFunctionalGroupsSequence[
        0
    ].SegmentIdentificationSequence
    for group in made.PerFrameFunctionalGroupsSequence:
        del group.SegmentIdentificationSequence
        group.PixelMeasuresSequence = shared.PixelMeasuresSequence
    del shared.PixelMeasuresSequence
    labels, _, codes = read(tmp_path, made)
    assert (labels.tolist(), codes) == (WHOLE[1:8].tolist(), [])


def labelmap(values, bits=8):
    return seg([(0, k, plane) for k, plane in enumerate(values)], kind="LABELMAP", bits=bits)


def test_a_label_map_may_have_large_numbers_and_a_segment_of_background(tmp_path):
    made = labelmap(np.array([0, 300, 70], np.uint16)[LABELS], 16)
    made.SegmentSequence = [
        segment(0, ANATOMY, ("125040", "DCM", "Background")),
        segment(70, ABNORMAL, MASS),
        segment(300, ANATOMY, LIVER),
    ]
    assert read(tmp_path, made)[0].tolist() == LABELS.tolist()
    assert read(tmp_path, made, {70: 1})[0].tolist() == (LABELS == 2).astype(int).tolist()
    made.SegmentSequence[0] = segment(0, ANATOMY, LIVER, "Odd")
    with pytest.raises(InputError, match=r"these segments are liver.*: 0 \(Odd\); say"):
        read(tmp_path, made)


@pytest.mark.parametrize("full", [1, 255])
def test_fractions_that_are_nothing_or_all_are_masks(tmp_path, full):
    frames = [(number, k, plane * full) for number, k, plane in FRAMES]
    made = seg(frames, kind="FRACTIONAL", bits=8)
    made.MaximumFractionalValue = full
    assert check(tmp_path, made) == []
    made.MaximumFractionalValue = 100
    with pytest.raises(InputError, match="are FRACTIONAL, with other values than 0 and 100; expected masks"):
        read(tmp_path, made)


def test_a_fraction_of_nothing_is_refused(tmp_path):
    """Half of the frame is 0, so as many values are the largest as are something, and the mask was the other half."""
    half = np.zeros((16, 18), np.uint8)
    half[:8] = 1
    made = seg([(1, 0, half)], kind="FRACTIONAL", bits=8)
    made.MaximumFractionalValue = 0
    with pytest.raises(InputError, match="MaximumFractionalValue is 0; expected 1 or more"):
        read(tmp_path, made)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_bits_in_other_transfer_syntaxes(tmp_path, syntax):
    made = seg(FRAMES)
    made.file_meta.TransferSyntaxUID = syntax
    assert check(tmp_path, made) == []


@pytest.mark.parametrize("bits", [8, 16])
def test_label_maps_in_big_endian(tmp_path, bits):
    made = labelmap(LABELS, bits)
    made.PixelData = LABELS.astype(f">u{bits // 8}").tobytes() + b"\0" * (LABELS.nbytes % 2)
    made.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    made.save_as(tmp_path / "seg.dcm", implicit_vr=False, little_endian=False)
    assert read_labels(tmp_path / "seg.dcm")[0].tolist() == LABELS.tolist()


@pytest.mark.parametrize("made", [seg(FRAMES), labelmap(LABELS)], ids=["bits", "bytes"])
def test_big_endian_words_hold_bytes_the_other_way_round(tmp_path, made):
    made.PixelData = np.frombuffer(made.PixelData, "<u2").astype(">u2").tobytes()
    made["PixelData"].VR = "OW"
    made.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    made.save_as(tmp_path / "seg.dcm", implicit_vr=False, little_endian=False)
    labels, _ = read_labels(tmp_path / "seg.dcm")
    assert labels.tolist() == LABELS[slice(None) if len(labels) == 9 else slice(1, 8)].tolist()


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_label_maps(tmp_path, syntax):
    made = labelmap(LABELS)
    made.compress(syntax, generate_instance_uid=False)
    assert read(tmp_path, made)[0].tolist() == LABELS.tolist()


def _drop_group(made):
    made.PerFrameFunctionalGroupsSequence.pop()


def _one_frame_less(made):
    made.NumberOfFrames -= 1


def _unknown(made):
    made.PerFrameFunctionalGroupsSequence[2].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9


def _twice(made):
    groups = made.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence = groups[0].PlanePositionSequence


def _unidentified(made):
    del made.PerFrameFunctionalGroupsSequence[2].SegmentIdentificationSequence


def _same_number(made):
    made.SegmentSequence[1].SegmentNumber = 1


def _no_segments(made):
    made.SegmentSequence = []


def _empty(made):
    made.NumberOfFrames, made.PerFrameFunctionalGroupsSequence = 0, []


def _short(made):
    made.PixelData = made.PixelData[:-2]


def _padded_frames(made):
    made.PixelData = b"".join(np.packbits(plane, bitorder="little").tobytes() for _, _, plane in FRAMES)


def _uneven(made):
    made.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0].ImagePositionPatient[2] += 0.7


def _no_type(made):
    del made.SegmentationType


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop_group, "10 frames, but functional groups of 9"),
        (_one_frame_less, "9 frames, but functional groups of 10"),
        (_unknown, "a frame shows segment 9, which is not described"),
        (_twice, "shows the same segment twice in one place"),
        (_unidentified, "a frame does not say which segment it shows"),
        (_same_number, "two segments have one number"),
        (_no_segments, "has no segments"),
        (_empty, "has no frame"),
        (_short, "1526 bytes of pixels, and a header that asks for 1527"),
        (_padded_frames, "1530 bytes of pixels, and a header that asks for 1527"),
        (_uneven, "which are no multiples of one distance of slices"),
        (_no_type, "its segments are of no type"),
    ],
)
@pytest.mark.parametrize("between", [2, None])
def test_damaged_ones_are_refused(tmp_path, spoil, message, between):
    made = seg(FRAMES, between=between)
    spoil(made)
    with pytest.raises(InputError, match=message):
        read(tmp_path, made)


def test_a_label_map_of_a_segment_that_is_not_described_is_refused(tmp_path):
    values = LABELS.copy()
    values[2, 5, 5] = 9
    with pytest.raises(InputError, match="a frame shows segment 9, which is not described"):
        read(tmp_path, labelmap(values), {1: 1})


def test_a_label_map_of_negative_numbers_is_refused(tmp_path):
    made = labelmap(np.where(TUMOUR, 255, LABELS))
    made.PixelRepresentation = 1
    with pytest.raises(InputError, match=r"a frame shows segment 65535, which is not described"):
        read(tmp_path, made)


def test_a_file_that_ends_early_is_refused(tmp_path):
    whole = save(tmp_path / "seg.dcm", seg(FRAMES)).read_bytes()
    for end in (*range(200, len(whole), 97), len(whole) - 2):
        (tmp_path / "seg.dcm").write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"seg\.dcm: "):
            read_labels(tmp_path / "seg.dcm")


@pytest.mark.parametrize("noise", [0, 1e-3])
def test_few_frames_with_rounded_places_lie_on_a_long_ct(tmp_path, noise):
    """Steps between two rounded places, extended over the slices of a whole CT, would end beside it."""
    count, first, step = 400, 200, 0.5
    planes = np.zeros((count, *SHAPE[1:]), np.uint8)
    planes[first : first + 2] = WHOLE[4]
    affine = np.diag([-1.0, -1, 1, 1]) @ np.diag([SPACING[1], SPACING[0], step, 1])
    affine[:3, 3] = np.array([-1, -1, 1]) * ORIGIN
    nib.save(nib.Nifti1Image(planes.T, affine), tmp_path / "ct.nii.gz")
    made = seg(frames_of(planes), step=(0, 0, step), between=step, thickness=step, noise=noise)
    save(tmp_path / "seg.dcm", made)
    for pair in (("ct.nii.gz", "seg.dcm"), ("seg.dcm", "ct.nii.gz")):
        scores = score(Pair("a", *(tmp_path / name for name in pair)))
        assert (scores.liver.overlap.dice, scores.warnings) == (1, ())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("beside", [-0.08, 0.06, 0.08])  # of 0.07 mm, a tenth of a voxel
def test_a_segmentation_beside_the_grid_of_the_other_file_is_not_of_its_ct(tmp_path, beside, axis):
    affine = np.diag([-SPACING[1], -SPACING[0], 2.0, 1])
    affine[:3, 3] = np.array([-1, -1, 1]) * ORIGIN
    nib.save(nib.Nifti1Image(WHOLE.T, affine), tmp_path / "ct.nii.gz")
    made = seg(frames_of(WHOLE))  # without the empty slices at both ends
    for group in made.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[axis] += beside
    save(tmp_path / "seg.dcm", made)
    for pair in (("ct.nii.gz", "seg.dcm"), ("seg.dcm", "ct.nii.gz")):
        paths = [tmp_path / name for name in pair]
        if beside == 0.06:
            assert score(Pair("a", *paths)).liver.overlap.dice == 1
        else:
            with pytest.raises(InputError, match="must belong to the same CT"):
                score(Pair("a", *paths))


def test_a_slice_of_unknown_thickness_is_as_thick_as_those_of_the_other_file(tmp_path):
    planes = np.zeros((9, *SHAPE[1:]), np.uint8)
    planes[4] = LABELS[4]
    affine = np.diag([-SPACING[1], -SPACING[0], 2.5, 1])
    affine[:3, 3] = np.array([-1, -1, 1]) * ORIGIN
    nib.save(nib.Nifti1Image(planes.T, affine), tmp_path / "ct.nii.gz")
    frames = frames_of(planes > 0, planes == 2)
    save(tmp_path / "seg.dcm", seg(frames, step=(0, 0, 2.5), between=None, thickness=5))
    scores = score(Pair("a", tmp_path / "ct.nii.gz", tmp_path / "seg.dcm"))
    assert scores.predicted_ml == pytest.approx(np.count_nonzero(planes == 2) * ML * 2.5 / 2)
    assert scores.tumour.overlap.dice == 1


def test_without_a_segment_of_the_liver_all_that_is_said_of_it_is_doubted(tmp_path):
    made = seg([(2, k, plane) for _, k, plane in frames_of(TUMOUR)])
    del made.SegmentSequence[0]
    labels, _, codes = read(tmp_path, made)
    assert (labels.max(), codes) == (2, ["liver-segment"])
    save(tmp_path / "other.dcm", seg(FRAMES))
    for pair in (("seg.dcm", "other.dcm"), ("other.dcm", "seg.dcm")):
        (warning,) = score(Pair("a", *(tmp_path / name for name in pair))).warnings
        assert warning.startswith(f"{tmp_path / 'seg.dcm'}: Nothing is liver but the tumours")


@pytest.mark.parametrize("scheme", ["SRT", "SNM3", "99SDM"])
def test_codes_of_old_files_are_known(tmp_path, scheme):
    liver = "T-62000", scheme, "Liver"
    mass = segment(2, ("M-01000", scheme, "x"), ("M-03000", scheme, "x"))
    mass.AnatomicRegionSequence = code(*liver)
    made = seg(FRAMES)
    made.SegmentSequence = [segment(1, ("T-D0050", scheme, "Tissue"), liver), mass]
    assert check(tmp_path, made) == []


@pytest.mark.parametrize("liver", [("T-62000", "SNM", ""), ("T-62000", "SCT", ""), ("T-65000", "SNM3", "")])
def test_codes_that_look_like_old_ones_are_not_guessed(tmp_path, liver):
    made = seg(FRAMES)
    made.SegmentSequence[0] = segment(1, ANATOMY, liver, "Liver")
    with pytest.raises(InputError, match=r"or an abnormal part of it: 1 \(Liver\); say which"):
        read(tmp_path, made)


def test_segments_that_were_asked_for_and_are_not_there_are_named(tmp_path):
    assert read(tmp_path, seg(FRAMES), {1: 1, 2: 2})[2] == []
    _, grid, codes = read(tmp_path, seg(FRAMES), {1: 1, 9: 2, 7: 2})
    assert (codes, grid.warnings[0].text) == (
        ["liver-segment"],
        "There is no segment 7, 9; there are 1, 2.",
    )


def test_a_zip_is_to_be_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "seg.zip", "w") as file:
        file.write(save(tmp_path / "seg.dcm", seg(FRAMES)), "seg.dcm")
    with pytest.raises(InputError, match=r"seg\.zip: is a zip; expected labels, unpack it"):
        read_labels(tmp_path / "seg.zip")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom
@pytest.mark.parametrize("kind", ["bits", "label map", "compressed"])
def test_damage_is_an_error_of_trtseg_or_labels_all_the_same(tmp_path, kind):
    made = seg(FRAMES) if kind == "bits" else labelmap(LABELS)
    if kind == "compressed":
        made.compress(RLELossless, generate_instance_uid=False)
    whole = save(tmp_path / "seg.dcm", made).read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        spoilt = bytearray(whole)
        at = int(random.integers(132, whole.index(b"\xe0\x7f\x10\x00")))
        if random.random() < 0.3:
            del spoilt[at : at + 5]
        else:
            spoilt[at] = int(random.integers(256))
        (tmp_path / "seg.dcm").write_bytes(spoilt)
        try:
            labels, grid = read_labels(tmp_path / "seg.dcm")
        except InputError as error:
            refused += str(error).startswith(str(tmp_path / "seg.dcm"))
        else:
            assert labels.shape == grid.canonical_shape
    assert refused > 75
