"""The way to the shipped model, as data; and weights between two nets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training import recipe
from training.blend import blended
from training.unet import UNet, folded
from training.unfold import folded_net, weights
from trtseg import models


def test_each_stage_follows_what_it_needs():
    names = [stage.name for stage in recipe.STAGES]
    for i, stage in enumerate(recipe.STAGES):
        assert (stage.role == "tumour") == (stage.behind is not None)
        assert {stage.behind, stage.start} - {None} <= set(names[:i])
    roles = {stage.name: stage.role for stage in recipe.STAGES}
    assert [roles[name] for name in recipe.EXPORTED] == ["liver", "tumour"]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_weights_between_two_nets(share):
    torch.manual_seed(0)
    net = UNet()
    found = blended(net, "tumour", "default", share).state_dict()
    new = folded(net).state_dict()
    old = folded_net(weights(models.find("default").read("tumour.onnx"))).state_dict()
    assert any((old[name] != new[name]).any() for name in new)
    for name, value in found.items():
        expected = share * new[name].numpy() + (1 - share) * old[name].numpy()
        assert np.allclose(value.numpy(), expected, atol=1e-6), name


def test_the_shipped_model_is_that_of_the_recipe():
    spec = models.find("default").spec
    assert spec.version == recipe.ABOUT["version"]
    tumour = spec.nets[1]
    assert (tumour.threshold, tumour.pixel_mm) == (recipe.TUMOUR_THRESHOLD, recipe.PIXEL_MM)
    assert (tumour.trained_on, tumour.licence) == (recipe.ABOUT["trained_on"], recipe.ABOUT["licence"])
