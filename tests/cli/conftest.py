"""What the tests of the command line share."""

from pathlib import Path

import pytest
from tiny import cascade_model

from trtseg.phantom import abdomen
from trtseg.sample import write_phantom


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A model with nets of one convolution each."""
    return cascade_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def phantom_ct(tmp_path_factory) -> Path:
    """A CT of 64 x 64 x 12 voxels."""
    folder = tmp_path_factory.mktemp("ct")
    write_phantom(abdomen((12, 64, 64), (20.0, 6.0, 6.0)), folder / "ct.nii.gz", folder / "truth.nii.gz")
    return folder / "ct.nii.gz"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
