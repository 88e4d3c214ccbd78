"""What the tests of both cascades share: nets, slices and their labels by the oracle.

The nets are elementwise, so that NumPy, PyTorch and the oracle agree bit for bit. A backend runs them.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import tiny

from trtseg import reference
from trtseg.cascade.cpu import CpuCascade
from trtseg.cascade.gpu import CudaCascade
from trtseg.cuda.device import Resources, open_device
from trtseg.fit import Fit
from trtseg.spec import ModelSpec

SPACING = (1.1, 0.9)
BATCH = 4
SHAPE, SIZE = (24, 30), (16, 16)  # of slices, and of the nets: small, since kernels are slow on a played GPU
LIVER = tiny.spec("liver", threshold=0.6, size=SIZE)
TUMOUR, ONE_STEP = tiny.spec("tumour", size=SIZE), tiny.spec("one-step", size=SIZE)

#: Of each net, for each of its channels: the logit is ``a * x + b``. The tumour net calls blanked pixels tumour: the
#: liver mask must keep them out of the labels.
NETS = {
    "liver": ((40.0, -22.0),),
    "tumour": ((-40.0, 25.0),),
    "one-step": ((0.0, 0.0), (40.0, -22.0), (80.0, -46.0)),
}


def logits(role: str, x: np.ndarray) -> np.ndarray:
    a, b = (np.array(column, x.dtype).reshape(-1, 1, 1) for column in zip(*NETS[role], strict=True))
    return x * a + b


class CpuEngine:
    """A net in NumPy."""

    device, precision, batch, dtype = "cpu", "fp32", None, np.dtype(np.float32)
    runtime, side_by_side = "NumPy", 1

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def run(self, src: np.ndarray, dst: np.ndarray, stream: int = 0, *, wanted=None) -> None:
        dst[:] = logits(self.spec.role, src)
        if wanted is not None:
            dst[~np.broadcast_to(wanted[:, None], dst.shape)] = -65504


class CpuBackend:
    """Runs the nets on the CPU."""

    dtype = np.float32

    def engine(self, spec: ModelSpec, batch: int) -> Any:
        return CpuEngine(spec)

    def orders(self) -> Iterator[str]:
        yield "the only order"


class Nets:
    """Stands for `trtseg.engines.nvidia.nets.GpuNets`. ``context_bytes`` of GPU memory go with a slice of a batch."""

    def __init__(self, backend: Any, batch: int, specs: tuple[ModelSpec, ...], context_bytes: int) -> None:
        self.provenance = {"batch": batch}
        self._engine = lambda spec: backend.engine(spec, batch)
        self._specs, self._bytes = specs, context_bytes * batch

    def contexts(self) -> tuple[Any, ...]:
        engines = tuple(map(self._engine, self._specs))
        memory = Resources(open_device(0))
        if self._bytes:
            memory.array((self._bytes,), np.uint8)
        for engine in engines:
            engine.close = memory.close
        return engines

    def keep_compiled(self) -> None: ...

    def close(self) -> None: ...


class Hooked:
    """A backend whose engines call ``hook`` before they run."""

    def __init__(self, backend: Any, hook: Callable[[], None]) -> None:
        self._backend, self._hook, self.dtype = backend, hook, backend.dtype

    def engine(self, spec: ModelSpec, batch: int) -> Any:
        engine, hook = self._backend.engine(spec, batch), self._hook

        def run(*arguments: Any, run: Callable[..., None] = engine.run, **options: Any) -> None:
            hook()
            run(*arguments, **options)

        engine.run = run
        return engine


def cascade(backend: Any, batch: int = BATCH, specs: Any = (LIVER, TUMOUR), context_bytes: int = 0) -> Any:
    """A cascade of nets that a backend runs, to be closed."""
    if backend.dtype == np.float32:
        return CpuCascade(*(backend.engine(spec, batch) for spec in specs))
    return CudaCascade(open_device(0), lambda n: Nets(backend, n, specs, context_bytes), batch)


def opened(*arguments: Any, **options: Any) -> Any:
    """The same, closed at the end of ``with``."""
    return closing(cascade(*arguments, **options))


def ct(slices: int, seed: int = 0) -> np.ndarray:
    """Blobs in air: int16 [slices, 24, 30], every third slice, and a run of eight, without any."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    hu = np.full((slices, *SHAPE), -1000, np.int16)
    for z in range(slices):
        if z % 3 != 2 and not 8 <= z < 16:
            cy, cx, r = rng.uniform(7, 17), rng.uniform(10, 20), rng.uniform(4, 9)
            inside = np.hypot(y - cy, x - cx) < r
            hu[z][inside] = rng.integers(20, 160, np.count_nonzero(inside))
    return hu


def expected(hu: np.ndarray, dtype: Any = np.float16, fit: Fit | None = None) -> np.ndarray:
    """Labels of the two nets, by the oracle."""
    fit = fit or LIVER.fit_slice(hu.shape[1:], SPACING)
    l1, l2, _ = _by_the_oracle(hu, dtype, fit)
    return reference.label(l1, l2, (LIVER.logit_threshold, TUMOUR.logit_threshold), fit)[0]


def expected_logits(hu: np.ndarray, dtype: Any = np.float16) -> dict[int, np.ndarray]:
    """Logits of the tumour net on each slice with liver, by the oracle; on the CPU those beside liver pixels only."""
    l1, l2, pixels = _by_the_oracle(hu, dtype, LIVER.fit_slice(hu.shape[1:], SPACING))
    if dtype == np.float32:
        liver = np.pad(l1 > LIVER.logit_threshold, ((0, 0), (0, 0), (1, 1), (1, 1)))
        near = np.lib.stride_tricks.sliding_window_view(liver, (3, 3), axis=(2, 3)).any((4, 5))
        l2 = np.where(near, l2, -65504)
    return {z: l2[z, 0].astype(np.float16) for z in range(len(hu)) if pixels[z]}


def _by_the_oracle(hu: np.ndarray, dtype: Any, fit: Fit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hu_net, x1 = reference.prepare(hu, fit, LIVER.window, dtype)
    l1 = logits("liver", x1)
    x2, pixels = reference.gate(l1, hu_net, LIVER.logit_threshold, TUMOUR.window, dtype)
    return l1, logits("tumour", x2), pixels


def expected_of_one_step(hu: np.ndarray, dtype: Any = np.float16) -> np.ndarray:
    fit = ONE_STEP.fit_slice(hu.shape[1:], SPACING)
    _, x1 = reference.prepare(hu, fit, ONE_STEP.window, dtype)
    return reference.label3(logits("one-step", x1), fit)[0]


def in_threads(*calls: Callable[[], None]) -> None:
    """Call each in a thread of its own; an error in one of them is an error here."""
    failed: list[BaseException] = []

    def work(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    running = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if failed:
        raise failed[0]


def nines(hu: np.ndarray) -> np.ndarray:
    """Labels before they are made."""
    return np.full(hu.shape, 9, np.uint8)


class Broken(Exception):
    """Raised by an engine here."""
