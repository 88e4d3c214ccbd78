"""The test bodies of the CUDA cascade, for a GPU that is played (tests/cuda_shim) and a real one (tests/gpu).

The nets are elementwise, so that NumPy, PyTorch and the oracle agree bit for bit in FP16. A backend runs them.
"""

import gc
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny

from trtseg import reference
from trtseg.cascade.gpu import CudaCascade
from trtseg.cuda.arrays import CudaArray
from trtseg.cuda.device import Resources, open_device
from trtseg.spec import ModelSpec

SPACING = (1.1, 0.9)
BATCH = 4
LIVER, TUMOUR, ONE_STEP = tiny.spec("liver", threshold=0.6), tiny.spec("tumour"), tiny.spec("one-step")

#: Of each net, for each of its channels: the logit is ``a * x + b``. What was blanked is tumour for the tumour net: the
#: mask must keep it out.
NETS = {
    "liver": ((40.0, -22.0),),
    "tumour": ((-40.0, 25.0),),
    "one-step": ((0.0, 0.0), (40.0, -22.0), (80.0, -46.0)),
}


class Nets:
    """What `trtseg.engines.nvidia.open_nets` gives. ``context_bytes`` of GPU memory go with each slice of a batch."""

    def __init__(
        self, backend: Any, batch: int, specs: tuple[ModelSpec, ...], context_bytes: int = 0
    ) -> None:
        self.batch, self.provenance = batch, {"batch": batch}
        self._backend, self._specs, self._bytes = backend, specs, context_bytes

    def contexts(self) -> tuple[Any, ...]:
        engines = tuple(self._backend.engine(spec, self.batch) for spec in self._specs)
        if self._bytes:
            engines[0].keeps = Resources(open_device(0)).array((self._bytes * self.batch,), np.uint8)
        return engines

    def keep_compiled(self) -> None:
        pass


class Hooked:
    """A backend with engines that call ``hook`` before they run."""

    def __init__(self, backend: Any, hook: Callable[[], None]) -> None:
        self._backend, self._hook = backend, hook

    def engine(self, spec: ModelSpec, batch: int) -> Any:
        engine, hook = self._backend.engine(spec, batch), self._hook

        def run(*arguments: Any, run: Callable[..., None] = engine.run) -> None:
            hook()
            run(*arguments)

        engine.run = run
        return engine


def cascade(backend: Any, batch: int = BATCH, specs: Any = (LIVER, TUMOUR), **options: Any) -> CudaCascade:
    return CudaCascade(open_device(0), lambda n: Nets(backend, n, specs, **options), batch)


def ct(slices: int, seed: int = 0) -> np.ndarray:
    """Blobs in air: int16 [slices, 70, 90], every third slice, and a run of eight, without any."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:70, :90]
    hu = np.full((slices, 70, 90), -1000, np.int16)
    for z in range(slices):
        if z % 3 != 2 and not 8 <= z < 16:
            cy, cx, r = rng.uniform(20, 50), rng.uniform(30, 60), rng.uniform(10, 25)
            inside = np.hypot(y - cy, x - cx) < r
            hu[z][inside] = rng.integers(20, 160, np.count_nonzero(inside))
    return hu


def logits(role: str, x: np.ndarray) -> np.ndarray:
    a, b = (np.array(column, x.dtype).reshape(-1, 1, 1) for column in zip(*NETS[role], strict=True))
    return x * a + b


def expected(hu: np.ndarray) -> np.ndarray:
    """Labels of the two nets, by the oracle."""
    fit = LIVER.fit_slice(hu.shape[1:], SPACING)
    thresholds = LIVER.logit_threshold, TUMOUR.logit_threshold
    hu_net, x1 = reference.prepare(hu, fit, LIVER.window, np.float16)
    l1 = logits("liver", x1)
    x2, _ = reference.gate(l1, hu_net, thresholds[0], TUMOUR.window, np.float16)
    return reference.label(l1, logits("tumour", x2), thresholds, fit)[0]


def expected_of_one_step(hu: np.ndarray) -> np.ndarray:
    fit = ONE_STEP.fit_slice(hu.shape[1:], SPACING)
    _, x1 = reference.prepare(hu, fit, ONE_STEP.window, np.float16)
    return reference.label3(logits("one-step", x1), fit)[0]


def in_threads(*calls: Callable[[], None]) -> None:
    """Call each in a thread of its own; an error in one is an error here."""
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
    """What labels are before they are made."""
    return np.full(hu.shape, 9, np.uint8)


# ---- The cases. ----------------------------------------------------------------------------------------------------


def case_equals_oracle(backend: Any) -> None:
    """One chunk, an exact number of chunks, a rest, many."""
    one = cascade(backend)
    for order in backend.orders():
        for slices in (1, BATCH - 1, BATCH, 2 * BATCH, 5 * BATCH + 3):
            hu = ct(slices)
            told: list[float] = []
            labels, _ = one.run(hu, SPACING, progress=told.append)
            assert (labels == expected(hu)).all(), (order, slices)
            assert told == sorted(told), told
            assert told[-1] == 1.0
            assert min(told) > 0
    assert set(np.unique(expected(ct(23)))) == {0, 1, 2}


def case_buffers_carry_nothing_over(backend: Any) -> None:
    """Other sizes in between, and inputs that change as soon as the call is over."""
    one = cascade(backend)
    for shape in ((9, 70, 90), (5, 90, 40), (9, 70, 90)):
        hu = np.ascontiguousarray(np.resize(ct(9), shape))
        given = hu.copy()
        labels, _ = one.run(given, SPACING)
        given[:] = 3000
        assert (labels == expected(hu)).all(), shape


def case_one_step(backend: Any) -> None:
    one, hu = cascade(backend, specs=(ONE_STEP,)), ct(2 * BATCH + 1)
    wanted = expected_of_one_step(hu)
    assert set(np.unique(wanted)) == {0, 1, 2}
    for order in backend.orders():
        labels, _ = one.run(hu, SPACING)
        assert (labels == wanted).all(), order
    _device_arrays(backend, one, hu, wanted)


def case_device_arrays(backend: Any) -> None:
    hu = ct(2 * BATCH + 3)
    _device_arrays(backend, cascade(backend), hu, expected(hu))


def _device_arrays(backend: Any, one: CudaCascade, hu: np.ndarray, wanted: np.ndarray) -> None:
    """A stream of the caller makes the slices, late, and uses the labels; nobody else waits for it."""
    for order in backend.orders():
        with backend.stream() as stream:
            source, out = stream.made_late(hu), stream.made_late(nines(hu))
            got, _ = one.run(source, SPACING, out, stream=stream.handle)
            assert got is out
            assert (stream.read(out) == wanted).all(), order
            on_host, _ = one.run(source, SPACING, stream=stream.handle)
            assert (on_host == wanted).all(), order
            out = stream.made_late(nines(hu))
            one.run(hu, SPACING, out, stream=stream.handle)
            assert (stream.read(out) == wanted).all(), order


def case_other_size_while_labels_are_on_their_way(backend: Any) -> None:
    """Labels that stay on the GPU, and a slice of another size at once."""
    one, hu, other = cascade(backend), ct(BATCH + 1), np.ascontiguousarray(ct(3)[:, ::2])
    for order in backend.orders():
        with backend.stream() as stream:
            out = stream.made_late(nines(hu))
            one.run(hu, SPACING, out, stream=stream.handle)
            labels, _ = one.run(other, SPACING)
            assert (labels == expected(other)).all(), order
            assert (stream.read(out) == expected(hu)).all(), order


def case_goes_while_labels_are_on_their_way(backend: Any) -> None:
    """Nobody refers to the cascade any more, on this thread or on another one; the labels come all the same."""
    hu = ct(2 * BATCH + 3)
    open_device(0)  # here
    for order in backend.orders():
        for elsewhere in (False, True):
            with backend.stream() as stream:
                source, out = stream.made_late(hu), stream.made_late(nines(hu))
                last = [cascade(backend)]
                last[0].run(source, SPACING, out, stream=stream.handle)
                if elsewhere:
                    in_threads(last.clear)
                else:
                    last.clear()
                assert (stream.read(out) == expected(hu)).all(), (order, elsewhere)


def case_arrays_name_their_stream(backend: Any) -> None:
    """A stream that only the arrays know makes them, late, and overwrites the slices as soon as it may."""
    hu = ct(2 * BATCH + 3)

    def named(array: CudaArray, stream: int) -> CudaArray:
        interface = array.__cuda_array_interface__ | {"stream": stream}
        return CudaArray.of(
            types.SimpleNamespace(__cuda_array_interface__=interface, owner=array), "array", array.dtype, 3
        )

    for order in backend.orders():
        with backend.stream() as maker, backend.stream() as user:
            source = named(maker.made_late(hu), maker.handle)
            out = named(maker.made_late(nines(hu)), maker.handle)
            cascade(backend).run(source, SPACING, out, stream=user.handle)
            maker.fill(source, 3000)
            assert (user.read(out) == expected(hu)).all(), order


def case_dlpack(backend: Any) -> None:
    """Arrays that have nothing but DLPack, made late on a stream of which only their library knows."""
    one, hu = cascade(backend), ct(2 * BATCH + 3)
    for order in backend.orders():
        with backend.stream() as maker, backend.stream() as user:
            source = one.view(maker.offered(hu), "hu", np.int16)
            out = one.view(maker.offered(nines(hu)), "out", np.uint8)
            assert not out.read_only
            one.run(source, SPACING, out, stream=user.handle)
            assert (user.read(out) == expected(hu)).all(), order


class Broken(Exception):
    """What an engine raises here."""


def case_error_in_set_up(backend: Any) -> None:
    """An engine raises at the first run of a lane, or while one of its graphs is recorded; then all is well."""
    left = 0

    def hook() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Broken

    hu, first_runs, recorded = ct(2 * BATCH), 4, 8
    wanted = expected(hu)

    def work(n: int) -> None:
        nonlocal left
        one = cascade(Hooked(backend, hook))
        left = n
        with pytest.raises(Broken):
            one.run(hu, SPACING)
        assert (one.run(hu, SPACING)[0] == wanted).all(), n
        one = cascade(Hooked(backend, hook))
        left = n
        with backend.stream() as stream:
            source, out = stream.made_late(hu), stream.made_late(nines(hu))
            with pytest.raises(Broken):
                one.run(source, SPACING, out, stream=stream.handle)
            one.run(source, SPACING, out, stream=stream.handle)
            assert (stream.read(out) == wanted).all(), n

    open_device(0)  # PyCUDA forgives the thread that does this what it forgives no other
    for _ in backend.orders():
        for n in range(1, first_runs + recorded + 1):
            in_threads(lambda n=n: work(n))


def case_threads(backend: Any) -> None:
    """Two cascades in two threads."""

    def work(seed: int) -> None:
        hu, one = ct(14, seed), cascade(backend)
        for _ in range(5):
            labels, _ = one.run(hu, SPACING)
            assert (labels == expected(hu)).all()

    in_threads(lambda: work(1), lambda: work(2))
    gc.collect()


def case_one_cascade_in_two_threads(backend: Any) -> None:
    """One at a time, as a `Segmenter` lets them; of two sizes, so that each closes what the other one made."""
    one, lock = cascade(backend), threading.Lock()

    def work(hu: np.ndarray) -> None:
        wanted = expected(hu)
        for _ in range(4):
            with lock:
                labels, _ = one.run(hu, SPACING)
            assert (labels == wanted).all()
            with backend.stream() as stream:
                source, out = stream.made_late(hu), stream.made_late(nines(hu))
                with lock:
                    one.run(source, SPACING, out, stream=stream.handle)
                assert (stream.read(out) == wanted).all()

    in_threads(lambda: work(ct(14, 1)), lambda: work(np.ascontiguousarray(ct(9, 2)[:, ::2])))


CASES: dict[str, Callable[[Any], None]] = {
    name.removeprefix("case_"): case for name, case in list(globals().items()) if name.startswith("case_")
}
