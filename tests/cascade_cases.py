"""The test bodies of both cascades: on the CPU, on a played GPU (tests/cuda_shim) and on a real GPU (tests/gpu)."""

import dataclasses
import threading
import types
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from cascade_nets import (
    BATCH,
    LIVER,
    ONE_STEP,
    SPACING,
    TUMOUR,
    Broken,
    Hooked,
    ct,
    expected,
    expected_logits,
    expected_of_one_step,
    in_threads,
    nines,
    opened,
)

from trtseg.cascade.gpu import LANES, CudaCascade
from trtseg.cascade.volumes import label_volume
from trtseg.cuda.arrays import CudaArray
from trtseg.errors import ArgumentError, DeviceError
from trtseg.spec import ModelSpec
from trtseg.volume import Geometry, Volume

# ---- The cases that both cascades must pass. -----------------------------------------------------------------------


def both_run_equals_oracle(backend: Any) -> None:
    """One chunk, an exact number of chunks, a rest, many."""
    with opened(backend) as one:
        for order in backend.orders():
            for slices in (1, BATCH - 1, BATCH, 2 * BATCH, 5 * BATCH + 3):
                hu, told = ct(slices), []
                labels, timings = one.run(hu, SPACING, done=told.append)
                assert (labels == expected(hu, backend.dtype)).all(), (order, slices)
                assert told == sorted(told), told
                assert told[-1] == slices
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
                    wanted, mine = expected(hu, backend.dtype), nines(hu)
                    for out in (None, mine):
                        feed, pieces = one.begin(one.place(hu, SPACING)), []
                        for n, last in zip(sizes, accumulate(sizes), strict=True):
                            given = hu[last - n : last].copy()
                            pieces += feed.push(given, None if out is None else out[last - n : last])
                            given[:] = 3000
                            assert last - sum(len(piece) for _, piece in pieces) <= behind
                        pieces += feed.finish()
                        firsts = [first for first, _ in pieces]
                        assert firsts == [0, *accumulate(len(p) for _, p in pieces)][:-1]
                        assert (np.concatenate([piece for _, piece in pieces]) == wanted).all()
                    assert (mine == wanted).all()
                    assert all(np.shares_memory(piece, mine) for _, piece in pieces)


def both_logits(backend: Any) -> None:
    """Tumour logits of slices with liver, and of no other, come no later than their labels, to who asks for them."""
    for batch in (1, BATCH):
        with opened(backend, batch) as one:
            for _ in backend.orders():
                for sizes in ([1] * 13, [3, 5, 0, 1], [22]):
                    hu, kept = ct(sum(sizes)), {}
                    wanted = expected_logits(hu, backend.dtype)
                    assert 0 < len(wanted) < len(hu)
                    feed, pieces = one.begin(one.place(hu, SPACING), logits=kept), []
                    for n, last in zip(sizes, accumulate(sizes), strict=True):
                        pieces += feed.push(hu[last - n : last])
                        labelled = range(sum(len(piece) for _, piece in pieces))
                        assert kept.keys() >= wanted.keys() & set(labelled)
                    pieces += feed.finish()
                    labels = np.concatenate([piece for _, piece in pieces])
                    assert (labels == expected(hu, backend.dtype)).all()
                    one.run(ct(5, 1), SPACING)  # asks for none
                    again: dict[int, np.ndarray] = {}
                    one.run(hu, SPACING, logits=again)
                    for found in (kept, again):
                        assert found.keys() == wanted.keys()
                        for z, plane in found.items():
                            assert plane.dtype == np.float16
                            assert (plane == wanted[z]).all()
    with opened(backend, specs=(ONE_STEP,)) as one:
        one.run(ct(3), SPACING, logits=(none := {}))
    assert none == {}


def both_search(backend: Any) -> None:
    """Several feeds of slices that do not lie side by side give the labels and logits of one."""
    hu = np.concatenate([np.full((9, *ct(1).shape[1:]), -1000, np.int16), ct(8, 3), ct(22, 1)[8:15]])
    geometry = Geometry.from_affine(hu.shape[::-1], np.diag([-SPACING[1], -SPACING[0], 5.0, 1.0]))
    volume = Volume(hu, geometry.canonical_affine(), geometry, "ct")
    with opened(backend) as one:
        for order in backend.orders():
            labels, logits, timings, labelled = label_volume(one, volume, None, 10.0)
            assert (labels == expected(hu, backend.dtype)).all(), order
            assert labelled < len(hu)
            wanted = expected_logits(hu, backend.dtype)
            assert logits.planes.keys() == wanted.keys()
            assert all((logits.planes[z] == wanted[z]).all() for z in wanted)
            assert min(timings.values()) > 0


def both_one_step(backend: Any) -> None:
    hu = ct(2 * BATCH + 1)
    wanted = expected_of_one_step(hu, backend.dtype)
    assert set(np.unique(wanted)) == {0, 1, 2}
    with opened(backend, specs=(ONE_STEP,)) as one:
        for order in backend.orders():
            assert (one.run(hu, SPACING)[0] == wanted).all(), order


def both_stages(backend: Any) -> None:
    """They are timed one by one, and nothing of it stays."""
    two_nets = ["prepare", "liver net", "gate", "tumour net", "label"]
    for specs, stages in (((LIVER, TUMOUR), two_nets), ((ONE_STEP,), ["prepare", "one-step net", "label"])):
        with opened(backend, specs=specs) as one:
            labels, _ = one.run(ct(9), SPACING)
            seconds = one.stages(ct(3), SPACING)
            assert [stage for stage in seconds if "copy" not in stage] == stages
            assert min(seconds.values()) >= 0
            assert (one.run(ct(9), SPACING)[0] == labels).all()


def both_buffers_carry_nothing_over(backend: Any) -> None:
    """Other sizes in between, and inputs that change as soon as the call is over."""
    with opened(backend) as one:
        for shape in ((9, 24, 30), (5, 30, 14), (9, 24, 30)):
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
        begun()
        other = one.begin(one.place(hu, SPACING))  # gets nothing of the one that it ends
        pieces = other.push(hu) + other.finish()
        assert [first for first, _ in pieces] == [0, *accumulate(len(p) for _, p in pieces)][:-1]
        assert (np.concatenate([piece for _, piece in pieces]) == expected(hu, backend.dtype)).all()
        feed = begun()
        with pytest.raises(ArgumentError, match=r"hu: got shape \(2, 24, 22\); expected \[n, 24, 30\]"):
            feed.push(hu[:2, :, :22])
        with pytest.raises(ArgumentError, match=r"out: got shape \(1, 24, 30\); expected the shape of hu"):
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
        with pytest.raises((ArgumentError, DeviceError), match=r"a feed that has ended|cascade that is"):
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


def case_body_on_the_gpu(backend: Any) -> None:
    """Slices that a stream makes late are placed as on the host; only box and samples go there."""
    specs = [dataclasses.replace(spec, fit="body", pixel_mm=1.5) for spec in (LIVER, TUMOUR)]
    slim = np.full((2, 70, 80), -1000, np.int16)
    slim[:, 10:60, 30:34] = 40  # is thin
    large = np.full((1, 75, 70), 40, np.int16)
    for order in backend.orders():
        with opened(backend, specs=specs) as one, backend.stream() as maker, backend.stream() as user:
            for hu, spacing in (
                (ct(BATCH + 1), SPACING),
                (np.pad(ct(BATCH + 1), ((0, 0), (0, 31), (7, 0)), constant_values=-1024), SPACING),
                (np.full((3, 24, 30), -1000, np.int16), SPACING),
                (slim, SPACING),
                (large, (9.0, 9.0)),  # more samples than there was memory for
            ):
                fit = specs[0].fit_volume(hu, spacing)
                assert fit != specs[0].fit_slice(hu.shape[1:], spacing) or hu.max() < -400
                for stream, name in ((user, maker.handle), (maker, None), (maker, user.handle)):
                    source = maker.made_late(hu)
                    source.stream = name
                    assert one.place(source, spacing, stream=stream.handle) == fit, order
            hu = ct(BATCH + 1)
            source, out = maker.made_late(hu), maker.made_late(nines(hu))
            one.run(source, SPACING, out, stream=maker.handle)
            wanted = expected(hu, fit=specs[0].fit_volume(hu, SPACING))
            assert set(np.unique(wanted)) == {0, 1, 2}
            assert (maker.read(out) == wanted).all(), order
            with pytest.raises(ArgumentError, match="spacing: got"):
                one.place(source, (0.0, 1.0), stream=maker.handle)


def case_logits_of_device_arrays(backend: Any) -> None:
    """Labels stay on the GPU, and logits come to the host."""
    hu = ct(2 * BATCH + 3)
    wanted = expected_logits(hu)
    for batch in (1, BATCH):
        with opened(backend, batch) as one:
            for order in backend.orders():
                with backend.stream() as stream:
                    source, out, kept = stream.made_late(hu), stream.made_late(nines(hu)), {}
                    one.run(source, SPACING, out, stream=stream.handle, logits=kept)
                    assert kept.keys() == wanted.keys()
                    assert all((kept[z] == wanted[z]).all() for z in kept), order
                    assert (stream.read(out) == expected(hu)).all(), order


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


def case_stages_while_labels_are_on_their_way(backend: Any) -> None:
    """Stages that are timed take nothing from a chunk whose slices, or labels on the GPU, are still awaited."""
    hu = ct(BATCH - 1)
    for specs, expect in (((LIVER, TUMOUR), expected), ((ONE_STEP,), expected_of_one_step)):
        for _ in backend.orders():
            with opened(backend, specs=specs) as one, backend.stream() as stream:
                one.run(hu, SPACING)
                out = stream.made_late(nines(hu))
                one.run(hu, SPACING, out, stream=stream.handle)
                one.stages(np.full_like(hu[:2], 100), SPACING)
                assert (stream.read(out) == expect(hu, backend.dtype)).all()


def case_a_slice_while_another_is_on_its_way(backend: Any) -> None:
    """A slice for which the host waits takes nothing from the one before, whose labels on the GPU nobody awaits yet."""
    hu = ct(BATCH)
    for specs, expect in (((LIVER, TUMOUR), expected), ((ONE_STEP,), expected_of_one_step)):
        wanted = expect(hu, backend.dtype)
        for _ in backend.orders():
            with opened(backend, 1, specs) as one, backend.stream() as stream:
                one.run(hu[:1], SPACING)
                for z in range(1, len(hu)):
                    out = stream.made_late(nines(hu[:1]))
                    one.run(hu[z - 1 : z], SPACING, out, stream=stream.handle)
                    assert (one.run(hu[z : z + 1], SPACING)[0] == wanted[z]).all()
                    assert (stream.read(out) == wanted[z - 1]).all()


def case_closed_while_labels_are_on_their_way(backend: Any) -> None:
    """After `close` of a feed nobody writes into the caller's arrays."""
    hu = ct(2 * BATCH)
    for order in backend.orders():
        with opened(backend) as one, backend.stream() as stream:
            source, out = stream.made_late(hu), stream.made_late(nines(hu))
            feed = one.begin(one.place(hu, SPACING), stream=stream.handle)
            feed.push(source, out)
            feed.close()
            stream.fill(out, 7)
            assert (stream.read(out) == 7).all()
            assert (one.run(hu, SPACING)[0] == expected(hu)).all()
            assert (stream.read(out) == 7).all(), order


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
    """Two cascades in two threads; one cascade in both, which closes the lanes of one size for those of the other.

    One thread at a time uses a cascade, as a `Segmenter` has it.
    """

    def work(one: Any, lock: Any, hu: np.ndarray) -> None:
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

    first, second = ct(14, 1), np.ascontiguousarray(ct(9, 2)[:, ::2])
    with opened(backend) as one, opened(backend) as other:
        for used in ((one, other), (one, one)):
            locks = {id(cascade): threading.Lock() for cascade in used}
            in_threads(
                lambda used=used, locks=locks: work(used[0], locks[id(used[0])], first),
                lambda used=used, locks=locks: work(used[1], locks[id(used[1])], second),
            )


def _named(prefix: str) -> dict[str, Callable[[Any], None]]:
    return {name.removeprefix(prefix): case for name, case in globals().items() if name.startswith(prefix)}


BOTH = _named("both_")
CASES = BOTH | _named("case_")
