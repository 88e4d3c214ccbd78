"""The engine contract: all that the cascade may ask of a net.

An engine is one net, ready to run on one device. Constructed means ready: files are read, hashes checked, kernels
compiled and buffers of its own allocated. Then

- ``spec`` is the `ModelSpec` of the net;
- ``device`` names where it runs, ``"cpu"`` or ``"cuda:0"``;
- ``batch`` is the number of slices that each ``run`` gets, or None where any number ``n >= 0`` will do;
- ``run(src, dst, stream)`` computes the logits of ``n`` slices: ``src`` is ``[n, 1, H, W]`` and ``dst`` is
  ``[n, spec.channels, H, W]``, both C-contiguous and in `dtype`, NumPy arrays on the CPU and
  `trtseg.cuda.arrays.CudaArray` on a GPU, both owned by the caller, and not overlapping. Every element of ``dst`` is
  written, nothing else is. Slices are independent: the logits of a slice depend neither on its place nor on its
  neighbours. Equal input gives equal output, bit for bit. ``run`` allocates nothing that grows, and on a device with
  streams it only enqueues on ``stream`` and does not synchronise. An engine is used by one thread at a time;
- on the CPU ``runtime`` names what runs the net, ``side_by_side`` is the number of slices that it computes at a time,
  and ``run(..., wanted=flags)`` may leave logits out that are not wanted;
- on a GPU ``capturable(stream)`` tells, after a first ``run`` there, whether ``run`` can be recorded in a CUDA graph,
  and ``close()`` gives back what the engine holds there.

``tests/test_engines.py`` holds every engine to this text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trtseg.engines.precision import Precision
from trtseg.errors import ArgumentError, ModelError
from trtseg.models import ModelFiles
from trtseg.models.onnx_graph import check_onnx
from trtseg.models.onnx_spec import check_spec
from trtseg.spec import ModelSpec


@dataclass(frozen=True)
class Net:
    """The source of an engine: a net's spec, and its ONNX file in one precision.

    Attributes
    ----------
    spec : ModelSpec
        What the net expects and what its logits mean.
    precision : Precision
        Arithmetic of the engine.
    onnx : bytes
        The ONNX file for that precision. `Net.read` has checked its hash and its spec.
    model : dict
        ``name`` and ``version`` of the model, for reports.
    """

    spec: ModelSpec
    precision: Precision
    onnx: bytes
    model: dict[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """SHA-256 of the ONNX file, in hexadecimal."""
        return hashlib.sha256(self.onnx).hexdigest()

    @classmethod
    def read(cls, files: ModelFiles, spec: ModelSpec, precision: Precision) -> Net:
        """Read a net of a model.

        Raises
        ------
        ModelError
            The model has no file for that precision, the file was changed, its spec is not ``spec``, or a weight is NaN
            or infinite.
        """
        name = precision.file(spec.role)
        if name not in files.spec.sha256:
            raise ModelError(
                f"precision: got {precision.name!r}, but the model {files.spec.name!r} has no {name}; use another "
                "precision, or export the model again"
            )
        onnx = files.read(name)
        check_spec(onnx, spec)
        try:
            check_onnx(onnx)
        except ModelError as error:
            raise ModelError(f"{spec.role} net: {name}: {error}") from error
        return cls(spec, precision, onnx, {"name": files.spec.name, "version": files.spec.version})


class Engine(Protocol):
    """A net that is ready to run; see the module's docstring for the contract."""

    @property
    def spec(self) -> ModelSpec:
        """What the net expects and what its logits mean."""

    @property
    def device(self) -> str:
        """Where it runs."""

    @property
    def precision(self) -> str:
        """Arithmetic of the convolutions: the name of a `Precision`."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of ``src`` and ``dst``."""

    @property
    def batch(self) -> int | None:
        """Slices in each ``run``; None: any number."""

    def run(self, src: Any, dst: Any, stream: int = 0) -> None:
        """Compute logits ``dst`` ``[n, channels, H, W]`` of slices ``src`` ``[n, 1, H, W]``."""


class CpuEngine(Engine, Protocol):
    """A net that is ready to run on the CPU."""

    @property
    def runtime(self) -> str:
        """What runs it, with its version; ``trtseg`` for trtseg itself."""

    @property
    def side_by_side(self) -> int:
        """Slices that it computes at a time where there are so many."""

    def run(self, src: Any, dst: Any, stream: int = 0, *, wanted: NDArray[np.bool_] | None = None) -> None:
        """Compute logits as `Engine.run`; those that are not ``wanted`` ``[n, H, W]`` may be -65504 instead."""


class GpuEngine(Engine, Protocol):
    """A net that is ready to run on a GPU."""

    def capturable(self, stream: int) -> bool:
        """Whether ``run`` on that stream can be recorded in a CUDA graph; asked after its first run there."""

    def close(self) -> None:
        """Give back what the engine holds on the GPU; nobody runs it afterwards, and the device must be current."""


def logits_of(engine: Engine, images: NDArray[Any]) -> NDArray[Any]:
    """Run a CPU engine on slices ``[n, 1, H, W]`` in its type; return new logits ``[n, channels, H, W]``."""
    logits = np.empty((len(images), engine.spec.channels, *engine.spec.size), engine.dtype)
    engine.run(images, logits)
    return logits


def check_arrays(engine: Engine, src: Any, dst: Any) -> None:
    """Refuse arrays of another shape or type than an engine with a fixed batch takes, with an ArgumentError."""
    for name, array, channels in (("src", src, 1), ("dst", dst, engine.spec.channels)):
        expected = (engine.batch, channels, *engine.spec.size)
        if array.shape != expected or array.dtype != engine.dtype:
            raise ArgumentError(
                f"{name}: got {array.dtype} {array.shape}; this engine takes {engine.dtype} {expected}"
            )
