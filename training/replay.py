"""One launch for a training step: its thousand small kernels, recorded as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Calls before the recording, in which cuDNN chooses its kernels and the memory finds its size.
WARM_UP = 3


class Replayed:
    """A function of tensors on a GPU, recorded at the first call and replayed from then on.

    What the function computes must depend on its tensors, on other memory that stays where it is, and on PyTorch's
    default generator alone, and it must not wait for the GPU. So weights may change between calls, and dropout differs
    from call to call; gradients that it writes lie in the same memory after each call.

    The first call runs the function `WARM_UP` times beside the recording, so running means that it keeps, as batch
    norms do, see these tensors more than once.
    """

    def __init__(self) -> None:
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.output: Tensor

    def __call__(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Call the function, the same each time, with tensors of the same shapes; or do again what it did."""
        if self.graph is None:
            self._record(function, tensors)
        assert self.graph is not None
        for kept, given in zip(self.inputs, tensors, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.output.clone()

    def _record(self, function: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> None:
        self.inputs = [tensor.clone() for tensor in tensors]
        # on a stream of its own, as PyTorch asks for before a recording
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.output = function(*self.inputs)
        self.graph = graph
