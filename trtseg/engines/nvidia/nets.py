"""From a model to nets that run on a GPU that is here: which runtime, which precision, and whether they are accepted.

TensorRT's engines come from this user's cache, or are built into it. PyTorch runs the ONNX files, or its engines where
the cache has them. Before an engine is first used on a GPU it must pass the acceptance gate
(`trtseg.engines.acceptance`), and its acceptance is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from trtseg.cuda.device import Device, Resources, download, upload
from trtseg.engines import acceptance
from trtseg.engines.acceptance import Acceptance
from trtseg.engines.base import GpuEngine, Net
from trtseg.engines.calibration import Reference, reference_files, references
from trtseg.engines.nvidia.build import Progress, engine_for, engine_key
from trtseg.engines.nvidia.driver import Driver, Gpu
from trtseg.engines.nvidia.machine import check_gpu, choose_runtime, place_of
from trtseg.engines.nvidia.runtime import Runtime, check_batch, load_runtime
from trtseg.engines.nvidia.sidecar import EngineKey
from trtseg.engines.nvidia.tensorrt import LoadedEngine
from trtseg.engines.nvidia.torch import LoadedTorch, load_compiled
from trtseg.engines.precision import Precision, candidates
from trtseg.errors import DeviceError, TrtsegError
from trtseg.models import ModelFiles
from trtseg.spec import ModelSpec

log = logging.getLogger("trtseg")


class Loaded(Protocol):
    """A net on a GPU, for one precision and batch size: `LoadedEngine` on TensorRT, `LoadedTorch` on PyTorch."""

    @property
    def key(self) -> EngineKey:
        """Key of the engine."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What a result tells of the engine."""

    def context(self) -> GpuEngine:
        """Make an engine for one thread and one stream at a time; the device must be current."""

    def keep_compiled(self) -> None:
        """Keep what the runtime compiled at the first run."""

    def kept_acceptance(self) -> dict[str, Any] | None:
        """The acceptance that `keep_acceptance` kept, or None."""

    def keep_acceptance(self, acceptance: dict[str, Any]) -> None:
        """Keep the acceptance for the next start."""

    def close(self) -> None:
        """Give the net back; engines made from it must be closed before, and the device must be current."""


@dataclass(frozen=True)
class GpuNets:
    """The nets of a model on a GPU, for one number of slices a run, in the order of the cascade.

    Attributes
    ----------
    loaded : tuple of Loaded
        One of each net.
    provenance : dict
        What a result tells of the nets.
    """

    loaded: tuple[Loaded, ...]
    provenance: dict[str, Any]

    def contexts(self) -> tuple[GpuEngine, ...]:
        """Make one engine of each net, for one stream; the device is current. They are closed before the nets."""
        with ExitStack() as made:
            engines = []
            for net in self.loaded:
                engines.append(net.context())
                made.callback(engines[-1].close)
            made.pop_all()
        return tuple(engines)

    def keep_compiled(self) -> None:
        """Keep what the runtime compiled at the first run."""
        for net in self.loaded:
            net.keep_compiled()

    def close(self) -> None:
        """Give the nets back; engines made from them must be closed before, and the device must be current."""
        for net in self.loaded:
            net.close()


@dataclass(frozen=True)
class _Place:
    """Where and how the nets of a model are opened."""

    files: ModelFiles
    device: Device
    gpu: Gpu
    driver: Driver
    runtime: Runtime
    batch: int
    known: dict[str, Reference]  # filled when the first engine has to be checked


def open_nets(
    files: ModelFiles,
    device: Device,
    batch: int,
    *,
    precision: str = "auto",
    runtime: str = "auto",
    progress: Progress | None = None,
) -> GpuNets:
    """Load the nets of a model on a GPU; engines are built, and checked by the acceptance gate, where needed.

    Parameters
    ----------
    files : ModelFiles
        The model.
    device : Device
        The GPU.
    batch : int
        Slices in each run.
    precision : str
        ``fp16``, ``fp32``, or ``auto``: FP16, and FP32 for a net whose FP16 engine is not accepted.
    runtime : str
        ``tensorrt``, ``tensorrt-rtx``, ``torch``, or ``auto``; see `choose_runtime`.
    progress : callable, optional
        Called while an engine is built, with a text and a fraction.

    Raises
    ------
    ArgumentError, ModelError
        As for `trtseg.build_engines`.
    DeviceError
        The runtime is not there or fails, or no engine of a net is accepted.
    """
    rows = candidates(precision, "cuda")
    check_batch(batch)
    gpu, driver = check_gpu(device.index)
    chosen, why = choose_runtime(runtime, gpu)
    place = _Place(files, device, gpu, driver, load_runtime(chosen), batch, {})
    log.info("%s runs the nets on %s (%s)", place.runtime.title, gpu, why)
    loaded: list[Loaded] = []
    told: dict[str, dict[str, Any]] = {}
    with device, ExitStack() as opened:
        for spec in files.spec.nets:
            net, told[spec.role] = _open_net(place, spec, rows, progress)
            opened.callback(net.close)
            loaded.append(net)
        opened.pop_all()
    provenance = {
        "gpu": device.name,
        "driver": driver.version,
        "runtime": place.runtime.title,
        "runtime_chosen": why,
        "batch": batch,
        "engines": told,
    }
    return GpuNets(tuple(loaded), provenance)


def _open_net(
    place: _Place, spec: ModelSpec, rows: tuple[Precision, ...], progress: Progress | None
) -> tuple[Loaded, dict[str, Any]]:
    """Load a net in the first of some precisions that is accepted; the net, and what a result tells of it."""
    refused: list[str] = []
    for row in rows:
        net = Net.read(place.files, spec, row)
        for loaded in _load(place, net, progress):
            with ExitStack() as stack:
                stack.callback(loaded.close)
                found = _acceptance(place, net, loaded)
                if found.accepted:
                    if refused:
                        log.warning("the %s net runs its %s engine instead", spec.role, row.name)
                    stack.pop_all()
                    return loaded, {**loaded.provenance, "acceptance": str(found), "refused": refused}
            refused.append(f"{row.name}: {'; '.join(found.reasons)}")
            log.warning("the %s engine of the %s net is not used: %s", row.name, spec.role, refused[-1])
    raise DeviceError(
        f"precision: tried {', '.join(row.name for row in rows)}, but no engine of the {spec.role} net agrees with the "
        f"FP32 reference on {place.device.name} ({'. '.join(refused)}); use device='cpu', or another runtime"
    )


def _load(place: _Place, net: Net, progress: Progress | None) -> Iterator[Loaded]:
    """Load a net; for PyTorch first with its engine, where one was built, and then without."""
    if place.runtime.name == "torch":
        key = engine_key(net, place.runtime, place_of(place.runtime, place.gpu), place.batch)
        device = f"cuda:{place.device.index}"
        compiled = load_compiled(net, key, device)
        if compiled is not None:
            yield compiled
        yield LoadedTorch(net, key, device)
    else:
        data, sidecar = engine_for(net, place.runtime, place.gpu, place.batch, progress=progress)
        yield LoadedEngine(place.runtime, data, sidecar, place.device)


def _acceptance(place: _Place, net: Net, loaded: Loaded) -> Acceptance:
    """The acceptance of a net on this GPU with this driver, checked now where none is kept."""
    kept = Acceptance.from_json(loaded.kept_acceptance())
    if kept is not None and kept.holds_for(
        place.gpu.name, place.driver.version, reference_files(place.files)
    ):
        return kept
    if not place.known:
        place.known.update(references(place.files))
    with ExitStack() as stack:
        engine = loaded.context()
        stack.callback(engine.close)
        found = acceptance.check(
            engine_on_host(engine, stack.enter_context(Resources(place.device))),
            place.known[net.spec.role],
            spec=net.spec,
            precision=net.precision,
            batch=place.batch,
            device=place.gpu.name,
            driver=place.driver.version,
        )
        loaded.keep_compiled()
    try:
        loaded.keep_acceptance(found.to_json())
    except TrtsegError as error:  # only that the next start takes longer
        log.warning("the %s net is checked at the next start again: %s", net.spec.role, error)
    return found


def engine_on_host(engine: GpuEngine, own: Resources) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Make a function that runs an engine on host arrays ``[batch, 1, H, W]``; ``own`` gives it memory and a stream."""
    shapes = [(engine.batch or 1, channels, *engine.spec.size) for channels in (1, engine.spec.channels)]
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
