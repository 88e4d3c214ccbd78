"""The cascade in PyTorch: what `benchmarks.gpu` compares trtseg with.

It does what trtseg does, as fast as PyTorch's own means make it: channels-last nets, pinned memory, and two lanes with
a stream each, of which one copies while the other computes. It skips the tumour net for chunks without liver, too. So
the difference that is left is that of nets, ops and launches. FP32 is PyTorch's default: convolutions in TF32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trtseg.fit import Fit
from trtseg.spec import CascadeSpec

LANES = 2

Net = Callable[[Tensor], Tensor]

_cuda: Any = torch.cuda  # it has no types


def windowed(hu: Tensor, window: tuple[float, float]) -> Tensor:
    """HU as the nets see them, 0 to 1."""
    return ((hu - window[0]) / (window[1] - window[0])).clamp(0, 1)


def channels_last(x: Tensor) -> Tensor:
    """One channel [n, 1, H, W] with the strides of channels-last, which PyTorch must see to keep to it."""
    return x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)


class Prepare(nn.Module):
    """``hu`` int16 [n, Y, X] -> HU float32 [n, 1, H, W] on the net's grid, and the liver net's input."""

    def __init__(self, fit: Fit, window: tuple[float, float], dtype: torch.dtype) -> None:
        super().__init__()
        whole = fit.offset == (0, 0) and fit.extent == fit.net
        if not whole or fit.step[0] != fit.step[1] or not fit.step[0].is_integer():
            raise ValueError(
                f"fit: got {fit}; the comparison is written for whole numbers of pixels a net pixel"
            )
        self.step, self.window, self.dtype = int(fit.step[0]), window, dtype

    def forward(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over the area, rounded as trtseg does, and window."""
        small = hu[:, None].float()
        if self.step > 1:
            small = functional.avg_pool2d(small, self.step).round()
        return small, channels_last(windowed(small, self.window).to(self.dtype))


class Gate(nn.Module):
    """``l1`` [n, 1, H, W] and HU -> the tumour net's input, and of each slice whether it has liver."""

    def __init__(self, threshold: float, window: tuple[float, float], dtype: torch.dtype) -> None:
        super().__init__()
        self.threshold, self.window, self.dtype = threshold, window, dtype

    def forward(self, l1: Tensor, small: Tensor) -> tuple[Tensor, Tensor]:
        """Threshold, window, mask."""
        liver = l1.float() > self.threshold
        x2 = torch.where(liver, windowed(small, self.window), 0.0)
        return channels_last(x2.to(self.dtype)), liver.flatten(1).any(1)


class Label(nn.Module):
    """``l1``, ``l2`` [n, 1, H, W] -> labels uint8 [n, Y, X]."""

    def __init__(self, thresholds: tuple[float, float], shape: tuple[int, int]) -> None:
        super().__init__()
        self.thresholds, self.shape = thresholds, shape

    def forward(self, l1: Tensor, l2: Tensor) -> Tensor:
        """Margins, bilinear to the slice's own grid, threshold."""
        margins = torch.cat([l1.float() - self.thresholds[0], l2.float() - self.thresholds[1]], dim=1)
        if margins.shape[2:] != self.shape:
            margins = functional.interpolate(margins, self.shape, mode="bilinear", align_corners=False)
        positive = margins > 0
        return positive[:, 0].to(torch.uint8) + (positive[:, 0] & positive[:, 1])


class TorchCascade:
    """Two nets with PyTorch's ops between them, for slices of one shape.

    Parameters
    ----------
    spec : CascadeSpec
        Of the liver net and the tumour net.
    open_nets : callable
        Gives both nets for a lane's stream (None on the CPU).
    shape, spacing : (int, int), (float, float)
        Of the slices.
    batch : int
        Slices a chunk.
    device : str
        Where all but the nets is done, ``cuda`` or ``cpu``; the nets take their input from there.
    dtype : torch.dtype
        What the nets take.
    compiled : bool
        Whether the ops go through torch.compile, as the nets then should.
    graphs : bool
        Whether each half of a chunk, up to the gate and behind it, is one CUDA graph.
    """

    @torch.inference_mode()
    def __init__(
        self,
        spec: CascadeSpec,
        open_nets: Callable[[Any], Sequence[Net]],
        shape: tuple[int, int],
        spacing: tuple[float, float],
        batch: int,
        *,
        device: str,
        dtype: torch.dtype,
        compiled: bool = False,
        graphs: bool = False,
    ) -> None:
        liver, tumour = spec.nets
        thresholds = liver.logit_threshold, tumour.logit_threshold
        ops: list[Any] = [
            Prepare(liver.fit_slice(shape, spacing), liver.window, dtype),
            Gate(thresholds[0], tumour.window, dtype),
            Label(thresholds, shape),
        ]
        if compiled:
            ops = [torch.compile(op, dynamic=False) for op in ops]
        self._batch = batch
        self._lanes = [_Lane(open_nets, ops, (batch, *shape), device, graphs=graphs) for _ in range(LANES)]

    @torch.inference_mode()
    def run(self, hu: Any, out: Any) -> None:
        """Label slices ``hu`` int16 [Z, Y, X] into ``out`` uint8 [Z, Y, X]: NumPy, or both tensors on the GPU."""
        if isinstance(hu, np.ndarray):
            hu, out = torch.from_numpy(hu), torch.from_numpy(out)
        started: list[_Lane] = []
        firsts = range(0, len(hu), self._batch)
        for number, first in enumerate(firsts):
            lane = self._lanes[number % LANES]
            lane.finish()
            lane.start(hu[first : first + self._batch], out[first : first + self._batch])
            started.append(lane)
            if len(started) == LANES:  # the lane before: its gate is open by now
                started.pop(0).go_on()
        for lane in started:
            lane.go_on()
        for number in range(len(firsts), len(firsts) + LANES):  # the oldest first
            self._lanes[number % LANES].finish()


class _Lane:
    """One chunk at a time: a stream and buffers."""

    def __init__(
        self,
        open_nets: Callable[[Any], Sequence[Net]],
        ops: Sequence[Any],
        shape: tuple[int, int, int],
        device: str,
        *,
        graphs: bool,
    ) -> None:
        self._gpu = device == "cuda"
        self._stream = _cuda.Stream() if self._gpu else None
        self._done: Any = _cuda.Event() if self._gpu else _NoEvent()
        self._hu_host = torch.zeros(shape, dtype=torch.int16, pin_memory=self._gpu)
        self._hu = torch.zeros(shape, dtype=torch.int16, device=device)
        self._liver_host = torch.zeros(shape[0], dtype=torch.bool, pin_memory=self._gpu)
        self._labels_host = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._gpu)
        self._out: Tensor | None = None
        prepare, gate, label = ops
        net1, net2 = open_nets(self._stream)

        def first(hu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            small, x1 = prepare(hu)
            l1 = net1(x1)
            return l1, *gate(l1, small)

        def rest(l1: Tensor, x2: Tensor) -> Tensor:
            labels: Tensor = label(l1, net2(x2))
            return labels

        self._first: Callable[..., Any] = first
        self._rest: Callable[..., Any] = rest
        if self._gpu:
            torch.cuda.synchronize()  # the buffers are 0 now
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
            self._done.record()

    def go_on(self) -> None:
        """Enqueue the rest; waits for the gate."""
        out = self._out
        assert out is not None
        n = len(out)
        self._done.synchronize()
        with self._on_stream():
            self._empty = not bool(self._liver_host[:n].any())
            if not self._empty:
                labels = self._rest(self._l1, self._x2)[:n]
                (out if out.is_cuda else self._labels_host[:n]).copy_(labels, non_blocking=True)
            elif out.is_cuda:
                out.zero_()
            self._done.record()

    def finish(self) -> None:
        """Hand the labels over, if there are any."""
        out, self._out = self._out, None
        if out is None:
            return
        if out.is_cuda:
            _cuda.current_stream().wait_stream(self._stream)
            return
        self._done.synchronize()
        if self._empty:
            out.zero_()
        else:
            out.copy_(self._labels_host[: len(out)])

    def _on_stream(self) -> Any:
        return torch.cuda.stream(self._stream) if self._gpu else contextlib.nullcontext()


class _NoEvent:
    """The CPU has done what it was told when the call returns."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...


def _captured(function: Callable[..., Any], arguments: tuple[Tensor, ...], stream: Any) -> tuple[Any, Any]:
    """Replay a function as a CUDA graph, always with these arguments' memory; its results, always in one memory."""
    with torch.cuda.stream(stream):
        for _ in range(3):  # what libraries do at their first run cannot be captured
            function(*arguments)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = function(*arguments)

    def replay(*_: Tensor) -> Any:
        graph.replay()
        return results

    return replay, results


def through_host(net: Net, dtype: torch.dtype) -> Net:
    """A net on the GPU for input on the host: both ways in one piece, as where NumPy is between the nets."""
    return lambda x: net(x.to("cuda", dtype)).float().cpu()
