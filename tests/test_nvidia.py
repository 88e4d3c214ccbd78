"""What is checked before a GPU is used, on machines that are played."""

import pytest

from trtseg.engines import available_devices, resolve_device
from trtseg.engines.nvidia import nets as nvidia
from trtseg.engines.nvidia.probe import Driver, Gpu
from trtseg.engines.nvidia.runtime import Runtime
from trtseg.errors import ArgumentError, DeviceError

ADA, HOPPER = Gpu(0, "RTX 4090", "sm_89", 24 << 30), Gpu(0, "H100", "sm_90", 80 << 30)
PACKAGES = {"pycuda": "2026.1", "tensorrt": "11.4.0", "tensorrt_rtx": "1.7.1"}


@pytest.fixture
def machine(monkeypatch):
    """A function that sets what the machine has."""

    def has(
        gpus=(ADA,), cuda="13.0", built_with="13.0", archs="75,89,120", packages=PACKAGES, problem=None
    ) -> None:
        build = {"cuda_version": built_with, "cuda_archs": archs}
        monkeypatch.setattr(nvidia._core, "build_info", lambda: build)
        monkeypatch.setattr(nvidia, "find_driver", lambda: Driver("580.65.06", cuda, tuple(gpus), problem))
        monkeypatch.setattr(nvidia, "installed", packages.get)
        monkeypatch.setattr(nvidia, "load_runtime", lambda name: Runtime(name, None, "1"))

    return has


def test_a_named_gpu(machine):
    machine(gpus=(ADA, Gpu(1, "H100", "sm_90", 80 << 30)), archs="75,86,90")
    assert resolve_device("cuda") == "cuda:0"
    assert resolve_device("cuda:1") == "cuda:1"
    assert resolve_device("auto") == "cpu"
    assert nvidia.check_gpu(0)[0] == ADA


@pytest.mark.parametrize(
    ("lacks", "message"),
    [
        ({"built_with": None}, "trtseg was built without CUDA; install it again where nvcc is"),
        (
            {"gpus": (), "problem": "there is no NVIDIA driver"},
            "there is no NVIDIA driver; install NVIDIA's driver, or use device='cpu'",
        ),
        (
            {"archs": "75,90"},
            r"trtseg's operations were compiled for sm_75,90 and this is RTX 4090 \(sm_89\); install trtseg again with "
            "TRTSEG_CUDA_ARCHS=89",
        ),
        (
            {"cuda": "12.4"},
            "the driver 580.65.06 runs CUDA 12.4 and trtseg was built with 13.0; install a newer",
        ),
        ({"packages": {}}, r'PyCUDA is not installed: pip install "trtseg\[cuda\]"'),
    ],
)
def test_what_is_missing_is_named(machine, lacks, message):
    machine(**lacks)
    for named in ("cuda", "cuda:0"):
        with pytest.raises(DeviceError, match=f"device: got '{named}', but {message}"):
            resolve_device(named)


def test_a_gpu_that_is_not_there(machine):
    machine()
    with pytest.raises(DeviceError, match="device: got 'cuda:2', but there are 1 GPUs, counted from 0"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA", "cuda:-1", 0, None])
def test_no_device(device):
    with pytest.raises(
        DeviceError, match=f"device: got {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'"
    ):
        resolve_device(device)


def test_the_runtime_is_chosen_by_gpu_and_by_what_is_installed(machine):
    machine()
    assert nvidia.choose_runtime("auto", ADA).name == "tensorrt"
    assert nvidia.choose_runtime("tensorrt-rtx", ADA).name == "tensorrt-rtx"
    machine(packages={"tensorrt_rtx": "1.7.1"})
    assert nvidia.choose_runtime("auto", ADA).name == "tensorrt-rtx"
    with pytest.raises(
        DeviceError, match=r"none that is made for H100 \(sm_90\) is installed: .*\[tensorrt\]"
    ):
        nvidia.choose_runtime("auto", HOPPER)
    machine(packages={})
    with pytest.raises(
        DeviceError, match=r"none that is made for RTX 4090 \(sm_89\) is installed: .*\[rtx\]"
    ):
        nvidia.choose_runtime("auto", ADA)
    with pytest.raises(ArgumentError, match="runtime: got 'onnx'"):
        nvidia.choose_runtime("onnx", ADA)


def test_wrong_precision_and_batch(machine):
    machine()
    for options, message in (
        ({"precision": "bf16"}, "precision: got 'bf16'; on a GPU it is 'auto', 'fp16' or 'fp32'"),
        ({"batch": 0}, "batch: got 0; expected a number of slices from 1 to 256"),
        ({"batch": 257}, "batch: got 257; expected"),
        ({"batch": 2.0}, "batch: got 2.0"),
    ):
        with pytest.raises(ArgumentError, match=message):
            nvidia.open_nets(None, None, **{"batch": 1, **options})


def test_what_info_says(machine):
    machine()
    assert available_devices()[1] == ("cuda", True, "RTX 4090 (sm_89), TensorRT 1")
    machine(packages={})
    assert available_devices()[1][1:] == (False, 'PyCUDA is not installed: pip install "trtseg[cuda]"')
