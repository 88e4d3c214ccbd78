"""Scores of a case and of a set of cases."""

import json
import math

import numpy as np
import pytest
from scipy import ndimage

from trtseg.errors import ArgumentError
from trtseg.io import read_labels
from trtseg.metrics import evaluate_case, evaluate_set
from trtseg.metrics.cases import CONVENTIONS, Mean
from trtseg.metrics.detection import score_lesions
from trtseg.metrics.overlap import Overlap, overlap
from trtseg.metrics.surface import surface_distances
from trtseg.report.pictures import disagreement_png, most_disagreement
from trtseg.volume import Geometry, Volume, spacing_mm

SPACING = (5.0, 2.0, 1.0)


def labels(shape=(4, 8, 8), liver=None, tumour=None):
    """A label map with a box of liver and one of tumour."""
    result = np.zeros(shape, np.uint8)
    if liver is not None:
        result[liver] = 1
    if tumour is not None:
        result[tumour] = 2
    return result


TRUTH = labels(liver=np.s_[1:3, 0:4, 0:5], tumour=np.s_[1, 0:2, 0:2])  # 40 voxels, 4 of them tumour
PREDICTION = labels(liver=np.s_[1:3, 0:4, 0:4], tumour=np.s_[1, 0:2, 0:3])  # 32, 6


def test_one_case_by_hand():
    case = evaluate_case(PREDICTION, TRUTH, SPACING, name="a")
    assert case.name == "a"
    assert case.liver.overlap == Overlap(tp=32, fp=0, fn=8, tn=256 - 40)
    assert case.tumour.overlap == Overlap(tp=4, fp=2, fn=0, tn=256 - 6)
    assert case.liver.overlap.rvd == -8 / 40
    # A prediction that ends one column of 1 mm early; every voxel of both is on the surface.
    assert case.liver.surface.msd == 1
    assert case.liver.surface.assd == pytest.approx(8 / 72)
    assert case.tumour.surface.assd == pytest.approx(2 / 10)
    assert (case.lesions.true, case.lesions.predicted, case.lesions.detected) == (1, 1, 1)
    assert case.lesions.overlaps == (Overlap(tp=4, fp=2, fn=0, tn=0),)
    # Voxels of 5 x 2 x 1 mm
    assert (case.predicted_ml, case.predicted_lesions) == (pytest.approx(0.06), 1)
    assert case.burden == (6 / 32, 4 / 40)


def test_a_case_is_what_the_metrics_say_wherever_it_lies():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, (5, 9, 7)).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, 3, truth.shape), truth).astype(
        np.uint8
    )
    around = [(3, 2), (0, 4), (5, 1)]
    case = evaluate_case(np.pad(prediction, around), np.pad(truth, around), SPACING)
    for region, p, t in (
        (case.liver, prediction >= 1, truth >= 1),
        (case.tumour, prediction == 2, truth == 2),
    ):
        p, t = np.pad(p, around), np.pad(t, around)
        assert region.overlap == overlap(p, t)
        expected = surface_distances(p, t, SPACING)
        for metric in ("assd", "rmsd", "msd", "hd95"):
            assert getattr(region.surface, metric) == pytest.approx(getattr(expected, metric))
    lesions = score_lesions(prediction == 2, truth == 2, SPACING)
    for count in ("true", "predicted", "detected", "touched", "overlaps"):
        assert getattr(case.lesions, count) == getattr(lesions, count)
    assert case.lesions.means() == pytest.approx(lesions.means(), nan_ok=True)
    assert case.predicted_ml == pytest.approx((prediction == 2).sum() * 0.01)
    assert case.predicted_lesions == ndimage.label(prediction == 2, np.ones((3, 3, 3)))[1]


def test_tumour_belongs_to_the_liver():
    all_tumour = labels(tumour=np.s_[1:3, 0:4, 0:5])
    assert evaluate_case(all_tumour, TRUTH, SPACING).liver.overlap.dice == 1


def test_truth_that_does_not_know_tumours_is_scored_for_the_liver_alone():
    prediction = PREDICTION.copy()
    prediction[2, 3, 3] = prediction[2, 2, 2] = 2  # one more lesion, over a corner
    prediction[3, 6, 6] = 2  # and one that lies alone
    case = evaluate_case(prediction, np.minimum(TRUTH, 1), SPACING, liver_only=True)
    assert case.liver.overlap.dice == 2 * 32 / (40 + 33)
    assert case.tumour is case.lesions is case.burden is None
    # 6 + 2 + 1 voxels of 0.01 mL; the corner of the first one touches the second
    assert (case.predicted_ml, case.predicted_lesions) == (pytest.approx(0.09), 2)
    assert set(case.to_dict()) == {"name", "liver", "predicted_tumour"}
    assert case.to_dict()["predicted_tumour"] == {"ml": case.predicted_ml, "lesions": 2}
    none = evaluate_case(np.minimum(PREDICTION, 1), np.minimum(TRUTH, 1), SPACING, liver_only=True)
    assert (none.predicted_ml, none.predicted_lesions) == (0, 0)


def test_a_truth_that_does_not_know_tumours_changes_nothing_of_what_is_predicted():
    rng = np.random.default_rng(2)
    prediction = rng.choice(np.uint8([0, 0, 0, 1, 2]), (5, 9, 7))
    known, unknown = (
        evaluate_case(prediction, np.zeros_like(prediction), SPACING, liver_only=only)
        for only in (False, True)
    )
    assert unknown.to_dict()["predicted_tumour"] == known.to_dict()["predicted_tumour"]
    assert known.lesions.predicted == unknown.predicted_lesions > 1


def test_empty_cases_are_undefined_and_not_wrong():
    empty = labels()
    both = evaluate_case(empty, empty, SPACING)
    assert both.liver.overlap.dice == both.tumour.overlap.dice == 1
    assert math.isnan(both.liver.surface.assd)
    assert all(map(math.isnan, both.burden))
    missed = evaluate_case(empty, TRUTH, SPACING)
    assert missed.liver.overlap.dice == missed.lesions.recall == 0
    assert math.isnan(missed.liver.surface.hd95)


def test_arguments_are_left_alone_and_may_have_any_layout():
    prediction, truth = PREDICTION[::-1].copy()[::-1], np.asfortranarray(TRUTH)
    prediction.setflags(write=False)
    truth.setflags(write=False)
    expected = evaluate_case(PREDICTION, TRUTH, SPACING).to_dict()
    assert evaluate_case(prediction, truth, SPACING).to_dict() == expected


@pytest.mark.parametrize(
    ("prediction", "truth", "spacing", "message"),
    [
        (PREDICTION + np.uint8(1), TRUTH, SPACING, "prediction: labels: got a label 3"),
        (PREDICTION, TRUTH.astype(np.int16), SPACING, "truth: labels: got int16"),
        (PREDICTION[1:], TRUTH, SPACING, r"\(3, 8, 8\) and \(4, 8, 8\); expected the same grid"),
        (PREDICTION, TRUTH, (1, 1), "spacing: got"),
    ],
)
def test_bad_arguments(prediction, truth, spacing, message):
    with pytest.raises(ArgumentError, match=message):
        evaluate_case(prediction, truth, spacing)


@pytest.fixture
def three():
    """A good case, one in which nothing was found, and one whose truth has no tumour and no liver either."""
    return evaluate_set(
        [
            evaluate_case(PREDICTION, TRUTH, SPACING, name="good"),
            evaluate_case(labels(), TRUTH, SPACING, name="missed"),
            evaluate_case(labels(liver=np.s_[0, 0, 0:2]), labels(), SPACING, name="false"),
        ]
    )


def mean_of(*values, undefined=0):
    """The mean and the standard deviation of a sample, as NumPy has them."""
    mean, sd = np.mean(values), np.std(values, ddof=1)
    return Mean(pytest.approx(mean), len(values), undefined, pytest.approx(sd))


def test_a_set_averages_what_is_defined_and_counts_the_rest(three):
    liver = three.liver.means
    tumour = three.tumour.means["dice"]
    assert liver["dice"] == mean_of(64 / 72, 0, 0)
    assert liver["rvd"] == mean_of(-8 / 40, -1, undefined=1)
    assert tumour == mean_of(8 / 10, 0, 1)
    assd = liver["assd"]
    assert (assd.value, assd.cases, assd.undefined) == (pytest.approx(8 / 72), 1, 2)
    assert math.isnan(assd.sd)  # of one case
    assert three.liver.dice_global == 2 * 32 / (32 + 40 + 40 + 2)
    assert three.tumour.dice_global == 2 * 4 / (6 + 4 + 4)
    assert (three.lesions.true, three.lesions.predicted, three.lesions.recall) == (2, 1, 0.5)
    # Without a predicted liver there is no burden to compare, nor without a true one.
    assert three.burden_cases == 1
    assert three.burden_rmse == three.burden_max == pytest.approx(6 / 32 - 4 / 40)


def test_cases_without_known_tumours_do_not_count_for_tumours():
    known = evaluate_case(PREDICTION, TRUTH, SPACING)
    unknown = evaluate_case(PREDICTION, TRUTH, SPACING, liver_only=True)
    scores = evaluate_set([known, unknown])
    assert scores.liver.means["dice"].cases == 2
    assert scores.tumour.means["dice"].cases == 1
    only = evaluate_set(iter([unknown]))
    assert only.tumour is only.lesions is None
    assert math.isnan(only.burden_rmse)
    assert set(only.to_dict()["summary"]) == {"cases", "liver"}
    with pytest.raises(ArgumentError, match="cases: got none"):
        evaluate_set([])


def test_a_set_can_be_stored_as_json(three):
    document = json.loads(json.dumps(three.to_dict(), allow_nan=False))
    assert document["conventions"] == CONVENTIONS
    assert [case["name"] for case in document["cases"]] == ["good", "missed", "false"]
    good, missed, _ = document["cases"]
    assert good["liver"]["voxels"] == {"tp": 32, "fp": 0, "fn": 8, "tn": 216}
    lesion = {"dice": 8 / 10, "iou": 4 / 6, "voe": 2 / 6, "rvd": 2 / 4, "assd": 2 / 10, "rmsd": math.sqrt(2 / 10),
              "msd": 1.0, "hd95": 1.0}  # fmt: skip
    means = {f"mean_{metric}": pytest.approx(value) for metric, value in lesion.items()}
    assert {key: value for key, value in good["lesions"].items() if key.startswith("mean_")} == means
    for case, liver, tumour in ((good, (32, 40), (6, 4)), (missed, (0, 40), (0, 4))):  # voxels of 0.01 mL
        assert case["liver"]["ml"] == pytest.approx({"predicted": liver[0] / 100, "true": liver[1] / 100})
        assert case["tumour"]["ml"] == pytest.approx({"predicted": tumour[0] / 100, "true": tumour[1] / 100})
    assert good["predicted_tumour"] == {"ml": pytest.approx(0.06), "lesions": 1}
    assert good["burden"] == {"predicted": 6 / 32, "true": 0.1}
    assert missed["liver"]["assd"] is None
    assert missed["lesions"]["precision"] is missed["lesions"]["mean_msd"] is None
    assert missed["predicted_tumour"] == {"ml": 0, "lesions": 0}
    summary = document["summary"]
    assert summary["lesions"]["mean_rmsd"] == pytest.approx(lesion["rmsd"])  # the one of all cases
    assert summary["liver"]["assd"] == {"mean": pytest.approx(8 / 72), "sd": None, "cases": 1, "undefined": 2}
    assert summary["tumour"]["dice"]["sd"] == pytest.approx(np.std([8 / 10, 0, 1], ddof=1))
    assert summary["tumour"]["dice_global"] == 8 / 14
    assert summary["burden"]["cases"] == 1


def test_the_slice_that_is_drawn_is_the_one_with_most_disagreement():
    assert most_disagreement(PREDICTION, TRUTH) == 1  # 6 voxels; 4 on the next one
    assert most_disagreement(TRUTH, TRUTH) == 1  # none: the first of those with most liver
    wrong = TRUTH.copy()
    wrong[3, 0:5, 0:5] = 2
    assert most_disagreement(wrong, TRUTH) == 3
    assert most_disagreement(labels(), labels()) == 0


def test_labels_of_another_grid_cannot_be_drawn():
    geometry = Geometry.from_affine((8, 8, 4), np.diag([-1, -1, 5, 1]))
    volume = Volume(np.zeros((4, 8, 8), np.int16), geometry.canonical_affine(), geometry)
    with pytest.raises(ArgumentError, match="prediction: got shape"):
        disagreement_png(volume, PREDICTION[1:], TRUTH, "x")
    with pytest.raises(ArgumentError, match="truth: got shape"):
        disagreement_png(volume, PREDICTION, TRUTH[1:], "x")


def test_a_real_liver_agrees_with_itself_and_is_off_by_what_it_is_moved(shared_data):
    truth, geometry = read_labels(shared_data / "chaos3" / "segmentation.nii.gz")
    spacing = spacing_mm(geometry.canonical_affine())[::-1]
    same = evaluate_case(truth, truth, spacing, liver_only=True).liver
    assert (same.overlap.dice, same.overlap.rvd, same.surface.msd) == (1, 0, 0)
    moved = evaluate_case(np.roll(truth, 3, axis=2), truth, spacing, liver_only=True).liver
    assert moved.overlap.rvd == 0
    assert moved.surface.msd == pytest.approx(3 * spacing[2])
    assert 0 < moved.surface.assd < moved.surface.hd95 <= moved.surface.msd
