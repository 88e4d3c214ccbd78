"""``trtseg segment``: what comes out, and where it lies."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import but_warnings, run, run_alone, stderr_on_a_terminal

import trtseg


def test_one_input_gives_labels_on_its_grid(here, model, phantom_ct):
    done = run("segment", phantom_ct, "--model", model, "-o", "out.nii.gz")
    assert done.exit_code == 0, done.output
    image, ct = nib.load("out.nii.gz"), nib.load(phantom_ct)
    assert image.shape == ct.shape
    assert np.allclose(image.affine, ct.affine)
    assert set(np.unique(image.dataobj)) == {0, 1, 2}
    assert os.listdir() == ["out.nii.gz"]
    assert "liver" in done.stdout
    assert "Not for clinical use" in done.stdout
    assert but_warnings(done.stderr) == ""


def test_the_shipped_model_is_the_default(here, phantom_ct):
    done = run("segment", phantom_ct, "--report", "--preview")
    assert done.exit_code == 0, done.output
    assert sorted(os.listdir()) == ["ct_seg.json", "ct_seg.nii.gz", "ct_seg.png"]
    report = json.loads(Path("ct_seg.json").read_text())
    shipped = json.loads((Path(trtseg.__file__).parent / "models/default/model.json").read_text())
    assert report["provenance"]["model"] == "default"
    assert report["provenance"]["sha256"].items() <= shipped["sha256"].items()
    assert nib.load("ct_seg.nii.gz").shape == nib.load(phantom_ct).shape


def test_report_and_preview_lie_beside_the_labels(here, model, phantom_ct):
    done = run("segment", phantom_ct, "--model", model, "-o", "a.b.nii", "--report", "--preview")
    assert done.exit_code == 0, done.output
    assert sorted(os.listdir()) == ["a.b.json", "a.b.nii", "a.b.png"]
    report = json.loads(Path("a.b.json").read_text())
    assert report["liver_ml"] > report["tumour_ml"] > 0
    assert report["timings_s"]["read"] > 1e-4  # of the file, not of handing the volume over
    assert Path("a.b.png").read_bytes().startswith(b"\x89PNG")
    for text in ("a.b.nii", "a.b.json", "a.b.png", "model tiny", f"{report['liver_ml']:.1f} mL"):
        assert text in done.stdout


@pytest.mark.parametrize("given", ["scans", "scans/*/ct.nii.gz", "scans.csv"])
@pytest.mark.parametrize("jobs", [[], ["--jobs", "1"]])
def test_the_only_ct_of_a_folder_a_pattern_or_a_list_goes_to_the_file(here, model, phantom_ct, given, jobs):
    (here / "scans/one").mkdir(parents=True)
    shutil.copy(phantom_ct, here / "scans/one/ct.nii.gz")
    (here / "scans.csv").write_text("input\nscans/one/ct.nii.gz\n")
    run("segment", given, "-o", "seg.nii.gz", "--html", "--model", model, "-q", *jobs)
    assert (here / "seg.nii.gz").is_file()
    assert (here / "seg.html").is_file()
    assert not (here / "index.html").exists()


def test_the_search_is_passed_on_and_reported(here, model, phantom_ct):
    done = run("segment", phantom_ct, "--model", model, "-o", "out.nii.gz", "--report", "--search-mm", "50")
    assert done.exit_code == 0, done.output
    made = json.loads(Path("out.json").read_text())["provenance"]
    assert (made["search_mm"], made["labelled_slices"]) == (50, 12)
    assert "on slices 50 mm apart, 12 of 12 slices labelled" in done.stdout
    done = run("segment", phantom_ct, "--model", model, "-o", "other.nii.gz", "--search-mm", "5")
    assert (done.exit_code, os.path.exists("other.nii.gz")) == (2, False)
    assert "error: search_mm: got 5.0; expected 0 (label all slices), or 10 to 50 mm" in done.stderr


def test_steps_are_passed_on_and_reported(here, model, phantom_ct):
    run("segment", phantom_ct, "--model", model, "-o", "plain.nii.gz", "--report", "--precision", "fp32")
    run(
        *("segment", phantom_ct, "--model", model, "-o", "raw.nii.gz", "--report", "--precision", "fp32"),
        *("--median-mm", "0", "--no-largest-liver", "--no-fill-holes", "--min-tumour-ml", "0"),
    )
    plain, raw = (json.loads(Path(p).read_text()) for p in ("plain.json", "raw.json"))
    assert plain["postprocess"] != raw["postprocess"]
    assert raw["provenance"]["precision"] == "fp32"
    assert (np.asarray(nib.load("plain.nii.gz").dataobj) != np.asarray(nib.load("raw.nii.gz").dataobj)).any()


def test_same_command_same_bytes(here, model, phantom_ct):
    labels = []
    for name in ("first.nii.gz", "second.nii.gz"):
        run_alone("segment", phantom_ct, "--model", model, "-o", name, check=True)
        labels.append(Path(name).read_bytes())
    assert labels[0] == labels[1]


def test_quiet_prints_nothing_but_warnings(here, model, phantom_ct):
    done = run("segment", phantom_ct, "--model", model, "--quiet")
    assert (done.exit_code, done.stdout, but_warnings(done.stderr)) == (0, "", "")
    assert "The liver is not whole" in done.stderr


def test_progress_is_shown_to_people_only(here, model, phantom_ct):
    shutil.copy(phantom_ct, "b.nii.gz")
    shown = stderr_on_a_terminal("segment", phantom_ct, "b.nii.gz", "--model", model, "-o", "out")
    assert "2/2 b.nii.gz: " in shown


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_table_that_cannot_be_printed_is_no_failure(here, model, phantom_ct, buffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
    with Path("/dev/full").open("w") as full:
        done = run_alone(
            *("segment", phantom_ct, "--model", model),
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment,
        )
    assert done.returncode == 0, done.stderr
    assert (
        but_warnings(done.stderr) == "error: standard output: cannot be written (No space left on device)\n"
    )
    assert os.listdir() == ["ct_seg.nii.gz"]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        *(("Größe", "ascii"), ("肝臓", "utf-8"), (os.fsdecode(b"caf\xe9"), "ascii"), ("two\nlines", "utf-8")),
    ],
)
def test_any_name_can_be_reported(here, model, phantom_ct, name, encoding):
    shutil.copy(phantom_ct, f"{name}.nii.gz")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = run_alone(
        *("segment", f"{name}.nii.gz", "--model", model, "--report", "--preview"), env=environment, text=False
    )
    assert (done.returncode, but_warnings(done.stderr.decode())) == (0, "")
    assert b"liver" in done.stdout
    assert sorted(os.listdir()) == [
        f"{name}{end}" for end in (".nii.gz", "_seg.json", "_seg.nii.gz", "_seg.png")
    ]
    report = json.loads(Path(f"{name}_seg.json").read_text("utf-8"))
    assert report["input"]["name"] == ("caf?.nii.gz" if name.startswith("caf") else f"{name}.nii.gz")
