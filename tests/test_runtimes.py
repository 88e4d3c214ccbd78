"""The runtimes TensorRT and TensorRT-RTX: importing them, building for the GPU that is here, and refusing to load."""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path

import pytest
from engine_models import cascade_model, needs_rtx

import trtseg
from trtseg import models
from trtseg.engines.base import Net
from trtseg.engines.nvidia import build, cache, runtime, serialize, tensorrt
from trtseg.engines.nvidia.driver import Driver, Gpu, find_driver
from trtseg.engines.nvidia.trust import engine_folder
from trtseg.engines.precision import FP16, FP32
from trtseg.errors import DeviceError, TrtsegError

NO_DRIVER = Driver(None, None, (), "there is no NVIDIA driver (libcuda.so.1 is not found)")
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "sm_90", 80 << 30)
RTX_4090 = Gpu(0, "NVIDIA GeForce RTX 4090", "sm_89", 24 << 30)


@pytest.fixture(autouse=True)
def no_gpu(tmp_path, monkeypatch):
    """A cache of its own, and no GPU whatever this machine has."""
    monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "find_driver", lambda: NO_DRIVER)


@pytest.fixture
def model(tmp_path) -> Path:
    return cascade_model(tmp_path / "model")


def net_of(model: Path, precision=FP16) -> Net:
    files = models.find(model)
    return Net.read(files, files.spec.nets[0], precision)


class TestRuntimes:
    @pytest.mark.parametrize(
        ("name", "install"),
        [
            ("tensorrt", r"trtseg\[tensorrt\]"),
            ("tensorrt-rtx", r"trtseg\[rtx\]"),
            ("torch", r"trtseg\[torch\]"),
        ],
    )
    def test_not_installed(self, name, install, monkeypatch):
        monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)
        message = f'runtime: got {name!r}, which is not installed; install it with pip install "{install}"$'
        with pytest.raises(DeviceError, match=message):
            runtime.load_runtime(name)

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            (
                "raise OSError('libnvinfer.so.11: cannot open')",
                r"does not load \(libnvinfer.*install it again",
            ),
            ("import tensorrt_missing_parts", "does not load .*No module named 'tensorrt_missing_parts'"),
            ("__version__ = '10.9.0'", r"TensorRT 10\.9\.0 is too old, 10\.12 or newer is needed: pip"),
        ],
    )
    def test_installed_but_broken_or_too_old(self, tmp_path, monkeypatch, code, message):
        (tmp_path / "tensorrt.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        with pytest.raises(DeviceError, match=message):
            runtime.load_runtime("tensorrt")
        sys.modules.pop("tensorrt", None)


@needs_rtx
@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
class TestTensorRT:
    """TensorRT cannot be installed without its maker's index: its twin TensorRT-RTX stands in under its name.

    So this shows what is asked of TensorRT and what becomes of the answers, not what TensorRT makes of it.
    """

    @pytest.fixture(autouse=True)
    def twin(self, monkeypatch):
        import tensorrt_rtx

        module = types.ModuleType("tensorrt")
        module.__dict__.update({k: v for k, v in vars(tensorrt_rtx).items() if not k.startswith("__")})
        module.__version__ = "11.4.0.1"
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        # One logger for both, as the library behind them is one.
        monkeypatch.setattr(serialize, "logger", lambda _: runtime.logger(tensorrt_rtx))
        monkeypatch.setattr(build, "find_driver", lambda: Driver("580.65.06", "13.0", (H100,), None))

    def test_builds_for_the_gpu_that_is_here_and_keeps_its_timings(self, model):
        first = trtseg.build_engines(model, runtime="tensorrt", target=["native", "sm_90"], batch=1)
        assert len(first) == 2
        key, settings = first[0].sidecar.key, first[0].sidecar.settings
        assert (key.runtime, key.runtime_version, key.target) == ("tensorrt", "11.4.0.1", "sm_90")
        assert key.gpu == "NVIDIA H100 80GB HBM3"
        assert settings["distributive_independence"] is True
        assert not {"compute_capability", "require_user_allocation"} & settings.keys()
        blob = "timing-tensorrt-11.4.0.1-NVIDIA-H100-80GB-HBM3"
        assert cache.load_blob(blob)
        cache.store_blob(blob, b"of another version")
        trtseg.build_engines(model, runtime="tensorrt", batch=1)
        assert [entry.problem for entry in cache.entries(verify=True)] == [None, None]

    def test_a_cache_that_cannot_keep_timings_does_not_stop_a_build(self, model, tmp_path, caplog):
        (tmp_path / "cache").write_text("in the way")
        assert len(trtseg.build_engines(model, runtime="tensorrt", batch=1, output=tmp_path / "out")) == 2
        assert "cannot be created" in caplog.text

    def test_first_use(self, model):
        """An engine is good for GPUs of one model only."""
        net, loaded, told = net_of(model, FP32), runtime.load_runtime("tensorrt"), []
        made = build.engine_for(net, loaded, H100, 4, progress=lambda *what: told.append(what))
        assert told[-1][0] == "liver sm_90 (NVIDIA H100 80GB HBM3) fp32 batch 4"
        told.clear()
        assert build.engine_for(net, loaded, H100, 4, progress=lambda *what: told.append(what)) == made
        assert told == []
        build.engine_for(net, loaded, Gpu(0, "NVIDIA H200", "sm_90", 0), 4)
        assert len(cache.entries()) == 2

    @pytest.mark.parametrize(
        ("gpus", "target", "message"),
        [
            (
                (H100,),
                "sm_86",
                r"'sm_86', but TensorRT 11\.4\.0\.1 builds only for the GPU it runs on, here NVIDIA H",
            ),
            (
                (H100,),
                "portable",
                r"'portable', but TensorRT .* builds only for the GPU it runs on; use 'nat",
            ),
            (
                (),
                "native",
                r"but TensorRT builds only on a machine with the GPU, and there is no NVIDIA driver .*; bu",
            ),
            ((), "sm_90", r"build there, or use runtime 'tensorrt-rtx', which needs no GPU$"),
        ],
    )
    def test_targets_it_cannot_build_for(self, model, monkeypatch, gpus, target, message):
        monkeypatch.setattr(build, "find_driver", lambda: Driver(None, None, gpus, NO_DRIVER.problem))
        with pytest.raises(TrtsegError, match=message):
            trtseg.build_engines(model, runtime="tensorrt", target=target)
        assert not engine_folder().exists()

    @pytest.mark.skipif(find_driver().problem is None, reason="this machine has a GPU, for which it builds")
    def test_a_gpu_that_rtx_has_no_name_for_is_built_for_by_its_model(self, model):
        # Without a GPU the build itself must fail: CURRENT is what needs one.
        with pytest.raises(
            DeviceError, match=r"TensorRT-RTX [\d.]+ could not build the engine liver sm_90 \(NVIDIA H100"
        ):
            trtseg.build_engines(model, runtime="tensorrt-rtx", target="native")
        assert cache.entries() == []


@needs_rtx
def test_an_engine_that_is_invalid_on_an_unlisted_gpu_is_refused_before_it_is_loaded(model, monkeypatch):
    """What TensorRT-RTX 1.7 said on an H100 of every engine."""
    import tensorrt_rtx as trt

    asked = []

    class OnHopper:
        def __init__(self, log):
            pass

        def get_engine_validity(self, data):
            asked.append(data)
            bits = trt.EngineInvalidityDiagnostics.UNSUPPORTED_CC
            return trt.EngineValidity.INVALID, int(bits)

        def deserialize_cuda_engine(self, data):
            pytest.fail("it must not be loaded")

    monkeypatch.setattr(trt, "Runtime", OnHopper)
    monkeypatch.setattr(tensorrt, "errors", contextlib.nullcontext)
    rtx = runtime.load_runtime("tensorrt-rtx")
    data, sidecar = build.build_engine(
        net_of(model), rtx, build.engine_key(net_of(model), rtx, ("portable", ""), 1)
    )
    device = types.SimpleNamespace(name="NVIDIA H100", sm="sm_90", index=0)
    with pytest.raises(
        DeviceError,
        match=r"TensorRT-RTX 1.* says that the engine liver portable fp16 batch 1 is invalid on NVIDIA H100, sm_90 "
        r"\(UNSUPPORTED_CC\); use runtime='tensorrt' or runtime='torch', which run there, or device='cpu'",
    ):
        tensorrt.LoadedEngine(rtx, data, sidecar, device)
    assert asked == [data]
