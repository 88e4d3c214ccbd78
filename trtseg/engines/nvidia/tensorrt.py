"""The GPU engine, on TensorRT or TensorRT-RTX, whose module is passed in."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Any

import numpy as np

from trtseg.cuda.arrays import CudaArray
from trtseg.cuda.device import Device, Resources, errors
from trtseg.engines.nvidia import cache
from trtseg.engines.nvidia.runtime import Runtime, failure, logger, one_at_a_time
from trtseg.engines.nvidia.sidecar import Sidecar
from trtseg.errors import ArgumentError, DeviceError, TrtsegError


class LoadedEngine:
    """An engine on a GPU: its weights, which the contexts made from it share.

    Parameters
    ----------
    runtime : Runtime
        What runs it; of the version that built it.
    data : bytes
        The engine, from `trtseg.engines.nvidia.cache`: it can run any code.
    sidecar : Sidecar
        What is known of it.
    device : Device
        Where; its context must be current, here and when a context is made.

    Raises
    ------
    DeviceError
        The runtime does not take it, on this GPU or at all.
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
                self._engine = self._loader.deserialize_cuda_engine(data)
                if self._engine is None:
                    raise self._failed("does not load")
            if runtime.name == "tensorrt-rtx":
                self._configure()
            self._check_tensors()
            stack.pop_all()

    def close(self) -> None:
        """Give the weights back; the device is current, and the contexts of this engine are closed."""
        # Closed in this order: config, cache and engine must go before the runtime that made them.
        self._config = self._cache = self._engine = self._loader = None

    def context(self) -> TensorRTEngine:
        """An engine that one thread and one stream at a time can use, with activations of its own."""
        arguments = () if self._config is None else (self._config,)
        with ExitStack() as stack:
            memory = stack.enter_context(Resources(self.device))
            with one_at_a_time:
                self._log.take()
                engine = TensorRTEngine(self, self._engine.create_execution_context(*arguments), memory)
                stack.callback(engine.close)
                if engine._context is None:
                    raise self._failed("gives no execution context")
            if self._config is not None:
                size = self._engine.device_memory_size_v2
                engine._context.set_device_memory(memory.array((size,), np.uint8).address, size)
            stack.pop_all()
        return engine

    def keep_compiled(self) -> None:
        """Keep what TensorRT-RTX has compiled for this GPU, so that the next start is faster."""
        blob = None if self._cache is None else self._cache.serialize()
        if blob is None or bytes(blob) == self._compiled:
            return
        self._compiled = bytes(blob)
        try:
            cache.store_blob(self._blob_name(), self._compiled)
        except TrtsegError as error:  # the next start takes longer, that is all
            self._log.log(self._runtime.module.ILogger.WARNING, str(error))

    def _configure(self) -> None:
        """Set how TensorRT-RTX makes contexts: in memory that is ours, with the kernels that it has compiled before."""
        self._config = config = self._engine.create_runtime_config()
        strategies = self._runtime.module.ExecutionContextAllocationStrategy
        # An engine that never allocates by itself takes no other one.
        config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
        kept = config.create_runtime_cache()
        if kept is None:
            return
        compiled = cache.load_blob(self._blob_name())
        if compiled and not kept.deserialize(compiled):
            compiled = None  # of another driver or GPU
        # The config does not keep it alive. To ask the config for it would give it a second owner, which frees it, too.
        if config.set_runtime_cache(kept):
            self._cache, self._compiled = kept, compiled

    def _blob_name(self) -> str:
        return f"compiled-{self.sidecar.key.stem}-{re.sub(r'[^A-Za-z0-9]+', '-', self.device.name)}"

    def _check_tensors(self) -> None:
        trt, engine = self._runtime.module, self._engine
        dtypes = {trt.float16: "fp16", trt.float32: "fp32"}
        modes = {trt.TensorIOMode.INPUT: "input", trt.TensorIOMode.OUTPUT: "output"}
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        found = [
            {
                "name": name,
                "mode": modes[engine.get_tensor_mode(name)],
                "dtype": dtypes.get(engine.get_tensor_dtype(name)),
                "shape": list(engine.get_tensor_shape(name)),
            }
            for name in names
        ]
        if sorted(found, key=str) != sorted(self.sidecar.tensors, key=str):
            raise DeviceError(
                f"engine {self.sidecar.key}: has tensors {found}, but its sidecar says {self.sidecar.tensors}; "
                "delete it with 'trtseg engines clear', and it is built again"
            )

    def _failed(self, what: str) -> DeviceError:
        message = f"{self._runtime.title}: the engine {self.sidecar.key} {what} on {self.device.name}"
        return failure(f"{message}; use another runtime, or device='cpu'", "; ".join(self._log.take()[1]))


class TensorRTEngine:
    """A net on a GPU: one execution context. Made by `LoadedEngine.context`."""

    def __init__(self, loaded: LoadedEngine, context: Any, memory: Resources) -> None:
        self._context, self._memory, self._loaded = context, memory, loaded
        key = loaded.sidecar.key
        self.spec, self.precision, self.batch = loaded.sidecar.spec, key.precision, key.batch
        self.device = f"cuda:{loaded.device.index}"
        self.dtype = np.dtype({"fp16": np.float16, "fp32": np.float32}[key.precision])
        names = {tensor["mode"]: tensor["name"] for tensor in loaded.sidecar.tensors}
        self._input, self._output = names["input"], names["output"]

    def run(self, src: CudaArray, dst: CudaArray, stream: int = 0) -> None:
        """Enqueue logits ``dst`` ``[batch, channels, H, W]`` of slices ``src`` ``[batch, 1, H, W]`` on ``stream``."""
        for name, array, channels in (("src", src, 1), ("dst", dst, self.spec.channels)):
            expected = (self.batch, channels, *self.spec.size)
            if array.shape != expected or array.dtype != self.dtype:
                raise ArgumentError(
                    f"{name}: got {array.dtype} {array.shape}; this engine takes {self.dtype} {expected}"
                )
        for name, array in ((self._input, src), (self._output, dst)):
            if not self._context.set_tensor_address(name, array.address):
                raise self._loaded._failed(f"does not take the address of its tensor {name!r}")
        if not self._context.execute_async_v3(stream):
            raise self._loaded._failed("does not run")

    def capturable(self, stream: int) -> bool:
        """Whether `run` on ``stream`` can be recorded in a CUDA graph; asked after its first run there."""
        # TensorRT cannot be asked; but nothing that our nets do depends on their data, which is what would forbid it.
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(stream))

    def close(self) -> None:
        """Give back the context, and then the memory of its activations; the device is current."""
        self._context = None
        self._memory.close()
