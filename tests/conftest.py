"""What several test modules share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real CT beside the repository; without it the test is skipped."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "MANIFEST.json").is_file():
        pytest.skip(f"no real CT at {folder}")
    return folder
