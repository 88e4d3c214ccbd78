"""How a patient lies: told from the picture under all 48 orientations, and overruled by hand."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import tiny

import trtseg
from training import orientation
from training.orientation import Slices, fit
from trtseg import cohort
from trtseg.errors import ArgumentError, InputError
from trtseg.orientation import TURNS, _longest_run, describe, likeliest_view, score, turned
from trtseg.phantom import abdomen

SPACING = (5.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def phantom():
    return abdomen((40, 128, 128), SPACING)


def codes(warnings):
    return [warning.code for warning in warnings]


def test_all_48_orientations_of_a_phantom(phantom):
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            stored = phantom.ct.transpose(axes)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
            view = likeliest_view(stored, tuple(SPACING[a] for a in axes))
            back = stored.transpose(view.axes)[tuple(slice(None, None, -1 if f else 1) for f in view.flips)]
            assert np.array_equal(back, phantom.ct), (axes, flips)


def test_a_mirrored_header_warns_and_the_option_it_names_puts_it_right(phantom, tmp_path):
    ijk = phantom.ct.transpose(2, 1, 0)  # its first axis grows to the left, its second to the back: LPS
    right, wrong = phantom.affine, phantom.affine @ np.diag([-1, 1, 1, 1])
    assert nib.aff2axcodes(wrong) == ("R", "P", "S")
    jumps = ["slices-jump"]  # where organs of the phantom begin
    assert codes(trtseg.load(ijk, affine=right).warnings) == jumps
    nib.save(nib.Nifti1Image(ijk, wrong), tmp_path / "ct.nii")
    volume = trtseg.load(tmp_path / "ct.nii")
    assert codes(volume.warnings) == [*jumps, "orientation"]
    warning = volume.warnings[-1]
    assert "--orientation LPS" in warning.text
    assert not np.array_equal(volume.array, phantom.ct)  # not turned silently
    turned = trtseg.load(tmp_path / "ct.nii", orientation="lps")
    assert np.array_equal(turned.array, phantom.ct)
    assert turned.spacing == SPACING
    assert codes(turned.warnings) == jumps
    assert np.array_equal(turned.geometry.restore(turned.array), ijk)
    assert np.array_equal(turned.geometry.affine, wrong)


def test_no_orientation_is_told_by_spoilt_values(phantom):
    hu, said = phantom.ct[:, :, ::-1], lambda array: trtseg.load(array, spacing=SPACING).warnings
    assert "orientation" in codes(said(hu))
    narrow = (hu.clip(-160, 240) + 160) * 255 // 400 - 128  # no value left of bone
    for spoilt, code in ((hu * 2, "values-scale"), (narrow, "values-clipped")):
        assert code in codes(said(spoilt.astype(np.int16)))
        assert "orientation" not in codes(said(spoilt.astype(np.int16)))
    (warning,) = (w for w in said(hu.clip(-160, 240)) if w.code == "orientation")
    assert warning.text.endswith("The values look spoilt, which may mislead this warning: mend them first.")


def test_transposed_axes_are_put_right(phantom):
    stored = phantom.ct.transpose(0, 2, 1)  # columns first
    with pytest.raises(ArgumentError, match="orientation"):
        trtseg.load(stored, spacing=SPACING, orientation="LLS")
    assert np.array_equal(trtseg.load(stored, spacing=SPACING, orientation="SLP").array, phantom.ct)


@pytest.fixture
def crosswise(phantom):
    """Twelve slices of an abdomen, one of them twice; the header takes the axis across the body for that of slices."""
    hu = phantom.ct[12:24].copy()
    hu[8] = hu[7]
    return hu, np.diag([*SPACING, 1.0])  # index (slice, row, column), as if it were right, front, head


def test_slices_are_those_of_the_orientation_that_is_given(crosswise, tmp_path):
    hu, affine = crosswise
    with pytest.raises(InputError, match="axial slices of 128 x 12 pixels"):
        trtseg.load(hu, affine=affine)
    nib.save(nib.Nifti1Image(hu, affine), tmp_path / "ct.nii")
    model = tiny.cascade_model(tmp_path / "model")
    read = trtseg.load(tmp_path / "ct.nii", orientation="SPL")
    sideways = trtseg.load(trtseg.load(hu, spacing=SPACING), orientation="IPL")
    for volume, doubled in (
        (read, 7),
        (trtseg.load(hu, affine=affine, orientation="SPL"), 7),
        (trtseg.segment(tmp_path / "ct.nii", orientation="SPL", model=model), 7),
        (sideways, 3),
    ):
        (text,) = (warning.text for warning in volume.warnings if warning.code == "slices-doubled")
        assert text.startswith(f"Slice {doubled} ")
    with pytest.raises(InputError, match="axial slices of 128 x 12 pixels"):
        trtseg.load(read, orientation="RAS")
    with trtseg.Segmenter(model) as segmenter:
        case = cohort.Case(tmp_path / "ct.nii", tmp_path / "seg.nii")
        (outcome,) = cohort.run([case], segmenter, orientation="SPL")
    assert outcome.error is None


def test_the_longest_row_of_slices_with_a_gap_of_one():
    assert _longest_run(np.array([1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0, 1], bool)).tolist() == [5, 7, 8]


def test_weights_are_fitted_to_slices_and_find_how_others_lie():
    """6 patients with a bright row of cells behind, in a column at the right that grows upwards; 6 without."""
    random = np.random.default_rng(0)
    cells = random.random((2, 6, 10, 12, 12, 4), np.float32)  # [with or without, patient, z, y, x, tissue]
    cells[0, ..., 10, 2:10, 3] += 2
    cells[0, ..., 3:9, 1, 2] += np.linspace(1, 3, 10)[:, None].astype(np.float32)
    which = np.arange(120)
    aspects = np.where(which < 60, -0.4, 0.4) + random.normal(0, 0.02, 120)
    stack = which // 10
    slices = Slices(cells.reshape(120, 12, 12, 4), aspects, stack.astype(str), stack, which < 60)
    train = stack % 6 < 4
    weights = fit(Slices(*(column[train] for column in slices)))
    test = slices.cells[~train]
    inverse = {turn: turn for turn in TURNS}  # of transposing and then reversing an axis or two
    inverse |= {(True, True, False): (True, False, True), (True, False, True): (True, True, False)}
    for turn in TURNS:
        scores = score(weights, turned(test, turn), slices.aspects[~train] * (-1 if turn[0] else 1))
        assert (scores[:20].argmax(1) == TURNS.index(inverse[turn])).all(), turn
        assert (scores[:20].max(1) > 0).all()
        assert (scores[20:].max(1) < 0).all()
    heights = np.tensordot(test[:20].reshape(2, 10, 12, 12, 4), weights.upwards, 3)
    assert (heights[:, 5:].mean(1) > heights[:, :5].mean(1)).all()


def test_another_part_of_the_body_has_no_say():
    noise = np.random.default_rng(0).normal(0, 20, (20, 64, 64))
    assert not codes(trtseg.load(np.where(noise < 0, -1000, noise), spacing=(5, 5, 5)).warnings)


def test_real_ct(shared_data):
    volume = trtseg.load(shared_data / "chaos3" / "volume.nii.gz")
    assert "orientation" not in codes(volume.warnings)
    for flips in itertools.product((1, -1), repeat=3):
        view = likeliest_view(volume.array[:: flips[0], :: flips[1], :: flips[2]], volume.spacing)
        assert view.flips == tuple(f < 0 for f in flips)


@pytest.mark.parametrize(
    ("rows", "columns"), [((129, 436), (29, 239)), ((129, 436), (113, 449)), ((129, 375), (71, 449))]
)
def test_a_body_that_the_picture_cuts_has_no_say(shared_data, rows, columns):
    volume = trtseg.load(shared_data / "chaos3/volume.nii.gz")
    crop = volume.array[:, slice(*rows), slice(*columns)]
    assert likeliest_view(crop, volume.spacing) is None
    whole = volume.array[:, 120:450, 20:460]
    view = likeliest_view(whole[:, :, ::-1], volume.spacing)
    assert (view.axes, view.flips) == ((0, 1, 2), (False, False, True))


def test_slices_are_described_one_by_one():
    """Noise with pieces of all sizes, air, tissue up to the border (less 3 pixels), and twins: the first counts."""
    rng = np.random.default_rng(0)
    noise = np.where(rng.random((6, 90, 70)) < 0.02, 40, -1000).astype(np.int16)
    air, tissue = np.full((90, 70), -1000, np.int16), np.full((90, 70), 40, np.int16)
    twins = air.copy()
    twins[5:35, 5:45] = twins[50:80, 20:60] = 40
    pages = [*noise, air, tissue, twins]
    found = describe(pages, (1.0, 2.0))
    assert found[6] is None
    assert [found[n][1] for n in (7, 8)] == pytest.approx([np.log(87 / 134), np.log(30 / 80)])
    assert found[8][0][..., 1].tolist() == np.ones((12, 12)).tolist()
    for page, one in zip(pages, found, strict=True):
        (alone,) = describe([page], (1.0, 2.0))
        assert (one is None) == (alone is None)
        assert one is None or (np.array_equal(one[0], alone[0]) and one[1] == alone[1])


def test_incomplete_data_to_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["orientation", "--shared", str(tmp_path), "-o", str(tmp_path / "w.npz")])
    with pytest.raises(SystemExit, match=r"^error: .*lits_slices: no caseNN"):
        orientation.main()
    assert not list(tmp_path.iterdir())
