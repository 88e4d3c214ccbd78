"""The training loop: resuming, several processes, schedules, validation, what it refuses."""

from __future__ import annotations

import csv
import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training import checkpoint, prepare, train
from training.cases import Case, Scan
from training.data import Slices
from training.losses import Loss
from training.methods import Liver
from training.unet import UNet
from trtseg.engines.processor import native_bf16
from trtseg.errors import ArgumentError, InputError, OutputError, TrtsegError
from trtseg.phantom import abdomen

ROOT = Path(__file__).parents[1]


def case(group, liver=True):
    phantom = abdomen(shape=(8, 64, 64), spacing=(20.0, 6.0, 6.0), seed=ord(group), liver=liver, lesions=3)
    scan = Scan(phantom.ct[2:6], phantom.labels[2:6], (20.0, 6.0, 6.0), range(4))
    return Case(
        group, "phantom", group, lambda: scan, held_out=group == "V", body_part="" if liver else "pelvis"
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of slices for nets of 32x32: patient A validates, C and D train, and two without liver."""
    cases = [case("A"), case("C"), case("D"), case("N", liver=False), case("V", liver=False)]
    folder = tmp_path_factory.mktemp("store")
    prepare.prepare(cases, folder, prepare.Settings(size=64))
    return folder


def settings(method, steps=4, **changes):
    return checkpoint.Settings(method, steps, batch=2, size=32, width=4, depth=2, compile=False, **changes)


def weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)["result"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def command(folder, store, *options, steps=6):
    return [
        sys.executable, "-m", "training.train", "liver", "--data", str(store), "--out", str(folder), "--steps",
        str(steps), "--batch", "2", "--size", "32", "--width", "4", "--depth", "2", "--no-compile", *options,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(store, tmp_path):
    """Killed with SIGKILL once its first checkpoint is there, then started again."""
    train.train(settings("liver", 16), store, tmp_path / "whole", every=4)
    broken = command(tmp_path / "broken", store, "--every", "4", steps=16)
    process = subprocess.Popen(
        broken, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "broken/last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed_at = torch.load(tmp_path / "broken/last.pt", weights_only=True)["step"]
    assert 0 < killed_at < 16
    assert not same(weights(tmp_path / "broken"), weights(tmp_path / "whole"))
    train.train(settings("liver", 16), store, tmp_path / "broken", every=4)
    assert same(weights(tmp_path / "broken"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["store", "teachers", "distilled", "pixel-mm"])
def test_what_a_run_is_made_of_is_no_option(monkeypatch, capsys, tmp_path, name):
    """These are hashes that the programs themselves put into a checkpoint."""
    monkeypatch.setattr(sys, "argv", ["train", "liver", "--out", str(tmp_path), f"--{name}", "0123"])
    with pytest.raises(SystemExit):
        train.main()
    assert f"unrecognized arguments: --{name}" in capsys.readouterr().err


def test_another_setting_does_not_go_on_with_a_run(store, tmp_path):
    train.train(settings("liver"), store, tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(InputError, match=r"lr 0\.002, not 0\.1.*choose another --out"):
        train.train(settings("liver", lr=0.1), store, tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_full_disk_ends_a_run_and_leaves_the_last_checkpoint(store, tmp_path):
    train.train(settings("liver", 2), store, tmp_path, every=1)
    (tmp_path / "curves.png").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match=r"last\.pt: no space left to write it"):
            checkpoint.save(tmp_path / "last.pt", settings("liver"), state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_full_disk_leaves_log_and_curves_as_they_were_and_the_run_goes_on_when_there_is_room(
    store, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", command(tmp_path, store, "--every", "2")[2:])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def saved(path, settings, state):
        checkpoint.save(path, settings, state)
        if state["step"] == 4:  # now no file can grow beyond what the log has
            resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "log.csv").stat().st_size, hard))

    monkeypatch.setattr(train, "save", saved)
    try:
        with pytest.raises(SystemExit, match=r"error: .*log\.csv: no space left to write it"):
            train.main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "log.csv", "curves.png"}
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 4
    assert [row["step"] for row in csv.DictReader((tmp_path / "log.csv").open())] == ["2"]
    monkeypatch.setattr(sys, "argv", command(tmp_path, store, "--every", "2")[2:])
    train.main()
    assert [row["step"] for row in csv.DictReader((tmp_path / "log.csv").open())] == ["2", "6"]


def test_a_run_whose_loss_is_no_number_stops(store, tmp_path):
    """The first step makes the weights so large that the second overflows."""
    with pytest.raises(
        ArgumentError, match=r"step 2: the loss is nan; try a lower --lr; last\.pt is that of step 1"
    ):
        train.train(settings("liver", lr=1e30, precision="fp32"), store, tmp_path, every=1)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 1
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_what_is_logged_was_saved(store, tmp_path, monkeypatch):
    def full(*_):
        raise OutputError("last.pt: no space left")

    monkeypatch.setattr(train, "save", full)
    with pytest.raises(OutputError):
        train.train(settings("liver", 1), store, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_train_one_net(store, tmp_path):
    """torchrun with two processes over gloo: both see half of each batch, and one writes.

    That both have the same weights the loop checks itself: without averaged gradients it fails here.
    """
    run = command(tmp_path / "a", store, "--every", "3")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *run[1:]]
    subprocess.run([run[0], *torchrun], cwd=ROOT, check=True, capture_output=True, timeout=300)
    train.train(settings("liver", 6), store, tmp_path / "one", every=3)
    rows, alone = (list(csv.DictReader((tmp_path / name / "log.csv").open())) for name in ("a", "one"))
    assert [int(row["step"]) for row in rows] == [3, 6]
    # the same samples as of one process, so about the same loss: only batch norm and dropout see other halves
    assert float(rows[-1]["loss"]) == pytest.approx(float(alone[-1]["loss"]), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["one-step", "joint"])
def test_it_learns(store, tmp_path, method):
    """Eighty steps on eight slices: cross-entropy falls well below that of the class frequencies."""
    run = settings(method, 80, ema=0.0, lesions=0.0, lr=1e-2, overlap="none", balance=0.0)
    train.train(run, store, tmp_path, every=20)
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "log.csv").open())]
    assert losses[-1] < 0.6 * losses[0]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_can_start_with_the_result_of_another(store, tmp_path):
    train.train(settings("liver"), store, tmp_path / "first")
    still = settings("liver", 1, lr=0.0, ema=0.0)  # no step changes a weight; batch norm does change
    train.train(still, store, tmp_path / "second", start=tmp_path / "first/last.pt")
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert torch.equal(first["liver.head.weight"], second["liver.head.weight"])
    with pytest.raises(InputError, match="start"):
        train.train(still, store, tmp_path / "second")


def test_a_tumour_net_names_its_liver_net(store, tmp_path):
    for name, seed in (("liver", 0), ("other", 1)):
        train.train(settings("liver", seed=seed), store, tmp_path / name)
    train.train(settings("tumour"), store, tmp_path / "tumour", tmp_path / "liver/last.pt")
    method, loaded = checkpoint.load(tmp_path / "tumour/last.pt", tmp_path / "liver/last.pt")
    assert list(method.nets) == ["tumour"]
    assert len(loaded.liver) == 64
    for wrong, message in (
        (None, "behind a liver net; name"),
        (tmp_path / "other/last.pt", "behind another"),
    ):
        with pytest.raises(TrtsegError, match=message):
            checkpoint.load(tmp_path / "tumour/last.pt", wrong)


def test_processes_with_different_weights_are_found(monkeypatch):
    """Two processes that have the same, and two that have not."""
    method = Liver(UNet(width=2, depth=1), Loss(2, 0, "none"))
    monkeypatch.setattr(train.dist, "get_world_size", lambda: 2)
    for other, message in ((lambda mine: mine, None), (lambda mine: mine[::-1], "weights differ")):

        def gather(digests, mine, other=other):
            digests[:] = [mine, other(mine)]

        monkeypatch.setattr(train.dist, "all_gather_object", gather)
        if message is None:
            train._check_equal(method)
        else:
            with pytest.raises(RuntimeError, match=message):
                train._check_equal(method)


def test_a_folder_of_the_run_that_cannot_be_made_is_named(store, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"--out: .*file cannot be created"):
        train.train(settings("liver", 1), store, tmp_path / "file")


def test_what_cannot_be_trained_is_refused_before_anything_is_written(store, tmp_path):
    for name, changes in (("liver", {}), ("wide", {"width": 6}), ("one-step", {})):
        method = "liver" if name == "wide" else name
        train.train(replace(settings(method, 1), **changes), store, tmp_path / name)
    small = replace(settings("liver", 1), size=16)
    prepare.prepare([case("C")], tmp_path / "store32", prepare.Settings(size=32))
    train.train(small, tmp_path / "store32", tmp_path / "small")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/last.pt").write_bytes(b"PK no checkpoint")
    state = torch.load(tmp_path / "liver/last.pt", weights_only=True)
    state["settings"]["cut"] = 0.5
    (tmp_path / "old").mkdir()
    torch.save(state, tmp_path / "old/last.pt")
    out = tmp_path / "out"

    def refused(message, method="liver", **start):
        with pytest.raises(TrtsegError, match=message):
            train.train(settings(method, 1), store, out, **start)
        assert not out.exists()

    last = {
        name: tmp_path / name / "last.pt" for name in ("wide", "one-step", "small", "broken", "old", "no")
    }
    refused("has width 6, but this run 4", start=last["wide"])
    refused("has method 'one-step', but this run 'liver'", start=last["one-step"])
    refused("net of 16x16 pixels; expected 32x32", method="tumour", liver_checkpoint=last["small"])
    refused("of the method one-step; expected liver", method="tumour", liver_checkpoint=last["one-step"])
    refused("damaged, or no checkpoint", start=last["broken"])
    refused("No such file", start=last["no"])
    refused("made with cut, which this version does not know", start=last["old"])
    prepare.prepare([case("A")], tmp_path / "validates", prepare.Settings(size=64))
    with pytest.raises(InputError, match="slices: got none to train liver on"):
        train.train(settings("liver"), tmp_path / "validates", out)


def test_precision_is_the_fastest_or_the_one_that_is_asked_for(store, tmp_path):
    """And it is part of a run: sums are rounded otherwise, so another one does not go on with it."""
    train.train(settings("liver"), store, tmp_path / "auto")
    fastest = "bf16" if native_bf16() else "fp32"
    assert checkpoint.load(tmp_path / "auto/last.pt")[1].precision == fastest
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        train.train(settings("liver", precision=precision), store, tmp_path / precision)
        assert checkpoint.load(tmp_path / precision / "last.pt")[0].precision == dtype
    assert not same(weights(tmp_path / "bf16"), weights(tmp_path / "fp32"))
    with pytest.raises(InputError, match="precision 'bf16', not 'fp32'"):
        train.train(settings("liver", precision="fp32"), store, tmp_path / "bf16")
    train.train(settings("tumour", precision="fp32"), store, tmp_path / "tumour", tmp_path / "bf16/last.pt")
    behind = checkpoint.load(tmp_path / "tumour/last.pt", tmp_path / "bf16/last.pt")[0].liver[0]
    assert behind.precision == torch.float32, "one precision in a run"


def test_patients_that_are_left_out_do_not_train(store):
    from training import data

    slices, subsets = data.read(store, 64, ["D"])
    assert set(slices.group) == {"C", "phantom"}  # those without liver weigh by their source
    assert set(subsets) == {"A", "negatives"}
    assert set(subsets["negatives"].case) == {"V"}
    with pytest.raises(InputError, match="--size 32"):
        data.read(store, 32)
    with pytest.raises(InputError, match="without: no patients X; there are A, C, D"):
        data.read(store, 64, ["D", "X"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": -3}, "steps: got -3; expected a number of 0 or more"),
        ({"batch": 0}, "batch: got 0; expected a number of 1 or more"),
        ({"width": 0}, "width: got 0"),
        ({"lr": -1.0}, "lr: got -1.0; expected a number of 0 or more"),
        ({"lr": math.nan}, "lr: got nan"),
        ({"dropout": 2.0}, "dropout: got 2.0; expected a number from 0 to 1"),
        ({"ema": 2.0}, "ema: got 2.0"),
        ({"overlap": "foo"}, "overlap: got 'foo'; expected none, dice, tversky"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ArgumentError, match=message):
        checkpoint.Settings("liver", **wrong)


def test_a_run_takes_steps_and_validates(store, tmp_path):
    for steps, every in ((0, 1), (1, 0)):
        with pytest.raises(ArgumentError, match=f"steps, every: got {steps}, {every}; expected numbers of 1"):
            train.train(settings("liver", steps), store, tmp_path / "out", every=every)
    assert not (tmp_path / "out").exists()


def test_processes_share_out_every_batch():
    run = settings("liver", steps=3)  # batches of 2
    parts = [list(train.numbers(run, 1, rank, 2)) for rank in (0, 1)]
    assert parts == [[2, 4], [3, 5]]
    assert list(train.numbers(run, 1)) == [2, 3, 4, 5]
    with pytest.raises(ArgumentError, match="2 for 3 processes"):
        train.numbers(run, 0, 0, 3)


def test_learning_rates():
    adam = checkpoint.Settings("liver", 1000, lr=1.0)
    assert train.lr_at(adam, 0) == pytest.approx(1 / 100)  # warm-up over a tenth
    assert train.lr_at(replace(adam, steps=9000), 0) == pytest.approx(1 / 200)  # or 200 steps
    assert train.lr_at(adam, 500) == pytest.approx(0.5)
    assert train.lr_at(adam, 999) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.999)))
    paper = replace(adam, optimizer="sgd", lr=0.001, balance_from=0.5)
    assert [train.lr_at(paper, step) for step in (0, 499, 500)] == pytest.approx([1e-3, 1e-3, 1e-4])


def test_the_average_forgets_the_first_steps():
    average = torch.tensor(1.0)
    # by hand: decays 2/11, 3/12 before they reach 0.25
    for count, decay in ((1, 2 / 11), (2, 0.25), (3, 0.25)):
        new = train._average(0.25, average, torch.tensor(3.0), count)
        assert float(new) == pytest.approx(decay * float(average) + (1 - decay) * 3)
        average = new


def test_targets_of_the_net_by_hand():
    label = torch.tensor([[[0, 1, 2, 2], [1, 0, 0, 2], [1, 0, 2, 0], [0, 0, 1, 0]]], dtype=torch.uint8)
    # two of four are liver; three are tumour; one is liver; two are liver of which one is tumour
    assert train.target(label).tolist() == [[[1, 2], [0, 1]]]


def test_validation_by_hand():
    """A method that answers with its input: Dice follows from the slices."""

    class Echo(Liver):
        def labels(self, hu):
            return hu.to(torch.uint8)

    label = np.zeros((3, 8, 8), np.uint8)
    label[0, :4] = 1
    label[1, :2] = 2
    hu = np.zeros((3, 8, 8), np.int16)
    hu[0, :2], hu[1, :2], hu[2] = 1, 2, 0
    rows = np.arange(3)
    slices = Slices(hu, label, rows, rows, rows, *(np.ones(3, bool),) * 3)
    empty = Slices(
        np.full((2, 32, 32), 1, np.int16), np.zeros((2, 32, 32), np.uint8), rows[:2], *(rows[:2],) * 5
    )
    scores = train.validate(
        Echo(UNet(width=2, depth=1), Loss(2, 0, "none")), {"x": slices, "n": empty}, torch.device("cpu")
    )
    # at half the size: found 4 and 4 pixels of liver, wanted 8 and 4
    assert scores == pytest.approx(
        {"x_liver": 2 * 8 / (8 + 12), "x_tumour": 1.0, "n_false_liver": 1.0, "n_false_tumour": 0.0}
    )
