"""Memory that benchmarks print is that of the processes that they start, and not their own."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny

from benchmarks import cohort, scaling
from trtseg.errors import InputError

#: MB that this process holds; what it starts needs less.
HELD = 600


@pytest.fixture
def held():
    array = np.ones((HELD, 2**20), np.uint8)
    yield
    assert array.all()


def test_memory_of_a_run(held, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.write_text("#!/bin/sh\nsleep 0.2\n")
    run.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(run))
    seconds, memory = scaling.measured(Path("ct"), Path("out"), 1, "fp32")
    assert seconds >= 0.2
    assert 0 < memory < HELD * scaling.MB / 2


def test_a_run_that_fails_says_why(tmp_path):
    with pytest.raises(InputError, match=r"ended with code 2: error: .*missing\.nii.*no such file"):
        scaling.measured(tmp_path / "missing.nii", tmp_path / "out.nii.gz", 1, "fp32")


def test_memory_of_a_worker(held, tmp_path):
    tiny.cascade_model(tmp_path / "tiny")
    ct = np.random.default_rng(0).integers(-200, 200, (64, 64, 2)).astype(np.int16)
    nib.save(nib.Nifti1Image(ct, np.diag([1.0, 1.0, 5.0, 1.0])), tmp_path / "ct.nii.gz")
    options = {"model": tmp_path / "tiny", "precision": "fp32", "device": "cpu", "threads": 1}
    run = cohort.run(tmp_path, tmp_path / "ct.nii.gz", 2, 1, options)
    assert 0 < run.memory < HELD / 2
