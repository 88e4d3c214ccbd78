"""Engines: nets that are ready to run. Which one is opened is decided here, in sight."""

from __future__ import annotations

from trtseg.engines.base import Engine
from trtseg.errors import ArgumentError, DeviceError
from trtseg.spec import ModelSpec

__all__ = ["Engine", "available_devices", "open_engine", "resolve_device"]

_NO_CUDA = "this version of trtseg has no engines for NVIDIA GPUs yet"


def resolve_device(device: str) -> str:
    """The device that ``device`` stands for; ``auto`` is decided here, once, and never again.

    Raises
    ------
    DeviceError
        The device was named and does not work here. There is no silent fall back to another one.
    """
    if device in ("auto", "cpu"):
        return "cpu"
    if device == "cuda" or device.startswith("cuda:"):
        raise DeviceError(f"device: got {device!r}, but {_NO_CUDA}; use 'cpu' or 'auto'")
    raise DeviceError(f"device: got {device!r}; expected 'auto', 'cpu' or 'cuda'")


def open_engine(onnx: bytes, spec: ModelSpec, *, device: str, precision: str) -> Engine:
    """Open the engine for a net.

    Parameters
    ----------
    onnx : bytes
        The net, with FP32 weights; the caller has checked where it comes from.
    spec : ModelSpec
        What the net expects and means.
    device : str
        As `resolve_device` gives it.
    precision : str
        ``auto``, ``fp32`` or ``bf16``.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ArgumentError(f"precision: got {precision!r}; expected 'auto', 'fp32' or 'bf16'")
    if device == "cpu":
        from trtseg.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(onnx, spec, precision)
    raise DeviceError(f"device: got {device!r}, but {_NO_CUDA}")


def available_devices() -> list[tuple[str, bool, str]]:
    """Each device, whether it works here, and what it is or why it does not work."""
    from trtseg.engines.openvino import describe_cpu

    return [("cpu", True, describe_cpu()), ("cuda", False, _NO_CUDA)]
