"""The GPU engine on PyTorch, in the cascade's own buffers and streams.

It runs on every GPU that PyTorch knows, also where TensorRT cannot be installed. Its engine file, which
`trtseg.build_engines` makes, is what PyTorch's compiler gives for a net. Where there is none, or the engine does not
do, PyTorch's own operators run.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import ExitStack
from typing import Any

from trtseg.cuda.arrays import CudaArray
from trtseg.engines.base import Net, check_arrays
from trtseg.engines.blobs import load_blob, store_blob
from trtseg.engines.nvidia import cache
from trtseg.engines.nvidia.runtime import load_runtime
from trtseg.engines.nvidia.serialize import Serialized
from trtseg.engines.nvidia.sidecar import FORMAT, EngineKey, Sidecar
from trtseg.engines.nvidia.torch_net import TorchNet
from trtseg.errors import DeviceError, OutOfMemoryError, OutputError

log = logging.getLogger("trtseg")


def serialize(net: Net, key: EngineKey, device: str) -> Serialized:
    """Build the engine ``key`` of a net on a GPU: see `TorchNet.compile`."""
    made = TorchNet(net, key.batch, device)
    tensors = [
        {"name": name, "mode": mode, "dtype": key.precision, "shape": [key.batch, channels, *net.spec.size]}
        for name, mode, channels in ((made._input, "input", 1), (made._output, "output", net.spec.channels))
    ]
    settings = {"parts of a batch": made.parts, "cuDNN": made.cudnn, "device": device}
    return Serialized(made.compile(), tensors, settings, [], None)


def load_compiled(net: Net, key: EngineKey, device: str) -> LoadedTorch | None:
    """Load a net with the engine of this user's cache; None where there is none for it, or it does not run."""
    try:
        kept = cache.find(key)
    except OutputError:  # there is no cache
        return None
    if kept is None:
        return None
    built_on = kept[1].settings.get("device", "cuda:0")
    if built_on != device:  # the number of the GPU is part of the compiled code
        log.warning(
            "runtime: the engine of the %s net was compiled on %s, but the device is %s; PyTorch's own operators run "
            "instead. Name one GPU in CUDA_VISIBLE_DEVICES to build and use engines there as cuda:0",
            net.spec.role,
            built_on,
            device,
        )
        return None
    try:
        return LoadedTorch(net, key, device, kept)
    except OutOfMemoryError:
        raise
    except DeviceError as error:
        log.warning("%s; PyTorch's own operators run instead", error)
        return None


class LoadedTorch:
    """A net that PyTorch runs on a GPU, from which engines are made.

    Parameters
    ----------
    net : Net
        The net.
    key : EngineKey
        Its key; ``key.batch`` slices are in each run.
    device : str
        ``cuda:0``.
    engine : (bytes, Sidecar), optional
        An engine file of that key, which `trtseg.engines.nvidia.cache` found. Without it PyTorch's own operators run.
    """

    def __init__(
        self, net: Net, key: EngineKey, device: str, engine: tuple[bytes, Sidecar] | None = None
    ) -> None:
        self.key = key
        self._sidecar = None if engine is None else engine[1]
        self._net = TorchNet(net, key.batch, device, None if engine is None else engine[0])

    @property
    def provenance(self) -> dict[str, Any]:
        """What a result tells of the engine; the hash is the engine file's or, without one, the ONNX file's."""
        told = {"precision": self.key.precision, "sha256": self.key.onnx_sha256, "target": self.key.target}
        if self._sidecar is not None:
            return {**told, "sha256": self._sidecar.sha256, "kernels": "compiled"}
        return told | ({"parts of a batch": self._net.parts} if self._net.parts else {})

    def context(self) -> TorchEngine:
        """Make an engine that one thread and one stream at a time can use, with activations of its own."""
        return TorchEngine(self._net)

    def keep_compiled(self) -> None:
        """Do nothing: PyTorch compiles only for `trtseg.build_engines`."""

    def kept_acceptance(self) -> dict[str, Any] | None:
        """Acceptance in the engine's sidecar or, without an engine, in this user's cache; None before the first.

        An engine that was built with another cuDNN is checked at each start.
        """
        if self._sidecar is not None:
            same = self._sidecar.settings.get("cuDNN") == self._net.cudnn
            return self._sidecar.acceptance if same else None
        try:
            kept = load_blob(self._blob_name())
        except OutputError:  # there is no cache
            return None
        found: dict[str, Any] | None = None if kept is None else json.loads(kept)
        return found

    def keep_acceptance(self, acceptance: dict[str, Any]) -> None:
        """Keep the acceptance where `kept_acceptance` finds it."""
        if self._sidecar is not None:
            self._sidecar = cache.keep_acceptance(self.key, acceptance, sha256=self._sidecar.sha256)
        else:
            store_blob(self._blob_name(), json.dumps(acceptance).encode())

    def close(self) -> None:
        """Give the weights back, and what PyTorch keeps of the memory in which operators were tried."""
        self._net.close()

    def _blob_name(self) -> str:
        """Name for the acceptance of PyTorch's own operators, with all on which their logits depend."""
        chosen = hashlib.sha256(json.dumps([FORMAT, self._net.choices]).encode()).hexdigest()
        return f"acceptance-{self.key.stem}-cudnn{self._net.cudnn}-{chosen[:16]}"


class TorchEngine:
    """A net on a GPU, for one stream at a time; its activations are in a memory pool of its own."""

    def __init__(self, net: TorchNet) -> None:
        self.spec, self.batch, self.device = net.spec, net.batch, net.device
        self.precision, self.dtype = net.net.precision.name, net.net.precision.dtype
        self._net, self._torch = net, load_runtime("torch").module
        # A graph keeps the addresses of its activations, so no other code may get this memory while the engine lives.
        self._pool = self._torch.cuda.MemPool()

    def run(self, src: CudaArray, dst: CudaArray, stream: int = 0) -> None:
        """Enqueue logits ``dst`` ``[batch, channels, H, W]`` of slices ``src`` ``[batch, 1, H, W]`` on ``stream``."""
        check_arrays(self, src, dst)
        torch = self._torch
        with ExitStack() as contexts:
            contexts.enter_context(self._net.failures())
            contexts.enter_context(torch.cuda.stream(torch.cuda.ExternalStream(stream, device=self.device)))
            contexts.enter_context(torch.cuda.use_mem_pool(self._pool, device=self.device))
            contexts.enter_context(self._net.settings())
            x, logits = torch.as_tensor(src, device=self.device), torch.as_tensor(dst, device=self.device)
            # The slices have one channel, so their memory is channels last, too; PyTorch goes by the strides.
            x = x.reshape(self.batch, *self.spec.size, 1).permute(0, 3, 1, 2)
            logits.copy_(self._net(x))

    def capturable(self, stream: int) -> bool:
        """Whether `run` on ``stream`` can be recorded in a CUDA graph: after a first run nothing is allocated."""
        return True

    def close(self) -> None:
        """Give the memory pool back."""
        self._pool = None
