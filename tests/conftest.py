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
def shim(tmp_path_factory) -> Shim:
    """trtseg._core for a GPU that is played on the CPU."""
    return build_shim(tmp_path_factory.mktemp("cuda_shim"))
