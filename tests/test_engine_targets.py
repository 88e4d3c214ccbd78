"""Which engines a GPU that is here will use."""

import types

import pytest
from engine_models import key

from trtseg.engines.nvidia.nets import targets
from trtseg.engines.nvidia.probe import Driver, Gpu
from trtseg.engines.nvidia.runtime import Runtime
from trtseg.errors import DeviceError

TURING, ADA = Gpu(0, "RTX 2080", "sm_75", 8 << 30), Gpu(0, "NVIDIA L4", "sm_89", 24 << 30)
H100 = Gpu(1, "NVIDIA H100", "sm_90", 80 << 30)
KNOWN = types.SimpleNamespace(__members__=dict.fromkeys(["CURRENT", "SM75", "SM86", "SM89"]))


@pytest.fixture(autouse=True)
def runtimes(monkeypatch):
    """TensorRT-RTX, which knows the first two, and TensorRT, both of version 1."""
    module = types.SimpleNamespace(ComputeCapability=KNOWN)
    monkeypatch.setattr(targets, "load_runtime", lambda name: Runtime(name, module, "1"))
    monkeypatch.setattr(targets, "why_stale", lambda name, version: None if version == "1" else "stale")


def why(*gpus: Gpu, problem: str | None = None, **changes) -> str | None:
    of = key(**{"runtime_version": "1", **changes})
    return targets.why_unused(of, Driver("580", "13.0", gpus, problem))


@pytest.mark.parametrize(
    ("target", "gpu", "by"),
    [
        ("sm_75", "", [TURING]),
        ("sm_89", "", [ADA]),
        ("sm_86", "", []),
        ("portable", "", [ADA]),  # from Ampere on, where the runtime knows the GPU
        ("sm_90", "NVIDIA H100", [H100]),
        ("sm_90", "NVIDIA H200", []),
    ],
)
def test_of_tensorrt_rtx(target, gpu, by):
    for here in (TURING, ADA, H100):
        assert (why(here, target=target, gpu=gpu) is None) == (here in by), here
    assert (why(TURING, ADA, H100, target=target, gpu=gpu) is None) == bool(by)


def test_of_tensorrt():
    """Each is for the very GPU."""
    native = {"runtime": "tensorrt", "target": "sm_90", "gpu": "NVIDIA H100"}
    assert why(ADA, H100, **native) is None
    assert why(ADA, **native) == "here is NVIDIA L4 (sm_89), for which TensorRT 1 takes sm_89"


def test_the_reason():
    assert why(TURING, ADA, target="sm_86") == (
        "here is RTX 2080 (sm_75), NVIDIA L4 (sm_89), for which TensorRT-RTX 1 takes portable or sm_75 or sm_89"
    )
    assert why(ADA, target="sm_89", runtime_version="2") == "stale"
    assert why(problem="there is no driver", target="sm_89") == "there is no driver"


def test_a_runtime_that_does_not_load(monkeypatch):
    def broken(name: str) -> None:
        raise DeviceError("it is broken")

    monkeypatch.setattr(targets, "load_runtime", broken)
    assert why(ADA, target="sm_89") == "it is broken"
