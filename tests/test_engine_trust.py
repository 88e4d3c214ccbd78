"""Which engines are loaded: none that somebody else could have written, unless the user allows it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from pathlib import Path

import pytest
from engine_cache_cases import ENGINE, KEY, beside, flip, load, never, put
from engine_models import sidecar

from trtseg.engines.blobs import store_blob
from trtseg.engines.nvidia import cache
from trtseg.errors import ModelError, OutputError


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


class TestTrust:
    def refused(self, path: Path, message: str) -> str:
        """An engine of the cache is not read, although foreign ones are allowed."""
        with pytest.raises(ModelError, match=message) as caught:
            cache.load_file(path, allow_foreign=True)
        return str(caught.value)

    def test_what_is_written_is_this_users_alone_whatever_the_umask(self, folder):
        old = os.umask(0)
        try:
            put(KEY, ENGINE)
            store_blob("timing", b"times")
            cache.keep_acceptance(KEY, {"accepted": True}, sha256=sidecar(KEY, ENGINE).sha256)
        finally:
            os.umask(old)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for file in folder.iterdir():
            assert not file.stat().st_mode & 0o022, file
        assert load(KEY) == ENGINE

    def test_another_owner(self, path, monkeypatch):
        uid = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
        message = f"it belongs to user {uid} and you are {uid + 1}"
        said = self.refused(path, message)
        assert said.startswith(f"{path.parent}: refused, since an engine file can run any code")
        for use in (lambda: cache.obtain(KEY, never), cache.entries, cache.clear):
            with pytest.raises(ModelError, match=message):
                use()
        assert path.exists()

    @pytest.mark.skipif("os.getuid() != 0", reason="only root can give a file away")
    @pytest.mark.parametrize("which", [Path, beside])
    def test_a_file_of_another_owner_in_a_folder_of_mine(self, path, which):
        os.chown(which(path), 12345, -1)
        assert "delete the file" in self.refused(path, "it belongs to user 12345 and you are 0")
        put(KEY, ENGINE)
        assert load(KEY) == ENGINE

    @pytest.mark.parametrize("which", [Path, beside])
    @pytest.mark.parametrize("mode", [0o602, 0o620])
    def test_a_file_that_others_may_write(self, path, which, mode):
        which(path).chmod(mode)
        said = self.refused(path, rf"others may change it \(mode {mode:o}\); delete the file")
        assert which(path).name in said
        put(KEY, ENGINE)  # the old files are not trusted but replaced
        assert load(KEY) == ENGINE

    @pytest.mark.parametrize("mode", [0o701, 0o750])
    def test_a_folder_that_others_may_enter(self, path, mode):
        path.parent.chmod(mode)
        message = rf"others may change it \(mode {mode:o}\); delete the folder, or set TRTSEG_CACHE"
        self.refused(path, message)
        for use in (lambda: cache.obtain(KEY, never), cache.entries, cache.clear):
            with pytest.raises(ModelError, match=message):
                use()
        assert path.exists()

    @pytest.mark.parametrize("which", [Path, beside])
    def test_a_link_is_not_followed(self, path, which, tmp_path):
        which(path).rename(tmp_path / "elsewhere")
        which(path).symlink_to(tmp_path / "elsewhere")
        self.refused(path, "cannot be read")

    def test_a_pipe_does_not_hang(self, path):
        path.unlink()
        os.mkfifo(path, 0o600)
        self.refused(path, "is not a regular file")

    def test_the_folder_itself_may_be_a_link(self, path, tmp_path):
        path.parent.rename(tmp_path / "large disk")
        path.parent.symlink_to(tmp_path / "large disk")
        assert load(KEY) == ENGINE

    def test_a_cache_that_cannot_be_made(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path / "file"))
        with pytest.raises(OutputError, match=r"cannot be created .*set TRTSEG_CACHE to a folder of your"):
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
        cache.keep_acceptance(KEY, {"accepted": True}, sha256=hashlib.sha256(ENGINE).hexdigest())
        place = tmp_path / "usb stick"
        path.parent.rename(place)
        (place / "notes.txt").write_text("")
        return place

    def test_they_are_found_then_and_checked_anew(self, foreign, folder):
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
