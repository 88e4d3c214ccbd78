"""From a model to nets that run on a GPU that is here: which runtime, which precision, and whether to trust them.

An engine comes from this user's cache, or is built into it. Before it is first used on a GPU it must agree with the
FP32 reference (`trtseg.engines.acceptance`); the verdict stays in its sidecar.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from trtseg import _core
from trtseg.cuda.device import Device, Resources, download, upload
from trtseg.engines.acceptance import Verdict, calibration, judge
from trtseg.engines.nvidia import cache
from trtseg.engines.nvidia.build import Net, Progress, engine_for, places_to_try
from trtseg.engines.nvidia.probe import RTX_CAPABILITIES, Driver, Gpu, compiled_for, find_driver, installed
from trtseg.engines.nvidia.runtime import (
    INSTALL,
    MODULES,
    NAMES,
    Runtime,
    check_batch,
    check_name,
    load_runtime,
)
from trtseg.engines.nvidia.sidecar import EngineKey
from trtseg.engines.nvidia.tensorrt import LoadedEngine, TensorRTEngine
from trtseg.engines.nvidia.torch import TorchEngine, TorchNet
from trtseg.engines.nvidia.trust import engine_folder
from trtseg.errors import ArgumentError, DeviceError
from trtseg.models import ModelFiles

log = logging.getLogger("trtseg")

PRECISIONS = ("auto", "fp16", "fp32")

_Calibration = dict[str, tuple[NDArray[Any], NDArray[Any]]]


@dataclass(frozen=True)
class GpuNets:
    """The nets of a model on a GPU, for one number of slices a run, in the order of the cascade.

    Attributes
    ----------
    loaded : tuple of LoadedEngine or LoadedTorch
        One of each net.
    batch : int
        Slices in each run.
    provenance : dict
        What a result tells of them.
    """

    loaded: tuple[LoadedEngine | LoadedTorch, ...]
    batch: int
    provenance: dict[str, Any]

    def contexts(self) -> tuple[TensorRTEngine | TorchEngine, ...]:
        """One engine of each net, for one stream; the device is current. The caller closes them before the nets."""
        with ExitStack() as made:
            engines = []
            for net in self.loaded:
                engines.append(net.context())
                made.callback(engines[-1].close)
            made.pop_all()
        return tuple(engines)

    def keep_compiled(self) -> None:
        """Keep what was compiled at the first run."""
        for net in self.loaded:
            net.keep_compiled()

    def close(self) -> None:
        """Give the weights back; the device is current, and the engines of these nets are closed."""
        for net in self.loaded:
            net.close()


@dataclass(frozen=True)
class LoadedTorch:
    """A net that PyTorch runs, from which engines are made; it has no engine file, so its key names it."""

    net: TorchNet
    key: EngineKey

    def context(self) -> TorchEngine:
        """An engine that one thread and one stream at a time can use, with activations of its own."""
        return TorchEngine(self.net)

    def keep_compiled(self) -> None:
        """Nothing is compiled."""

    def close(self) -> None:
        """Let the weights go."""
        self.net.close()


def check_gpu(index: int, named: str | None = None) -> tuple[Gpu, Driver]:
    """The GPU of that number, if all that it takes to run on it is here; a DeviceError says what is not.

    ``named`` is what the user called it.
    """
    got = f"device: got {named or f'cuda:{index}'!r}, but"
    build = _core.build_info()
    built_with = build["cuda_version"]
    if built_with is None:
        raise DeviceError(f"{got} trtseg was built without CUDA; install it again where nvcc is")
    driver = find_driver()
    if not driver.gpus:
        raise DeviceError(f"{got} {driver.problem}; install NVIDIA's driver, or use device='cpu'")
    if index >= len(driver.gpus):
        raise DeviceError(f"{got} there are {len(driver.gpus)} GPUs, counted from 0")
    if driver.cuda is not None and int(driver.cuda.split(".")[0]) < int(built_with.split(".")[0]):
        raise DeviceError(
            f"{got} the driver {driver.version or ''} runs CUDA {driver.cuda} and trtseg was built with {built_with}; "
            "install a newer driver, or trtseg with an older CUDA toolkit"
        )
    gpu = driver.gpus[index]
    archs = build["cuda_archs"] or ""
    if not compiled_for(archs, gpu.sm):
        raise DeviceError(
            f"{got} trtseg's operations were compiled for sm_{archs} and this is {gpu}; install trtseg again with "
            f"TRTSEG_CUDA_ARCHS={gpu.sm.removeprefix('sm_')}"
        )
    if installed("pycuda") is None:
        raise DeviceError(f'{got} PyCUDA is not installed: pip install "trtseg[cuda]"')
    return gpu, driver


def choose_runtime(name: str, gpu: Gpu) -> Runtime:
    """The runtime that was named, or for ``auto`` the first that is installed and made for the GPU."""
    if name != "auto":
        check_name(name)
        return load_runtime(name)
    for candidate in NAMES:
        fits = candidate != "tensorrt-rtx" or gpu.sm in RTX_CAPABILITIES
        if fits and installed(MODULES[candidate]) is not None:
            return load_runtime(candidate)
    wanted = "tensorrt-rtx" if gpu.sm in RTX_CAPABILITIES else "tensorrt"
    raise DeviceError(f"runtime: got 'auto', but none that is made for {gpu} is installed: {INSTALL[wanted]}")


def open_nets(
    files: ModelFiles,
    device: Device,
    batch: int,
    *,
    precision: str = "auto",
    runtime: str = "auto",
    progress: Progress | None = None,
) -> GpuNets:
    """Load the nets of a model on a GPU, built and judged where that has not been done.

    Parameters
    ----------
    files : ModelFiles
        The model.
    device : Device
        Where.
    batch : int
        Slices in each run.
    precision : str
        ``fp16``, ``fp32``, or ``auto``: FP16, and FP32 for a net whose FP16 engine is not accepted.
    runtime : str
        ``tensorrt``, ``tensorrt-rtx`` or ``auto``.
    progress : callable, optional
        Called while an engine is built, with a text and a fraction.

    Raises
    ------
    ArgumentError, ModelError
        As for `trtseg.build_engines`.
    DeviceError
        The runtime is not there or fails, or no engine of a net is accepted.
    """
    if precision not in PRECISIONS:
        raise ArgumentError(f"precision: got {precision!r}; on a GPU it is 'auto', 'fp16' or 'fp32'")
    check_batch(batch)
    gpu, driver = check_gpu(device.index)
    chosen = choose_runtime(runtime, gpu)
    wanted = ("fp16", "fp32") if precision == "auto" else (precision,)
    known: _Calibration = {}  # made once, when the first engine has to be judged
    loaded: list[LoadedEngine | LoadedTorch] = []
    told: dict[str, dict[str, Any]] = {}
    with device, ExitStack() as opened:
        for spec in files.spec.nets:
            refused: list[str] = []
            for one in wanted:
                net = Net.read(files, spec, one)
                engine: LoadedEngine | LoadedTorch
                if chosen.name == "torch":
                    engine, verdict = _open_torch(net, chosen, gpu, driver, device, batch, known)
                else:
                    engine, verdict = _open(net, chosen, gpu, driver, device, batch, known, progress)
                if verdict.accepted:
                    opened.callback(engine.close)
                    break
                engine.close()
                refused.append(f"{one}: {'; '.join(verdict.reasons)}")
                log.warning("the %s engine of the %s net is not used: %s", one, spec.role, refused[-1])
            else:
                raise DeviceError(
                    f"precision: got {precision!r}, but no engine of the {spec.role} net agrees with the FP32 "
                    f"reference on {device.name} ({'. '.join(refused)}); use device='cpu', or another runtime"
                )
            if refused:
                log.warning("the %s net runs its %s engine instead", spec.role, one)
            loaded.append(engine)
            told[spec.role] = {
                "precision": one,
                "sha256": net.sha256 if isinstance(engine, LoadedTorch) else engine.sidecar.sha256,
                "target": engine.key.target if isinstance(engine, LoadedTorch) else engine.sidecar.key.target,
                "acceptance": str(verdict),
                "refused": refused,
            }
            if isinstance(engine, LoadedTorch) and engine.net.parts:
                told[spec.role]["parts of a batch"] = engine.net.parts
        opened.pop_all()
    provenance = {
        "gpu": device.name,
        "driver": driver.version,
        "runtime": chosen.title,
        "batch": batch,
        "engines": told,
    }
    return GpuNets(tuple(loaded), batch, provenance)


def _open(
    net: Net,
    runtime: Runtime,
    gpu: Gpu,
    driver: Driver,
    device: Device,
    batch: int,
    known: _Calibration,
    progress: Progress | None,
) -> tuple[LoadedEngine, Verdict]:
    """Load one engine, judged on this GPU with this driver."""
    engine: LoadedEngine | None = None
    errors: list[DeviceError] = []
    for place in places_to_try(runtime, gpu):
        try:
            data, sidecar = engine_for(net, runtime, gpu, batch, place=place, progress=progress)
            engine = LoadedEngine(runtime, data, sidecar, device)
            break
        except DeviceError as error:
            errors.append(error)
    if engine is None:
        raise errors[0]
    verdict = Verdict.from_json(sidecar.acceptance)
    if verdict is not None and verdict.holds_for(gpu.name, driver.version):
        return engine, verdict
    with ExitStack() as stack:
        stack.callback(engine.close)
        verdict = _judged(engine.context(), sidecar.key, net, gpu, driver, device, known)
        engine.keep_compiled()
        cache.accept(engine_folder() / sidecar.key.file_name, verdict.to_json(), sha256=sidecar.sha256)
        stack.pop_all()
    return engine, verdict


def _open_torch(
    net: Net, runtime: Runtime, gpu: Gpu, driver: Driver, device: Device, batch: int, known: _Calibration
) -> tuple[LoadedTorch, Verdict]:
    """A net that PyTorch runs, judged on this GPU with this driver; the verdict is kept in this user's cache."""
    key = net.key(runtime, gpu.sm, gpu.name, batch)
    loaded = LoadedTorch(TorchNet(net.onnx, net.spec, net.precision, batch, f"cuda:{device.index}"), key)
    name = f"verdict-{key.stem}-{re.sub(r'[^A-Za-z0-9]+', '-', gpu.name)}"
    kept = cache.load_blob(name)
    verdict = None if kept is None else Verdict.from_json(json.loads(kept))
    if verdict is None or not verdict.holds_for(gpu.name, driver.version):
        verdict = _judged(loaded.context(), key, net, gpu, driver, device, known)
        cache.store_blob(name, json.dumps(verdict.to_json()).encode())
    return loaded, verdict


def _judged(
    engine: TensorRTEngine | TorchEngine,
    key: EngineKey,
    net: Net,
    gpu: Gpu,
    driver: Driver,
    device: Device,
    known: _Calibration,
) -> Verdict:
    with ExitStack() as stack:
        stack.callback(engine.close)
        if not known:
            known.update(calibration(net.files))
        images, reference = known[net.spec.role]
        return judge(
            on_host(engine, stack.enter_context(Resources(device))),
            reference,
            images,
            engine=key,
            spec=net.spec,
            gpu=gpu.name,
            driver=driver.version,
        )


def on_host(engine: TensorRTEngine | TorchEngine, own: Resources) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """A function that runs an engine on host arrays ``[batch, 1, H, W]``, with what it needs taken from ``own``."""
    shapes = [(engine.batch, channels, *engine.spec.size) for channels in (1, engine.spec.channels)]
    hosts = [own.pinned(shape, engine.dtype) for shape in shapes]
    arrays = [own.array(shape, engine.dtype) for shape in shapes]
    stream = own.stream()

    def run(images: NDArray[Any]) -> NDArray[Any]:
        hosts[0][:] = images
        upload(arrays[0], hosts[0], stream)
        engine.run(arrays[0], arrays[1], stream.handle)
        download(hosts[1], arrays[1], stream)
        stream.synchronize()
        return hosts[1].copy()

    return run
