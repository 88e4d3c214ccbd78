"""Too little memory, threads, open files or disk: the right labels, or one sentence, exit code 2 and nothing left."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import TRTSEG, but_warnings, feed, run_alone

NO_MEMORY, NO_THREAD, NO_SPACE = "of memory", "no thread can be started", "no space left"
# Limits on the way from plenty to what Python itself needs.
MEMORY = (*(int(4e9 * 0.8**n) for n in range(1, 18)), 80_000_000, 60_000_000)
LIMITS = {
    "RLIMIT_AS": (MEMORY, (NO_MEMORY, NO_THREAD)),
    "RLIMIT_DATA": (MEMORY, (NO_MEMORY, NO_THREAD)),
    "RLIMIT_NOFILE": ((64, 32, 24, 20, 16, 14, 12, 11, 10, 9, 8, 7, 6, 5), ("Too many open files",)),
    "RLIMIT_NPROC": ((32, 24, 16, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1, 0), (NO_THREAD, NO_MEMORY)),
    "RLIMIT_FSIZE": ((10_000_000, 1_000_000, 100_000, 10_000, 3000, 1000, 500, 100, 10, 1, 0), (NO_SPACE,)),
}
ALL_FILES = "+dac_override,+dac_read_search"


def segment_under(limit, value, ct, *options):
    """Segment with a report and a preview under a limit; judge how it ends, and return the labels or None."""
    before = sorted(os.listdir())
    command = [*TRTSEG, "segment", str(ct), "-o", "out.nii", "--report", "--preview", *options]
    if limit == "RLIMIT_NPROC" and os.getuid() == 0:  # root may start any number
        command = ["setpriv", "--reuid=54321", "--clear-groups", f"--inh-caps={ALL_FILES}", *command]
        command.insert(4, f"--ambient-caps={ALL_FILES}")
    done = subprocess.run(
        command,
        preexec_fn=lambda: resource.setrlimit(getattr(resource, limit), (value, value)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = but_warnings(done.stderr)
    if done.returncode == 0:
        assert said == ""
        labels = Path("out.nii").read_bytes()
        for name in ("out.nii", "out.json", "out.png"):
            Path(name).unlink()
    else:
        assert done.returncode == 2, (limit, value, done.returncode, said)
        assert said.startswith("error: "), (limit, value, said)
        assert len(said.splitlines()) == 1, (limit, value, said)
        assert any(words in said for words in LIMITS[limit][1]), (limit, value, said)
        labels = None
    assert sorted(os.listdir()) == before, (limit, value)
    return labels


@pytest.mark.parametrize(
    ("limit", "value"),
    [("RLIMIT_AS", 100_000_000), ("RLIMIT_AS", 220_000_000), ("RLIMIT_NPROC", 0)],
)
def test_a_limit_far_too_low_is_one_sentence(here, model, phantom_ct, limit, value):
    assert segment_under(limit, value, phantom_ct, "--model", model) is None


def test_five_open_files_are_enough(here, model, phantom_ct):
    # libffi, which NumPy loads, keeps one more open in some systems.
    count = "import numpy, os; print(len(os.listdir('/proc/self/fd')) - 4)"  # without 0 to 2, and that folder
    kept = int(subprocess.check_output([sys.executable, "-c", count]))
    assert segment_under("RLIMIT_NOFILE", 5 + kept, phantom_ct, "--model", model) is not None


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_under_every_limit_the_labels_are_right_or_there_is_one_sentence(here, phantom_ct, limit):
    wanted = segment_under(limit, resource.getrlimit(getattr(resource, limit))[0], phantom_ct)
    ends = [segment_under(limit, value, phantom_ct) for value in LIMITS[limit][0]]
    assert wanted is not None
    assert set(ends) <= {wanted, None}
    assert ends[0] == wanted, "plenty is enough"


@pytest.mark.parametrize("options", ["size=64k", "nr_inodes=5"])
def test_a_full_disk_of_its_own(here, model, phantom_ct, options):
    """Of two cases the first may fit: it stays, complete."""
    alone = ("unshare", "--user", "--map-root-user", "--mount")
    mount = 'mount -t tmpfs -o "$0" none disk && "$@"; code=$?; ls -A disk; exit $code'
    Path("disk").mkdir()
    shutil.copy(phantom_ct, "b.nii.gz")
    try:
        subprocess.run(
            [*alone, "sh", "-c", mount, options, "true"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk of its own: {getattr(error, 'stderr', None) or error}")
    command = (
        *TRTSEG,
        "segment",
        phantom_ct,
        "b.nii.gz",
        "--model",
        model,
        "-o",
        "disk",
        "-q",
        "--report",
        "--preview",
    )
    done = subprocess.run(
        [*alone, "sh", "-c", mount, options, *command], capture_output=True, text=True, check=False
    )
    lines, left = but_warnings(done.stderr).splitlines(), done.stdout.split()
    assert len(lines) == 2 - len(left) / 3, done.stderr
    assert all(NO_SPACE in line for line in lines)
    assert (done.returncode, left) in ((2, []), (3, ["ct_seg.json", "ct_seg.nii.gz", "ct_seg.png"]))


PATIENT = "import sys; from trtseg import cli; cli._PATIENCE = 1; sys.argv[0] = 'trtseg'; cli.main()"


def test_an_input_that_never_comes_can_be_interrupted(here, model):
    os.mkfifo("ct.nii")
    command = [sys.executable, "-c", PATIENT, "segment", "ct.nii", "--model", model, "-o", "out.nii"]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE) as process,
        feed(process, "ct.nii"),
    ):  # it has begun to read
        for _ in range(3):
            process.terminate()
        assert process.wait(20) == 143
    assert os.listdir() == ["ct.nii"]


LATE = """
import signal, sys, time
import trtseg.cli as cli

class Late:
    def __del__(self, sleep=time.sleep):
        sleep(0.5)

def app():
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.1)

cli.app, sys.argv[:] = app, ["trtseg"]
sys.modules["late"] = Late()
cli.main()
"""


def test_an_alarm_that_is_left_does_not_end_a_command_that_is_over():
    """A signal amid the imports is put off by a timer, which may outlive a short command."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_current_folder_that_is_gone_is_one_sentence(here, model, phantom_ct):
    Path("gone").mkdir()
    leave = {"preexec_fn": lambda: (os.chdir("gone"), Path("../gone").rmdir())}
    for command in (
        ("segment", phantom_ct, "--model", model),
        ("segment", "ct.nii.gz", "--model", model, "-o", "out.nii.gz"),
    ):
        Path("gone").mkdir(exist_ok=True)
        done = run_alone(*command, **leave)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "does not exist" in line
