"""docs/gpu-status.md lists every test of tests/gpu, and these say what they miss where they cannot run."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def written() -> dict[str, set[str]]:
    """File to its tests, with their classes."""
    found = {}
    for path in (ROOT / "tests" / "gpu").glob("test_*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        classes = {node.name: node.body for node in body if isinstance(node, ast.ClassDef)}
        places = [("", body), *((f"{name}::", inner) for name, inner in classes.items())]
        found[f"tests/gpu/{path.name}"] = {
            prefix + node.name
            for prefix, nodes in places
            for node in nodes
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
    return found


def listed(text: str) -> dict[str, list[str]]:
    """File to the tests in its table: rows ``| `test` | ... | status |`` below one that has the file instead."""
    found: dict[str, list[str]] = {}
    tests: list[str] | None = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        first = re.fullmatch("`(.+)`", cells[0]) if cells else None
        if not cells:
            tests = None
        elif first and first[1].startswith("tests/gpu/") and cells[-1] == "status":
            tests = found.setdefault(first[1], [])
        elif first and tests is not None:
            assert len(cells) == 3, line
            assert all(cells), line
            tests.append(first[1])
    return found


def test_every_test_is_listed_once():
    tests = listed((ROOT / "docs" / "gpu-status.md").read_text(encoding="utf-8"))
    for file, names in tests.items():
        assert len(names) == len(set(names)), file
    assert {file: set(names) for file, names in tests.items()} == written()


@pytest.mark.parametrize("required", [0, 1])
def test_what_is_missing_is_said(required):
    """Without a GPU, and onnx, which none of them needs, all are collected; who requires a GPU is told."""
    code = "import sys, pytest; sys.modules['onnx'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "-p", "no:cacheprovider", "tests/gpu"],
        cwd=ROOT,
        env={**os.environ, "TRTSEG_REQUIRE_CUDA": str(required), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == required, done.stdout  # 2: broken while they were collected
    assert ("TRTSEG_REQUIRE_CUDA=1, but" in done.stdout) == bool(required), done.stdout
    assert ("skipped in" in done.stdout) == (not required), done.stdout
    assert "passed" not in done.stdout
