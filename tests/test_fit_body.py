"""The rule that lays a net's grid around the patient: `trtseg.body`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
from op_cases import NumpyBackend, check_prepare

import trtseg
from trtseg.body import find_body, place_body, place_picture
from trtseg.errors import ArgumentError, ModelError
from trtseg.fit import Fit
from trtseg.phantom import abdomen
from trtseg.spec import CascadeSpec, ModelSpec

NET, MM, SPACING = (256, 256), 1.6, (0.8, 0.8)


def place(hu, spacing=SPACING, net=NET, mm=MM) -> Fit:
    return place_body(hu, spacing, net, mm)


def ct(shape=(512, 512), slices=2, noise=True) -> np.ndarray:
    """Slices of air, with noise or masked."""
    hu = np.full((slices, *shape), -1000, np.int16)
    if noise:
        hu += np.random.default_rng(0).normal(0, 15, hu.shape).astype(np.int16)
    return hu


def put(hu, centre_mm, size_mm, spacing=SPACING, value=40) -> np.ndarray:
    """An ellipse, by its centre (y, x) from the picture's centre and its whole axes (y, x)."""
    y, x = ((np.arange(n) + 0.5 - n / 2) * s for n, s in zip(hu.shape[1:], spacing, strict=True))
    inside = ((y[:, None] - centre_mm[0]) / size_mm[0]) ** 2 + ((x - centre_mm[1]) / size_mm[1]) ** 2 <= 0.25
    hu[:, inside] = value
    return hu


def grid_mm(fit: Fit, spacing=SPACING) -> list[float]:
    """Centre of the net's grid (y, x), in mm from the picture's centre, and mm per net pixel."""
    centre = [
        (o + m / 2 * r - n / 2) * s for n, m, r, _, _, o, s in zip(*vars(fit).values(), spacing, strict=True)
    ]
    return [*centre, fit.step[0] * spacing[0]]


def cut(fit: Fit, hu: np.ndarray) -> int:
    """How many rows and columns with something of the body lie outside the net's grid."""
    body = (hu > -400).any(0)
    lost = 0
    for axis, used in ((0, body.any(1)), (1, body.any(0))):
        centre = np.flatnonzero(used) + 0.5
        end = fit.origin[axis] + fit.net[axis] * fit.step[axis]
        lost += int(((centre < fit.origin[axis]) | (centre > end)).sum())
    return lost


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("air", [-1000, -1024, -2000, -3024])
@pytest.mark.parametrize("pad", [(0, 0, 1, 0), (101, 101, 101, 101), (3, 250, 177, 0), (300, 8, 11, 333)])
def test_padding_moves_the_placement_and_changes_nothing_else(pad, air, noise):
    hu = put(ct(noise=noise), (-30, 41), (210, 320))
    top, bottom, left, right = pad
    wide = np.pad(hu, ((0, 0), (top, bottom), (left, right)), constant_values=air)
    fit, padded = place(hu), place(wide)
    assert padded.step == fit.step
    assert padded.origin == (fit.origin[0] + top, fit.origin[1] + left)
    for got, expected in zip(
        check_prepare(NumpyBackend(), wide, padded, (-160.0, 240.0), np.float32)[1:],
        check_prepare(NumpyBackend(), hu, fit, (-160.0, 240.0), np.float32)[1:],
        strict=True,
    ):
        assert got.tobytes() == expected.tobytes()


def test_an_ordinary_ct_is_placed_by_its_picture():
    hu = put(ct(), (-20, 30), (230, 340))
    fit = place(hu)
    assert fit == place_picture((512, 512), SPACING, NET, MM)
    assert fit == Fit((512, 512), NET, (2.0, 2.0), (0, 0), NET, (0, 0))
    assert place(hu[:1]) == fit


@pytest.mark.parametrize(
    ("off", "moved"), [(34, 0), (43, 1), (59, 1), (69, 2), (-59, -1), (-69, -2), (230, 8)]
)
def test_a_body_off_centre_moves_the_grid_in_steps_of_16_pixels(off, moved):
    hu = put(ct((1024, 1024)), (0, off), (200, 300))
    assert grid_mm(place(hu)) == pytest.approx([0, moved * 16 * 1.6, 1.6], abs=0.5)
    assert cut(place(hu), hu) == 0


@pytest.mark.parametrize(("width", "growth"), [(380, 0), (405, 0), (420, 1), (455, 1), (470, 2), (600, 4)])
def test_a_large_body_is_not_cut(width, growth):
    for off in (0, 25, -60):
        hu = put(ct((900, 900)), (0, off), (300, width))
        fit = place(hu)
        assert grid_mm(fit)[2] == pytest.approx(1.6 * (1 + growth / 8))
        assert cut(fit, hu) <= 3  # the body's box is known to 3 mm


def test_masked_air_before_the_patient_does_not_matter():
    hu = put(ct(noise=False), (-20, 30), (230, 340))
    hu[:, 490:494, :] = -500  # a table top as wide as the picture
    hu[:, 494:] = -990
    masked = hu.copy()
    hu[:, :40] = -990
    assert place(masked) == place(hu)
    assert place(masked[:, 60:]).origin == (place(hu).origin[0] - 60, place(hu).origin[1])


def test_one_large_slice_among_small_ones_counts():
    hu = put(ct((700, 700), slices=5), (0, 0), (200, 300))
    assert grid_mm(place(hu))[2] == 1.6
    put(hu[3:4], (0, 0), (200, 425))
    assert grid_mm(place(hu))[2] == 1.8
    assert place(hu) == place(hu[::-1])


def test_a_table_and_a_blanket_and_a_circle_do_not_matter():
    alone = put(ct((700, 700)), (-20, 10), (220, 330))
    hu = alone.copy()
    hu[:, 500:512] = 200  # a table top of 10 mm, as wide as the picture
    hu[:, 512:560] = -850  # foam
    hu[:, 60:62, 100:600] = -100
    assert place(hu) == place(alone)
    y, x = np.mgrid[:700, :700] - 349.5
    hu[:, np.hypot(y, x) > 348] = -3024
    assert place(hu) == place(alone)


@pytest.mark.parametrize("mm", [0.4, 0.7, 0.8, 1.0, 1.5, 2.5, 4.0, 5.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_body_is_thick_in_mm_whatever_the_spacing(mm, axis):
    picture = np.full((round(400 / mm), round(300 / mm)), -1000, np.int16)
    picture[0, 0] = picture[-1, -1] = -999  # the frame is the picture
    across, spacing = (picture, picture.T)[axis], ((mm, mm * 1.25), (mm * 1.25, mm))[axis]
    across[round(100 / mm) : round(115 / mm)] = 0
    assert find_body(picture[None], spacing) is None
    across[round(100 / mm) : round(130 / mm)] = 0
    first, end = find_body(picture[None], spacing)[2 * axis : 2 * axis + 2]
    assert (first * mm, end * mm) == pytest.approx((100, 130), abs=9)


def test_a_body_is_known_to_half_a_sample_of_6_mm():
    picture = np.full((1, 400, 300), -1000, np.int16)
    picture[0, 0, 0] = picture[0, -1, -1] = -999  # the frame is the picture
    picture[0, 101:133, 48:99] = 0
    # Samples at 0, 6, ...: those inside are rows 102 to 132 and columns 48 to 96.
    assert find_body(picture, (1.0, 1.0)) == (99, 136, 45, 100)


def test_a_grid_begins_at_the_nearest_pixel():
    assert place(np.full((1, 10, 10), 40, np.int16), (0.9, 0.9)).origin == (-223, -223)  # 5 - 128 * 1.6 / 0.9
    assert place(np.full((1, 11, 11), 40, np.int16), (0.9, 0.9)).origin == (-222, -222)


def test_a_grid_does_not_grow_for_what_only_rounding_adds_to_a_body():
    # 448 pixels of 1.1 mm are just what 256 net pixels of 1.4 mm and three eighths cover.
    full = np.full((1, 448, 448), 40, np.int16)
    assert find_body(full, (1.1, 1.1)) == (0, 448, 0, 448)
    assert grid_mm(place(full, (1.1, 1.1), mm=1.4), (1.1, 1.1))[2] == pytest.approx(1.4 * 11 / 8)


def test_a_field_of_view_that_cuts_the_body():
    full = np.full((2, 512, 512), 40, np.int16)
    assert grid_mm(place(full, (0.6, 0.6)), (0.6, 0.6)) == pytest.approx([0, 0, 1.6], abs=0.4)
    assert grid_mm(place(full, (0.9, 0.9)), (0.9, 0.9)) == pytest.approx([0, 0, 2.0], abs=0.5)
    tiny = np.full((1, 12, 10), 40, np.int16)
    assert grid_mm(place(tiny)) == pytest.approx([0, 0, 1.6], abs=0.5)
    assert place(np.full((1, 1, 1), 40, np.int16)).origin == (-255, -255)


def test_air_and_no_slices_and_thin_things():
    for hu in (np.full((3, 512, 512), -1000, np.int16), np.full((1, 512, 512), -3024, np.int16)):
        assert place(hu) == place_picture((512, 512), SPACING, NET, MM)
    assert place(np.empty((0, 512, 512), np.int16)) == place_picture((512, 512), SPACING, NET, MM)
    wire = np.full((1, 1024, 1024), -1000, np.int16)
    wire[:, 900:903, 100:901] = 500  # 641 mm long
    assert grid_mm(place(wire))[2] == pytest.approx(1.6 * 1.625)


@pytest.mark.parametrize("spacing", [(0.8, 0.8), (0.6, 1.1), (3.0, 3.0)])
@pytest.mark.parametrize("net", [(256, 256), (64, 96)])
def test_scale_is_uniform(spacing, net):
    hu = abdomen(shape=(4, 128, 150), spacing=(20.0, *spacing)).ct
    fit = place(hu, spacing, net, 1.6)
    assert fit.step[0] * spacing[0] == pytest.approx(fit.step[1] * spacing[1])
    assert (fit.native, fit.net, fit.offset, fit.extent) == ((128, 150), net, (0, 0), net)


@pytest.mark.parametrize("native", [(100, 100), (100, 63), (77, 100), (100, 1), (3, 100)])
@pytest.mark.parametrize("spacing", [(0.7, 0.7), (0.7, 0.9)])
def test_the_whole_picture_lies_in_the_middle_of_a_net(native, spacing):
    fit = Fit.whole_field_of_view(native, spacing, (48, 40))
    for n, m, step, offset, extent in zip(native, fit.net, fit.step, fit.offset, fit.extent, strict=True):
        inside = sum((i + 0.5) * step < n - 1e-9 for i in range(m))  # centres of net pixels
        assert (extent, offset) == (max(1, inside), (m - max(1, inside)) // 2)
    assert fit.step[0] * spacing[0] == pytest.approx(fit.step[1] * spacing[1])
    assert fit.net in ((fit.extent[0], 40), (48, fit.extent[1]))
    assert Fit.identity(native) == Fit(native, native, (1.0, 1.0), (0, 0), native)


def test_wrong_arguments_are_refused():
    hu = ct((8, 8))
    with pytest.raises(ArgumentError, match=r"hu: got shape \(8, 8\)"):
        place(hu[0])
    for spacing in ((0.0, 1.0), (1.0, float("nan")), (-1.0, 1.0)):
        with pytest.raises(ArgumentError, match="spacing"):
            place(hu, spacing)
        with pytest.raises(ArgumentError, match="spacing"):
            place_picture((8, 8), spacing, NET, MM)
    with pytest.raises(ArgumentError, match="pixel_mm"):
        place(hu, mm=0.0)
    with pytest.raises(ArgumentError, match="shape: got slices of"):
        place(hu, net=(0, 4))
    with pytest.raises(ArgumentError, match="shape: got slices of"):
        place(np.empty((1, 0, 4), np.int16))


@pytest.mark.parametrize("pad", [(40, 40, 40, 40), (0, 333, 150, 7)])
def test_air_around_a_real_ct_changes_nothing(shared_data, pad):
    volume = trtseg.load(shared_data / "chaos3" / "volume.nii.gz")
    spacing, hu = volume.spacing[1:], volume.array
    top, bottom, left, right = pad
    fit = place(hu, spacing)
    for air in (-1000, -1024, -3024):
        wide = np.pad(hu, ((0, 0), (top, bottom), (left, right)), constant_values=air)
        padded = place(wide, spacing)
        assert (padded.step, padded.origin) == (fit.step, (fit.origin[0] + top, fit.origin[1] + left))


# ---- Models that place the body. -------------------------------------------------------------------------------


def body_spec(role: str) -> ModelSpec:
    return tiny.spec(role, fit="body", pixel_mm=6.25)


def test_a_spec_places_by_its_kind_of_fit():
    hu = put(ct((1024, 1024)), (0, 69), (200, 300))
    assert body_spec("liver").fit_volume(hu, SPACING) == place_body(hu, SPACING, (64, 64), 6.25)
    assert body_spec("liver").fit_slice((512, 500), SPACING) == place_picture(
        (512, 500), SPACING, (64, 64), 6.25
    )
    whole = Fit.whole_field_of_view((1024, 1024), SPACING, (64, 64))
    assert tiny.spec("liver").fit_volume(hu, SPACING) == whole
    assert tiny.spec("liver", fit="native", size=(1024, 1024)).fit_volume(hu, SPACING) == Fit.identity(
        (1024, 1024)
    )


def test_a_spec_keeps_its_pixel_size_and_old_files_have_none():
    assert ModelSpec.from_json(body_spec("liver").to_json()) == body_spec("liver")
    old = tiny.spec("liver")
    assert "pixel_mm" not in json.loads(old.to_json())
    assert ModelSpec.from_json(old.to_json()) == old


@pytest.mark.parametrize(
    "changes",
    [{"fit": "body"}, {"fit": "body", "pixel_mm": 0.0}, {"fit": "body", "pixel_mm": "1"}, {"pixel_mm": 1.5}],
)
def test_a_spec_has_a_pixel_size_only_with_the_body(changes):
    with pytest.raises(ModelError, match="pixel_mm: got"):
        tiny.spec("liver", **changes)


def test_the_nets_of_a_cascade_share_their_pixel_size():
    with pytest.raises(ModelError, match="must share size, fit and pixel_mm"):
        CascadeSpec(
            *(
                "a",
                "0",
                (body_spec("liver"), tiny.spec("tumour", fit="body", pixel_mm=5.0)),
                {},
                "none",
                "tests",
            )
        )


def test_labels_of_a_padded_ct_are_those_of_the_ct(tmp_path):
    liver, tumour = body_spec("liver"), body_spec("tumour")
    below = tiny.threshold_at(85, tumour, steepness=-40.0)
    nets = {"liver": (liver, tiny.threshold_at(60, liver)), "tumour": (tumour, below)}
    segmenter = trtseg.Segmenter(tiny.write_model(tmp_path / "model", nets), device="cpu", precision="fp32")
    hu = abdomen(shape=(6, 100, 130), spacing=(40.0, 3.0, 3.0)).ct
    labels = segmenter.label(hu, spacing=(3.0, 3.0))
    assert set(np.unique(labels)) == {0, 1, 2}
    for pad, air in (((31, 62, 5, 90), -1000), ((0, 77, 77, 0), -3024)):
        wide = np.pad(hu, ((0, 0), pad[:2], pad[2:]), constant_values=air)
        got = segmenter.label(wide, spacing=(3.0, 3.0))
        assert (got[:, pad[0] : pad[0] + 100, pad[2] : pad[2] + 130] == labels).all()
        assert np.count_nonzero(got) == np.count_nonzero(labels)
