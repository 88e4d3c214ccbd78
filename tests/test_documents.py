"""What documents name is there: names in Python, options of commands, files, warnings."""

import dataclasses
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
import typer

from trtseg.cli import app
from trtseg.cohort.table import COLUMNS
from trtseg.followup import Side
from trtseg.result import Segmentation
from trtseg.volume import Geometry, Volume
from trtseg.warnings import CODES

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "csrc/README.md", "training/README.md")]
DOCUMENTS += [ROOT / "trtseg/models/default/MODEL_CARD.md", *sorted((ROOT / "docs").glob("*.md"))]
EVERY = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@EVERY
def test_names_in_python(path):
    """As attributes after ``import trtseg`` or the module of an import statement, as a reader would type them."""
    text = path.read_text(encoding="utf-8")
    modules = set(re.findall(r"(?:from|import) (trtseg[\w.]*)", text))
    for name in set(re.findall(r"\btrtseg\.[A-Za-z_][\w.]*\w(?!\w*[./])", text)) - modules:
        if name.rpartition(".")[2] in ("toml", "service", "lua") or f"logger `{name}`" in text:
            continue
        found = importlib.import_module("trtseg")
        # Not what other tests have imported.
        assert name.split(".")[1] in {*found._NAMES, *found._MODULES}, name
        for part in name.split(".")[1:]:
            assert hasattr(found, part), name
            found = getattr(found, part)


@EVERY
def test_links(path):
    for link in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (path.parent / link).exists(), link


@EVERY
def test_options_of_commands(path):
    group = typer.main.get_command(app)
    for block in re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if not line.startswith("trtseg "):
                continue
            words, command = shlex.split(line, comments=True)[1:], group
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("-")} <= known, line


@EVERY
def test_extras(path):
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    named = re.findall(r"""pip install.*["'](?:\.|trtseg)\[([\w,]+)\]""", path.read_text(encoding="utf-8"))
    assert {extra for each in named for extra in each.split(",")} <= extras.keys()


def test_warnings():
    text = read("docs/robustness.md").partition("## ")[0]
    assert (
        set(re.findall(r"`((?:geometry|series|values|slices|liver|tumour)-\w+|orientation)`", text))
        == CODES.keys()
    )


@pytest.mark.parametrize(
    ("document", "folder", "pattern"),
    [
        ("csrc/README.md", "csrc", "*.[chu]*"),
        ("csrc/README.md", "tests/cuda_shim", "*.*"),
        ("training/README.md", "training", "[!_]*.py"),
        ("CONTRIBUTING.md", "trtseg", "[!_]*.py"),
        ("CONTRIBUTING.md", "trtseg", "[!_]*/"),
    ],
)
def test_files(document, folder, pattern):
    text = read(document)
    names = [path.name for path in (ROOT / folder).glob(pattern)]
    assert names
    assert [name for name in names if not re.search(rf"[`/]{re.escape(name)}[`/]", text)] == []


def test_measurements_are_defined():
    """Each key of a report that is measured, and each column of the table of many cases, has its row."""
    labels = np.zeros((6, 9, 9), np.uint8)
    labels[1:5, 1:8, 1:8] = 1
    labels[2:4, 3:6, 3:6] = 2
    geometry = Geometry.from_affine((9, 9, 6), np.diag([-1, -1, 5, 1]))
    volume = Volume(np.zeros((6, 9, 9), np.int16), geometry.canonical_affine(), geometry)
    report = Segmentation.measure(labels, volume).report()
    other = {"schema", "notice", "input", "postprocess", "timings_s", "provenance"}
    case = {*report, *report["lesions"][0], "shape", "spacing_mm"} - other
    comparison = {"sum_of_diameters_mm", "recist_like", "shift_mm", "liver_dice", "status"}
    comparison |= {field.name for field in dataclasses.fields(Side)}
    parts = read("docs/measurements.md").split("\n## ")[1:4]
    for part, names in zip(parts, (case, set(COLUMNS), comparison), strict=True):
        cells = re.findall(r"^\| (`[^|]*) \|", part, re.MULTILINE)
        assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == names
