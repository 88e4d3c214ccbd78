"""One launch for a training step: its thousand small kernels, recorded as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Calls before the recording, in which cuDNN chooses its kernels and the memory finds its size.
WARM_UP = 3


class Replayed:
    """A function of tensors on a GPU, recorded when it is first called and replayed from then on.

    What the function computes must depend on its tensors, on other memory that stays where it is, and on PyTorch's
    default generator alone, and it must not wait for the GPU. So weights may change between calls, and dropout differs
    from call to call; gradients that it writes lie in the same memory after each call.

    Parameters
    ----------
    function : callable
        Takes tensors of the same shapes at each call, and returns a tensor. The first call runs it a few times over.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.output: Tensor

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Call the function, or do again what it did."""
        if self.graph is None:
            self._record(tensors)
        assert self.graph is not None
        for kept, given in zip(self.inputs, tensors, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.output.clone()

    def _record(self, tensors: tuple[Tensor, ...]) -> None:
        self.inputs = [tensor.clone() for tensor in tensors]
        # on a stream of its own, as PyTorch asks for before a recording
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.output = self.function(*self.inputs)
        self.graph = graph
