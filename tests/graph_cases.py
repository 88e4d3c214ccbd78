"""The test bodies of CUDA graphs, on a played GPU (tests/cuda_shim) and on a real GPU (tests/gpu).

A backend is one of op_cases.py whose option is a stream of its own. It also has ``stream()``, which makes another
stream, and ``fill(array, values)``.
"""

import threading
from typing import Any

import numpy as np
import pytest
from op_cases import GEOMETRIES, WINDOW, WINDOW2, Output, logits, slices

from trtseg import _core, reference
from trtseg.errors import ArgumentError


class Chain:
    """Two slices through prepare, gate and label."""

    fit = GEOMETRIES["anisotropic-odd"]
    l1 = logits((2, 1, *fit.net), np.float16)

    def __init__(self, backend: Any) -> None:
        self.backend, self.stream = backend, backend.options["stream"]
        self.hu = slices(2, self.fit.native)
        self.d_hu, self.d_l1 = backend.put(self.hu), backend.put(self.l1)
        self.outputs = [Output(backend, array.shape, array.dtype) for array in self.expected()]
        self.enqueue()  # kernels are loaded at their first launch, which a capture might not like
        self.check()

    def enqueue(self) -> None:
        hu_net, x1, x2, liver_voxels, labels, counts = (output.array for output in self.outputs)
        _core.prepare(self.d_hu, self.fit, WINDOW, hu_net, x1, stream=self.stream)
        _core.gate(self.d_l1, hu_net, 0.0, WINDOW2, x2, liver_voxels, stream=self.stream)
        _core.label(self.d_l1, self.d_l1, (0.0, 1.0), self.fit, labels, counts, stream=self.stream)

    def capture(self) -> _core.Graph:
        return _core.Graph.capture(self.stream, self.enqueue)

    def expected(self) -> tuple[np.ndarray, ...]:
        hu_net, x1 = reference.prepare(self.hu, self.fit, WINDOW, np.float16)
        x2, liver_voxels = reference.gate(self.l1, hu_net, 0.0, WINDOW2, np.float16)
        return (hu_net, x1, x2, liver_voxels, *reference.label(self.l1, self.l1, (0.0, 1.0), self.fit))

    def fill(self, seed: int) -> None:
        self.hu = slices(2, self.fit.native, seed)
        self.backend.fill(self.d_hu, self.hu)

    def check(self) -> None:
        for output, expected in zip(self.outputs, self.expected(), strict=True):
            output.check(expected)

    def check_that_it_works(self) -> None:
        """The stream can be used, and recorded, as if nothing had been."""
        self.fill(11)
        self.enqueue()
        self.check()
        graph = self.capture()
        self.fill(12)
        graph.launch(self.stream)
        self.check()


def replayed_on_new_data(backend: Any) -> None:
    """On its stream, then on another stream and by another thread."""
    chain = Chain(backend)
    chain.fill(1)
    graph = chain.capture()
    assert graph.nodes == 1 + 2 + 2  # gate and label clear their counters
    with pytest.raises(AssertionError):
        chain.check()  # it has been recorded, not run
    for seed in (1, 2, 2):  # counters must start from 0 each time
        chain.fill(seed)
        graph.launch(chain.stream)
        chain.check()
    other = backend.stream()
    chain.fill(3)
    backend.get(chain.d_hu)  # waits for it
    thread = threading.Thread(target=graph.launch, args=(other.handle,))
    thread.start()
    thread.join()
    other.synchronize()
    chain.check()


def an_exception_leaves_as_it_is_and_nothing_behind(backend: Any) -> None:
    chain, thrown = Chain(backend), RuntimeError("mine")

    def enqueue() -> None:
        chain.enqueue()
        raise thrown

    for _ in range(2):
        with pytest.raises(RuntimeError) as caught:
            _core.Graph.capture(chain.stream, enqueue)
        assert caught.value is thrown
    chain.check_that_it_works()


def a_default_stream_cannot_be_recorded(backend: Any) -> None:
    for stream in (0, 1, 2):
        with pytest.raises(ArgumentError, match="stream: got the default stream, expected one of your own: "):
            _core.Graph.capture(stream, lambda: None)


CASES = {
    case.__name__: case
    for case in (
        replayed_on_new_data,
        an_exception_leaves_as_it_is_and_nothing_behind,
        a_default_stream_cannot_be_recorded,
    )
}
