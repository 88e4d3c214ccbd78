"""What the tests of the command line share."""

from pathlib import Path

import pytest
from tiny import cascade_model


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A model with nets of one convolution each."""
    return cascade_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
