"""The places of DICOM slices: which make an even grid, and what is said of those that do not."""

from __future__ import annotations

import dicom_made as made
import numpy as np
import pytest

from trtseg.errors import InputError
from trtseg.io import load
from trtseg.phantom import abdomen

CT = abdomen(shape=(6, 40, 52), spacing=(40.0, *made.SPACING), seed=0, lesions=2).ct
AXIAL = [1, 0, 0, 0, 1, 0]


def write(folder, places, orientation=AXIAL, ct=CT, **attributes):
    for n, (place, plane) in enumerate(zip(places, ct, strict=True)):
        dataset = made.instance(
            plane, ImagePositionPatient=list(place), ImageOrientationPatient=orientation, **attributes
        )
        made.save(folder / f"{n}", dataset)
    return folder


def along_z(depths):
    return [(-180, -150, float(z)) for z in depths]


def test_every_in_plane_orientation_gives_the_same_volume(tmp_path):
    """Rows stored backwards, columns, the axes exchanged, feet or head first: positions say it all."""
    corner = np.array([-180.0, -150.0])
    size = np.array([51 * 7.0, 39 * 8.0])
    for n, (turned, back, side) in enumerate(np.ndindex(2, 2, 2)):
        down = back ^ side
        ct = CT[:, :: -1 if back else 1, :: -1 if side else 1][:: -1 if down else 1]
        x, y = [-1 if side else 1, 0, 0], [0, -1 if back else 1, 0]
        start = corner + size * [side, back]
        places = [(*start, 100.0 + 40 * (5 - z if down else z)) for z in range(6)]
        spacing = [7, 8] if turned else [8, 7]
        orientation = y + x if turned else x + y
        stored = np.ascontiguousarray(ct.transpose(0, 2, 1) if turned else ct)
        volume = load(write(tmp_path / f"{n}", places, orientation, stored, PixelSpacing=spacing))
        assert np.array_equal(volume.array, CT)
        assert volume.affine[:3, 3].tolist() == pytest.approx([180, 150, 100])
        assert volume.spacing == pytest.approx((40, 8, 7))


@pytest.mark.parametrize("tilt", [0.0, 0.2])
def test_a_patient_who_lies_askew_is_where_each_slice_says(tmp_path, tilt):
    a, b, c = 0.3, -0.2, 0.25  # every direction has parts along x, y and z
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    turn = turn @ [[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]]
    right, down, up = turn.T.round(9)
    start, step = np.array([-180.0, -150, 100]), 40 * (np.cos(tilt) * up + np.sin(tilt) * down)
    for copy in "ab":  # the same slices once more are dropped
        folder = write(tmp_path / copy, [start + z * step for z in range(6)], [*right, *down])
    for z in range(6):
        (tmp_path / "b" / f"{z}").rename(folder.parent / "a" / f"copy {z}")
    volume = load(tmp_path / "a")
    assert np.array_equal(volume.array, CT)
    for index in np.ndindex(2, 2, 2):
        x, y, z = index * np.array([51, 39, 5])
        place = start + z * step + y * 8 * down + x * 7 * right  # to the left, to the back
        assert (volume.affine @ [x, y, z, 1])[:3] == pytest.approx(place * [-1, -1, 1], abs=1e-4)
    assert volume.spacing == pytest.approx((40 * np.cos(tilt), 8, 7))
    assert [w.code for w in volume.warnings] == ["geometry-tilt"] * (tilt > 0)


@pytest.mark.parametrize("count", [1, 6])
def test_directions_that_are_rounded_are_no_tilt(tmp_path, count):
    """Their lengths are not quite 1: by 0.03 % with three digits, which is the cosine of 1.4 degrees."""
    places = along_z(100 + 40 * np.arange(count))
    orientation = [0.707, 0.707, 0, -0.707, 0.707, 0]
    volume = load(write(tmp_path, places, orientation, CT[:count], SliceThickness=40))
    assert [warning.code for warning in volume.warnings if warning.code != "geometry-unknown"] == []


def test_directions_that_are_rounded_up_hide_no_tilt(tmp_path):
    places = [(-180, -150 + 40 * z * np.tan(np.radians(2)), 100 + 40 * z) for z in range(6)]
    volume = load(write(tmp_path, places, [1.001, 0, 0, 0, 1.001, 0]))
    assert [warning.code for warning in volume.warnings] == ["geometry-tilt"]
    assert "tilted by 2.0 degrees" in volume.warnings[0].text


def test_a_tilted_gantry_shears_the_grid_and_is_warned_of(tmp_path):
    tilt = np.radians(15)
    orientation = [1, 0, 0, 0, float(np.cos(tilt)), float(-np.sin(tilt))]
    volume = load(write(tmp_path, along_z(40.0 * np.arange(6)), orientation))
    assert [warning.code for warning in volume.warnings] == ["geometry-tilt"]
    assert "tilted by 15.0 degrees" in volume.warnings[0].text
    assert np.array_equal(volume.array, CT)
    assert volume.voxel_ml == pytest.approx(40 * np.cos(tilt) * 8 * 7 / 1000)
    assert volume.affine[:3, 2].tolist() == pytest.approx([0, 0, 40])


@pytest.mark.parametrize(
    ("depths", "message"),
    [
        ([0, 40, 80, 160, 200, 240], r"1 slice is missing, between 80 and 160 mm \(1\); fetch the series again"),
        ([0, 40, 160, 200, 320, 360], r"4 slices are missing, between 40 and 160 mm \(2\); 200 and 320 mm \(2\);"),
        ([0, 10, 40, 70, 100, 130], r"8 slices are missing, between 10 and 40 mm \(2\)"),
        ([0, 40, 80, 108, 148, 188], "slices lie 28 to 40 mm apart; expected even distances"),
        ([0, 40, 80, 81, 121, 161], "slices lie 1 to 40 mm apart|slices are missing"),
    ],
)  # fmt: skip
def test_slices_that_are_missing_or_uneven_are_refused(tmp_path, depths, message):
    with pytest.raises(InputError, match=message):
        load(write(tmp_path, along_z(depths)))


def test_slices_that_lie_a_little_beside_their_place_are_warned_of(tmp_path):
    assert load(write(tmp_path / "a", along_z([0, 40.1, 80, 119.9, 160, 200]))).warnings == ()
    volume = load(write(tmp_path / "b", along_z([0, 42, 80, 120, 160, 200])))
    assert [warning.code for warning in volume.warnings] == ["geometry-uneven"]
    assert volume.spacing[0] == 40


def test_slices_that_are_shifted_sideways_are_refused(tmp_path):
    places = along_z(40.0 * np.arange(6))
    places[3] = (-150, -150, 120.0)
    with pytest.raises(InputError, match="slices are shifted sideways by up to 30 mm against each other"):
        load(write(tmp_path, places))


@pytest.mark.parametrize(("axis", "mm"), [(0, 0.6), (0, 0.8), (1, -0.6), (1, -0.8)])
def test_a_slice_may_lie_a_tenth_of_a_pixel_sideways(tmp_path, axis, mm):
    places = [list(place) for place in along_z(40.0 * np.arange(6))]
    places[3][axis] += mm  # a pixel is 7 x 8 mm
    folder = write(tmp_path, places)
    if abs(mm) < 0.7:
        assert np.array_equal(load(folder).array, CT)
    else:
        with pytest.raises(InputError, match=r"shifted sideways by up to 0\.8 mm"):
            load(folder)


def test_one_slice_has_the_thickness_that_it_says(tmp_path):
    path = write(tmp_path, along_z([0]), ct=CT[3:4], SliceThickness=5)
    volume = load(path)
    assert volume.spacing == (5, 8, 7)
    assert [warning.code for warning in volume.warnings] == ["geometry-unknown"]
    assert load(write(tmp_path, along_z([0]), ct=CT[3:4], SliceThickness=0.5)).spacing == (0.5, 8, 7)
    for thickness in (None, 0):
        with pytest.raises(InputError, match="one slice without SliceThickness"):
            load(write(tmp_path, along_z([0]), ct=CT[3:4], SliceThickness=thickness))


def test_the_thickness_of_slices_is_not_their_distance(tmp_path):
    assert (
        load(write(tmp_path, along_z(40.0 * np.arange(6)), SliceThickness=3, SpacingBetweenSlices=3)).spacing[
            0
        ]
        == 40
    )


@pytest.mark.parametrize(("value", "warned"), [(-900, 0), (-899, 1), (0, 1), (2999, 1), (3000, 0)])
def test_padding_that_tissue_may_have_is_warned_of(tmp_path, value, warned):
    volume = load(write(tmp_path, along_z(40.0 * np.arange(6)), PixelPaddingValue=value))
    assert [warning.code for warning in volume.warnings].count("values-padding") == warned


@pytest.mark.parametrize(
    "padding", [{"PixelPaddingValue": 40, "PixelPaddingRangeLimit": 4000}, {"PixelPaddingValue": 40}]
)
def test_padding_is_warned_of_at_both_its_ends_and_in_each_file(padding, tmp_path):
    folder = write(tmp_path, along_z(40.0 * np.arange(6)))
    assert "values-padding" not in [warning.code for warning in load(folder).warnings]
    made.save(folder / "3", made.instance(CT[3], 120.0, **padding))
    found = [warning.text for warning in load(folder).warnings if warning.code == "values-padding"]
    assert found == [
        f"The header calls {' to '.join(map(str, padding.values()))} HU padding, which tissue may have too: these "
        "voxels were filled with air."
    ]
