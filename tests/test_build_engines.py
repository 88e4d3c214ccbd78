"""Building engines: real builds by TensorRT-RTX, which needs no GPU, and every way in which a build is refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path
from typing import ClassVar

import onnx
import pytest
import tiny
from engine_models import cascade_model, half, needs_rtx, nets, one_operator, write_model
from trtseg.engines.nvidia.probe import Driver, Gpu

import trtseg
from trtseg import models
from trtseg.engines.nvidia import build, cache, probe
from trtseg.engines.nvidia.nets import runtime, serialize
from trtseg.engines.nvidia.trust import engine_folder
from trtseg.errors import ArgumentError, DeviceError, ModelError, OutputError, TrtsegError
from trtseg.models.onnx_spec import check_spec
from trtseg.spec import METADATA_KEY

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


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plain_build(data: bytes, batch: int, capability: str | None) -> bytes:
    """The engine of a tiny net, by as few calls as there can be."""
    import tensorrt_rtx as trt

    builder = trt.Builder(runtime.logger(trt))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, runtime.logger(trt)).parse(data)
    network.get_input(0).shape = (batch, 1, *tiny.SIZE)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.max_aux_streams = 0
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if capability is not None:
        config.num_compute_capabilities = 1
        assert config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    return bytes(builder.build_serialized_network(network, config))


@needs_rtx
class TestRealBuilds:
    TARGETS: ClassVar = {
        "sm_75": "SM75",
        "sm_86": "SM86",
        "sm_89": "SM89",
        "sm_120": "SM120",
        "portable": None,
    }

    @pytest.mark.parametrize("precision", ["fp16", "fp32"])
    def test_every_target_batch_and_net(self, model, tmp_path, precision):
        import tensorrt_rtx

        out = tmp_path / "out"
        built = trtseg.build_engines(
            model, target=[*self.TARGETS], precision=precision, batch=[1, 16], output=out
        )
        expected = list(itertools.product(("liver", "tumour"), self.TARGETS, (1, 16)))
        keys = [entry.sidecar.key for entry in built]
        assert [(k.role, k.target, k.batch) for k in keys] == expected
        assert len(os.listdir(out)) == 2 * len(expected)
        for entry in built:
            said = json.loads(entry.path.with_name(f"{entry.path.name}.json").read_text())
            role, target, batch = (said["key"][name] for name in ("role", "target", "batch"))
            source = model / (f"{role}.fp16.onnx" if precision == "fp16" else f"{role}.onnx")
            assert said["key"] == {
                "role": role,
                "onnx_sha256": sha256(source),
                "runtime": "tensorrt-rtx",
                "runtime_version": tensorrt_rtx.__version__,
                "target": target,
                "gpu": "",
                "precision": precision,
                "batch": batch,
            }
            assert said["sha256"] == sha256(entry.path)
            assert said["size"] == entry.path.stat().st_size
            assert said["spec"]["window"] == list(tiny.WINDOW[role])
            assert said["model"] == {"name": "tiny", "version": "0"}
            assert said["tensors"] == [
                {"name": name, "mode": mode, "dtype": precision, "shape": [batch, 1, *tiny.SIZE]}
                for name, mode in (("x", "input"), ("logits", "output"))
            ]
            assert said["settings"] == {
                "strongly_typed": True,
                "tf32": False,
                "require_user_allocation": True,
                "optimization_level": 3,
                "max_aux_streams": 0,
                "compute_capability": self.TARGETS[target] or "default",
            }
            assert said["warnings"] == []
            assert said["built"]["trtseg"] == trtseg.__version__
            assert 0 < said["built"]["seconds"] < 60
            assert said["acceptance"] is None
            if role == "liver":
                assert entry.path.read_bytes() == plain_build(
                    source.read_bytes(), batch, self.TARGETS[target]
                )

    def test_three_classes(self, tmp_path):
        import numpy as np

        spec = tiny.spec("one-step")
        data = tiny.convolution(np.ones((3, 1, 3, 3)), np.zeros(3), spec)
        files = {"one-step.onnx": data, "one-step.fp16.onnx": half(data)}
        folder = write_model(tmp_path / "model", files, roles=("one-step",))
        (entry,) = trtseg.build_engines(folder, target="portable", batch=2)
        assert [t["shape"] for t in entry.sidecar.tensors] == [[2, 1, 64, 64], [2, 3, 64, 64]]

    def test_the_shipped_model_for_three_gpus_in_both_batch_sizes(self, tmp_path):
        start = time.process_time()  # of this process alone, however busy the machine is
        built = trtseg.build_engines(target=["sm_86", "sm_89", "sm_120"], output=tmp_path)
        assert time.process_time() - start < 30
        assert len(built) == 12
        assert [entry.problem for entry in cache.entries(tmp_path, verify=True)] == [None] * 12
        hashes = models.find("default").spec.sha256
        for entry in built:
            assert entry.sidecar.key.onnx_sha256 == hashes[f"{entry.sidecar.key.role}.fp16.onnx"]
            assert entry.sidecar.size > 3e6  # the weights are in it

    def test_the_same_build_gives_the_same_bytes(self, tmp_path):
        for name in ("one", "two"):
            trtseg.build_engines(target="sm_86", batch=1, output=tmp_path / name)
        one, two = (sorted((tmp_path / name).glob("*.engine")) for name in ("one", "two"))
        assert [path.name for path in one] == [path.name for path in two]
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
        assert one[0].read_bytes() != one[1].read_bytes()

    def test_into_the_cache_where_it_is_found_by_its_key(self, model):
        built = trtseg.build_engines(model, target="sm_86", batch=1)
        assert {entry.path.parent for entry in built} == {engine_folder()}
        net = build.Net.read(models.find(model), models.find(model).spec.nets[0], "fp16")
        key = net.key(runtime.load_runtime("tensorrt-rtx"), "sm_86", "", 1)
        assert hashlib.sha256(cache.load(key)).hexdigest() == built[0].sidecar.sha256

    def test_a_portable_one_will_do_from_ampere_on(self, model, monkeypatch):
        files = models.find(model)
        net = build.Net.read(files, files.spec.nets[0], "fp16")
        rtx = runtime.load_runtime("tensorrt-rtx")
        trtseg.build_engines(model, target="portable", batch=4)
        ampere, turing = Gpu(0, "RTX A4000", "sm_86", 0), Gpu(0, "RTX 2080", "sm_75", 0)
        assert build.engine_for(net, rtx, ampere, 4)[1].key.target == "portable"
        assert build.engine_for(net, rtx, turing, 4)[1].key.target == "sm_75", "built for it"
        assert build.engine_for(net, rtx, ampere, 1)[1].key.target == "sm_86", "of another batch size"

    def test_what_was_there_is_replaced_and_repetitions_are_built_once(self, model, tmp_path):
        (before,) = {
            entry.path for entry in trtseg.build_engines(model, target="sm_86", batch=1, output=tmp_path)[:1]
        }
        before.write_bytes(b"damaged")
        again = trtseg.build_engines(model, target=["sm_86", "sm_86"], batch=[1, 1], output=tmp_path)
        assert len(again) == 2
        assert sha256(before) == again[0].sidecar.sha256

    def test_progress_goes_from_0_to_1_and_says_what(self, model, tmp_path):
        told = []
        trtseg.build_engines(model, target="sm_86", output=tmp_path, progress=lambda *what: told.append(what))
        assert list(dict.fromkeys(what for what, _ in told)) == [
            f"{role} sm_86 fp16 batch {n}" for role in ("liver", "tumour") for n in (1, 16)
        ]
        fractions = [fraction for _, fraction in told]
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0, 1)
        assert len(fractions) > 20

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
    def test_stopped_in_the_middle(self, model, tmp_path, error, capfd):
        def stop(what, fraction):
            if fraction > 0.6:
                raise error

        with pytest.raises(error):
            trtseg.build_engines(model, target="sm_86", output=tmp_path / "new" / "out", progress=stop)
        assert not (tmp_path / "new").exists()
        assert capfd.readouterr() == ("", "")

    def test_for_the_gpu_that_is_here(self, model, monkeypatch):
        monkeypatch.setattr(build, "find_driver", lambda: Driver("580", "13.0", (RTX_4090,), None))
        for entry in trtseg.build_engines(model, target=["native", "sm_89"], batch=1):
            assert (entry.sidecar.key.target, entry.sidecar.key.gpu) == ("sm_89", "")
            assert entry.sidecar.settings["compute_capability"] == "SM89"

    def test_two_processes_want_an_engine_at_a_time(self, tmp_path):
        want = """
            from trtseg import models
            from trtseg.engines.nvidia.build import Net, engine_for
            from trtseg.engines.nvidia.probe import Gpu
            from trtseg.engines.nvidia.runtime import load_runtime
            import sys
            files = models.find("default")
            net = Net.read(files, files.spec.nets[0], "fp16")
            loaded = load_runtime("tensorrt-rtx")
            print("ready", flush=True)
            sys.stdin.readline()
            data, sidecar = engine_for(net, loaded, Gpu(0, "a GPU", "sm_86", 0), 1)
            print(len(data), sidecar.built["at"])
        """
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(want)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        said = [process.communicate("\n", timeout=60)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert said[0] == said[1] != ""
        (entry,) = cache.entries(verify=True)
        assert said[0] == f"{entry.sidecar.size} {entry.sidecar.built['at']}\n"


@needs_rtx
class TestRefusals:
    def refused(self, kind, message, model, **options):
        """Expect an error, and no trace of the build."""
        out = model.parent / "new" / "out"
        with pytest.raises(kind, match=message) as caught:
            trtseg.build_engines(model, **{"target": "sm_86", "batch": 1, "output": out, **options})
        assert isinstance(caught.value, TrtsegError)
        assert not out.parent.exists()
        assert not engine_folder().exists()

    @pytest.mark.parametrize(
        ("options", "kind", "message"),
        [
            (
                {"runtime": "onnx"},
                ArgumentError,
                r"runtime: got 'onnx'; expected 'tensorrt' or 'tensorrt-rtx'",
            ),
            ({"precision": "bf16"}, ArgumentError, r"precision: got 'bf16'; expected 'fp16' or 'fp32'"),
            ({"batch": 0}, ArgumentError, r"batch: got 0; expected a number of slices from 1 to 256"),
            ({"batch": True}, ArgumentError, r"batch: got True; expected"),
            ({"batch": []}, ArgumentError, r"batch: got none; expected"),
            ({"batch": [1, 2.0]}, ArgumentError, r"batch: got 2.0; expected"),
            ({"batch": 100_000}, ArgumentError, r"batch: got 100000; expected"),
            ({"target": None}, ArgumentError, r"target: got None; expected 'native'"),
            ({"target": []}, ArgumentError, r"target: got none; expected 'native', 'portable', or compute"),
            (
                {"target": "sm86"},
                ArgumentError,
                r"target: got 'sm86'; expected 'native', 'portable', or comp",
            ),
            ({"target": ["sm_86", ""]}, ArgumentError, r"target: got ''; expected"),
            (
                {"target": ["sm_86", "sm_90"]},
                DeviceError,
                r"target: got 'sm_90', but TensorRT-RTX [\d.]+ builds without a GPU for sm_75, .*, portable only",
            ),
            (
                {"target": "native"},
                DeviceError,
                r"target: got 'native', but there is no NVIDIA driver \(libcuda.so.1 is not found\); name what to "
                r"build for: sm_75, .*sm_86, .*portable",
            ),
        ],
        ids=str,
    )
    def test_arguments(self, model, options, kind, message):
        self.refused(kind, message, model, **options)

    def test_no_such_model(self, tmp_path):
        self.refused(
            ModelError, r"model: got .*none.*; expected one of default, or a folder", tmp_path / "none"
        )

    def test_a_model_without_fp16(self, tmp_path):
        model = tiny.cascade_model(tmp_path / "model")
        self.refused(
            ModelError,
            r"precision: got 'fp16', but the model 'tiny' has no FP16 file of its liver net",
            model,
        )

    def test_a_changed_net(self, model):
        with (model / "tumour.fp16.onnx").open("ab") as file:
            file.write(b"\0")
        self.refused(ModelError, r"tumour\.fp16\.onnx: its SHA-256 is .* the file was changed", model)

    def test_a_manifest_that_differs_from_the_net(self, model):
        manifest = model / "model.json"
        manifest.write_text(manifest.read_text().replace("240.0", "241.0"))
        self.refused(ModelError, r"liver net: model\.json differs from the spec in the ONNX file", model)

    @pytest.mark.parametrize(
        ("liver", "message"),
        [
            (
                one_operator("Nonsense"),
                r"liver net: TensorRT-RTX [\d.]+ cannot read it \(.*Nonsense.*\); export",
            ),
            (one_operator("Add", inputs=2), r"liver net: has 2 inputs and 1 outputs; expected one each"),
            (
                one_operator("Relu", batch=3),
                r"liver net: its input is FLOAT \(3, 1, 64, 64\), but an engine liver sm_86 fp32 batch 1 needs "
                r"FLOAT \(1, 1, 64, 64\); export the model again",
            ),
            (half(nets()["liver.onnx"]), r"liver net: its input is HALF .* needs FLOAT"),
        ],
        ids=["unknown operator", "two inputs", "another fixed batch", "another precision"],
    )
    def test_a_net_that_is_not_what_it_should_be(self, tmp_path, liver, message):
        model = write_model(tmp_path / "model", {**nets(), "liver.onnx": liver})
        self.refused(ModelError, message, model, precision="fp32")

    def test_the_last_net_fails_and_earlier_engines_stay(self, tmp_path):
        out = tmp_path / "out"
        good = cascade_model(tmp_path / "good")
        trtseg.build_engines(good, target="sm_86", batch=1, output=out)
        before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in out.iterdir()}
        broken = onnx.load_from_string(nets()["tumour.fp16.onnx"])
        broken.graph.node[0].op_type = "Nonsense"
        model = write_model(tmp_path / "model", {**nets(), "tumour.fp16.onnx": broken.SerializeToString()})
        with pytest.raises(ModelError, match=r"tumour net: .* cannot read it"):
            trtseg.build_engines(model, target="sm_86", batch=1, output=out)
        assert {path.name: (path.read_bytes(), path.stat().st_ino) for path in out.iterdir()} == before

    def test_a_folder_that_cannot_be_made(self, model, tmp_path):
        (tmp_path / "file").write_text("")
        for output in (tmp_path / "file", tmp_path / "file" / "out"):
            with pytest.raises(
                OutputError, match=r"output: .* cannot be created \(.*\); choose another folder"
            ):
                trtseg.build_engines(model, target="sm_86", output=output)


class TestRuntimes:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """Make a package ``tensorrt`` of the code given."""

        def make(code: str) -> None:
            (tmp_path / "packages" / "tensorrt").mkdir(parents=True)
            (tmp_path / "packages" / "tensorrt" / "__init__.py").write_text(code)
            monkeypatch.syspath_prepend(tmp_path / "packages")
            monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

        yield make
        sys.modules.pop("tensorrt", None)

    @pytest.mark.parametrize(
        ("name", "install"),
        [("tensorrt", r"trtseg\[tensorrt\]"), ("tensorrt-rtx", r"trtseg\[rtx\]")],
    )
    def test_not_installed(self, model, name, install, monkeypatch):
        monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)
        message = f'runtime: got {name!r}, which is not installed; install it with pip install "{install}"$'
        with pytest.raises(DeviceError, match=message):
            trtseg.build_engines(model, runtime=name, target="sm_86")

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            (
                "raise OSError('libnvinfer.so.11: cannot open shared object file')",
                r"libnvinfer\.so\.11: cannot",
            ),
            ("import tensorrt_parts_that_are_missing", "No module named 'tensorrt_parts_that_are_missing'"),
            ("", "no attribute '__version__'"),
        ],
    )
    def test_installed_but_broken(self, package, code, reason):
        package(code)
        message = rf"'tensorrt', which is installed but does not load \(.*{reason}.*install it again"
        with pytest.raises(DeviceError, match=message):
            runtime.load_runtime("tensorrt")

    @pytest.mark.parametrize(("version", "fine"), [("10.9.0", False), ("10.12.0.36", True), ("11.4.0", True)])
    def test_too_old(self, package, version, fine):
        package(f"__version__ = {version!r}")
        if fine:
            assert runtime.load_runtime("tensorrt").title == f"TensorRT {version}"
            return
        with pytest.raises(
            DeviceError, match=r"TensorRT 10\.9\.0 is too old, 10\.12 or newer is needed: pip"
        ):
            runtime.load_runtime("tensorrt")

    @needs_rtx
    def test_messages_are_logged_and_collected(self, caplog, capfd):
        import tensorrt_rtx as trt

        logger = runtime.logger(trt)
        assert logger is runtime.logger(trt)  # the runtime keeps the first for good
        logger.take()
        with caplog.at_level(logging.DEBUG, "trtseg.tensorrt"):
            for severity in ("VERBOSE", "INFO", "WARNING", "ERROR", "INTERNAL_ERROR"):
                logger.log(getattr(trt.ILogger, severity), f"{severity} 100%")
        assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
            ("DEBUG", "VERBOSE 100%"),
            ("INFO", "INFO 100%"),
            ("WARNING", "WARNING 100%"),
            ("ERROR", "ERROR 100%"),
            ("ERROR", "INTERNAL_ERROR 100%"),
        ]
        assert logger.take() == (["WARNING 100%"], ["ERROR 100%", "INTERNAL_ERROR 100%"])
        assert logger.take() == ([], [])

    @needs_rtx
    def test_what_a_build_says_stays_off_the_terminal(self, model, tmp_path):
        code = f"import trtseg; trtseg.build_engines({str(model)!r}, target='sm_86', output={str(tmp_path / 'o')!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", "")


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
        monkeypatch.setattr("trtseg.engines.nvidia.serialize.logger", lambda _: runtime.logger(tensorrt_rtx))
        monkeypatch.setattr(build, "find_driver", lambda: Driver("580.65.06", "13.0", (H100,), None))

    def test_builds_for_the_gpu_that_is_here_and_keeps_its_timings(self, model):
        first = trtseg.build_engines(model, runtime="tensorrt", target=["native", "sm_90"], batch=1)
        assert len(first) == 2
        key, settings = first[0].sidecar.key, first[0].sidecar.settings
        assert (key.runtime, key.runtime_version, key.target) == ("tensorrt", "11.4.0.1", "sm_90")
        assert key.gpu == "NVIDIA H100 80GB HBM3"
        assert "sm_90-NVIDIA-H100-80GB-HBM3-fp16-b1" in first[0].path.name
        assert "compute_capability" not in settings
        blob = "timing-tensorrt-11.4.0.1-NVIDIA-H100-80GB-HBM3"
        assert cache.load_blob(blob)
        cache.store_blob(blob, b"of another version")
        trtseg.build_engines(model, runtime="tensorrt", batch=1)
        assert [entry.problem for entry in cache.entries(verify=True)] == [None, None]

    def test_slots_of_a_batch_are_to_be_computed_alike(self, model, monkeypatch):
        import tensorrt_rtx

        flag, asked = tensorrt_rtx.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE, []

        def configured(*arguments, configure=serialize._configure):
            settings = configure(*arguments)
            asked.append(arguments[1].get_flag(flag))
            return settings

        monkeypatch.setattr(serialize, "_configure", configured)
        for entry in trtseg.build_engines(model, runtime="tensorrt", batch=4):
            assert entry.sidecar.settings["distributive_independence"] is True
            assert "require_user_allocation" not in entry.sidecar.settings
        assert asked == [True, True]

    def test_a_cache_that_cannot_keep_timings_does_not_stop_a_build(self, model, tmp_path, caplog):
        (tmp_path / "cache").write_text("in the way")
        built = trtseg.build_engines(model, runtime="tensorrt", batch=1, output=tmp_path / "out")
        assert len(built) == 2
        assert "cannot be created" in caplog.text

    def test_first_use(self, model):
        files = models.find(model)
        net = build.Net.read(files, files.spec.nets[1], "fp32")
        loaded = runtime.load_runtime("tensorrt")
        told = []
        data, made = build.engine_for(net, loaded, H100, 4, progress=lambda *what: told.append(what))
        assert told[-1][0] == "tumour sm_90 (NVIDIA H100 80GB HBM3) fp32 batch 4"
        told.clear()
        assert build.engine_for(net, loaded, H100, 4, progress=lambda *what: told.append(what)) == (
            data,
            made,
        )
        assert told == []
        build.engine_for(net, loaded, Gpu(0, "NVIDIA H200", "sm_90", 0), 4)
        assert len(cache.entries()) == 2

    @pytest.mark.parametrize(
        ("gpus", "target", "message"),
        [
            (
                (H100,),
                "sm_86",
                r"'sm_86', but TensorRT 11\.4\.0\.1 builds only for the GPU it runs on, here NVIDIA H100",
            ),
            (
                (H100,),
                "portable",
                r"'portable', but TensorRT 11\.4\.0\.1 builds only for the GPU it runs on; use 'nat",
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

    @pytest.mark.skipif(
        probe.find_driver().problem is None, reason="this machine has a GPU, for which it builds"
    )
    def test_a_gpu_that_rtx_has_no_name_for_is_built_for_by_its_model(self, model, monkeypatch):
        # Without a GPU the build itself must fail: CURRENT is what needs one.
        with pytest.raises(
            DeviceError, match=r"TensorRT-RTX [\d.]+ could not build the engine liver sm_90 \(NVIDIA H100"
        ):
            trtseg.build_engines(model, runtime="tensorrt-rtx", target="native")
        assert cache.entries() == []


class TestSpecInTheFile:
    def test_as_the_onnx_package_reads_it(self):
        for spec in models.find("default").spec.nets:
            for fp16 in (False, True):
                data = models.find("default").read(spec.role, fp16=fp16)
                (said,) = (
                    p.value for p in onnx.load_from_string(data).metadata_props if p.key == METADATA_KEY
                )
                assert said == spec.to_json()
                check_spec(data, spec)

    def test_what_is_no_onnx_or_holds_no_spec(self):
        spec = tiny.spec("liver")
        good = tiny.threshold_at(60, spec)
        check_spec(good, spec)
        with pytest.raises(ModelError, match=r"model\.json differs"):
            check_spec(good, tiny.spec("liver", threshold=0.4))
        bare = onnx.load_from_string(good)
        del bare.metadata_props[:]
        for data in (bare.SerializeToString(), b""):
            with pytest.raises(ModelError, match="the ONNX file holds no spec"):
                check_spec(data, spec)
        for data in (b"no onnx", good[:-1], b"\xff" * 30, b"\x80"):
            with pytest.raises(ModelError, match="liver net: not an ONNX file"):
                check_spec(data, spec)

    def test_fields_of_all_kinds_before_it(self):
        spec = tiny.spec("liver")
        # 30: varint 300, 31: eight bytes, 32: four bytes, 33: two bytes
        others = b"\xf0\x01\xac\x02" + b"\xf9\x01" + b"8" * 8 + b"\x85\x02" + b"4444" + b"\x8a\x02\x02ab"
        check_spec(others + tiny.threshold_at(60, spec), spec)
