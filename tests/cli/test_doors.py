"""Formats, layouts, pipes, folders and poor surroundings: each is taken, or refused in one sentence."""

import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import but_warnings, feed, run, run_alone, run_without_privileges

import trtseg
from trtseg import resources
from trtseg.errors import OutOfMemoryError
from trtseg.io import load, read_labels
from trtseg.io.find import is_changed

# --- surroundings


def test_no_home_is_no_harm_but_for_the_cache(here, model, phantom_ct):
    play = (
        "import pwd, sys\n"
        "def getpwuid(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = getpwuid\n"
        "from trtseg.cli import main\n"
        "main()"
    )
    bare = ("HOME", "TRTSEG_CACHE", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in bare}
    for command, code in (
        (["segment", phantom_ct, "--model", model], 0),
        (["info"], 0),
        (["engines", "list"], 2),
    ):
        done = subprocess.run(
            [sys.executable, "-c", play, *map(str, command)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        told = "error: cache: this user has no home folder; set TRTSEG_CACHE to a folder of your own\n"
        assert but_warnings(done.stderr) == (told if code else "")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_a_lost_terminal_leaves_nothing_half_written(here, model, sent, code):
    os.mkfifo("ct.nii.gz")
    ours = signal.signal(
        signal.SIGHUP, signal.SIG_DFL
    )  # a process keeps what its parent ignores, as under nohup
    command = [
        sys.executable,
        "-m",
        "trtseg",
        "segment",
        "ct.nii.gz",
        "--model",
        str(model),
        "-o",
        "out.nii.gz",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        with feed(process, "ct.nii.gz"):  # it has begun to read
            process.send_signal(sent)
            threading.Event().wait(0.2)
        assert process.wait(20) == code
    signal.signal(signal.SIGHUP, ours)
    assert os.listdir() == ["ct.nii.gz"]


def test_a_folder_that_cannot_be_written_is_one_line(here, model, phantom_ct):
    Path("locked").mkdir(mode=0o555)
    done = run_without_privileges("segment", str(phantom_ct), "--model", str(model), "-o", "locked")
    assert done.returncode == 2
    assert "locked" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_too_little_memory_is_one_sentence_before_the_work(here, model, monkeypatch):
    image = nib.Nifti1Image(np.zeros((64, 64, 64), np.int16), np.diag([-3.0, -3, 3, 1]))
    nib.save(image, "big.nii")
    monkeypatch.setattr(resources, "free_memory", lambda: 1 << 18)
    with pytest.raises(OutOfMemoryError, match=r"^big\.nii: needs about 1 MB of memory, and 0 MB are free; "):
        load("big.nii")


@pytest.mark.parametrize(
    ("error", "is_lack"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/data/allocated/ct.zip"), False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOMEM, ""), True),
        (RuntimeError("load model from /data/allocated/liver.onnx failed: File doesn't exist"), False),
        (RuntimeError("/src/arena.cc:376 Failed to allocate memory for requested buffer of size 8"), True),
        (RuntimeError("std::bad_alloc"), True),
        (ImportError("/opt/alloc/lib.so: failed to map segment from shared object"), True),
        (ValueError("out of memory"), False),
    ],
)
def test_the_name_of_a_file_is_no_lack_of_memory(error, is_lack):
    assert resources.is_lack_of_memory(error) is is_lack


def test_processors_and_memory_are_those_of_the_cgroup(tmp_path):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/self/cgroup", "0::/job/step\n")
    write("proc/meminfo", "MemAvailable:  8000000 kB\nSwapFree: 0 kB\n")
    write("sys/fs/cgroup/job/cpu.max", "50000 100000\n")
    write("sys/fs/cgroup/job/step/cpu.max", "max 100000\n")
    write("sys/fs/cgroup/job/memory.max", "3000000\n")
    write("sys/fs/cgroup/job/memory.current", "1000000\n")
    write("sys/fs/cgroup/job/memory.stat", "inactive_file 200000\nactive_file 0\n")
    assert resources.available_cpus(tmp_path) == 1
    assert resources.free_memory(tmp_path) == 2_200_000


@pytest.mark.parametrize(
    ("quota", "cpus"), [("-1", 8), ("0", 8), ("250000", 3), ("90000000", 8), ("1000", 1)]
)
def test_processors_and_memory_are_those_of_cgroups_of_the_first_version(tmp_path, monkeypatch, quota, cpus):
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: range(8), raising=False)
    files = {
        "proc/self/cgroup": "7:pids:/job\n5:memory:/job\n4:cpu,cpuacct:/job\n0::/other\n",
        "proc/meminfo": "MemAvailable:  8000 kB\nSwapFree: 1000 kB\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": f"{quota}\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/pids/job/cpu.max": "1000 100000\n",  # not where these limits lie
        "sys/fs/cgroup/pids/job/memory.max": "1\n",
        "sys/fs/cgroup/pids/job/memory.current": "0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert resources.available_cpus(tmp_path) == cpus
    assert resources.free_memory(tmp_path) == 9_216_000
    job = tmp_path / "sys/fs/cgroup/memory/job"
    job.mkdir(parents=True)
    (job / "memory.limit_in_bytes").write_text("3000000\n")
    (job / "memory.usage_in_bytes").write_text("1000000\n")
    assert resources.free_memory(tmp_path) == 2_000_000
    (job / "memory.stat").write_text("cache 5\ntotal_inactive_file 200000\ntotal_active_file 30000\n")
    assert resources.free_memory(tmp_path) == 2_230_000
    (job / "memory.usage_in_bytes").write_text("4000000\n")  # more than was allowed
    assert resources.free_memory(tmp_path) == 0


# --- arrays and files


@pytest.mark.parametrize(
    "lay",
    [
        lambda a: a.astype(a.dtype.newbyteorder("<")),
        lambda a: a.astype(">i2"),
        lambda a: a.astype(">f4"),
        np.asfortranarray,
        np.ascontiguousarray,
        lambda a: np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1],
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: a[None],
        lambda a: a[..., None],
        lambda a: a[None, ..., None, None],
    ],
)
def test_an_array_of_any_order_and_layout_is_the_same_ct(phantom_ct, lay):
    image = nib.load(phantom_ct)
    array = np.asarray(image.dataobj)
    laid = lay(array)
    volume = load(laid, affine=image.affine)
    assert (volume.array == load(phantom_ct).array).all()
    assert volume.geometry.restore(volume.array).shape == laid.shape


def test_a_pipe_and_names_that_lie_about_compression_are_read(here, model, phantom_ct):
    plain = gzip.decompress(phantom_ct.read_bytes())
    Path("plain.nii.gz").write_bytes(plain)
    shutil.copy(phantom_ct, "packed.nii")
    wanted = load(phantom_ct).array
    assert (load("plain.nii.gz").array == wanted).all()
    assert (load("packed.nii").array == wanted).all()
    for data in (plain, phantom_ct.read_bytes()):
        os.mkfifo("pipe")
        writer = threading.Thread(target=Path("pipe").write_bytes, args=(data,))
        writer.start()
        assert (load("pipe").array == wanted).all()
        writer.join()
        Path("pipe").unlink()
    with phantom_ct.open("rb") as stream:
        done = run_alone(
            "segment", "/dev/stdin", "--model", model, "-o", "o.nii.gz", "--threads", "1", stdin=stream
        )
    assert done.returncode == 0, done.stderr


def test_labels_of_many_organs_bool_and_nearly_whole_are_compared(here):
    affine = np.diag([-2.0, -2, 4, 1])
    labels = np.zeros((32, 32, 8), np.uint8)
    labels[8:20, 8:20, 2:6] = 1
    labels[10:12, 10:12, 3:5] = 2
    organs = np.select([labels == 1, labels == 2], [6, 9], 3).astype(np.int16)

    def save(name, array):
        nib.save(nib.Nifti1Image(array, affine), name)

    save("p.nii.gz", labels)
    save("organs.nii.gz", organs)
    save("nearly.nii", (labels * 0.99999).astype(np.float32))
    save("leading.nii", labels[None])
    for truth, *options in (
        ("organs.nii.gz", "--liver-label", "6", "--tumour-label", "9"),
        ("organs.nii.gz", "--liver-label", "6,9"),
        ("nearly.nii",),
        ("leading.nii",),
    ):
        done = run("evaluate", "p.nii.gz", truth, "--json", "s.json", *options)
        assert done.exit_code == 0, done.output
        (scores,) = json.loads(Path("s.json").read_text())["cases"]
        assert scores["liver"]["dice"] == 1.0
        # A truth of which no label is said to be tumour does not know tumours.
        assert (scores["tumour"]["dice"] == 1.0) if "6,9" not in options else ("tumour" not in scores)
    assert set(np.unique(read_labels("organs.nii.gz", {6: 1, 9: 2})[0])) == {0, 1, 2}
    done = run("evaluate", "p.nii.gz", "organs.nii.gz", "--liver-label", "5,8")
    assert done.stderr == (
        "warning: organs.nii.gz: has none of the labels 5, 8, so its truth is that there is no liver\n"
    )
    for options, message in (
        (("--tumour-label", "9"), "--tumour-label: got it without --liver-label"),
        (("--liver-label", "liver"), "--liver-label: got 'liver'; expected numbers"),
        (("--liver-label", "6", "--tumour-label", "6"), "6 is liver already"),
        (("--liver-label", "6" * 5000), "--liver-label: got '6666"),
        (("--liver-label", ""), "--liver-label: got ''; expected numbers"),  # of a variable that is not set
        (("--liver-label", "6", "--tumour-label", ""), "--tumour-label: got ''; expected numbers"),
        ((), "got the labels 3, 6, 9"),
    ):
        done = run("evaluate", "p.nii.gz", "organs.nii.gz", *options)
        assert done.exit_code == 2
        assert message in done.stderr


def test_labels_through_pipes_are_compared(here):
    labels = np.zeros((32, 32, 8), np.uint8)
    labels[8:20, 8:20, 2:6] = 1
    nib.save(nib.Nifti1Image(labels, np.diag([-2.0, -2, 4, 1])), "labels.nii.gz")
    for name in ("prediction", "truth"):
        os.mkfifo(name)
        threading.Thread(target=Path(name).write_bytes, args=(Path("labels.nii.gz").read_bytes(),)).start()
    assert run("evaluate", "prediction", "truth", "--json", "pipes.json", "-q").exit_code == 0
    with open("labels.nii.gz", "rb") as stream:
        done = run_alone("evaluate", "/dev/stdin", "labels.nii.gz", "--json", "stdin.json", stdin=stream)
    assert (done.returncode, done.stderr) == (0, "")
    for scores in ("pipes.json", "stdin.json"):
        assert '"dice": 1.0' in Path(scores).read_text()


@pytest.mark.parametrize("pair", [("/dev/stdin", "labels.nii.gz"), ("labels.nii.gz", "/dev/stdin")])
def test_overlays_of_labels_through_a_pipe_are_refused_at_once(here, pair):
    nib.save(nib.Nifti1Image(np.zeros((32, 32, 8), np.uint8), np.eye(4)), "labels.nii.gz")
    packed, tail = Path("labels.nii.gz").read_bytes(), ("--ct", "labels.nii.gz", "--overlays", "drawn", "-q")
    read, write = os.pipe()
    os.write(write, packed)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        done = run_alone("evaluate", *pair, *tail, stdin=stream)
        assert stream.read() == packed, "nobody has begun to compare"
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: --overlays: /dev/stdin is a pipe and can be read once only; give a file of labels\n"
    )
    assert not Path("drawn").exists()


# --- folders


def test_the_same_command_goes_on_after_an_interruption(here, model, phantom_ct):
    for case in ("s1", "s2"):
        Path(case).mkdir()
        shutil.copy(phantom_ct, f"{case}/ct.nii.gz")
    command = ("segment", ".", "--model", model, "-o", ".", "--report")
    assert run(*command).exit_code == 0
    kept, lost = Path("s1/ct_seg.nii.gz"), Path("s2/ct_seg.nii.gz")
    first = kept.stat().st_mtime_ns
    lost.unlink()
    again = run(*command)
    assert again.exit_code == 0, again.output
    assert "1 of 2 cases are complete" in again.stderr
    assert lost.exists()
    assert kept.stat().st_mtime_ns == first
    assert (
        but_warnings(run(*command, "--min-tumour-ml", "1").stderr) == ""
    )  # other options: both are done again
    second = kept.stat().st_mtime_ns
    assert second > first
    assert run(*command, "--min-tumour-ml", "1", "--overwrite").exit_code == 0
    assert kept.stat().st_mtime_ns > second
    kept.write_bytes(lost.read_bytes() + b"corrected by hand")
    third = run(*command)
    assert third.exit_code == 0
    assert (
        "warning: 1 of 2 cases are left alone, for these files are not as cohort.jsonl has them, so somebody changed "
        f"or replaced them: {kept}; --overwrite replaces them"
    ) in third.stderr
    assert kept.read_bytes().endswith(b"corrected by hand")
    assert run(*command, "--overwrite").exit_code == 0
    assert run("evaluate", ".", ".", "-q").exit_code == 0


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_corrected_labels_of_a_single_ct_are_not_replaced_unless_they_are_named(
    here, model, phantom_ct, ending
):
    """Editors keep the header, and with it the signature of trtseg."""
    sitk = pytest.importorskip("SimpleITK")
    shutil.copy(phantom_ct, "a.nii.gz")
    command = ("segment", "a.nii.gz", "--model", model, "-q")
    path = Path(f"a_seg{ending}")
    assert run(*command).exit_code == run(*command).exit_code == 0
    if ending == ".nii.gz":
        image = nib.load(path)
        labels = np.asanyarray(image.dataobj).copy()
        labels[labels == 2] = 1
        nib.save(nib.Nifti1Image(labels, None, image.header), path)
    else:
        Path("a_seg.nii.gz").unlink()
        assert run(*command, "-o", path).exit_code == 0
        image = sitk.ReadImage(str(path))
        image[10, 10, 1] = 3  # a label that trtseg has not
        sitk.WriteImage(image, str(path))
    corrected = path.read_bytes()
    if ending == ".nii.gz":
        done = run(*command)
        assert done.exit_code == 2, done.output
        assert (
            "a_seg.nii.gz is there, and somebody changed it after trtseg had written it; the labels"
            in done.stderr
        )
        assert path.read_bytes() == corrected
        assert run(*command, "--overwrite").exit_code == 0
    else:
        assert is_changed(path)
        assert run(*command, "-o", path).exit_code == 0
    assert path.read_bytes() != corrected
    assert not is_changed(path)


# --- other formats


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
def test_nrrd_and_metaimage_are_read_and_written(here, phantom_ct, ending):
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.ReadImage(str(phantom_ct)), f"ct{ending}")
    volume, wanted = load(f"ct{ending}"), load(phantom_ct)
    assert (volume.array == wanted.array).all()
    assert np.allclose(volume.affine, wanted.affine)
    labels = (volume.array > 50).astype(np.uint8)
    target = "seg.nrrd" if ending == ".nrrd" else "seg.mha"
    trtseg.Segmentation.measure(labels, volume).save(target)
    assert (read_labels(target)[0] == labels).all()
    source, back = sitk.ReadImage(f"ct{ending}"), sitk.ReadImage(target)
    for same in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(source, same)() == getattr(back, same)()


def test_analyze_is_read(here, phantom_ct):
    image = nib.load(phantom_ct)
    array = np.asarray(image.dataobj)
    nib.save(nib.Spm2AnalyzeImage(array, image.affine), "ct.img")
    for name in ("ct.img", "ct.hdr"):
        assert load(name).array.shape == load(phantom_ct).array.shape
