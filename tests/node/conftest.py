"""A model, and a worker of a node in this process."""

import ctypes

import pytest

from trtseg.api import Segmenter
from trtseg.node.config import Config
from trtseg.node.spool import Spool
from trtseg.node.work import Worker


@pytest.fixture(scope="session")
def model(model):
    """The settings of a node have its path as text."""
    return str(model)


@pytest.fixture(scope="session")
def segmenter(model):
    with Segmenter(model, device="cpu", threads=1) as segmenter:
        yield segmenter


@pytest.fixture
def worker(tmp_path, segmenter):
    config = Config(tmp_path / "store", folder=(tmp_path,), results=("seg",), quiet_s=0, long_quiet_s=0)
    worker = Worker(config, Spool(config.store), segmenter, ctypes.c_longlong())
    worker.spool.do("INSERT INTO association(opened) VALUES(0)")
    yield worker
    worker.close()
