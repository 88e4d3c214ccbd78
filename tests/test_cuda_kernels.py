"""The CUDA sources without a GPU: csrc/*.cu compiled by g++ (tests/cuda_shim), against the oracle with ``==``.

AddressSanitizer and UBSan watch the kernels; the GPU that is played finds what does not wait for it.
"""

import pytest
from cuda_shim.build import SHIM, Shim


def run(shim: Shim, case: str) -> None:
    done = shim.run_script(SHIM / "run.py", case)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", ["prepare", "gate", "label", "label3", "skipping", "half"])
def test_equals_oracle(shim, case):
    run(shim, case)


def test_memory_of_the_host_is_refused(shim):
    run(shim, "memory-of-the-host")


@pytest.mark.parametrize("case", ["replay", "empty", "forked", "freeing", "threads"])
def test_graph(shim, case):
    run(shim, case)


@pytest.mark.parametrize(
    "case", ["raising", "blocking", "default-streams", "failing-calls", "illegal-address"]
)
def test_graph_that_cannot_be_made(shim, case):
    run(shim, case)


@pytest.mark.parametrize("case", ["waiting", "one-event"])
def test_wait_for_orders_streams(shim, case):
    run(shim, case)


def test_the_played_gpu_finds_what_is_not_waited_for(shim):
    done = shim.run_script(SHIM / "check_played.py")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sanitizers_watch(shim):
    if shim.unwatched is not None:
        pytest.skip(shim.unwatched)
    done = shim.run_script(SHIM / "run.py", "read-behind-the-end")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "prepare_kernel" in done.stderr
