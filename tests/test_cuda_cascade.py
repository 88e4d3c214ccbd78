"""The CUDA cascade without a GPU: chunks, lanes, graphs, order and errors on a GPU that is played on the CPU.

The ops are the real kernels (tests/cuda_shim), the nets are NumPy, PyCUDA is a stand-in. The played GPU does as little
as it may, as late as it may, so that missing waits show. tests/gpu runs the same cases on a real GPU.
"""

import gc
import shutil
from concurrent.futures import ThreadPoolExecutor

import engine_models
import pytest
from cascade_cases import CASES
from cuda_shim.build import SHIM

import trtseg
from trtseg.cascade import lane

# Cases that need the played GPU, in cuda_shim/cascade.py; each group of cases is a process.
HERE = [
    ("skipping", "the_host_copies_while_the_gpu_works", "the_host_copies_beside_chunks_without_liver"),
    (
        "ready_after_the_first_slice",
        "closed_in_order",
        "closed_gives_no_stream",
        "threads_on_the_host",
        "three_lanes",
    ),
    ("out_of_memory", "beside_a_recording", "errors", "lost"),
]
GROUPS = [tuple(CASES)[::2], tuple(CASES)[1::2], *HERE]


@pytest.mark.parametrize("cases", GROUPS, ids=lambda cases: cases[0])
def test_played(unwatched_shim, cases):
    done = unwatched_shim.run_script(SHIM / "cascade.py", *cases)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_garbage_collector_is_off_while_any_thread_records():
    with lane._no_garbage_collection, ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: lane._no_garbage_collection.__enter__()).result()
        assert not gc.isenabled()
    assert not gc.isenabled()  # the other thread still records
    lane._no_garbage_collection.__exit__()
    assert gc.isenabled()
    gc.disable()
    with lane._no_garbage_collection:
        pass
    assert not gc.isenabled()  # it was off before
    gc.enable()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A tiny model, and a cache with its engines for sm_89."""
    folder = tmp_path_factory.mktemp("built")
    model = engine_models.cascade_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTSEG_CACHE", str(folder / "cache"))
        for precision in ("fp16", "fp32"):
            trtseg.build_engines(model, target="sm_89", precision=precision, batch=(1, 4))
    return folder


WHOLE = [
    ("equals_the_cpu", "streamed", "label_in_place", "two_threads", "warmed_up", "not_capturable"),
    (
        "judged_once",
        "judged_where_nothing_can_be_written",
        "falls_back_to_fp32",
        "closed_by_hand_or_not",
        "errors_keep_nothing_alive",
        "what_tensorrt_refuses_is_an_error",
        "left_open",
    ),
]


@engine_models.needs_rtx
@pytest.mark.parametrize("cases", WHOLE, ids=lambda cases: cases[0])
def test_whole(unwatched_shim, built, tmp_path, cases):
    cache = shutil.copytree(built / "cache", tmp_path / "cache")  # copies modes, too
    done = unwatched_shim.run_script(SHIM / "whole.py", str(built / "model"), *cases, TRTSEG_CACHE=str(cache))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
