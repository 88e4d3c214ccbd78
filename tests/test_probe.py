"""What is found out about driver, GPUs and runtimes; the driver is played by small libraries made here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trtseg.engines.nvidia import probe
from trtseg.engines.nvidia.probe import RTX_CAPABILITIES, Driver, Gpu, abilities, why_stale
from trtseg.engines.nvidia.runtime import INSTALL

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
    code = "import json; from dataclasses import asdict; from trtseg.engines.nvidia.probe import find_driver as find; "
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
        driver = found(tmp_path)
        assert (driver["gpus"], driver["cuda"], driver["problem"]) == ([], "13.2", problem)


@pytest.mark.skipif(probe.find_driver().problem is None, reason="this machine has a GPU")
def test_no_gpu_here():
    driver = probe.find_driver()
    assert driver.gpus == ()
    assert driver.problem


@pytest.mark.parametrize(
    ("archs", "sm", "runs"),
    [
        ("75,86,90", "sm_86", True),
        ("75,86,90", "sm_89", True),  # machine code of its generation
        ("75,86,90", "sm_80", False),
        ("75,86,90", "sm_70", False),
        ("75,86,90", "sm_120", True),  # PTX
        ("90", "sm_86", False),
        ("75,120", "sm_90", False),
        ("", "sm_90", False),
    ],
)
def test_which_gpus_compiled_code_runs_on(archs, sm, runs):
    assert probe.compiled_for(archs, sm) == runs


A4000 = Gpu(0, "NVIDIA RTX A4000", "sm_86", 16 << 30)
H100 = Gpu(1, "NVIDIA H100", "sm_90", 80 << 30)
NONE = Driver(None, None, (), "there is no NVIDIA driver")


def says(monkeypatch, driver, *, ops_on_cuda=True, **versions) -> dict[tuple[str, str, str], tuple]:
    monkeypatch.setattr(probe, "installed", lambda module: versions.get(module))
    able = abilities(driver, ops_on_cuda=ops_on_cuda)
    return {(a.runtime, a.where, a.task): (a.works, a.detail) for a in able}


class TestAbilities:
    def test_nothing_installed(self, monkeypatch):
        said = says(monkeypatch, NONE)
        for name in ("tensorrt", "tensorrt-rtx"):
            for task in ("build", "run"):
                assert said[name, "no GPU", task] == (False, f"not installed: {INSTALL[name]}")
        assert len(said) == 4

    def test_without_a_gpu_only_rtx_builds(self, monkeypatch):
        said = says(monkeypatch, NONE, tensorrt="11.4.0", tensorrt_rtx="1.7.1", pycuda="2026.1")
        works, detail = said["tensorrt-rtx", "no GPU", "build"]
        assert works
        assert all(sm in detail for sm in (*RTX_CAPABILITIES, "portable"))
        assert said["tensorrt", "no GPU", "build"] == (
            False,
            "TensorRT builds only for the GPU it runs on, and there is no NVIDIA driver",
        )
        for name in ("tensorrt", "tensorrt-rtx"):
            assert said[name, "no GPU", "run"] == (False, "there is no NVIDIA driver")

    def test_on_gpus(self, monkeypatch):
        driver = Driver("580", "13.0", (A4000, H100), None)
        said = says(monkeypatch, driver, tensorrt="11.4.0", tensorrt_rtx="1.7.1", pycuda="2026.1")
        here, there = "0: NVIDIA RTX A4000 (sm_86)", "1: NVIDIA H100 (sm_90)"
        works = {which: answer[0] for which, answer in said.items()}
        assert works == {
            ("tensorrt", here, "build"): True,
            ("tensorrt", here, "run"): True,
            ("tensorrt", there, "build"): True,
            ("tensorrt", there, "run"): True,
            ("tensorrt-rtx", here, "build"): True,
            ("tensorrt-rtx", here, "run"): True,
            ("tensorrt-rtx", there, "build"): True,
            ("tensorrt-rtx", there, "run"): None,
        }
        detail = "NVIDIA does not list sm_90 for TensorRT-RTX; use TensorRT there"
        assert said["tensorrt-rtx", there, "run"] == (None, detail)

    def test_what_else_it_takes_to_run(self, monkeypatch):
        driver = Driver("580", "13.0", (A4000,), None)
        which = ("tensorrt-rtx", "0: NVIDIA RTX A4000 (sm_86)", "run")
        assert says(monkeypatch, driver, tensorrt_rtx="1.7.1")[which] == (
            False,
            'PyCUDA is not installed: pip install "trtseg[cuda]"',
        )
        works, detail = says(monkeypatch, driver, tensorrt_rtx="1.7.1", pycuda="1", ops_on_cuda=False)[which]
        assert not works
        assert "built without CUDA" in detail

    def test_too_old(self, monkeypatch):
        said = says(monkeypatch, NONE, tensorrt="10.11.0")
        assert said["tensorrt", "no GPU", "build"] == (
            False,
            'TensorRT 10.11.0 is too old, 10.12 or newer is needed: pip install "trtseg[tensorrt]" --upgrade',
        )


def test_stale_engines(monkeypatch):
    monkeypatch.setattr(probe, "installed", {"tensorrt_rtx": "1.7.1", "tensorrt": None}.get)
    assert why_stale("tensorrt-rtx", "1.7.1") is None
    assert why_stale("tensorrt-rtx", "1.6.0") == "stale: TensorRT-RTX here is 1.7.1"
    assert why_stale("tensorrt", "11.4.0") == "stale: TensorRT here is not installed"


def test_the_capabilities_named_here_are_those_of_the_library():
    pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "trtseg[rtx]"')
    from trtseg.engines.nvidia.runtime import load_runtime

    assert load_runtime("tensorrt-rtx").capabilities == RTX_CAPABILITIES
    assert load_runtime("tensorrt-rtx").version == probe.installed("tensorrt_rtx")
