"""The CUDA sources without a GPU: csrc/*.cu compiled by g++ (tests/cuda_shim), against the oracle with ``==``.

AddressSanitizer and UBSan watch the kernels; the played GPU finds work for which nobody waits.
"""

import graph_cases
import pytest
from cuda_shim.build import SHIM, Shim


def run(shim: Shim, *cases: str) -> None:
    done = shim.run_script(SHIM / "run.py", *cases)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", ["frame", "thick", "prepare", "gate", "label", "label3", "skipping", "half"])
def test_equals_oracle(shim, case):
    run(shim, case)


def test_memory_of_the_host_is_refused(shim):
    run(shim, "memory_of_the_host")


def test_graphs_and_events(shim):
    run(shim, *graph_cases.CASES, "one_event", "chunk")


def test_the_played_gpu_finds_missing_waits(shim):
    done = shim.run_script(SHIM / "check_played.py")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sanitizers_watch(shim):
    if shim.unwatched is not None:
        pytest.skip(shim.unwatched)
    done = shim.run_script(SHIM / "run.py", "read_behind_the_end")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "prepare_kernel" in done.stderr
