"""Engines: nets that are ready to run. On which device they run is decided here, in sight."""

from __future__ import annotations

import re

from trtseg.engines.base import Engine
from trtseg.errors import ArgumentError, DeviceError
from trtseg.spec import ModelSpec

__all__ = ["Engine", "available_devices", "open_engine", "resolve_device"]


def resolve_device(device: str) -> str:
    """The device that ``device`` stands for, ``cpu`` or ``cuda:0``; decided here, once, and never again.

    ``auto`` is the CPU for as long as docs/gpu.md says that no GPU has confirmed the other.

    Raises
    ------
    DeviceError
        The device was named and does not work here. There is no silent fall back to another one.
    """
    if device in ("auto", "cpu"):
        return "cpu"
    named = re.fullmatch(r"cuda(?::(\d{1,3}))?", device) if isinstance(device, str) else None
    if named is None:
        raise DeviceError(f"device: got {device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    from trtseg.engines.nvidia.nets import check_gpu

    index = int(named[1] or 0)
    check_gpu(index, device)
    return f"cuda:{index}"


def open_engine(onnx: bytes, spec: ModelSpec, *, precision: str) -> Engine:
    """Open the CPU engine for a net; those for GPUs are opened together, by `trtseg.engines.nvidia.open_nets`.

    Parameters
    ----------
    onnx : bytes
        The net, with FP32 weights; the caller has checked where it comes from.
    spec : ModelSpec
        What the net expects and means.
    precision : str
        ``auto``, ``fp32`` or ``bf16``.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ArgumentError(f"precision: got {precision!r}; on the CPU it is 'auto', 'fp32' or 'bf16'")
    from trtseg.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(onnx, spec, precision)


def available_devices() -> list[tuple[str, bool, str]]:
    """Each device, whether it works here, and what it is or why it does not work."""
    from trtseg.engines.nvidia.nets import check_gpu, choose_runtime
    from trtseg.engines.openvino import describe_cpu

    devices: list[tuple[str, bool, str]] = []
    try:
        devices.append(("cpu", True, describe_cpu()))
    except DeviceError as error:
        devices.append(("cpu", False, str(error)))
    try:
        gpu, _ = check_gpu(0)
        runtime = choose_runtime("auto", gpu)
        devices.append(("cuda", True, f"{gpu}, {runtime.title}"))
    except DeviceError as error:
        devices.append(("cuda", False, str(error).partition("but ")[2] or str(error)))
    return devices
