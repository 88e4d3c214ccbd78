"""What `benchmarks.gpu` measures with: the volume, interleaved rounds, summaries, agreement, FLOPs, rates."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtseg.metrics.overlap import overlap
from trtseg.phantom import abdomen

FIELD_MM, LENGTH_MM = 384.0, 400.0  # of the phantom; its liver is on 40 % of that length


# ---- The volume ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ct:
    """A volume: ``hu`` int16 [Z, Y, X], and millimetres between rows and columns."""

    hu: np.ndarray
    spacing: tuple[float, float]

    @property
    def name(self) -> str:
        """Its size in the plane."""
        return "x".join(map(str, self.hu.shape[1:]))


def phantom(slices: int, size: int) -> Ct:
    """A phantom of the abdomen and the chest; a slice is drawn once for four in a row, as drawing takes long."""
    drawn, mm = -(-slices // 4), FIELD_MM / size
    ct = abdomen((drawn, size, size), (LENGTH_MM / drawn, mm, mm)).ct
    return Ct(np.repeat(ct, 4, axis=0)[:slices], (mm, mm))


def halved(ct: Ct) -> Ct:
    """The same volume on a grid of half the rows and columns: each net gets what it got before."""
    z, y, x = ct.hu.shape
    mean = ct.hu.reshape(z, y // 2, 2, x // 2, 2).mean((2, 4), dtype=np.float32)
    return Ct(np.rint(mean).astype(np.int16), (2 * ct.spacing[0], 2 * ct.spacing[1]))


def slices_with_net(labels: np.ndarray, batch: int) -> int:
    """How many slices lie in chunks for which the tumour net runs."""
    chunks = [labels[first : first + batch] for first in range(0, len(labels), batch)]
    return sum(len(chunk) for chunk in chunks if chunk.any())


def agreement(labels: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Dice of both classes; the tumour is part of the liver, as in LiTS."""
    return {
        "liver": overlap(labels > 0, reference > 0).dice,
        "tumour": overlap(labels == 2, reference == 2).dice,
    }


# ---- Times ---------------------------------------------------------------------------------------------------------


def rounds(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    turn: int = 1,
    seconds: float = 10.0,
    failed: Callable[[str, Exception], None],
) -> dict[str, list[int]]:
    """Nanoseconds of each call, one candidate after the other in every round, so that what drifts drifts for all.

    Parameters
    ----------
    calls : mapping
        Candidate to what is timed; it returns when its work is done.
    repeats : int
        Calls of each, if time allows.
    turn : int
        Calls in a row.
    seconds : float
        A candidate that has taken so long, and had three turns, has had enough.
    failed : callable
        Is told who raised what; that candidate is out, and has no times.
    """
    times: dict[str, list[int]] = {name: [] for name in calls}
    for number in range(math.ceil(repeats / turn)):
        for name in list(times):
            if number >= 3 and sum(times[name]) > seconds * 1e9:
                continue
            try:
                for _ in range(min(turn, repeats - number * turn)):
                    start = time.perf_counter_ns()
                    calls[name]()
                    times[name].append(time.perf_counter_ns() - start)
            except Exception as error:
                traceback.print_exc()
                failed(name, error)
                del times[name]
    return times


def summary(nanoseconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds; a percentile is a time that was measured, the next above."""
    ms = np.asarray(nanoseconds, np.float64) / 1e6
    p50, p99, p999 = (float(np.percentile(ms, q, method="higher")) for q in (50, 99, 99.9))
    return {
        "runs": len(ms),
        "min_ms": float(ms.min()),
        "median_ms": float(np.median(ms)),
        "p50_ms": p50,
        "p99_ms": p99,
        "p99.9_ms": p999,
        "max_ms": float(ms.max()),
    }


def summaries(times: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """A summary of each candidate, and how many times trtseg's median of the same rounds its median is."""
    found = {name: summary(samples) for name, samples in times.items() if samples}
    if "trtseg" in found:
        ours = found["trtseg"]["median_ms"]
        for one in found.values():
            one["times_trtseg"] = one["median_ms"] / ours
    return found


# ---- The floor -----------------------------------------------------------------------------------------------------


def flops(onnx_file: bytes) -> int:
    """Multiplications and additions of the convolutions of a net, for one slice."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(onnx_file)).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    pixels = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim[2:]] for v in values}
    weights = {w.name: math.prod(w.dims) for w in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):  # each weight once for each pixel, of the smaller side
            where = node.output[0] if node.op_type == "Conv" else node.input[0]
            total += 2 * weights[node.input[1]] * math.prod(pixels[where])
    return total


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


def floor(
    ct: Ct, labels: np.ndarray, batch: int, net_flops: Sequence[int], rate: dict[str, float]
) -> dict[str, float]:
    """Milliseconds that a volume cannot take less than: the longest of its terms, which overlap.

    From host memory to host memory (``host_ms``) these are the nets and the copies both ways; from GPU memory to GPU
    memory (``device_ms``) only the nets are left.

    Parameters
    ----------
    ct : Ct
        The volume.
    labels : uint8 [Z, Y, X]
        Its labels, which say for which chunks of ``batch`` slices the tumour net runs.
    batch : int
        See there.
    net_flops : (int, int)
        Of the liver net and the tumour net, a slice.
    rate : dict
        As `rates` gives it.
    """
    work = net_flops[0] * len(ct.hu) + net_flops[1] * slices_with_net(labels, batch)
    terms = {
        "nets_ms": 1e3 * work / rate["matmul_flops"],
        "to_gpu_ms": 1e3 * ct.hu.nbytes / rate["to_gpu_bytes"],
        "from_gpu_ms": 1e3 * ct.hu.size / rate["from_gpu_bytes"],  # a byte a label
    }
    return {
        **terms,
        "host_ms": max(terms.values()),
        "device_ms": terms["nets_ms"],
        "sum_ms": sum(terms.values()),
    }
