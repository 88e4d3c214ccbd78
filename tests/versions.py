"""Run the tests of what users do with the lowest, or the newest, versions of everything that pyproject.toml asks for.

``python tests/versions.py lowest FOLDER`` makes an environment in FOLDER with exactly the lower bounds of the
dependencies and of the extras below, and what pip chooses for the rest; ``newest`` takes the newest of all that the
bounds allow. `make test-versions` does both.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
EXTRAS = ("itk", "dicom", "evaluate")  # those that need no GPU
TOOLS = ("pytest", "hypothesis", "onnx", "tensorrt-rtx-cu13")  # what the tests need besides
TESTS = ("cli", "test_nifti.py", "test_arrays.py", "test_api.py", "test_preview.py", "test_dicom*.py")


def requirements(which: str) -> list[str]:
    """Ask for each package of ours in its lowest version (``name==version``), or as pyproject.toml does."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(one for extra in EXTRAS for one in project["optional-dependencies"][extra]),
    ]
    for requirement in asked:
        if not re.fullmatch(r"[\w-]+>=[\d.]+", requirement):
            sys.exit(f"{requirement}: expected NAME>=VERSION")
    return [one.replace(">=", "==") for one in asked] if which == "lowest" else asked


def main(which: str, folder: Path) -> int:
    """Make the environment, run the tests in it, and return pytest's exit code."""
    venv.create(folder, clear=True, with_pip=True, symlinks=True)
    python = str(folder / "bin/python")
    install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--prefer-binary"]
    subprocess.run([*install, *requirements(which), *TOOLS], check=True)
    # The package itself is the one that `make test` has built for the same Python.
    site = sysconfig.get_path("purelib", vars={"base": str(folder)})
    Path(site, "trtseg.pth").write_text(f"{REPOSITORY}\n")
    names = sorted(re.split("[>=]", one)[0] for one in requirements(which))
    freeze = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    )
    found = dict(line.split("==") for line in freeze.stdout.splitlines())
    print(which, *(f"{name}=={found.get(name) or found.get(name.lower())}" for name in names), flush=True)
    tests = [str(path) for name in TESTS for path in sorted((REPOSITORY / "tests").glob(name))]
    command = [python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    return subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "PYTHONNOUSERSITE": "1"}, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
