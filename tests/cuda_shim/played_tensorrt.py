"""Stands in for TensorRT-RTX's module where engines run: they are the nets on the CPU, in streams that are played.

Built they are by the real one, so that files, sidecars and hashes are what they are.
"""

import hashlib
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import played_pycuda as played

from trtseg.engines.openvino import OpenVinoEngine
from trtseg.engines.sidecar import Sidecar
from trtseg.models import ModelFiles

float16, float32 = "float16", "float32"
ComputeCapability = types.SimpleNamespace(__members__={"SM86": 0, "SM89": 1})
TensorIOMode = types.SimpleNamespace(INPUT=0, OUTPUT=1)
_DTYPES = {"fp16": float16, "fp32": float32}

#: What the engines run: of the model with that folder, in the cache with that folder. Set by the test.
files: ModelFiles | None = None
engines = Path()
#: Role and precision of engines that come out black.
black: set[tuple[str, str]] = set()
#: How often each (role, precision) was run.
runs: dict[tuple[str, str], int] = {}
#: How many engines could not use what was compiled for them before, and how many could.
compiled, reused = [], []


class ILogger:
    """Base class of loggers, and the severities."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


@dataclass
class RuntimeCache:
    """What was compiled for the GPU."""

    content: bytes = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return content.startswith(b"compiled")

    def serialize(self) -> bytes:
        return self.content


class RuntimeConfig:
    """How contexts are made."""

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> None:
        self.cache = cache

    def get_runtime_cache(self) -> RuntimeCache:
        return self.cache


class Engine:
    """A deserialised engine."""

    num_io_tensors = 2

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self._tensors = {tensor["name"]: tensor for tensor in sidecar.tensors}

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> int:
        return {"input": 0, "output": 1}[self._tensors[name]["mode"]]

    def get_tensor_dtype(self, name: str) -> str:
        return _DTYPES[self._tensors[name]["dtype"]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def create_execution_context(self, config: RuntimeConfig) -> "Context":
        (reused if config.cache.content else compiled).append(self.sidecar.key.role)
        config.cache.content = b"compiled for " + self.sidecar.key.role.encode()
        return Context(self)


class Context:
    """An execution context."""

    def __init__(self, engine: Engine) -> None:
        self._sidecar, self._addresses = engine.sidecar, {}
        spec = engine.sidecar.spec
        self._net = OpenVinoEngine(files.read(spec.role), spec, "fp32")

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
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


class Runtime:
    """What loads engines."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Engine:
        sha256 = hashlib.sha256(data).hexdigest()
        sidecars = (Sidecar.from_json(path.read_bytes()) for path in engines.glob("*.engine.json"))
        return Engine(next(sidecar for sidecar in sidecars if sidecar.sha256 == sha256))
