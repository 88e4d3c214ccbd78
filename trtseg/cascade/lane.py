"""One chunk of slices at a time on its way through the nets on a GPU, launched as CUDA graphs."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtseg import _core
from trtseg.cuda.arrays import CudaArray
from trtseg.cuda.device import Device, Resources, download, upload
from trtseg.engines.base import GpuEngine
from trtseg.fit import Fit

# On the host or on the GPU.
Hu = NDArray[np.int16] | CudaArray
Labels = Any  # uint8

_Step = Callable[[], None]


class Lane:
    """Stream, buffers and graphs for one chunk at a time.

    A chunk is launched in two pieces, and the host looks at the gate between them. A lane is warmed up before it is
    used; without graphs (`record`) the steps of a piece are launched one by one.

    Parameters
    ----------
    device : Device
        Where; it must be current in every call.
    engines : tuple of GpuEngine
        ``(liver, tumour)``, or one ``one-step`` engine; no other lane uses them.
    fit : Fit
        Of the slices, which all have one shape.
    batch : int
        Slices in each run of the engines: the most that a chunk has.
    """

    def __init__(self, device: Device, engines: tuple[GpuEngine, ...], fit: Fit, batch: int) -> None:
        first, last = engines[0], engines[-1]
        self._engines, self._fit = engines, fit
        self.resources = own = Resources(device)
        self._stream, self._done, self._order = own.stream(), own.event(), _core.Event()
        self._hu_host = own.pinned((batch, *fit.native), np.int16)
        self._labels_host = own.pinned((batch, *fit.native), np.uint8)
        self._hu = own.array((batch, *fit.native), np.int16)
        self._hu_net = own.array((batch, *fit.net), np.int16)
        self._x1 = own.array((batch, 1, *fit.net), first.dtype)
        self._l1 = own.array((batch, first.spec.channels, *fit.net), first.dtype)
        self._labels = own.array((batch, *fit.native), np.uint8)
        self._counts = own.array((batch, 2), np.int32)
        if len(engines) == 2:
            self._x2 = own.array((batch, 1, *fit.net), last.dtype)
            self._l2 = own.array((batch, 1, *fit.net), last.dtype)
            self._pixels = own.array((batch,), np.int32)
            self._pixels_host = own.pinned((batch,), np.int32)
        self._graphs: dict[str, _core.Graph] = {}
        self._out: Labels | None = None
        self._empty = False  # no slice of the chunk has liver: all its labels are 0

    def warm_up(self) -> None:
        """Run all once: what is set up at the first run cannot be captured; and all rows hold numbers from now on."""
        for step in (self._upload, self._first_net, self._tumour_net, self._download):
            step()
        self._stream.synchronize()

    def record(self) -> bool:
        """Make all graphs, so that none is made once slices come in; False, and none, where an engine forbids it."""
        stream = self._stream.handle
        if not all(engine.capturable(stream) for engine in self._engines):
            return False
        for name, steps in self._pieces().items():
            with _no_garbage_collection:
                self._graphs[name] = _core.Graph.capture(stream, functools.partial(_call, steps))
        # The first launch takes a graph to the GPU; any numbers in the buffers will do.
        for graph in self._graphs.values():
            graph.launch(stream)
        self._stream.synchronize()
        return True

    @property
    def busy(self) -> bool:
        """Whether a chunk is on its way."""
        return self._out is not None

    def start(self, hu: Hu, out: Labels, after: tuple[int, ...]) -> None:
        """Take a chunk ``[n, Y, X]`` in, and launch it as far as the gate.

        ``out`` ``[n, Y, X]`` gets the labels. ``after`` are the streams whose work makes ``hu`` and last used ``out``,
        where these are on the GPU.
        """
        self._out = out
        stream = self._stream.handle
        if isinstance(hu, CudaArray) or isinstance(out, CudaArray):
            for other in after:
                self._order.wait_for(stream, other)
        if isinstance(hu, CudaArray):
            n, window = len(hu), self._engines[0].spec.window
            _core.prepare(hu, self._fit, window, self._hu_net[:n], self._x1[:n], stream=stream)
            self._launch("net")
        else:
            self._done.synchronize()  # the last chunk may not have been copied yet
            _core.copy(self._hu_host[: len(hu)], hu)
            self._launch("upload, net")
        self._done.record(self._stream)

    def go_on(self) -> None:
        """Launch the rest; waits for the gate."""
        out = self._out
        assert out is not None
        two = len(self._engines) == 2
        if two:
            self._done.synchronize()
            self._empty = not self._pixels_host[: len(out)].any()
        if isinstance(out, CudaArray):
            if two and not self._empty:
                self._launch("tumour net")
            self._label(out, len(out))
        elif not self._empty:
            self._launch("tumour net, labels" if two else "labels")
        self._done.record(self._stream)

    def finish(self, before: tuple[int, ...]) -> None:
        """Hand the labels over: on the host now, on the GPU to what the streams ``before`` are given from now on."""
        out, self._out = self._out, None
        assert out is not None
        if isinstance(out, CudaArray):
            for other in before:
                self._order.wait_for(other, self._stream.handle)
            return
        if self._empty:
            _core.clear(out)
            return
        self._done.synchronize()
        _core.copy(out, self._labels_host[: len(out)])

    def close(self) -> None:
        """Wait for what is on its way, then give back graphs, what they run, and the memory that this works on."""
        self.resources.synchronize()  # labels that stay on the GPU may not be there yet
        self._graphs.clear()
        self._engines = ()
        self.resources.free()
        del self._stream, self._done  # the last references: PyCUDA leaks them where the device is not current

    def _launch(self, name: str) -> None:
        if self._graphs:
            self._graphs[name].launch(self._stream.handle)
        else:
            _call(self._pieces()[name])

    def _pieces(self) -> dict[str, tuple[_Step, ...]]:
        """Steps that are launched at a time."""
        pieces: dict[str, tuple[_Step, ...]] = {
            "net": (self._first_net,),
            "upload, net": (self._upload, self._first_net),
        }
        if len(self._engines) == 2:
            pieces["tumour net"] = (self._tumour_net,)
            pieces["tumour net, labels"] = (self._tumour_net, self._download)
        else:
            pieces["labels"] = (self._download,)
        return pieces

    # ---- The steps; each enqueues on the lane's stream. ----

    def _upload(self) -> None:
        upload(self._hu, self._hu_host, self._stream)
        window = self._engines[0].spec.window
        _core.prepare(self._hu, self._fit, window, self._hu_net, self._x1, stream=self._stream.handle)

    def _first_net(self) -> None:
        first, last, stream = self._engines[0], self._engines[-1], self._stream.handle
        first.run(self._x1, self._l1, stream)
        if len(self._engines) == 2:
            threshold, window = first.spec.logit_threshold, last.spec.window
            _core.gate(self._l1, self._hu_net, threshold, window, self._x2, self._pixels, stream=stream)
            download(self._pixels_host, self._pixels, self._stream)

    def _tumour_net(self) -> None:
        if len(self._engines) == 2:
            self._engines[1].run(self._x2, self._l2, self._stream.handle)

    def _label(self, out: CudaArray, n: int) -> None:
        stream, counts = self._stream.handle, self._counts[:n]
        if len(self._engines) == 2:
            thresholds = (self._engines[0].spec.logit_threshold, self._engines[1].spec.logit_threshold)
            # `label` never looks at the tumour logits of a slice without liver: old ones change nothing
            _core.label(self._l1[:n], self._l2[:n], thresholds, self._fit, out, counts, stream=stream)
        else:
            _core.label3(self._l1[:n], self._fit, out, counts, stream=stream)

    def _download(self) -> None:
        self._label(self._labels, len(self._labels))
        download(self._labels_host, self._labels, self._stream)


def _call(steps: tuple[_Step, ...]) -> None:
    for step in steps:
        step()


class _NoGarbageCollection:
    """What it frees may wait for the GPU, which a thread must not do while it records a graph.

    It is off for all of the process, so it comes back when the last thread has left.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._was_on = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._was_on:
                gc.enable()


_no_garbage_collection = _NoGarbageCollection()
