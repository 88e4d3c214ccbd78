"""A whole `Segmenter` on the GPU that is played: whole.py MODEL CASE. The cache holds its engines for sm_89."""

import functools
import gc
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import played_pycuda
import played_tensorrt as trt
import pytest
from cascade_cases import in_threads
from producer import READ_ONLY, Producer

played_pycuda.install()
import trtseg  # noqa: E402
from trtseg import _core  # noqa: E402
from trtseg.cuda.arrays import CudaArray  # noqa: E402
from trtseg.cuda.device import Resources, open_device  # noqa: E402
from trtseg.engines.nvidia import machine  # noqa: E402
from trtseg.engines.nvidia import nets as nvidia  # noqa: E402
from trtseg.engines.nvidia.driver import Driver, Gpu  # noqa: E402
from trtseg.engines.nvidia.runtime import Runtime  # noqa: E402
from trtseg.engines.nvidia.trust import engine_folder  # noqa: E402
from trtseg.errors import ArgumentError, DeviceError  # noqa: E402
from trtseg.models import find  # noqa: E402
from trtseg.phantom import abdomen  # noqa: E402

MODEL = Path(sys.argv[1])
SPACING = (5.0, 2.5, 2.5)
GPU = Gpu(0, "Played GPU", "sm_89", 8 << 30)
DRIVER = Driver("580.65.06", "13.0", (GPU,), None)

played_pycuda.Device.capability = (8, 9)
trt.files, trt.engines = find(MODEL), engine_folder()
machine.check_gpu = nvidia.check_gpu = lambda *_: (GPU, DRIVER)  # type: ignore[assignment]
nvidia.load_runtime = lambda name: Runtime(name, trt, str(machine.installed("tensorrt_rtx")))  # type: ignore[assignment]

CT = abdomen(shape=(22, 96, 128), spacing=SPACING).ct


def segmenter(**options: Any) -> trtseg.Segmenter:
    return trtseg.Segmenter(MODEL, device="cuda", runtime="tensorrt-rtx", batch=4, **options)


def equals_the_cpu() -> None:
    cpu = trtseg.Segmenter(MODEL, device="cpu", precision="fp32")
    expected = cpu.segment(CT, spacing=SPACING)
    assert set(np.unique(expected.labels)) == {0, 1, 2}
    gpu = segmenter(precision="fp32")
    assert gpu.device == "cuda:0"
    assert gpu.precision == "fp32"
    result = gpu.segment(CT, spacing=SPACING)
    assert (result.labels == expected.labels).all()
    assert result.provenance["device"] == "cuda:0"
    assert result.provenance["gpu"] == "Played GPU"
    assert result.provenance["driver"] == "580.65.06"
    assert result.provenance["batch"] == 4
    for engine in result.provenance["engines"].values():
        assert engine["precision"] == "fp32"
        assert engine["acceptance"].startswith("accepted on Played GPU, driver 580.65.06")
    labels = gpu.label(CT, spacing=SPACING[1:])
    assert (labels == cpu.label(CT, spacing=SPACING[1:])).all()


def label_in_place() -> None:
    one = segmenter()
    assert one.precision == "fp16", one._cascade.provenance
    expected = one.label(CT, spacing=SPACING[1:])
    out = np.empty_like(expected)
    assert one.label(CT, spacing=SPACING[1:], out=out) is out
    assert (out == expected).all()
    with open_device(0) as device:
        own = Resources(device)
        stream, hu, labels = own.stream(), own.array(CT.shape, np.int16), own.array(CT.shape, np.uint8)

        def fill() -> None:
            played_pycuda.device_array(hu.address, hu.shape, hu.dtype)[:] = CT

        played_pycuda.enqueue(stream.handle, fill)
        assert one.label(hu, spacing=SPACING[1:], out=labels, stream=stream.handle) is labels
        stream.synchronize()
        assert (played_pycuda.device_array(labels.address, labels.shape, labels.dtype) == expected).all()
        with pytest.raises(ArgumentError, match="hu: got uint8 of shape"):
            one.label(labels, spacing=SPACING[1:])
        with pytest.raises(ArgumentError, match="make it with device='cuda'"):
            trtseg.Segmenter(MODEL, device="cpu").label(hu, spacing=SPACING[1:])
        read_only = CudaArray(labels.address, labels.shape, labels.dtype, labels, read_only=True)
        with pytest.raises(ArgumentError, match="out: got a read-only array; expected one that may be"):
            one.label(hu, spacing=SPACING[1:], out=read_only, stream=stream.handle)
        own.free()


def label_through_dlpack() -> None:
    """Arrays of a library whose stream nobody tells."""
    one = segmenter()
    expected = one.label(CT, spacing=SPACING[1:])
    with open_device(0) as device:
        own = Resources(device)
        theirs, ours = own.stream(), own.stream()
        hu, labels = own.array(CT.shape, np.int16), own.array(CT.shape, np.uint8)

        def fill() -> None:
            played_pycuda.device_array(hu.address, hu.shape, hu.dtype)[:] = CT

        def producer(array: CudaArray, **fields: Any) -> Producer:
            wait = functools.partial(_core.wait_for, other=theirs.handle)
            return Producer(array.address, array.shape, array.dtype, wait=wait, **fields)

        source, out = producer(hu), producer(labels)
        played_pycuda.enqueue(theirs.handle, fill)
        assert one.label(source, spacing=SPACING[1:], out=out, stream=ours.handle) is out
        ours.synchronize()
        assert (played_pycuda.device_array(labels.address, labels.shape, labels.dtype) == expected).all()
        assert source.deleted == out.deleted == 1
        assert (one.label(source, spacing=SPACING[1:]) == expected).all()
        with pytest.raises(ArgumentError, match="out: got a read-only array; expected one that may be"):
            one.label(source, spacing=SPACING[1:], out=producer(labels, flags=READ_ONLY))
        with pytest.raises(ArgumentError, match="hu: got an array on GPU 1; expected one on GPU 0"):
            one.label(producer(hu, device=(2, 1)), spacing=SPACING[1:])
        with pytest.raises(ArgumentError, match="hu: got Producer; expected a NumPy array or one on the GPU"):
            one.label(producer(hu, device=(1, 0)), spacing=SPACING[1:])
        own.free()


def two_threads() -> None:
    """One Segmenter for both, with a volume each."""
    one = segmenter()
    volumes = CT, np.ascontiguousarray(CT[:9, 16:])
    expected = [one.label(volume, spacing=SPACING[1:]) for volume in volumes]
    whole = [one.segment(volume, spacing=SPACING).labels for volume in volumes]

    def work(i: int) -> None:
        for _ in range(3):
            assert (one.label(volumes[i], spacing=SPACING[1:]) == expected[i]).all()
            assert (one.segment(volumes[i], spacing=SPACING).labels == whole[i]).all()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, i) for i in (0, 1)]:
            done.result()


def judged_once() -> None:
    segmenter()
    assert trt.compiled == ["liver", "tumour"], trt.compiled  # where they are judged
    assert len(trt.reused) == 4  # in two lanes
    before = dict(trt.runs)
    assert before["liver", "fp16"] > 20
    trt.compiled.clear()
    trt.reused.clear()
    segmenter()
    assert trt.runs == before  # the verdict is in the sidecar
    assert trt.compiled == []
    assert len(trt.reused) == 4


def falls_back_to_fp32() -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("trtseg").addHandler(handler)
    trt.black.add(("tumour", "fp16"))
    one = segmenter()
    assert one.precision == "fp16, fp32"
    assert any("the fp16 engine of the tumour net is not used" in text for text in said), said
    provenance = one.segment(CT, spacing=SPACING).provenance
    assert provenance["engines"]["liver"]["refused"] == []
    assert provenance["engines"]["tumour"]["precision"] == "fp32"
    assert len(provenance["engines"]["tumour"]["refused"]) == 1
    with pytest.raises(DeviceError, match="no engine of the tumour net agrees with the FP32 reference"):
        segmenter(precision="fp16")
    trt.black.add(("tumour", "fp32"))
    for path in engine_folder().glob("tumour*fp32*.json"):  # judge it again
        path.write_text(path.read_text().replace('"driver": "580', '"driver": "570'))
    with pytest.raises(DeviceError, match="no engine of the tumour net agrees"):
        segmenter()


def tensorrt_goes_in_order() -> None:
    """Contexts, what they were made with, engines, loaders: each before what it needs, where the GPU is current."""
    for drop in (list.clear, lambda last: in_threads(last.clear)):
        trt.gone.clear()
        last = [segmenter()]
        last[0].label(CT, spacing=SPACING[1:])
        judging = trt.gone.count("Context")
        drop(last)
        of_two_nets = [*["Context"] * 4, *["RuntimeConfig", "RuntimeCache", "Engine", "Runtime"] * 2]
        assert trt.gone[judging:] == of_two_nets, trt.gone
    with open_device(0) as device:  # engines may be all that is left
        engines = nvidia.open_nets(find(MODEL), device, 4, runtime="tensorrt-rtx").contexts()
        trt.gone.clear()
        del engines
        assert trt.gone == ["Context", "RuntimeConfig", "RuntimeCache", "Engine", "Runtime"] * 2, trt.gone
    trt.black |= {("tumour", "fp16"), ("tumour", "fp32")}
    for path in engine_folder().glob("tumour*.json"):  # judge it again
        path.write_text(path.read_text().replace('"driver": "580', '"driver": "570'))
    with pytest.raises(DeviceError, match="no engine of the tumour net agrees"):
        segmenter()
    assert {"Context", "Engine"} <= set(trt.gone)


def without_a_runtime_cache() -> None:
    """What was compiled cannot be kept: all else works."""
    for name in ("create_runtime_cache", "set_runtime_cache", "serialize"):
        trt.refused = {name}
        segmenter().label(CT, spacing=SPACING[1:])
        assert not list(engine_folder().glob("compiled-*.blob")), name


def what_tensorrt_refuses_is_an_error() -> None:
    one = segmenter()
    expected = one.label(CT, spacing=SPACING[1:])
    other = np.ascontiguousarray(CT[:, 16:])  # another size: engines are run again
    for name, what in (
        ("set_tensor_address", "does not take the address of its tensor '"),
        ("execute_async_v3", r"does not run on Played GPU; .*\(setDeviceMemoryV2 should be called"),
    ):
        trt.refused = {name}
        with pytest.raises(DeviceError, match=f"the engine liver sm_89 fp16 batch 4 {what}"):
            one.label(other, spacing=SPACING[1:])
        trt.refused = set()
        assert (one.label(CT, spacing=SPACING[1:]) == expected).all()


def not_capturable() -> None:
    """What cannot be recorded is launched step by step, and the report says so."""
    recorded = segmenter().segment(CT, spacing=SPACING)
    assert recorded.provenance["cuda_graphs"] is True
    trt.capturable = False
    one = segmenter()
    plain = one.segment(CT, spacing=SPACING)
    assert plain.provenance["cuda_graphs"] is False
    assert (plain.labels == recorded.labels).all()


def prepared() -> None:
    """The first slice finds all that it needs, on the GPU and, with less to prepare, on the CPU."""
    expected = segmenter(precision="fp32").label(CT, spacing=SPACING[1:])
    for one in (segmenter(precision="fp32"), trtseg.Segmenter(MODEL, device="cpu", precision="fp32")):
        one.prepare(CT.shape[1:], SPACING[1:])
        made, runs = played_pycuda.made(), dict(trt.runs)
        assert (one.label(CT, spacing=SPACING[1:]) == expected).all()
        assert played_pycuda.made() == made
        assert (trt.runs != runs) == (one.device != "cpu")
        for shape in (96, (96,), (0, 96), (96, -1), (1, 96, 128), (96.0, 128.0)):
            with pytest.raises(ArgumentError, match=r"shape: got .*; expected the numbers of rows and of"):
                one.prepare(shape, SPACING[1:])
        with pytest.raises(ArgumentError, match="spacing: got"):
            one.prepare((96, 128), (0.0, 1.0))


globals()[sys.argv[2]]()
gc.collect()
assert trt.misused == [], trt.misused
