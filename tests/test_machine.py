"""What is checked before a GPU is used, which runtime is taken, and which engines fit, on machines that are played."""

from __future__ import annotations

import types
from dataclasses import replace

import pytest
from engine_models import key

from trtseg import _core
from trtseg.engines import available_devices, resolve_device
from trtseg.engines.nvidia import driver, machine, nets
from trtseg.engines.nvidia.driver import Driver, Gpu
from trtseg.engines.nvidia.machine import RTX_CAPABILITIES, abilities, choose_runtime
from trtseg.engines.nvidia.runtime import INSTALL, Runtime, load_runtime
from trtseg.errors import ArgumentError, DeviceError

TURING = Gpu(0, "RTX 2080", "sm_75", 8 << 30)
ADA, HOPPER = Gpu(0, "RTX 4090", "sm_89", 24 << 30), Gpu(1, "H100", "sm_90", 80 << 30)
PACKAGES = {
    "pycuda": "2026.1",
    "tensorrt": "11.4.0",
    "tensorrt_rtx": "1.7.1",
    "torch": "2.13.0",
    "onnx": "1.19",
}
NO_DRIVER = "there is no NVIDIA driver"


def packages(*names: str) -> dict[str, str]:
    return {name: PACKAGES[name] for name in names}


@pytest.fixture
def has(monkeypatch):
    """A function that sets what the machine has, and returns the driver."""

    def set_up(
        gpus=(ADA,), cuda="13.0", built_with="13.0", archs="75,89,120", packages=PACKAGES, problem=None
    ) -> Driver:
        found = Driver("580.65.06", cuda, tuple(gpus), problem)
        build = {"cuda_version": built_with, "cuda_archs": archs}
        monkeypatch.setattr(_core, "build_info", lambda: build)
        for module in (driver, machine):
            monkeypatch.setattr(module, "find_driver", lambda: found)
        monkeypatch.setattr(machine, "installed", packages.get)
        return found

    return set_up


class TestDevices:
    def test_a_named_gpu(self, has):
        has(gpus=(ADA, HOPPER), archs="75,86,90")
        assert resolve_device("cuda") == "cuda:0"
        assert resolve_device("cuda:1") == "cuda:1"
        assert machine.check_gpu(1)[0] == HOPPER

    def test_auto_is_the_gpu_where_a_like_one_has_confirmed_the_runtime(self, has):
        only_torch = packages("pycuda", "torch", "onnx")
        first = replace(HOPPER, index=0)
        has(gpus=(first,), archs="90", packages=only_torch)
        assert resolve_device("auto") == "cuda:0"
        has(gpus=(first,), archs="90")  # TensorRT comes first, and no GPU has confirmed it
        assert resolve_device("auto") == "cpu"
        has(gpus=(ADA,), packages=only_torch)
        assert resolve_device("auto") == "cpu"
        has(gpus=(first,), archs="90", packages=packages("pycuda"))
        assert resolve_device("auto") == "cpu"
        has(gpus=(), problem=NO_DRIVER)
        assert resolve_device("auto") == "cpu"

    @pytest.mark.parametrize(
        ("lacks", "message"),
        [
            ({"built_with": None}, "trtseg was built without CUDA; install it again where nvcc is"),
            ({"gpus": (), "problem": NO_DRIVER}, f"{NO_DRIVER}; install NVIDIA's driver, or use"),
            (
                {"archs": "75,90"},
                r"trtseg's operations were compiled for sm_75,90 and this is RTX 4090 \(sm_89\); install trtseg "
                "again with TRTSEG_CUDA_ARCHS=89",
            ),
            ({"cuda": "12.4"}, "the driver 580.65.06 runs CUDA 12.4 and trtseg was built with 13.0;"),
            ({"packages": {}}, r'PyCUDA is not installed: pip install "trtseg\[cuda\]"'),
        ],
    )
    def test_what_is_missing_is_named(self, has, lacks, message):
        """By the exception, and in the same words by ``info``."""
        found = has(**lacks)
        with pytest.raises(DeviceError, match=f"device: got 'cuda:0', but {message}") as raised:
            resolve_device("cuda:0")
        name, works, detail = available_devices()[1]
        assert (name, works) == ("cuda", False)
        assert f"device: got 'cuda:0', but {detail}" == str(raised.value)
        if "packages" not in lacks:
            runs = [able for able in abilities(found) if able.task == "run"]
            assert {(able.works, able.detail) for able in runs} == {(False, detail)}

    @pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA", "cuda:-1", 0, None])
    def test_no_device(self, device):
        with pytest.raises(DeviceError, match=f"device: got {device!r}; expected 'auto', 'cpu', 'cuda' or"):
            resolve_device(device)

    def test_a_gpu_that_is_not_there(self, has):
        has()
        with pytest.raises(DeviceError, match="device: got 'cuda:2', but there are 1 GPUs, counted from 0"):
            resolve_device("cuda:2")

    def test_what_info_says(self, has):
        has()
        assert available_devices()[1] == ("cuda", True, "RTX 4090 (sm_89), TensorRT 11.4.0: the first choice")
        has(packages=packages("pycuda"))
        _, works, detail = available_devices()[1]
        assert not works
        assert detail.startswith(
            "runtime: got 'auto', but none runs on RTX 4090 (sm_89) (TensorRT: not installed"
        )

    @pytest.mark.parametrize(
        ("archs", "sm", "runs"),
        [
            ("75,86,90", "sm_86", True),
            ("75,86,90", "sm_89", True),  # machine code of its generation
            ("75,86,90", "sm_80", False),
            ("75,86,90", "sm_120", True),  # PTX
            ("90", "sm_86", False),
            ("75,120", "sm_90", False),
            ("", "sm_90", False),
        ],
    )
    def test_which_gpus_compiled_code_runs_on(self, archs, sm, runs):
        assert machine.compiled_for(archs, sm) == runs

    def test_wrong_precision_and_batch(self):
        for options, message in (
            ({"precision": "bf16"}, "precision: got 'bf16'; on a GPU it is 'auto', 'fp16' or 'fp32'"),
            ({"batch": 0}, "batch: got 0; expected a number of slices from 1 to 256"),
            ({"batch": 257}, "batch: got 257; expected"),
            ({"batch": 2.0}, "batch: got 2.0"),
        ):
            with pytest.raises(ArgumentError, match=message):
                nets.open_nets(None, None, **{"batch": 1, **options})


class TestRuntimes:
    def test_auto(self, has):
        """TensorRT, else TensorRT-RTX where it is listed, else PyTorch; what was passed over is told."""
        has()
        assert choose_runtime("auto", ADA) == ("tensorrt", "the first choice")
        has(packages=packages("tensorrt_rtx", "torch", "onnx"))
        absent = f"TensorRT: not installed: {INSTALL['tensorrt']}"
        assert choose_runtime("auto", ADA) == ("tensorrt-rtx", absent)
        unlisted = "TensorRT-RTX: NVIDIA does not list sm_90 for it"
        assert choose_runtime("auto", HOPPER) == ("torch", f"{absent}; {unlisted}")
        has(packages={**packages("torch", "onnx"), "tensorrt": "10.9.0"})
        assert choose_runtime("auto", ADA)[0] == "torch"
        assert "TensorRT 10.9.0 is too old, 10.12 or newer is needed" in choose_runtime("auto", ADA)[1]
        for lacking in (packages("torch"), {**packages("onnx"), "torch": "2.13.0+cpu"}, {}):
            has(packages=lacking)
            with pytest.raises(DeviceError, match=r"runtime: got 'auto', but none runs on RTX 4090"):
                choose_runtime("auto", ADA)

    def test_a_named_one_is_taken(self, has):
        has(packages={})
        for name in ("tensorrt", "tensorrt-rtx", "torch"):
            assert choose_runtime(name, HOPPER) == (name, "as asked for")
        with pytest.raises(ArgumentError, match="got 'onnx'; expected 'tensorrt', 'tensorrt-rtx' or 'torch'"):
            choose_runtime("onnx", ADA)

    def test_abilities_on_a_gpu_that_one_runtime_is_not_listed_for(self, has):
        found = abilities(has(gpus=(ADA, HOPPER), archs="75,90"))
        runs = {a.runtime: a.works for a in found if a.task == "run" and a.where.startswith("1")}
        assert runs == {"tensorrt": True, "tensorrt-rtx": None, "torch": True}

    def test_abilities_without_a_gpu(self, has):
        found = {(a.runtime, a.task): a for a in abilities(has(gpus=(), problem=NO_DRIVER))}
        assert {a.where for a in found.values()} == {"no GPU"}
        assert [a.runtime for a in found.values() if a.works] == ["tensorrt-rtx"]
        detail = found["tensorrt-rtx", "build"].detail
        assert all(sm in detail for sm in (*RTX_CAPABILITIES, "portable"))
        assert (
            found["tensorrt", "build"].detail
            == f"TensorRT builds only for the GPU it runs on, and {NO_DRIVER}"
        )
        for able in abilities(has(packages={})):
            assert (able.works, able.detail) == (False, f"not installed: {INSTALL[able.runtime]}")

    def test_the_capabilities_named_here_are_those_of_the_library(self):
        pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "trtseg[rtx]"')
        assert load_runtime("tensorrt-rtx").capabilities == RTX_CAPABILITIES
        assert load_runtime("tensorrt-rtx").version == machine.installed("tensorrt_rtx")


class TestWhichEnginesAreUsed:
    KNOWN = types.SimpleNamespace(__members__=dict.fromkeys(["CURRENT", "SM75", "SM86", "SM89"]))

    @pytest.fixture(autouse=True)
    def runtimes(self, monkeypatch):
        """TensorRT-RTX, which knows the first two GPUs, and TensorRT, both of version 1."""
        module = types.SimpleNamespace(ComputeCapability=self.KNOWN)
        monkeypatch.setattr(machine, "load_runtime", lambda name: Runtime(name, module, "1"))
        monkeypatch.setattr(machine, "installed", {"tensorrt": "1", "tensorrt_rtx": "1"}.get)

    def why(self, *gpus: Gpu, problem: str | None = None, **changes) -> str | None:
        of = key(**{"runtime_version": "1", **changes})
        return machine.why_unused(of, Driver("580", "13.0", gpus, problem))

    @pytest.mark.parametrize(
        ("target", "gpu", "by"),
        [
            ("sm_75", "", [TURING]),
            ("sm_89", "", [ADA]),
            ("sm_86", "", []),
            ("portable", "", [ADA]),  # from Ampere on, where the runtime knows the GPU
            ("sm_90", "H100", [HOPPER]),
            ("sm_90", "H200", []),
        ],
    )
    def test_of_tensorrt_rtx(self, target, gpu, by):
        for here in (TURING, ADA, HOPPER):
            assert (self.why(here, target=target, gpu=gpu) is None) == (here in by), here

    def test_the_reason(self, monkeypatch):
        native = {"runtime": "tensorrt", "target": "sm_90", "gpu": "H100"}
        assert self.why(ADA, HOPPER, **native) is None
        assert self.why(ADA, **native) == "here is RTX 4090 (sm_89), for which TensorRT 1 takes sm_89"
        assert self.why(ADA, runtime_version="2") == "stale: TensorRT-RTX here is 1"
        assert self.why(problem=NO_DRIVER, target="sm_89") == NO_DRIVER

        def broken(name: str) -> None:
            raise DeviceError("it is broken")

        monkeypatch.setattr(machine, "load_runtime", broken)
        assert self.why(ADA, target="sm_89") == "it is broken"

    @pytest.mark.parametrize(
        ("here", "built_with", "why"),
        [
            ("2.11.0", "2.11.0+cu130", None),  # a wheel of PyPI, whose metadata have no label
            ("2.11.0+cu130", "2.11.0+cu130", None),
            ("2.11.0+cu130", "2.11.0+cu126", "stale: PyTorch here is 2.11.0+cu130"),
            ("2.11.1", "2.11.0+cu130", "stale: PyTorch here is 2.11.1"),
            (None, "2.11.0+cu130", "stale: PyTorch here is not installed"),
        ],
    )
    def test_of_pytorch(self, monkeypatch, here, built_with, why):
        monkeypatch.setattr(machine, "installed", {"torch": here}.get)
        native = {"runtime": "torch", "target": "sm_90", "gpu": "H100"}
        assert self.why(HOPPER, runtime_version=built_with, **native) == why
