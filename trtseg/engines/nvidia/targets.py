"""For which GPU an engine is: what the user's word for it stands for, and whether it can be built and used here."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trtseg.engines.nvidia.probe import Driver, Gpu, why_stale
from trtseg.engines.nvidia.runtime import TITLES, Runtime, load_runtime
from trtseg.engines.nvidia.sidecar import EngineKey
from trtseg.errors import ArgumentError, DeviceError


def resolve_targets(targets: Sequence[str], runtime: Runtime, driver: Driver) -> list[tuple[str, str]]:
    """Find out what each target stands for here.

    Parameters
    ----------
    targets : sequence of str
        ``native``, ``portable``, or compute capabilities as ``sm_86``.
    runtime : Runtime
        What shall build.
    driver : Driver
        With the GPUs that are here; ``native`` is the first.

    Returns
    -------
    list of (str, str)
        ``target`` and ``gpu`` of an `EngineKey`, without repetitions.

    Raises
    ------
    ArgumentError
        A target is none, or none of this runtime.
    DeviceError
        The runtime cannot build for it, or not here.
    """
    if not targets:
        raise ArgumentError(
            "target: got none; expected 'native', 'portable', or compute capabilities as 'sm_86'"
        )
    return list(dict.fromkeys(_resolve(target, runtime, driver) for target in targets))


def _resolve(target: str, runtime: Runtime, driver: Driver) -> tuple[str, str]:
    got = f"target: got {target!r}"
    if not isinstance(target, str) or not re.fullmatch(r"native|portable|sm_\d{2,3}", target):
        raise ArgumentError(f"{got}; expected 'native', 'portable', or compute capabilities as 'sm_86'")
    known = ", ".join([*runtime.capabilities, "portable"])
    if not runtime.needs_gpu and target != "native":
        if target != "portable" and target not in runtime.capabilities:
            raise DeviceError(
                f"{got}, but {runtime.title} builds without a GPU for {known} only; build on a machine with that GPU, "
                "with runtime 'tensorrt'"
            )
        return target, ""
    if target == "portable":
        raise ArgumentError(
            f"{got}, but {runtime.title} builds only for the GPU it runs on; use 'native', or runtime 'tensorrt-rtx'"
        )
    if not driver.gpus:
        if runtime.needs_gpu:
            raise DeviceError(
                f"{got}, but {TITLES[runtime.name]} builds only on a machine with the GPU, and {driver.problem}; "
                "build there, or use runtime 'tensorrt-rtx', which needs no GPU"
            )
        raise DeviceError(f"{got}, but {driver.problem}; name what to build for: {known}")
    gpu = driver.gpus[0]
    if target not in ("native", gpu.sm):
        raise DeviceError(
            f"{got}, but {runtime.title} builds only for the GPU it runs on, here {gpu}; build on a machine with such "
            "a GPU, or use runtime 'tensorrt-rtx'"
        )
    return place_of(runtime, gpu)


def runs_portable(runtime: Runtime, gpu: Gpu) -> bool:
    """Whether an engine for the target ``portable`` is made for a GPU: from Ampere on, where the runtime knows it."""
    return gpu.sm in runtime.capabilities and int(gpu.sm.removeprefix("sm_")) >= 80


def place_of(runtime: Runtime, gpu: Gpu) -> tuple[str, str]:
    """A GPU as an `EngineKey` has it: its model counts where the runtime has no engine for all of that capability."""
    return gpu.sm, "" if gpu.sm in runtime.capabilities else gpu.name


def why_unused(key: EngineKey, driver: Driver) -> str | None:
    """Say why no GPU that is here will use an engine, or None: one of them will, if it asks for such an engine."""
    problem = why_stale(key.runtime, key.runtime_version) or driver.problem
    if problem is not None:
        return problem
    try:
        runtime = load_runtime(key.runtime)
    except DeviceError as error:
        return str(error)
    places = [place_of(runtime, gpu) for gpu in driver.gpus]
    places += [("portable", "") for gpu in driver.gpus if runs_portable(runtime, gpu)]
    if (key.target, key.gpu) in places:
        return None
    here = ", ".join(map(str, driver.gpus))
    return f"here is {here}, for which {runtime.title} takes {' or '.join(sorted({t for t, _ in places}))}"
