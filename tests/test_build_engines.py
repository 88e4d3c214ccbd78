"""Building engines: real builds by TensorRT-RTX, which needs no GPU, and every way in which a build is refused."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import onnx
import pytest
import tiny
from engine_models import (
    cascade_model,
    half,
    needs_rtx,
    net_of,
    nets,
    one_operator,
    write_model,
)

import trtseg
from trtseg import models
from trtseg.engines.nvidia import build, cache, runtime
from trtseg.engines.nvidia.driver import Driver, Gpu
from trtseg.engines.trust import engine_folder
from trtseg.errors import ArgumentError, DeviceError, ModelError, TrtsegError

RTX_4090 = Gpu(0, "NVIDIA GeForce RTX 4090", "sm_89", 24 << 30)


pytestmark = pytest.mark.usefixtures("no_gpu")


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
    config.set_flag(trt.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE)
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if capability is not None:
        config.num_compute_capabilities = 1
        assert config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    return bytes(builder.build_serialized_network(network, config))


@needs_rtx
class TestRealBuilds:
    TARGETS: ClassVar = {"sm_75": "SM75", "sm_89": "SM89", "sm_120": "SM120", "portable": None}

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
            assert (said["sha256"], said["size"]) == (sha256(entry.path), entry.path.stat().st_size)
            assert said["spec"]["window"] == list(tiny.WINDOW[role])
            assert said["model"] == {"name": "tiny", "version": "0"}
            assert said["tensors"] == [
                {"name": name, "mode": mode, "dtype": precision, "shape": [batch, 1, *tiny.SIZE]}
                for name, mode in (("x", "input"), ("logits", "output"))
            ]
            assert said["settings"] == {
                "strongly_typed": True,
                "tf32": False,
                "distributive_independence": True,
                "require_user_allocation": True,
                "optimization_level": 3,
                "max_aux_streams": 0,
                "compute_capability": self.TARGETS[target] or "default",
            }
            assert (said["warnings"], said["acceptance"]) == ([], None)
            assert said["built"]["trtseg"] == trtseg.__version__
            if role == "liver":
                plain = plain_build(source.read_bytes(), batch, self.TARGETS[target])
                assert entry.path.read_bytes() == plain

    def test_the_shipped_model_twice(self, tmp_path):
        """The same build gives the same bytes; batch sizes differ."""
        one, two = (trtseg.build_engines(target="sm_86", output=tmp_path / name) for name in ("one", "two"))
        assert [entry.problem for entry in cache.entries(tmp_path / "one", verify=True)] == [None] * 4
        assert [e.sidecar.sha256 for e in one] == [e.sidecar.sha256 for e in two]
        assert len({e.sidecar.sha256 for e in one}) == 4
        hashes = models.find("default").spec.sha256
        for entry in one:
            assert entry.sidecar.key.onnx_sha256 == hashes[f"{entry.sidecar.key.role}.fp16.onnx"]
            assert entry.sidecar.size > 3e6  # the weights are in it

    def test_in_the_cache_they_are_found_by_key_and_a_portable_one_will_do(self, model):
        """From Ampere on, and of the same batch size."""
        net, rtx = net_of(model), runtime.load_runtime("tensorrt-rtx")
        built = trtseg.build_engines(model, target="portable", batch=4)
        assert {entry.path.parent for entry in built} == {engine_folder()}
        ampere, turing = Gpu(0, "RTX A4000", "sm_86", 0), Gpu(0, "RTX 2080", "sm_75", 0)
        assert build.engine_for(net, rtx, ampere, 4)[1] == built[0].sidecar
        assert build.engine_for(net, rtx, turing, 4)[1].key.target == "sm_75", "built for it"
        assert build.engine_for(net, rtx, ampere, 1)[1].key.target == "sm_86", "of another batch size"

    def test_what_was_there_is_replaced_and_repetitions_are_built_once(self, model, tmp_path):
        before = trtseg.build_engines(model, target="sm_86", batch=1, output=tmp_path)[0].path
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

    def test_what_a_build_says_stays_off_the_terminal(self, model, tmp_path):
        code = f"import trtseg; trtseg.build_engines({str(model)!r}, target='sm_86', output={str(tmp_path / 'o')!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", "")


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
        ("options", "message"),
        [
            ({"runtime": "onnx"}, r"runtime: got 'onnx'; expected 'tensorrt', 'tensorrt-rtx' or 'torch'"),
            ({"precision": "bf16"}, r"precision: got 'bf16'; on a GPU it is 'auto', 'fp16' or 'fp32'"),
            ({"batch": 0}, r"batch: got 0; expected a number of slices from 1 to 256"),
            ({"batch": True}, r"batch: got True; expected"),
            ({"batch": []}, r"batch: got none; expected"),
            ({"batch": [1, 2.0]}, r"batch: got 2.0; expected"),
        ],
        ids=str,
    )
    def test_arguments(self, model, options, message):
        self.refused(ArgumentError, message, model, **options)

    @needs_rtx
    @pytest.mark.parametrize(
        ("target", "kind", "message"),
        [
            (None, ArgumentError, r"target: got None; expected 'native'"),
            ([], ArgumentError, r"target: got none; expected 'native', 'portable', or compute"),
            ("sm86", ArgumentError, r"target: got 'sm86'; expected 'native', 'portable', or comp"),
            (["sm_86", ""], ArgumentError, r"target: got ''; expected"),
            (["sm_86", "sm_90"], DeviceError, r"target: got 'sm_90', but TensorRT-RTX [\d.]+ builds"),
            (
                "native",
                DeviceError,
                r"target: got 'native', but there is no NVIDIA driver \(libcuda.so.1 is not found\); name what to "
                r"build for: sm_75, .*sm_86, .*portable",
            ),
        ],
        ids=str,
    )
    def test_targets(self, model, target, kind, message):
        self.refused(kind, message, model, target=target)

    def test_models(self, tmp_path, model):
        self.refused(
            ModelError, r"model: got .*none.*; expected one of default, or a folder", tmp_path / "none"
        )
        message = r"precision: got 'fp16', but the model 'tiny' has no liver\.fp16\.onnx"
        self.refused(ModelError, message, tiny.cascade_model(tmp_path / "single"))
        with (model / "tumour.fp16.onnx").open("ab") as file:
            file.write(b"\0")
        self.refused(ModelError, r"tumour\.fp16\.onnx: its SHA-256 is .* the file was changed", model)

    @needs_rtx
    @pytest.mark.parametrize(
        ("liver", "message"),
        [
            (one_operator("Nonsense"), r"TensorRT-RTX [\d.]+ cannot read it \(.*Nonsense.*\); export"),
            (one_operator("Add", inputs=2), r"has 2 inputs and 1 outputs; expected one each"),
            (
                one_operator("Relu", batch=3),
                r"its input is FLOAT \(3, 1, 64, 64\), but an engine liver sm_86 fp32 batch 1 needs FLOAT "
                r"\(1, 1, 64, 64\); export the model again",
            ),
            (half(nets()["liver.onnx"]), r"its input is HALF .* needs FLOAT"),
        ],
        ids=["unknown operator", "two inputs", "another fixed batch", "another precision"],
    )
    def test_a_net_that_is_not_what_it_should_be(self, tmp_path, liver, message):
        model = write_model(tmp_path / "model", {**nets(), "liver.onnx": liver})
        self.refused(ModelError, f"liver net: {message}", model, precision="fp32")

    @needs_rtx
    def test_the_last_net_fails_and_earlier_engines_stay(self, tmp_path):
        out = tmp_path / "out"
        trtseg.build_engines(cascade_model(tmp_path / "good"), target="sm_86", batch=1, output=out)
        before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in out.iterdir()}
        broken = onnx.load_from_string(nets()["tumour.fp16.onnx"])
        broken.graph.node[0].op_type = "Nonsense"
        model = write_model(tmp_path / "model", {**nets(), "tumour.fp16.onnx": broken.SerializeToString()})
        with pytest.raises(ModelError, match=r"tumour net: .* cannot read it"):
            trtseg.build_engines(model, target="sm_86", batch=1, output=out)
        assert {path.name: (path.read_bytes(), path.stat().st_ino) for path in out.iterdir()} == before
