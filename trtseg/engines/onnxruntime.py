"""The CPU engine on ONNX Runtime: FP32 only, where OpenVINO is not installed and a reference is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtseg.errors import DeviceError, ModelError
from trtseg.models.onnx_spec import check_spec
from trtseg.spec import ModelSpec


class OnnxRuntimeEngine:
    """A net on the CPU in FP32.

    Parameters
    ----------
    onnx : bytes
        The ONNX file with FP32 weights.
    spec : ModelSpec
        What the net expects and means.

    Raises
    ------
    ModelError
        ONNX Runtime cannot run the net, or it is not what ``spec`` says.
    DeviceError
        ONNX Runtime is not installed.
    """

    device = "cpu"
    precision = "fp32"
    batch = None
    dtype = np.dtype(np.float32)

    def __init__(self, onnx: bytes, spec: ModelSpec) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise DeviceError(
                f"ONNX Runtime does not load ({error}); install it with pip install onnxruntime"
            ) from error
        check_spec(onnx, spec)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are raised, too
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of classes that ONNX Runtime does not export
            raise ModelError(
                f"{spec.role} net: ONNX Runtime cannot run it ({error}); export the model again"
            ) from error
        self.spec, self._input = spec, self._session.get_inputs()[0].name

    def run(self, src: NDArray[Any], dst: NDArray[Any], stream: int = 0) -> None:
        """Compute logits ``dst`` ``[n, channels, H, W]`` of slices ``src`` ``[n, 1, H, W]``; ``stream`` is not used."""
        for i in range(len(src)):
            dst[i : i + 1] = self._session.run(None, {self._input: src[i : i + 1]})[0]
