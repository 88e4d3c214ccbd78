"""`_core.copy`, `_core.to_half` and `_core.clear`: host memory moved by several threads."""

import subprocess
import sys

import numpy as np
import pytest
from test_ops_arguments import OnGpu

from trtseg import _core
from trtseg.errors import ArgumentError

MIB = 1 << 20
GUARD = 16


@pytest.mark.parametrize("size", [0, 1, 7, 4099, MIB, 3 * MIB + 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_copies_and_clears_exactly_the_array(size, dtype, threads):
    rng = np.random.default_rng(size)
    source = rng.integers(1, 100, size).astype(dtype)
    source.flags.writeable = False
    buffer = np.full(size + 2 * GUARD, 101, dtype)
    target = buffer[GUARD : GUARD + size]
    _core.copy(target, source, threads=threads)
    assert (target == source).all()
    _core.clear(target[: size // 2], threads=threads)
    assert not target[: size // 2].any()
    assert (target[size // 2 :] == source[size // 2 :]).all()
    assert (buffer[:GUARD] == 101).all()
    assert (buffer[GUARD + size :] == 101).all()


@pytest.mark.parametrize("size", [0, 1, 7, 4099, 3 * MIB + 5])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_rounds_to_half_as_numpy_does(size, threads):
    rng = np.random.default_rng(size)
    source = (rng.standard_normal(size) * 10.0 ** rng.integers(-9, 6, size)).astype(np.float32)
    edges = [0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99]
    edges += [65520, -1e30, 2**-24, 2**-25, 1 + 2**-11, 1e-45]
    source[: len(edges)] = edges[:size]
    buffer = np.full(size + 2 * GUARD, 101, np.float16)
    target = buffer[GUARD : GUARD + size]
    _core.to_half(target, source, threads=threads)
    with np.errstate(over="ignore"):
        expected = source.astype(np.float16)
    np.testing.assert_array_equal(target, expected)
    assert (np.signbit(target) == np.signbit(expected))[~np.isnan(expected)].all()
    assert (buffer[:GUARD] == 101).all()
    assert (buffer[GUARD + size :] == 101).all()


def test_a_negative_number_of_threads_is_refused():
    array, half = np.zeros(4, np.float32), np.zeros(4, np.float16)
    for call, arguments in (
        (_core.copy, (array, array.copy())),
        (_core.to_half, (half, array)),
        (_core.clear, (array,)),
    ):
        with pytest.raises(ArgumentError, match=r"^threads: got -1, expected 0 \(.*\) or more"):
            call(*arguments, threads=-1)


def test_wrong_arrays_are_not_rounded():
    half, single = np.zeros((4, 6), np.float16), np.zeros((4, 6), np.float32)
    for dst, src, message in (
        (half, single[:3], "src: got 72 bytes, expected twice the 48 bytes of dst"),
        (half, half, "src: got dtype float16, expected float32"),
        (single, single, "dst: got dtype float32, expected float16"),
        (half, OnGpu(single), "src: got an array on a GPU, expected a NumPy array"),
    ):
        with pytest.raises(ArgumentError, match=f"^{message}"):
            _core.to_half(dst, src)


def test_shapes_may_differ_where_sizes_agree():
    target = np.zeros((2, 3, 4), np.int16)
    _core.copy(target, np.arange(24, dtype=np.int16))
    assert (target.ravel() == np.arange(24)).all()


def test_wrong_arrays_are_refused():
    good = np.zeros((4, 6), np.int16)
    read_only = np.zeros((4, 6), np.int16)
    read_only.flags.writeable = False
    for dst, src, message in (
        (good, good[:3], "src: got 36 bytes, expected the 48 bytes of dst and its dtype"),
        (good, good.view(np.uint8), "src: got 48 bytes, expected the 48 bytes of dst and its dtype"),
        (good, good.astype(np.int64), "src: got dtype int64"),
        (good, np.zeros((4, 12), np.int16)[:, ::2], "src: got an array that is not C-contiguous"),
        (np.zeros((4, 12), np.int16)[:, ::2], good, "dst: got an array that is not C-contiguous"),
        (read_only, good, "dst: got a read-only array"),
        (good, good.tolist(), "src: got list"),
        (good, OnGpu(good), "src: got an array on a GPU, expected a NumPy array"),
        (OnGpu(good), good, "dst: got an array on a GPU, expected a NumPy array"),
    ):
        with pytest.raises(ArgumentError, match=f"^{message}"):
            _core.copy(dst, src)
    for dst, message in ((read_only, "dst: got a read-only array"), (OnGpu(good), "dst: got an array on a")):
        with pytest.raises(ArgumentError, match=message):
            _core.clear(dst)


def test_a_target_has_memory_of_its_own():
    buffer = np.arange(40, dtype=np.int16)
    for dst in (buffer[:20], buffer[1:21], buffer[19:39]):
        with pytest.raises(
            ArgumentError, match=r"^dst: got an array in the memory of src, expected memory of its own"
        ):
            _core.copy(dst, buffer[:20])
    _core.copy(buffer[20:], buffer[:20])
    assert (buffer == [*range(20), *range(20)]).all()
    _core.copy(buffer[7:7], buffer[9:9])  # nothing
    single = np.zeros(8, np.float32)
    with pytest.raises(ArgumentError, match=r"^dst: got an array in the memory of src"):
        _core.to_half(single.view(np.float16)[8:], single)


AT_WORK = """
import sys, threading, time
import numpy as np
from trtseg import _core

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(0.5)  # while Python ends

slow = Slow()
one, other = np.zeros((2, 1 << 22), np.int16)

def work():
    while True:
        _core.copy(one, other)

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
sys.exit(3)
"""


def test_python_ends_while_threads_are_at_work():
    done = subprocess.run([sys.executable, "-c", AT_WORK], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")
