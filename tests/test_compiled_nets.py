"""Nets that OpenVINO has compiled are kept in this user's cache, and whatever happens to the cache changes no logit."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny

from trtseg.engines.base import Net
from trtseg.engines.openvino import OpenVinoEngine, import_openvino
from trtseg.engines.precision import FP32

WEIGHT = np.random.default_rng(1).normal(size=(3, 1, 3, 3)).astype(np.float32)
SRC = np.random.default_rng(2).random((5, 1, *tiny.spec("one-step").size), np.float32)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Folder of the compiled nets in a cache of the test's own."""
    monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def net(bias: float = 0.0) -> Net:
    spec = tiny.spec("one-step")
    return Net(spec, FP32, tiny.convolution(WEIGHT, np.full(3, bias), spec))


def logits(net: Net, threads: int = 2) -> np.ndarray:
    dst = np.empty((len(SRC), 3, *SRC.shape[2:]), np.float32)
    OpenVinoEngine(net, threads).run(SRC, dst)
    return dst


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_kept_net_gives_the_same_logits(folder):
    first = logits(net())
    kept = contents(folder)
    assert [name.partition("-openvino-fp32-")[0] for name in kept] == ["one-step"]
    assert (logits(net()) == first).all()
    assert contents(folder) == kept


def test_a_release_that_exports_bytes_keeps_nets_too(folder, monkeypatch):
    """OpenVINO 2025.0 returns bytes where no stream is given, later ones a stream."""
    compiled = import_openvino().CompiledModel
    export = compiled.export_model

    def export_as_2025_0(self, *stream):
        if stream:
            return export(self, *stream)
        whole = io.BytesIO()
        export(self, whole)
        return whole.getvalue()

    monkeypatch.setattr(compiled, "export_model", export_as_2025_0)
    first = logits(net())
    kept = contents(folder)
    assert len(kept) == 1
    assert (logits(net()) == first).all()
    assert contents(folder) == kept


def test_each_net_and_each_number_of_threads_is_kept_by_itself(folder):
    assert (logits(net(1.0)) != logits(net())).all()
    logits(net(), threads=1)
    assert len(contents(folder)) == 3


@pytest.mark.parametrize(
    "broken",
    [b"", b"damaged", hashlib.sha256(b"no net").digest() + b"no net"],
    ids=["empty", "damaged", "no net"],
)
def test_a_broken_file_is_replaced(folder, broken):
    first = logits(net())
    ((name, kept),) = contents(folder).items()
    (folder / name).write_bytes(broken)
    assert (logits(net()) == first).all()
    assert contents(folder).keys() == {name}
    assert len((folder / name).read_bytes()) > len(broken)
    assert (folder / name).read_bytes()[32:64] == kept[32:64]


def test_no_folder_of_this_users_own(folder, tmp_path):
    first = logits(net())
    folder.chmod(0o777)  # anybody could write there
    for path in folder.iterdir():
        path.write_bytes(b"of another user")
    assert (logits(net()) == first).all()
    assert {path.read_bytes() for path in folder.iterdir()} == {b"of another user"}


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    first = logits(net())
    monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path / "file"))
    assert (logits(net()) == first).all()


def test_several_processes_at_once(folder):
    """All of them get the logits, and one whole file is left."""
    code = "import test_compiled_nets as t, hashlib; print(hashlib.sha256(t.logits(t.net())).hexdigest())"
    path = os.pathsep.join(sys.path)
    ran = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    answers = {process.communicate()[0].strip() for process in ran}
    assert [process.returncode for process in ran] == [0, 0, 0]
    assert answers == {hashlib.sha256(logits(net())).hexdigest()}
    assert len(contents(folder)) == 1


@pytest.mark.parametrize("threads", [1, 3, 20])  # fewer and more than there are processors here
def test_threads_change_no_logit(threads):
    assert (logits(net(), threads) == logits(net())).all()
