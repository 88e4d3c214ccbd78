"""What several test modules share."""

from pathlib import Path

import pytest
from cuda_shim.build import Shim, build_shim


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real CT beside the repository; without it the test is skipped."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "MANIFEST.json").is_file():
        pytest.skip(f"no real CT at {folder}")
    return folder


@pytest.fixture(scope="session")
def shim_folder(tmp_path_factory) -> Path:
    """Where the shim is built."""
    return tmp_path_factory.mktemp("cuda_shim")


@pytest.fixture(scope="session")
def shim(shim_folder) -> Shim:
    """trtseg._core for a GPU that is played on the CPU."""
    return build_shim(shim_folder)


@pytest.fixture(scope="session")
def unwatched_shim(shim_folder) -> Shim:
    """The same without sanitizers, which OpenVINO does not get on with."""
    return build_shim(shim_folder, watched=False)
