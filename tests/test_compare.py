"""The paper's table from training to text, and labels made by a net, on a phantom."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from torch import nn
from training_data import lesions_case

from training import compare, data, prepare, results, score, train
from training.predict import Predictions, checkpoint, predict
from trtseg.errors import InputError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Patients A (validates), B and D (test), C (trains)."""

    folder = tmp_path_factory.mktemp("store")
    prepare.prepare([lesions_case(group) for group in "ABCD"], folder, prepare.Settings(size=64))
    return folder


@pytest.mark.parametrize("name", ["one-step, balanced", "sequential"])
def test_a_row_of_the_table(store, tmp_path, name, monkeypatch):
    settings = replace(compare.TABLE[name], steps=2, batch=2, size=32, width=4, depth=2, compile=False)
    folder = compare.folder_of(tmp_path, name, 0)
    folder.mkdir(parents=True)
    compare.run(settings, store, folder)
    validation, test = (Predictions.read(folder / f"{split}.npz") for split in ("validation", "test"))
    assert set(test.case) == {"B", "D"}
    assert set(validation.case) == {"A"}
    assert score.score(validation, test, settings.method).keys() == score.COLUMNS.keys()
    stamp = (folder / "test.npz").stat().st_mtime_ns
    compare.run(settings, store, folder)  # done is done
    assert (folder / "test.npz").stat().st_mtime_ns == stamp
    with pytest.raises(SystemExit, match="steps 2, not 3"):
        compare.run(replace(settings, steps=3), store, folder)


def test_tables_go_where_the_old_ones_are(store, tmp_path, monkeypatch):
    """Of two rows, one of which is run; what is written by hand stays."""
    first = "one-step, balanced"
    small = replace(compare.TABLE[first], steps=2, batch=2, size=32, width=4, depth=2, compile=False)
    for module in (compare, results):
        monkeypatch.setattr(module, "SEEDS", (0,))
    monkeypatch.setattr(results, "TABLE", {first: small, "joint": compare.TABLE["joint"]})
    document = tmp_path / "results.md"
    document.write_text(f"By hand.\n\n{results.MARK}old tables\n")
    monkeypatch.setattr("sys.argv", ["results", str(tmp_path), "--into", str(document)])
    with pytest.raises(SystemExit, match=r"run training\.compare first"):
        results.main()
    compare.run(small, store, compare.folder_of(tmp_path, first, 0))
    results.main()
    hand, _, printed = document.read_text().partition(results.MARK)
    assert hand == "By hand.\n\n"
    assert "old tables" not in printed
    assert "Test: LiTS groups B and D (16 slices" in printed
    assert f"| {first} | 0." in printed
    assert "| joint | not run |" in printed
    document.write_text("no mark\n")
    with pytest.raises(SystemExit, match="the tables go below it"):
        results.main()
    assert document.read_text() == "no mark\n"


def test_the_papers_split_is_scored_by_one_command(tmp_path, capsys, monkeypatch):
    """A store with a test split of its own: the threshold is of its validation."""
    store, run = tmp_path / "store", tmp_path / "run"

    prepare.prepare([lesions_case(x, "lits") for x in "ABCD"], store, prepare.Settings(size=64, paper=0))
    settings = replace(compare.PLAIN, steps=2, batch=2, size=32, width=4, depth=2, compile=False, without="")
    train.train(settings, store, run)
    monkeypatch.setattr("sys.argv", ["score", str(run / "last.pt"), "--data", str(store)])
    score.main()
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    method = checkpoint(run / "last.pt")
    validation, test = (predict(method, data.of_split(store, 64, s)) for s in ("validation", "test"))
    assert not set(validation.case) & set(test.case)
    assert row[0] == "| one-step"
    assert row[1] == f"{score.score(validation, test, 'one-step')['accuracy']:.4f}"


def test_a_store_without_test_split_says_so(store):
    with pytest.raises(InputError, match=r"no slices to test on; .*--paper SEED"):
        data.of_split(store, 64, "test")


def test_scores_by_hand():
    liver = np.array([[[0.1, 0.9, 0.9, 0.9, 0.75, 0.0]]], np.float32)
    tumour = np.array([[[0.0, 0.8, 0.6, 0.2, 0.4, 0.0]]], np.float32)
    label = np.array([[[0, 2, 1, 2, 2, 0]]], np.uint8)
    found = Predictions(liver, tumour, label, np.array(["x"]))
    two = score.score(found, found, "joint")
    # tumour above 0.5: two pixels, one of them right; three are true
    assert two["tumour Dice"] == pytest.approx(2 * 1 / (2 + 3))
    assert two["IoU"] == pytest.approx(1 / 4)
    assert two["accuracy"] == pytest.approx(3 / 6)
    assert two["liver Dice"] == 1
    # pairs of true and false tumour: 0.8 > 0, 0.6, 0; 0.2 > 0, 0 but < 0.6; 0.4 > 0, 0 but < 0.6
    assert two["AUC"] == pytest.approx(7 / 9)
    assert two["its share of pixels"] == pytest.approx(4 / 6)
    assert two["restricted AUC"] == pytest.approx(1 / 3)
    # three classes: at the fifth pixel (0.25, 0.35, 0.4) tumour is the largest, though below 0.5
    one = score.score(found, found, "one-step")
    assert one["tumour Dice"] == pytest.approx(2 * 2 / (3 + 3))


class Threshold(nn.Module):
    """A net that is sure of liver where the windowed input is above one half, by a steep slope."""

    def forward(self, x):
        return 200 * (x - 0.5)
