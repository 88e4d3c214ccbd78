"""tests/gpu where there is no GPU: every test says what it misses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("required", "tests"), [(0, "tests/gpu"), (1, "tests/gpu/test_graph.py")])
def test_what_is_missing_is_said(required, tests):
    """Without a GPU and onnx the tests are collected and skipped; with TRTSEG_REQUIRE_CUDA=1 they fail, all of a file.

    How a test is left out stands in tests/gpu/conftest.py, for all files.
    """
    code = "import sys, pytest; sys.modules['onnx'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "-p", "no:cacheprovider", tests],
        cwd=ROOT,
        env={**os.environ, "TRTSEG_REQUIRE_CUDA": str(required), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == required, done.stdout  # 2: broken while they were collected
    assert ("TRTSEG_REQUIRE_CUDA=1, but" in done.stdout) == bool(required), done.stdout
    last = done.stdout.splitlines()[-1]  # of the numbers there is one
    assert re.fullmatch(rf"=+ \d+ {'errors' if required else 'skipped'} in \S+s =+", last), done.stdout


def test_the_sanitizer_leaves_tests_out_that_there_are():
    script = (ROOT / "tests" / "gpu" / "sanitize.sh").read_text()
    modules = "".join((ROOT / name).read_text() for name in re.findall(r"tests/gpu/\w+\.py", script))
    left_out = re.findall(r"\bnot ([\w-]+)", re.search(r"-k '(.*)'", script)[1])
    assert left_out
    assert [word for word in left_out if not re.search(rf'def test_\w*{word}|"{word}"', modules)] == []
