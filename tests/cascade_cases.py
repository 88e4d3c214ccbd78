"""The test bodies of both cascades: on the CPU, on a played GPU (tests/cuda_shim) and on a real GPU (tests/gpu).

The nets are elementwise, so that NumPy, PyTorch and the oracle agree bit for bit. A backend runs them.
"""

import threading
import types
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import tiny

from trtseg import reference
from trtseg.cascade.cpu import Cascade
from trtseg.cascade.gpu import LANES, CudaCascade
from trtseg.cuda.arrays import CudaArray
from trtseg.cuda.device import Resources, open_device
from trtseg.errors import ArgumentError, DeviceError
from trtseg.spec import ModelSpec

SPACING = (1.1, 0.9)
BATCH = 4
SHAPE, SIZE = (40, 52), (32, 32)  # of slices, and of the nets: small, since kernels are slow on a played GPU
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

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def run(self, src: np.ndarray, dst: np.ndarray, stream: int = 0) -> None:
        dst[:] = logits(self.spec.role, src)


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

        def run(*arguments: Any, run: Callable[..., None] = engine.run) -> None:
            hook()
            run(*arguments)

        engine.run = run
        return engine


def cascade(backend: Any, batch: int = BATCH, specs: Any = (LIVER, TUMOUR), context_bytes: int = 0) -> Any:
    """A cascade of nets that a backend runs, to be closed."""
    if backend.dtype == np.float32:
        return Cascade(*(backend.engine(spec, batch) for spec in specs))
    return CudaCascade(open_device(0), lambda n: Nets(backend, n, specs, context_bytes), batch)


def opened(*arguments: Any, **options: Any) -> Any:
    """The same, closed at the end of ``with``."""
    return closing(cascade(*arguments, **options))


def ct(slices: int, seed: int = 0) -> np.ndarray:
    """Blobs in air: int16 [slices, 40, 52], every third slice, and a run of eight, without any."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    hu = np.full((slices, *SHAPE), -1000, np.int16)
    for z in range(slices):
        if z % 3 != 2 and not 8 <= z < 16:
            cy, cx, r = rng.uniform(12, 28), rng.uniform(18, 34), rng.uniform(6, 14)
            inside = np.hypot(y - cy, x - cx) < r
            hu[z][inside] = rng.integers(20, 160, np.count_nonzero(inside))
    return hu


def expected(hu: np.ndarray, dtype: Any = np.float16) -> np.ndarray:
    """Labels of the two nets, by the oracle."""
    fit = LIVER.fit_slice(hu.shape[1:], SPACING)
    thresholds = LIVER.logit_threshold, TUMOUR.logit_threshold
    hu_net, x1 = reference.prepare(hu, fit, LIVER.window, dtype)
    l1 = logits("liver", x1)
    x2, _ = reference.gate(l1, hu_net, thresholds[0], TUMOUR.window, dtype)
    return reference.label(l1, logits("tumour", x2), thresholds, fit)[0]


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


# ---- The cases that both cascades must pass. -----------------------------------------------------------------------


def both_run_equals_oracle(backend: Any) -> None:
    """One chunk, an exact number of chunks, a rest, many."""
    with opened(backend) as one:
        for order in backend.orders():
            for slices in (1, BATCH - 1, BATCH, 2 * BATCH, 5 * BATCH + 3):
                hu, told = ct(slices), []
                labels, timings = one.run(hu, SPACING, progress=lambda _, done, told=told: told.append(done))
                assert (labels == expected(hu, backend.dtype)).all(), (order, slices)
                assert told == sorted(told), told
                assert told[-1] == 1.0
                assert min(told) > 0
                assert min(timings.values()) >= 0
    assert set(np.unique(expected(ct(23), backend.dtype))) == {0, 1, 2}


def both_push(backend: Any) -> None:
    """Slices one by one, several or none at a time: each label comes once, in order, as soon as it must."""
    for batch, behind in ((1, 0), (BATCH, LANES * BATCH if backend.dtype == np.float16 else 0)):
        with opened(backend, batch) as one:
            for _ in backend.orders():
                for sizes in ([1] * 13, [3, 5, 0, 1], [BATCH] * 3, [22]):
                    hu = ct(sum(sizes))
                    feed, pieces = one.begin(one.place(hu, SPACING)), []
                    for n, last in zip(sizes, accumulate(sizes), strict=True):
                        given = hu[last - n : last].copy()
                        pieces += feed.push(given)
                        given[:] = 3000
                        assert last - sum(len(piece) for _, piece in pieces) <= behind
                    pieces += feed.finish()
                    assert [first for first, _ in pieces] == [0, *accumulate(len(p) for _, p in pieces)][:-1]
                    labels = np.concatenate([piece for _, piece in pieces])
                    assert (labels == expected(hu, backend.dtype)).all()


def both_push_into_memory_of_the_caller(backend: Any) -> None:
    with opened(backend) as one:
        hu = ct(2 * BATCH + 3)
        out, pieces = nines(hu), []
        feed = one.begin(one.place(hu, SPACING))
        for z in range(0, len(hu), 3):
            pieces += feed.push(hu[z : z + 3], out[z : z + 3])
        pieces += feed.finish()
        assert (out == expected(hu, backend.dtype)).all()
        for first, piece in pieces:
            assert np.shares_memory(piece, out[first : first + len(piece)])


def both_one_step(backend: Any) -> None:
    hu = ct(2 * BATCH + 1)
    wanted = expected_of_one_step(hu, backend.dtype)
    assert set(np.unique(wanted)) == {0, 1, 2}
    with opened(backend, specs=(ONE_STEP,)) as one:
        for order in backend.orders():
            assert (one.run(hu, SPACING)[0] == wanted).all(), order
        assert [name for name in one.stages(hu[:2], SPACING) if "copy" not in name] == [
            "prepare",
            "one-step net",
            "label",
        ]


def both_buffers_carry_nothing_over(backend: Any) -> None:
    """Other sizes in between, and inputs that change as soon as the call is over."""
    with opened(backend) as one:
        for shape in ((9, 40, 52), (5, 52, 24), (9, 40, 52)):
            hu = np.ascontiguousarray(np.resize(ct(9), shape))
            given = hu.copy()
            labels, _ = one.run(given, SPACING)
            given[:] = 3000
            assert (labels == expected(hu, backend.dtype)).all(), shape


def both_a_feed_ends(backend: Any) -> None:
    """By `finish`, `close`, another feed, an error or the cascade's end; then it takes no slices, and others do."""
    hu, fail = ct(3 * BATCH + 1), False

    def hook() -> None:
        if fail:
            raise Broken

    class Unrecorded(Hooked):  # so that each run calls the hook
        def engine(self, spec: ModelSpec, batch: int) -> Any:
            engine = super().engine(spec, batch)
            engine.capturable = lambda stream: False
            return engine

    def begun() -> Any:
        feed = one.begin(one.place(hu, SPACING))
        feed.push(hu[: 2 * BATCH + 1])
        return feed

    with opened(Unrecorded(backend, hook)) as one:
        for end in (lambda feed: feed.finish(), lambda feed: feed.close(), lambda _: begun()):
            feed = begun()
            end(feed)
            for call in (lambda feed=feed: feed.push(hu[:1]), feed.finish):
                with pytest.raises(ArgumentError, match="push: got slices for a feed that has ended; begin"):
                    call()
            feed.close()
            assert (one.run(hu, SPACING)[0] == expected(hu, backend.dtype)).all()
        feed = begun()
        with pytest.raises(ArgumentError, match=r"hu: got shape \(2, 40, 42\); expected \[n, 40, 52\]"):
            feed.push(hu[:2, :, :42])
        with pytest.raises(ArgumentError, match=r"out: got shape \(1, 40, 52\); expected the shape of hu"):
            feed.push(hu[:2], nines(hu[:1]))
        feed.push(hu[2 * BATCH + 1 :])  # a wrong argument ends nothing
        fail = True
        with pytest.raises(Broken):
            feed.push(hu)
        fail = False
        with pytest.raises(ArgumentError, match="a feed that has ended"):
            feed.push(hu)
        assert (one.run(hu, SPACING)[0] == expected(hu, backend.dtype)).all()
        with pytest.raises(ArgumentError, match="spacing: got"):
            one.place(hu, (0.0, 1.0))
        feed = begun()
    for call in (lambda: feed.push(hu), lambda: one.run(hu, SPACING)):
        with pytest.raises(
            (ArgumentError, DeviceError), match=r"a feed that has ended|cascade that is closed"
        ):
            call()
    one.close()


# ---- The cases of a GPU. -------------------------------------------------------------------------------------------


def case_device_arrays(backend: Any) -> None:
    """A stream of the caller makes the slices, late, and uses the labels; nobody else waits for it."""
    hu = ct(2 * BATCH + 3)
    for specs, wanted in (((LIVER, TUMOUR), expected(hu)), ((ONE_STEP,), expected_of_one_step(hu))):
        with opened(backend, specs=specs) as one:
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


def case_push_device_arrays(backend: Any) -> None:
    """Fewer slices at a time than a batch, each in arrays of its own; a feed keeps to one place."""
    with opened(backend) as one:
        hu = ct(2 * BATCH + 3)
        for order in backend.orders():
            with backend.stream() as stream:
                feed, outs = one.begin(one.place(hu, SPACING), stream=stream.handle), []
                for z in range(0, len(hu), 3):
                    outs.append(stream.made_late(nines(hu[z : z + 3])))
                    feed.push(stream.made_late(hu[z : z + 3]), outs[-1])
                with pytest.raises(ArgumentError, match="hu, out: got arrays on another device than in the"):
                    feed.push(hu[:2], outs[-1])
                feed.finish()
                labels = np.concatenate([stream.read(out) for out in outs])
                assert (labels == expected(hu)).all(), order


def case_ends_while_labels_are_on_their_way(backend: Any) -> None:
    """Slices of another size come, or the cascade is closed, also on another thread: the labels come all the same."""
    hu, other = ct(2 * BATCH + 3), np.ascontiguousarray(ct(3)[:, ::2])

    def another_size(one: Any) -> None:
        assert (one.run(other, SPACING)[0] == expected(other)).all()

    for order in backend.orders():
        for end in (another_size, CudaCascade.close, lambda one: in_threads(one.close)):
            with backend.stream() as stream, opened(backend) as one:
                source, out = stream.made_late(hu), stream.made_late(nines(hu))
                one.run(source, SPACING, out, stream=stream.handle)
                end(one)
                assert (stream.read(out) == expected(hu)).all(), order


def case_arrays_name_their_stream(backend: Any) -> None:
    """A stream that only the arrays know makes them, late, and overwrites the slices as soon as it may."""
    hu = ct(2 * BATCH + 3)

    def named(array: CudaArray, stream: int) -> CudaArray:
        interface = array.__cuda_array_interface__ | {"stream": stream}
        return CudaArray.of(
            types.SimpleNamespace(__cuda_array_interface__=interface, owner=array), "array", array.dtype, 3
        )

    for order in backend.orders():
        with backend.stream() as maker, backend.stream() as user, opened(backend) as one:
            source = named(maker.made_late(hu), maker.handle)
            out = named(maker.made_late(nines(hu)), maker.handle)
            one.run(source, SPACING, out, stream=user.handle)
            maker.fill(source, 3000)
            assert (user.read(out) == expected(hu)).all(), order


def case_dlpack(backend: Any) -> None:
    """Arrays that have nothing but DLPack, made late on a stream of which only their library knows."""
    hu = ct(2 * BATCH + 3)
    with opened(backend) as one:
        for order in backend.orders():
            with backend.stream() as maker, backend.stream() as user:
                source = one.view(maker.offered(hu), "hu", np.int16)
                out = one.view(maker.offered(nines(hu)), "out", np.uint8)
                assert not out.read_only
                one.run(source, SPACING, out, stream=user.handle)
                assert (user.read(out) == expected(hu)).all(), order


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
        with backend.stream() as stream, opened(Hooked(backend, hook)) as one:
            left = n
            source, out = stream.made_late(hu), stream.made_late(nines(hu))
            with pytest.raises(Broken):
                one.run(source, SPACING, out, stream=stream.handle)
            one.run(source, SPACING, out, stream=stream.handle)
            assert (stream.read(out) == wanted).all(), n
            assert (one.run(hu, SPACING)[0] == wanted).all(), n

    for _ in backend.orders():
        for n in range(1, first_runs + recorded + 1):
            in_threads(lambda n=n: work(n))


def case_threads(backend: Any) -> None:
    """Two cascades in two threads."""

    def work(seed: int) -> None:
        hu = ct(14, seed)
        with opened(backend) as one:
            for _ in range(5):
                assert (one.run(hu, SPACING)[0] == expected(hu)).all()

    in_threads(lambda: work(1), lambda: work(2))


def case_one_cascade_in_two_threads(backend: Any) -> None:
    """One thread at a time, as a `Segmenter` has it; with two sizes, so that each closes the lanes of the other."""
    lock = threading.Lock()

    def work(one: Any, hu: np.ndarray) -> None:
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

    with opened(backend) as one:
        in_threads(lambda: work(one, ct(14, 1)), lambda: work(one, np.ascontiguousarray(ct(9, 2)[:, ::2])))


def _named(prefix: str) -> dict[str, Callable[[Any], None]]:
    return {name.removeprefix(prefix): case for name, case in globals().items() if name.startswith(prefix)}


BOTH = _named("both_")
CASES = BOTH | _named("case_")
