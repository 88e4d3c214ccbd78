"""What this machine has and what fits it: packages, whether a GPU can be used, by which runtime, for which engines.

Only `why_unused` imports a runtime to find out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass

from trtseg.engines.nvidia.driver import Driver, Gpu, find_driver
from trtseg.engines.nvidia.runtime import (
    INSTALL,
    MODULES,
    NAMES,
    TITLES,
    Runtime,
    check_name,
    load_runtime,
    too_old,
)
from trtseg.engines.nvidia.sidecar import EngineKey
from trtseg.errors import ArgumentError, DeviceError

#: Compute capabilities that TensorRT-RTX 1.7 names, known here without importing it.
RTX_CAPABILITIES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
#: Runtimes and GPUs on which all of `tests/gpu` has passed, see docs/gpu.md: there the device ``auto`` is the GPU.
CONFIRMED = frozenset({("torch", "sm_90")})

# Module -> the distributions that provide it, where they have another name.
_DISTRIBUTIONS = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}


@dataclass(frozen=True)
class Ability:
    """Whether a runtime can do something here.

    Attributes
    ----------
    runtime, version : str, str or None
        Name of the runtime, and the version that is installed.
    where : str
        The GPU, or ``no GPU``.
    task : str
        ``build`` or ``run``.
    works : bool or None
        None: not known.
    detail : str
        What it is good for, or why it does not work and what to do.
    """

    runtime: str
    version: str | None
    where: str
    task: str
    works: bool | None
    detail: str


# ---- What is installed ----


def installed(module: str) -> str | None:
    """Version of an installed package, found without importing it; None if it is not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    for name in _DISTRIBUTIONS.get(module, (module,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown version"


def why_stale(name: str, version: str) -> str | None:
    """Why engines of that version of a runtime cannot be used here, or None: a runtime loads only its own engines."""
    here = installed(MODULES[name])
    same = here is not None and _same_version(here, version)
    return None if same else f"stale: {TITLES[name]} here is {here or 'not installed'}"


def _same_version(a: str, b: str) -> bool:
    """Whether two versions are one: the label of a build, ``+cu130``, counts only where both have one.

    A wheel of PyTorch from PyPI has none in its metadata, and one in the module.
    """
    return a == b if "+" in a and "+" in b else a.partition("+")[0] == b.partition("+")[0]


def describe_runtime(name: str) -> str:
    """Name and installed version of a runtime, for people."""
    return f"{TITLES[name]} {installed(MODULES[name])}"


def _why_unusable(name: str) -> str | None:
    """Why a runtime cannot be used on any GPU, with what to do, or None."""
    version = installed(MODULES[name])
    if version is None or (name == "torch" and installed("onnx") is None):
        return f"not installed: {INSTALL[name]}"
    if version.endswith("+cpu"):
        return f"{TITLES[name]} {version} was built without CUDA: install a build with CUDA"
    return too_old(name, version)


# ---- Whether a GPU can be used ----


def why_no_gpu(index: int, driver: Driver) -> str | None:
    """Why trtseg cannot run on the GPU of that number, with what to do, or None: it can.

    This is the one place that knows what a GPU needs, but for the runtime of the nets: see `choose_runtime`.
    """
    try:
        from trtseg import _core
    except ImportError as error:
        return f"trtseg's extension does not load ({error}); install trtseg again"
    build = _core.build_info()
    built_with, archs = build["cuda_version"], build["cuda_archs"] or ""
    if built_with is None:
        return "trtseg was built without CUDA; install it again where nvcc is"
    if not driver.gpus:
        return f"{driver.problem}; install NVIDIA's driver, or use device='cpu'"
    if index >= len(driver.gpus):
        return f"there are {len(driver.gpus)} GPUs, counted from 0"
    if driver.cuda is not None and int(driver.cuda.split(".")[0]) < int(built_with.split(".")[0]):
        return (
            f"the driver {driver.version or ''} runs CUDA {driver.cuda} and trtseg was built with {built_with}; "
            "install a newer driver, or trtseg with an older CUDA toolkit"
        )
    gpu = driver.gpus[index]
    if not compiled_for(archs, gpu.sm):
        return (
            f"trtseg's operations were compiled for sm_{archs} and this is {gpu}; install trtseg again with "
            f"TRTSEG_CUDA_ARCHS={gpu.sm.removeprefix('sm_')}"
        )
    if installed("pycuda") is None:
        return 'PyCUDA is not installed: pip install "trtseg[cuda]"'
    return None


def check_gpu(index: int, named: str | None = None) -> tuple[Gpu, Driver]:
    """The GPU of that number and its driver; a DeviceError if trtseg cannot run there.

    ``named`` is the user's word for it.
    """
    driver = find_driver()
    problem = why_no_gpu(index, driver)
    if problem is not None:
        raise DeviceError(f"device: got {named or f'cuda:{index}'!r}, but {problem}")
    return driver.gpus[index], driver


def confirmed(index: int) -> bool:
    """Whether trtseg runs on the GPU of that number, by a runtime that such a GPU has confirmed."""
    driver = find_driver()
    if why_no_gpu(index, driver) is not None:
        return False
    try:
        name, _ = choose_runtime("auto", driver.gpus[index])
    except DeviceError:
        return False
    return (name, driver.gpus[index].sm) in CONFIRMED


def compiled_for(archs: str, sm: str) -> bool:
    """Whether CUDA code for ``archs``, as ``"75,90"``, of which the last is there as PTX too, runs on ``sm_86``.

    Machine code runs on the GPUs of its generation from its own version on, PTX on all from its version on.
    """
    built, here = [int(n) for n in archs.split(",") if n], int(sm.removeprefix("sm_"))
    return any(n <= here and (n // 10 == here // 10 or n == built[-1]) for n in built)


# ---- Which runtime ----


def choose_runtime(name: str, gpu: Gpu) -> tuple[str, str]:
    """Choose what runs the nets on a GPU, and say why.

    Parameters
    ----------
    name : str
        A runtime, or ``auto``: TensorRT if it is installed, else TensorRT-RTX where it lists the GPU, else PyTorch.
    gpu : Gpu
        Where the nets shall run.

    Returns
    -------
    (str, str)
        Name of the runtime, and the reason in a few words.

    Raises
    ------
    ArgumentError
        There is no such runtime.
    DeviceError
        ``auto`` finds no runtime that is installed and made for the GPU.
    """
    if name != "auto":
        check_name(name)
        return name, "as asked for"
    passed_over: list[str] = []
    for candidate in NAMES:
        problem = _why_unusable(candidate) or _why_not_listed(candidate, gpu)
        if problem is None:
            return candidate, "; ".join(passed_over) or "the first choice"
        passed_over.append(f"{TITLES[candidate]}: {problem}")
    raise DeviceError(f"runtime: got 'auto', but none runs on {gpu} ({'; '.join(passed_over)})")


def _why_not_listed(name: str, gpu: Gpu) -> str | None:
    if name == "tensorrt-rtx" and gpu.sm not in RTX_CAPABILITIES:
        return f"NVIDIA does not list {gpu.sm} for it"
    return None


def abilities(driver: Driver) -> list[Ability]:
    """Each runtime on each GPU: whether it can build engines here, and whether it can run them."""
    found = []
    for name in NAMES:
        version, unusable = installed(MODULES[name]), _why_unusable(name)
        for gpu in driver.gpus or (None,):
            where = f"{gpu.index}: {gpu}" if gpu else "no GPU"
            for task, answer in (
                ("build", _can_build(name, gpu, driver)),
                ("run", _can_run(name, gpu, driver)),
            ):
                found.append(
                    Ability(name, version, where, task, *((False, unusable) if unusable else answer))
                )
    return found


def _can_build(name: str, gpu: Gpu | None, driver: Driver) -> tuple[bool, str]:
    if name == "torch" and installed("triton") is None:
        return False, "it needs Triton to compile: pip install triton"
    if name == "tensorrt-rtx":
        return True, f"for {', '.join(RTX_CAPABILITIES)} and portable; needs no GPU"
    if gpu is None:
        return False, f"{TITLES[name]} builds only for the GPU it runs on, and {driver.problem}"
    return True, "for this GPU"


def _can_run(name: str, gpu: Gpu | None, driver: Driver) -> tuple[bool | None, str]:
    problem = why_no_gpu(gpu.index if gpu else 0, driver)
    if gpu is None or problem is not None:
        return False, str(problem)
    unlisted = _why_not_listed(name, gpu)
    return (True, "all that it needs is here") if unlisted is None else (None, unlisted)


# ---- Which engines: the targets ----


def resolve_targets(targets: Sequence[str], runtime: Runtime, driver: Driver) -> list[tuple[str, str]]:
    """Find out which GPUs each target stands for here.

    Parameters
    ----------
    targets : sequence of str
        ``native``, ``portable``, or compute capabilities as ``sm_86``.
    runtime : Runtime
        The runtime that shall build.
    driver : Driver
        The driver with its GPUs; ``native`` is the first of them.

    Returns
    -------
    list of (str, str)
        ``target`` and ``gpu`` of an `EngineKey`, without repetitions.

    Raises
    ------
    ArgumentError
        A target is no target, or none of this runtime.
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
