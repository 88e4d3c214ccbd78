"""Stands in for TensorRT-RTX's module: its engines are nets on the CPU, whose work waits in streams of the played GPU.

TensorRT-RTX itself has built the files, so sidecars and hashes are real. Nothing keeps alive what it was only shown, as
there. Uses that would be undefined there are noted in `misused`.
"""

import ctypes
import hashlib
import types
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import played_pycuda as played

from trtseg.engines.base import Net
from trtseg.engines.nvidia.sidecar import Sidecar
from trtseg.engines.openvino import OpenVinoEngine
from trtseg.engines.precision import FP32
from trtseg.models import ModelFiles

float16, float32 = "float16", "float32"
ComputeCapability = types.SimpleNamespace(__members__={"SM86": 0, "SM89": 1})
TensorIOMode = types.SimpleNamespace(INPUT=0, OUTPUT=1)
ExecutionContextAllocationStrategy = types.SimpleNamespace(STATIC=0, ON_PROFILE_CHANGE=1, USER_MANAGED=2)
_DTYPES = {"fp16": float16, "fp32": float32}

#: The model whose nets the engines run, and the cache that has the engines. Set by the test.
files: ModelFiles | None = None
engines = Path()
#: Role and precision of engines that come out black.
black: set[tuple[str, str]] = set()
#: How often each (role, precision) was run.
runs: dict[tuple[str, str], int] = {}
#: Whether contexts say that they can be captured, and can.
capturable = True
#: Names of calls that return False or None.
refused: set[str] = set()
#: Faults of the caller.
misused: list[str] = []


class ILogger:
    """Base class of loggers, and the severities."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class _Counted:
    """An object that must go where a context is current, and before the objects that it needs."""

    needs: tuple[weakref.ref, ...] = ()

    def __del__(self) -> None:
        if not played.depth():
            misused.append(f"{type(self).__name__}: went where no context was current")
        self.check("when it went")

    def check(self, when: str) -> None:
        if any(needed() is None for needed in self.needs):
            misused.append(f"{type(self).__name__}: used an object that had gone, {when}")


class RuntimeCache(_Counted):
    """Kernels that were compiled for the GPU."""

    content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return content.startswith(b"compiled")

    def serialize(self) -> bytes | None:
        return None if "serialize" in refused else self.content


class RuntimeConfig(_Counted):
    """How contexts are made."""

    strategy = ExecutionContextAllocationStrategy.STATIC

    def __init__(self, engine: "Engine") -> None:
        self.needs = (weakref.ref(engine),)

    def set_execution_context_allocation_strategy(self, strategy: int) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache | None:
        return None if "create_runtime_cache" in refused else RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        if "set_runtime_cache" in refused:
            return False
        self.needs += (weakref.ref(cache),)
        return True


class Engine(_Counted):
    """A deserialised engine."""

    num_io_tensors = 2
    device_memory_size_v2 = 4096

    def __init__(self, sidecar: Sidecar, runtime: "Runtime") -> None:
        self.sidecar, self.logger, self.needs = sidecar, runtime.logger, (weakref.ref(runtime),)
        self._tensors = {tensor["name"]: tensor for tensor in sidecar.tensors}

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> int:
        return {"input": 0, "output": 1}[self._tensors[name]["mode"]]

    def get_tensor_dtype(self, name: str) -> str:
        return _DTYPES[self._tensors[name]["dtype"]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def create_execution_context(self, config: RuntimeConfig) -> "Context | None":
        config.check("for a context")
        managed = config.strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        if self.sidecar.settings["require_user_allocation"] and not managed:
            return None
        if len(config.needs) == 2:
            config.needs[1]().content = b"compiled for " + self.sidecar.key.role.encode()
        return Context(self, config)


class Context(_Counted):
    """An execution context. It sets up at its first run what cannot be captured."""

    def __init__(self, engine: Engine, config: RuntimeConfig) -> None:
        self._sidecar, self._logger, self._addresses = engine.sidecar, engine.logger, {}
        self._memory, self._has_run = (0, 0), False
        self.needs = (weakref.ref(engine), weakref.ref(config), *config.needs)
        spec = engine.sidecar.spec
        self._net = OpenVinoEngine(Net.read(files, spec, FP32))

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = memory, size

    def is_stream_capturable(self, stream: int) -> bool:
        assert self._has_run
        return capturable

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return "set_tensor_address" not in refused

    def execute_async_v3(self, stream: int) -> bool:
        self.check("to run")
        memory, size = self._memory
        if size < Engine.device_memory_size_v2 or "execute_async_v3" in refused:
            self._logger.log(ILogger.ERROR, "no memory")
            return False
        try:
            if not (self._has_run and capturable):
                played.mem_alloc(1).free()
            where = ctypes.c_void_p(memory), 0xFF, ctypes.c_size_t(size), ctypes.c_void_p(stream)
            played._call("cudaMemsetAsync", *where)
        except played.LogicError as error:
            self._logger.log(ILogger.ERROR, str(error))
            return False
        self._has_run = True
        key = self._sidecar.key
        arrays = {
            tensor["mode"]: (self._addresses[tensor["name"]], tuple(tensor["shape"]), _DTYPES[key.precision])
            for tensor in self._sidecar.tensors
        }

        def work() -> None:
            what = (key.role, key.precision)
            runs[what] = runs.get(what, 0) + 1
            source = played.device_array(*arrays["input"]).astype(np.float32)
            logits = np.empty(arrays["output"][1], np.float32)
            self._net.run(source, logits)
            played.device_array(*arrays["output"])[:] = 0 if what in black else logits

        played.enqueue(stream, work)
        return True


class Runtime(_Counted):
    """Loads engines."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine:
        sha256 = hashlib.sha256(data).hexdigest()
        sidecars = (Sidecar.from_json(path.read_bytes()) for path in engines.glob("*.engine.json"))
        return Engine(next(sidecar for sidecar in sidecars if sidecar.sha256 == sha256), self)
