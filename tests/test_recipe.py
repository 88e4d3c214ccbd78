"""The way to the shipped model, as data."""

from __future__ import annotations

from training import recipe
from training.trained import trained_net
from trtseg import models


def test_each_stage_follows_what_it_needs():
    names = [stage.name for stage in recipe.STAGES]
    for i, stage in enumerate(recipe.STAGES):
        assert (stage.role == "tumour") == (stage.behind is not None)
        assert {stage.behind, stage.start} - {None} <= set(names[:i])
    roles = {stage.name: stage.role for stage in recipe.STAGES}
    assert [roles[name] for name in recipe.EXPORTED] == ["liver", "tumour"]


def test_the_shipped_model_is_that_of_the_recipe():
    spec = models.find("default").spec
    assert spec.version == recipe.ABOUT["version"]
    assert all(trained_net("default", net.role).sizes == recipe.NET for net in spec.nets)
    tumour = spec.nets[1]
    assert (tumour.threshold, tumour.pixel_mm) == (recipe.TUMOUR_THRESHOLD, recipe.PIXEL_MM)
    assert (tumour.trained_on, tumour.licence) == (recipe.ABOUT["trained_on"], recipe.ABOUT["licence"])
