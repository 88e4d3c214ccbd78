"""Tumour nets that see a slice's neighbours."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from tests.tiny_kit import tiny_kit
from training import kit as kits
from training import neighbours, stacks
from trtseg.errors import OutputError, TrtsegError


def stack_kit():
    """Slices 0 to 4 are of a CT, out of order and with a gap; 5 to 7 of another; the rest stands alone."""
    made = tiny_kit()
    return replace(
        made,
        case=np.array(["a"] * 5 + ["b"] * 3 + ["c", "d"]),
        z=np.array([12, 10, 14, 20, 22, 7, 8, 9, 0, 0]),
        group=np.array(["A"] * 3 + ["ircadb-1"] * 2 + ["p"] * 3 + ["chaos-3"] * 2),
        split=np.array(["validation"] * 5 + ["train"] * 3 + ["validation"] * 2),
    )


def test_neighbours_are_the_next_slices_of_the_ct():
    below, above = stacks.neighbours(stack_kit(), np.arange(1, 9))
    # of the rows 1 to 8: 1 lies at z 10 and 2 at z 14, so that without row 0 they are too far apart
    assert below.tolist() == [0, 1, 2, 2, 4, 4, 5, 7]
    assert above.tolist() == [0, 1, 3, 3, 5, 6, 6, 7]
    below, above = (torch.from_numpy(a) for a in stacks.neighbours(stack_kit(), np.arange(3)))
    seen = stacks.stacked(torch.tensor([1, 0]), 5, below, above)
    assert torch.stack(seen).T.tolist() == [[1, 1, 1, 0, 2], [1, 1, 0, 2, 2]]
    assert [s.tolist() for s in stacks.stacked(torch.tensor([2]), 1, below, above)] == [[2]]


def test_channels_move_together(monkeypatch):
    made, seen = stack_kit(), []
    small = replace(stacks.SETTINGS, size=32, width=4, stem=4, steps=2, batch=8)
    real = stacks.StackTrainer._loss
    monkeypatch.setattr(stacks.StackTrainer, "_loss", lambda s, b, x: seen.append((b, x)) or real(s, b, x))
    stacks.trained(made, np.arange(5, 8), 3, small, torch.device("cpu"))
    b, x = seen[0]
    assert x.shape == (8, 3, 32, 32)
    lone = b.row == 0  # the lowest slice is its own neighbour below, but for the noise
    assert lone.any()
    liver = b.label[lone] > 0
    assert (x[lone, 0] - x[lone, 1]).abs().max() > 0
    assert ((x[lone, 0] - x[lone, 1]) * liver).mean().abs() < 0.02


def test_nets_of_all_sizes_are_scored(tmp_path, monkeypatch):
    kits.write(tmp_path / "kit.zip", stack_kit())
    small = replace(stacks.SETTINGS, size=32, width=4, stem=4, batch=4)
    monkeypatch.setattr(stacks, "SETTINGS", small)
    stacks.compare(tmp_path / "kit.zip", tmp_path / "new" / "out.json", 1)
    found = json.loads((tmp_path / "new" / "out.json").read_text())
    assert (found["steps"], found["slices"], found["device"]) == (1, 2, "CPU")
    for channels in (1, 3, 5):
        for seed in (0, 1):
            scores = found[f"{channels} {seed}"]
            assert sorted(scores) == ["A", "chaos-3", "ircadb-1"]
            assert all(0 <= value <= 1 for value in scores["A"])


def test_scores_are_written_completely_or_not_at_all(tmp_path, monkeypatch):
    kits.write(tmp_path / "kit.zip", stack_kit())
    out = tmp_path / "out.json"
    out.write_text("of an earlier run")
    monkeypatch.setattr(stacks, "trained", lambda *a: None)
    monkeypatch.setattr(stacks, "scores", lambda *a: {"A": (0.5, 0.5)})

    def torn(path, text):
        path.write_bytes(text[:9].encode())
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", torn)
    with pytest.raises(OutputError, match="no space left"):
        stacks.compare(tmp_path / "kit.zip", out, 1)
    assert out.read_text() == "of an earlier run"


def test_an_impossible_output_is_refused_before_the_work(tmp_path, monkeypatch):
    kits.write(tmp_path / "kit.zip", stack_kit())
    monkeypatch.setattr(stacks, "trained", lambda *a: pytest.fail("the output comes first"))
    (tmp_path / "file").write_text("")
    with pytest.raises(TrtsegError, match="--out"):
        stacks.compare(tmp_path / "kit.zip", tmp_path / "file" / "out.json", 1)


def test_the_median_is_of_three_labels():
    class Seen:
        """Calls a pixel tumour where the middle channel is bright."""

        def logits(self, role, x):
            return x[:, x.shape[1] // 2, None] - 0.5

    made = stack_kit()
    rows = np.arange(3)
    label = made.label.copy()
    label[rows] = 1
    label[0, 4:8, 4:8] = 2
    image = made.image.copy()
    image[rows] = 0  # -1000 HU
    image[:2, 4:8, 4:8] = 255 if made.level_hu.size > 255 else made.level_hu.size - 1
    found = stacks.scores(replace(made, label=label, image=image), rows, Seen(), 1, torch.device("cpu"))
    # 16 true pixels, 32 found; the median has those of the slices at z 10 (its own neighbour below) and 12
    assert found["A"] == pytest.approx((2 * 16 / 48, 2 * 16 / 48))
    image[1] = 0
    found = stacks.scores(replace(made, label=label, image=image), rows, Seen(), 1, torch.device("cpu"))
    assert found == {"A": (1.0, 0.0)}


def test_a_model_of_one_net_has_no_logits_to_average(tmp_path, monkeypatch):
    tiny.one_step_model(tmp_path / "one")
    monkeypatch.setattr("sys.argv", ["neighbours", "--model", str(tmp_path / "one"), "--shared", "data"])
    with pytest.raises(
        SystemExit, match=r"^error: model: .* has one net; expected a model of a liver and a tumour"
    ):
        neighbours.main()
