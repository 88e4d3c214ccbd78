"""DICOM Segmentations as labels: those of trtseg, of dcmqi, and made ones with segments of other kinds."""

from __future__ import annotations

from pathlib import Path

import dicom_made
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_results import WAYS, make
from dicom_segs import ABNORMAL, ANATOMY, LIVER, MASS
from typer.testing import CliRunner

from trtseg.cli import app
from trtseg.errors import InputError
from trtseg.followup import compare
from trtseg.io import load, read_labels
from trtseg.io.dicom_out import write_dicom
from trtseg.pairs import Pair, draw, score
from trtseg.result import Segmentation

highdicom = pytest.importorskip("highdicom")
DCMQI = Path(__file__).parents[2] / "shared" / "data" / "dcmqi_ct3"
SPLEEN = ("78961009", "SCT", "Spleen")
PATIENT = dict.fromkeys(
    ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyTime", "StudyDate", "StudyID"), ""
)
LPS = np.diag([-1.0, -1, 1, 1])


def places(labels, affine, label):
    """Centres of the voxels of a label, LPS mm, in an order of their own: rounded to a hundredth, sorted."""
    z, y, x = np.nonzero(labels == label)
    points = (LPS @ affine @ np.stack([x, y, z, np.ones(len(x))]))[:3].T.round(2) + 0.0
    return points[np.lexsort(points.T)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["seg", "labelmap"])
def test_labels_lie_where_they_were_written(tmp_path, way, kind):
    case = make(tmp_path / "ct", way)
    write_dicom([(kind, tmp_path / "seg.dcm")], case.result)
    labels, grid = read_labels(tmp_path / "seg.dcm")
    assert (labels.dtype, labels.flags.c_contiguous, labels.shape) == (np.uint8, True, grid.canonical_shape)
    for label in (1, 2):
        points = case.points[case.labels == label].round(2) + 0.0
        assert (
            np.abs(places(labels, grid.canonical_affine(), label) - points[np.lexsort(points.T)]).max() < 0.02
        )
    assert labels.shape == ((7, 20, 50) if way == "coronal" else (5, 44, 50))  # slices with liver, [Z, Y, X]


def test_a_segmentation_of_dcmqi_is_the_file_from_which_it_was_made():
    if not DCMQI.is_dir():
        pytest.skip("needs shared/data/dcmqi_ct3")
    labels, grid = read_labels(DCMQI / "liver.dcm")
    expected, other = read_labels(DCMQI / "liver_seg.nrrd", {1: 1})
    assert np.count_nonzero(labels) == np.count_nonzero(expected) > 10_000
    assert np.array_equal(
        places(labels, grid.canonical_affine(), 1), places(expected, other.canonical_affine(), 1)
    )


def segmentation(folder, segments, **options):
    """Write a Segmentation of an axial series of 6 slices; segments: (category, type, label, mask [6, 16, 18])."""
    files = [
        dicom_made.instance(
            np.zeros((16, 18), np.int16),
            ImagePositionPatient=[0, 0, 2.0 * k],
            InstanceNumber=k,
            SliceThickness=3,
            **PATIENT,
        )
        for k in range(6)
    ]
    described = [
        highdicom.seg.SegmentDescription(
            number,
            label,
            highdicom.sr.CodedConcept(*category),
            highdicom.sr.CodedConcept(*kind),
            "MANUAL",
            anatomic_regions=[highdicom.sr.CodedConcept(*region) for region in regions],
        )
        for number, (category, kind, label, _, *regions) in enumerate(segments, 1)
    ]
    seg = highdicom.seg.Segmentation(
        files,
        np.stack([mask for _, _, _, mask, *_ in segments], -1),
        **{"segmentation_type": "BINARY"} | options,
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=2,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
    )
    seg.save_as(folder / "seg.dcm")
    return folder / "seg.dcm"


def mask(*box):
    made = np.zeros((6, 16, 18), np.uint8)
    made[tuple(slice(*ends) for ends in box)] = 1
    return made


WHOLE, INSIDE, BESIDE = (
    mask((1, 5), (1, 7), (1, 6)),
    mask((2, 3), (2, 4), (2, 4)),
    mask((0, 6), (5, 8), (7, 9)),
)


def test_tumours_count_where_a_segment_of_the_liver_holds_them_too(tmp_path):
    path = segmentation(
        tmp_path, [(ANATOMY, LIVER, "Liver", WHOLE), (ABNORMAL, MASS, "Tumour", INSIDE, LIVER)]
    )
    labels, grid = read_labels(path)
    assert grid.spacing == (2.0, *grid.spacing[1:])
    assert labels.tolist() == (WHOLE + INSIDE)[1:5].tolist()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            (ANATOMY, SPLEEN, "Spleen", BESIDE),
            r"segments are liver, or an abnormal part of it: 2 \(Spleen\); say",
        ),
        ((ABNORMAL, MASS, "Node", BESIDE, SPLEEN), r"an abnormal part of it: 2 \(Node\); say which"),
    ],
)
def test_segments_of_other_things_need_a_meaning(tmp_path, other, message):
    path = segmentation(tmp_path, [(ANATOMY, LIVER, "Liver", WHOLE), other])
    with pytest.raises(InputError, match=message):
        read_labels(path)
    assert read_labels(path, {1: 1})[0].tolist() == WHOLE.tolist()  # the other segment has more slices
    assert read_labels(path, {2: 2})[0].tolist() == (2 * BESIDE).tolist()
    assert not read_labels(path, {9: 1})[0].any()


def test_slices_between_two_frames_are_background(tmp_path):
    apart = mask((0, 1), (1, 3), (1, 3)) + mask((1, 2), (1, 3), (1, 3)) + mask((5, 6), (1, 3), (1, 3))
    labels, _ = read_labels(segmentation(tmp_path, [(ANATOMY, LIVER, "Liver", apart)]))
    assert labels.tolist() == apart.tolist()


def test_what_cannot_be_read_is_an_error(tmp_path):
    dicom_made.save(tmp_path / "ct.dcm", dicom_made.instance(np.zeros((16, 16), np.int16)))
    with pytest.raises(InputError, match=r"ct\.dcm: is DICOM of the modality CT; expected a Segmentation"):
        read_labels(tmp_path / "ct.dcm")
    shares = {"segmentation_type": "FRACTIONAL", "max_fractional_value": 100}
    path = segmentation(tmp_path, [(ANATOMY, LIVER, "Liver", WHOLE.astype(np.float32) / 2)], **shares)
    with pytest.raises(InputError, match=r"its segments are FRACTIONAL, with other values than 0 and 100; "):
        read_labels(path)
    seg = pydicom.dcmread(segmentation(tmp_path, [(ANATOMY, LIVER, "Liver", WHOLE)]))
    seg.PixelData = seg.PixelData[:8]
    seg.save_as(path)
    with pytest.raises(
        InputError, match=r"seg\.dcm: 8 bytes of pixels, and a header that asks for 144; .* fetch"
    ):
        read_labels(path)


@pytest.fixture
def both(tmp_path):
    """A result as NIfTI and as a Segmentation, which has two slices less, and its CT."""
    case = make(tmp_path / "ct", "axial")
    case.result.save(tmp_path / "seg.nii.gz")
    case.result.save(tmp_path / "seg.dcm")
    return tmp_path


def altered(path, cut):
    """The labels of a file without those of a slice, beside it."""
    image = nib.load(path)
    labels = np.asarray(image.dataobj).copy()
    labels[:, :, cut] = 0
    nib.save(nib.Nifti1Image(labels, image.affine, image.header), path.with_name("cut.nii.gz"))
    return path.with_name("cut.nii.gz")


def test_evaluation_takes_segmentations_on_either_side(both):
    nifti, seg = both / "seg.nii.gz", both / "seg.dcm"
    cut = altered(nifti, 2)
    expected = score(Pair("a", cut, nifti))
    assert 0.5 < expected.liver.overlap.dice < 0.95
    assert score(Pair("a", cut, seg)).to_dict() == expected.to_dict()
    assert score(Pair("a", seg, cut)).to_dict() == score(Pair("a", nifti, cut)).to_dict()
    for pair in (Pair("a", seg, seg), Pair("a", seg, nifti), Pair("a", nifti, seg)):
        assert score(pair).liver.overlap.dice == score(pair).tumour.overlap.dice == 1.0


def test_evaluation_takes_a_segmentation_of_a_tilted_gantry(tmp_path):
    case = make(tmp_path / "ct", "tilted gantry")
    case.result.save(tmp_path / "seg.nii.gz")
    case.result.save(tmp_path / "seg.dcm")
    scores = score(Pair("a", tmp_path / "seg.nii.gz", tmp_path / "seg.dcm"))
    assert scores.liver.overlap.dice == scores.tumour.overlap.dice == 1
    assert scores.predicted_ml == pytest.approx(case.result.tumour_ml)
    assert "The gantry was tilted by 12.0 degrees" in scores.warnings[0]
    before, after = compare(tmp_path / "seg.nii.gz", tmp_path / "seg.dcm").liver_ml
    assert before == pytest.approx(after) == pytest.approx(case.result.liver_ml)


def test_two_segmentations_of_unlike_ends_are_put_on_one_grid(tmp_path):
    (tmp_path / "low").mkdir()
    (tmp_path / "high").mkdir()
    low = segmentation(tmp_path / "low", [(ANATOMY, LIVER, "Liver", mask((0, 3), (1, 7), (1, 6)))])
    high = segmentation(tmp_path / "high", [(ANATOMY, LIVER, "Liver", mask((2, 6), (1, 7), (1, 6)))])
    assert score(Pair("a", low, high)).liver.overlap.dice == pytest.approx(2 * 1 / (3 + 4))
    apart = segmentation(tmp_path / "high", [(ANATOMY, LIVER, "Liver", mask((4, 6), (1, 7), (1, 6)))])
    assert score(Pair("a", low, apart)).liver.overlap.dice == 0
    far = pydicom.dcmread(apart)
    for group in far.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[2] += 10_000
    far.save_as(tmp_path / "far.dcm")
    with pytest.raises(InputError, match="must belong to the same CT"):
        score(Pair("a", low, tmp_path / "far.dcm"))


def test_a_segmentation_that_reaches_beyond_a_file_is_not_of_its_ct(both):
    image = nib.load(both / "seg.nii.gz")
    nib.save(image.slicer[:, :, :3], both / "short.nii.gz")
    with pytest.raises(InputError, match="must belong to the same CT"):
        score(Pair("a", both / "short.nii.gz", both / "seg.dcm"))


def test_overlays_are_drawn_on_the_whole_ct(both):
    pair = Pair("a", both / "seg.dcm", both / "seg.dcm", both / "ct")
    assert load(pair.ct).array.shape[0] == 7
    draw(pair, score(pair), both / "a.png")
    assert (both / "a.png").read_bytes()[:4] == b"\x89PNG"


def series_of(folder):
    return pydicom.dcmread(min(folder.iterdir())).SeriesInstanceUID


def test_overlays_on_one_of_several_phases_are_warned_of(both):
    """Which of them the labels are of, nobody can tell: the picture may show another one."""
    for n, path in enumerate(sorted((both / "ct").iterdir())):
        header = pydicom.dcmread(path)
        header.SeriesInstanceUID, header.SOPInstanceUID = "1.2.9", f"1.2.9.{n}"
        header.save_as(path.with_name(f"z{path.name}"))
    options = ("--ct", both / "ct", "--overlays", both / "worst", "-q")
    arguments = ("evaluate", both / "seg.dcm", both / "seg.nii.gz", *options)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0
    assert (
        f"warning: {both / 'ct'}: By what the headers say, another series is as good a choice" in done.stderr
    )
    assert (both / "worst" / "seg.png").is_file()
    for series in ("1.2.9", series_of(both / "ct")):
        done = CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--series", series)])
        assert (done.exit_code, done.stderr) == (0, "")


def test_overlays_are_drawn_on_the_series_that_is_named(both):
    for n, path in enumerate(sorted((both / "ct").iterdir())):
        header = pydicom.dcmread(path)
        header.SeriesInstanceUID, header.SOPInstanceUID = "1.2.9", f"1.2.9.{n}"
        header.RescaleIntercept += 60  # brighter
        header.save_as(path.with_name(f"z{path.name}"))

    def drawn(*options):
        arguments = (
            "evaluate",
            both / "seg.dcm",
            both / "seg.nii.gz",
            "--overlays",
            both / "o",
            "-q",
            *options,
        )
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return done, (both / "o" / "seg.png").read_bytes() if done.exit_code == 0 else b""

    own = series_of(both / "ct")
    assert drawn("--ct", both / "ct", "--series", own)[1] == drawn("--ct", both / "ct")[1]
    assert drawn("--ct", both / "ct", "--series", "1.2.9")[1] not in (b"", drawn("--ct", both / "ct")[1])
    done, _ = drawn("--ct", both / "ct", "--series", "1.2.7")
    assert (done.exit_code, "ct: holds no series 1.2.7; it holds: " in done.stderr) == (3, True)
    done, _ = drawn("--ct", both / "seg.nii.gz", "--series", own)
    assert "series: got" in done.stderr
    for arguments in (
        (both / "seg.dcm", both / "seg.nii.gz", "--series", own),
        (both, both, "--ct", both, "--overlays", both / "o", "--series", own),
    ):
        done = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
        assert (done.exit_code, done.stderr[:12]) == (2, "error: --ser")


def test_among_cts_a_folder_of_dicom_files_has_the_name_of_its_case(both):
    for name in ("found", "truth", "cts"):
        (both / name / "ward").mkdir(parents=True)
    (both / "seg.dcm").rename(both / "found" / "ward" / "a_seg.dcm")
    (both / "seg.nii.gz").rename(both / "truth" / "ward" / "a.nii.gz")
    (both / "ct").rename(both / "cts" / "ward" / "a")
    options = ("--ct", both / "cts", "--overlays", both / "worst", "-q")
    arguments = ("evaluate", both / "found", both / "truth", *options)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert (done.exit_code, done.output) == (0, "")
    assert [path.name for path in (both / "worst").rglob("*.png")] == ["a.png"]
    (both / "cts" / "ward" / "a").rename(both / "cts" / "ward" / "b")
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert (done.exit_code, "--ct has no CT of that name" in done.output) == (3, True)


def test_the_commands_take_segmentations(both):
    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    nifti, seg = both / "seg.nii.gz", both / "seg.dcm"
    assert run("evaluate", seg, nifti, "--json", both / "e.json").exit_code == 0
    (both / "seg.json").write_text("{}")
    options = ("--ct", both / "ct", "--overlays", both / "worst")
    assert run("evaluate", seg, nifti, *options).exit_code == 0
    assert (both / "worst" / "seg.png").read_bytes()[:4] == b"\x89PNG"
    nifti.rename(both / "other.nii.gz")
    made = run("compare", both / "seg.json", both / "other.nii.gz")
    assert (made.exit_code, "unchanged" in made.stdout) == (0, True)
    assert "warning: before: the liver reaches the end of the slices that this DICOM" in made.stderr
    findings = compare(both / "other.nii.gz", both / "other.nii.gz").findings
    of_seg = compare(seg, seg)
    assert [f.before.volume_ml for f in of_seg.findings] == [f.before.volume_ml for f in findings]
    assert not any("reaches the end of the scan" in warning for warning in of_seg.warnings)
    assert of_seg.findings[0].before.slice < findings[0].before.slice  # without the empty ones
    assert all("slices count from the first that it holds" in warning for warning in of_seg.warnings[1:])


def test_without_a_segment_of_a_tumour_it_is_doubted_that_there_are_none(tmp_path):
    liver = segmentation(tmp_path, [(ANATOMY, LIVER, "Liver", WHOLE)]).rename(tmp_path / "liver.dcm")
    both = segmentation(
        tmp_path, [(ANATOMY, LIVER, "Liver", WHOLE), (ABNORMAL, MASS, "Tumour", INSIDE, LIVER)]
    )
    assert [one.code for one in read_labels(liver)[1].warnings] == ["tumour-segment"]
    for given in ({1: 1}, {1: 1, 2: 2}):  # whoever says what segments mean knows them
        assert "tumour-segment" not in [one.code for one in read_labels(liver, given)[1].warnings]
    assert read_labels(both)[1].warnings == ()
    said = "No segment is a tumour. Unless somebody looked for tumours"
    (warning,) = score(Pair("a", both, liver)).warnings
    assert warning.startswith(f"{liver}: {said}")
    assert score(Pair("a", both, liver), liver_only=True).warnings == ()
    assert f"after: {read_labels(liver)[1].warnings[0].text}" in compare(both, liver).warnings


def test_a_result_without_tumours_says_that_there_are_none(tmp_path):
    found = make(tmp_path / "ct", "axial").result
    healthy = Segmentation.measure(np.minimum(found.canonical, 1), found.volume, provenance=found.provenance)
    write_dicom([("seg", tmp_path / "seg.dcm")], healthy)
    labels, grid = read_labels(tmp_path / "seg.dcm")
    assert (labels.max(), grid.warnings) == (1, ())
    header = pydicom.dcmread(tmp_path / "seg.dcm")
    header.ContentDescription = "another program's"
    header.save_as(tmp_path / "seg.dcm")
    assert [one.code for one in read_labels(tmp_path / "seg.dcm")[1].warnings] == ["tumour-segment"]


def test_a_segmentation_with_empty_frames_at_both_ends_shows_a_whole_liver(tmp_path):
    path = segmentation(tmp_path, [(ANATOMY, LIVER, "Liver", WHOLE)], omit_empty_frames=False)
    assert read_labels(path)[0].shape[0] == 6
    assert not any("cuts the liver" in warning for warning in compare(path, path).warnings)


def test_a_segmentation_with_empty_frames_at_one_end_may_be_cut_at_the_other(tmp_path):
    """It has empty slices, which the warning said it had not."""
    liver = mask((0, 5), (1, 7), (1, 6))
    path = segmentation(tmp_path, [(ANATOMY, LIVER, "Liver", liver)], omit_empty_frames=False)
    assert read_labels(path)[0].any((1, 2)).tolist() == [True] * 5 + [False]
    told = "the liver reaches the end of the slices that this DICOM Segmentation holds, so it does not tell"
    warnings = compare(path, path).warnings
    assert [warning.split(":")[0] for warning in warnings if told in warning] == ["before", "after"]
