"""The paper's row for a checkpoint, from a store whose split is the paper's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training_data import lesions_case
from training import data, prepare, score, train
from training.checkpoint import Settings, load
from training.score import Predictions, predict
from trtseg.errors import InputError


def test_the_papers_split_is_scored_by_one_command(tmp_path, capsys, monkeypatch):
    """A store with a test split of its own: the threshold is of its validation."""
    store, run = tmp_path / "store", tmp_path / "run"
    prepare.prepare([lesions_case(x, "lits") for x in "ABCD"], store, prepare.Settings(size=64, paper=0))
    settings = Settings(
        "one-step", steps=2, batch=2, size=32, width=4, depth=2, overlap="none", compile=False
    )
    train.train(settings, store, run)
    monkeypatch.setattr("sys.argv", ["score", str(run / "last.pt"), "--data", str(store)])
    score.main()
    printed = capsys.readouterr()
    row = printed.out.splitlines()[-1].split(" | ")
    assert "warning" not in printed.err
    train.train(settings, store, tmp_path / "on", start=run / "last.pt")
    with monkeypatch.context() as patched:
        patched.setattr("sys.argv", ["score", str(tmp_path / "on" / "last.pt"), "--data", str(store)])
        score.main()
    assert "last.pt started with the weights of other nets: where these were tr" in capsys.readouterr().err
    with monkeypatch.context() as patched:  # what no tumour among the slices that test leaves undefined
        patched.setattr(score, "score", lambda *_: dict.fromkeys(score.COLUMNS, float("nan")))
        score.main()
    assert capsys.readouterr().out.splitlines()[-1] == "| one-step" + " | –" * len(score.COLUMNS) + " |"
    prepare.prepare(
        [lesions_case(x, "lits") for x in "ABCD"], tmp_path / "other", prepare.Settings(size=64, paper=1)
    )
    monkeypatch.setattr("sys.argv", ["score", str(run / "last.pt"), "--data", str(tmp_path / "other")])
    with pytest.raises(SystemExit, match=r"^error: .*last\.pt: was not trained on .*other"):
        score.main()
    method, _ = load(run / "last.pt")
    method.compute_in(torch.float32)
    validation, test = (predict(method, data.of_split(store, 64, s)) for s in ("validation", "test"))
    patients = [set(data.of_split(store, 64, s).group) for s in ("validation", "test")]
    assert all(patients)
    assert not patients[0] & patients[1]
    assert row[0] == "| one-step"
    assert row[1] == f"{score.score(validation, test, 'one-step')['accuracy']:.4f}"


def test_a_store_without_test_split_says_so(tmp_path):
    prepare.prepare([lesions_case(group) for group in "AC"], tmp_path, prepare.Settings(size=64))
    with pytest.raises(InputError, match=r"no slices to test on; .*--paper SEED"):
        data.of_split(tmp_path, 64, "test")


def test_scores_by_hand():
    liver = np.array([[[0.1, 0.9, 0.9, 0.9, 0.75, 0.0]]], np.float32)
    tumour = np.array([[[0.0, 0.8, 0.6, 0.2, 0.4, 0.0]]], np.float32)
    label = np.array([[[0, 2, 1, 2, 2, 0]]], np.uint8)
    found = Predictions(liver, tumour, label)
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
