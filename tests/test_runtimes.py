"""The runtimes TensorRT and TensorRT-RTX: importing them, building for the GPU that is here, and refusing to load."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from engine_models import NO_DRIVER, cascade_model, needs_rtx

import trtseg
from trtseg.engines.blobs import load_blob, store_blob
from trtseg.engines.nvidia import build, cache, runtime, serialize
from trtseg.engines.nvidia.driver import Driver, Gpu
from trtseg.engines.trust import engine_folder
from trtseg.errors import DeviceError, TrtsegError

H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "sm_90", 80 << 30)
RTX_4090 = Gpu(0, "NVIDIA GeForce RTX 4090", "sm_89", 24 << 30)


pytestmark = pytest.mark.usefixtures("no_gpu")


@pytest.fixture
def model(tmp_path) -> Path:
    return cascade_model(tmp_path / "model")


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
            ("raise OSError('libnvinfer.so.11: cannot open')", r"does not load \(libnvinfer.*install it"),
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
    def twin(self, no_gpu, monkeypatch):
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
        assert load_blob(blob)
        store_blob(blob, b"of another version")
        trtseg.build_engines(model, runtime="tensorrt", batch=1)
        assert [entry.problem for entry in cache.entries(verify=True)] == [None, None]

    def test_a_cache_that_cannot_keep_timings_does_not_stop_a_build(self, model, tmp_path, caplog):
        (tmp_path / "cache").write_text("in the way")
        assert len(trtseg.build_engines(model, runtime="tensorrt", batch=1, output=tmp_path / "out")) == 2
        assert "cannot be created" in caplog.text

    @pytest.mark.parametrize(
        ("gpus", "target", "message"),
        [
            ((H100,), "sm_86", r"'sm_86', but TensorRT 11\.4\.0\.1 builds only for the GPU it runs on,"),
            ((H100,), "portable", r"'portable', but TensorRT .* builds only for the GPU it runs on; use"),
            ((), "native", r"but TensorRT builds only on a machine with the GPU, and there is no NVIDIA"),
            ((), "sm_90", r"build there, or use runtime 'tensorrt-rtx', which needs no GPU$"),
        ],
    )
    def test_targets_it_cannot_build_for(self, model, monkeypatch, gpus, target, message):
        monkeypatch.setattr(build, "find_driver", lambda: Driver(None, None, gpus, NO_DRIVER.problem))
        with pytest.raises(TrtsegError, match=message):
            trtseg.build_engines(model, runtime="tensorrt", target=target)
        assert not engine_folder().exists()
