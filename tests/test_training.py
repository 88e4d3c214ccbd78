"""Training: what can be checked without hours of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from training import data, export, train
from training.augment import augment
from training.losses import balanced_loss, class_weights
from training.unet import UNet, folded
from trtseg import Segmenter, models, reference
from trtseg.fit import AIR_HU, Fit
from trtseg.phantom import abdomen


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data folder of the layout that training reads, with slices of a phantom."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for case, seed in ((0, 1), (3, 2)):
        phantom = abdomen(shape=(8, 128, 128), spacing=(20.0, 3.0, 3.0), seed=seed)
        (folder / f"lits_slices/case0{case}").mkdir(parents=True)
        rows.append({"id": f"lits00{case}_png", "patient_group": "A" if case == 0 else "C"})
        for z in range(2, 6):
            grey = np.clip((phantom.ct[z].astype(float) + 160) * 255 / 400, 0, 255).round().astype(np.uint8)
            Image.fromarray(grey).save(folder / f"lits_slices/case0{case}/image_{z:03d}.png")
            Image.fromarray(phantom.labels[z]).save(folder / f"lits_slices/case0{case}/label_{z:03d}.png")
    (folder / "MANIFEST.json").write_text(json.dumps(rows))
    (folder / "negatives").mkdir()
    empty = abdomen(shape=(6, 128, 128), spacing=(20.0, 3.0, 3.0), liver=False)
    for name in ("free", *data.VALIDATION_NEGATIVES):
        np.savez(
            folder / f"negatives/{name}.npz",
            hu=empty.ct,
            spacing_mm=np.full((6, 2), 3.0),
            valid_box=np.array([[0, 128, 0, 128]] * 6),
            patient=[f"{name}{i}" for i in range(6)],
            body_part=["pelvis"] * 6,
        )
    return folder


@pytest.fixture
def subsets(root, monkeypatch):
    monkeypatch.setattr(data, "chaos", lambda root, size: data.lits(root, size))
    return data.read(root, 128)


def test_patients_are_not_split(subsets):
    liver, empty, validation = subsets
    assert set(liver.group) == {"C"}
    assert set(validation["lits_A"].group) == {"A"}
    assert not set(data.VALIDATION_NEGATIVES) & set(empty.group)
    assert set(data.VALIDATION_NEGATIVES) <= set(validation["negatives"].group)


def test_patients_without_liver_are_not_split(shared_data):
    patients = [(n.patient, n.held_out) for n in data.read_negatives(shared_data)]
    held_out = {p for p, held in patients if held}
    assert held_out
    assert held_out.isdisjoint(p for p, held in patients if not held)


def test_labels_survive_reading(subsets, root):
    liver, _, _ = subsets
    on_disk = np.stack([np.asarray(Image.open(p)) for p in sorted(root.glob("lits_slices/case03/label*"))])
    assert (liver.label.numpy() == on_disk).all()


@pytest.mark.parametrize(
    ("shape", "spacing"), [((256, 256), (2.0, 2.0)), ((200, 256), (2.0, 1.5)), ((300, 517), (1.0, 1.0))]
)
def test_training_reads_the_pixels_that_inference_sees(shape, spacing):
    """The 2x2 mean of what training holds is `prepare`, but for whole HU and the rim that the field's edge cuts."""
    ct = abdomen(shape=(2, *shape), spacing=(50.0, *spacing)).ct
    held = data.resize(ct, spacing, 128).astype(np.float32)
    small = held.reshape(2, 64, 2, 64, 2).mean((2, 4))
    fit = Fit.whole_field_of_view(shape, spacing, (64, 64))
    hu_net, _ = reference.prepare(ct, fit, (-160, 240))
    inner = tuple(slice(o, o + e - 1) for o, e in zip(fit.offset, fit.extent, strict=True))
    assert np.abs(small - hu_net)[:, inner[0], inner[1]].max() <= 1
    outside = np.ones((64, 64), bool)
    outside[tuple(slice(o, o + e) for o, e in zip(fit.offset, fit.extent, strict=True))] = False
    assert (small[:, outside] == AIR_HU).all()


def test_augmentation_keeps_image_and_label_together():
    """A disc whose label is itself must stay its own label wherever augmentation moves it."""
    y, x = np.mgrid[:128, :128]
    disc = (y - 60) ** 2 + (x - 70) ** 2 < 30**2
    hu = torch.from_numpy(np.where(disc, 2000, AIR_HU).astype(np.int16)).expand(32, -1, -1)
    label = torch.from_numpy(disc.astype(np.uint8)).expand(32, -1, -1)
    moved, labels = augment(hu, label, np.random.default_rng(0))
    assert moved.shape == labels.shape == (32, 64, 64)
    image = moved > 400
    both = (image & (labels == 1)).sum((1, 2))
    dice = (2 * both + 1) / (image.sum((1, 2)) + (labels == 1).sum((1, 2)) + 1)  # 1 where it was removed
    assert (dice > 0.95).all()
    sizes = labels.sum((1, 2)).float()
    assert sizes.max() > 2 * sizes.min()  # it does move


def test_augmentation_is_a_function_of_its_generator():
    hu = torch.from_numpy(abdomen(shape=(4, 64, 64), spacing=(40.0, 6.0, 6.0)).ct)
    label = torch.zeros_like(hu, dtype=torch.uint8)
    a, b, c = (augment(hu, label, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_class_weights_by_hand():
    background, foreground = class_weights(0.2)
    # f = (0.8, 0.2): 1/sqrt(f) = (1.1180, 2.2361); sum sqrt(f) = 0.8944 + 0.4472 = 1.3416
    assert background == pytest.approx(1.11803399 / 1.34164079)
    assert foreground == pytest.approx(2.23606798 / 1.34164079)
    assert 0.8 * background + 0.2 * foreground == pytest.approx(1)


def test_loss_by_hand():
    logits = torch.zeros(1, 1, 1, 2)
    target = torch.tensor([[[[1.0, 0.0]]]])
    # p = 0.5: cross-entropy ln 2 for each, weights 3 and 1; soft Dice (2 * 0.5 + 1) / (1 + 1 + 1)
    expected = 0.69314718 * (3 + 1) / 2 + 1 - 2 / 3
    assert float(balanced_loss(logits, target, (1.0, 3.0))) == pytest.approx(expected)
    sure = torch.tensor([[[[50.0, -50.0]]]])
    assert float(balanced_loss(sure, target, (1.0, 3.0))) == pytest.approx(0, abs=1e-6)


def test_unet_shape_and_size():
    net = UNet(classes=3, width=4, depth=2)
    assert net(torch.zeros(2, 1, 32, 48)).shape == (2, 3, 32, 48)
    assert sum(p.numel() for p in UNet().parameters()) == 1_942_289


def test_folding_batch_norm_changes_nothing():
    torch.manual_seed(0)
    net = UNet(width=4, depth=2)
    for _ in range(5):  # running statistics that are not the initial ones
        net(torch.randn(4, 1, 32, 32) * 3 + 1)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net.eval()(x), folded(net)(x), atol=1e-4)


def settings(role, steps):
    return train.Settings(role, steps, batch=2, width=4, depth=2)


def test_a_resumed_run_ends_with_the_same_weights(root, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "chaos", lambda root, size: data.lits(root, size))
    monkeypatch.setattr(train, "SIZE", 64)
    train.train(settings("liver", 6), root, tmp_path / "whole", None, every=3)

    class Killed(Exception):
        pass

    def kill(path, row):
        raise Killed

    # dies at step 6, after the checkpoint of step 3
    log = train._log
    monkeypatch.setattr(
        train, "_log", lambda path, row: kill(path, row) if row["step"] == 6 else log(path, row)
    )
    with pytest.raises(Killed):
        train.train(settings("liver", 6), root, tmp_path / "broken", None, every=3)
    monkeypatch.setattr(train, "_log", log)
    train.train(settings("liver", 6), root, tmp_path / "broken", None, every=3)
    whole, broken = (
        torch.load(tmp_path / d / "last.pt", weights_only=True)["net"] for d in ("whole", "broken")
    )
    assert all(torch.equal(whole[k], broken[k]) for k in whole)
    with pytest.raises(SystemExit, match="same settings"):
        train.train(settings("liver", 7), root, tmp_path / "broken", None)


def test_from_data_to_a_model_that_runs(root, tmp_path, monkeypatch):
    """The whole way: both nets trained for a moment, exported, loaded, run."""
    monkeypatch.setattr(data, "chaos", lambda root, size: data.lits(root, size))
    monkeypatch.setattr(train, "SIZE", 64)
    monkeypatch.setattr(export, "SIZE", 64)
    train.train(settings("liver", 3), root, tmp_path / "liver", None)
    train.train(settings("tumour", 2), root, tmp_path / "tumour", tmp_path / "liver" / "last.pt")
    spec = export.export(
        tmp_path / "liver/last.pt", tmp_path / "tumour/last.pt", tmp_path / "m", "1", "x", "y"
    )
    assert models.find(tmp_path / "m").spec == spec
    assert sorted(spec.sha256) == ["liver.fp16.onnx", "liver.onnx", "tumour.fp16.onnx", "tumour.onnx"]
    for name in spec.sha256:
        text = (tmp_path / "m" / name).read_bytes()
        assert b".py" not in text  # no source paths in the file
    phantom = abdomen(shape=(4, 64, 64), spacing=(40.0, 6.0, 6.0))
    result = Segmenter(tmp_path / "m").segment(phantom.ct, spacing=(40.0, 6.0, 6.0))
    assert result.labels.shape == phantom.ct.shape


def test_export_refuses_a_file_that_differs(tmp_path):
    torch.manual_seed(0)
    net, other = UNet(width=4, depth=2).eval(), UNet(width=4, depth=2).eval()
    import tiny

    export.export_onnx(other, tiny.spec("liver"), tmp_path / "liver.onnx", half=False)
    x = np.random.default_rng(0).random((2, 1, 64, 64), np.float32)
    with pytest.raises(SystemExit, match="does not agree"):
        export.check_parity(net, tmp_path / "liver.onnx", x, half=False)
    export.check_parity(other, tmp_path / "liver.onnx", x, half=False)
