"""The metrics, against values worked out by hand and against slow, obvious versions of them."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from trtseg.errors import ArgumentError, TrtsegError
from trtseg.metrics.cases import evaluate_case
from trtseg.metrics.checks import needs
from trtseg.metrics.detection import LesionScores, burden_errors, score_lesions, tumour_burden
from trtseg.metrics.overlap import Overlap, global_dice, overlap
from trtseg.metrics.ranking import PAPER_BAND, reliability, roc
from trtseg.metrics.surface import SurfaceDistances, surface_distances

SPACINGS = st.tuples(*[st.sampled_from([0.7, 1.0, 2.5, 5.0])] * 3)


@st.composite
def pairs_of_masks(draw, max_side=6):
    """Two masks [Z, Y, X] of one shape, sometimes empty or full."""
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=max_side))
    masks = hnp.arrays(bool, shape, elements=st.booleans())
    return draw(masks), draw(masks)


def mask(shape, *boxes):
    """A mask that is True in the boxes, each one slice per axis."""
    result = np.zeros(shape, bool)
    for box in boxes:
        result[box] = True
    return result


# Overlap


def test_overlap_by_hand():
    truth = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    prediction = np.array([[0, 1, 1, 1], [1, 1, 0, 0]], bool)
    counts = overlap(prediction, truth)
    assert counts == Overlap(tp=3, fp=2, fn=1, tn=2)
    assert counts.dice == 6 / 9
    assert counts.iou == 3 / 6
    assert counts.voe == 0.5
    assert counts.rvd == 1 / 4
    assert counts.accuracy == 5 / 8
    assert counts.rand_index == 13 / 28  # 3 wrong x 5 right = 15 of 28 pairs disagree


@pytest.mark.parametrize(
    ("counts", "dice", "iou", "rvd"),
    [
        (Overlap(0, 0, 0, 9), 1, 1, 0),  # both empty
        (Overlap(0, 3, 0, 6), 0, 0, math.nan),  # the truth alone is
        (Overlap(0, 0, 3, 6), 0, 0, -1),  # the prediction is
        (Overlap(9, 0, 0, 0), 1, 1, 0),  # both full
        (Overlap(0, 0, 0, 0), 1, 1, 0),  # no voxel at all
    ],
)
def test_overlap_at_its_limits(counts, dice, iou, rvd):
    assert (counts.dice, counts.iou, counts.voe) == (dice, iou, 1 - iou)
    assert counts.rvd == pytest.approx(rvd, nan_ok=True)


def rand_by_pairs(a, b):
    """Count the pairs of pixels that both partitions join, or both separate."""
    pairs = list(itertools.combinations(zip(a.ravel(), b.ravel(), strict=True), 2))
    return sum((p[0] == q[0]) == (p[1] == q[1]) for p, q in pairs) / len(pairs) if pairs else 1.0


@given(pairs_of_masks(max_side=3))
def test_rand_index_counts_pairs(masks):
    assert overlap(*masks).rand_index == pytest.approx(rand_by_pairs(*masks), abs=1e-15)


def test_rand_index_is_exact_where_pairs_do_not_fit_into_64_bits():
    n, errors = 10**10, 1
    expected = 1 - Fraction(errors * (n - errors), n * (n - 1) // 2)
    assert Overlap(n - errors, errors, 0, 0).rand_index == float(expected) != 1


def test_global_dice_adds_up_voxels():
    # 2 * (1 + 90) / ((2 + 4) + (100 + 95)), and not the mean of 1/3 and 0.923
    assert global_dice([Overlap(1, 1, 3, 0), Overlap(90, 10, 5, 7)]) == 2 * 91 / 201
    assert global_dice([]) == global_dice([Overlap(0, 0, 0, 5)]) == 1


@pytest.mark.parametrize("metric", [overlap, lambda p, t: surface_distances(p, t, (1, 1, 1))])
def test_what_is_no_pair_of_masks_is_refused(metric):
    good = np.zeros((2, 2, 2), bool)
    with pytest.raises(ArgumentError, match=r"prediction: got uint8 \(2, 2, 2\); expected a boolean mask"):
        metric(good.astype(np.uint8), good)
    with pytest.raises(ArgumentError, match="truth: got list"):
        metric(good, [[[True]]])
    with pytest.raises(ArgumentError, match=r"\(2, 2, 2\) and \(2, 2, 1\); expected the same grid"):
        metric(good, good[..., :1])


# Surfaces


def brute_surface(mask, neighbours):
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2}[neighbours])
    return np.argwhere(mask & ~ndimage.binary_erosion(mask, structure, border_value=0))


def percentile(values, percent):
    """Linear interpolation between the sorted values."""
    values = sorted(values)
    at = (len(values) - 1) * percent / 100
    low = math.floor(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (at - low)


@settings(deadline=None, max_examples=50)
@given(pairs_of_masks(), SPACINGS, st.sampled_from([6, 18]))
def test_surface_distances_are_those_of_all_pairs(masks, spacing, neighbours):
    found = surface_distances(*masks, spacing, neighbours=neighbours)
    points = [brute_surface(m, neighbours) * spacing for m in masks]
    if not all(len(p) for p in points):
        assert [found.assd, found.rmsd, found.msd, found.hd95] == pytest.approx([math.nan] * 4, nan_ok=True)
        return
    table = cdist(*points)
    directed = table.min(axis=1), table.min(axis=0)
    pooled = np.concatenate(directed)
    assert sorted(found.to_truth) == pytest.approx(sorted(directed[0]))
    assert sorted(found.to_prediction) == pytest.approx(sorted(directed[1]))
    assert found.assd == pytest.approx(sum(pooled) / len(pooled))
    assert found.rmsd == pytest.approx(math.sqrt(sum(pooled**2) / len(pooled)))
    assert found.msd == pytest.approx(max(pooled))
    assert found.hd95 == pytest.approx(max(percentile(d, 95) for d in directed))


def test_steps_of_a_sheared_grid_by_hand():
    upper, lower = mask((2, 1, 1), (1, 0, 0)), mask((2, 1, 1), (0, 0, 0))
    # Steps along z, y, x: from slice to slice 5 mm, of which 4 mm are upright.
    sheared = np.array([[0, 3, 4], [0, 1, 0], [1, 0, 0]])
    assert surface_distances(upper, lower, sheared).assd == 5
    case = evaluate_case(upper.astype(np.uint8) * 2, lower.astype(np.uint8), sheared)
    assert (case.liver.surface.assd, case.predicted_ml) == (5, pytest.approx(0.004))


def test_conventions_by_hand():
    # A line of 9 voxels against its first voxel: 0, 1, ..., 8 mm one way, 0 the other.
    line, point = mask((1, 1, 9), np.s_[:, :, :]), mask((1, 1, 9), (0, 0, 0))
    found = surface_distances(line, point, (3, 3, 1))
    assert found.assd == pytest.approx(36 / 10)  # pooled: ten distances, and not (4 + 0) / 2
    assert found.rmsd == pytest.approx(math.sqrt(204 / 10))
    assert found.msd == 8
    assert found.hd95 == pytest.approx(7.6)  # of 0 to 8 alone; pooled it would be 7.55


def test_bad_arguments_of_surface_distances():
    one = np.ones((1, 1, 1), bool)
    with pytest.raises(ArgumentError, match="expected a volume"):
        surface_distances(one[0], one[0], (1, 1, 1))
    with pytest.raises(ArgumentError, match="neighbours: got 26"):
        surface_distances(one, one, (1, 1, 1), neighbours=26)
    flat = np.array([[1.0, 0, 0], [0, 1, 0], [1, 1, 0]])
    steps = (np.ones((3, 3)), np.zeros((3, 3)), np.eye(3) * math.nan, np.eye(4), flat)
    for spacing in ((1, 1), (1, 1, 0), (1, 1, math.nan), "abc", None, *steps):
        for measure in (surface_distances, score_lesions):
            with pytest.raises(ArgumentError, match="spacing: got"):
                measure(one, one, spacing)
        with pytest.raises(ArgumentError, match="spacing: got"):
            evaluate_case(one.astype(np.uint8), one.astype(np.uint8), spacing)


# Lesions


def test_a_lesion_is_detected_above_half_of_the_union():
    truth = mask((1, 1, 30), np.s_[0, 0, 0:4], np.s_[0, 0, 10:14], np.s_[0, 0, 20:22])
    # IoU 4/8 (not above 0.5), 4/7, nothing; and a fourth where no lesion is
    prediction = mask((1, 1, 30), np.s_[0, 0, 0:8], np.s_[0, 0, 10:17], np.s_[0, 0, 27:29])
    found = score_lesions(prediction, truth, (1, 1, 2))
    assert (found.true, found.predicted, found.detected, found.touched) == (3, 3, 1, 2)
    assert (found.precision, found.recall, found.f1) == (1 / 3, 1 / 3, 2 / 6)
    assert found.recall_any == 2 / 3
    assert found.overlaps == (Overlap(tp=4, fp=3, fn=0, tn=0),)
    assert found.means()["dice"] == 8 / 11
    # All 4 + 7 voxels are surface; three of them lie 2, 4 and 6 mm away.
    assert found.means()["assd"] == pytest.approx(12 / 11)


def test_surfaces_of_a_lesion_are_those_in_the_whole_volume():
    lesions = np.s_[1:4, 2:8, 3:9], np.s_[0:4, 2:8, 3:9], np.s_[1:4, 1:8, 2:9]
    for pair in itertools.permutations(lesions, 2):
        prediction, truth = (mask((6, 10, 12), lesion) for lesion in pair)
        (found,) = score_lesions(prediction, truth, (3, 2, 1)).surfaces
        expected = surface_distances(prediction, truth, (3, 2, 1))
        assert (found.assd, found.msd, found.hd95) == (expected.assd, expected.msd, expected.hd95)


def test_no_lesions_leave_scores_undefined():
    none, one = np.zeros((2, 2, 2), bool), mask((2, 2, 2), (0, 0, 0))
    nothing = score_lesions(none, none, (1, 1, 1))
    assert nothing == LesionScores(0, 0, 0, 0)
    for value in (
        nothing.precision,
        nothing.recall,
        nothing.f1,
        nothing.recall_any,
        *nothing.means().values(),
    ):
        assert math.isnan(value)
    missed = score_lesions(none, one, (1, 1, 1))
    assert (missed.recall, missed.f1) == (0, 0)
    assert math.isnan(missed.precision)
    false = score_lesions(one, none, (1, 1, 1))
    assert (false.precision, false.f1) == (0, 0)
    assert math.isnan(false.recall)


def test_lesions_of_cases_add_up():
    def case(true, predicted, touched, *pairs):
        overlaps, surfaces = zip(*pairs, strict=True)
        return LesionScores(true, predicted, len(pairs), touched, overlaps, surfaces)

    near, far = (SurfaceDistances(np.array([mm]), np.array([mm])) for mm in (0.5, 2.0))
    good, fair = Overlap(8, 2, 2, 0), Overlap(6, 4, 4, 0)
    total = case(3, 2, 2, (good, near)) + case(2, 4, 2, (fair, far), (fair, near))
    assert (total.recall, total.precision, total.f1, total.recall_any) == (3 / 5, 3 / 6, 6 / 11, 4 / 5)
    # Every lesion has one weight, and not every case.
    assert total.means()["dice"] == pytest.approx((0.8 + 0.6 + 0.6) / 3)
    assert total.means()["assd"] == pytest.approx((0.5 + 2.0 + 0.5) / 3)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.0, 0.2), st.floats(0.0, 0.05), SPACINGS)
def test_lesions_are_matched_as_the_best_assignment_does(seed, density, noise, spacing):
    rng = np.random.default_rng(seed)
    truth = rng.random((4, 9, 9)) < density
    prediction = truth ^ (rng.random(truth.shape) < noise)
    found = score_lesions(prediction, truth, spacing)
    ours, n = ndimage.label(prediction, np.ones((3, 3, 3)))
    theirs, m = ndimage.label(truth, np.ones((3, 3, 3)))
    iou = np.zeros((m, n))
    for t, p in itertools.product(range(m), range(n)):
        a, b = theirs == t + 1, ours == p + 1
        iou[t, p] = (a & b).sum() / (a | b).sum()
    rows, columns = linear_sum_assignment(iou > 0.5, maximize=True)
    matched = [(t, p) for t, p in zip(rows, columns, strict=True) if iou[t, p] > 0.5]
    assert (found.true, found.predicted, found.detected) == (m, n, len(matched))
    assert found.touched == int((iou > 0).any(axis=1).sum())
    assert [pair.iou for pair in found.overlaps] == pytest.approx([iou[pair] for pair in matched])
    sizes = [((ours == p + 1).sum(), (theirs == t + 1).sum()) for t, p in matched]
    assert [(pair.predicted, pair.true) for pair in found.overlaps] == sizes
    expected = [surface_distances(ours == p + 1, theirs == t + 1, spacing) for t, p in matched]
    for metric in ("assd", "rmsd", "msd", "hd95"):
        each = [getattr(pair, metric) for pair in expected]
        assert [getattr(pair, metric) for pair in found.surfaces] == pytest.approx(each)
        assert found.means()[metric] == pytest.approx(np.mean(each) if each else math.nan, nan_ok=True)


def test_tumour_burden():
    labels = np.array([[[0, 1, 1, 1, 2]]], np.uint8)
    assert tumour_burden(labels) == 1 / 4
    assert tumour_burden(np.full((1, 1, 3), 2, np.uint8)) == 1
    assert tumour_burden(np.ones((1, 1, 3), np.uint8)) == 0
    assert math.isnan(tumour_burden(np.zeros((1, 1, 3), np.uint8)))
    with pytest.raises(ArgumentError, match="labels: got a label 3"):
        tumour_burden(labels + np.uint8(1))


def test_burden_errors_leave_out_what_is_undefined():
    rmse, largest = burden_errors([(0.1, 0.2), (0.5, 0.1), (math.nan, 0.1), (0.3, math.nan)])
    assert rmse == pytest.approx(math.sqrt((0.01 + 0.16) / 2))
    assert largest == pytest.approx(0.4)
    assert all(map(math.isnan, burden_errors([(math.nan, 0.1)])))
    assert all(map(math.isnan, burden_errors([])))


# Ranking


@st.composite
def ranked_pixels(draw):
    """Probabilities, with many ties, and which are tumour."""
    n = draw(st.integers(1, 40))
    steps = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 12)))
    return (steps / 12).astype(np.float32), draw(hnp.arrays(bool, n, elements=st.booleans()))


def mann_whitney(probability, truth):
    """How often a tumour pixel has the higher probability, over all pairs with another one."""
    wins = [(p > q) + (p == q) / 2 for p in probability[truth] for q in probability[~truth]]
    return sum(wins) / len(wins) if wins else math.nan


def youden(probability, truth, threshold):
    return (probability[truth] > threshold).mean() - (probability[~truth] > threshold).mean()


@settings(deadline=None, max_examples=50)
@given(ranked_pixels(), st.sampled_from([None, (0.2, 0.8), (0.25, 0.75)]))
def test_auc_is_the_count_of_mann_and_whitney(pixels, band):
    probability, truth = pixels
    kept = np.ones(len(truth), bool) if band is None else (probability >= band[0]) & (probability <= band[1])
    found = roc(probability, truth, band)
    assert found.auc == pytest.approx(mann_whitney(probability[kept], truth[kept]), nan_ok=True)
    assert found.share == kept.mean()


@settings(deadline=None, max_examples=50)
@given(ranked_pixels())
def test_threshold_has_the_largest_youden_index(pixels):
    probability, truth = pixels
    found = roc(probability, truth)
    if truth.all() or not truth.any():
        assert math.isnan(found.threshold)
        return
    assert 0 <= found.threshold <= 1
    assert found.youden == pytest.approx(youden(probability, truth, found.threshold))
    levels = [0.0, *sorted(set(probability.tolist())), 1.0]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(levels)]
    scores = [youden(probability, truth, t) for t in middles]
    assert found.youden == pytest.approx(max(scores))
    best = [t for t, score in zip(middles, scores, strict=True) if score > max(scores) - 1e-9]
    assert abs(found.threshold - 0.5) == pytest.approx(min(abs(t - 0.5) for t in best))


def test_the_papers_band_and_what_is_left_of_the_pixels():
    probability = np.array([0.0, 0.005, 0.01, 0.4, 0.6, 0.99, 0.995, 1.0], np.float64)
    truth = np.array([0, 0, 0, 1, 0, 1, 1, 1], bool)
    found = roc(probability, truth, PAPER_BAND)
    assert found.share == 4 / 8  # both ends belong to it
    assert found.auc == 3 / 4  # of (0.4, 0.99) x (0.01, 0.6)
    assert roc(probability, truth).auc == 15 / 16


def test_the_curve_is_kept_by_its_corners():
    found = roc(np.array([0.1, 0.2, 0.3, 0.8, 0.9]), np.array([False, False, False, True, True]))
    assert found.false_positive_rate.tolist() == [0, 0, 1]
    assert found.true_positive_rate.tolist() == [0, 1, 1]
    rng = np.random.default_rng(0)
    for _ in range(20):  # the area under what is kept is that under all points
        found = roc(rng.integers(0, 12, 60) / 12, rng.random(60) < 0.4)
        area = np.trapezoid(found.true_positive_rate, found.false_positive_rate)
        assert area == pytest.approx(found.auc)


@pytest.mark.parametrize(
    ("truth", "band", "share"),
    [
        ([False, False], None, 1),
        ([True, True], None, 1),
        ([True, False], (0.9, 1.0), 0),
        ([], None, math.nan),
    ],
)
def test_pixels_of_one_class_have_no_curve(truth, band, share):
    found = roc(np.full(len(truth), 0.5, np.float32), np.array(truth, bool), band)
    assert found.share == pytest.approx(share, nan_ok=True)
    assert all(map(math.isnan, (found.auc, found.threshold, found.youden)))
    assert found.false_positive_rate.size == found.true_positive_rate.size == 0


def test_shape_and_layout_do_not_matter():
    rng = np.random.default_rng(0)
    probability, truth = rng.random((4, 5, 6)), rng.random((4, 5, 6)) < 0.3
    flat = roc(probability.ravel(), truth.ravel())
    turned = roc(probability.transpose(2, 1, 0)[::-1], truth.transpose(2, 1, 0)[::-1])
    assert flat.auc == turned.auc
    assert flat.threshold == turned.threshold


@pytest.mark.parametrize(
    ("probability", "truth", "band", "message"),
    [
        (np.zeros(2, np.int64), np.zeros(2, bool), None, "probability: got int64"),
        (np.zeros(2), np.zeros(2), None, "truth: got float64"),
        (np.zeros(2), np.zeros(3, bool), None, "expected the same grid"),
        (np.array([0.5, math.nan]), np.zeros(2, bool), None, "probability: got values from nan"),
        (np.array([0.5, 1.5]), np.zeros(2, bool), None, "apply the sigmoid"),
        (np.array([-2.0, 0.5]), np.zeros(2, bool), None, "apply the sigmoid"),
        (np.zeros(2), np.zeros(2, bool), (0.9, 0.1), "band: got"),
    ],
)
def test_bad_arguments_of_roc(probability, truth, band, message):
    with pytest.raises(ArgumentError, match=message):
        roc(probability, truth, band)


def test_a_missing_package_is_named_with_what_to_install():
    with pytest.raises(TrtsegError, match=r'nonsense: cannot be imported .*pip install "trtseg\[evaluate\]"'):
        needs("nonsense.spatial")


def test_reliability_by_hand():
    p = np.array([0.0, 0.1, 0.25, 0.25, 0.9, 1.0])
    truth = np.array([False, False, True, False, True, True])
    found = reliability(p, truth, bins=4)
    assert found.pixels.tolist() == [2, 2, 0, 2]
    assert np.allclose(found.probability, [0.05, 0.25, np.nan, 0.95], equal_nan=True)
    assert np.allclose(found.observed, [0, 0.5, np.nan, 1], equal_nan=True)
    assert found.error == pytest.approx((2 * 0.05 + 2 * 0.25 + 2 * 0.05) / 6)
    assert np.isnan(reliability(p[:0], truth[:0]).error)
    with pytest.raises(ArgumentError, match="expected \\[0, 1\\], apply the sigmoid"):
        reliability(p + 1, truth)


def test_reliability_as_scikit_learn_has_it():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(3)
    p = rng.random(2000)
    truth = rng.random(2000) < p**2
    found = reliability(p, truth)
    observed, mean = calibration_curve(truth, p, n_bins=10)
    assert np.allclose(found.observed, observed)
    assert np.allclose(found.probability, mean)
