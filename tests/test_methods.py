"""The three methods: what their nets see, what is asked of them, where gradients go, what their labels are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from training.losses import Loss
from training.methods import WINDOW, Joint, Liver, OneStep, Tumour, windowed
from trtseg import reference


class Linear(nn.Module):
    """In place of a U-Net: one logit, ``slope * x + offset``."""

    def __init__(self, slope: float, offset: float) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.tensor(slope)), nn.Parameter(torch.tensor(offset))
        self.seen = None

    def forward(self, x):
        self.seen = x
        return self.slope * x + self.offset


def loss():
    return Loss(2, 0.0, "none")


# windowed to [-160, 240] the liver net's logit is positive above 40 HU
LIVER_ABOVE_40 = (100.0, -50.0)
HU = torch.tensor([[[-500.0, 0.0, 39.0, 41.0, 80.0, 239.0, 1000.0, 60.0]]])
LABEL = torch.tensor([[[0, 0, 0, 1, 2, 1, 0, 2]]])


def joint(gate="straight-through", constants=(1.0, 1.0), tumour=(1.0, 0.0)):
    method = Joint(Linear(*LIVER_ABOVE_40), Linear(*tumour), (loss(), loss()), gate, constants)
    method.precision = torch.float32
    return method


def gradient_of_n1(method):
    method.train()(HU, LABEL).backward()
    return method.nets["liver"].offset.grad


def test_windows_are_those_of_the_ops():
    from trtseg.fit import Fit

    hu = np.arange(-300, 300, dtype=np.int16).reshape(1, 20, 30)
    _, expected = reference.prepare(hu, Fit.identity((20, 30)), WINDOW["liver"])
    assert torch.allclose(windowed(torch.from_numpy(hu), "liver"), torch.from_numpy(expected), atol=1e-6)
    logits = np.where(hu[:, None] > 0, 1, -1).astype(np.float32)
    expected, _ = reference.gate(logits, hu, 0.0, WINDOW["tumour"])
    got = windowed(torch.from_numpy(hu), "tumour") * torch.from_numpy(hu > 0)[:, None]
    assert torch.allclose(got, torch.from_numpy(expected), atol=1e-6)


def test_the_tumour_net_sees_the_liver_only_and_trains_alone():
    liver = Liver(Linear(*LIVER_ABOVE_40), loss())
    method = Tumour(Linear(1.0, 0.0), loss(), liver)
    for m in (liver, method):
        m.precision = torch.float32
    method.train()(HU, LABEL).backward()
    inside = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1.0])
    assert torch.allclose(method.nets["tumour"].seen[0, 0, 0], windowed(HU, "tumour")[0, 0, 0] * inside)
    assert [name for name, _ in method.named_parameters()] == ["nets.tumour.slope", "nets.tumour.offset"]
    assert liver.nets["liver"].offset.grad is None
    # d/d offset of the mean cross-entropy over the five pixels inside
    z = windowed(HU, "tumour")[0, 0, 0][3:]
    expected = float((torch.sigmoid(z) - torch.tensor([0, 1, 0, 0, 1.0])).mean())
    assert float(method.nets["tumour"].offset.grad) == pytest.approx(expected, rel=1e-5)


def test_the_mask_grows_in_training_only():
    liver = Liver(Linear(*LIVER_ABOVE_40), loss())
    method = Tumour(Linear(1.0, 0.0), loss(), liver, grow=2)
    for m in (liver, method):
        m.precision = torch.float32
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        method.train()(HU, LABEL)
        seen.add(tuple((method.nets["tumour"].seen[0, 0, 0] > 0).tolist()))
    # N1 says liver from pixel 3 on; pixels 1 and 2 have 0 and 39 HU, pixel 0 is below the window
    assert seen == {(False, first <= 1, first <= 2, *(True,) * 5) for first in (1, 2, 3)}
    method.eval().probabilities(HU)
    assert (method.nets["tumour"].seen[0, 0, 0, :3] == 0).all()


def test_joint_loss_by_hand():
    """c1 * l(liver, N1) + c2 * l(tumour, N2), with N2 saying 0 everywhere."""
    method = joint(constants=(2.0, 3.0), tumour=(0.0, 0.0))
    x = windowed(HU, "liver")[0, 0, 0]
    logits = 100 * x - 50
    wanted = torch.tensor([0, 0, 0, 1, 1, 1, 0, 1.0])
    l1 = float(nn.functional.binary_cross_entropy_with_logits(logits, wanted))
    assert float(method.eval()(HU, LABEL)) == pytest.approx(2 * l1 + 3 * math.log(2), rel=1e-5)


def test_gradients_of_the_tumour_loss_reach_n1_through_the_gate():
    only_tumour = (0.0, 1.0)
    assert gradient_of_n1(joint("hard", only_tumour)) in (None, torch.tensor(0.0))
    through, soft = (gradient_of_n1(joint(g, only_tumour)) for g in ("straight-through", "soft"))
    assert float(through.abs()) > 0
    assert float(soft.abs()) > 0
    # by hand: sum of dloss/dlogit2 * slope2 * window(x) * sigmoid'(l1), over the pixels that count, over their number
    l1 = 100 * windowed(HU, "liver")[0, 0, 0] - 50
    w2 = windowed(HU, "tumour")[0, 0, 0]
    inside = l1 > 0
    for gate, got in (("straight-through", through), ("soft", soft)):
        mask = inside.float() if gate == "straight-through" else torch.sigmoid(l1)
        d2 = (torch.sigmoid(w2 * mask) - (LABEL[0, 0] == 2).float()) * inside / inside.sum()
        expected = float((d2 * w2 * torch.sigmoid(l1) * (1 - torch.sigmoid(l1))).sum())
        assert float(got) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("gate", ["straight-through", "soft", "hard"])
def test_joint_answers_through_the_threshold_whatever_it_trained_with(gate):
    method = joint(gate).eval()
    assert method.labels(HU).tolist() == [[[0, 0, 0, 2, 2, 2, 2, 2]]]
    assert (method.nets["tumour"].seen[0, 0, 0, :3] == 0).all()


def test_one_step_takes_the_largest_logit():
    class Three(nn.Module):
        def forward(self, x):
            return torch.cat([torch.full_like(x, 0.5), x, 2 * x - 1], dim=1)

    method = OneStep(Three(), Loss(3, 0.0, "none")).eval()
    method.precision = torch.float32
    # x = 0, 0.5 + a bit, 1 (clamped): at 1 liver and tumour tie, the first wins
    hu = torch.tensor([[[-160.0, 60.0, 239.0, 500.0]]])
    assert method.labels(hu).tolist() == [[[0, 1, 1, 1]]]
    liver, tumour = method.probabilities(hu)
    e = np.exp([0.5, 1.0, 1.0])
    assert float(liver[0, 0, 3]) == pytest.approx((e[1] + e[2]) / e.sum())
    assert float(tumour[0, 0, 3]) == pytest.approx(e[2] / e.sum())


@pytest.mark.parametrize("name", ["one-step", "liver", "tumour", "joint"])
def test_pixels_that_nobody_knows_do_not_count(name):
    def net(classes=1):
        torch.manual_seed(0)
        return nn.Conv2d(1, classes, 1)

    n1 = Linear(*LIVER_ABOVE_40)
    method = {
        "one-step": lambda: OneStep(net(3), Loss(3, 0.5, "dice")),
        "liver": lambda: Liver(net(), Loss(2, 0.5, "dice")),
        "tumour": lambda: Tumour(net(), Loss(2, 0.5, "dice"), Liver(n1, loss())),
        "joint": lambda: Joint(n1, net(), (loss(), Loss(2, 0.5, "dice"))),
    }[name]().eval()
    label, other, unknown = LABEL.clone(), HU.clone(), LABEL.clone()
    other[..., 7] = 120.0  # liver before and after
    unknown[..., 7] = 255
    assert float(method(HU, unknown)) == float(method(other, unknown))
    assert float(method(HU, label)) != float(method(other, label))
    assert float(method(HU, unknown)) != float(method(HU, label))
