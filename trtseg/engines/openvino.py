"""The CPU engine, on OpenVINO."""

from __future__ import annotations

import functools
import io
from typing import Any

from numpy.typing import NDArray

from trtseg.engines.base import Net
from trtseg.engines.precision import BF16, FP32, Precision, candidates
from trtseg.errors import DeviceError, ModelError


def _openvino() -> Any:
    """Import OpenVINO; a DeviceError says why that fails and what to do."""
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


def choose_precision(name: str) -> Precision:
    """The precision that an option stands for here; ``auto`` is the first one that the processor has arithmetic for."""
    rows = candidates(name, "cpu")
    if len(rows) == 1:
        return rows[0]
    return next(row for row in rows if row.openvino != BF16.openvino or native_bf16())


def describe_cpu() -> str:
    """The processor and the precision that ``auto`` takes on it."""
    name = _core().get_property("CPU", "FULL_DEVICE_NAME")
    return f"{name}, {choose_precision('auto').name.upper()} by default"


class OpenVinoEngine:
    """A net on the CPU, one slice a call of the runtime, with all cores on that slice.

    The shape is static, and the runtime reads and writes the caller's own arrays. BF16 means BF16 convolutions with
    FP32 accumulation; input and output stay FP32.

    Parameters
    ----------
    net : Net
        The net in a precision that CPUs run.

    Raises
    ------
    ModelError
        OpenVINO cannot run the net, or the net gives logits of another shape than its spec says.
    DeviceError
        OpenVINO is not installed, or this processor does not run the precision.
    """

    device = "cpu"
    batch = None

    def __init__(self, net: Net) -> None:
        openvino = _openvino()
        spec = self.spec = net.spec
        self.precision, self.dtype = net.precision.name, net.precision.dtype
        self._tensor = functools.partial(openvino.Tensor, shared_memory=True)
        wanted = getattr(openvino.Type, net.precision.openvino)
        options = {
            "INFERENCE_PRECISION_HINT": wanted,
            "NUM_STREAMS": 1,  # a slice gets all cores: the lowest latency, at little loss in total
        }
        try:
            model = _core().read_model(io.BytesIO(net.onnx))
            model.reshape([1, 1, *spec.size])
            compiled = _core().compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise ModelError(
                f"{spec.role} net: OpenVINO cannot run it ({error}); export the model again"
            ) from error
        if compiled.get_property("INFERENCE_PRECISION_HINT") != wanted:  # OpenVINO may ignore the hint
            raise DeviceError(
                f"precision: got {net.precision.name!r}, which this processor does not run; use {FP32.name!r} or 'auto'"
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
