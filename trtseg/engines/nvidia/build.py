"""Build engines for NVIDIA GPUs ahead of time: which nets, by what, for which GPUs, in what precision and batch sizes.

An engine is for one target, although TensorRT-RTX can put several compute capabilities into one file at little cost
(the shipped liver net, FP16, batch 1: 4.9 MB for one or three of them). So the engine for a GPU is found by its key
alone and not by a search among sets of capabilities. One file for many GPUs is what the target ``portable`` is for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trtseg import __version__
from trtseg.engines.nvidia import cache
from trtseg.engines.nvidia.probe import Gpu, find_driver
from trtseg.engines.nvidia.runtime import Runtime, check_batch, check_name, load_runtime
from trtseg.engines.nvidia.serialize import serialize
from trtseg.engines.nvidia.sidecar import EngineKey, Sidecar, sidecar_path
from trtseg.engines.nvidia.targets import place_of, resolve_targets, runs_portable
from trtseg.engines.nvidia.trust import engine_folder, is_own, locked
from trtseg.errors import ArgumentError, ModelError, TrtsegError
from trtseg.io.atomic import atomic
from trtseg.io.folders import made_folder
from trtseg.models import ModelFiles, find
from trtseg.models.onnx_spec import check_spec
from trtseg.spec import ModelSpec

log = logging.getLogger("trtseg")

#: Called with what is being built and the fraction of all that is done.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Net:
    """One net of a model in one precision: the model, the spec, and the ONNX file, its hash and its spec checked."""

    files: ModelFiles
    spec: ModelSpec
    precision: str
    onnx: bytes

    @property
    def sha256(self) -> str:
        """Of the ONNX file, in hexadecimal."""
        return hashlib.sha256(self.onnx).hexdigest()

    @classmethod
    def read(cls, files: ModelFiles, spec: ModelSpec, precision: str) -> Net:
        """Read a net; a ModelError if there is none in that precision, or it is not what the manifest says."""
        if precision == "fp16" and f"{spec.role}.fp16.onnx" not in files.spec.sha256:
            raise ModelError(
                f"precision: got 'fp16', but the model {files.spec.name!r} has no FP16 file of its {spec.role} net; "
                "use 'fp32', or export the model again"
            )
        onnx = files.read(spec.role, fp16=precision == "fp16")
        check_spec(onnx, spec)
        return cls(files, spec, precision, onnx)

    def key(self, runtime: Runtime, target: str, gpu: str, batch: int) -> EngineKey:
        """Key of the engine of this net; see `EngineKey`."""
        return EngineKey(
            role=self.spec.role,
            onnx_sha256=self.sha256,
            runtime=runtime.name,
            runtime_version=runtime.version,
            target=target,
            gpu=gpu,
            precision=self.precision,
            batch=batch,
        )


def build_engines(
    model: str | os.PathLike[str] = "default",
    *,
    runtime: str = "tensorrt-rtx",
    target: str | Sequence[str] = "native",
    precision: str = "fp16",
    batch: int | Sequence[int] = (1, 16),
    output: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[cache.Entry]:
    """Build an engine of every net of a model for every target and batch size, all of them or none.

    Parameters
    ----------
    model : str or path
        Name of a model that trtseg ships, or a folder with one.
    runtime : str
        ``tensorrt``, which builds for the GPU it runs on, or ``tensorrt-rtx``, which needs no GPU.
    target : str or sequence of str
        ``native``, the GPU here; compute capabilities as ``sm_86``; or ``portable``, any GPU from Ampere on
        (TensorRT-RTX only).
    precision : str
        ``fp16`` or ``fp32``; FP32 is without TF32.
    batch : int or sequence of int
        Slices in one run. Each size is an engine of its own with a fixed shape.
    output : path, optional
        Folder to write to, created where needed; by default this user's cache of engines. What is there of the same
        keys is replaced.
    progress : callable, optional
        Called with what is being built and the fraction of all that is done.

    Returns
    -------
    list of Entry
        Path and sidecar of each engine.

    Raises
    ------
    ArgumentError
        An argument is none of those.
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
    if precision not in ("fp16", "fp32"):
        raise ArgumentError(f"precision: got {precision!r}; expected 'fp16' or 'fp32'")
    named = [target] if isinstance(target, str) or not isinstance(target, Sequence) else target
    batches = list(dict.fromkeys(map(check_batch, batch if isinstance(batch, Sequence) else [batch])))
    if not batches:
        raise ArgumentError("batch: got none; expected numbers of slices")
    files = find(model if isinstance(model, str) else Path(model))
    nets = [Net.read(files, spec, precision) for spec in files.spec.nets]
    loaded = load_runtime(runtime)
    places = resolve_targets(named, loaded, find_driver())
    jobs = [(net, net.key(loaded, *place, n)) for net in nets for place in places for n in batches]
    return _build_all(loaded, jobs, engine_folder() if output is None else Path(output), progress)


def places_to_try(runtime: Runtime, gpu: Gpu) -> list[tuple[str, str]]:
    """Targets whose engines may run on a GPU that is here, the likeliest first; one for a GPU that is listed.

    TensorRT-RTX engines hold no code for a GPU, all of that is compiled where they run. So a GPU that it does not list
    may take those for others.
    """
    here = place_of(runtime, gpu)
    if not here[1] or runtime.needs_gpu:
        return [here]
    return [("portable", ""), ("sm_80", ""), ("sm_89", ""), here]


def engine_for(
    net: Net,
    runtime: Runtime,
    gpu: Gpu,
    batch: int,
    *,
    place: tuple[str, str],
    progress: Progress | None = None,
) -> tuple[bytes, Sidecar]:
    """The engine of a net for a GPU that is here, from this user's cache, built first where needed.

    A portable one will do where there is none for that very GPU.

    Parameters
    ----------
    net : Net
        Which net.
    runtime : Runtime
        What will run it.
    gpu : Gpu
        Where; TensorRT needs its CUDA context to be current.
    batch : int
        Slices in one run.
    progress : callable, optional
        Called while it is built, or waited for, with a text and a fraction.
    """
    key = net.key(runtime, *place, batch)
    portable = [net.key(runtime, "portable", "", batch)] if runs_portable(runtime, gpu) else []

    def tell(fraction: float) -> None:
        if progress is not None:
            progress(str(key), fraction)

    def built() -> tuple[bytes, Sidecar]:
        log.info("building the engine %s, which is kept for the next time", key)
        return build_engine(net, runtime, key, tell)

    return cache.obtain(key, built, others=portable, waiting=lambda: tell(0.0))


def build_engine(
    net: Net, runtime: Runtime, key: EngineKey, progress: Callable[[float], None] | None = None
) -> tuple[bytes, Sidecar]:
    """Build one engine, whatever is in the cache; the engine and its sidecar."""
    start = time.perf_counter()
    name = "-".join(["timing", key.runtime, key.runtime_version, re.sub(r"\W+", "-", key.gpu)])
    known = cache.load_blob(name) if runtime.needs_gpu else None
    made = serialize(runtime, net.onnx, net.spec, key, progress=progress, timing_cache=known)
    if made.timing_cache is not None:
        try:
            cache.store_blob(name, made.timing_cache)
        except TrtsegError as error:  # the next build takes longer, that is all
            log.warning("%s", error)
    sidecar = Sidecar(
        key=key,
        sha256=hashlib.sha256(made.data).hexdigest(),
        size=len(made.data),
        spec=net.spec,
        model={"name": net.files.spec.name, "version": net.files.spec.version},
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
) -> list[cache.Entry]:
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
                built.append(cache.Entry(paths[number], sidecar, None))
                tell(1.0)
    return built
