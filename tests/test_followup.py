"""Two scans of one patient: made-up livers whose shift, lesions and changes are known."""

import json
from itertools import pairwise

import dicom_made
import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from trtseg.cli import app
from trtseg.errors import ArgumentError, InputError
from trtseg.followup import Comparison, Finding, Side, compare
from trtseg.io import read_labels, save
from trtseg.report.comparison import comparison_html

SPACING = (3.0, 2.0, 2.0)  # z, y, x
CENTRE = np.array([75.0, 60.0, 70.0])  # mm along z, y, x


def scan(path, lesions, moved=(0, 0, 0), spacing=SPACING):
    """An egg of a liver with balls in it, each (place from its centre in mm, radius in mm); all moved in the scan."""
    shape = tuple(int(150 / mm) for mm in spacing)
    mm = np.stack(
        np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"), -1
    )
    from_centre = mm - CENTRE - moved
    labels = (np.square(from_centre / (45, 40, 55)).sum(-1) < 1).astype(np.uint8)
    for place, radius in lesions:
        labels[np.square(from_centre - place).sum(-1) <= radius**2] = 2
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), path)
    return path


def block(path, columns, slices=30):
    """A block of a liver, 2 mm from voxel to voxel, with one row of tumour from the first to the last of columns."""
    labels = np.zeros((40, 40, 60), np.uint8)
    labels[5 : 5 + slices, 5:35, 2:58] = 1
    if columns:
        labels[20, 20, columns[0] : columns[1] + 1] = 2
    affine = np.diag([-2.0, -2, 2, 1])
    affine[:3, 3] = 30, -40, 50
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), path)
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ball(radius):
    return 4 / 3 * np.pi * radius**3 / 1000


def test_each_change_is_found_and_measured_although_the_patient_lies_elsewhere(tmp_path):
    stays, grows, shrinks, goes, comes = (0, 20, 0), (20, 0, 20), (-20, 0, 20), (0, 0, -35), (15, -10, -20)
    before = scan(tmp_path / "a.nii.gz", [(stays, 9), (grows, 7), (shrinks, 10), (goes, 8)])
    moved = (12, -9, 10)
    after = scan(tmp_path / "b.nii.gz", [(stays, 9), (grows, 10), (shrinks, 6), (comes, 8)], moved)
    made = compare(before, after)
    assert made.shift_mm == pytest.approx(
        (10, -9, -12), abs=1
    )  # RAS: against x and y of the scan, along z, and back
    assert made.liver_dice > 0.97
    assert made.warnings == ()
    by_status = {finding.status: finding for finding in made.findings}
    assert len(by_status) == len(made.findings) == 5
    radii = {"unchanged": (9, 9), "grown": (7, 10), "shrunk": (10, 6), "gone": (8, None), "new": (None, 8)}
    for status, pair in radii.items():
        for side, radius in zip((by_status[status].before, by_status[status].after), pair, strict=True):
            assert (side is None) == (radius is None), status
            if side is not None:
                assert side.volume_ml == pytest.approx(ball(radius), rel=0.15)
                assert 2 * radius - 5 < side.short_mm <= side.long_mm <= 2 * radius + 1e-6
    assert [f.status for f in made.findings][-2:] == ["gone", "new"]
    assert by_status["grown"].before.slice == (75 + 20) // 3
    # RECIST-like: the two longest before, 20 and 18 mm, become 12 and 18.
    assert made.diameters() == pytest.approx((38, 30), abs=3)
    assert made.response() == "progression"  # for the new lesion


def test_a_scan_is_equal_to_itself_and_to_its_copy_on_another_grid(tmp_path):
    lesions = [((0, 20, 0), 9), ((20, 0, 20), 7)]
    one = scan(tmp_path / "a.nii.gz", lesions)
    other = scan(tmp_path / "b.nii.gz", lesions, spacing=(2.5, 1.5, 1.5))
    for after in (one, other):
        made = compare(one, after)
        assert made.shift_mm == pytest.approx((0, 0, 0), abs=0.8)
        assert [f.status for f in made.findings] == ["unchanged", "unchanged"]
        assert made.response() == "stable"
    assert compare(one, one).liver_dice > 0.99


def test_a_liver_in_the_first_slice_row_and_column_lies_on_itself(tmp_path):
    labels = np.ones((20, 20, 20), np.uint8)
    labels[:2, :2, :2] = 2
    nib.save(nib.Nifti1Image(labels, np.diag([-2.0, -2, 2, 1])), tmp_path / "a.nii.gz")
    made = compare(tmp_path / "a.nii.gz", tmp_path / "a.nii.gz")
    assert (*made.shift_mm, made.liver_dice) == pytest.approx((0, 0, 0, 1), abs=1e-9)
    assert str(made.report()["shift_mm"]) == "[0.0, 0.0, 0.0]"
    assert [f.status for f in made.findings] == ["unchanged"]


@pytest.mark.parametrize(("first", "last", "reaches"), [(0, 18, True), (1, 19, True), (1, 18, False)])
def test_a_liver_in_the_first_or_the_last_slice_may_go_on(tmp_path, first, last, reaches):
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5:15, 5:15, first : last + 1] = 1
    labels[10, 10, 10] = 2
    nib.save(nib.Nifti1Image(labels, np.diag([-2.0, -2, 2, 1])), tmp_path / "a.nii.gz")
    _, *warnings = compare(tmp_path / "a.nii.gz", tmp_path / "a.nii.gz").warnings
    assert [w.split(", so")[0] for w in warnings] == [
        f"{when}: the liver reaches the end of the scan" for when in ("before", "after") if reaches
    ]


def test_a_flat_lesion_between_two_thick_slices_is_not_lost(tmp_path):
    """Each voxel of it lies in the later lesion, and no voxel of the later one in it."""
    before = scan(tmp_path / "a.nii.gz", [((2.5, 0, 0), 1.6)], spacing=(1.0, 2.0, 2.0))
    after = scan(tmp_path / "b.nii.gz", [((-12, 0, 0), 22)], spacing=(5.0, 2.0, 2.0))
    assert [one.status for one in compare(before, after).findings] == ["grown"]
    assert [one.status for one in compare(after, before).findings] == ["shrunk"]


@pytest.mark.parametrize(
    ("rows", "columns"), [(slice(25, None), slice(None)), (slice(None), slice(None, 35))]
)
def test_a_liver_at_the_edge_of_the_picture_is_cut(tmp_path, rows, columns):
    whole = scan(tmp_path / "a.nii.gz", [])
    nib.save(nib.load(whole).slicer[columns, rows], tmp_path / "b.nii.gz")
    warning = compare(whole, tmp_path / "b.nii.gz").warnings[0]
    assert warning.startswith(
        "after: the liver reaches the edge of the picture, so its volume is a lower bound"
    )


def test_a_liver_that_only_touches_the_edge_is_not_cut(tmp_path):
    """100 mm2 of it do."""
    path = block(tmp_path / "a.nii.gz", None)
    image = nib.load(path)
    labels = np.asanyarray(image.dataobj).copy()
    labels[0, 20, 5:30] = 1
    nib.save(nib.Nifti1Image(labels, image.affine), tmp_path / "b.nii.gz")
    assert not [text for text in compare(path, tmp_path / "b.nii.gz").warnings if "edge" in text]


def test_all_say_the_same_number():
    """28.5485 mm is 28.5 everywhere, and not 28.6 by way of 28.55."""
    finding = Finding("grown", *(Side((1,), 9.0, mm, 5.0, mm, (mm,), 10) for mm in (20.0, 28.5485)))
    made = Comparison(("a", "b"), (900.0, 900.0), (9.0, 9.0), (0.0, 0.0, 0.0), 1.0, (finding,), ())
    assert made.report()["sum_of_diameters_mm"] == [20, 28.5485]
    assert "20.0 → 28.5 (+43%)" in comparison_html(made.report()).decode()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("part", [slice(0, 20), slice(10, 30)])
def test_what_lies_beyond_the_earlier_scan_is_not_shared(tmp_path, axis, part):
    affine = np.diag([-2.0, -2, 2, 1])
    nib.save(nib.Nifti1Image(np.ones((30, 30, 30), np.uint8), affine), tmp_path / "b.nii.gz")
    affine[:, 3] += affine[:, axis] * part.start
    labels = np.ones(np.where(np.arange(3) == axis, 20, 30), np.uint8)
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "a.nii.gz")
    made = compare(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert made.liver_dice == pytest.approx(2 * 20 / 50)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", [0, 25])
def test_a_scan_of_one_end_of_the_liver_comes_to_lie_on_that_end(tmp_path, axis, end):
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[2:28, 14:16, 14:16] = 1  # a rod with a bar across one of its ends, which fits nowhere else
    labels[end + 1 : end + 3, 14:16, 8:22] = 1
    part = labels.copy()
    part[: 24 if end else 0] = part[30 if end else 6 :] = 0
    affine = np.diag([-4.0, -4, 4, 1])
    for name, shown in (("whole", labels), ("part", part)):
        nib.save(nib.Nifti1Image(np.moveaxis(shown, 0, axis), affine), tmp_path / f"{name}.nii.gz")
    for pair in (("whole", "part"), ("part", "whole")):
        made = compare(*(tmp_path / f"{name}.nii.gz" for name in pair))
        assert made.shift_mm == pytest.approx((0, 0, 0), abs=2)


def test_the_longest_lesions_are_summed_and_not_the_largest(tmp_path):
    labels = np.zeros((20, 60, 60), np.uint8)
    labels[2:18, 5:55, 5:55] = 1
    labels[4:9, 10:16, 10:16] = labels[11:16, 10:16, 30:36] = 2  # wide: 10 mm along each axis
    labels[5, 40, 10:26] = labels[5, 50, 10:23] = 2  # 30 and 24 mm long
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), np.diag([-2.0, -2, 2, 1])), tmp_path / "a.nii.gz")
    assert compare(tmp_path / "a.nii.gz", tmp_path / "a.nii.gz").diameters() == pytest.approx((54, 54))


def test_of_many_lesions_the_254_largest_are_compared(tmp_path):
    labels = np.ones((20, 20, 20), np.uint8)
    labels[::2, ::2, 1:6:2] = 2  # 300 lesions of a voxel
    labels[0, 0, 15:18] = 2
    nib.save(nib.Nifti1Image(labels, np.diag([-2.0, -2, 2, 1])), tmp_path / "a.nii.gz")
    made = compare(tmp_path / "a.nii.gz", tmp_path / "a.nii.gz")
    assert "before: has 301 lesions; the 254 largest are compared" in made.warnings
    assert [f.before.lesions for f in made.findings] == [(n,) for n in range(1, 255)]
    assert [f.before for f in made.findings] == [f.after for f in made.findings]
    assert made.findings[0].before.volume_ml == pytest.approx(0.024)


def test_a_lesion_that_falls_apart_is_one_finding(tmp_path):
    before = scan(tmp_path / "a.nii.gz", [((0, 0, 0), 16)])
    after = scan(tmp_path / "b.nii.gz", [((0, 0, -11), 6), ((0, 0, 11), 6)])
    for pair, parts in (((before, after), ((1,), (1, 2))), ((after, before), ((1, 2), (1,)))):
        (finding,) = compare(*pair).findings
        assert (finding.before.lesions, finding.after.lesions) == parts
    assert compare(before, after).response() == "partial"
    assert compare(before, after).findings[0].after.volume_ml == pytest.approx(2 * ball(6), rel=0.15)


def test_a_liver_that_is_only_moved_comes_to_lie_on_itself(tmp_path):
    before = scan(tmp_path / "a.nii.gz", [((0, 0, 0), 9), ((0, 0, 22), 9)])  # 4 mm of liver between
    image = nib.load(before)
    for moved in ((2, 2, 2), (2, -2, 2), (-13.3, 7.1, 40.4)):
        affine = image.affine.copy()
        affine[:3, 3] += moved
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), tmp_path / "b.nii.gz")
        made = compare(before, tmp_path / "b.nii.gz")
        assert made.shift_mm == pytest.approx(
            [-mm for mm in moved], abs=1
        )  # half a voxel: the livers are equal then
        assert made.liver_dice > 0.999
        assert [(f.status, f.before.lesions, f.after.lesions) for f in made.findings] == [
            ("unchanged", (1,), (1,)),
            ("unchanged", (2,), (2,)),
        ]


def test_parts_of_a_lesion_count_each_in_the_sum_of_diameters(tmp_path):
    labels = np.zeros((40, 60, 70), np.uint8)
    labels[5:35, 5:55, 5:65] = 1
    labels[15:20, 25:30, 25:41] = 2
    affine = np.diag([-2.0, -2, 2.5, 1])
    for name in ("one", "two"):
        nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), tmp_path / f"{name}.nii.gz")
        labels[15:20, 25:30, 32] = 1  # 2 mm of liver between 14 and 16 mm of tumour
    whole, left, right = (np.hypot(2 * n, 2 * 4) for n in (15, 6, 7))
    for first, second in (("one", "two"), ("two", "one")):
        made = compare(tmp_path / f"{first}.nii.gz", tmp_path / f"{second}.nii.gz")
        assert [f.status for f in made.findings] == ["unchanged"]
        sums = {"one": whole, "two": left + right}
        assert made.diameters() == pytest.approx((sums[first], sums[second]))
        assert made.response() == "stable"
        assert made.warnings == ()


@pytest.mark.parametrize("turned", [False, True])
def test_a_lesion_that_misses_one_slice_is_no_progression_without_a_word(tmp_path, turned):
    labels = np.zeros((40, 60, 70), np.uint8)
    labels[5:35, 5:55, 5:65] = 1
    labels[10:25, 20:40, 20:40] = 2
    affine = np.diag([-2.0, -2, 2.5, 1])
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), tmp_path / "a.nii.gz")
    labels[17, 20:40, 20:40] = 1
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), tmp_path / "b.nii.gz")
    names = ("b", "a") if turned else ("a", "b")
    made = compare(*(tmp_path / f"{name}.nii.gz" for name in names))
    assert [f.status for f in made.findings] == ["unchanged"]
    word = "partial" if turned else "progression"
    assert made.response() == word
    (warning,) = made.warnings
    assert warning.startswith(f"the word {word!r} rests on a lesion that fell apart or grew together")


def test_a_speck_that_a_lesion_took_in_is_none_of_the_two_largest(tmp_path):
    labels = np.zeros((40, 60, 70), np.uint8)
    labels[5:35, 5:55, 5:65] = 1
    labels[10:15, 20, 10:26] = 2  # 30 mm
    labels[10:15, 22, 10] = 2  # a speck beside it
    labels[25:30, 40, 10:20] = 2  # 18 mm
    affine = np.diag([-2.0, -2, 2.5, 1])
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), tmp_path / "a.nii.gz")
    labels[10:15, 20:23, 10:26] = 2
    labels[25:30, 40, 10:35] = 2  # 48 mm
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), affine), tmp_path / "b.nii.gz")
    made = compare(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert sorted(len(f.before.lesions) for f in made.findings) == [1, 2]
    assert made.diameters() == pytest.approx((30 + 18, np.hypot(30, 4) + 48))
    assert made.response() == "progression"


def test_small_lesions_are_matched_nearby_and_not_far_away(tmp_path):
    before = scan(tmp_path / "a.nii.gz", [((0, 0, 0), 3), ((0, 0, 40), 3)])
    after = scan(tmp_path / "b.nii.gz", [((0, 0, 8), 3), ((0, 0, 24), 3)])
    assert [f.status for f in compare(before, after).findings] == ["unchanged", "gone", "new"]
    assert compare(before, after).response() is None  # nothing of 10 mm


def test_a_lesion_below_10_mm_before_is_not_summed_however_much_it_grew():
    def finding(before, after):
        return Finding("grown", *(Side((1,), 1.0, mm, mm, mm, (mm,), 0) for mm in (before, after)))

    lesions = finding(9.99, 40.0), finding(10.0, 12.0)
    made = Comparison(("a", "b"), (1.0, 1.0), (1.0, 1.0), (0.0, 0.0, 0.0), 1.0, lesions, ())
    assert made.diameters() == (10.0, 12.0)


@pytest.mark.parametrize(
    ("before", "after", "judged"),
    [
        (45.0, 31.5, "partial"),  # 0.7 * 45 is less than 31.5 in binary
        (90 * float(np.float32(0.5)), 105 * float(np.float32(0.3)), "partial"),  # headers hold float32
        (45.0, 31.51, "stable"),
        (30.0, 36.0, "progression"),
        (30.0, 35.99, "stable"),
        (20.1, 25.1, "progression"),
        (20.1, 25.09, "stable"),
        (12.0, 16.9, "stable"),  # 41 %, and less than 5 mm
    ],
)
def test_a_limit_of_the_response_is_reached_where_the_shown_sums_reach_it(before, after, judged):
    sides = [Side((1,), 1.0, mm, mm, mm, (mm,), 0) for mm in (before, after)]
    made = Comparison(
        ("a", "b"), (1.0, 1.0), (1.0, 1.0), (0.0, 0.0, 0.0), 1.0, (Finding("unchanged", *sides),), ()
    )
    assert made.response() == judged


@pytest.mark.parametrize(
    ("columns", "later", "statuses"),
    [
        ((5, 24), (23, 42), ["unchanged"]),  # 2 of 20 voxels in both
        ((5, 24), (24, 43), ["gone", "new"]),
        ((5, 5), (9, 9), ["unchanged"]),  # 8 mm from centre to centre
        ((5, 5), (11, 11), ["gone", "new"]),
    ],
)
def test_lesions_are_the_same_from_a_tenth_of_overlap_or_within_10_mm(tmp_path, columns, later, statuses):
    before, after = block(tmp_path / "a.nii.gz", columns), block(tmp_path / "b.nii.gz", later)
    assert [f.status for f in compare(before, after).findings] == statuses


@pytest.mark.parametrize(
    ("voxels", "later", "status"),
    [(20, 26, "grown"), (20, 25, "unchanged"), (20, 15, "unchanged"), (20, 14, "shrunk")],
)
def test_a_change_of_a_quarter_of_the_volume_is_none_yet(tmp_path, voxels, later, status):
    before, after = (block(tmp_path / f"{n}.nii.gz", (20, 19 + n)) for n in (voxels, later))
    assert [f.status for f in compare(before, after).findings] == [status]


@pytest.mark.parametrize(("columns", "same"), [((16, 22), 2), ((18, 24), 1), ((12, 24, 18), 3)])
def test_the_nearest_of_several_lesions_is_the_same(tmp_path, columns, same):
    before, after = block(tmp_path / "a.nii.gz", (20, 20)), block(tmp_path / "b.nii.gz", ())
    image = nib.load(after)
    labels = np.asanyarray(image.dataobj).copy()
    for n, column in enumerate(columns):
        labels[column, 20, 20 + 2 * n - 2 * (same - 1)] = 2  # the nearest at 4 mm, in the same slice
    nib.save(nib.Nifti1Image(labels, image.affine), after)
    old, *new = compare(before, after).findings
    assert (old.status, old.after.lesions, {f.status for f in new}) == ("unchanged", (same,), {"new"})


def test_a_report_holds_what_can_be_counted_in_the_label_maps(tmp_path):
    before = block(tmp_path / "a.nii.gz", (20, 30))
    after = block(tmp_path / "b.nii.gz", (20, 32), slices=29)
    report = compare(before, after).report()
    assert report["liver_ml"] == [403.2, 389.76]  # 30 and 29 slices of 30 x 56 voxels of 0.008 mL
    assert report["tumour_ml"] == [0.088, 0.104]
    assert report["sum_of_diameters_mm"] == [20, 24]
    (finding,) = report["findings"]
    side = {"lesions": [1], "short_mm": 0, "slice": 20}
    assert finding["before"] == {**side, "volume_ml": 0.088, "long_mm": 20, "sum_mm": 20, "parts_mm": [20]}
    assert finding["after"] == {**side, "volume_ml": 0.104, "long_mm": 24, "sum_mm": 24, "parts_mm": [24]}
    assert compare(after, block(tmp_path / "c.nii.gz", ())).report()["recist_like"] == "complete"
    none = compare(tmp_path / "c.nii.gz", before).report()
    assert (none["sum_of_diameters_mm"], none["recist_like"]) == (None, None)


@pytest.mark.parametrize("lesions", [[], [((0, 0, 0), 12)]])
def test_all_gone_is_complete(tmp_path, lesions):
    before, after = scan(tmp_path / "a.nii.gz", lesions), scan(tmp_path / "b.nii.gz", [])
    made = compare(before, after)
    assert [f.status for f in made.findings] == ["gone"] * len(lesions)
    assert made.response() == ("complete" if lesions else None)


def test_what_makes_a_comparison_doubtful_is_said(tmp_path):
    whole = scan(tmp_path / "a.nii.gz", [((0, 0, 0), 8)])
    cut = scan(tmp_path / "b.nii.gz", [((0, 0, 0), 8)], moved=(60, 0, 0))
    (cut_warning, poor) = compare(whole, cut).warnings
    assert "after: the liver reaches the end" in cut_warning
    assert "agree poorly" in poor


def test_grids_that_are_not_known_are_said(tmp_path):
    known = scan(tmp_path / "a.nii.gz", [])
    image = nib.load(known)
    image.header.set_sform(None, code=0)
    image.header.set_qform(None, code=0)
    bare = nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header)
    nib.save(bare, tmp_path / "b.nii.gz")
    assert compare(known, tmp_path / "b.nii.gz").warnings[0].startswith("after: ")
    assert "orientation" in compare(tmp_path / "b.nii.gz", known).warnings[0]


def test_label_maps_that_were_made_otherwise_are_said(tmp_path):
    """A fingerprint that one of them lacks is not known to be another."""
    one, two = scan(tmp_path / "a.nii.gz", []), scan(tmp_path / "b.nii.gz", [])
    for fingerprints, said in ((("x", "y"), 1), (("x", "x"), 0), (("x", ""), 0)):
        for path, fingerprint in zip((one, two), fingerprints, strict=True):
            labels, grid = read_labels(path)
            save(path, labels, grid, fingerprint)
        assert len(warnings := compare(one, two).warnings) == said
        assert all("made by different models, options or versions" in text for text in warnings)


def test_one_file_given_twice_is_said(tmp_path):
    one = scan(tmp_path / "a.nii.gz", [((0, 0, 0), 12)])
    (tmp_path / "link.nii.gz").symlink_to(one)
    (tmp_path / "a.json").write_text("{}")
    for other in (one, tmp_path / "link.nii.gz", tmp_path / "a.json"):
        made = compare(one, other)
        assert made.warnings == ("before and after are one file, so nothing can have changed",)
        assert [f.status for f in made.findings] == ["unchanged"]
    (tmp_path / "copy.nii.gz").write_bytes(one.read_bytes())
    assert compare(one, tmp_path / "copy.nii.gz").warnings == ()
    assert "warning: before and after are one file" in run("compare", one, one).stderr


def renumbered(path, target, *numbers):
    """A label map with other numbers for 0, 1 and 2, and a box of another organ, 3, beside the liver."""
    image = nib.load(path)
    labels = np.array(numbers, np.int16)[np.asanyarray(image.dataobj)]
    labels[:3, :3, :3] = 3
    nib.save(nib.Nifti1Image(labels, image.affine), target)
    return target


def test_label_maps_of_other_programs_are_compared_once_it_is_said_what_they_mean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = scan("a.nii.gz", [((0, 0, 0), 8)]), scan("b.nii.gz", [((0, 0, 0), 12)], (6, 6, 6))
    organs = renumbered("a.nii.gz", "c.nii.gz", 0, 6, 109), renumbered("b.nii.gz", "d.nii.gz", 0, 5, 109)
    expected, made = compare(*own), compare(*organs, meaning={5: 1, 6: 1, 109: 2})
    assert [f.status for f in expected.findings] == ["grown"]
    assert {**made.report(), "names": None} == {**expected.report(), "names": None}
    done = run("compare", *organs, "--liver-label", "5,6", "--tumour-label", "109", "--json", "c.json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads((tmp_path / "c.json").read_text()) == made.report()
    assert [line for line in done.stdout.splitlines() if "grown" in line] == [
        line for line in run("compare", *own).stdout.splitlines() if "grown" in line
    ]


def test_without_a_label_for_tumours_nothing_is_said_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    organs = renumbered(scan("a.nii.gz", [((0, 0, 0), 8)]), "c.nii.gz", 0, 6, 6)
    done = run("compare", organs, organs, "--liver-label", "6", "--json", "c.json", "--html", "c.html")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "c.json").read_text())
    assert [report[key] for key in ("tumour_ml", "findings", "recist_like")] == [None, [], None]
    assert report["liver_ml"] == pytest.approx(compare("a.nii.gz", "a.nii.gz").liver_ml, abs=1e-3)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("tumour"))
    assert line.split() == ["tumour", "–"]
    page = (tmp_path / "c.html").read_text()
    assert "Lesions are not known." in page
    assert "0 grown" not in page
    assert "No lesions in either scan" not in page


def test_labels_for_tumours_that_a_scan_has_not_are_said(tmp_path):
    organs = renumbered(scan(tmp_path / "a.nii.gz", [((0, 0, 0), 8)]), tmp_path / "c.nii.gz", 0, 6, 109)
    healthy = renumbered(scan(tmp_path / "b.nii.gz", []), tmp_path / "d.nii.gz", 0, 6, 109)
    rest = "if others are tumour, or nobody looked for tumours there, lesions are missing here"
    for one, other, tumour, which in (
        (organs, healthy, 19, "neither scan has a"),
        (organs, healthy, 109, "after has no"),
        (healthy, organs, 109, "before has no"),
    ):
        said = f"{which} label that is tumour ({tumour}, 20); {rest}"
        assert compare(one, other, meaning={6: 1, tumour: 2, 20: 2}).warnings == (said,)
    assert compare(organs, organs, meaning={6: 1, 109: 2, 20: 2}).warnings == (
        "before and after are one file, so nothing can have changed",
    )
    assert compare(organs, healthy, meaning={6: 1}).warnings == ()  # tumours are not asked for
    own, none = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    assert compare(own, none).warnings == (f"after has no label that is tumour (2); {rest}",)
    labels, geometry = read_labels(none)
    save(none, labels, geometry)  # by trtseg, which looks for tumours
    assert compare(own, none).warnings == ()


def test_tumours_without_a_liver_are_doubted(tmp_path):
    own = scan(tmp_path / "a.nii.gz", [((0, 0, 0), 8)])
    organs = renumbered(own, tmp_path / "c.nii.gz", 0, 6, 109)
    assert compare(organs, own, meaning={1: 1, 6: 1, 109: 2, 2: 2}).warnings == ()
    made = compare(organs, own, meaning={1: 1, 109: 2, 2: 2})  # 6 is forgotten
    assert made.liver_ml[0] == made.tumour_ml[0] == pytest.approx(ball(8), rel=0.05)
    assert made.warnings[0].startswith("before: Nothing is liver but the tumours, which are taken for it")


def test_label_maps_of_other_programs_are_not_guessed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own, organs = scan("a.nii.gz", []), renumbered("a.nii.gz", "c.nii.gz", 0, 6, 109)
    for options, message in (
        ((), "c.nii.gz: got the labels 3, 6; expected 0 (background), 1 (liver) and 2 (tumour) only"),
        (("--liver-label", "6"), "a.nii.gz: holds no liver (has none of the labels 6)"),
        (("--tumour-label", "109"), "--tumour-label: got it without --liver-label"),
        (("--liver-label", ""), "--liver-label: got ''; expected numbers"),
        (("--liver-label", "6", "--tumour-label", ""), "--tumour-label: got ''; expected numbers"),
    ):
        done = run("compare", own, organs, *options)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {message}")
    assert "--liver-label and --tumour-label of 'trtseg compare'" in run("compare", own, organs).stderr


def test_no_liver_and_no_labels_are_errors(tmp_path):
    empty = tmp_path / "empty.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((16, 16, 4), np.uint8), np.eye(4)), empty)
    with pytest.raises(InputError, match=r"empty\.nii\.gz: holds no liver"):
        compare(empty, empty)
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(InputError, match=r"r\.json: has no label map beside it, as r\.nii\.gz"):
        compare(tmp_path / "r.json", empty)
    dicom_made.save(tmp_path / "r.dcm", dicom_made.instance(np.zeros((16, 16), np.int16)))
    with pytest.raises(InputError, match=r"r\.json: has no label map beside it"):
        compare(tmp_path / "r.json", empty)
    with pytest.raises(InputError, match=r"r\.dcm: is DICOM of the modality CT; expected a Segmentation"):
        compare(tmp_path / "r.dcm", empty)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"before": None}, "before: got a NoneType; expected a file's path"),
        ({"after": 5}, "after: got a int; expected a file's path"),
        ({"meaning": 5}, "meaning: got 5; expected what labels stand for, 0 .*, 1 .* or 2 .*, as {6: 1}"),
        ({"meaning": {1: 1, 2: 7}}, "meaning: got {1: 1, 2: 7}; expected"),
        ({"meaning": {"1": 1, 2: 2}}, "meaning: got {'1': 1, 2: 2}; expected"),
    ],
)
def test_an_argument_of_another_kind_is_named(tmp_path, wrong, message):
    path = scan(tmp_path / "a.nii.gz", [((0, 0, 0), 9)])
    with pytest.raises(ArgumentError, match=f"^{message}"):
        compare(**{"before": path, "after": path, **wrong})


def test_the_command_takes_reports_and_writes_table_json_and_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scan("a.nii.gz", [((0, 0, 0), 8)])
    scan("b.nii.gz", [((0, 0, 0), 12)], (6, 6, 6))
    (tmp_path / "a.json").write_text("{}")
    done = run("compare", "a.json", "b.nii.gz", "--json", "c.json", "--html", "c.html")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "c.json").read_text())
    assert (report["recist_like"], report["names"]) == ("progression", ["a.nii.gz", "b.nii.gz"])
    (finding,) = report["findings"]
    assert finding["status"] == "grown"
    page = (tmp_path / "c.html").read_text()
    (row,) = (line for line in done.stdout.splitlines() if "grown" in line)
    assert row.split()[:3] == ["1", "1", "grown"]  # the lesion's numbers in both lists
    for side in ("before", "after"):
        assert f"<td>{finding[side]['volume_ml']:.2f}</td>" in page
        assert f"{finding[side]['volume_ml']:.2f}" in done.stdout
    assert "nii.gz" not in page
    assert "-0.0" not in page + (tmp_path / "c.json").read_text()
    run("compare", "a.json", "b.nii.gz", "--html", "d.html", "--keep-identity")
    assert "a.nii.gz and b.nii.gz" in (tmp_path / "d.html").read_text()
    assert run("compare", "a.nii.gz", "missing.nii.gz").exit_code == 2


@pytest.mark.parametrize(
    "options",
    [("--json", "a.nii.gz"), ("--json", "a.json"), ("--html", "link.html"), ("--json", "c", "--html", "c")],
)
def test_no_report_replaces_an_input_or_the_other(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    scan("a.nii.gz", [])
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "link.html").symlink_to("a.nii.gz")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = run("compare", "a.json", "a.nii.gz", *options)
    assert done.exit_code == 2
    assert f"{options[-2]}: {options[-1]} is an input or the other report; choose another name" in done.output
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_reports_are_ordered(tmp_path):
    radii = (6, 9, 7, 11)
    places = [(0, 0, x) for x in (-36, -12, 12, 36)]
    one = scan(tmp_path / "a.nii.gz", list(zip(places, radii, strict=True)))
    volumes = [f.before.volume_ml for f in compare(one, one).findings]
    assert all(a >= b for a, b in pairwise(volumes))
    assert len(volumes) == 4
    # A lesion that is new comes after the smaller ones that are gone.
    gone = scan(tmp_path / "b.nii.gz", list(zip(places[:3], radii[:3], strict=True)))
    came = scan(tmp_path / "c.nii.gz", [(places[1], 9), (places[3], 11)])
    findings = compare(gone, came).findings
    assert [(f.status, (f.before or f.after).lesions) for f in findings] == [
        ("unchanged", (1,)),
        ("gone", (2,)),
        ("gone", (3,)),
        ("new", (1,)),
    ]
