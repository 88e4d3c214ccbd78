"""The engine contract: what the cascade needs of a net, and all that it may ask for.

An engine is one net, ready to run on one device. Constructed means ready: files are read, hashes checked, kernels
compiled and buffers of its own allocated. Then

- ``spec`` is the `ModelSpec` of the net;
- ``device`` names where it runs, ``"cpu"`` or ``"cuda:0"``;
- ``batch`` is the number of slices that each ``run`` gets, or None where any number ``n >= 0`` will do;
- ``run(src, dst, stream)`` computes the logits of ``n`` slices: ``src`` is ``[n, 1, H, W]`` and ``dst`` is
  ``[n, spec.channels, H, W]``, both C-contiguous and in `dtype`, NumPy arrays on the CPU and `trtseg.cuda.CudaArray`
  on a GPU, both owned by the caller, and not overlapping. Every element of ``dst`` is written, nothing else is. Slices
  are independent: the logits of a slice depend neither on its place nor on its neighbours. Equal input gives equal
  output, bit for bit. ``run`` allocates nothing that grows, and on a device with streams it only enqueues on
  ``stream`` and does not synchronise. An engine is used by one thread at a time;
- on a GPU ``capturable(stream)`` tells, after a first ``run`` there, whether ``run`` can be recorded in a CUDA graph,
  and ``close()`` gives the memory of the engine back.

``tests/test_engines.py`` holds every engine to this text.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from trtseg.spec import ModelSpec


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
        """Arithmetic of the convolutions: ``fp32``, ``bf16`` or ``fp16``."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of ``src`` and ``dst``."""

    @property
    def batch(self) -> int | None:
        """Slices in each ``run``; None: any number."""

    def run(self, src: Any, dst: Any, stream: int = 0) -> None:
        """Compute logits ``dst`` ``[n, channels, H, W]`` of slices ``src`` ``[n, 1, H, W]``."""


class GpuEngine(Engine, Protocol):
    """A net that is ready to run on a GPU."""

    def capturable(self, stream: int) -> bool:
        """Whether ``run`` on that stream can be recorded in a CUDA graph; asked after its first run there."""

    def close(self) -> None:
        """Give back the memory of this engine; its device is current, and its runs have ended."""
