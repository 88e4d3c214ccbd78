"""The way to the shipped model, as data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_kit import tiny_kit

from training import kit, recipe
from training.cases import Case, unusable
from training.trained import trained_net
from trtseg import models
from trtseg.errors import ArgumentError, InputError, ModelError


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


def test_a_kit_of_other_data_is_not_trained_on(tmp_path, monkeypatch):
    """`runs/kit.zip` may be of one's own slices: the model would say that it was trained on those of `--shared`."""
    made = tiny_kit()
    cases = [
        Case(str(name), "phantom", str(group), unusable("it is not read"), held_out=split == "validation")
        for name, group, split in zip(made.case, made.group, made.split, strict=True)
    ]
    monkeypatch.setattr(recipe, "shared_cases", lambda _: cases)
    made.pixel_mm[:2] = recipe.PIXEL_MM, 2 * recipe.PIXEL_MM  # larger where a body would not fit
    monkeypatch.setattr(recipe, "SIZE", 32)
    monkeypatch.setattr(recipe.kit_train, "train", lambda *_, **__: pytest.fail("it goes on"))

    def go():
        recipe.go(tmp_path, tmp_path, "default", tmp_path / "model")

    kit.write(tmp_path / "kit.zip", made)
    with pytest.raises(pytest.fail.Exception, match="it goes on"):
        go()
    for wrong in (
        replace(made, case=np.where(made.case == "case0", "mine", made.case)),
        replace(made, split=np.full(len(made), "train")),
    ):
        kit.write(tmp_path / "kit.zip", wrong)
        with pytest.raises(InputError, match=r"kit\.zip: is a kit of other data than --shared"):
            go()
    for wrong in (
        replace(made, pixel_mm=made.pixel_mm * np.float32(0.9)),
        replace(made, level_hu=kit.levels(2 * recipe.LEVEL_HU)),
        replace(made, image=made.image[:, :16, :16], label=made.label[:, :16, :16]),
    ):
        kit.write(tmp_path / "kit.zip", wrong)
        with pytest.raises(InputError, match=r"kit\.zip: is a kit on another grid than 32 pixels of 1\.5 mm"):
            go()


def test_what_cannot_be_is_refused_before_a_kit_is_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "shared_cases", lambda _: pytest.fail("the arguments come first"))
    for share in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match=r"^share: got"):
            recipe.go(tmp_path, tmp_path / "runs", "default", tmp_path / "model", share)
    with pytest.raises(ModelError, match=r"^model: got '.*nix'"):
        recipe.go(tmp_path, tmp_path / "runs", str(tmp_path / "nix"), tmp_path / "model")
    assert not list(tmp_path.iterdir())
