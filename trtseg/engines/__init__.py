"""Engines: nets that are ready to run. This module decides, in sight, on which device and by which runtime they run."""

from __future__ import annotations

import logging
import re

from trtseg.engines.base import CpuEngine, Net
from trtseg.engines.processor import choose_precision, read_cpuinfo
from trtseg.errors import DeviceError, ModelError
from trtseg.models import ModelFiles, find
from trtseg.spec import ModelSpec

__all__ = ["CpuEngine", "available_devices", "open_engine", "resolve_device"]

log = logging.getLogger("trtseg")


def resolve_device(device: str) -> str:
    """The device that ``device`` stands for, ``cpu`` or ``cuda:0``; decided here, once, and never again.

    ``auto`` is the first GPU where its kind has confirmed the runtime that is here (docs/gpu.md), else the CPU.

    Raises
    ------
    DeviceError
        The device was named and does not work here. There is no silent fall back to another device.
    """
    if device == "cpu":
        return "cpu"
    if device == "auto":
        from trtseg.engines.nvidia.machine import confirmed

        return "cuda:0" if confirmed(0) else "cpu"
    named = re.fullmatch(r"cuda(?::(\d{1,3}))?", device) if isinstance(device, str) else None
    if named is None:
        raise DeviceError(f"device: got {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    from trtseg.engines.nvidia.machine import check_gpu

    index = int(named[1] or 0)
    check_gpu(index, device)
    return f"cuda:{index}"


def open_engine(
    files: ModelFiles, spec: ModelSpec, *, precision: str = "auto", threads: int | None = None
) -> CpuEngine:
    """Open the CPU engine of a net. `trtseg.engines.nvidia.nets.open_nets` opens all nets of a model on a GPU.

    Parameters
    ----------
    files : ModelFiles
        The model.
    spec : ModelSpec
        The spec of one of its nets.
    precision : str
        A precision that CPUs run, or ``auto``: the fastest that the model has a file for and this processor arithmetic.
    threads : int, optional
        Threads of the net; by default one for each processor that this process may use.

    Raises
    ------
    ArgumentError
        No CPU runs that precision.
    ModelError
        The net's file is missing, damaged, or cannot be run.
    DeviceError
        The net needs OpenVINO, which is not installed, or this processor does not run the precision.
    """
    from trtseg.engines.openvino import OpenVinoEngine
    from trtseg.engines.unet import UNetEngine, has_instructions

    net = Net.read(files, spec, choose_precision(precision, files, spec.role))
    if has_instructions(net.precision):
        try:
            return UNetEngine(net, threads)
        except ModelError as error:  # a net of another kind, or an old processor
            log.info("%s", error)
    return OpenVinoEngine(net, threads)


def available_devices() -> list[tuple[str, bool, str]]:
    """Each device, whether it works here, and what it is or why it does not work."""
    from trtseg.engines.nvidia.driver import find_driver
    from trtseg.engines.nvidia.machine import choose_runtime, describe_runtime, why_no_gpu

    devices: list[tuple[str, bool, str]] = [_cpu()]
    driver = find_driver()
    problem = why_no_gpu(0, driver)
    if problem is not None:
        return [*devices, ("cuda", False, problem)]
    try:
        name, why = choose_runtime("auto", driver.gpus[0])
        devices.append(("cuda", True, f"{driver.gpus[0]}, {describe_runtime(name)}: {why}"))
    except DeviceError as error:
        devices.append(("cuda", False, str(error)))
    return devices


def _cpu() -> tuple[str, bool, str]:
    """The row of the CPU, where the shipped model may need OpenVINO."""
    from trtseg.engines.openvino import import_openvino
    from trtseg.engines.unet import has_instructions

    files = find("default")
    precision = choose_precision("auto", files, files.spec.nets[0].role)
    try:
        if not has_instructions(precision):
            import_openvino()
    except DeviceError as error:
        return "cpu", False, str(error)
    return "cpu", True, f"{read_cpuinfo()[0]}, {precision.name.upper()} by default"
