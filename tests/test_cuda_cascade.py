"""The CUDA cascade without a GPU: buffers, chunks, lanes, graphs and errors on one that is played on the CPU.

The ops are the real kernels (tests/cuda_shim), the nets are NumPy, PyCUDA is a stand-in. The GPU that is played does as
little as it may, as late as it may, so that what nobody waits for is found missing. What a GPU, its driver, PyCUDA and
TensorRT make of the same calls is for tests/gpu.
"""

import shutil
from pathlib import Path

import engine_models
import pytest
from cascade_cases import CASES

import trtseg

SHIM = Path(__file__).parent / "cuda_shim"


HERE = [
    "skipping",
    "out_of_memory",
    "errors",
    "lost",
    "nothing_is_left",
    "memory_outlives_its_work",
    "in_order",
    "beside_a_recording",
    "no_memory_for_contexts",
    "recordings_overlap",
    "all_is_ready_after_the_first_slice",
    "without_graphs",
    "nets_go_where_the_device_is_current",
]  # in the script, as they need the stand-in


@pytest.mark.parametrize("case", [*CASES, *HERE])
def test_played(shim, case):
    done = shim.run_script(SHIM / "cascade.py", case)
    assert done.returncode == 0, done.stderr


def test_nothing_is_said_when_the_process_ends(unwatched_shim):
    done = unwatched_shim.run_script(SHIM / "cascade.py", "ends_in_mid_use")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A tiny model, and a cache with its engines for sm_89."""
    folder = tmp_path_factory.mktemp("built")
    model = engine_models.cascade_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTSEG_CACHE", str(folder / "cache"))
        for precision in ("fp16", "fp32"):
            trtseg.build_engines(model, target="sm_89", precision=precision, batch=4)
    return folder


WHOLE = ["equals_the_cpu", "label_in_place", "label_through_dlpack", "two_threads", "judged_once"]
WHOLE += [
    "falls_back_to_fp32",
    "tensorrt_goes_in_order",
    "without_a_runtime_cache",
    "not_capturable",
    "prepared",
]
WHOLE += ["what_tensorrt_refuses_is_an_error"]


@engine_models.needs_rtx
@pytest.mark.parametrize("case", WHOLE)
def test_whole(unwatched_shim, built, tmp_path, case):
    cache = shutil.copytree(built / "cache", tmp_path / "cache")  # copies modes, too
    done = unwatched_shim.run_script(SHIM / "whole.py", str(built / "model"), case, TRTSEG_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
