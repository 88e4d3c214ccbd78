"""Programs of training/ and benchmarks/ end with a line, not a traceback, where their user can mend what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from training.program import plain_errors
from trtseg.phantom import abdomen

WRONG_PATHS = (
    "benchmarks.cascade missing",
    "benchmarks.cohort missing",
    "benchmarks.compare missing --table --json missing",
    "benchmarks.engines --model missing",
    "benchmarks.node missing",
    "benchmarks.robustness missing",
    "benchmarks.scaling missing",
    "benchmarks.search missing",
    "benchmarks.stream missing",
    "training.compare missing --out new",
    "training.curves missing",
    "training.kit_score missing --liver last.pt",
    "training.recipe --shared missing -o new",
    "training.results missing",
)


@pytest.mark.parametrize("line", WRONG_PATHS)
def test_a_path_that_is_not_there_is_named_in_a_line(line, tmp_path, monkeypatch):
    name, *options = line.split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, *options])
    with pytest.raises(SystemExit, match=r"^error: .*missing"):
        import_module(name).main()
    assert not list(tmp_path.iterdir())


def test_cts_of_unlike_size_are_not_stacked(tmp_path, monkeypatch):
    """The voxels of the larger ones would lie anywhere, and the time be that of no CT."""
    paths = [tmp_path / f"{size}.nii.gz" for size in (64, 80)]
    for path, size in zip(paths, (64, 80), strict=True):
        ct = abdomen(shape=(4, 64, size), spacing=(5, 4, 4)).ct
        nib.save(nib.Nifti1Image(ct.T, np.diag([-4.0, -4.0, 5.0, 1.0])), path)
    monkeypatch.setattr("sys.argv", ["benchmarks.scaling", *map(str, paths), "--slices", "8"])
    with pytest.raises(
        SystemExit, match=r"^error: .*80\.nii\.gz: has slices of 64 x 80, but .* of 64 x 64; give CTs"
    ):
        import_module("benchmarks.scaling").main()


def test_a_wrong_path_ends_a_program_with_the_exit_code_of_trtseg(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "training.curves", str(tmp_path / "missing")], capture_output=True, text=True
    )
    missing = tmp_path / "missing" / "log.csv"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {missing}: No such file or directory\n"


def test_an_interrupted_program_says_so_in_a_word(capsys):
    @plain_errors()
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_terminated_program_removes_what_it_was_writing(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom training.program import plain_errors\n"
        "from trtseg.io.atomic import atomic\n\n@plain_errors()\ndef main():\n"
        "    with atomic(Path(sys.argv[1]) / 'plot.png'):\n        print('on its way', flush=True)\n"
        "        time.sleep(60)\n\nmain()\n"
    )
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "on its way\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.terminate()
        assert process.wait(30) == 143
    assert list(tmp_path.iterdir()) == []


def test_a_program_may_run_in_a_thread():
    ended = []
    thread = threading.Thread(target=plain_errors()(lambda: ended.append(True)))
    thread.start()
    thread.join()
    assert ended == [True]


def test_a_bug_keeps_its_traceback():
    @plain_errors()
    def fails():
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        fails()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "training.train",
            ["--width WIDTH channels of the first", "(default: 16)", "(default: straight-through)"],
        ),
        ("training.kit_train", ["--own-mask OWN_MASK share of slices", "(default: 0.002)", "(default: 256)"]),
    ],
)
def test_the_help_of_a_training_says_what_each_option_is_and_its_default(name, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        import_module(name).main()
    text = " ".join(capsys.readouterr().out.partition("\noptions:\n")[2].split())
    assert [part for part in said if part not in text] == []
    bare = re.findall(r"--[a-z-]+ (?:[A-Z_]+|\{[a-z,-]+\}) (?=--)", text)
    assert bare == []


def test_the_stream_benchmark_measures_a_ct_of_a_few_slices_too(tmp_path, monkeypatch, capsys):
    ct = tmp_path / "ct.nii.gz"
    nib.save(
        nib.Nifti1Image(abdomen((12, 96, 96)).ct.transpose(2, 1, 0), np.diag([-3.0, -3.0, 5.0, 1.0])), ct
    )
    monkeypatch.setattr("sys.argv", ["stream", str(ct), "--rates", "0"])
    import_module("benchmarks.stream").main()
    out = capsys.readouterr().out
    assert "12x96x96 voxels" in out
    assert "nan" not in out
