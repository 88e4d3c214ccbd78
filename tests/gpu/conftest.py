"""What these tests need. What is missing is a skip that says so, or with TRTSEG_REQUIRE_CUDA=1 a failure.

Needed are a GPU, trtseg built with CUDA, PyTorch with CUDA, PyCUDA, onnx, and what the CPU takes for a CT. TensorRT,
TensorRT-RTX, CuPy and a second GPU are optional: without them a test is skipped all the same.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from trtseg import _core
from trtseg.engines.nvidia.driver import find_driver
from trtseg.engines.nvidia.machine import abilities
from trtseg.engines.nvidia.runtime import TITLES


def leave_out(reason: str, *, optional: bool = False) -> NoReturn:
    """Skip a test, or fail where that is not allowed."""
    if optional:
        pytest.skip(f"optional: {reason}")
    if os.environ.get("TRTSEG_REQUIRE_CUDA") == "1":
        pytest.fail(f"TRTSEG_REQUIRE_CUDA=1, but {reason}", pytrace=False)
    pytest.skip(reason)


def need(*modules: str, optional: bool = False) -> None:
    """Leave a test out where a module is not installed; one that is there but broken must fail."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        leave_out(f"not installed: {', '.join(absent)}", optional=optional)


def missing() -> str | None:
    """Say what is not there that all tests need, or None. What is there but broken must fail."""
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
    reason = missing()
    if reason is not None:
        leave_out(reason)


@pytest.fixture(scope="session")
def pycuda() -> None:
    need("pycuda")


@pytest.fixture(scope="session")
def cpu_path() -> None:
    """What gives the FP32 reference and cleans labels up."""
    if importlib.util.find_spec("openvino") is None:
        need("onnxruntime")


@pytest.fixture(scope="session")
def nibabel() -> None:
    """What a stream takes for its geometry."""
    need("nibabel")


@pytest.fixture(scope="session")
def command(nibabel: None) -> None:
    """What ``trtseg segment`` takes besides."""
    need("typer", "rich", "isal")


@pytest.fixture(scope="session")
def cupy() -> Any:
    need("cupy", optional=True)
    return importlib.import_module("cupy")


@pytest.fixture(scope="session")
def second_gpu(gpu: None) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        leave_out("there is one GPU only", optional=True)


@pytest.fixture(scope="session", name="leave_out")
def _leave_out() -> Callable[..., NoReturn]:
    return leave_out


def pytest_report_header() -> list[str]:
    """Where this runs: without it a result says little."""
    driver, built = find_driver(), _core.build_info()
    ours = f"trtseg for CUDA {built['cuda_version']}, sm_{built['cuda_archs']}"
    lines = [f"driver {driver.version}, CUDA {driver.cuda}; {ours}"]
    for one in abilities(driver):
        if one.task == "run":
            what = " ".join([TITLES[one.runtime], one.version or "", "on", one.where])
            lines.append(f"{' '.join(what.split())}: {one.detail}")
    return lines
