"""Build engines for NVIDIA GPUs: of the nets of a model, for some GPUs, in a precision and in some batch sizes.

An engine is for one target, although TensorRT-RTX can put several compute capabilities into one file at little cost
(the shipped liver net, FP16, batch 1: 3.0 MB for sm_86, alone or with sm_89 and sm_120). So the key alone finds the
engine for a GPU, without a search among sets of capabilities. The target ``portable`` gives one file for many GPUs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from trtseg import __version__
from trtseg.engines.base import Net
from trtseg.engines.blobs import load_blob, store_blob
from trtseg.engines.nvidia import cache, torch
from trtseg.engines.nvidia.driver import Gpu, find_driver
from trtseg.engines.nvidia.machine import place_of, resolve_targets, runs_portable
from trtseg.engines.nvidia.runtime import Runtime, check_batch, check_name, load_runtime
from trtseg.engines.nvidia.serialize import serialize
from trtseg.engines.nvidia.sidecar import EngineKey, Sidecar, sidecar_path
from trtseg.engines.precision import FP16, candidates
from trtseg.engines.trust import engine_folder, is_own, locked
from trtseg.errors import ArgumentError, TrtsegError
from trtseg.io.atomic import atomic
from trtseg.io.folders import made_folder
from trtseg.models import find

log = logging.getLogger("trtseg")

#: Called with the engine that is being built, as text, and the fraction of all the work that is done.
Progress = Callable[[str, float], None]


def engine_key(net: Net, runtime: Runtime, place: tuple[str, str], batch: int) -> EngineKey:
    """Key of the engine of a net; ``place`` is its ``target`` and ``gpu``, as `place_of` gives them."""
    return EngineKey(
        role=net.spec.role,
        onnx_sha256=net.sha256,
        runtime=runtime.name,
        runtime_version=runtime.version,
        target=place[0],
        gpu=place[1],
        precision=net.precision.name,
        batch=batch,
    )


def build_engines(
    model: str | os.PathLike[str] = "default",
    *,
    runtime: str = "tensorrt-rtx",
    target: str | Sequence[str] = "native",
    precision: str = FP16.name,
    batch: int | Sequence[int] = (1, 16),
    output: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[cache.Built]:
    """Build an engine of every net of a model for every target and batch size, all of them or none.

    Parameters
    ----------
    model : str or path
        Name of a model that trtseg ships, or a folder with one.
    runtime : str
        ``tensorrt``, which builds for the GPU it runs on; ``tensorrt-rtx``, which needs no GPU; or ``torch``, which
        compiles for the GPU it runs on, with Triton and a C compiler. PyTorch also runs without an engine, slower.
    target : str or sequence of str
        ``native``, the GPU here; compute capabilities as ``sm_86``; or ``portable``, any GPU from Ampere on
        (TensorRT-RTX only).
    precision : str
        ``fp16``, or ``fp32`` without TF32; ``auto`` is FP16.
    batch : int or sequence of int
        Slices in one run. Each size is an engine of its own with a fixed shape.
    output : path, optional
        Folder to write to, created where needed; by default this user's cache of engines. Engines of the same keys in
        it are replaced.
    progress : callable, optional
        See `Progress`.

    Returns
    -------
    list of Built
        Path and sidecar of each engine.

    Raises
    ------
    ArgumentError
        An argument is none of the values above.
    ModelError
        The model is not there, damaged, or has no such precision.
    DeviceError
        The runtime is not installed, cannot build for a target, or fails.
    OutputError
        The folder cannot be written.

    Examples
    --------
    >>> build_engines(target=["sm_86", "sm_89"], output="engines")  # doctest: +SKIP
    """
    check_name(runtime)
    row = candidates(precision, "cuda")[0]
    targets = [target] if isinstance(target, str) or not isinstance(target, Sequence) else target
    batches = list(dict.fromkeys(map(check_batch, batch if isinstance(batch, Sequence) else [batch])))
    if not batches:
        raise ArgumentError("batch: got none; expected numbers of slices")
    files = find(model)
    nets = [Net.read(files, spec, row) for spec in files.spec.nets]
    loaded = load_runtime(runtime)
    places = resolve_targets(targets, loaded, find_driver())
    jobs = [(net, engine_key(net, loaded, place, n)) for net in nets for place in places for n in batches]
    return _build_all(loaded, jobs, engine_folder() if output is None else Path(output), progress)


def engine_for(
    net: Net, runtime: Runtime, gpu: Gpu, batch: int, *, progress: Progress | None = None
) -> tuple[bytes, Sidecar]:
    """Return the engine of a net for a GPU that is here, from this user's cache, built first where needed.

    A portable engine will do where the cache has none for that very GPU.

    Parameters
    ----------
    net : Net
        The net.
    runtime : Runtime
        The runtime that will run the engine.
    gpu : Gpu
        The GPU. For TensorRT its CUDA context must be current.
    batch : int
        Slices in one run.
    progress : callable, optional
        Called with a text and a fraction while the engine is built, or while another process builds it.
    """
    key = engine_key(net, runtime, place_of(runtime, gpu), batch)
    portable = [dataclasses.replace(key, target="portable", gpu="")] if runs_portable(runtime, gpu) else []

    def tell(fraction: float) -> None:
        if progress is not None:
            progress(str(key), fraction)

    def built() -> tuple[bytes, Sidecar]:
        log.info("building the engine %s, which is kept for the next time", key)
        return build_engine(net, runtime, key, tell)

    return cache.obtain(key, built, others=portable, waiting=lambda: tell(0.0))


def build_engine(
    net: Net, runtime: Runtime, key: EngineKey, progress: Callable[[float], None]
) -> tuple[bytes, Sidecar]:
    """Build one engine, whether or not the cache has it; return the engine and its sidecar."""
    start = time.perf_counter()
    name = "-".join(["timing", key.runtime, key.runtime_version, re.sub(r"\W+", "-", key.gpu)])
    if runtime.name == "torch":
        made = torch.serialize(net, key, "cuda:0")  # the GPU of `resolve_targets`
    else:
        known = load_blob(name) if runtime.needs_gpu else None
        made = serialize(runtime, net, key, progress=progress, timing_cache=known)
    if made.timing_cache is not None:
        try:
            store_blob(name, made.timing_cache)
        except TrtsegError as error:  # only that the next build takes longer
            log.warning("%s", error)
    sidecar = Sidecar(
        key=key,
        sha256=hashlib.sha256(made.data).hexdigest(),
        size=len(made.data),
        spec=net.spec,
        model=net.model,
        tensors=made.tensors,
        settings=made.settings,
        warnings=made.warnings,
        built={
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": round(time.perf_counter() - start, 3),
            "trtseg": __version__,
            "platform": platform.platform(),
        },
    )
    return made.data, sidecar


def _build_all(
    runtime: Runtime, jobs: list[tuple[Net, EngineKey]], folder: Path, progress: Progress | None
) -> list[cache.Built]:
    """Build every engine into ``folder``; the files appear together or not at all."""
    built = []
    own = is_own(folder)
    with locked() if own else made_folder(folder, "output"):
        paths = [folder / key.file_name for _, key in jobs]
        with atomic(*(file for path in paths for file in (path, sidecar_path(path)))) as parts:
            for number, (net, key) in enumerate(jobs):

                def tell(fraction: float, number: int = number, key: EngineKey = key) -> None:
                    if progress is not None:
                        progress(str(key), (number + fraction) / len(jobs))

                tell(0.0)
                data, sidecar = build_engine(net, runtime, key, tell)
                cache.write(parts[2 * number : 2 * number + 2], data, sidecar)
                built.append(cache.Built(paths[number], sidecar))
                tell(1.0)
    return built
