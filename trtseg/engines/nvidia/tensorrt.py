"""The GPU engine on TensorRT or TensorRT-RTX, whose module is passed in."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Any

import numpy as np

from trtseg.cuda.arrays import CudaArray
from trtseg.cuda.device import Device, Resources, errors
from trtseg.engines.base import check_arrays
from trtseg.engines.blobs import load_blob, store_blob
from trtseg.engines.nvidia import cache
from trtseg.engines.nvidia.runtime import Runtime, failure, logger, one_at_a_time
from trtseg.engines.nvidia.sidecar import EngineKey, Sidecar
from trtseg.engines.precision import named
from trtseg.errors import DeviceError, TrtsegError


class LoadedEngine:
    """An engine on a GPU: its weights, which the contexts made from it share.

    An error knows the variables of the functions that it left. So no function that raises holds what TensorRT made in a
    variable: it would live on, and go after the engine or the runtime that it needs.

    Parameters
    ----------
    runtime : Runtime
        The runtime, of the version that built the engine.
    data : bytes
        The engine, from `trtseg.engines.nvidia.cache`: it can run any code.
    sidecar : Sidecar
        Its sidecar.
    device : Device
        The GPU. Its context must be current, here and when a context is made or closed.

    Raises
    ------
    DeviceError
        The runtime does not take the engine, on this GPU or at all.
    """

    def __init__(self, runtime: Runtime, data: bytes, sidecar: Sidecar, device: Device) -> None:
        trt = runtime.module
        self._config: Any = None
        self._cache: Any = None
        self._engine: Any = None
        self._loader: Any = None
        self.sidecar, self.device = sidecar, device
        self._runtime, self._log = runtime, logger(trt)
        self._compiled: bytes | None = None
        with ExitStack() as stack:
            stack.callback(self.close)
            with one_at_a_time, errors():
                self._log.take()
                self._loader = trt.Runtime(self._log)
                if runtime.name == "tensorrt-rtx" and device.sm not in runtime.capabilities:
                    self._check_validity(data)
                self._engine = self._loader.deserialize_cuda_engine(data)
                if self._engine is None:
                    raise self._failed("does not load")
            if runtime.name == "tensorrt-rtx":
                self._configure()
            self._check_tensors()
            stack.pop_all()

    @property
    def key(self) -> EngineKey:
        """Key of the engine."""
        return self.sidecar.key

    @property
    def provenance(self) -> dict[str, Any]:
        """What a result tells of the engine."""
        key = self.sidecar.key
        return {"precision": key.precision, "sha256": self.sidecar.sha256, "target": key.target}

    def context(self) -> TensorRTEngine:
        """Make an engine that one thread and one stream at a time can use, with activations of its own."""
        with ExitStack() as stack:
            memory = stack.enter_context(Resources(self.device))
            with one_at_a_time:
                self._log.take()
                engine = TensorRTEngine(self, self._new_context(), memory)
                stack.callback(engine.close)
                if engine._context is None:
                    raise self._failed("gives no execution context")
            if self._config is not None:
                size = self._engine.device_memory_size_v2
                engine._context.set_device_memory(memory.array((size,), np.uint8).address, size)
            stack.pop_all()
        return engine

    def _new_context(self) -> Any:
        """TensorRT's own context."""
        if self._config is None:
            return self._engine.create_execution_context()
        return self._engine.create_execution_context(self._config)

    def keep_compiled(self) -> None:
        """Keep the code that TensorRT-RTX has compiled for this GPU, so that the next start is faster."""
        blob = None if self._cache is None else self._cache.serialize()
        if blob is None or bytes(blob) == self._compiled:
            return
        self._compiled = bytes(blob)
        try:
            store_blob(self._blob_name(), self._compiled)
        except TrtsegError as error:  # only that the next start takes longer
            self._log.log(self._runtime.module.ILogger.WARNING, str(error))

    def kept_acceptance(self) -> dict[str, Any] | None:
        """Acceptance in the sidecar, None before the first."""
        return self.sidecar.acceptance

    def keep_acceptance(self, acceptance: dict[str, Any]) -> None:
        """Keep the acceptance in the sidecar."""
        self.sidecar = cache.keep_acceptance(self.key, acceptance, sha256=self.sidecar.sha256)

    def close(self) -> None:
        """Give the engine back; contexts made from it must be closed before."""
        # In this order: config, cache and engine must go before the runtime that made them.
        self._config = None
        self._cache = None
        self._engine = None
        self._loader = None

    def _check_validity(self, data: bytes) -> None:
        """Ask TensorRT-RTX, before it loads the engine, whether it runs on a GPU that it does not list."""
        trt = self._runtime.module
        validity, bits = self._loader.get_engine_validity(data)
        if validity == trt.EngineValidity.INVALID:
            known = trt.EngineInvalidityDiagnostics.__members__.items()
            said = ", ".join(name for name, member in known if int(bits) & int(member)) or "no reason"
            raise DeviceError(
                f"runtime: got {self._runtime.name!r}, but {self._runtime.title} says that the engine {self.key} is "
                f"invalid on {self.device.name}, {self.device.sm} ({said}); use runtime='tensorrt' or "
                "runtime='torch', which run there, or device='cpu'"
            )

    def _configure(self) -> None:
        """Make TensorRT-RTX create contexts in trtseg's memory, with the kernels that it has compiled before."""
        self._config = config = self._engine.create_runtime_config()
        strategies = self._runtime.module.ExecutionContextAllocationStrategy
        # An engine that never allocates by itself takes no other strategy.
        config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
        kept = config.create_runtime_cache()
        if kept is None:
            return
        compiled = load_blob(self._blob_name())
        if compiled and not kept.deserialize(compiled):
            compiled = None  # compiled for another driver or GPU
        # The config does not keep the cache alive, so this object does. A cache taken from the config would have a
        # second owner, and be freed twice.
        if config.set_runtime_cache(kept):
            self._cache, self._compiled = kept, compiled

    def _blob_name(self) -> str:
        return f"compiled-{self.sidecar.key.stem}-{re.sub(r'[^A-Za-z0-9]+', '-', self.device.name)}"

    def _tensors(self) -> list[dict[str, Any]]:
        """The engine's tensors, as a sidecar has them."""
        trt, engine, precision = self._runtime.module, self._engine, named(self.key.precision)
        dtypes = {getattr(trt, precision.dtype.name): precision.name}
        modes = {trt.TensorIOMode.INPUT: "input", trt.TensorIOMode.OUTPUT: "output"}
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        return [
            {
                "name": name,
                "mode": modes[engine.get_tensor_mode(name)],
                "dtype": dtypes.get(engine.get_tensor_dtype(name)),
                "shape": list(engine.get_tensor_shape(name)),
            }
            for name in names
        ]

    def _check_tensors(self) -> None:
        found = self._tensors()
        if sorted(found, key=str) != sorted(self.sidecar.tensors, key=str):
            raise DeviceError(
                f"engine {self.sidecar.key}: has tensors {found}, but its sidecar says {self.sidecar.tensors}; "
                "delete it with 'trtseg engines clear', and it is built again"
            )

    def _failed(self, fault: str) -> DeviceError:
        message = f"{self._runtime.title}: the engine {self.key} {fault} on {self.device.name}"
        return failure(f"{message}; use another runtime, or device='cpu'", "; ".join(self._log.take()[1]))


class TensorRTEngine:
    """A net on a GPU: one execution context. Made by `LoadedEngine.context`."""

    def __init__(self, loaded: LoadedEngine, context: Any, memory: Resources) -> None:
        # CPython drops attributes in this order, as `close` does: the context uses the memory and the loaded engine.
        self._context, self._memory, self._loaded = context, memory, loaded
        self.spec, self.precision, self.batch = loaded.sidecar.spec, loaded.key.precision, loaded.key.batch
        self.device, self.dtype = f"cuda:{loaded.device.index}", named(loaded.key.precision).dtype
        names = {tensor["mode"]: tensor["name"] for tensor in loaded.sidecar.tensors}
        self._input, self._output = names["input"], names["output"]

    def run(self, src: CudaArray, dst: CudaArray, stream: int = 0) -> None:
        """Enqueue logits ``dst`` ``[batch, channels, H, W]`` of slices ``src`` ``[batch, 1, H, W]`` on ``stream``."""
        check_arrays(self, src, dst)
        for name, array in ((self._input, src), (self._output, dst)):
            if not self._context.set_tensor_address(name, array.address):
                raise self._loaded._failed(f"does not take the address of its tensor {name!r}")
        if not self._context.execute_async_v3(stream):
            raise self._loaded._failed("does not run")

    def capturable(self, stream: int) -> bool:
        """Whether `run` on ``stream`` can be recorded in a CUDA graph; asked after its first run there."""
        # TensorRT cannot be asked. Only work that depends on the data forbids a graph, and trtseg's nets do none.
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(stream))

    def close(self) -> None:
        """Give the context and its memory back."""
        self._context = None
        self._memory.close()
