"""The CPU engine on ONNX Runtime, in FP32: it gives the reference where OpenVINO is not installed."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from trtseg.engines.base import Net
from trtseg.engines.precision import FP32
from trtseg.errors import DeviceError, ModelError


class OnnxRuntimeEngine:
    """A net on the CPU in FP32, one slice a call of the runtime.

    Parameters
    ----------
    net : Net
        The net in FP32.

    Raises
    ------
    ModelError
        ONNX Runtime cannot run the net.
    DeviceError
        ONNX Runtime is not installed.
    """

    device = "cpu"
    precision = FP32.name
    batch = None
    dtype = FP32.dtype

    def __init__(self, net: Net) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise DeviceError(
                f"ONNX Runtime does not load ({error}); install it with pip install onnxruntime"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only, which ONNX Runtime raises as well
        try:
            self._session = onnxruntime.InferenceSession(
                net.onnx, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of classes that ONNX Runtime does not export
            raise ModelError(
                f"{net.spec.role} net: ONNX Runtime cannot run it ({error}); export the model again"
            ) from error
        self.spec, self._input = net.spec, self._session.get_inputs()[0].name

    def run(self, src: NDArray[Any], dst: NDArray[Any], stream: int = 0) -> None:
        """Compute logits ``dst`` ``[n, channels, H, W]`` of slices ``src`` ``[n, 1, H, W]``; ``stream`` is not used."""
        for i in range(len(src)):
            dst[i : i + 1] = self._session.run(None, {self._input: src[i : i + 1]})[0]
