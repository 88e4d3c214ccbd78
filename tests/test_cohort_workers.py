"""Cohorts whose processes are killed, at any moment and on any machine: nothing twice, nothing lost."""

import contextlib
import csv
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cohort_cases import planned

import trtseg
from trtseg import cohort
from trtseg.cohort.tasks import Bench, Setup, Task
from trtseg.errors import (
    ArgumentError,
    DeviceError,
    InputError,
    ModelError,
    WorkerError,
)
from trtseg.phantom import abdomen
from trtseg.sample import write_phantom

SECONDS = 60  # that a process may take to get somewhere, on a busy machine


@pytest.fixture(scope="module")
def forty(tmp_path_factory, model):
    """A folder of 40 CTs of five shapes, and the labels that each has when it is segmented alone."""
    top = tmp_path_factory.mktemp("forty")
    (top / "cts").mkdir()
    for n in range(5):
        write_phantom(
            abdomen((12 + n, 64, 64), (20.0, 6.0, 6.0)), top / f"cts/ct{n:02}.nii.gz", top / "truth.nii.gz"
        )
    with trtseg.Segmenter(model) as segmenter:
        for n in range(5):
            segmenter.segment(top / f"cts/ct{n:02}.nii.gz").save(top / f"ct{n:02}_seg.nii.gz")
    for n in range(5, 40):
        shutil.copy(top / f"cts/ct{n % 5:02}.nii.gz", top / f"cts/ct{n:02}.nii.gz")
        shutil.copy(top / f"ct{n % 5:02}_seg.nii.gz", top / f"ct{n:02}_seg.nii.gz")
    return top


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def check_all_once(forty, out):
    """Each case has a line that it is done, and only one; its labels are those that it has alone."""
    lines = [json.loads(line) for line in (out / "cohort.jsonl").read_text().splitlines()[1:]]
    names = sorted(f"ct{n:02}_seg.nii.gz" for n in range(40))
    assert sorted(line["case"] for line in lines) == names
    assert [name for name in names if (out / name).read_bytes() != (forty / name).read_bytes()] == []
    with (out / "cohort.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["labels"], row["state"]) for row in rows] == [(name, "done") for name in names]
    assert set(os.listdir(out)) == {"cohort.csv", "cohort.jsonl", *names}


def kill_five_times(command, out, seed):
    """Run a command six times, and kill the first five runs after a random time with at least one case more."""
    chance = random.Random(seed)
    kept = {}
    for kill in range(6):
        before = lines_of(out)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if kill < 5:
            until = time.monotonic() + SECONDS
            while lines_of(out) == before:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < until
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.25))
            process.kill()
        _, stderr = process.communicate(timeout=SECONDS)
        for path, written in kept.items():
            assert path.stat().st_mtime_ns == written, "a case that was complete was done again"
        kept |= {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    assert process.returncode == 0, stderr


def lines_of(out):
    try:
        return (out / "cohort.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def children(pid):
    """The processes that a process has started."""
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return set(map(int, found.stdout.split()))


def reads(pid, path):
    """Whether a process has a file open to read; one that has just been forked has those that are written, too."""
    links = [link for link in Path(f"/proc/{pid}/fd").iterdir() if link.resolve() == path.resolve()]
    infos = (Path(f"/proc/{pid}/fdinfo/{link.name}").read_text() for link in links)
    flags = (int(re.search(r"flags:\s*(\d+)", info)[1], 8) for info in infos)
    return any(number & os.O_ACCMODE == os.O_RDONLY for number in flags)


# --- killed


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [(), ("--jobs", "2")], ids=["one process", "two workers"])
def test_forty_cases_killed_five_times_are_each_done_once(forty, model, out, jobs):
    command = [sys.executable, "-m", "trtseg", "segment", str(forty / "cts"), "--model", str(model)]
    kill_five_times([*command, "-o", str(out), *jobs], out, seed=len(jobs))
    check_all_once(forty, out)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_command_that_is_ended_leaves_no_worker(forty, model, out, sent, code):
    """Two workers read from pipes when it happens."""
    pipes = [out.parent / "a.nii.gz", out.parent / "b.nii.gz"]
    for pipe in pipes:
        os.mkfifo(pipe)
    command = [sys.executable, "-m", "trtseg", "segment", *map(str, pipes), "--model", str(model)]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with (
        subprocess.Popen([*command, "-o", str(out), "-j", "2"], stderr=subprocess.PIPE, **heard) as process,
        pipes[0].open("wb"),
        pipes[1].open("wb"),
    ):
        workers = children(process.pid)
        process.send_signal(sent)
        assert process.wait(SECONDS) == code
        until = time.monotonic() + SECONDS
        while any(Path(f"/proc/{pid}/fd").exists() and os.listdir(f"/proc/{pid}/fd") for pid in workers):
            assert time.monotonic() < until
            time.sleep(0.01)
    assert len(workers) == 2
    assert not out.exists() or sent == signal.SIGKILL


# --- workers


def test_a_worker_that_is_killed_fails_its_case_and_no_other(forty, model, out):
    """A pipe keeps the worker that reads it, until it is killed; so do its retries."""
    pipe = out.parent / "ct00.nii.gz"
    os.mkfifo(pipe)
    kills = 2
    ended = threading.Event()

    def kill():
        killed = set()
        while len(killed) < kills:
            with pipe.open("wb"):  # somebody reads, perhaps one that is about to end
                for child in children(os.getpid()) - killed:
                    with contextlib.suppress(OSError):
                        if reads(child, pipe):
                            os.kill(child, signal.SIGKILL)
                            killed.add(child)
        ended.set()

    threading.Thread(target=kill, daemon=True).start()
    bad = out.parent / "ct09.nii.gz"
    bad.write_text("text")
    cases = planned([pipe, bad, *sorted((forty / "cts").glob("ct0[1-6].nii.gz"))], out)
    workers = cohort.Workers(2, retries=kills - 1, options={"model": model})
    outcomes = list(cohort.run(cases, workers, folder=out))
    assert ended.wait(SECONDS)
    errors = {outcome.case.source.name: outcome.error for outcome in outcomes if outcome.error}
    assert set(errors) == {"ct00.nii.gz", "ct09.nii.gz"}
    assert isinstance(errors["ct09.nii.gz"], InputError)
    assert isinstance(errors["ct00.nii.gz"], WorkerError)
    assert f"its worker was lost {kills} times: the process was ended by SIGKILL" in str(
        errors["ct00.nii.gz"]
    )
    for n in range(1, 7):
        name = f"ct0{n}_seg.nii.gz"
        assert (out / name).read_bytes() == (forty / name).read_bytes()
    assert (out / "cohort.csv").read_text().count("failed") == 2


def test_a_failure_is_noted_before_a_callback_that_raises_is_told(forty, model, out):
    bad = out.parent / "ct09.nii.gz"
    bad.write_text("text")

    def progress(text, fraction):
        if fraction == 1:
            raise RuntimeError(text)

    cases = planned([forty / "cts/ct00.nii.gz", bad], out)
    run = cohort.run(cases, cohort.Workers(1, options={"model": model}), folder=out, progress=progress)
    with pytest.raises(RuntimeError, match=r"ct09\.nii\.gz: done"):
        list(run)
    lines = [json.loads(line) for line in (out / "cohort.jsonl").read_text().splitlines()[1:]]
    assert [(line["case"], line["state"]) for line in lines] == [
        ("ct00_seg.nii.gz", "done"),
        ("ct09_seg.nii.gz", "failed"),
    ]


def test_a_case_that_is_tried_again_starts_with_an_empty_folder(forty, model, out):
    out.mkdir()
    (out / ".half-written").write_text("by a worker that was killed")
    case = cohort.Case(forty / "cts/ct00.nii.gz", Path("ct00_seg.nii.gz"))
    done = Bench(Setup({"model": model}, None, False)).do(Task(case, "", out))
    assert (done.row["liver_ml"] > 0, done.files) == (True, {})
    assert os.listdir(out) == ["ct00_seg.nii.gz"]


def test_a_model_that_no_worker_can_load_is_an_error(forty, out):
    (forty / "empty").mkdir(exist_ok=True)
    cases = planned([forty / "cts"], out)
    with pytest.raises(ModelError):
        next(cohort.run(cases, cohort.Workers(2, options={"model": forty / "empty"}), folder=out))
    with pytest.raises(ArgumentError, match="folder: got None"):
        next(cohort.run(cases, cohort.Workers(2)))


# --- Ray


@pytest.mark.parametrize(
    ("options", "jobs", "size"),
    [
        ({}, None, 5),
        ({"threads": 2}, None, 2),
        ({"threads": 2}, 7, 7),
        ({"device": "cuda"}, None, 1),
        (
            {"threads": 4},
            None,
            "no machine of the cluster auto has what a worker needs, 4 processors; change",
        ),
        ({"threads": 3, "device": "cuda"}, None, "needs, 3 processors and a GPU;"),
        ({"threads": 4}, 7, 7),
    ],
)
def test_a_cluster_has_the_workers_that_its_machines_have_room_for(monkeypatch, caplog, options, jobs, size):
    machines = [{"CPU": 3.0}, {"CPU": 2.0, "GPU": 1.0}]
    nodes = [{"Alive": True, "Resources": has} for has in machines]
    nodes.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}})
    closed = []
    played = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **_: None,
        nodes=lambda: nodes,
        shutdown=lambda: closed.append(1),
    )
    monkeypatch.setitem(sys.modules, "ray", played)
    workers = cohort.Workers(jobs, "auto", options=options)
    if isinstance(size, str):
        with pytest.raises(DeviceError, match=size):
            workers.crew()
        assert closed == [1]
    else:
        assert workers.crew().size == size
        assert ("waiting for one" in caplog.text) == (options.get("threads") == 4)


NO_RAY = pytest.mark.skipif(
    not importlib.util.find_spec("ray"), reason="ray is not installed: pip install ray"
)

LOSE = """
import sys
import time
import psutil
from trtseg import cohort
def actors():  # of this cluster: others may run on the machine
    own = {process.pid for process in psutil.Process().children(recursive=True)}
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if p.pid in own and (p.info["cmdline"] or [""])[0].startswith("ray::_Actor")]
cts, model, out = sys.argv[1:]
workers = cohort.Workers(2, ray="local", options={"model": model})
n = 0
with cohort.plan([cts], out) as cases:
    for outcome in cohort.run(cases, workers, folder=out):
        assert outcome.error is None, outcome.error
        n += 1
        if n == 5:  # one of two workers, at its work
            until = time.monotonic() + 60
            while len(found := actors()) < 2 and time.monotonic() < until:
                time.sleep(0.05)  # the second may still start
            assert len(found) == 2, found
            found[0].kill()
from ray._common.usage.usage_lib import usage_stats_enabled
assert not usage_stats_enabled()
"""


@NO_RAY
@pytest.mark.slow
def test_forty_cases_on_ray_with_a_lost_worker_are_each_done_once(forty, model, out):
    command = [sys.executable, "-c", LOSE, str(forty / "cts"), str(model), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    check_all_once(forty, out)
