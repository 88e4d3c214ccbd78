"""A whole `Segmenter` on the GPU that is played: whole.py MODEL CASE... The cache holds its engines for sm_89."""

import gc
import hashlib
import logging
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import played_pycuda as played
import played_tensorrt as trt
import pytest
from cascade_nets import in_threads

played.install()
import trtseg  # noqa: E402
from trtseg.cuda.arrays import CudaArray  # noqa: E402
from trtseg.cuda.device import Resources, open_device  # noqa: E402
from trtseg.engines.nvidia import machine  # noqa: E402
from trtseg.engines.nvidia import nets as nvidia  # noqa: E402
from trtseg.engines.nvidia.driver import Driver, Gpu  # noqa: E402
from trtseg.engines.nvidia.runtime import Runtime  # noqa: E402
from trtseg.engines.trust import engine_folder  # noqa: E402
from trtseg.errors import ArgumentError, DeviceError, OutOfMemoryError  # noqa: E402
from trtseg.models import find  # noqa: E402
from trtseg.phantom import abdomen  # noqa: E402

MODEL = Path(sys.argv[1])
SPACING = (8.0, 4.0, 4.0)
GPU = Gpu(0, "Played GPU", "sm_89", 8 << 30)
DRIVER = Driver("580.65.06", "13.0", (GPU,), None)

played.Device.capability = (8, 9)
trt.files, trt.engines = find(MODEL), engine_folder()
machine.check_gpu = nvidia.check_gpu = lambda *_: (GPU, DRIVER)  # type: ignore[assignment]
nvidia.load_runtime = lambda name: Runtime(name, trt, str(machine.installed("tensorrt_rtx")))  # type: ignore[assignment]

SAID: list[str] = []  # by the log
_handler = logging.Handler()
_handler.emit = lambda record: SAID.append(record.getMessage())  # type: ignore[method-assign]
logging.getLogger("trtseg").addHandler(_handler)

CT = abdomen(shape=(13, 64, 80), spacing=SPACING).ct


def segmenter(**options: Any) -> trtseg.Segmenter:
    return trtseg.Segmenter(MODEL, device="cuda", runtime="tensorrt-rtx", **{"batch": 4, **options})


def judge_again() -> None:
    for path in engine_folder().glob("*.json"):
        path.write_text(path.read_text().replace('"driver": "580', '"driver": "570'))


def equals_the_cpu() -> None:
    with trtseg.Segmenter(MODEL, device="cpu", precision="fp32") as cpu, segmenter(precision="fp32") as gpu:
        expected = cpu.segment(CT, spacing=SPACING)
        assert set(np.unique(expected.labels)) == {0, 1, 2}
        result = gpu.segment(CT, spacing=SPACING)
        assert (result.labels == expected.labels).all()
        assert result.lesions == expected.lesions
        assert all(0 < lesion.probability < 1 for lesion in result.lesions)
        assert (gpu.label(CT, spacing=SPACING[1:]) == cpu.label(CT, spacing=SPACING[1:])).all()
        assert result.provenance == gpu.provenance
        told = {name: gpu.provenance[name] for name in ("device", "gpu", "driver", "batch", "precision")}
        assert list(told.values()) == ["cuda:0", "Played GPU", "580.65.06", 4, "fp32"]
        for engine in gpu.provenance["engines"].values():
            assert engine["precision"] == "fp32"
            assert engine["acceptance"].startswith("accepted on Played GPU, driver 580.65.06")


def streamed() -> None:
    """Slices one by one, two streams at once, with a batch of 1 and of 4; the graphs are made once."""
    other = np.ascontiguousarray(CT[:, ::-1])
    for batch in (1, 4):
        with segmenter(batch=batch) as one:
            expected = [one.segment(ct, spacing=SPACING) for ct in (CT, other)]
            lanes = one._cascade._lanes[:]
            with (
                one.stream(CT.shape[1:], spacing=SPACING[1:]) as first,
                one.stream(CT.shape[1:], spacing=SPACING[1:]) as second,
            ):
                for z in (*range(1, len(CT), 2), *range(0, len(CT), 2)):
                    first.push(CT[z], 8.0 * z)
                    second.push(other[z], 8.0 * z)
                results = first.finish(), second.finish()
            for result, wanted in zip(results, expected, strict=True):
                assert (result.labels == wanted.labels).all()
                assert result.lesions == wanted.lesions
                assert result.warnings == wanted.warnings
            assert all(a is b for a, b in zip(lanes, one._cascade._lanes, strict=True))


def label_in_place() -> None:
    for batch in (4, 1):
        with segmenter(batch=batch) as one, open_device(0) as device, Resources(device) as own:
            expected = one.label(CT, spacing=SPACING[1:])
            out = np.empty_like(expected)
            for z in range(len(CT)):
                given, labels = CT[z : z + 1], out[z : z + 1]
                assert one.label(given, spacing=SPACING[1:], out=labels) is labels
            assert (out == expected).all()
            stream, hu, labels = own.stream(), own.array(CT.shape, np.int16), own.array(CT.shape, np.uint8)

            def fill(hu: CudaArray = hu) -> None:
                played.device_array(hu.address, hu.shape, hu.dtype)[:] = CT

            played.enqueue(stream.handle, fill)
            assert one.label(hu, spacing=SPACING[1:], out=labels, stream=stream.handle) is labels
            stream.synchronize()
            assert (played.device_array(labels.address, labels.shape, labels.dtype) == expected).all()
            with pytest.raises(ArgumentError, match="hu: got uint8 of shape"):
                one.label(labels, spacing=SPACING[1:])
            read_only = CudaArray(labels.address, labels.shape, labels.dtype, labels, read_only=True)
            with pytest.raises(ArgumentError, match="out: got a read-only array; expected one that may be"):
                one.label(hu, spacing=SPACING[1:], out=read_only, stream=stream.handle)


def two_threads() -> None:
    """One Segmenter for both, with a volume each."""
    with segmenter() as one, ThreadPoolExecutor(2) as pool:
        volumes = CT, np.ascontiguousarray(CT[:9, 16:])
        expected = [one.label(volume, spacing=SPACING[1:]) for volume in volumes]

        def work(i: int) -> None:
            for _ in range(3):
                assert (one.label(volumes[i], spacing=SPACING[1:]) == expected[i]).all()

        for done in [pool.submit(work, i) for i in (0, 1)]:
            done.result()


def warmed_up() -> None:
    """The first slice finds everything ready, and wrong shapes are refused."""
    with segmenter() as one:
        one.warm_up(CT.shape[1:], SPACING[1:])
        made, runs = played.made(), dict(trt.runs)
        one.label(CT, spacing=SPACING[1:])
        assert played.made() == made
        assert trt.runs != runs
        assert next(iter(one.stages(CT[:4], spacing=SPACING[1:]))) == "copy into pinned memory"
        with pytest.raises(ArgumentError, match="hu: got 5 slices; expected from 1 to 4, the batch"):
            one.stages(CT[:5], spacing=SPACING[1:])


def not_capturable() -> None:
    """An engine that cannot be recorded is launched step by step, and provenance says so."""
    results = []
    for trt.capturable in (True, False):
        with segmenter() as one:
            results.append(one.segment(CT, spacing=SPACING))
    trt.capturable = True
    assert [result.provenance["cuda_graphs"] for result in results] == [True, False]
    assert (results[0].labels == results[1].labels).all()


def judged_once() -> None:
    segmenter().close()
    before = dict(trt.runs)
    assert before["liver", "fp16"] > 20
    segmenter().close()
    assert trt.runs == before  # the verdict is in the sidecar
    other = shutil.copytree(MODEL, MODEL.parent / "other")
    liver = (MODEL / "liver.onnx").read_bytes() + b"\x30\x01"  # model_version 1
    (other / "liver.onnx").write_bytes(liver)
    text, sha256 = (other / "model.json").read_text(), find(MODEL).spec.sha256["liver.onnx"]
    (other / "model.json").write_text(text.replace(sha256, hashlib.sha256(liver).hexdigest()))
    trtseg.Segmenter(other, device="cuda", runtime="tensorrt-rtx", batch=4).close()
    for role in ("liver", "tumour"):  # of the same FP16 files, but another liver in FP32
        assert trt.runs[role, "fp16"] == 2 * before[role, "fp16"]
    segmenter().close()  # has the first reference again
    before = dict(trt.runs)
    for name in ("create_runtime_cache", "set_runtime_cache", "serialize"):
        trt.refused = {name}  # compiled kernels cannot be kept
        with segmenter() as one:
            one.label(CT[:1], spacing=SPACING[1:])
    trt.refused = set()


def judged_where_nothing_can_be_written() -> None:
    """The verdict is not kept, and the log says so; engines that another machine has built run all the same."""
    judge_again()
    lock = engine_folder() / ".lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to("nowhere")  # which cannot be opened
    SAID.clear()
    with segmenter() as one:
        one.label(CT[:1], spacing=SPACING[1:])
        assert one.precision == "fp16"
    text = " net is checked at the next start again: "
    assert [role for role in ("liver", "tumour") if any(f"the {role}{text}" in t for t in SAID)] == [
        "liver",
        "tumour",
    ], SAID
    lock.unlink()


def falls_back_to_fp32() -> None:
    judge_again()
    trt.black.add(("tumour", "fp16"))
    with segmenter() as one:
        assert one.precision == "fp16, fp32"
        engines = one.provenance["engines"]
    assert any("the fp16 engine of the tumour net is not used" in text for text in SAID), SAID
    assert [len(engines[role]["refused"]) for role in ("liver", "tumour")] == [0, 1]
    assert engines["tumour"]["precision"] == "fp32"
    trt.black.add(("tumour", "fp32"))
    judge_again()
    for precision in ("fp16", "auto"):
        with pytest.raises(DeviceError, match="no engine of the tumour net agrees with the FP32 reference"):
            segmenter(precision=precision)
    trt.black.clear()
    judge_again()


def closed_by_hand_or_not() -> None:
    """Nothing goes after what it needs, and nothing stays; afterwards a Segmenter says that it is closed."""
    kept = segmenter()
    there = played.live()
    for drop in (lambda last: last[0].close(), list.clear, lambda last: in_threads(last.clear)):
        last = [segmenter()]
        last[0].label(CT, spacing=SPACING[1:])
        drop(last)
        assert (trt.misused, played.live()) == ([], there)
    kept.close()
    kept.close()
    with pytest.raises(ArgumentError, match=r"Segmenter: got a call after close\(\); make another"):
        kept.label(CT, spacing=SPACING[1:])


def errors_keep_nothing_alive() -> None:
    """What TensorRT made goes in its order also while an error is handled, which knows where it was raised."""
    segmenter(batch=1).close()  # is judged
    played.memory(trt.Engine.device_memory_size_v2 + 1)  # for one of two lanes
    with pytest.raises(OutOfMemoryError, match="too little free memory"):
        segmenter(batch=1)
    played.memory(8 << 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trt.Engine, "get_tensor_shape", lambda *_: (1, 1, 2, 2))
        with pytest.raises(DeviceError, match=r"has tensors .*, but its sidecar says"):
            segmenter(batch=1)


def what_tensorrt_refuses_is_an_error() -> None:
    other = np.ascontiguousarray(CT[:, 16:])  # another size: engines are run again
    with segmenter() as one:
        expected = one.label(CT, spacing=SPACING[1:])
        for name, what in (
            ("set_tensor_address", "does not take the address of its tensor '"),
            ("execute_async_v3", r"does not run on Played GPU; .*\(no memory"),
        ):
            trt.refused = {name}
            with pytest.raises(DeviceError, match=f"the engine liver sm_89 fp16 batch 4 {what}"):
                one.label(other, spacing=SPACING[1:])
            trt.refused = set()
            assert (one.label(CT, spacing=SPACING[1:]) == expected).all()


def left_open() -> None:
    """Nobody closes it before the process ends, which says nothing."""
    global left
    left = segmenter()
    left.label(CT, spacing=SPACING[1:])


for name in sys.argv[2:]:
    print(name, flush=True)
    globals()[name]()
    gc.collect()
    assert trt.misused == [], trt.misused
    assert played.misused == [], played.misused
    if name != "left_open":
        assert set(played.live().values()) == {0}, played.live()
