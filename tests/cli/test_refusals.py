"""``trtseg segment`` where output, model, device or usage are wrong, and where it is stopped."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import refused, run, run_alone, run_without_privileges

import trtseg.api


def no_segmentation(*args, **kwargs):
    pytest.fail("outputs are checked before the work")


@pytest.fixture
def idle(monkeypatch):
    monkeypatch.setattr(trtseg.api.Segmenter, "__init__", no_segmentation)


@pytest.mark.usefixtures("idle")
def test_outputs_are_checked_before_the_work(here, phantom_ct):
    (here / "file").write_text("")
    (here / "out" / "ct_seg.nii.gz").mkdir(parents=True)
    refused("does not exist", phantom_ct, "-o", "missing/out.nii.gz")
    refused("cannot be written", phantom_ct, "-o", "file/out.nii.gz")
    refused(".nii.gz or .nii", phantom_ct, "-o", "out.mha")
    refused(".nii.gz or .nii", phantom_ct, "-o", "no_such_folder")
    refused("cannot be created", phantom_ct, "other.nii.gz", "-o", "file")
    refused("expected a folder", phantom_ct, "other.nii.gz", "-o", "both.nii.gz")
    refused("cannot be created", phantom_ct, "other.nii.gz", "-o", "file/out")
    refused("is a folder", phantom_ct, "-o", "out")
    os.symlink("loop", "loop")
    refused("cannot be created", phantom_ct, "other.nii.gz", "-o", "loop")
    refused("Too many levels of symbolic links", phantom_ct, "-o", "loop/out.nii.gz")
    refused("the name is too long", phantom_ct, "-o", "n" * 249 + ".nii.gz")
    refused("File name too long", phantom_ct, "other.nii.gz", "-o", "new/" + "n" * 256)
    refused("the name is too long", "n" * 248 + ".nii.gz", "other.nii.gz", "-o", "new/out")
    assert sorted(os.listdir()) == ["file", "loop", "out"]


@pytest.mark.usefixtures("idle")
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where even root cannot write")
def test_a_folder_that_nobody_can_write_is_refused(phantom_ct):
    refused("cannot be written", phantom_ct, "-o", "/proc/out.nii.gz")


@pytest.mark.usefixtures("idle")
def test_inputs_are_never_overwritten(here, phantom_ct):
    shutil.copy(phantom_ct, "ct.nii.gz")
    os.symlink("ct.nii.gz", "link.nii.gz")
    for name in ("ct.nii.gz", "./ct.nii.gz", here / "ct.nii.gz", "link.nii.gz"):
        refused("is the input ct.nii.gz", "ct.nii.gz", "-o", name)
    shutil.copy(phantom_ct, "a_seg.nii.gz")
    refused("is the input a_seg.nii.gz", "a.nii.gz", "a_seg.nii.gz")
    shutil.copy(phantom_ct, "ct_seg.json")  # named oddly, but an input
    refused("is the input ct_seg.json", "ct.nii.gz", "ct_seg.json", "--report")
    assert Path("ct.nii.gz").read_bytes() == phantom_ct.read_bytes()


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    "pair", [("a/ct.nii.gz", "b/ct.nii.gz"), ("ct.nii", "ct.nii.gz"), ("ct.nii", "ct.nii")]
)
def test_two_inputs_for_one_output_are_refused(here, pair):
    line = refused("would both be written to out/ct_seg.nii.gz", *pair, "-o", "out")
    assert all(name in line for name in pair)
    assert os.listdir() == []


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o500, 0o600], ids=oct)
def test_a_folder_that_may_not_be_written_or_searched_is_refused(here, model, phantom_ct, mode):
    (here / "locked").mkdir(mode=mode)
    for rest in (
        [phantom_ct, "-o", "locked"],
        [phantom_ct, "-o", "locked/out.nii.gz"],
        [phantom_ct, "-o", "locked/out.nii.gz", "--report"],
        [phantom_ct, "other.nii.gz", "-o", "locked"],
        [phantom_ct, "other.nii.gz", "-o", "locked/new"],
    ):
        done = run_without_privileges("segment", *rest, "--model", model)
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert "permission" in line.lower(), line
    (here / "locked").chmod(0o700)
    assert os.listdir("locked") == []


def test_a_folder_that_may_be_written_but_not_listed_will_do(here, model, phantom_ct):
    (here / "box").mkdir(mode=0o300)
    done = run_without_privileges("segment", phantom_ct, "--model", model, "-o", "box")
    assert done.returncode == 0, done.stderr
    assert os.listdir("box") == ["ct_seg.nii.gz"]


def test_a_full_disk_leaves_nothing(here, model, phantom_ct):
    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    for rest in ([phantom_ct, "-o", "out.nii"], [phantom_ct, "other.nii.gz", "-o", "new/out"]):
        done = run_alone("segment", *rest, "--model", model, "--preview", preexec_fn=no_large_files)
        assert done.returncode == 2, done.stderr
        assert "no space left" in done.stderr
        assert os.listdir() == []


@pytest.mark.parametrize("kind", ["replace", "keep"])
def test_an_existing_output_is_replaced_only_by_a_complete_one(here, model, phantom_ct, kind):
    Path("out.nii.gz").write_text("old")
    source = phantom_ct if kind == "replace" else "missing.nii.gz"
    run("segment", source, "--model", model, "-o", "out.nii.gz")
    assert (Path("out.nii.gz").read_bytes() == b"old") == (kind == "keep")


# --- models, devices, usage


def test_an_unknown_model_is_refused(here, phantom_ct):
    refused("'nonsense'", phantom_ct, "--model", "nonsense")
    refused("'nonsense'", phantom_ct, "other.nii.gz", "-o", "new/out", "--model", "nonsense")
    assert os.listdir() == []


def test_a_tampered_net_is_refused(here, model, phantom_ct):
    shutil.copytree(model, "tampered")
    net = Path("tampered/tumour.onnx")
    net.write_bytes(net.read_bytes().replace(b"logits", b"logitz"))
    line = refused("SHA-256", phantom_ct, "--model", "tampered", "-o", "out.nii.gz")
    assert "tumour.onnx" in line
    assert os.listdir() == ["tampered"]


def test_a_damaged_manifest_is_refused(here, model, phantom_ct):
    shutil.copytree(model, "damaged")
    Path("damaged/model.json").write_text("{")
    refused("not JSON", phantom_ct, "--model", "damaged")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--device", "tpu"), ("--device", "cuda:99"), ("--precision", "int3")),
        *(("--min-tumour-ml", "-1"), ("--min-tumour-ml", "nan")),
    ],
)
def test_what_is_not_there_is_refused(here, model, phantom_ct, option, value):
    line = refused("got", phantom_ct, "other.nii.gz", "-o", "new", "--model", model, option, value)
    assert value in line
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["segment"], "Missing argument"),
        (["nonsense"], "No such command 'nonsense'"),
        (["segment", "x.nii", "--nonsense"], "No such option: --nonsense"),
        (["segment", "x.nii", "--min-tumour-ml", "much"], "Invalid value for '--min-tumour-ml'"),
    ],
)
def test_wrong_usage_is_2_and_the_last_line_says_what(arguments, message):
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]


# --- interrupted


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_half_written(here, model, phantom_ct, sent, code):
    script = """
import sys, time
from trtseg import cli, result
def stuck(path, *rest):
    path.write_bytes(b"half of the labels")
    print("writing", flush=True)
    time.sleep(60)
result.write_nifti = stuck
sys.argv[0] = "trtseg"
cli.main()
"""
    command = [sys.executable, "-c", script, "segment", phantom_ct, "--model", model, "-o", "out.nii.gz"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        assert len(os.listdir()) == 1, "the temporary file"
        process.send_signal(sent)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert os.listdir() == []
