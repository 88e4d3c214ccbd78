"""Several processes on one GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trtseg.phantom import abdomen
from trtseg.sample import write_phantom

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("pycuda", "cpu_path", "command")]
ROOT = Path(__file__).resolve().parents[2]


def test_two_workers_give_the_labels_of_one_process(tmp_path):
    """Both open the nets at a time, with a cache that is empty."""
    for number in range(4):
        phantom = abdomen((24 + number, 256, 256), (8.0, 1.6, 1.6))
        (tmp_path / "cts").mkdir(exist_ok=True)
        write_phantom(phantom, tmp_path / "cts" / f"{number}.nii.gz", tmp_path / f"truth{number}.nii.gz")
    labels = {}
    for options in (["--jobs", "2"], []):
        out = tmp_path / f"out{len(options)}"
        command = [sys.executable, "-m", "trtseg", "segment", str(tmp_path / "cts"), "-o", str(out)]
        done = subprocess.run(
            [*command, "--device", "cuda", *options],
            cwd=ROOT,
            env={**os.environ, "TRTSEG_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        labels[len(options)] = {path.name: path.read_bytes() for path in sorted(out.glob("*.nii.gz"))}
    assert len(labels[0]) == 4
    assert labels[0] == labels[2]
