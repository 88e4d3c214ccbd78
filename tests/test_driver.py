"""What the driver says of itself and its GPUs; small libraries made here play the driver."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trtseg.engines.nvidia import driver

COMPILER = shutil.which(os.environ.get("CC", "cc"))
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc; or set CC)")

CUDA = """
    #include <string.h>
    int cuInit(unsigned flags) { return flags ? 1 : INIT; }
    int cuDriverGetVersion(int* v) { *v = 13020; return 0; }
    int cuDeviceGetCount(int* n) { *n = GPUS; return 0; }
    int cuDeviceGet(int* device, int index) { *device = 100 + index; return 0; }
    int cuDeviceGetName(char* name, int size, int device) {
        strncpy(name, device == 100 ? "NVIDIA RTX A4000" : "NVIDIA B200", size);
        return 0;
    }
    int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = (size_t)(device - 99) << 34; return 0; }
    int cuDeviceGetAttribute(int* value, int attribute, int device) {
        int major = device == 100 ? 8 : 10, minor = device == 100 ? 6 : 0;
        *value = attribute == 75 ? major : attribute == 76 ? minor : -1;
        return 0;
    }
"""
NVML = """
    #include <string.h>
    int nvmlInit_v2(void) { return 0; }
    int nvmlShutdown(void) { return 0; }
    int nvmlSystemGetDriverVersion(char* text, unsigned size) { strncpy(text, "580.65.06", size); return 0; }
"""


def make(folder: Path, name: str, code: str, **defines: int) -> None:
    options = [f"-D{name}={value}" for name, value in defines.items()]
    command = [COMPILER, "-shared", "-fPIC", *options, "-x", "c", "-", "-o", str(folder / name)]
    subprocess.run(command, input=textwrap.dedent(code), text=True, check=True)


def found(folder: Path) -> dict:
    """What `find_driver` says in a process that finds these libraries first."""
    code = "import json; from dataclasses import asdict; from trtseg.engines.nvidia.driver import find_driver as find; "
    code += "print(json.dumps(asdict(find())))"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    return json.loads(done.stdout)


@needs_compiler
class TestDriver:
    def test_two_gpus(self, tmp_path):
        make(tmp_path, "libcuda.so.1", CUDA, INIT=0, GPUS=2)
        make(tmp_path, "libnvidia-ml.so.1", NVML)
        assert found(tmp_path) == {
            "version": "580.65.06",
            "cuda": "13.2",
            "gpus": [
                {"index": 0, "name": "NVIDIA RTX A4000", "sm": "sm_86", "memory": 1 << 34},
                {"index": 1, "name": "NVIDIA B200", "sm": "sm_100", "memory": 2 << 34},
            ],
            "problem": None,
        }

    @pytest.mark.parametrize(
        ("init", "gpus", "problem"),
        [
            (100, 0, "the NVIDIA driver sees no GPU"),
            (0, 0, "the NVIDIA driver sees no GPU"),
            (803, 1, "the NVIDIA driver does not start (CUDA error 803)"),
        ],
    )
    def test_no_gpu(self, tmp_path, init, gpus, problem):
        make(tmp_path, "libcuda.so.1", CUDA, INIT=init, GPUS=gpus)
        said = found(tmp_path)
        assert (said["gpus"], said["cuda"], said["problem"]) == ([], "13.2", problem)


@pytest.mark.skipif(driver.find_driver().problem is None, reason="this machine has a GPU")
def test_no_gpu_here():
    here = driver.find_driver()
    assert here.gpus == ()
    assert here.problem
