"""A net whose allocations fail, each in turn: a MemoryError, and the net is as before."""

import shutil
import subprocess
import sys

import pytest

from trtseg import _core

pytestmark = pytest.mark.skipif(not _core.Net.is_supported(), reason="this processor has no AVX2 and FMA")

# All other forms of new and delete lead to these and to free.
FAILING = """
#include <atomic>
#include <cstdlib>
#include <new>

static std::atomic<long> left{-1};

extern "C" void fail_after(long allocations) { left = allocations; }

static void* checked(void* memory) {
  if (!memory || (left >= 0 && left-- == 0)) {
    std::free(memory);
    throw std::bad_alloc();
  }
  return memory;
}

void* operator new(std::size_t size) { return checked(std::malloc(size ? size : 1)); }
void* operator new(std::size_t size, std::align_val_t align) {
  const auto a = static_cast<std::size_t>(align);
  return checked(std::aligned_alloc(a, (size + a - 1) / a * a));
}
"""

SCRIPT = """
import ctypes
import sys
import numpy as np
from trtseg import _core

fail_after = ctypes.CDLL(sys.argv[1]).fail_after

def failing(call):
    '''Call it again and again, with one allocation more each time until it fails; return how often it failed.'''
    for allocations in range(10000):
        fail_after(ctypes.c_long(allocations))
        try:
            call()
        except MemoryError:
            continue
        finally:
            fail_after(ctypes.c_long(-1))
        return allocations

rng = np.random.default_rng(0)
def random(*shape):
    return rng.normal(0, 0.3, shape).astype(np.float32)

steps = [
    ("add_map", 32, 32, 16),
    ("add_map", 16, 16, 8),
    ("add_map", 32, 32, 8),
    ("add_first", (2, 0, 8), random(8, 1, 3, 3), random(8), 1, 1),
    ("add_conv", (2, 0, 8), (0, 0, 8), (1, 0, 8), random(8, 8, 3, 3), random(8)),
    ("add_up", (1, 0, 8), (0, 8, 8), random(8, 8, 2, 2), random(8)),
    ("add_head", (0, 0, 16), random(16, 2, 1, 1), random(2)),
]
x = random(3, 1, 32, 32)
x[:, :, :20] = 0
logits, again = np.empty((2, 3, 2, 32, 32), np.float32)
one, other = _core.Net(32, 32, 2), _core.Net(32, 32, 2)
for name, *arguments in steps:
    getattr(one, name)(*arguments)
    assert failing(lambda: getattr(other, name)(*arguments)), name
one.run(x, logits, None, 1)
for threads in (1, 2, 4):
    assert failing(lambda: other.run(x, again, None, threads)), threads
    assert (again == logits).all(), threads
"""


def test_each_allocation_fails_in_turn(tmp_path):
    gxx = shutil.which("g++")
    if gxx is None:
        pytest.skip("there is no g++ to compile an allocation that fails with")
    (source := tmp_path / "failing.cpp").write_text(FAILING)
    library = tmp_path / "failing.so"
    subprocess.run([gxx, "-std=c++17", "-shared", "-fPIC", source, "-o", library], check=True)
    command = ["env", f"LD_PRELOAD={library}", sys.executable, "-c", SCRIPT, library]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
