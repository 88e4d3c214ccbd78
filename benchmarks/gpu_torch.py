"""The cascade in PyTorch, with which `benchmarks.gpu` compares trtseg.

It works as trtseg does, as fast as PyTorch's own means make it: channels-last nets, pinned memory, and two lanes with a
stream each, of which one copies while the other computes. It skips the tumour net for chunks without liver, too. So the
difference that is left is that of nets, ops and launches.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trtseg.fit import Fit
from trtseg.models import ModelFiles
from trtseg.spec import CascadeSpec

LANES = 2
Net = Callable[[Tensor], Tensor]
_cuda: Any = torch.cuda  # it has no types


def comparisons(files: ModelFiles, fit: Fit) -> dict[str, Callable[[int], Any]]:
    """Each candidate's name, and how it is opened for a batch of slices that lie on the nets' grid as ``fit`` says."""
    half = torch.float16

    @functools.cache
    def nets() -> list[Any]:
        return torch_nets(files, "cuda", half)

    def of(change: Callable[[Any], Net], **options: Any) -> Callable[[int], Any]:
        options = {"device": "cuda", "dtype": half, **options}
        return lambda batch: TorchCascade(files.spec, fit, [change(net) for net in nets()], batch, **options)

    compile_net = functools.cache(lambda net: torch.compile(net, dynamic=False))
    return {
        "eager-fp16-host": of(lambda net: through_host(net, half), device="cpu", dtype=torch.float32),
        "eager-fp16": of(lambda net: net),
        "torch-graphs": of(lambda net: net, graphs=True),
        "torch-compile": of(compile_net, compiled=True, graphs=True),
    }


def torch_nets(files: ModelFiles, device: str, dtype: torch.dtype) -> list[Any]:
    """A model's own nets in PyTorch, channels last."""
    from benchmarks.peers.nets import torch_net  # needs onnx

    # Weights that are made in inference mode would stay tensors that torch.compile may not take.
    with torch.inference_mode(False):
        nets: list[Any] = [
            torch_net(files.read(f"{net.role}.onnx")).requires_grad_(False) for net in files.spec.nets
        ]
        return [net.to(device, dtype).to(memory_format=torch.channels_last) for net in nets]


def through_host(net: Net, dtype: torch.dtype) -> Net:
    """A net on the GPU for input on the host, there and back, as where NumPy is between the nets."""
    return lambda x: net(x.to("cuda", dtype)).float().cpu()


def _ops(spec: CascadeSpec, fit: Fit, dtype: torch.dtype) -> list[Callable[..., Any]]:
    """``prepare``, ``gate`` and ``label``, for fits of whole numbers of pixels a net pixel."""
    liver, tumour = spec.nets
    whole = fit.offset == (0, 0) and fit.extent == fit.net
    if not whole or fit.step[0] != fit.step[1] or not fit.step[0].is_integer():
        raise ValueError(f"fit: got {fit}; the comparison is written for whole numbers of pixels a net pixel")
    step, thresholds = int(fit.step[0]), (liver.logit_threshold, tumour.logit_threshold)

    def windowed(hu: Tensor, window: tuple[float, float]) -> Tensor:
        return ((hu - window[0]) / (window[1] - window[0])).clamp(0, 1)

    def channels_last(x: Tensor) -> Tensor:
        """One channel [n, 1, H, W] with the strides of channels-last, by which PyTorch goes."""
        return x.to(dtype).reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)

    def prepare(hu: Tensor) -> tuple[Tensor, Tensor]:
        small = hu[:, None].float()
        if step > 1:
            small = functional.avg_pool2d(small, step).round()
        return small, channels_last(windowed(small, liver.window))

    def gate(l1: Tensor, small: Tensor) -> tuple[Tensor, Tensor]:
        mask = l1.float() > thresholds[0]
        return channels_last(torch.where(mask, windowed(small, tumour.window), 0.0)), mask.flatten(1).any(1)

    def label(l1: Tensor, l2: Tensor) -> Tensor:
        margins = torch.cat([l1.float() - thresholds[0], l2.float() - thresholds[1]], dim=1)
        if margins.shape[2:] != fit.native:
            margins = functional.interpolate(margins, fit.native, mode="bilinear", align_corners=False)
        positive = margins > 0
        return positive[:, 0].to(torch.uint8) + (positive[:, 0] & positive[:, 1])

    return [prepare, gate, label]


class TorchCascade:
    """Two nets with PyTorch's ops between them, for slices that lie on the nets' grid as ``fit`` says.

    Parameters
    ----------
    spec, fit : CascadeSpec, Fit
        Of the nets and the slices.
    nets : sequence of callables
        Both nets.
    batch : int
        Slices a chunk.
    device : str
        Where the ops run, ``cuda`` or ``cpu``; the nets take their input from there.
    dtype : torch.dtype
        Input of the nets.
    compiled, graphs : bool
        Whether the ops go through torch.compile; whether each half of a chunk is a CUDA graph.
    """

    @torch.inference_mode()
    def __init__(
        self,
        spec: CascadeSpec,
        fit: Fit,
        nets: Sequence[Net],
        batch: int,
        *,
        device: str,
        dtype: torch.dtype,
        compiled: bool = False,
        graphs: bool = False,
    ) -> None:
        ops = _ops(spec, fit, dtype)
        if compiled:
            ops = [torch.compile(op, dynamic=False) for op in ops]
        shape = (batch, *fit.native)
        self._lanes = [_Lane(nets, ops, shape, device, graphs=graphs) for _ in range(LANES)]
        self._batch = batch

    @torch.inference_mode()
    def run(self, hu: Any, out: Any) -> None:
        """Label slices ``hu`` int16 [Z, Y, X] into ``out`` uint8 [Z, Y, X]: NumPy, or both tensors on the GPU."""
        if isinstance(hu, np.ndarray):
            hu, out = torch.from_numpy(hu), torch.from_numpy(out)
        running: deque[_Lane] = deque()
        free, at_gate = deque(self._lanes), None
        for first in range(0, len(hu), self._batch):
            if at_gate is not None:
                at_gate.go_on()
            if not free:
                running[0].finish()
                free.append(running.popleft())
            at_gate = free.popleft()
            at_gate.start(hu[first : first + self._batch], out[first : first + self._batch])
            running.append(at_gate)
        if at_gate is not None:
            at_gate.go_on()
        for lane in running:
            lane.finish()


class _Lane:
    """One chunk at a time: a stream and buffers."""

    def __init__(
        self,
        nets: Sequence[Net],
        ops: Sequence[Any],
        shape: tuple[int, ...],
        device: str,
        *,
        graphs: bool,
    ) -> None:
        gpu = device == "cuda"
        self._stream = _cuda.Stream() if gpu else None
        self._hu_host = torch.zeros(shape, dtype=torch.int16, pin_memory=gpu)
        self._hu = torch.zeros(shape, dtype=torch.int16, device=device)
        self._liver_host = torch.zeros(shape[0], dtype=torch.bool, pin_memory=gpu)
        self._labels_host = torch.zeros(shape, dtype=torch.uint8, pin_memory=gpu)
        prepare, gate, label = ops
        net1, net2 = nets

        def first(hu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            small, x1 = prepare(hu)
            l1 = net1(x1)
            return l1, *gate(l1, small)

        def rest(l1: Tensor, x2: Tensor) -> Tensor:
            labels: Tensor = label(l1, net2(x2))
            return labels

        self._first: Callable[..., Any] = first
        self._rest: Callable[..., Any] = rest
        if gpu:
            _cuda.synchronize()  # the buffers are 0 now
        if graphs:
            self._first, (l1, x2, _) = _captured(first, (self._hu,), self._stream)
            self._rest, _ = _captured(rest, (l1, x2), self._stream)

    def start(self, hu: Tensor, out: Tensor) -> None:
        """Take a chunk in, as far as the gate."""
        self._out, n = out, len(hu)
        if self._stream is not None and hu.is_cuda:
            self._stream.wait_stream(_cuda.current_stream())
        with self._on_stream():
            if not hu.is_cuda:
                self._hu_host[:n].copy_(hu)
                hu = self._hu_host[:n]
            self._hu[:n].copy_(hu, non_blocking=True)
            self._l1, self._x2, liver = self._first(self._hu)
            self._liver_host.copy_(liver, non_blocking=True)

    def go_on(self) -> None:
        """Wait for the gate, then enqueue the rest."""
        out, n = self._out, len(self._out)
        self._wait()
        with self._on_stream():
            self._empty = not bool(self._liver_host[:n].any())
            if not self._empty:
                labels = self._rest(self._l1, self._x2)[:n]
                (out if out.is_cuda else self._labels_host[:n]).copy_(labels, non_blocking=True)
            elif out.is_cuda:
                out.zero_()

    def finish(self) -> None:
        """Hand the labels over."""
        if self._out.is_cuda:
            _cuda.current_stream().wait_stream(self._stream)
        elif self._empty:
            self._out.zero_()
        else:
            self._wait()
            self._out.copy_(self._labels_host[: len(self._out)])

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _on_stream(self) -> Any:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _captured(function: Callable[..., Any], arguments: tuple[Tensor, ...], stream: Any) -> tuple[Any, Any]:
    """Replay a function as a CUDA graph, always with these arguments' memory; its results, always in one memory."""
    with torch.cuda.stream(stream):
        for _ in range(3):  # the set-up of a first run cannot be captured
            function(*arguments)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = function(*arguments)

    def replay(*_: Tensor) -> Any:
        graph.replay()
        return results

    return replay, results
