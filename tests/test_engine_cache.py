"""The cache of engines: found by key, built once, and nothing loaded that somebody else could have written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from engine_models import key, sidecar

from trtseg.engines.nvidia import cache
from trtseg.engines.nvidia.sidecar import Sidecar
from trtseg.engines.nvidia.trust import engine_folder, locked
from trtseg.errors import ModelError, OutputError

ENGINE = bytes(range(256)) * 20
KEY = key()


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


def put(of, data: bytes) -> None:
    assert cache.obtain(of, lambda: (data, sidecar(of, data))) == (data, sidecar(of, data))


def never():
    pytest.fail("there is an engine already")


def beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


class TestObtain:
    def test_built_on_first_use_and_found_after(self, folder):
        built = []

        def build():
            built.append(1)
            return ENGINE, sidecar(KEY, ENGINE)

        for _ in range(3):
            assert cache.obtain(KEY, build) == (ENGINE, sidecar(KEY, ENGINE))
        assert built == [1]
        assert cache.load(KEY) == ENGINE
        name = "liver-tensorrt-rtx-1.7.1.116-sm_86-fp16-b1-0123456789abcdef.engine"
        assert sorted(os.listdir(folder)) == [".lock", name, f"{name}.json"]

    @pytest.mark.parametrize(
        "change",
        [
            {"role": "tumour"},
            {"onnx_sha256": "f" * 64},
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
        assert other.file_name != KEY.file_name
        with pytest.raises(ModelError, match="No such file"):
            cache.load(other)
        put(other, b"another")
        assert cache.load(KEY) == ENGINE
        assert cache.load(other) == b"another"

    def test_the_name_of_a_gpu_is_no_path(self):
        assert key(gpu="../A B/C").file_name == (
            "liver-tensorrt-rtx-1.7.1.116-sm_86-..-A-B-C-fp16-b1-0123456789abcdef.engine"
        )

    def test_a_hash_that_only_begins_alike_is_another_engine(self, path):
        other = key(onnx_sha256="0123456789abcdef" * 3 + "f" * 16)
        assert other.file_name == KEY.file_name
        with pytest.raises(ModelError, match="its sidecar is of another engine"):
            cache.load(other)
        put(other, b"another")
        assert cache.load(other) == b"another"

    @pytest.mark.parametrize("at", [0, 2500, -1])
    def test_a_flipped_byte_is_found_and_the_engine_built_again(self, path, at):
        flip(path, at)
        with pytest.raises(ModelError, match=r"its SHA-256 is .* but its sidecar says .* build it again"):
            cache.load(KEY)
        (entry,) = cache.entries(verify=True)
        assert entry.path == path
        assert "its SHA-256 is" in entry.problem
        assert cache.entries()[0].problem is None  # that one reads sidecars only
        put(KEY, ENGINE)
        assert cache.load(KEY) == ENGINE
        assert cache.entries(verify=True)[0].problem is None

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not JSON"),
            (b"\xff\xfe{", "not JSON"),
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
        with pytest.raises(ModelError, match=message):
            cache.load(KEY)
        put(KEY, ENGINE)
        assert cache.load(KEY) == ENGINE

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("sha256", 5),
            ("size", "5"),
            ("warnings", None),
            ("built", []),
            ("built", {}),
            ("acceptance", "yes"),
            ("more", 1),
        ],
    )
    def test_a_sidecar_with_a_wrong_value(self, path, name, value):
        beside(path).write_text(json.dumps({**json.loads(beside(path).read_text()), name: value}))
        with pytest.raises(ModelError, match="not what trtseg writes"):
            cache.load(KEY)

    def test_a_missing_file_of_the_two(self, path):
        beside(path).unlink()
        with pytest.raises(ModelError, match=r"\.json: cannot be read \(No such file"):
            cache.load(KEY)
        put(KEY, ENGINE)
        path.unlink()
        assert "the engine is missing" in cache.entries()[0].problem
        assert "No such file" in cache.entries(verify=True)[0].problem
        put(KEY, ENGINE)
        assert cache.load(KEY) == ENGINE

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
        assert cache.load(key) == data
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


class TestTrust:
    @pytest.fixture
    def someone_else(self, monkeypatch):
        uid = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
        return f"it belongs to user {uid} and you are {uid + 1}"

    def refused(self, message: str) -> str:
        with pytest.raises(ModelError, match=message) as caught:
            cache.load(KEY)
        return str(caught.value)

    def test_what_is_written_is_this_users_alone_whatever_the_umask(self, folder):
        old = os.umask(0)
        try:
            put(KEY, ENGINE)
            cache.store_blob("timing", b"times")
            cache.accept(folder / KEY.file_name, {"accepted": True}, sha256=sidecar(KEY, ENGINE).sha256)
        finally:
            os.umask(old)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for file in folder.iterdir():
            assert not file.stat().st_mode & 0o022, file
        assert cache.load(KEY) == ENGINE

    def test_another_owner(self, path, someone_else):
        said = self.refused(someone_else)
        assert said.startswith(f"{path.parent}: refused, since an engine file can run any code")
        with pytest.raises(ModelError, match=someone_else):
            cache.obtain(KEY, never)
        with pytest.raises(ModelError, match=someone_else):
            cache.entries(verify=True)
        with pytest.raises(ModelError, match=someone_else):
            cache.clear()
        assert path.exists()

    @pytest.mark.skipif("os.getuid() != 0", reason="only root can give a file away")
    @pytest.mark.parametrize("which", [Path, beside])
    def test_a_file_of_another_owner_in_a_folder_of_mine(self, path, which):
        os.chown(which(path), 12345, -1)
        assert "delete the file" in self.refused("it belongs to user 12345 and you are 0")
        assert "12345" in cache.entries(verify=True)[0].problem
        put(KEY, ENGINE)
        assert cache.load(KEY) == ENGINE

    @pytest.mark.parametrize("which", [Path, beside])
    @pytest.mark.parametrize("mode", [0o602, 0o620, 0o666])
    def test_a_file_that_others_may_write(self, path, which, mode):
        which(path).chmod(mode)
        assert which(path).name in self.refused(rf"others may change it \(mode {mode:o}\); delete the file")
        assert "others may change it" in cache.entries(verify=True)[0].problem
        put(KEY, ENGINE)  # the old files are not trusted but replaced
        assert cache.load(KEY) == ENGINE

    @pytest.mark.parametrize("mode", [0o701, 0o750, 0o777])
    def test_a_folder_that_others_may_enter(self, path, mode):
        path.parent.chmod(mode)
        message = rf"others may change it \(mode {mode:o}\); delete the folder, or set TRTSEG_CACHE"
        self.refused(message)
        for use in (lambda: cache.obtain(KEY, never), cache.entries, cache.clear):
            with pytest.raises(ModelError, match=message):
                use()
        assert path.exists()

    @pytest.mark.parametrize("which", [Path, beside])
    def test_a_link_is_not_followed(self, path, which, tmp_path):
        which(path).rename(tmp_path / "elsewhere")
        which(path).symlink_to(tmp_path / "elsewhere")
        self.refused("cannot be read")

    def test_a_pipe_does_not_hang(self, path):
        path.unlink()
        os.mkfifo(path, 0o600)
        self.refused("is not a regular file")

    def test_the_folder_itself_may_be_a_link(self, path, tmp_path):
        path.parent.rename(tmp_path / "large disk")
        path.parent.symlink_to(tmp_path / "large disk")
        assert cache.load(KEY) == ENGINE

    def test_a_cache_that_cannot_be_made(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path / "file"))
        with pytest.raises(
            OutputError, match=r"cannot be created .*set TRTSEG_CACHE to a folder of your own"
        ):
            cache.obtain(KEY, never)


class TestForeign:
    @pytest.fixture
    def foreign(self, path, tmp_path) -> Path:
        """The same engine outside the cache."""
        place = tmp_path / "usb stick"
        path.parent.rename(place)
        place.chmod(0o777)
        (place / KEY.file_name).rename(place / "my.engine")
        (place / f"{KEY.file_name}.json").rename(place / "my.engine.json")
        return place / "my.engine"

    def test_refused_unless_allowed_by_name(self, foreign):
        message = (
            r"my\.engine: refused, since an engine file can run any code .* allow foreign engines explicitly"
        )
        with pytest.raises(ModelError, match=message):
            cache.load_file(foreign)
        assert cache.load_file(foreign, allow_foreign=True) == (ENGINE, sidecar(KEY, ENGINE))
        with pytest.raises(ModelError, match="No such file"):
            cache.load(KEY)

    def test_checked_also_where_it_is_allowed(self, foreign):
        flip(foreign, 100)
        with pytest.raises(ModelError, match="its SHA-256 is"):
            cache.load_file(foreign, allow_foreign=True)
        flip(foreign, 100)
        beside(foreign).unlink()
        with pytest.raises(ModelError, match=r"my\.engine\.json: cannot be read"):
            cache.load_file(foreign, allow_foreign=True)

    def test_ones_own_needs_no_permission_and_passes_all_checks(self, path):
        assert cache.load_file(path) == (ENGINE, sidecar(KEY, ENGINE))
        path.chmod(0o666)
        with pytest.raises(ModelError, match="others may change it"):
            cache.load_file(path, allow_foreign=True)

    def test_another_engine_under_this_name(self, path):
        path.with_name("liver.engine").write_bytes(ENGINE)
        beside(path.with_name("liver.engine")).write_bytes(beside(path).read_bytes())
        with pytest.raises(ModelError, match="is the sidecar of liver-tensorrt-rtx"):
            cache.load_file(path.with_name("liver.engine"))


class TestAdopt:
    @pytest.fixture
    def foreign(self, path, tmp_path) -> Path:
        """Two engines outside the cache, one of them accepted there, and somebody's own file."""
        put(dataclasses.replace(KEY, batch=16), ENGINE[:100])
        cache.accept(path, {"accepted": True}, sha256=hashlib.sha256(ENGINE).hexdigest())
        place = tmp_path / "usb stick"
        path.parent.rename(place)
        (place / "notes.txt").write_text("")
        return place

    def test_they_are_found_then_and_judged_anew(self, foreign, folder):
        adopted = cache.adopt(foreign, allow_foreign=True)
        assert {entry.path.parent for entry in adopted} == {folder}
        assert [entry.sidecar.key.batch for entry in adopted] == [1, 16]
        assert cache.obtain(KEY, never) == (ENGINE, sidecar(KEY, ENGINE))
        assert all(entry.problem is None for entry in cache.entries(verify=True))
        assert (foreign / "notes.txt").exists()
        assert not (folder / "notes.txt").exists()

    def test_refused_unless_allowed(self, foreign, folder):
        with pytest.raises(ModelError, match="refused, since an engine file can run any code"):
            cache.adopt(foreign)
        assert not folder.exists()

    def test_one_that_is_damaged_keeps_all_out(self, foreign, folder):
        flip(foreign / KEY.file_name, 7)
        with pytest.raises(ModelError, match="its SHA-256 is"):
            cache.adopt(foreign, allow_foreign=True)
        assert not folder.exists() or not list(folder.glob("*.engine*"))

    def test_nothing_there_or_ones_own(self, path, tmp_path):
        with pytest.raises(ModelError, match="is your own cache"):
            cache.adopt(path.parent, allow_foreign=True)
        (tmp_path / "empty").mkdir()
        with pytest.raises(ModelError, match="holds no engines; expected what 'trtseg build -o' wrote"):
            cache.adopt(tmp_path / "empty", allow_foreign=True)


def test_another_engine_that_will_do(path):
    exact = dataclasses.replace(KEY, target="sm_89")
    assert cache.obtain(exact, never, others=[KEY])[1].key == KEY
    data = ENGINE[:50]
    assert cache.obtain(exact, lambda: (data, sidecar(exact, data)))[1].key == exact
    assert cache.obtain(exact, never, others=[KEY])[1].key == exact, "its own comes first"


class TestAccept:
    SHA256 = hashlib.sha256(ENGINE).hexdigest()

    def test_a_verdict_is_kept_with_the_engine(self, path):
        assert sidecar(KEY, ENGINE).acceptance is None
        verdict = {"accepted": False, "flipped": 3, "why": ["slot 2"]}
        judged = cache.accept(path, verdict, sha256=self.SHA256)
        data, found = cache.obtain(KEY, never)
        assert data == ENGINE
        assert found == judged == dataclasses.replace(sidecar(KEY, ENGINE), acceptance=verdict)
        assert json.loads(beside(path).read_text())["acceptance"] == verdict
        cache.accept(path, None, sha256=self.SHA256)
        assert cache.obtain(KEY, never)[1] == sidecar(KEY, ENGINE)

    def test_not_the_engine_that_was_judged(self, path):
        before = beside(path).read_bytes()
        with pytest.raises(ModelError, match="is another engine than the one that was judged"):
            cache.accept(path, {"accepted": True}, sha256="0" * 64)
        flip(path, 0)
        with pytest.raises(ModelError, match="its SHA-256 is"):
            cache.accept(path, {"accepted": True}, sha256=self.SHA256)
        assert beside(path).read_bytes() == before

    @pytest.mark.parametrize("value", [float("nan"), object()])
    def test_what_json_cannot_hold_changes_nothing(self, path, value):
        before = beside(path).read_bytes()
        with pytest.raises((ValueError, TypeError)):
            cache.accept(path, {"accepted": value}, sha256=self.SHA256)
        assert beside(path).read_bytes() == before
        assert len(os.listdir(path.parent)) == 3


class TestList:
    def test_nothing(self, tmp_path):
        assert cache.entries() == []
        assert cache.clear() == (0, 0)
        with pytest.raises(ModelError, match="no folder that can be read"):
            cache.entries(tmp_path / "none")

    def test_sorted_and_only_engines(self, folder):
        for batch in (16, 1):
            put(key(batch=batch), ENGINE)
        cache.store_blob("timing", b"times")
        (folder / "notes.json").write_text("{}")
        found = cache.entries(verify=True)
        assert [entry.sidecar.key.batch for entry in found] == [1, 16]
        assert [entry.problem for entry in found] == [None, None]
        assert found == cache.entries(folder)

    def test_clear_takes_all_that_is_ours(self, path, folder):
        cache.store_blob("timing", b"times")
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
        assert cache.load_blob("timing") is None
        cache.store_blob("timing", b"times")
        assert cache.load_blob("timing") == b"times"
        cache.store_blob("timing", b"")
        assert cache.load_blob("timing") == b""

    @pytest.mark.parametrize(
        "damage", [lambda p: flip(p, 33), lambda p: p.write_bytes(b""), lambda p: p.chmod(0o666)]
    )
    def test_not_used_if_damaged_or_not_mine(self, folder, damage):
        cache.store_blob("timing", b"times")
        damage(folder / "timing.blob")
        assert cache.load_blob("timing") is None


def test_the_sidecar_survives_json():
    made = dataclasses.replace(
        sidecar(key(gpu="NVIDIA H100"), ENGINE), warnings=["ä"], acceptance={"accepted": True}
    )
    assert Sidecar.from_json(made.to_json()) == made
    assert json.loads(made.to_json())["format"] == 2


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("TRTSEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine_folder() == tmp_path / "trtseg" / "engines"


def test_one_lock_for_threads_too(folder):
    from concurrent.futures import ThreadPoolExecutor

    inside, most = [0], [0]

    def work(_):
        with locked():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert most == [1]
