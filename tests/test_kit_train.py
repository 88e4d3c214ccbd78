"""The loop of training from a kit: what it leaves, how it goes on, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_kit import tiny_kit, write_no_nets
from training import appearance, export, kit, kit_score, kit_train, trainer
from training.checkpoint import Settings, fingerprint, load
from training.methods import Liver
from training.trained import pixels_of, trained_net
from trtseg.errors import ArgumentError, InputError, ModelError, OutputError


def small_run(tmp_path, role="liver", steps=4, **changes):
    path = tmp_path / "kit.zip"
    if not path.exists():
        kit.write(path, tiny_kit())
    settings = Settings(role, batch=8, size=32, width=4, depth=2, precision="fp32")
    run = kit_train.Run(**{"steps": steps, "batch": 8, "every": 0.0, **changes})
    return role, path, tmp_path / role, settings, run


def test_both_nets_train_and_can_be_read(tmp_path):
    kit_train.train(*small_run(tmp_path, steps=30, every=1e9))
    kit_train.train(*small_run(tmp_path, "tumour", steps=3), liver=tmp_path / "liver" / "last.pt")
    method, settings = load(tmp_path / "tumour" / "last.pt", tmp_path / "liver" / "last.pt")
    assert (settings.method, settings.steps, settings.size) == ("tumour", 3, 32)
    liver, tumour = method.probabilities(torch.zeros(1, 32, 32))
    assert liver.shape == tumour.shape == (1, 32, 32)
    log = (tmp_path / "tumour" / "log.csv").read_text().splitlines()
    assert len(log) == 4
    assert "cells" not in log[0]  # of the slices that validate none has cells
    assert "tumour p1" in log[0]


def test_nets_of_a_kit_are_exported_with_its_pixels(tmp_path, monkeypatch):
    """A net that sees another grid than it learnt on is silently bad. Who tells the exporter a size is heard."""
    large = replace(tiny_kit(64), pixel_mm=np.array([3.0] * 9 + [4.0], np.float32))  # one body did not fit
    kit.write(tmp_path / "kit.zip", large)
    role, path, out, settings, run = small_run(tmp_path, steps=1)
    kit_train.train(role, path, out, settings, run)
    tumour = small_run(tmp_path, "tumour", steps=1)
    kit_train.train(*tumour, liver=out / "last.pt")
    checkpoints = [out / "last.pt", tumour[2] / "last.pt"]
    about = dict.fromkeys(("version", "trained_on", "licence"), "x")
    write_no_nets(monkeypatch)
    spec = export.export(checkpoints, tmp_path / "model", {}, about)
    assert [(net.fit, net.pixel_mm) for net in spec.nets] == [("body", 6.0)] * 2
    with pytest.raises(ModelError, match=r"pixel_mm: got -9\.0"):
        export.export(checkpoints, tmp_path / "model", {}, about, pixel_mm=-9.0)


def test_a_killed_run_ends_as_an_unbroken_one(tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    kit_train.train(*small_run(whole))
    real = kit_train.Trainer.save

    def killed(self, path):
        real(self, path)
        if self.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(kit_train.Trainer, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        kit_train.train(*small_run(broken))
    monkeypatch.undo()
    kit_train.train(*small_run(broken))
    one, two = (
        torch.load(folder / "liver" / "last.pt", weights_only=True)["result"] for folder in (whole, broken)
    )
    assert all((one[name] == two[name]).all() for name in one)
    with pytest.raises(InputError, match=r"other settings \(lr\)"):
        kit_train.train(*small_run(broken, lr=0.5))


def test_a_run_of_an_older_version_goes_on_and_learns_the_size_of_its_pixels(tmp_path):
    run = small_run(tmp_path, steps=1)
    kit_train.train(*run)
    sizes = []
    for name in ("resume.pt", "last.pt"):
        state = torch.load(run[2] / name, weights_only=True)
        sizes.append(state["settings"].pop("pixel_mm"))
        torch.save(state, run[2] / name)
    kit_train.train(*small_run(tmp_path, steps=2))
    assert [load(run[2] / "last.pt")[1].pixel_mm] * 2 == sizes == [8.0, 8.0]


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_that_is_killed_between_its_two_files_goes_on(tmp_path, monkeypatch, step):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    kit_train.train(*small_run(whole))
    written = []

    def counted(real):
        def save(*arguments):
            written.append(arguments)
            if len(written) == 2 * step:
                raise KeyboardInterrupt
            real(*arguments)

        return save

    monkeypatch.setattr(kit_train, "save", counted(kit_train.save))
    monkeypatch.setattr(trainer, "save", counted(trainer.save))
    with pytest.raises(KeyboardInterrupt):
        kit_train.train(*small_run(broken))
    monkeypatch.undo()
    kit_train.train(*small_run(broken))
    one, two = (torch.load(folder / "liver" / "last.pt", weights_only=True) for folder in (whole, broken))
    assert one["settings"] == two["settings"]
    assert all((one["result"][name] == two["result"][name]).all() for name in one["result"])


def of_other_pixels(path):
    """The checkpoint beside another one that differs in the size of its pixels alone."""
    state = torch.load(path, weights_only=True)
    state["settings"]["pixel_mm"] *= 2
    other = path.with_name("other.pt")
    torch.save(state, other)
    return other


def test_a_net_of_other_pixels_is_no_liver_net_and_no_silent_teacher(tmp_path, monkeypatch, capsys):
    kit_train.train(*small_run(tmp_path, steps=1, every=1e9))
    other = of_other_pixels(tmp_path / "liver" / "last.pt")
    with pytest.raises(
        InputError, match=r"other\.pt: is a net of pixels of .* mm around the body; expected pixels of"
    ):
        kit_train.train(*small_run(tmp_path, "tumour", steps=1), liver=other)
    capsys.readouterr()
    role, path, _, settings, run = small_run(tmp_path, steps=1, every=1e9)
    kit_train.train(role, path, tmp_path / "imitates", settings, run, distil=[tmp_path / "liver" / "last.pt"])
    assert "warning" not in capsys.readouterr().err
    kit_train.train(role, path, tmp_path / "mistakes", settings, run, distil=[other])
    assert f"warning: {other} has learnt on pixels of" in capsys.readouterr().err
    for checkpoint, said in (
        (tmp_path / "liver" / "last.pt", ""),
        (other, f"warning: {other} has learnt on"),
    ):
        monkeypatch.setattr("sys.argv", ["kit_score", str(path), "--liver", str(checkpoint)])
        kit_score.main()
        assert capsys.readouterr().err.startswith(said)


def test_a_model_says_which_pixels_its_nets_learnt_on():
    assert [pixels_of("default", role) for role in ("liver", "tumour", "one-step")] == [1.5, 1.5, 0.0]


def test_a_result_is_no_state_to_resume(tmp_path):
    role, path, out, settings, run = small_run(tmp_path, steps=1, every=1e9)
    kit_train.train(role, path, out, settings, run)
    with pytest.raises(InputError, match=r"last\.pt: is the result of a run; expected its state, resume\.pt"):
        kit_train.train(role, path, out, settings, run, state=out / "last.pt")


def test_a_folder_of_the_run_that_cannot_be_made_is_named(tmp_path):
    role, path, _, settings, run = small_run(tmp_path, steps=1)
    with pytest.raises(OutputError, match=r"--out: .*kit\.zip cannot be created"):
        kit_train.train(role, path, path, settings, run)


def test_the_result_of_another_run_is_not_overwritten(tmp_path):
    role, path, out, settings, run = small_run(tmp_path, steps=1)
    out.mkdir()
    (out / "last.pt").write_bytes(b"hours of work")
    with pytest.raises(InputError, match=r"last\.pt: is of another run.*choose another --out"):
        kit_train.train(role, path, out, settings, run)
    assert [(p.name, p.read_bytes()) for p in out.iterdir()] == [("last.pt", b"hours of work")]


def test_batches_that_are_drawn_together_have_both_kinds_of_masks(tmp_path, monkeypatch):
    kit_train.train(*small_run(tmp_path, steps=1))
    monkeypatch.setitem(trainer.AHEAD, "cpu", 3)
    seen, groups = [], []
    monkeypatch.setattr(appearance, "grown", lambda mask, pixels: mask)
    monkeypatch.setattr(appearance, "gallbladders", lambda b, share, g: groups.append(len(b.hu)) or b)
    real = trainer.Trainer._backward
    monkeypatch.setattr(trainer.Trainer, "_backward", lambda self, *t: seen.append(t) or real(self, *t))
    monkeypatch.setattr(Liver, "probabilities", lambda self, hu: (torch.ones_like(hu), torch.zeros_like(hu)))
    run = small_run(tmp_path, "tumour", steps=4, every=1e9, grow=0)
    kit_train.train(*run, liver=tmp_path / "liver" / "last.pt")
    assert groups == [24, 24]
    assert len({float(hu.double().sum()) for hu, *_ in seen}) == len(seen) == 4
    for hu, label, *_, mask in seen:
        assert hu.shape == label.shape == mask.shape == (8, 32, 32)
        assert mask[:4].all()  # what the liver net says
        assert (mask[4:] == (label[4:] > 0)).all()


def test_a_run_ends_in_time(tmp_path):
    role, path, out, settings, run = small_run(tmp_path, steps=0, seconds=1.5, every=1e9)
    kit_train.train(role, path, out, settings, run)
    state = torch.load(out / "resume.pt", weights_only=True)
    assert 1.5 <= state["elapsed"] < 6
    assert state["step"] >= 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "-3", "error: steps: got -3; expected a number of 0 or more"),
        (
            "--seed",
            "99999999999999999999",
            "error: seed: got 99999999999999999999; expected a number from 0 to",
        ),
        ("--seconds", "0", "error: seconds: got 0.0; expected a number of 0.001 or more"),
        ("--every", "-1", "error: every: got -1.0"),
        ("--batch", "0", "error: batch: got 0; expected a number of 1 or more"),
        ("--own-mask", "2", "error: own_mask: got 2.0; expected a number from 0 to 1"),
        ("--width", "0", "error: width: got 0"),
        ("--overlap", "foo", "2"),  # argparse
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, monkeypatch, option, value, message):
    argv = ["kit_train", "liver", str(tmp_path / "kit.zip"), "--out", str(tmp_path / "out"), option, value]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit, match=message):
        kit_train.main()
    assert not (tmp_path / "out").exists()


def test_a_run_whose_loss_is_no_number_stops(tmp_path):
    run = small_run(tmp_path, steps=3, lr=1e30)
    with pytest.raises(
        ArgumentError, match=r"step 2: the loss is nan; try a lower --lr; last\.pt is that of step 1"
    ):
        kit_train.train(*run)
    state = torch.load(tmp_path / "liver" / "last.pt", weights_only=True)
    assert state["settings"]["steps"] == 1
    assert all(value.isfinite().all() for value in state["result"].values())


def test_a_run_starts_with_given_weights(tmp_path):
    kit_train.train(*small_run(tmp_path, steps=2, every=1e9))
    first = tmp_path / "liver" / "last.pt"
    role, path, _, settings, run = small_run(tmp_path, steps=1, lr=0.0, every=1e9)
    kit_train.train(role, path, tmp_path / "again", settings, run, start=first)
    one, two = (torch.load(p, weights_only=True)["result"] for p in (first, tmp_path / "again" / "last.pt"))
    assert all(torch.allclose(one[k], two[k]) for k in one if k.endswith("weight"))
    with pytest.raises(InputError, match=r"other settings \(start\)"):  # which began with random weights
        kit_train.train(role, path, tmp_path / "liver", settings, replace(run, lr=2e-3), start=first)
    with pytest.raises(InputError, match=r"missing\.pt: No such file"):
        kit_train.train(role, path, tmp_path / "again", settings, run, start=tmp_path / "missing.pt")


@pytest.mark.parametrize("growth", ["masses", "bulging"])
def test_a_liver_net_does_not_imitate_what_others_say_of_a_growth(tmp_path, monkeypatch, growth):
    """A mass may be liver to the nets that are imitated, and a tumour none; the labels say the contrary."""
    kit_train.train(*small_run(tmp_path, steps=1, every=1e9))
    taught = tmp_path / "liver" / "last.pt"
    role, path, _, settings, run = small_run(tmp_path, steps=1, every=1e9, **{growth: 1.0})
    there = {}
    monkeypatch.setattr(appearance, growth, lambda b, share, g: (b, torch.full(b.hu.shape, there["growth"])))
    for name, there["growth"], distil in (
        ("alone", False, []),
        ("growth", True, [taught]),
        ("other", False, [taught]),
    ):
        kit_train.train(role, path, tmp_path / name, settings, run, distil=distil)
    alone, grown, other = (
        torch.load(tmp_path / name / "last.pt", weights_only=True)["result"]
        for name in ("alone", "growth", "other")
    )
    assert all((alone[key] == grown[key]).all() for key in alone)
    assert any((alone[key] != other[key]).any() for key in alone)


def test_a_small_net_imitates_a_large_one(tmp_path):
    kit_train.train(*small_run(tmp_path, steps=2, every=1e9))
    large = tmp_path / "liver" / "last.pt"
    role, path, _, settings, run = small_run(tmp_path, steps=2, every=1e9)
    settings = replace(settings, depth=1, stem=3)
    kit_train.train(role, path, tmp_path / "small", settings, run, distil=[large, large])
    method, found = load(tmp_path / "small" / "last.pt")
    assert found.distilled == "+".join([fingerprint(trained_net(large, "liver"))] * 2)
    assert method.probabilities(torch.zeros(1, 32, 32))[0].shape == (1, 32, 32)


def test_a_kit_needs_neither_the_extension_nor_readers(tmp_path):
    """A GPU machine has Python, torch, NumPy and little else."""
    import subprocess
    import sys

    kit.write(tmp_path / "kit.zip", tiny_kit())
    code = (
        "import sys\n"
        "for name in ('trtseg._core', 'openvino', 'nibabel', 'highdicom', 'pydicom', 'scipy', 'PIL', 'tqdm',\n"
        "             'matplotlib', 'onnx'): sys.modules[name] = None\n"
        "sys.argv = ['kit_train', 'liver', sys.argv[1], '--out', sys.argv[2], '--size', '32', '--width', '4',\n"
        "            '--depth', '2', '--steps', '1', '--batch', '4']\n"
        "from training.kit_train import main\n"
        "main()\n"
    )
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", code, str(tmp_path / "kit.zip"), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "last.pt").is_file()
