"""What several test modules share."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cuda_shim.build import Shim, build_shim
from tiny import cascade_model

import trtseg
from trtseg.phantom import abdomen
from trtseg.sample import write_phantom

CORES = os.sched_getaffinity(0)
if worker := os.environ.get(
    "PYTEST_XDIST_WORKER"
):  # a core each: OpenVINO, PyTorch and our ops start no more threads
    os.sched_setaffinity(0, {sorted(CORES)[int(worker[2:]) % len(CORES)]})


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let workers begin with the files of few tests: these take longest, and one that begins last is waited for."""
    if worker:
        tests = Counter(item.path for item in items)
        items.sort(key=lambda item: tests[item.path])


@pytest.fixture(scope="module", autouse=True)
def _nothing_old_is_looked_through() -> None:
    """Let the garbage collector pass over what is there by now: a test that calls it would wait half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real CT beside the repository; without it the test is skipped."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "MANIFEST.json").is_file():
        pytest.skip(f"no real CT at {folder}")
    return folder


@pytest.fixture(scope="session")
def shim_folder(tmp_path_factory) -> Path:
    """Where the shim is built, once for all workers."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if worker else root) / "cuda_shim"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def shim(shim_folder) -> Shim:
    """trtseg._core for a GPU that is played on the CPU."""
    return build_shim(shim_folder, CORES)


@pytest.fixture(scope="session")
def unwatched_shim(shim_folder) -> Shim:
    """The same without sanitizers, which OpenVINO does not get on with."""
    return build_shim(shim_folder, CORES, watched=False)


@pytest.fixture(scope="session")
def phantom_ct(tmp_path_factory) -> Path:
    """A CT of 64 x 64 x 12 voxels."""
    folder = tmp_path_factory.mktemp("ct")
    write_phantom(abdomen((12, 64, 64), (20.0, 6.0, 6.0)), folder / "ct.nii.gz", folder / "truth.nii.gz")
    return folder / "ct.nii.gz"


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """A model with nets of one convolution each, which tests only read."""
    return cascade_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def segmenter(model) -> Iterator[trtseg.Segmenter]:
    """That model on the CPU."""
    with trtseg.Segmenter(model, device="cpu") as opened:
        yield opened


@pytest.fixture
def no_gpu(tmp_path, monkeypatch) -> None:
    """A cache of its own, and no GPU whatever this machine has."""
    from engine_models import NO_DRIVER  # needs onnx

    monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("trtseg.engines.nvidia.build.find_driver", lambda: NO_DRIVER)
