"""From an exported model back to checkpoints that say the same and can be trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_kit import write_no_nets
from training_data import lesions_case

from training import checkpoint, data, export, prepare, train, unfold
from training.methods import windowed
from training.sample import Samples
from trtseg import models
from trtseg.errors import ArgumentError, ModelError

ABOUT = {"version": "1", "trained_on": "x", "licence": "y"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    prepare.prepare([lesions_case(group) for group in "AC"], folder, prepare.Settings(size=64))
    return folder


def settings(method, **changes):
    values = {"steps": 8, "batch": 2, "size": 32, "width": 4, "depth": 2}
    values |= {"precision": "fp32", "compile": False}
    return checkpoint.Settings(method, **{**values, **changes})


@pytest.fixture(scope="module", params=[pytest.param("one-step", marks=pytest.mark.slow), "sequential"])
def runs(request, store, tmp_path_factory):
    """Checkpoints of short runs, and the model that they were exported to, for pixels of a size or of any."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "one-step":
        train.train(settings("one-step"), store, folder / "one-step")
        paths = [folder / "one-step/last.pt"]
    else:
        train.train(settings("liver"), store, folder / "liver")
        train.train(settings("tumour", stem=6), store, folder / "tumour", folder / "liver/last.pt")
        paths = [folder / "liver/last.pt", folder / "tumour/last.pt"]
    pixel_mm = None if request.param == "one-step" else 1.5
    export.export(paths, folder / "model", {}, ABOUT, pixel_mm=pixel_mm)
    return paths, folder / "model"


@pytest.fixture(scope="module")
def unfolded(runs, store, tmp_path_factory):
    """Checkpoints of that model."""
    paths, model = runs
    folder = tmp_path_factory.mktemp("unfolded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unfold, "SAMPLES", 8)
        made = unfold.unfold_model(model, store, folder)
    assert made == [folder / path.parent.name / "last.pt" for path in paths]
    return made


def test_an_unfolded_net_says_what_it_said_and_learns(runs, unfolded, store, tmp_path):
    paths, _ = runs
    slices, _ = data.read(store, 64)
    hu = Samples(slices, "liver", 0.0, 1)[0][0][None]
    for before, after in zip(paths, unfolded, strict=True):
        behind = [(p[0] if after.parent.name == "tumour" else None) for p in (paths, unfolded)]
        (old, _), (new, made) = (checkpoint.load(p, b) for p, b in zip((before, after), behind, strict=True))
        assert (made.width, made.depth, made.size) == (4, 2, 32)
        with torch.no_grad():
            for a, b in zip(old.probabilities(hu), new.probabilities(hu), strict=True):
                assert np.abs(a.numpy() - b.numpy()).max() < 1e-4
        again = settings(made.method, lr=0.0, steps=1, stem=made.stem)
        # a net of a store has pixels of any size, and stands behind none that has some
        liver = behind[1] and tmp_path / "more-liver" / "last.pt"
        train.train(again, store, tmp_path / f"more-{made.method}", liver, after)
        if made.method != "tumour":  # its input is masked
            samples = Samples(slices, made.method, made.lesions, made.seed)
            x = windowed(torch.stack([samples[i][0] for i in range(8)]), made.method)
            block = new.nets[made.method].down[0]
            with torch.no_grad():
                out = block[0](x)
            assert torch.allclose(out.mean((0, 2, 3)), block[1].running_mean, atol=1e-4)
            assert torch.allclose(out.var((0, 2, 3)), block[1].running_var, rtol=1e-2)


def test_an_unfolded_net_is_exported_for_the_pixels_it_had(runs, unfolded, tmp_path, monkeypatch):
    _, model = runs
    write_no_nets(monkeypatch)
    before = models.find(model).spec
    after = export.export(unfolded, tmp_path / "after", {}, ABOUT)
    assert [(net.role, net.fit, net.pixel_mm) for net in after.nets] == [
        (net.role, net.fit, net.pixel_mm) for net in before.nets
    ]


def test_the_weights_of_a_run_are_not_written_over(runs, store):
    paths, model = runs
    kept = [path.read_bytes() for path in paths]
    with pytest.raises(ArgumentError, match=r"^--out: .* is the folder of a run, .* choose another --out"):
        unfold.unfold_model(model, store, paths[0].parent.parent)
    assert [path.read_bytes() for path in paths] == kept


def test_what_is_no_exported_net_is_named(store, tmp_path):
    with pytest.raises(ModelError, match=r"no net that training\.export wrote"):
        unfold.folded_net({"a": torch.zeros(1)})
    with pytest.raises(ModelError, match="expected one of"):
        unfold.unfold_model(tmp_path, store, tmp_path / "out")
    assert not (tmp_path / "out").exists()
