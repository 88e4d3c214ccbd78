"""The command line as scripts meet it: files, exit codes and messages, with tiny nets for the real ones."""

import gzip
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny import cascade_model
from typer.testing import CliRunner

import trtseg
from trtseg.cli import app
from trtseg.errors import InputError
from trtseg.phantom import abdomen
from trtseg.sample import write_phantom

TRTSEG = [sys.executable, "-m", "trtseg"]
RAS = np.diag([-6.0, -6.0, 20.0, 1.0])


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return cascade_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def phantom_ct(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ct")
    write_phantom(abdomen((12, 64, 64), (20.0, 6.0, 6.0)), folder / "ct.nii.gz", folder / "truth.nii.gz")
    return folder / "ct.nii.gz"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- what comes out


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
    assert done.stderr == ""


def test_default_output_is_in_the_current_folder(here, model, phantom_ct):
    assert run("segment", phantom_ct, "--model", model).exit_code == 0
    assert os.listdir() == ["ct_seg.nii.gz"]


def test_an_existing_folder_is_an_output(here, model, phantom_ct):
    (here / "out").mkdir()
    assert run("segment", phantom_ct, "--model", model, "-o", "out").exit_code == 0
    assert os.listdir("out") == ["ct_seg.nii.gz"]


def test_report_and_preview_lie_beside_the_labels(here, model, phantom_ct):
    done = run("segment", phantom_ct, "--model", model, "-o", "a.b.nii", "--report", "--preview")
    assert done.exit_code == 0, done.output
    assert sorted(os.listdir()) == ["a.b.json", "a.b.nii", "a.b.png"]
    report = json.loads(Path("a.b.json").read_text())
    assert report["liver_ml"] > report["tumour_ml"] > 0
    assert report["timings_s"]["read"] > 0
    assert Path("a.b.png").read_bytes().startswith(b"\x89PNG")
    for text in ("a.b.nii", "a.b.json", "a.b.png", "model tiny", f"{report['liver_ml']:.1f} mL"):
        assert text in done.stdout


def test_several_inputs_share_one_model(here, model, phantom_ct, monkeypatch):
    for name in ("one.nii.gz", "two.nii.gz"):
        shutil.copy(phantom_ct, name)
    loaded = []
    original = trtseg.api.Segmenter.__init__
    monkeypatch.setattr(
        trtseg.api.Segmenter, "__init__", lambda self, *a, **k: (loaded.append(1), original(self, *a, **k))[1]
    )
    done = run("segment", "one.nii.gz", "two.nii.gz", "--model", model, "-o", "new/out", "--report")
    assert done.exit_code == 0, done.output
    assert sorted(os.listdir("new/out")) == [
        "one_seg.json",
        "one_seg.nii.gz",
        "two_seg.json",
        "two_seg.nii.gz",
    ]
    assert loaded == [1]
    assert "one.nii.gz" in done.stdout
    assert "two.nii.gz" in done.stdout


def test_steps_are_passed_on_and_reported(here, model, phantom_ct):
    run("segment", phantom_ct, "--model", model, "-o", "plain.nii.gz", "--report", "--precision", "fp32")
    run(
        *("segment", phantom_ct, "--model", model, "-o", "raw.nii.gz", "--report", "--precision", "fp32"),
        *("--no-largest-liver", "--no-fill-holes", "--min-tumour-ml", "0"),
    )
    plain, raw = (json.loads(Path(p).read_text()) for p in ("plain.json", "raw.json"))
    assert plain["postprocess"] != raw["postprocess"]
    assert raw["provenance"]["precision"] == "fp32"
    assert (np.asarray(nib.load("plain.nii.gz").dataobj) != np.asarray(nib.load("raw.nii.gz").dataobj)).any()


def test_same_command_same_bytes(here, model, phantom_ct):
    labels = []
    for name in ("first.nii.gz", "second.nii.gz"):
        command = [*TRTSEG, "segment", phantom_ct, "--model", model, "-o", name]
        subprocess.run(command, check=True, capture_output=True)
        labels.append(Path(name).read_bytes())
    assert labels[0] == labels[1]


def test_quiet_prints_nothing(here, model, phantom_ct):
    done = run("segment", phantom_ct, "--model", model, "--quiet")
    assert (done.exit_code, done.output) == (0, "")


# --- what cannot be segmented


def image_of(array, affine=RAS):
    return lambda path: nib.save(nib.Nifti1Image(array, affine), path)


def header_with(offset: int, format_: str, *values):
    """A valid file of which some bytes of the header are then replaced."""

    def write(path):
        image_of(np.full((32, 32, 8), -500, np.int16))(path)
        data = bytearray(gzip.decompress(path.read_bytes()))
        new = np.array(values, format_).tobytes()
        data[offset : offset + len(new)] = new
        path.write_bytes(gzip.compress(bytes(data)))

    return write


def truncated(path):
    rng = np.random.default_rng(0)
    image_of(rng.integers(-1000, 1000, (32, 32, 8), np.int16))(path)
    path.write_bytes(path.read_bytes()[:5000])


def ct(dtype=np.float32):
    return abdomen((12, 64, 64), (20.0, 6.0, 6.0)).ct.transpose(2, 1, 0).astype(dtype)


def with_voxel(value):
    array = ct()
    array[30, 30, 5] = value
    return array


SINGULAR = np.diag([1.0, 0.0, 1.0, 1.0])
BAD = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "text": (lambda path: path.write_text("this is not an image\n" * 50), "neither gzip nor NIfTI"),
    "gzipped text": (lambda path: path.write_bytes(gzip.compress(b"text" * 500)), "not NIfTI"),
    "empty": (lambda path: path.write_bytes(b""), "empty|cut off|NIfTI"),
    "truncated": (truncated, "truncated"),
    "NaN": (image_of(with_voxel(np.nan)), "1 of .* NaN or infinite"),
    "infinite": (image_of(with_voxel(-np.inf)), "1 of .* NaN or infinite"),
    "3 channels": (image_of(np.full((32, 32, 8, 3), -500, np.int16)), "3 channels"),
    "frames": (image_of(np.full((32, 32, 8, 2), -500, np.int16)), "2 frames"),
    "2-D": (image_of(np.full((32, 32), -500, np.int16)), "2-D|axes"),
    "zero-size axis": (header_with(40, "<i2", 3, 32, 32, 0), "at least one voxel|empty|promises"),
    "singular affine": (
        header_with(280, "<f4", 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0),
        "affine|spacing|singular",
    ),
    "8 bit": (image_of(np.clip((ct() + 160) / 400 * 255, 0, 255).astype(np.uint8)), "Hounsfield"),
    "MR": (image_of(np.random.default_rng(0).gamma(2, 150, (64, 64, 12)).astype(np.int16)), "Hounsfield"),
    "1 voxel": (image_of(np.full((1, 1, 1), -500, np.int16)), "1 x 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_one_clear_line_and_no_file(here, model, name):
    write, message = BAD[name]
    write(here / "bad.nii.gz")
    before = sorted(os.listdir())
    done = run("segment", "bad.nii.gz", "--model", model, "-o", "out.nii.gz", "--report", "--preview")
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "bad.nii.gz" in line
    assert re.search(message, line), line
    assert done.stdout == ""
    assert sorted(os.listdir()) == before


def test_one_bad_case_of_several_is_3_and_the_others_are_written(here, model, phantom_ct):
    shutil.copy(phantom_ct, "good.nii.gz")
    Path("bad.nii.gz").write_text("text")
    done = run("segment", "bad.nii.gz", "good.nii.gz", "missing.nii.gz", "--model", model, "-o", "out")
    assert done.exit_code == 3, done.output
    assert os.listdir("out") == ["good_seg.nii.gz"]
    bad, missing = done.stderr.splitlines()
    assert "bad.nii.gz" in bad
    assert "missing.nii.gz" in missing
    assert "good.nii.gz" in done.stdout


def test_all_of_several_bad_is_2(here, model):
    done = run("segment", "a.nii.gz", "b.nii.gz", "--model", model, "-o", "out")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 2
    assert os.listdir("out") == []


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
    assert "one.nii.gz" in done.stderr
    assert os.listdir("out") == ["two_seg.nii.gz"]


# --- outputs that cannot be


def refused(message, *arguments):
    done = run("segment", *arguments)
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert message in line, line
    return line


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
    refused("expected a folder", phantom_ct, "other.nii.gz", "-o", "file")
    refused("expected a folder", phantom_ct, "other.nii.gz", "-o", "both.nii.gz")
    refused("cannot be created", phantom_ct, "other.nii.gz", "-o", "file/out")
    refused("is a folder", phantom_ct, "-o", "out")
    assert sorted(os.listdir()) == ["file", "out"]


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.usefixtures("idle")
def test_an_unwritable_folder_is_refused(here, phantom_ct):
    (here / "out").mkdir(mode=0o500)
    refused("cannot be written", phantom_ct, "-o", "out")


def test_a_full_disk_leaves_nothing(here, model, phantom_ct):
    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    command = [*TRTSEG, "segment", phantom_ct, "--model", model, "-o", "out.nii"]
    done = subprocess.run(command, preexec_fn=no_large_files, capture_output=True, text=True, check=False)
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
    [("--device", "tpu"), ("--device", "cuda:99"), ("--precision", "int3"), ("--min-tumour-ml", "-1")],
)
def test_what_is_not_there_is_refused(here, model, phantom_ct, option, value):
    line = refused("got", phantom_ct, "--model", model, option, value)
    assert value in line
    assert os.listdir() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment"],
        ["nonsense"],
        ["segment", "x.nii", "--nonsense"],
        ["segment", "x.nii", "--min-tumour-ml", "much"],
    ],
)
def test_wrong_usage_is_2(arguments):
    assert run(*arguments).exit_code == 2


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


# --- the other commands


def test_help_says_what_it_is_not_for():
    for command in ([], ["segment"], ["info"], ["sample"]):
        done = run(*command, "--help")
        assert done.exit_code == 0
        assert "Not for clinical use" in done.stdout


def test_help_and_version_are_fast():
    code = (
        "import sys; from trtseg.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"numpy", "nibabel", "openvino", "cc3d", "PIL"} & set(shown.split())


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


def test_info_does_not_import_what_it_reports():
    code = "import sys; from trtseg.cli import facts; facts.collect(); print(*sys.modules)"
    names = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"tensorrt", "tensorrt_rtx", "pycuda", "torch"} & set(names)


def test_sample_phantom_prints_where_it_is(here):
    done = run("sample", "--phantom", "-o", "p.nii.gz", "--seed", "3")
    assert done.exit_code == 0, done.output
    assert done.stdout == "p.nii.gz\n"
    assert sorted(os.listdir()) == ["p.nii.gz", "p_labels.nii.gz"]
    assert "not a patient" in done.stderr or "no patient" in done.stderr
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


def test_sample_that_cannot_be_fetched_is_2(here, monkeypatch):
    def fetch(cache_dir=None):
        raise InputError("sample CT: no network; use --phantom")

    monkeypatch.setattr("trtseg.sample.fetch", fetch)
    done = run("sample", "-o", "mine.nii.gz")
    assert done.exit_code == 2
    assert "--phantom" in done.stderr
    assert os.listdir() == []


def test_progress_is_shown_to_people_only(here, model, phantom_ct):
    pty = pytest.importorskip("pty")
    command = [str(a) for a in (*TRTSEG, "segment", phantom_ct, "--model", model)]
    leader, follower = pty.openpty()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, check=True)
    os.close(follower)
    assert b"ct.nii.gz" in os.read(leader, 1 << 16)
    os.close(leader)
    assert b"liver" in done.stdout
