"""``trtseg info``: which packages are installed, and which devices, runtimes, engines and models work here."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from typing import Annotated, Any

import typer

from trtseg import __version__
from trtseg.cli import text
from trtseg.cli.exits import errors_as_exit_codes
from trtseg.errors import TrtsegError
from trtseg.resources import available_cpus

_RUNTIMES = ("openvino", "tensorrt", "tensorrt_rtx", "torch", "pycuda")
_CPU_FLAGS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16",
)  # fmt: skip


def info(as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Say what is installed and works here.

    It names the extension, the processor, devices, runtimes, built engines and models.
    """
    with errors_as_exit_codes():
        found = collect()
        if as_json:
            text.out(json.dumps(found, indent=2) + "\n")
        else:
            _show(found)


def collect() -> dict[str, Any]:
    """Find out everything that the command prints, as JSON has it."""
    from trtseg.engines.nvidia import driver as nvidia
    from trtseg.engines.nvidia import machine

    driver = nvidia.find_driver()
    return {
        "trtseg": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": _cpu(),
        "extension": _extension(),
        "driver": dataclasses.asdict(driver),
        "runtimes": {module: machine.installed(module) for module in _RUNTIMES},
        "devices": _devices(),
        "abilities": [dataclasses.asdict(ability) for ability in machine.abilities(driver)],
        "engines": _engines(),
        "models": _models(),
        "intended_use": text.NOT_CLINICAL,
    }


def _cpu() -> dict[str, Any]:
    """Name of the processor, cores that this process may use, and features that the nets profit from."""
    from trtseg.engines.processor import read_cpuinfo

    name, flags = read_cpuinfo()
    return {
        "name": name,
        "cores": available_cpus(),
        "features": [flag for flag in _CPU_FLAGS if flag in flags],
    }


def _extension() -> dict[str, Any]:
    """How the C++ extension was built, or why it does not load."""
    try:
        from trtseg import _core
    except ImportError as error:
        return {"error": f"{error}; install trtseg again"}
    return dict(_core.build_info())


def _devices() -> list[dict[str, Any]]:
    """Which devices the nets can run on."""
    try:
        from trtseg.engines import available_devices

        return [
            {"name": name, "works": works, "detail": detail} for name, works, detail in available_devices()
        ]
    except ImportError as error:
        return [{"name": "cpu", "works": False, "detail": f"{error}; install trtseg again"}]


def _engines() -> list[dict[str, Any]]:
    """Name each engine in this user's cache, and say why it will not be used, if that is known."""
    from trtseg.engines.nvidia import cache, machine

    try:
        entries = cache.entries()
    except TrtsegError as error:
        return [{"file": None, "problem": str(error)}]
    found = []
    for entry in entries:
        problem = entry.problem
        if entry.sidecar is not None and problem is None:
            problem = machine.why_stale(entry.sidecar.key.runtime, entry.sidecar.key.runtime_version)
        found.append({"file": entry.path.name, "problem": problem})
    return found


def _models() -> list[dict[str, Any]]:
    """Name each shipped model, and say whether its files are intact."""
    from trtseg import models

    found = []
    for name in models.available():
        entry: dict[str, Any] = {"name": name, "version": None, "files": "intact"}
        try:
            files = models.find(name)
            entry["version"] = files.spec.version
            for file in files.spec.sha256:
                files.read(file)
        except TrtsegError as error:
            entry["files"] = str(error)
        found.append(entry)
    return found


def _show(found: dict[str, Any]) -> None:
    cpu, extension, driver = found["cpu"], found["extension"], found["driver"]
    features = " ".join(cpu["features"]) or "features unknown"
    rows = [
        ("trtseg", found["trtseg"]),
        ("python", f"{found['python']}, {found['platform']}"),
        ("processor", f"{cpu['name']}, {cpu['cores']} cores, {features}"),
        ("extension", extension.get("error") or _describe_build(extension)),
        ("driver", _describe_driver(driver)),
    ]
    for gpu in driver["gpus"]:
        rows.append((f"GPU {gpu['index']}", f"{gpu['name']}, {gpu['sm']}, {gpu['memory'] / 2**30:.0f} GiB"))
    rows += [(module, version or "not installed") for module, version in found["runtimes"].items()]
    for device in found["devices"]:
        works = "works" if device["works"] else "does not work"
        rows.append((f"device {device['name']}", f"{works}: {device['detail']}"))
    for model in found["models"]:
        version = model["version"] or "unknown version"
        rows.append((f"model {model['name']}", f"{version}, files {model['files']}"))
    if not found["models"]:
        rows.append(("models", "none installed"))
    rows.append(("engines", f"{len(found['engines'])} in your cache"))
    rows += [("", f"{one['file'] or ''} {one['problem'] or ''}".strip()) for one in found["engines"]]
    headings = ("runtime", "version", "on", "can", "", "because")
    abilities = text.table(headings, map(_can, found["abilities"]))
    text.show(text.listing(rows), abilities, text.NOT_CLINICAL)


def _can(able: dict[str, Any]) -> tuple[str, ...]:
    """Lay out whether a GPU runtime can build, or run, and why not."""
    answer = {True: "yes", False: "no", None: "not known"}[able["works"]]
    return able["runtime"], able["version"] or "–", able["where"], able["task"], answer, able["detail"]


def _describe_driver(driver: dict[str, Any]) -> str:
    if driver["cuda"] is None:
        return str(driver["problem"])
    known = f"{driver['version'] or 'unknown version'}, for CUDA up to {driver['cuda']}"
    return f"{known}; {driver['problem']}" if driver["problem"] else known


def _describe_build(build: dict[str, Any]) -> str:
    if build.get("cuda"):
        return f"with CUDA {build['cuda_version']} for {build['cuda_archs']}, {build['compiler']}"
    return f"without CUDA, {build['compiler']}"
