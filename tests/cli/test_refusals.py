"""``trtseg segment`` on what is no CT, with wrong outputs, models, devices or usage, and stopped by a signal."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import but_warnings, refused, run, run_alone, run_without_privileges

import trtseg.api

RAS = np.diag([-6.0, -6.0, 20.0, 1.0])
WITH_ALL = ("--report", "--preview")


# --- inputs (tests/test_nifti.py has every way in which a file can be bad)


def image_of(array):
    return lambda path: nib.save(nib.Nifti1Image(array, RAS), path)


def truncated(path):
    image_of(np.random.default_rng(0).integers(-1000, 1000, (32, 32, 8), np.int16))(path)
    path.write_bytes(path.read_bytes()[:5000])


COHORT = ("cohort.csv", "cohort.jsonl")  # beside the results of several cases
BAD = {
    "missing": (lambda path: None, "no such file; check the path"),
    "truncated": (truncated, "ended before the end-of-stream marker was reached); the file is truncated"),
    "MR": (
        image_of(np.random.default_rng(0).gamma(2, 150, (64, 64, 12)).astype(np.int16)),
        "not in Hounsfield units: values run from 0 to 2217 and 0 of 49152 voxels are at or below -50",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_one_clear_line_and_no_file(here, model, name):
    write, message = BAD[name]
    write(here / "bad.nii.gz")
    before = sorted(os.listdir())
    line = refused(message, "bad.nii.gz", "--model", model, "-o", "out.nii.gz", *WITH_ALL)
    assert line.startswith("error: bad.nii.gz: ")
    assert sorted(os.listdir()) == before


def test_one_bad_case_of_several_is_3_and_the_others_are_written(here, model, phantom_ct):
    shutil.copy(phantom_ct, "good.nii.gz")
    Path("bad.nii.gz").write_text("text")
    done = run("segment", "bad.nii.gz", "good.nii.gz", "missing.nii.gz", "--model", model, "-o", "out")
    assert done.exit_code == 3, done.output
    assert sorted(os.listdir("out")) == [*COHORT, "good_seg.nii.gz"]
    bad, missing = but_warnings(done.stderr).splitlines()
    assert "bad.nii.gz" in bad
    assert "missing.nii.gz" in missing
    assert "good.nii.gz" in done.stdout


def test_all_of_several_bad_is_2_and_leaves_no_folder(here, model):
    done = run("segment", "a.nii.gz", "b.nii.gz", "--model", model, "-o", "new/out")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 2
    assert os.listdir() == []


def test_a_bug_shows_its_traceback_and_the_others_go_on(here, model, phantom_ct, monkeypatch):
    for name in ("one.nii.gz", "two.nii.gz"):
        shutil.copy(phantom_ct, name)
    original = trtseg.api.Segmenter.segment

    def broken(self, volume, **kwargs):
        if volume.name == "one.nii.gz":
            raise ZeroDivisionError("a bug")
        return original(self, volume, **kwargs)

    monkeypatch.setattr(trtseg.api.Segmenter, "segment", broken)
    done = run("segment", "one.nii.gz", "two.nii.gz", "--model", model, "-o", "out")
    assert done.exit_code == 1
    assert "ZeroDivisionError: a bug" in done.stderr
    assert "one.nii.gz: unexpected, please report this" in done.stderr
    assert sorted(os.listdir("out")) == [*COHORT, "two_seg.nii.gz"]


def test_an_input_that_may_not_be_read_does_not_stop_the_others(here, model, phantom_ct):
    for name in ("good.nii.gz", "mine.nii.gz"):
        shutil.copy(phantom_ct, name)
    (here / "mine.nii.gz").chmod(0)
    (here / "locked").mkdir()
    shutil.copy(phantom_ct, "locked/in.nii.gz")
    (here / "locked").chmod(0o600)
    inputs = ("mine.nii.gz", "locked/in.nii.gz", "good.nii.gz")
    done = run_without_privileges("segment", *inputs, "--model", model, "-o", "out")
    assert done.returncode == 3, done.stderr
    assert but_warnings(done.stderr).splitlines() == [
        f"error: {name}: no permission to read it; change the file's mode or owner" for name in inputs[:2]
    ]
    assert sorted(os.listdir("out")) == [*COHORT, "good_seg.nii.gz"]
    done = run_without_privileges("segment", "locked/in.nii.gz", "--model", model)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


# --- outputs (tests/test_cohort.py has every way in which they can be wrong)


def test_outputs_are_checked_before_the_work(here, phantom_ct, monkeypatch):
    def no_segmenter(*arguments, **options):
        pytest.fail("the model is loaded before outputs are checked")

    monkeypatch.setattr(trtseg.api.Segmenter, "__init__", no_segmenter)
    refused("--output: got out.hdr; expected a name ending in .nii.gz, .nii, ", phantom_ct, "-o", "out.hdr")
    refused("missing does not exist; create it first", phantom_ct, "-o", "missing/out.nii.gz")
    several = (
        f"--output: got the file o.nii for 2 inputs ({phantom_ct}, b.nii); expected a folder, or one input"
    )
    refused(several, phantom_ct, "b.nii", "-o", "o.nii")
    shutil.copy(phantom_ct, "ct.nii.gz")
    refused("--output: ct.nii.gz is the input ct.nii.gz", "ct.nii.gz", "-o", "ct.nii.gz")
    refused(
        "ct.nii and a/ct.nii.gz would both be written to new/ct_seg", "a/ct.nii", "a/ct.nii.gz", "-o", "new"
    )
    assert os.listdir() == ["ct.nii.gz"]
    assert Path("ct.nii.gz").read_bytes() == phantom_ct.read_bytes()


@pytest.mark.parametrize("mode", [0o500, 0o600], ids=oct)
def test_a_folder_that_may_not_be_written_or_searched_is_refused(here, model, phantom_ct, mode):
    (here / "locked").mkdir(mode=mode)
    for rest in (
        [phantom_ct, "-o", "locked/out.nii.gz", "--report"],
        [phantom_ct, "other.nii.gz", "-o", "locked/new"],
    ):
        done = run_without_privileges("segment", *rest, "--model", model)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert "permission" in line.lower(), line
    (here / "locked").chmod(0o700)
    assert os.listdir("locked") == []


def test_a_full_disk_leaves_nothing(here, model, phantom_ct):
    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    for rest in ([phantom_ct, "-o", "out.nii"], [phantom_ct, "other.nii.gz", "-o", "new/out"]):
        done = run_alone("segment", *rest, "--model", model, "--preview", preexec_fn=no_large_files)
        assert done.returncode == 2, done.stderr
        assert "no space left" in done.stderr
        assert os.listdir() == []


# --- models, devices, usage


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--model", "nonsense"), ("--device", "tpu"), ("--device", "cuda:99"), ("--precision", "int3")),
        *(("--min-tumour-ml", "-1"), ("--min-tumour-ml", "nan")),
    ],
)
def test_what_is_not_there_is_refused(here, model, phantom_ct, option, value):
    line = refused("got", phantom_ct, "other.nii.gz", "-o", "new", "--model", model, option, value)
    assert value in line
    assert os.listdir() == []


def test_a_node_is_refused_what_its_device_cannot(here, model):
    """What `auto` is, is found out at the start."""
    Path("node.toml").write_text('precision = "fp16"\n')
    Path("out").mkdir()
    done = run("serve", "--config", "node.toml", "--folder", "out", "--store", "store", "--model", model)
    assert done.exit_code == 2, done.output
    assert done.stderr.splitlines()[-1].startswith(
        "error: precision: got 'fp16'; on the CPU it is 'auto', 'int8'"
    )
    assert not Path("store").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment"], "Missing argument"),
        (["nonsense"], "No such command 'nonsense'"),
        (["segment", ""], "got an empty path"),
        (["evaluate", "x.nii", ""], "got an empty path"),
        (["compare", "", "x.nii"], "got an empty path"),
        (["segment", "x.nii", "-o", ""], "Invalid value for '--output' / '-o': got an empty path"),
        (["sample", "--phantom", "-o", ""], "got an empty path"),
        (["engines", "clear", ""], "got an empty path"),
        (["serve", "--store", ""], "got an empty path"),
        (["serve", "--folder", ""], "got an empty path"),
        (["segment", "x.nii", "--nonsense"], "No such option"),
        (["segment", "x.nii", "--min-tumour-ml", "much"], "Invalid value for '--min-tumour-ml'"),
    ],
)
def test_wrong_usage_is_2_and_the_last_line_says_what(here, arguments, message):
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]


# --- signals

STUCK = """
import importlib.util, os, sys, time
from trtseg import api, cli
def stuck(*arguments, progress=lambda fraction: None, **others):
    print("stuck", flush=True)
    for _ in range(600):
        time.sleep(0.1)
        progress(0.5)
class Last:
    def __del__(self):
        stuck()
def stuck_twice(*_):
    Last()  # Python ends what is raised there
    stuck()
class Module:
    def find_spec(self, name, *_):
        return importlib.util.spec_from_loader(name, self) if name == "of_others" else None
    def create_module(self, _):
        pass
    def exec_module(self, _):
        print("stuck", flush=True)
        try:
            time.sleep(1)
        except BaseException:
            pass
def stuck_after_an_import(*_):
    import of_others
    stuck()
sys.meta_path.append(Module())
while_ = sys.argv.pop(1)
stuck_in = {"writing": stuck, "finalising": stuck_twice, "importing": stuck_after_an_import}
if while_ in stuck_in:
    os.fsync = stuck_in[while_]
else:
    api.Segmenter.segment = stuck
sys.argv[0] = "trtseg"
cli.main()
"""


@pytest.mark.parametrize(
    ("sent", "code", "while_"),
    [
        (signal.SIGINT, 130, "writing"),
        (signal.SIGTERM, 143, "writing"),
        (signal.SIGTERM, 143, "segmenting"),
        (signal.SIGINT, 130, "finalising"),
        (signal.SIGTERM, 143, "finalising"),
        (signal.SIGINT, 130, "importing"),
        (signal.SIGTERM, 143, "importing"),
    ],
)
def test_a_signal_leaves_nothing_half_written(here, model, phantom_ct, sent, code, while_):
    shutil.copy(phantom_ct, "b.nii.gz")
    arguments = ["segment", phantom_ct, "b.nii.gz", "--model", model, "-o", "out"]
    command = [sys.executable, "-c", STUCK, while_, *arguments]
    heard = {
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    }  # a shell's background ignores it
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heard
    ) as process:
        assert process.stdout.readline() == "stuck\n"
        assert len(os.listdir("out")) == (while_ != "segmenting"), "the temporary file"
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert stderr == ("error: interrupted; nothing is left half-written\n" if code == 130 else "")
    assert os.listdir() == ["b.nii.gz"]


def test_an_interruption_before_the_command_has_begun_is_no_traceback(here):
    early = """
import signal
from trtseg import cli
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background ignores it
cli.app = lambda: signal.raise_signal(signal.SIGINT)
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", early], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")
