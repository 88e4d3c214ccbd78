"""The CPU engine, on OpenVINO."""

from __future__ import annotations

import functools
import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from trtseg.engines.base import Net
from trtseg.engines.precision import BF16, FP32, Precision, candidates
from trtseg.errors import DeviceError, ModelError
from trtseg.resources import available_cpus, memory_for

_MEMORY = 150 << 20  # that OpenVINO takes for a net
_TELEMETRY = "openvino_telemetry"
_lock = threading.Lock()


def import_openvino() -> Any:
    """Import OpenVINO so that it calls nobody; a DeviceError says why that fails and what to do."""
    try:
        with memory_for("OpenVINO", 0), _no_telemetry():
            import openvino
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "openvino"
        raise DeviceError(
            f"OpenVINO {'is not installed' if absent else f'does not load ({error})'}; it runs nets on the CPU, and "
            "gives the FP32 reference with which engines for a GPU are compared before their first use: "
            f"pip install {'' if absent else '--force-reinstall '}openvino"
        ) from error
    return openvino


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """Hide the package that sends an event to an analytics server when OpenVINO is imported.

    That package would also leave an id in the home folder and start a process, which runs a user's script once more.
    Without it OpenVINO takes a stub of its own. Modules that the user has imported are put back.
    """
    with _lock:
        own = {
            name: sys.modules.pop(name) for name in tuple(sys.modules) if name.partition(".")[0] == _TELEMETRY
        }
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # the import of such a module fails
        try:
            yield
        finally:
            sys.modules.pop(_TELEMETRY, None)
            sys.modules.update(own)


@functools.cache
def _core() -> Any:
    openvino = import_openvino()
    with memory_for("OpenVINO", _MEMORY):
        return openvino.Core()


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
    """A net on the CPU, one slice a call of the runtime, with all threads on that slice.

    The shape is static, and the runtime reads and writes the caller's own arrays. BF16 means BF16 convolutions with
    FP32 accumulation; input and output stay FP32.

    Parameters
    ----------
    net : Net
        The net in a precision that CPUs run.
    threads : int, optional
        Threads of the net; by default one for each processor that this process may use.

    Raises
    ------
    ModelError
        OpenVINO cannot run the net, or the net gives logits of another shape than its spec says.
    DeviceError
        OpenVINO is not installed, this processor does not run the precision, or the memory does not suffice.
    """

    device = "cpu"
    batch = None

    def __init__(self, net: Net, threads: int | None = None) -> None:
        openvino = import_openvino()
        spec = self.spec = net.spec
        self.precision, self.dtype = net.precision.name, net.precision.dtype
        self._tensor = functools.partial(openvino.Tensor, shared_memory=True)
        wanted = getattr(openvino.Type, net.precision.openvino)
        threads = threads or available_cpus()
        options = {
            "INFERENCE_PRECISION_HINT": wanted,
            "NUM_STREAMS": 1,  # a slice gets all threads: the lowest latency, at little loss in total
            "INFERENCE_NUM_THREADS": threads,
            # Processes that share a machine would all be pinned to its first cores.
            "ENABLE_CPU_PINNING": threads >= (os.cpu_count() or 1),
        }
        core = _core()
        try:
            with memory_for(f"{spec.role} net", _MEMORY):
                model = core.read_model(io.BytesIO(net.onnx))
                model.reshape([1, 1, *spec.size])
                compiled = core.compile_model(model, "CPU", options)
                self._request = compiled.create_infer_request()
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

    def run(self, src: NDArray[Any], dst: NDArray[Any], stream: int = 0) -> None:
        """Compute logits ``dst`` ``[n, channels, H, W]`` of slices ``src`` ``[n, 1, H, W]``; ``stream`` is not used."""
        for i in range(len(src)):
            self._request.set_input_tensor(self._tensor(src[i : i + 1]))
            self._request.set_output_tensor(self._tensor(dst[i : i + 1]))
            self._request.infer()
