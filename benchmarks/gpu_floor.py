"""The floor of `benchmarks.gpu`: how long a volume takes at least on this GPU, by a roofline of each layer.

A layer takes the longer of two times: its multiplications and additions at the measured FP16 matrix rate, and its bytes
at the measured memory bandwidth. Bytes are FP16 inputs and outputs of every slice, and weights once a batch. ReLU and
concatenation cost nothing: a convolution can do them. The ops between the nets cost nothing either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Layer(NamedTuple):
    """FLOPs and bytes of a layer for a slice, and the bytes of its weights."""

    flops: int
    bytes: int
    weights: int


def layers(onnx_file: bytes) -> list[Layer]:
    """Every Conv, ConvTranspose and MaxPool of a net."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(onnx_file)).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim[1:]] for v in values}
    weights = {w.name: math.prod(w.dims) for w in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "MaxPool"):
            continue
        source, result = shapes[node.input[0]], shapes[node.output[0]]
        flops = 0
        if node.op_type != "MaxPool":  # each weight once for each pixel of the smaller side
            pixels = (result if node.op_type == "Conv" else source)[1:]
            flops = 2 * weights[node.input[1]] * math.prod(pixels)
        moved = 2 * (math.prod(source) + math.prod(result))
        found.append(Layer(flops, moved, 2 * sum(weights.get(name, 0) for name in node.input)))
    return found


def seconds(net: Sequence[Layer], slices: int, batch: int, rate: dict[str, float]) -> float:
    """Least time of a net for a number of slices."""
    batches = -(-slices // batch)
    return sum(
        max(
            slices * layer.flops / rate["matmul_flops"],
            (slices * layer.bytes + batches * layer.weights) / rate["memory_bytes"],
        )
        for layer in net
    )


def slices_with_net(labels: np.ndarray, batch: int) -> int:
    """How many slices lie in chunks for which the tumour net runs."""
    chunks = [labels[first : first + batch] for first in range(0, len(labels), batch)]
    return sum(len(chunk) for chunk in chunks if chunk.any())


def floor(
    labels: np.ndarray, batch: int, nets: Sequence[Sequence[Layer]], rate: dict[str, float]
) -> dict[str, float]:
    """Milliseconds that a volume takes at least, from its labels uint8 [Z, Y, X].

    ``device_ms`` is for a volume in GPU memory: the nets. ``host_ms`` adds the copies over the bus. ``longest_ms`` is
    the longest of the three, for copies that hide completely behind the nets.
    """
    with_net = len(labels), slices_with_net(labels, batch)
    terms = {
        "nets_ms": 1e3 * sum(seconds(net, n, batch, rate) for net, n in zip(nets, with_net, strict=True)),
        "to_gpu_ms": 1e3 * 2 * labels.size / rate["to_gpu_bytes"],  # int16
        "from_gpu_ms": 1e3 * labels.size / rate["from_gpu_bytes"],  # a byte a label
    }
    host, longest = sum(terms.values()), max(terms.values())
    return {**terms, "device_ms": terms["nets_ms"], "host_ms": host, "longest_ms": longest}


def rates(size: int = 8192, megabytes: int = 256, repeats: int = 20) -> dict[str, float]:
    """Best FLOP/s of FP16 matrix products in PyTorch, and bytes/s of copies within the GPU and over the bus."""
    import torch

    cuda: Any = torch.cuda  # it has no types

    def best(work: Callable[[], object]) -> float:
        work()
        times: list[float] = []
        for _ in range(repeats):
            start, end = (cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return min(times)

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    c = torch.empty_like(a)
    host = torch.empty(megabytes * 10**6, dtype=torch.uint8, pin_memory=True)
    gpu = torch.empty_like(host, device="cuda")
    large, other = (torch.empty(4 * host.numel(), dtype=torch.uint8, device="cuda") for _ in range(2))
    return {
        "matmul_flops": 2 * size**3 / best(lambda: torch.mm(a, b, out=c)),
        "memory_bytes": 2 * large.numel() / best(lambda: other.copy_(large)),  # read and written
        "to_gpu_bytes": host.numel() / best(lambda: gpu.copy_(host, non_blocking=True)),
        "from_gpu_bytes": host.numel() / best(lambda: host.copy_(gpu, non_blocking=True)),
    }
