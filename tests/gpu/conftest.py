"""Without a usable GPU these tests are skipped with the reason; TRTSEG_REQUIRE_CUDA=1 makes it fail."""

import importlib.util
import os

import pytest

from trtseg import _core


def missing() -> str | None:
    """Say what is not there that the tests need, or None. What is there but broken must fail."""
    if not _core.build_info()["cuda"]:
        return "trtseg._core was built without CUDA: rebuild it with nvcc"
    try:
        import torch
    except ModuleNotFoundError:
        return "PyTorch is not installed: the tests keep their GPU arrays in it"
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    return None


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """Skip, or fail, where there is no GPU."""
    reason = missing()
    if reason is not None:
        leave_out(reason)


@pytest.fixture(scope="session")
def pycuda() -> None:
    """Skip, or fail, where PyCUDA is not installed."""
    if importlib.util.find_spec("pycuda") is None:
        leave_out("PyCUDA is not installed")


def leave_out(reason: str) -> None:
    """Skip a test, or fail where that is not allowed."""
    if os.environ.get("TRTSEG_REQUIRE_CUDA") == "1":
        pytest.fail(f"TRTSEG_REQUIRE_CUDA=1, but {reason}", pytrace=False)
    pytest.skip(reason)
