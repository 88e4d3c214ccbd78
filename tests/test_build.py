"""What setup.py decides, and what the extension says of itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trtseg import _core

ROOT = Path(__file__).resolve().parents[1]


def build(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run setup.py build_ext, where only an error that comes before compiling is expected."""
    pytest.importorskip("pybind11", reason="pybind11 is not installed")
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-temp",
        tmp_path / "t",
        "--build-lib",
        tmp_path / "l",
    ]
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRTSEG_")} | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_cuda_without_nvcc_fails_and_says_what_to_install(tmp_path):
    done = build(tmp_path, TRTSEG_CUDA="1", PATH=str(tmp_path), CUDA_HOME=str(tmp_path))
    assert done.returncode != 0
    assert "there is no nvcc in CUDA_HOME" in done.stderr
    assert "install the CUDA toolkit" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TRTSEG_CUDA": "bogus"}, "TRTSEG_CUDA: got 'bogus', expected auto, 0 or 1."),
        ({"TRTSEG_CUDA": ""}, "TRTSEG_CUDA: got '', expected auto, 0 or 1."),
        ({"TRTSEG_CUDA": "0", "MAX_JOBS": "many"}, "MAX_JOBS: got 'many', expected a number."),
    ],
)
def test_unknown_values_fail(tmp_path, environment, message):
    done = build(tmp_path, **environment)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_architectures_fail(tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\nexit 9\n")
    nvcc.chmod(0o755)
    done = build(tmp_path, TRTSEG_CUDA="1", TRTSEG_CUDA_ARCHS="hopper", CUDA_HOME=str(tmp_path))
    assert done.returncode != 0
    assert "TRTSEG_CUDA_ARCHS: got 'hopper', expected numbers" in done.stderr


def test_build_info_is_consistent():
    info = _core.build_info()
    assert set(info) == {"cuda", "cuda_version", "cuda_archs", "compiler"}
    assert isinstance(info["cuda"], bool)
    assert info["compiler"].split()[0] in ("g++", "clang", "unknown")
    for key in ("cuda_version", "cuda_archs"):
        assert isinstance(info[key], str if info["cuda"] else type(None))


@pytest.mark.skipif(shutil.which("ldd") is None, reason="there is no ldd")
def test_the_extension_needs_no_cuda_library():
    done = subprocess.run(["ldd", _core.__file__], capture_output=True, text=True, check=True)
    assert "libc.so" in done.stdout
    assert "cuda" not in done.stdout.lower().replace(str(_core.__file__).lower(), "")
    assert "not found" not in done.stdout


def test_ops_say_which_shapes_they_take():
    for op in ("prepare", "gate", "label", "label3"):
        doc = getattr(_core, op).__doc__
        assert "float32 or float16 [n, " in doc
        assert "threads: " in doc
