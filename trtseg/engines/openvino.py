"""The CPU engine, on OpenVINO."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtseg.errors import DeviceError, ModelError
from trtseg.models.onnx_spec import check_spec
from trtseg.spec import ModelSpec


def _openvino() -> Any:
    """Import OpenVINO; a DeviceError says what is wrong with it."""
    try:
        import openvino
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "openvino"
        raise DeviceError(
            f"OpenVINO {'is not installed' if absent else f'does not load ({error})'}; it runs nets on the CPU, and "
            "gives the FP32 reference with which engines for a GPU are compared before their first use: "
            f"pip install {'' if absent else '--force-reinstall '}openvino"
        ) from error
    return openvino


@functools.cache
def _core() -> Any:
    return _openvino().Core()


def native_bf16() -> bool:
    """Whether this processor multiplies BF16 in hardware, so that BF16 is faster than FP32."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def describe_cpu() -> str:
    """The processor and the precision that ``auto`` takes on it."""
    name = _core().get_property("CPU", "FULL_DEVICE_NAME")
    return f"{name}, {'BF16' if native_bf16() else 'FP32'} by default"


class OpenVinoEngine:
    """A net on the CPU, one slice a call of the runtime, with all cores on that slice.

    The shape is static, and the runtime reads and writes the caller's own arrays. BF16 means BF16 convolutions with
    FP32 accumulation; input and output stay FP32.

    Parameters
    ----------
    onnx : bytes
        The ONNX file with FP32 weights.
    spec : ModelSpec
        What the net expects and means.
    precision : str
        ``fp32``, ``bf16``, or ``auto``: BF16 where the processor has it.

    Raises
    ------
    ModelError
        OpenVINO cannot run the net, or it is not what ``spec`` says.
    DeviceError
        OpenVINO is not installed, or this processor does not run the precision.
    """

    device = "cpu"
    batch = None
    dtype = np.dtype(np.float32)

    def __init__(self, onnx: bytes, spec: ModelSpec, precision: str = "auto") -> None:
        openvino = _openvino()
        if precision == "auto":
            precision = "bf16" if native_bf16() else "fp32"
        self.spec = spec
        self.precision = precision
        self._tensor = functools.partial(openvino.Tensor, shared_memory=True)
        shape = [1, 1, *spec.size]
        wanted = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}[precision]
        try:
            model = _core().read_model(io.BytesIO(onnx))
            check_spec(onnx, spec)
            model.reshape(shape)
            options = {
                "INFERENCE_PRECISION_HINT": wanted,
                "NUM_STREAMS": 1,  # a slice gets all cores: the lowest latency, at little loss in total
            }
            compiled = _core().compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise ModelError(
                f"{spec.role} net: OpenVINO cannot run it ({error}); export the model again"
            ) from error
        if compiled.get_property("INFERENCE_PRECISION_HINT") != wanted:  # it is a hint, and may not be taken
            raise DeviceError(
                f"precision: got {precision!r}, which this processor does not run; use 'fp32' or 'auto'"
            )
        if list(compiled.output(0).shape) != [1, spec.channels, *spec.size]:
            raise ModelError(
                f"{spec.role} net: gives logits of shape {list(compiled.output(0).shape)}, but its spec says "
                f"{[1, spec.channels, *spec.size]}; export the model again"
            )
        self._request = compiled.create_infer_request()

    def run(self, src: NDArray[Any], dst: NDArray[Any], stream: int = 0) -> None:
        """Compute logits ``dst`` ``[n, channels, H, W]`` of slices ``src`` ``[n, 1, H, W]``; ``stream`` is not used."""
        for i in range(len(src)):
            self._request.set_input_tensor(self._tensor(src[i : i + 1]))
            self._request.set_output_tensor(self._tensor(dst[i : i + 1]))
            self._request.infer()
