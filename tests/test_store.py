"""A slice store is whole: what goes wrong while it is written, and a damaged one."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import training_data as made
from training_data import case

from training.cases import Scan
from training.prepare import Settings, prepare
from training.store import Store
from trtseg.errors import InputError, OutputError

SMALL = Settings(size=64)


def content(folder):
    """All files of a folder, hidden ones too, with their bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_existing_store_survives_what_goes_wrong(tmp_path):
    reads = []

    def second_time(what):
        def read():
            reads.append(1)
            if len(reads) % 2 == 0:
                raise what
            return Scan(made.phantom(3).ct, made.phantom(3).labels, made.SPACING, range(6))

        return read

    prepare([case("a", "A")], tmp_path / "store", SMALL)
    before = content(tmp_path / "store")
    for error, raised in (
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(143), SystemExit),
        (OSError("the disk is gone"), InputError),
    ):
        for folder in ("store", "new"):
            with pytest.raises(raised):
                prepare([case("a", "A"), case("b", "B", read=second_time(error))], tmp_path / folder, SMALL)
        assert content(tmp_path / "store") == before
        assert not (tmp_path / "new").exists()
    prepare([case("b", "B", seed=1)], tmp_path / "store", SMALL)
    assert set(content(tmp_path / "store")) == set(before)
    assert Store.open(tmp_path / "store").case.tolist() == ["b"] * 6


def test_a_case_that_changes_meanwhile_is_an_error(tmp_path):
    scans = iter([made.phantom(0), made.phantom(1)])

    def read():
        scan = next(scans)
        return Scan(scan.ct, scan.labels, made.SPACING, range(6))

    with pytest.raises(InputError, match="lits/a: changed while"):
        prepare([case("a", "A", read=read)], tmp_path / "store", SMALL)


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # the image array is 6 * 64 * 64 * 2 bytes
    try:
        with pytest.raises(OutputError):
            prepare([case("a", "A"), case("b", "B", seed=1)], tmp_path / "store", SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "store").exists()


def test_a_killed_run_leaves_nothing(tmp_path):
    root = made.negatives(tmp_path, {"free": [f"p{i}" for i in range(60)]})
    out = tmp_path / "store"
    command = [sys.executable, "-m", "training.prepare", "--negatives", root, "-o", out, "--size", "3072"]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 60
        writing = False
        while not writing and process.poll() is None and time.monotonic() < deadline:
            writing = out.is_dir() and any(path.stat().st_size for path in out.iterdir())
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 143
    finally:
        process.kill()
    assert writing, "it was to be killed while it writes"
    assert not out.exists()


@pytest.fixture(scope="module")
def a_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "a"
    prepare([case("a", "A"), case("b", "B", seed=1)], folder, SMALL)
    return folder


def edit(folder, **fields):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "no slice store there"),
        (lambda f: (f / "manifest.json").write_text("{}"), "is not the manifest"),
        (lambda f: edit(f, version=2), "got trtseg slice store 2; expected trtseg slice store 1"),
        (
            lambda f: edit(f, cases=json.loads((f / "manifest.json").read_text())["cases"][1:]),
            "do not cover 12",
        ),
        (lambda f: np.save(f / "label.npy", np.zeros((12, 64, 64), np.int8)), "label.npy: got int8"),
        (lambda f: np.save(f / "label.npy", np.zeros((12, 64, 64), np.uint8)), "are not those that"),
        (lambda f: os.truncate(f / "hu.npy", 5000), "hu.npy: cannot be opened"),
    ],
)
def test_a_damaged_store_is_not_opened(a_store, tmp_path, damage, message):
    for name, data in content(a_store).items():
        (tmp_path / name).write_bytes(data)
    assert len(Store.open(tmp_path).hu) == 12
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        Store.open(tmp_path)
    assert "make the store again" in str(error.value)
