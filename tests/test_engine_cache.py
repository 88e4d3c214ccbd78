"""The cache of engines: found by key, built once, kept with their acceptance, listed and deleted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from engine_cache_cases import ENGINE, KEY, beside, flip, load, never, put
from engine_models import key, sidecar

from trtseg.engines.blobs import load_blob, store_blob
from trtseg.engines.nvidia import cache
from trtseg.engines.trust import engine_folder
from trtseg.errors import ModelError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of engines, which does not exist yet."""
    monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def path(folder) -> Path:
    """An engine in the cache."""
    put(KEY, ENGINE)
    return folder / KEY.file_name


class TestObtain:
    def test_built_on_first_use_and_found_after(self, folder):
        built = []

        def build():
            built.append(1)
            return ENGINE, sidecar(KEY, ENGINE)

        for _ in range(3):
            assert cache.obtain(KEY, build) == (ENGINE, sidecar(KEY, ENGINE))
        assert built == [1]
        name = "liver-tensorrt-rtx-1.7.1.116-sm_86-fp16-b1-0123456789abcdef.engine"
        assert sorted(os.listdir(folder)) == [".lock", name, f"{name}.json"]

    @pytest.mark.parametrize(
        "change",
        [
            {"role": "tumour"},
            {"onnx_sha256": "f" * 64},
            {"onnx_sha256": "0123456789abcdef" * 3 + "f" * 16},  # has the same file name
            {"runtime": "tensorrt"},
            {"runtime_version": "1.7.1.117"},
            {"target": "sm_89"},
            {"gpu": "NVIDIA H100 80GB HBM3"},
            {"precision": "fp32"},
            {"batch": 16},
        ],
        ids=str,
    )
    def test_every_part_of_the_key_counts(self, path, change):
        other = key(**change)
        put(other, b"another")
        assert load(other) == b"another"
        if other.file_name != KEY.file_name:
            assert load(KEY) == ENGINE

    def test_the_name_of_a_gpu_is_no_path(self):
        assert key(gpu="../A B/C").file_name == (
            "liver-tensorrt-rtx-1.7.1.116-sm_86-..-A-B-C-fp16-b1-0123456789abcdef.engine"
        )

    @pytest.mark.parametrize("at", [0, 2500, -1])
    def test_a_flipped_byte_is_found_and_the_engine_built_again(self, path, at):
        flip(path, at)
        (entry,) = cache.entries(verify=True)
        assert entry.path == path
        assert re.search("its SHA-256 is .* but its sidecar says .* build it again", entry.problem)
        assert cache.entries()[0].problem is None  # without verify sidecars alone are read
        put(KEY, ENGINE)
        assert load(KEY) == ENGINE
        assert cache.entries(verify=True)[0].problem is None

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not JSON"),
            (b"\xff\xfe{", "not JSON"),
            (b"[" * 10**5, "not JSON"),
            (b"[]", "written by another version"),
            (b'{"format": 1}', "written by another version"),
            (b'{"format": 2}', "not what trtseg writes"),
            (b'{"format": 2, "key": 5, "spec": {}}', "not what trtseg writes"),
        ],
    )
    def test_a_sidecar_that_says_nothing(self, path, content, message):
        beside(path).write_bytes(content)
        for entry in (*cache.entries(), *cache.entries(verify=True)):
            assert message in entry.problem
        put(KEY, ENGINE)
        assert load(KEY) == ENGINE

    @pytest.mark.parametrize(
        ("name", "value"), [("sha256", 5), ("built", []), ("built", {}), ("acceptance", "yes"), ("more", 1)]
    )
    def test_a_sidecar_with_a_wrong_value(self, path, name, value):
        beside(path).write_text(json.dumps({**json.loads(beside(path).read_text()), name: value}))
        assert "not what trtseg writes" in cache.entries()[0].problem

    def test_a_missing_file_of_the_two(self, path):
        beside(path).unlink()
        assert re.search(r"\.json: cannot be read \(No such file", cache.entries()[0].problem)
        put(KEY, ENGINE)
        path.unlink()
        assert "the engine is missing" in cache.entries()[0].problem
        put(KEY, ENGINE)
        assert load(KEY) == ENGINE

    def test_a_build_that_fails_leaves_what_was_there(self, folder):
        def broken():
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            cache.obtain(KEY, broken)
        assert os.listdir(folder) == [".lock"]
        put(KEY, ENGINE)
        flip(folder / KEY.file_name, 0)
        before = (folder / KEY.file_name).read_bytes()
        with pytest.raises(ZeroDivisionError):
            cache.obtain(KEY, broken)
        assert (folder / KEY.file_name).read_bytes() == before
        assert len(os.listdir(folder)) == 3

    def test_another_engine_will_do(self, path):
        exact = dataclasses.replace(KEY, target="sm_89")
        assert cache.obtain(exact, never, others=[KEY])[1].key == KEY
        put(exact, ENGINE[:50])
        assert cache.obtain(exact, never, others=[KEY])[1].key == exact, "its own comes first"


class TestProcesses:
    # Says `ready`, waits for a line, then wants the engine; a build takes a while and leaves a line in `builds`.
    WANT = """
        import hashlib, os, sys, time
        from trtseg import models
        from trtseg.engines.nvidia import cache
        from trtseg.engines.nvidia.sidecar import EngineKey, Sidecar

        key = EngineKey("liver", "0" * 64, "tensorrt-rtx", "1.7.1.116", "sm_86", "", "fp16", 1)
        spec = models.find("default").spec.nets[0]

        def build():
            with open("builds", "a") as file:
                print(os.getpid(), file=file)
            time.sleep(float(sys.argv[1]))
            data = f"engine of {os.getpid()}".encode()
            made = hashlib.sha256(data).hexdigest(), len(data), spec
            return data, Sidecar(key, *made, {}, [], {}, [], {"at": "", "seconds": 0})

        print("ready", flush=True)
        sys.stdin.readline()
        data, made = cache.obtain(key, build, waiting=lambda: print("waiting", flush=True))
        print(made.sha256, flush=True)
    """

    def start(self, seconds: float) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(self.WANT), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout.readline() == "ready\n"
        return process

    def go(self, process: subprocess.Popen) -> None:
        process.stdin.write("\n")
        process.stdin.flush()

    def test_three_processes_build_once(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        processes = [self.start(0.5) for _ in range(3)]
        for process in processes:
            self.go(process)
        said = [process.communicate(timeout=30)[0].split() for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0]
        (builder,) = Path("builds").read_text().split()
        expected = hashlib.sha256(f"engine of {builder}".encode()).hexdigest()
        assert [words[-1] for words in said] == [expected] * 3
        assert sum("waiting" in words for words in said) == 2

    def test_a_killed_builder_does_not_stop_the_next(self, tmp_path, monkeypatch, folder):
        monkeypatch.chdir(tmp_path)
        first, second = self.start(60), self.start(0)
        self.go(first)
        while not Path("builds").exists():
            time.sleep(0.01)
        self.go(second)
        assert second.stdout.readline() == "waiting\n"
        first.send_signal(signal.SIGKILL)
        assert len(second.communicate(timeout=30)[0].strip()) == 64
        assert second.returncode == 0
        first.communicate()
        assert cache.entries(verify=True)[0].problem is None


class TestAcceptance:
    SHA256 = hashlib.sha256(ENGINE).hexdigest()

    def test_is_kept_with_the_engine(self, path):
        said = {"accepted": False, "flipped": 3, "why": ["slot 2"]}
        checked = cache.keep_acceptance(KEY, said, sha256=self.SHA256)
        assert cache.obtain(KEY, never) == (ENGINE, checked)
        assert checked == dataclasses.replace(sidecar(KEY, ENGINE), acceptance=said)
        assert json.loads(beside(path).read_text())["acceptance"] == said

    def test_not_of_another_engine(self, path):
        before = beside(path).read_bytes()
        with pytest.raises(ModelError, match="is another engine than the one that was checked"):
            cache.keep_acceptance(KEY, {"accepted": True}, sha256="0" * 64)
        flip(path, 0)
        with pytest.raises(ModelError, match="its SHA-256 is"):
            cache.keep_acceptance(KEY, {"accepted": True}, sha256=self.SHA256)
        assert beside(path).read_bytes() == before


class TestList:
    def test_nothing(self, tmp_path):
        assert cache.entries() == []
        assert cache.clear() == (0, 0)
        with pytest.raises(ModelError, match="no folder that can be read"):
            cache.entries(tmp_path / "none")

    def test_sorted_and_only_engines(self, folder):
        for batch in (16, 1):
            put(key(batch=batch), ENGINE)
        store_blob("timing", b"times")
        (folder / "notes.json").write_text("{}")
        found = cache.entries(verify=True)
        assert [entry.sidecar.key.batch for entry in found] == [1, 16]
        assert [entry.problem for entry in found] == [None, None]
        assert found == cache.entries(folder)

    def test_clear_takes_all_that_is_ours(self, path, folder):
        store_blob("timing", b"times")
        (folder / "notes.json").write_text("{}")
        (folder / f".{'0' * 16}-{KEY.file_name}").write_bytes(b"left by a killed process")
        size = len(ENGINE) + len(beside(path).read_bytes()) + 32 + 5 + 24
        assert cache.clear() == (4, size)
        assert sorted(os.listdir(folder)) == [".lock", "notes.json"]
        put(KEY, ENGINE)

    def test_clear_elsewhere_takes_engines_with_a_sidecar_only(self, path, tmp_path):
        other = tmp_path / "other"
        other.mkdir()
        for name in ("a.engine", "a.engine.json", "b.engine", "c.engine.json", "d.blob"):
            (other / name).write_text("12345")
        assert cache.clear(other) == (2, 10)
        assert sorted(os.listdir(other)) == ["b.engine", "c.engine.json", "d.blob"]
        assert path.exists()


class TestBlobs:
    def test_kept(self):
        assert load_blob("timing") is None
        store_blob("timing", b"times")
        assert load_blob("timing") == b"times"
        store_blob("timing", b"")
        assert load_blob("timing") == b""

    @pytest.mark.parametrize(
        "damage", [lambda p: flip(p, 33), lambda p: p.write_bytes(b""), lambda p: p.chmod(0o666)]
    )
    def test_not_used_if_damaged_or_not_mine(self, folder, damage):
        store_blob("timing", b"times")
        damage(folder / "timing.blob")
        assert load_blob("timing") is None
        store_blob("timing", b"times")
        assert load_blob("timing") == b"times"


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("TRTSEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine_folder() == tmp_path / "trtseg" / "engines"
