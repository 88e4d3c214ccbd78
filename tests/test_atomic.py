"""Files appear complete or not at all."""

import errno
import os
import re
import stat
import subprocess
import sys

import pytest

from trtseg.errors import InputError, OutputError
from trtseg.io.atomic import atomic, explain


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_all_appear(tmp_path):
    a, b = tmp_path / "labels.nii.gz", tmp_path / "report.json"
    b.write_text("old")
    with atomic(a, str(b)) as (ta, tb):
        assert ta.parent == tb.parent == tmp_path
        assert ta.name.startswith(".")
        assert ta.name.endswith(".nii.gz")
        assert tb.name.endswith(".json")
        assert ta.read_bytes() == tb.read_bytes() == b""
        ta.write_text("labels")
        tb.write_text("report")
        assert not a.exists()
        assert b.read_text() == "old"
    assert (a.read_text(), b.read_text()) == ("labels", "report")
    assert names(tmp_path) == ["labels.nii.gz", "report.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, InputError, MemoryError])
def test_nothing_appears_on_any_exception(tmp_path, error):
    a, b = tmp_path / "a.nii.gz", tmp_path / "b.json"
    b.write_text("old")

    def write():
        with atomic(a, b) as (ta, tb):
            ta.write_text("half")
            tb.write_text("half")
            raise error("stop")

    with pytest.raises(error):
        write()
    assert names(tmp_path) == ["b.json"]
    assert b.read_text() == "old"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic(tmp_path / "a") as (path,):
            path.write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("names", [("a",), ("a", "new")])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, names):
    (tmp_path / "a").write_text("of a patient")
    (tmp_path / "a").chmod(0o600)
    with atomic(*(tmp_path / name for name in names)) as parts:
        for part in parts:
            part.write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_what_is_written_for_a_private_file_is_private_meanwhile_and_the_body_may_say_otherwise(tmp_path):
    target = tmp_path / "a"
    target.write_text("of a patient")
    target.chmod(0o4700)
    with atomic(target) as (path,):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700  # nobody becomes somebody else
        path.chmod(0o644)
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_bad_targets_fail_before_the_body(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "a.nii")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "old").write_text("")
    for paths, message in (
        ([tmp_path / "none" / "a.nii"], r"a\.nii: the folder .*none does not exist; create it first"),
        ([tmp_path / "a.nii", tmp_path / "none" / "b.nii"], "does not exist"),
        ([tmp_path / "folder"], "folder: is a folder; give the path of a file in it"),
        ([tmp_path / "a.nii", str(tmp_path / "a.nii")], r"a\.nii: given twice"),
        ([tmp_path / "a.nii", tmp_path / "folder" / ".." / "a.nii"], "given twice"),
        ([tmp_path / "a.nii", tmp_path / "link"], "given twice"),
        ([tmp_path / "pipe"], "pipe: is not a regular file"),
        ([tmp_path / "x" / ("n" * 300)], "does not exist"),
        ([tmp_path / ("n" * 256)], "n: the name is too long to write it; choose a shorter one"),
        ([tmp_path / "a.nii", tmp_path / ("n" * 256) / "b.nii"], "b.nii: the name is too long"),
        ([tmp_path / "loop"], "loop: cannot be written .*Too many levels of symbolic links"),
        ([tmp_path / "loop" / "a.nii"], "a.nii: cannot be written .*Too many levels of symbolic links"),
        ([tmp_path / "a\0b"], "cannot be written .*embedded null (byte|character)"),
        ([tmp_path / "old" / "a.nii"], "a.nii: cannot be written .*Not a directory"),
    ):
        before = names(tmp_path)
        with pytest.raises(OutputError, match=message), atomic(*paths):
            pytest.fail("the body ran")
        assert names(tmp_path) == before


def test_names_as_long_as_can_be(tmp_path):
    target = tmp_path / ("n" * 248 + ".nii.gz")
    with atomic(target) as (path,):
        assert path.name.endswith(".nii.gz")
        path.write_text("x")
    assert target.read_text() == "x"


def test_links_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.nii"
    link.symlink_to(tmp_path / "real" / "a.nii")
    with atomic(link) as (path,):
        assert path.parent == tmp_path / "real"
        path.write_text("x")
    assert link.is_symlink()
    assert link.read_text() == "x"


def test_full_disk_names_the_target(tmp_path):
    a, b = tmp_path / "a.nii.gz", tmp_path / "b.json"
    a.write_text("old")
    with (
        pytest.raises(OutputError, match=r"^[^,]*b\.json: no space left to write it; .*Nothing was written"),
        atomic(a, b) as (_, tb),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", os.fspath(tb))
    # Without a file name in the error every target is named.
    with pytest.raises(OutputError, match=r"a\.nii\.gz, .*b\.json: no space left"), atomic(a, b):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == ["a.nii.gz"]
    assert a.read_text() == "old"


def test_a_file_that_cannot_be_begun_is_the_one_that_is_named(tmp_path, monkeypatch):
    begin = os.open

    def full(path, *rest):
        if os.fspath(path).endswith("b.json"):
            raise OSError(errno.ENOSPC, "No space left on device", os.fspath(path))
        return begin(path, *rest)

    monkeypatch.setattr(os, "open", full)
    paths = [tmp_path / name for name in ("a.nii.gz", "b.json", "c.png")]
    with pytest.raises(OutputError, match=r"^[^,]*/b\.json: no space left to write it"), atomic(*paths):
        pytest.fail("the body ran")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "no space left to write it; free some or choose another folder"),
        (
            errno.EFBIG,
            "no space left to write it, for files may not be that large here (ulimit -f); raise the limit or choose "
            "another folder",
        ),
        (errno.EACCES, "no permission to write there; choose another folder"),
        (errno.EPERM, "no permission to write there; choose another folder"),
        (errno.EROFS, "no permission to write there; choose another folder"),
        (errno.ENAMETOOLONG, "the name is too long to write it; choose a shorter one"),
        (errno.EIO, f"cannot be written ([Errno {errno.EIO}] why)"),
    ],
)
def test_why_a_file_cannot_be_written(code, said):
    assert explain(OSError(code, "why"), "a.nii") == f"a.nii: {said}. Nothing was written"


LIMITED = """
import resource, signal, sys
import numpy as np
from trtseg.errors import OutputError
from trtseg.io import atomic, load, write_nifti
labels = np.random.default_rng(0).integers(0, 3, (40, 64, 64)).astype(np.uint8)
volume = load(np.full(labels.shape, -1000, np.int16), spacing=(1, 1, 1))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    with atomic(sys.argv[1]) as (path,):
        write_nifti(path, labels, volume.geometry)
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["labels.nii", "labels.nii.gz"])
def test_disk_that_is_really_full(tmp_path, name):
    target = tmp_path / name
    target.write_text("old")
    done = subprocess.run([sys.executable, "-c", LIMITED, target], capture_output=True, text=True, check=True)
    assert f"{name}: no space left to write it" in done.stdout
    assert done.stderr == ""
    assert names(tmp_path) == [name]
    assert target.read_text() == "old"


@pytest.mark.parametrize("hard_links", [True, False])
@pytest.mark.parametrize("existed", [True, False])
def test_failing_second_rename_is_rolled_back(tmp_path, monkeypatch, existed, hard_links):
    a, b = tmp_path / "a", tmp_path / "b"
    if existed:
        a.write_text("old")
    replace = os.replace

    def fail_on_b(source, target):
        if os.fspath(target) == os.fspath(b):
            raise OSError(errno.EIO, "Input/output error", os.fspath(source), None, os.fspath(target))
        replace(source, target)

    def no_links(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "replace", fail_on_b)
    if not hard_links:
        monkeypatch.setattr(os, "link", no_links)

    def write():
        with atomic(a, b) as paths:
            for path in paths:
                path.write_text("new")

    with pytest.raises(OutputError, match=r"^[^,]*b: cannot be written .*Input/output error"):
        write()
    assert names(tmp_path) == (["a"] if existed else [])
    if existed:
        assert a.read_text() == ("old" if hard_links else "new")


@pytest.mark.parametrize("fails", [True, False])
def test_files_that_are_made_wrong_go_with_the_new_ones_or_stay(tmp_path, monkeypatch, fails):
    target, wrong, missing = tmp_path / "a", tmp_path / "wrong", tmp_path / "missing"
    target.write_text("old")
    wrong.write_text("of old")
    replace = os.replace

    def replaced(source, to):
        if os.fspath(to) == os.fspath(target):
            assert not wrong.exists()  # it goes first: a process killed here leaves nothing that is wrong
            if fails:
                raise OSError(errno.EIO, "Input/output error", os.fspath(source), None, os.fspath(to))
        replace(source, to)

    monkeypatch.setattr(os, "replace", replaced)

    def write():
        with atomic(target, without=[wrong, missing]) as (path,):
            path.write_text("new")
            assert wrong.exists()

    if fails:
        with pytest.raises(OutputError, match=r"a: cannot be written .*Nothing was written"):
            write()
        assert (target.read_text(), wrong.read_text()) == ("old", "of old")
        assert names(tmp_path) == ["a", "wrong"]
    else:
        write()
        assert target.read_text() == "new"
        assert names(tmp_path) == ["a"]


def test_a_file_that_is_to_go_is_back_after_an_interrupt(tmp_path, monkeypatch):
    wrong = tmp_path / "wrong"
    wrong.write_text("of old")
    replace = os.replace

    def interrupted(source, to):
        replace(source, to)
        monkeypatch.setattr(os, "replace", replace)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "a", without=[wrong]):
        pass
    assert names(tmp_path) == ["wrong"]


def test_a_file_that_is_to_go_and_cannot_be_put_back_is_not_lost(tmp_path, monkeypatch):
    target, wrong = tmp_path / "a", tmp_path / "wrong"
    wrong.write_text("of old")
    replace = os.replace

    def no_way_back(source, to):
        if os.fspath(to) in (os.fspath(target), os.fspath(wrong)):
            raise OSError(errno.EIO, "Input/output error", os.fspath(source), None, os.fspath(to))
        replace(source, to)

    monkeypatch.setattr(os, "replace", no_way_back)
    with pytest.raises(OutputError, match="a: cannot be written"), atomic(target, without=[wrong]):
        pass
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of old"]


def test_a_folder_that_is_to_go_stays_and_is_named_before_any_work(tmp_path):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    said = rf"^{re.escape(str(wrong))}: is a folder, .* move it away\. Nothing was written$"
    with pytest.raises(OutputError, match=said), atomic(tmp_path / "a", without=[wrong]):
        raise AssertionError("at work")
    assert names(tmp_path) == ["wrong"]


def test_body_may_remove_or_replace_its_file(tmp_path):
    target = tmp_path / "a"
    with atomic(target) as (path,):
        (tmp_path / "other").write_text("x")
        os.replace(tmp_path / "other", path)
    assert target.read_text() == "x"
    with pytest.raises(OutputError, match="a: cannot be written"), atomic(target) as (path,):
        path.unlink()
    assert target.read_text() == "x"
    assert names(tmp_path) == ["a"]
