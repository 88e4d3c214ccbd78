"""The training loss, by hand."""

from __future__ import annotations

import pytest
import torch

from training.losses import Loss, class_weights


def test_class_weights_by_hand():
    half = class_weights(torch.tensor([0.8, 0.2]), 0.5)
    # f = (0.8, 0.2): 1/sqrt(f) = (1.1180, 2.2361); sum sqrt(f) = 0.8944 + 0.4472 = 1.3416
    assert half.tolist() == pytest.approx([1.11803399 / 1.34164079, 2.23606798 / 1.34164079])
    assert class_weights(torch.tensor([0.8, 0.2]), 0.0).tolist() == pytest.approx([1, 1])
    # inverse frequency: each of three classes has a third of the weight
    assert class_weights(torch.tensor([0.5, 0.4, 0.1]), 1.0).tolist() == pytest.approx([2 / 3, 5 / 6, 10 / 3])


def fixed(classes, balance, overlap, frequency):
    """A loss whose class frequencies stay as they are."""
    loss = Loss(classes, balance, overlap).eval()
    loss.frequency.copy_(torch.tensor(frequency))
    return loss


def test_two_classes_by_hand():
    logits, target = torch.zeros(1, 1, 1, 2), torch.tensor([[[1, 0]]])
    # p = 0.5 everywhere: cross-entropy ln 2; frequencies (0.8, 0.2) weigh 0.8333 and 1.6667
    weighted = 0.69314718 * (1.6666667 + 0.8333333) / 2
    assert float(fixed(2, 0.5, "none", [0.8, 0.2])(logits, target)) == pytest.approx(weighted)
    # soft Dice: p = (0.5, 0.5), truth (1, 0): both 0.5, found 1, there 1: (0.5 + 1) / (1 + 1)
    assert float(fixed(2, 0.5, "dice", [0.8, 0.2])(logits, target)) == pytest.approx(weighted + 0.25)
    # Tversky: (0.5 + 1) / (0.5 + 0.3 * 0.5 + 0.7 * 0.5 + 1) = 0.75; other with more found than there
    assert float(fixed(2, 0.0, "tversky", [0.8, 0.2])(logits, target)) == pytest.approx(0.69314718 + 0.25)
    nowhere = torch.zeros(1, 1, 2, dtype=torch.long)
    # nothing there, 1 found: 1 / (0.3 * 1 + 1)
    expected = 0.69314718 + 1 - 1 / 1.3
    assert float(fixed(2, 0.0, "tversky", [0.8, 0.2])(logits, nowhere)) == pytest.approx(expected)


def test_three_classes_by_hand():
    logits = torch.tensor([[1.0, 2.0, 4.0]]).log().view(1, 3, 1, 1)  # p = 1/7, 2/7, 4/7
    loss = fixed(3, 0.0, "dice", [0.9, 0.05, 0.05])
    # -ln(2/7); Dice of class 1: (2/7 + 1) / ((2/7 + 1) / 2 + 1) = 18/23, of class 2: 1 / ((4/7) / 2 + 1) = 7/9
    expected = 1.25276297 + 1 - (18 / 23 + 7 / 9) / 2
    assert float(loss(logits, torch.tensor([[[1]]]))) == pytest.approx(expected)


def test_a_sure_and_right_answer_costs_nothing():
    logits, target = torch.tensor([[[[50.0, -50.0]]]]), torch.tensor([[[1, 0]]])
    assert float(fixed(2, 0.5, "dice", [0.5, 0.5])(logits, target)) == pytest.approx(0, abs=1e-6)


def test_pixels_that_do_not_count_change_nothing():
    torch.manual_seed(0)
    logits, target = torch.randn(1, 1, 4, 4), torch.randint(0, 2, (1, 4, 4))
    where = torch.zeros(1, 4, 4, dtype=torch.bool)
    where[:, :2] = True
    loss = fixed(2, 0.5, "dice", [0.7, 0.3])
    assert float(loss(logits, target, where=where)) == pytest.approx(
        float(loss(logits[:, :, :2], target[:, :2]))
    )
    assert float(loss(logits, target, where=torch.zeros_like(where))) == pytest.approx(0)  # and not NaN


def test_frequencies_follow_the_slices_in_training_only():
    loss = Loss(2, 0.5, "none")
    target = torch.ones(1, 8, 8, dtype=torch.long)
    before = loss.frequency.clone()
    loss.eval()(torch.zeros(1, 1, 8, 8), target)
    assert torch.equal(loss.frequency, before)
    loss.train()(torch.zeros(1, 1, 8, 8), target)
    assert loss.frequency.tolist() == pytest.approx([0.95 * 0.99, 0.05 * 0.99 + 0.01])
    before = loss.frequency.clone()
    loss(torch.zeros(1, 1, 8, 8), target, where=torch.zeros(1, 8, 8, dtype=torch.bool))
    assert torch.equal(loss.frequency, before)  # nothing counted
