"""What is installed and what works on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Any

from trtseg import __version__
from trtseg.cli import text

# Module -> the distributions that provide it.
_RUNTIMES = {
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    "pycuda": ("pycuda",),
}
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def collect() -> dict[str, Any]:
    """Gather everything that `show` prints, as JSON has it."""
    return {
        "trtseg": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": _cpu(),
        "extension": _extension(),
        "runtimes": {module: _version(module, names) for module, names in _RUNTIMES.items()},
        "devices": _devices(),
        "models": _models(),
        "intended_use": text.NOT_CLINICAL,
    }


def _cpu() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name, flags = platform.processor() or platform.machine(), set()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    name = value.strip()
                elif key.strip() in ("flags", "Features"):
                    flags = set(value.split())
                    break
    except OSError:
        pass  # no Linux: the name must do
    return {"name": name, "cores": cores, "features": [flag for flag in _CPU_FLAGS if flag in flags]}


def _extension() -> dict[str, Any]:
    try:
        from trtseg import _core
    except ImportError as error:
        return {"error": f"{error}; install trtseg again"}
    return dict(_core.build_info())


def _version(module: str, distributions: tuple[str, ...]) -> str | None:
    """Version of an installed package, found without importing it; None if it is not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown version"


def _devices() -> list[dict[str, Any]]:
    try:
        from trtseg.engines import available_devices

        return [
            {"name": name, "works": works, "detail": detail} for name, works, detail in available_devices()
        ]
    except ImportError as error:
        return [{"name": "cpu", "works": False, "detail": f"{error}; install trtseg again"}]


def _models() -> list[dict[str, Any]]:
    from trtseg import models
    from trtseg.errors import TrtsegError

    found = []
    for name in models.available():
        entry: dict[str, Any] = {"name": name, "version": None, "files": "intact"}
        try:
            files = models.find(name)
            entry["version"] = files.spec.version
            for net in files.spec.nets:
                files.read(net.role)
                if f"{net.role}.fp16.onnx" in files.spec.sha256:
                    files.read(net.role, fp16=True)
        except TrtsegError as error:
            entry["files"] = str(error)
        found.append(entry)
    return found


def show(found: dict[str, Any]) -> None:
    """Print what `collect` found."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(heading: str, content: str) -> None:
        table.add_row(heading, Text(content))

    cpu, extension = found["cpu"], found["extension"]
    row("trtseg", found["trtseg"])
    row("python", f"{found['python']}, {found['platform']}")
    row(
        "processor", f"{cpu['name']}, {cpu['cores']} cores, {' '.join(cpu['features']) or 'features unknown'}"
    )
    row("extension", extension.get("error") or _describe_build(extension))
    for module, version in found["runtimes"].items():
        row(module, version or "not installed")
    for device in found["devices"]:
        row(
            f"device {device['name']}",
            f"{'works' if device['works'] else 'does not work'}: {device['detail']}",
        )
    for model in found["models"]:
        row(f"model {model['name']}", f"{model['version'] or 'unknown version'}, files {model['files']}")
    if not found["models"]:
        row("models", "none installed")
    text.show(table, "", text.NOT_CLINICAL)


def _describe_build(build: dict[str, Any]) -> str:
    if build.get("cuda"):
        return f"with CUDA {build['cuda_version']} for {build['cuda_archs']}, {build['compiler']}"
    return f"without CUDA, {build['compiler']}"
