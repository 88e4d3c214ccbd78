"""The bounds of the acceptance gate, each just kept and just not, and how far from them the shipped nets stay."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tiny
from acceptance_cases import ROLES, Case, begins, checked, numbers, sound

from trtseg import models
from trtseg.engines.acceptance import DICE, FLIP_SHARE, MIN_PIXELS
from trtseg.engines.calibration import SETTLED, Reference, references
from trtseg.engines.precision import BF16, FP16, FP32


def made(role: str, logits: np.ndarray, images: np.ndarray | None = None) -> Case:
    """A net of which only the reference's logits ``[k, c, H, W]`` and the slices are known."""
    spec = tiny.spec(role, size=logits.shape[2:])
    noise = np.random.default_rng(0).uniform(0.25, 1, (len(logits), 1, *spec.size))
    images = (noise if images is None else images).astype(np.float16).astype(np.float32)
    liver = images[:, 0] > 0 if role == "tumour" else None
    return Case(spec, Reference(images, logits.astype(np.float32), "made up", {}, liver))


def changed(case: Case, pixels, value: float):
    """The reference's logits, but for one value in those of slice 0."""

    def run(rows):
        out = sound(case)(rows)
        for slot, image in enumerate(numbers(case, rows)):
            if image == 0:
                out[slot][pixels] = value
        return out

    return run


class TestBounds:
    """Each of them, just kept and just not."""

    @pytest.mark.parametrize("precision", [FP16, FP32], ids=lambda p: p.name)
    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("role", ROLES)
    def test_how_far_from_the_threshold_a_label_may_flip(self, role, precision, sign):
        bound = precision.logit_bound
        for factor, accepted in ((0.96, True), (1.04, False)):
            logits = np.full((2, 3 if role == "one-step" else 1, 64, 64), -0.5)
            logits[:, 0] = 0.5  # one-step: background, else the object
            logits[0, 0, 1, 1] = sign * factor * bound
            if role == "one-step":
                logits[0, 1, 1, 1] = 0  # the margin is to the second, not to the threshold
            case = made(role, logits)
            found = checked(changed(case, (0, 1, 1), -sign * factor * bound), case, 4, precision)
            assert found.flipped == 1
            assert found.flipped_share == 1 / (2 * 64 * 64)
            assert found.largest_flip_margin == pytest.approx(factor * bound, rel=1e-3)
            assert found.accepted == accepted
            if not accepted:
                begins(found, f"another label in 1 pixels where the reference is {bound:g} or more")

    def test_the_threshold_is_the_nets_own(self):
        logits = np.full((1, 1, 64, 64), 5.0)
        logits[0, 0, 0, :2] = 1.0, 1.2  # 0.75 is a logit of 1.0986
        case = made("liver", logits)._replace(spec=tiny.spec("liver", threshold=0.75))
        found = checked(changed(case, (0, 0, 0), 1.2), case, 1)
        assert (found.accepted, found.flipped, found.compared_pixels) == (True, 1, {"liver": 4095})
        assert found.largest_flip_margin == pytest.approx(0.0986, abs=1e-3)

    @pytest.mark.parametrize(("pixels", "accepted"), [(8, True), (9, False)])
    def test_the_share_of_labels_that_flip(self, pixels, accepted):
        assert 8 / 8192 < FLIP_SHARE < 9 / 8192
        case = made("liver", np.full((2, 1, 64, 64), 0.01))
        found = checked(changed(case, (0, 0, slice(pixels)), -0.01), case, 4)
        assert (found.flipped, found.accepted) == (pixels, accepted)
        if not accepted:
            begins(found, "another label in 0.11% of the pixels, not in at most 0.10%")

    @pytest.mark.parametrize(("missed", "accepted"), [(4, True), (5, False)])
    def test_dice(self, missed, accepted):
        """Of 250 pixels; few enough flips of 8192, and near the threshold."""
        dice = 2 * (250 - missed) / (500 - missed)
        assert (dice >= DICE) == accepted
        logits = np.full((2, 1, 64, 64), -0.01)
        logits[0, 0].flat[:250] = 0.01
        case = made("liver", logits)
        found = checked(changed(case, (0, 0, slice(missed)), -0.01), case, 16)
        assert found.dice == {"liver": pytest.approx(dice)}
        assert found.accepted == accepted
        if not accepted:
            begins(found, "liver: Dice 0.9899 with the reference's 250 pixels, not 0.99 or more")
        too_much = checked(changed(case, (0, 60, slice(6)), 0.01), case, 1)
        assert too_much.dice == {"liver": pytest.approx(500 / 506)}

    def test_dice_is_of_each_class(self):
        logits = np.zeros((2, 3, 64, 64))
        logits[:, 1] = -0.01
        logits[:, 2] = -0.02
        logits[:, 1, :32] = 0.01  # liver in 4096 pixels, of which 250 ...
        logits[0, 2].flat[:250] = 0.02  # ... are tumour
        case = made("one-step", logits)
        found = checked(changed(case, (2, 0, slice(6)), -0.02), case, 1)
        assert found.compared_pixels == {"liver": 4096 - 250, "tumour": 250}
        liver, tumour = 2 * 3846 / (2 * 3846 + 6), 488 / 494
        assert found.dice == {"liver": pytest.approx(liver), "tumour": pytest.approx(tumour)}
        begins(found, "tumour: Dice 0.9879")

    @pytest.mark.parametrize(("size", "counts"), [(MIN_PIXELS, True), (MIN_PIXELS - 1, False)])
    def test_dice_needs_an_object(self, size, counts):
        logits = np.full((2, 1, 64, 64), -0.01)
        logits[0, 0].flat[:size] = 0.01
        case = made("liver", logits)
        found = checked(changed(case, (0, 0, slice(8)), -0.01), case, 1)
        assert found.accepted != counts
        assert (found.dice["liver"] is not None) == counts
        assert found.compared_pixels == {"liver": size}
        assert (f"liver in {size} pixels only" in str(found)) != counts

    @pytest.mark.parametrize("precision", [FP16, FP32], ids=lambda p: p.name)
    def test_black_is_found_even_where_nothing_is_to_be_found(self, precision):
        """No label differs; the typical difference of logits tells."""
        bound = precision.logit_bound
        case = made("liver", np.full((2, 1, 64, 64), -1.0))
        for factor, accepted in ((0.9, True), (1.1, False)):
            out = np.full((4, 1, 64, 64), factor * bound - 1, precision.dtype)
            found = checked(lambda rows, out=out: out, case, 4, precision)
            assert found.accepted == accepted
            assert found.max_difference == pytest.approx(factor * bound, abs=1e-3)
            assert found.rms_difference == pytest.approx(factor * bound, abs=1e-3)
        begins(found, "logits are off by")

    def test_logits_far_from_the_threshold_are_alike(self):
        """-20 and -30 are settled; among them the difference of a logit that is not must not vanish."""
        logits = np.full((2, 1, 64, 64), -20.0)
        logits[:, :, 0, :4] = -1.0
        case = made("liver", logits)

        def run(rows, off):
            out = np.full((4, 1, 64, 64), -30.0, np.float16)
            out[:, :, 0, :4] = -1.0 + off
            return out

        assert checked(lambda rows: run(rows, 0.0), case, 4).rms_difference == 0
        found = checked(lambda rows: run(rows, 0.25), case, 4)
        assert found.rms_difference == 0.25
        begins(found, "logits are off by 0.25")
        zeros = np.zeros((4, 1, 64, 64), np.float16)
        assert checked(lambda rows: zeros, case, 4).max_difference == SETTLED

    def test_no_label_of_the_tumour_net_counts_outside_the_liver(self):
        images = np.random.default_rng(0).uniform(0.25, 1, (2, 1, 64, 64))
        images[:, :, 32:] = 0
        logits = np.full((2, 1, 64, 64), 1.0)
        for role, row, flipped in (("tumour", 40, 0), ("tumour", 20, 64), ("liver", 40, 64)):
            case = made(role, logits, images)
            found = checked(changed(case, (0, row), -1.0), case, 4)
            assert found.flipped == flipped
            assert found.accepted == (flipped == 0)
            assert (found.dice[role] == 1) == (flipped == 0)
            pixels = images.size // 2 if role == "tumour" else images.size
            assert found.flipped_share == flipped / pixels
            assert found.compared_pixels == {role: pixels}
        case = made("tumour", logits, images)
        begins(checked(changed(case, (0, 40, 0), np.nan), case, 4), "NaN or infinity instead of 1 logits")

    @pytest.mark.parametrize(("channel", "flips"), [(0, 0), (1, 0), (2, 1)])
    def test_nan_is_the_lowest_logit(self, channel, flips):
        logits = np.zeros((2, 3, 64, 64))
        logits[:, 2] = 5
        case = made("one-step", logits)
        found = checked(changed(case, (channel, 0, 0), np.nan), case, 4)
        assert found.flipped == flips
        begins(found, *["NaN or infinity instead of 1 logits", "another label in 1 pixels"][: 1 + flips])


@functools.cache
def emulated(role, precision):
    """Accept a shipped net with weights and activations rounded, sums in FP32 as on tensor cores; and its case."""
    import torch

    from training.trained import trained_net

    type_ = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision.name]

    def rounded(x):
        return x.to(type_).float()

    files = models.find("default")
    spec = next(net for net in files.spec.nets if net.role == role)
    net = trained_net("default", role)
    net.load_state_dict({name: rounded(array) for name, array in net.state_dict().items()})
    for part in net.modules():
        if not list(part.children()):
            part.register_forward_hook(lambda part, inputs, output: rounded(output))
    whole = references(files)[role]
    counts = None if whole.counts is None else whole.counts[::2]
    case = Case(spec, Reference(whole.images[::2], whole.logits[::2], whole.source, whole.files, counts))
    with torch.no_grad():
        logits = net(rounded(torch.from_numpy(case.reference.images))).numpy()
    return checked(lambda rows: logits[numbers(case, rows)].astype(rows.dtype), case, 1, precision), case


@pytest.mark.parametrize("precision", [FP16, BF16], ids=lambda p: p.name)
@pytest.mark.parametrize("role", ["liver", "tumour"])
def test_the_shipped_nets_in_emulated_arithmetic(role, precision):
    found, case = emulated(role, precision)
    assert found.accepted, found
    assert 0 < found.max_difference < precision.logit_bound
    assert found.rms_difference < precision.logit_bound / 4
    assert found.flipped_share < FLIP_SHARE / 2
    assert 1 - found.dice[role] < (1 - DICE) / 2
    black = checked(lambda rows: np.zeros_like(rows), case, 4, precision)
    assert len(black.reasons) == 4, black


@pytest.mark.parametrize("precision", [FP16, BF16], ids=lambda p: p.name)
@pytest.mark.parametrize("role", ["liver", "tumour"])
def test_flips_stay_far_from_the_bound(role, precision):
    assert emulated(role, precision)[0].largest_flip_margin < precision.logit_bound / 4
