"""``trtseg info``, ``trtseg sample`` and help."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from commands import run, run_alone, run_without_privileges

import trtseg
from trtseg.cli import app
from trtseg.io import load
from trtseg.phantom import abdomen


def test_help_says_what_it_is_not_for_and_exit_codes():
    group = typer.main.get_command(app)
    names = ["segment", "evaluate", "compare", "info", "sample", "build", "serve", "engines"]
    assert list(group.commands) == names
    commands = [[], *([name] for name in names)]
    commands += [["engines", name] for name in group.commands["engines"].commands]
    for command in commands:
        done = run(*command, "--help")
        assert done.exit_code == 0
        assert "Not for clinical use" in done.stdout
        assert ("Exit codes" in done.stdout) == (command[-1:] in (["segment"], ["evaluate"], ["verify"]))


@pytest.mark.parametrize("group", [(), ("engines",)])
def test_the_list_of_commands_is_read_whole_in_a_narrow_terminal(monkeypatch, group):
    monkeypatch.setenv("COLUMNS", "60")
    done = run(*group, "--help")
    commands = done.stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(commands) == (4 if group else 8)
    assert all(line.endswith(".") and not line.endswith("...") for line in commands), done.stdout


def test_help_and_version_are_fast():
    code = (
        "import sys; from trtseg.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"numpy", "nibabel", "openvino", "PIL"} & set(shown.split())


def test_version():
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"trtseg {trtseg.__version__}\n")


def test_info_says_what_works_here():
    done = run("info", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["trtseg"] == trtseg.__version__
    assert found["runtimes"]["openvino"]
    assert {"cpu", "cuda"} <= {device["name"] for device in found["devices"]}
    assert "cuda" in found["extension"]
    assert all(entry["files"] == "intact" for entry in found["models"])
    text = run("info").stdout
    for word in (
        trtseg.__version__,
        "openvino",
        "tensorrt_rtx",
        "device cpu",
        "works",
        "Not for clinical use",
    ):
        assert word in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for start in (
        f"trtseg {trtseg.__version__}",
        f"python {found['python']}, ",
        f"processor {found['cpu']['name']}, {found['cpu']['cores']} cores, ",
        "extension with",
        *(f"{module} {version or 'not installed'}" for module, version in found["runtimes"].items()),
        *(
            f"device {device['name']} {'works' if device['works'] else 'does not work'}: "
            for device in found["devices"]
        ),
        *(f"model {model['name']} {model['version']}, files intact" for model in found["models"]),
        f"engines {len(found['engines'])} in your cache",
    ):
        assert any(line.startswith(start) for line in lines), start


def test_info_does_not_import_what_it_reports():
    code = "import sys; from trtseg.cli import info; info.collect(); print(*sys.modules)"
    names = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"tensorrt", "tensorrt_rtx", "pycuda", "torch"} & set(names)


def test_sample_phantom_prints_where_it_is(here):
    done = run("sample", "--phantom", "-o", "p.nii.gz", "--seed", "3")
    assert done.exit_code == 0, done.output
    assert done.stdout == "p.nii.gz\n"
    assert sorted(os.listdir()) == ["p.nii.gz", "p_labels.nii.gz"]
    assert "no patient" in done.stderr
    (told,) = load("p.nii.gz").warnings  # which nobody is to take for a fault
    assert told.code in done.stderr
    assert (np.asarray(nib.load("p.nii.gz").dataobj) == abdomen(seed=3).ct.transpose(2, 1, 0)).all()


def test_sample_tells_where_the_ct_comes_from(here, monkeypatch):
    def fetch(cache_dir=None):
        path = here / "cached.nii.gz"
        path.write_bytes(b"ct")
        return path

    monkeypatch.setattr("trtseg.sample.fetch", fetch)
    done = run("sample")
    assert done.stdout == f"{here / 'cached.nii.gz'}\n"
    assert "Apache-2.0" in done.stderr
    done = run("sample", "-o", "mine.nii.gz")
    assert done.stdout == "mine.nii.gz\n"
    assert Path("mine.nii.gz").read_bytes() == b"ct"


def test_sample_in_folders_that_may_not_be_entered_is_2(here):
    (here / "locked").mkdir(mode=0o600)
    for rest, environment in (
        (["--phantom", "-o", "locked"], {}),
        ([], {"TRTSEG_CACHE": "locked"}),
    ):
        done = run_without_privileges("sample", *rest, env={**os.environ, **environment})
        assert done.returncode == 2, done.stderr
        assert "permission" in done.stderr.splitlines()[-1].lower()
        assert done.stdout == ""


def test_sample_in_a_cache_that_may_not_be_written_names_the_way_to_another(here):
    (here / "locked").mkdir(mode=0o555)
    done = run_without_privileges("sample", env={**os.environ, "TRTSEG_CACHE": "locked"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].endswith("Set TRTSEG_CACHE to a folder of your own"), done.stderr


def test_sample_prints_the_very_bytes_of_a_name(here):
    name = b"caf\xe9.nii"
    done = run_alone("sample", "--phantom", "-o", name, text=False)
    assert (done.returncode, done.stdout) == (0, name + b"\n")


@pytest.mark.parametrize("name", ["[old]", "[/a]", ":x:"])
def test_a_name_is_printed_as_it_is_and_no_markup(here, name):
    Path(name).mkdir(parents=True)
    done = run("engines", "list", name)
    assert (done.exit_code, done.stdout) == (0, f"0 engines in {name}\nNot for clinical use.\n")


@pytest.mark.parametrize("arguments", [["info"], ["--version"], ["--help"], ["engines", "list", "--help"]])
def test_what_cannot_be_printed_is_2(here, arguments):
    with Path("/dev/full").open("w") as full:
        done = run_alone(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: standard output: cannot be written (No space left")
