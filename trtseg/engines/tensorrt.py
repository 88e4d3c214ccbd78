"""The GPU engine, on TensorRT or TensorRT-RTX, whose module is passed in."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from trtseg.cuda import CudaArray, Device, errors
from trtseg.engines import cache
from trtseg.engines.runtime import Runtime, failure, logger, one_at_a_time
from trtseg.engines.sidecar import Sidecar
from trtseg.errors import ArgumentError, DeviceError, TrtsegError


class LoadedEngine:
    """An engine on a GPU: its weights, which the contexts made from it share.

    Parameters
    ----------
    runtime : Runtime
        What runs it; of the version that built it.
    data : bytes
        The engine, from `trtseg.engines.cache`: it can run any code.
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
        self.sidecar, self.device = sidecar, device
        self._runtime, self._log = runtime, logger(trt)
        with one_at_a_time, errors():
            self._log.take()
            self._loader = trt.Runtime(self._log)  # the engine needs it as long as it lives
            self._engine = self._loader.deserialize_cuda_engine(data)
            if self._engine is None:
                raise self._failed("does not load")
        self._compiled: bytes | None = None
        self._config = self._runtime_config() if runtime.name == "tensorrt-rtx" else None
        self._check_tensors()

    def context(self) -> TensorRTEngine:
        """An engine that one thread and one stream at a time can use, with activations of its own."""
        arguments = () if self._config is None else (self._config,)
        with one_at_a_time:
            self._log.take()
            context = self._engine.create_execution_context(*arguments)
            if context is None:
                raise self._failed("gives no execution context")
        return TensorRTEngine(self, context)

    def keep_compiled(self) -> None:
        """Keep what TensorRT-RTX has compiled for this GPU, so that the next start is faster."""
        if self._config is None:
            return
        compiled = bytes(self._config.get_runtime_cache().serialize())
        if compiled == self._compiled:
            return
        self._compiled = compiled
        try:
            cache.store_blob(self._blob_name(), compiled)
        except TrtsegError as error:  # the next start takes longer, that is all
            self._log.log(self._runtime.module.ILogger.WARNING, str(error))

    def _runtime_config(self) -> Any:
        config = self._engine.create_runtime_config()
        compiled = config.create_runtime_cache()
        self._compiled = cache.load_blob(self._blob_name())
        if self._compiled and not compiled.deserialize(self._compiled):
            self._compiled = None  # of another driver or GPU
        config.set_runtime_cache(compiled)
        return config

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

    def __init__(self, loaded: LoadedEngine, context: Any) -> None:
        key = loaded.sidecar.key
        self.spec, self.precision, self.batch = loaded.sidecar.spec, key.precision, key.batch
        self.device = f"cuda:{loaded.device.index}"
        self.dtype = np.dtype({"fp16": np.float16, "fp32": np.float32}[key.precision])
        names = {tensor["mode"]: tensor["name"] for tensor in loaded.sidecar.tensors}
        self._input, self._output = names["input"], names["output"]
        self._loaded, self._context = loaded, context

    def run(self, src: CudaArray, dst: CudaArray, stream: int = 0) -> None:
        """Enqueue logits ``dst`` ``[batch, channels, H, W]`` of slices ``src`` ``[batch, 1, H, W]`` on ``stream``."""
        for name, array, channels in (("src", src, 1), ("dst", dst, self.spec.channels)):
            expected = (self.batch, channels, *self.spec.size)
            if array.shape != expected or array.dtype != self.dtype:
                raise ArgumentError(
                    f"{name}: got {array.dtype} {array.shape}; this engine takes {self.dtype} {expected}"
                )
        context = self._context
        context.set_tensor_address(self._input, src.address)
        context.set_tensor_address(self._output, dst.address)
        if not context.execute_async_v3(stream):
            raise self._loaded._failed("does not run")
