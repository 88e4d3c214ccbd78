"""What comes from files is shown, and not obeyed by the terminal."""

import shutil
from pathlib import Path

import dicom_made as made
import numpy as np
import pytest
from commands import run, run_alone, stderr_on_a_terminal

from trtseg.cli import text

OBEYED = (
    "\x1b]0;owned\x07\x9b2J\u202e"  # sets the title of the window, clears it, and turns the order of letters
)
SHOWN = r"\x1b]0;owned\x07\x9b2J\u202e"


def test_values_of_a_header(here):
    for n in range(3):
        picture = np.zeros((64, 64), np.int16)
        made.save(
            here / f"ct/{n}.dcm", made.instance(picture, z=5.0 * n, ConvolutionKernel="B30\x1b]0;owned\x07")
        )
    done = run("segment", "ct", "--series", "list")
    assert done.exit_code == 0
    assert r"kernel B30\x1b]0;owned\x07, ORIGINAL" in done.stdout


def test_names_of_files(here):
    Path(f"a{OBEYED}.nii.gz").write_bytes(b"nonsense")
    done = run("segment", f"a{OBEYED}.nii.gz", "-o", "out.nii.gz")
    assert done.exit_code == 2
    assert f"error: a{SHOWN}.nii.gz: " in done.stderr


def test_names_of_files_that_are_written(here):
    done = run("sample", "--phantom", "-o", f"a{OBEYED}.nii")
    assert done.exit_code == 0
    assert done.stderr.endswith(f"its truth: a{SHOWN}_labels.nii.gz\n")


def test_names_of_files_in_what_the_library_logs(phantom_ct, here):
    Path("scans").mkdir()
    Path(f"scans/a{OBEYED}.tar").touch()
    shutil.copy(phantom_ct, "scans/ct.nii.gz")
    done = run_alone("segment", "scans", "-o", "out", "--device", "cuda:999")
    assert done.returncode == 2
    assert f"scans/a{SHOWN}.tar: is not looked into; give" in done.stderr


def test_names_of_files_in_what_a_worker_logs(model, here):
    picture = np.arange(-1000, 3096, dtype=np.int16).reshape(64, 64)
    for n in range(3):
        made.save(here / f"ct/IM{n}{OBEYED}", made.instance(picture, z=5.0 * n))
    Path(f"ct/IM7{OBEYED}").touch()
    done = run_alone("segment", "ct", "-o", "seg.nii.gz", "--model", str(model), "--jobs", "1")
    assert f"named like slices, but no DICOM files: ct/IM7{SHOWN}" in done.stderr
    assert OBEYED[:10] not in done.stderr


def test_names_of_files_in_the_progress(phantom_ct, model, here):
    shutil.copy(phantom_ct, f"a{OBEYED}.nii.gz")
    shown = stderr_on_a_terminal("segment", f"a{OBEYED}.nii.gz", "--model", str(model), "-o", "out.nii.gz")
    assert "owned" in shown
    assert OBEYED[:10] not in shown


@pytest.mark.parametrize(
    "parts", [(OBEYED,), (text.table(["a"], [[OBEYED]]),), (text.listing([(OBEYED, "b")]),)]
)
def test_tables(capsys, parts):
    text.show(*parts)
    assert SHOWN in capsys.readouterr().out
