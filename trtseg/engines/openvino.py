"""The CPU engine on OpenVINO: BF16, and nets and processors for which `trtseg.engines.unet` is not made."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtseg.engines.base import Net
from trtseg.engines.blobs import load_blob, store_blob
from trtseg.engines.precision import FP32
from trtseg.engines.processor import read_cpuinfo
from trtseg.errors import DeviceError, ModelError, TrtsegError
from trtseg.resources import available_cpus, begin_products, is_lack_of_memory, memory_for

log = logging.getLogger("trtseg")

_MEMORY = 150 << 20  # that OpenVINO takes for a net
_TELEMETRY = "openvino_telemetry"
_lock = threading.Lock()


def import_openvino() -> Any:
    """Import OpenVINO so that it calls nobody; a DeviceError says why that fails and what to do."""
    with _whole(), memory_for("OpenVINO", 0), no_telemetry():
        import openvino

        openvino.Core  # noqa: B018 - a folder that happens to bear that name has none
    return openvino


@contextmanager
def _whole() -> Iterator[None]:
    """Make a DeviceError of whatever goes wrong when OpenVINO loads: there are many ways to break an installation."""
    try:
        yield
    except (TrtsegError, MemoryError):
        raise
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "openvino"
        raise DeviceError(
            f"OpenVINO {'is not installed' if absent else f'does not load ({error})'}; it runs nets on the CPU, and "
            "gives the FP32 reference with which engines for a GPU are compared before their first use: "
            f"pip install {'' if absent else '--force-reinstall '}openvino"
        ) from error


@contextmanager
def no_telemetry() -> Iterator[None]:
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
def _openvino_core() -> Any:
    openvino = import_openvino()
    begin_products()
    with _whole(), memory_for("OpenVINO", _MEMORY):
        core = openvino.Core()
        core.get_property("CPU", "FULL_DEVICE_NAME")  # loads what runs nets on the CPU
    return core


class OpenVinoEngine:
    """A net on the CPU, one slice a call of the runtime, with all threads on that slice.

    The shape is static, and the runtime reads and writes the caller's own arrays. Compiled nets are kept in this user's
    cache.

    BF16 means BF16 convolutions with FP32 accumulation. INT8 means what the ONNX file quantises, computed with in FP32:
    it takes as long as FP32. In OpenVINO's own INT8 the logits of the shipped nets differ by up to 10 from what their
    files say, on a processor with VNNI (docs/decisions.md). Input and output stay FP32.

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
    side_by_side = 1

    def __init__(self, net: Net, threads: int | None = None) -> None:
        openvino = import_openvino()
        spec = self.spec = net.spec
        self.runtime = f"OpenVINO {openvino.get_version().partition('-')[0]}"
        self.precision, self.dtype = net.precision.name, net.precision.dtype
        self._tensor = functools.partial(openvino.Tensor, shared_memory=True)
        compiled = _compiled(net, threads or available_cpus())
        self._request = compiled.create_infer_request()
        if compiled.get_property("INFERENCE_PRECISION_HINT") != _type(net):  # OpenVINO may ignore the hint
            raise DeviceError(
                f"precision: got {net.precision.name!r}, which this processor does not run; use {FP32.name!r} or 'auto'"
            )
        ends = [*compiled.inputs, *compiled.outputs]
        if len(compiled.outputs) != 1:
            raise ModelError(
                f"{spec.role} net: has {len(compiled.outputs)} outputs; expected one, logits: export the model again"
            )
        if types := {end.element_type.get_type_name() for end in ends} - {"f32"}:
            raise ModelError(
                f"{spec.role} net: takes or gives numbers of type {', '.join(sorted(types))}; expected f32 (FP32) for "
                "slices and logits, whatever the net computes in: export the model again"
            )
        if list(compiled.output(0).shape) != [1, spec.channels, *spec.size]:
            raise ModelError(
                f"{spec.role} net: gives logits of shape {list(compiled.output(0).shape)}, but its spec says "
                f"{[1, spec.channels, *spec.size]}; export the model again"
            )

    def run(
        self,
        src: NDArray[Any],
        dst: NDArray[Any],
        stream: int = 0,
        *,
        wanted: NDArray[np.bool_] | None = None,
    ) -> None:
        """Compute logits ``dst`` ``[n, channels, H, W]`` of slices ``src`` ``[n, 1, H, W]``, whether wanted or not."""
        for i in range(len(src)):
            self._request.set_input_tensor(self._tensor(src[i : i + 1]))
            self._request.set_output_tensor(self._tensor(dst[i : i + 1]))
            try:
                self._request.infer()
            except RuntimeError as error:
                if is_lack_of_memory(error):
                    raise
                raise DeviceError(
                    f"{self.spec.role} net: OpenVINO failed on this processor, perhaps for want of memory ({error}); "
                    "free some, or install another version of openvino"
                ) from error


def _type(net: Net) -> Any:
    return getattr(import_openvino().Type, net.precision.openvino)


def _compiled(net: Net, threads: int) -> Any:
    """Compile a net, or take it from this user's cache."""
    options = {
        "INFERENCE_PRECISION_HINT": _type(net),
        # A slice gets all threads: the lowest latency, at little loss in total. With two streams the INT8 nets gave
        # other logits in some runs of OpenVINO 2026.4 (docs/decisions.md).
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Processes that share a machine would all be pinned to its first cores.
        "ENABLE_CPU_PINNING": threads >= (os.cpu_count() or 1),
        # What a file quantises is computed with in FP32: OpenVINO's own INT8 gives other logits.
        "LP_TRANSFORMS_MODE": "NO",
    }
    core, name = _openvino_core(), _name(net, options)
    with memory_for(f"{net.spec.role} net", _MEMORY):
        kept = _kept(name)
        if kept is not None:
            try:
                return core.import_model(kept, "CPU", options)
            except RuntimeError as error:
                if is_lack_of_memory(error):
                    raise
                log.warning(
                    "%s: OpenVINO does not take the net of the cache (%s); it is compiled again", name, error
                )
        try:
            model = core.read_model(io.BytesIO(net.onnx))
            model.reshape([1, 1, *net.spec.size])
            compiled = core.compile_model(model, "CPU", options)
            _keep(name, compiled)
            return compiled
        except RuntimeError as error:
            if is_lack_of_memory(error):
                raise
            said = " ".join(str(error).split())
            raise ModelError(
                f"{net.spec.role} net: OpenVINO cannot run it ({said}); export the model again"
            ) from error


def _name(net: Net, options: dict[str, Any]) -> str:
    """Name of a compiled net in the cache: all that it depends on, hashed; nothing of it is of a patient."""
    core = _openvino_core()
    processor = [core.get_property("CPU", key) for key in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    about = [
        import_openvino().get_version(),
        processor,
        sorted(read_cpuinfo()[1]),
        net.sha256,
        sorted(options.items()),
    ]
    digest = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:16]
    return f"{net.spec.role}-openvino-{net.precision.name}-{digest}"


def _kept(name: str) -> bytes | None:
    with contextlib.suppress(TrtsegError):  # no home, or no folder of this user's own
        return load_blob(name)
    return None


def _keep(name: str, compiled: Any) -> None:
    """Keep a compiled net; a cache that cannot be written costs time, and nothing else."""
    stream = io.BytesIO()  # without one, releases differ in what export_model returns: bytes, or a stream
    try:
        compiled.export_model(stream)
        store_blob(name, stream.getvalue())
    except (TrtsegError, RuntimeError) as error:
        log.info("%s: not kept for the next time (%s)", name, error)
