"""The examples run, and print what they promise."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

import tiny
import training_data as made

import trtseg

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples"


def test_growing_liver(tmp_path, capsys):
    model, folder = tiny.cascade_model(tmp_path / "model"), tmp_path / "scan"
    folder.mkdir()
    ct = made.phantom(0).ct

    def scan():
        for z in (5, 4, 3, 2, 0, 1):
            made.save_dicom(tmp_path / "part", ct[z], 100 + z * made.SPACING[0], series="1.2.3")
            (tmp_path / "part").rename(folder / f"slice{z}")
            time.sleep(0.01)

    scanner = threading.Thread(target=scan)
    scanner.start()
    runpy.run_path(str(EXAMPLES / "growing_liver.py"))["main"](folder, 0.5, str(model))
    scanner.join()
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(re.fullmatch(r"\d slices: liver \d+ mL, tumour \d+ mL", line) for line in lines)
    assert last == trtseg.segment(folder, model=model).summary()
    assert last.startswith("liver ")


def test_growing_liver_says_in_a_line_what_is_wrong(tmp_path):
    empty, wrong = tmp_path / "empty", tmp_path / "wrong"
    for folder in (empty, wrong):
        folder.mkdir()
    (wrong / "notes.txt").write_text("no slice")
    model = str(tiny.cascade_model(tmp_path / "model"))
    for folder, text in (
        (tmp_path / "absent", f"FOLDER: got {tmp_path / 'absent'}; expected a folder"),
        (empty, f"{empty}: no file came for 0.1 s; begin the scan, or raise --quiet"),
        (wrong, f"{wrong / 'notes.txt'}: is no DICOM file"),
    ):
        command = [sys.executable, EXAMPLES / "growing_liver.py", folder, "--quiet", "0.1", "--model", model]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1].startswith(f"growing_liver.py: error: {text}")
        assert "Traceback" not in done.stderr


def test_the_benchmark_of_spoilt_cts_says_how_it_is_called():
    command = [sys.executable, "-m", "benchmarks.robustness", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "DATA" in done.stdout
