"""The paper's table from a kit: what rows train on and are scored by, processes, and the text that is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.tiny_kit import tiny_kit
from training import compare, kit, results, row, tally, trainer
from training.batch import DeviceKit
from training.checkpoint import Settings
from training.methods import Method, OneStep
from training.row import Split
from training.tally import EDGES, Tally
from trtseg.errors import ArgumentError, InputError
from trtseg.metrics.overlap import Overlap, overlap

FOLDS = (Split(("p0",), ("p1",)), Split(("p3",), ("p1",)))
SMALL = Settings("one-step", steps=2, batch=2, size=16, width=4, depth=2, overlap="none", lesions=0.3, grow=0)


class Found(Method):
    """Gives probabilities that are stored, slice by slice."""

    def __init__(self, liver, tumour):
        Method.__init__(self, {})
        self.pairs = [liver, tumour]

    def probabilities(self, hu):
        return tuple(self.pairs)


class FoundByOne(Found, OneStep):
    """The same from one net for three classes."""


def random_pair():
    rng = np.random.default_rng(0)
    tumour = rng.random((10, 32, 32)).astype(np.float32) ** 3
    return torch.from_numpy(tumour + (1 - tumour) * rng.random(tumour.shape, np.float32)), torch.from_numpy(
        tumour
    )


def with_unknown():
    made = tiny_kit()
    made.label[1, :8] = 255
    return made


def test_rows_train_on_known_tumours_of_other_patients():
    made = tiny_kit()
    # p2 is 4 and 5, and of 5 nobody knows the tumours; 8 and 9 have no liver; p1 validates
    assert row.training_rows(made, FOLDS[0]).tolist() == [4, 6, 7]
    assert row.training_rows(made, FOLDS[1]).tolist() == [0, 1, 4]
    assert row.scored_rows(made, ["p2", "p3"]).tolist() == [4, 6, 7]


@pytest.mark.parametrize("kind", [Found, FoundByOne])
def test_tallies_are_counts_of_known_pixels(kind):
    made, rows = with_unknown(), np.arange(10)
    liver, tumour = random_pair()
    found = tally.tallies(made, rows, DeviceKit.of(made, rows, "cpu"), kind(liver, tumour), 32)
    assert list(found) == ["p0", "p1", "p2", "p3", "p4"]
    assert found["p0"].slices.tolist() == [2, 1]
    known, truth = made.label[:2] != 255, made.label[:2] == 2
    p, whole = tumour.numpy()[:2], liver.numpy()[:2]
    labels = (p > 0.5) & (whole > 0.5)
    if kind is FoundByOne:
        labels = (p > whole - p) & (p > 1 - whole)
    assert found["p0"].tumour == overlap(labels[known], truth[known])
    assert found["p0"].above(0.5) == overlap((p > 0.5)[known], truth[known])
    assert found["p0"].above(float(EDGES[40])) == overlap((p > EDGES[40])[known], truth[known])
    assert found["p0"].pixels.sum() == known.sum()
    assert tally.auc(found["p0"].pixels) == pytest.approx(roc_auc_score(truth[known], p[known]), abs=0.003)
    band = known & (p >= 0.01) & (p <= 0.99)
    assert tally.in_band(found["p0"].pixels).sum() == band.sum()
    assert Tally.from_json(json.loads(json.dumps(found["p0"].to_json()))).to_json() == found["p0"].to_json()


def of(other, tumour):
    """A tally of pixels by their probabilities."""
    bins = len(EDGES) + 1
    pixels = [np.bincount(np.searchsorted(EDGES, np.float32(p)), minlength=bins) for p in (other, tumour)]
    nothing = Overlap(0, 0, 0, 0)
    return Tally(np.array([1, 1]), np.stack(pixels), nothing, nothing)


def test_the_threshold_is_chosen_with_patients_weighing_the_same():
    # above 0.3 lie all tumours and a tenth of the first patient's other pixels, but half of the second's
    first, second = of([0.05] * 90 + [0.4] * 10, [0.5] * 3), of([0.05, 0.4], [0.5])
    assert 0.4 <= tally.best_threshold({"a": first, "b": second}) < 0.5
    # what is outside of the band has no say
    assert tally.best_threshold({"a": first, "b": of([0.999] * 1000, [0.001])}) == pytest.approx(
        tally.best_threshold({"a": first})
    )
    assert tally.best_threshold({"a": of([0.2], [])}) == 0.5


@pytest.mark.parametrize("method", ["one-step", "sequential", "joint"])
def test_every_method_sees_the_same_samples(method, monkeypatch):
    made, seen = tiny_kit(), {}
    real = row.RowTrainer._loss

    def loss(self, b, mask):
        seen.setdefault(self.role, []).append((b.hu.clone(), b.label.clone()))
        return real(self, b, mask)

    monkeypatch.setattr(row.RowTrainer, "_loss", loss)
    monkeypatch.setitem(trainer.AHEAD, "cpu", 2)
    steps = 3
    stored = row.run(made, replace(SMALL, method=method, steps=steps), FOLDS[0], torch.device("cpu"))
    row.run(made, replace(SMALL, steps=steps, balance=1.0), FOLDS[0], torch.device("cpu"))
    assert list(stored["test"]) == ["p0"]
    assert list(stored["validation"]) == ["p1"]
    assert (stored["steps"], stored["training_slices"], stored["training_patients"]) == (steps, 3, 2)
    expected = seen["one-step"][-steps:]
    assert not torch.equal(expected[0][0], expected[1][0])
    assert len(seen) == (3 if method == "sequential" else len({method, "one-step"}))
    for samples in seen.values():
        for one, other in zip(samples, expected, strict=False):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


COMMAND = """
import sys
for name in ('trtseg._core', 'openvino', 'nibabel', 'highdicom', 'pydicom', 'scipy', 'PIL', 'tqdm', 'matplotlib',
             'onnx', 'sklearn'): sys.modules[name] = None
from dataclasses import replace
from training import compare
from training.row import Split
compare.FOLDS = (Split(('p0',), ('p1',)), Split(('p3',), ('p1',)))
names = ('one-step', 'joint', 'joint, balanced', 'sequential, balanced', 'joint, balanced, half the steps')
small = {n: replace(compare.EVERYTHING[n], batch=2, size=16, width=4, depth=2) for n in names}
compare.TABLE = compare.EVERYTHING = small
compare.PARTS = (small,)
compare.main()
"""


def start(path, out, *options):
    """`training.compare` of small nets, as on a machine that has Python, torch, NumPy and little else."""
    command = [sys.executable, "-c", COMMAND, str(path), "--out", str(out), *options]
    return subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_all_rows_run_side_by_side_and_are_printed(tmp_path, monkeypatch):
    path, out = tmp_path / "kit.zip", tmp_path / "runs"
    kit.write(path, tiny_kit())
    done = start(path, out, "--jobs", "2", "--steps", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = sorted(out.iterdir())
    assert len(runs) == 5 * 2 * 2
    given = {json.loads(file.read_text())["budget"] for file in runs}
    assert len(given) == 1

    # what is done is kept, what is missing is done with the same steps
    kept, gone = runs[1].stat().st_mtime_ns, runs[0]
    gone.unlink()
    assert start(path, out).returncode == 0
    assert runs[1].stat().st_mtime_ns == kept
    assert json.loads(gone.read_text())["budget"] == given.pop()
    with pytest.raises(InputError, match=r"not 99; choose another --out"):
        compare.compare(path, out, 1, steps=99)

    monkeypatch.setattr(results, "FOLDS", FOLDS)
    document = tmp_path / "results.md"
    document.write_text(f"By hand.\n\n{results.MARK}old tables\n")
    compare.file_of(out, "one-step", 1, 0).unlink()
    for fold in (0, 1):
        compare.file_of(out, "joint", fold, 0).unlink()
    monkeypatch.setattr("sys.argv", ["results", str(out), "--into", str(document)])
    results.main()
    hand, _, printed = document.read_text().partition(results.MARK)
    assert hand == "By hand.\n\n"
    assert "old tables" not in printed
    assert "| one-step (1 seed) | 0." in printed
    assert "| joint (not run) |" in printed
    assert "| joint, balanced less sequential, balanced | tumour Dice |" in printed
    assert max(map(len, printed.split("##")[0].splitlines())) <= 120
    document.write_text("no mark\n")
    with pytest.raises(SystemExit, match="the tables go below it"):
        results.main()
    assert document.read_text() == "no mark\n"


def test_a_folder_without_a_row_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"run training\.compare first"):
        results.tables(tmp_path)


def test_a_kit_without_the_patients_is_refused(tmp_path):
    kit.write(tmp_path / "kit.zip", tiny_kit())
    with pytest.raises(InputError, match="has no patients A, B"):
        compare.compare(tmp_path / "kit.zip", tmp_path / "runs", 1)


def test_runs_of_another_kit_or_damaged_ones_are_no_part_of_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "FOLDS", FOLDS)
    path, out = tmp_path / "kit.zip", tmp_path / "runs"
    kit.write(path, tiny_kit())
    out.mkdir()
    run = compare.file_of(out, "one-step", 0, 0)
    run.write_text(json.dumps({"budget": 2, "kit": "0" * 64}))
    with pytest.raises(
        InputError, match=r"runs: holds runs of another kit than .*kit\.zip; choose another --out"
    ):
        compare.compare(path, out, 1)
    compare.file_of(out, "one-step", 0, 1).write_text(json.dumps({"budget": 2, "kit": "1" * 64}))
    for refuses in (lambda: compare.compare(path, out, 1), lambda: results.tables(out)):
        with pytest.raises(InputError, match="holds runs of different steps or kits; choose another --out"):
            refuses()
    for damaged in ('{"budget": 2', "{}", "[]"):
        run.write_text(damaged)
        with pytest.raises(
            InputError, match=r"one-step_0_0\.json: is no run of training\.compare, or damaged"
        ):
            compare.compare(path, out, 1)


SLOW = """
import sys, time
from training import compare, row
compare.FOLDS = (row.Split(('p0',), ('p1',)), row.Split(('p3',), ('p1',)))
def sleeps(*_):
    print('began', flush=True)
    time.sleep(60)
row.run = sleeps
compare.main()
"""


@pytest.mark.slow
def test_a_terminated_comparison_does_not_wait_for_its_runs(tmp_path):
    kit.write(tmp_path / "kit.zip", tiny_kit())
    command = [
        sys.executable,
        "-c",
        SLOW,
        str(tmp_path / "kit.zip"),
        "--out",
        str(tmp_path / "runs"),
        "--jobs",
        "2",
    ]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert any(line == "began\n" for line in process.stdout)
        process.terminate()
        assert process.wait(30) == 143
        assert process.stdout.read() in ("", "began\n")  # which ends when the last run has


@pytest.mark.parametrize(("jobs", "steps"), [(0, 0), (1, -1)])
def test_numbers_out_of_range_are_refused_before_the_kit_is_read(tmp_path, jobs, steps):
    with pytest.raises(ArgumentError, match=f"^jobs, steps: got {jobs}, {steps}; expected"):
        compare.compare(tmp_path / "kit.zip", tmp_path / "runs", jobs, steps)


def scored(tp, fp, fn):
    table = Overlap(tp, fp, fn, 100)
    return results.Scored(replace(of([0.1], [0.9]), tumour=table, liver=table), table)


def test_differences_are_of_the_same_patients():
    worse = {"a": scored(1, 1, 1), "b": scored(1, 0, 0), "c": scored(0, 1, 1)}
    better = {"c": scored(1, 0, 0), "a": scored(1, 0, 0), "b": scored(1, 0, 0)}
    seeds, (low, high), more, count = results.difference([better, worse], [worse, worse], "tumour Dice")
    # in the first seed 0.5, 0 and 1 more, in the second nothing
    assert seeds == pytest.approx([0.5, 0])
    assert (more, count) == (2, 3)
    assert 0 <= low < 0.25 < high <= 0.5


def test_patients_weigh_the_same_or_pixels_do():
    small, large = scored(1, 0, 0), scored(50, 100, 50)
    runs = {"row": [{"a": small, "b": large}]}
    each, together = (results.scores_table(runs, t).splitlines()[-1].split(" | ") for t in (False, True))
    at = 1 + list(results.COLUMNS).index("tumour Dice")
    assert each[at] == f"{(1 + 100 / 250) / 2:.3f}"
    assert together[at] == f"{102 / 252:.3f}"
