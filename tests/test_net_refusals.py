"""What `_core.Net` refuses, and what it does not convert."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from trtseg import _core
from trtseg.errors import ArgumentError

pytestmark = pytest.mark.skipif(not _core.Net.is_supported(), reason="this processor has no AVX2 and FMA")


def weights_of(*shape):
    return np.ones(shape, np.float32)


def one():
    return weights_of(8)


def small():
    """A net of 8 x 8 with maps 0 (8 x 8, made), 1 (8 x 8), 2 (4 x 4) and 3 (4 x 4, made)."""
    net = _core.Net(8, 8, 1)
    for length in (8, 8, 4, 4):
        net.add_map(length, length, 16)
    net.add_first((0, 0, 16), weights_of(16, 1, 3, 3), weights_of(16), 1, 1)
    net.add_conv((0, 0, 8), (net.add_map(8, 8, 8), 0, 8), (3, 0, 8), weights_of(8, 8, 3, 3), one())
    return net


def with_conv(src=(0, 0, 8), dst=(1, 0, 8), pool=None, weights=None, bias=None):
    weights = weights_of(8, 8, 3, 3) if weights is None else weights
    return lambda net: net.add_conv(src, dst, pool, weights, one() if bias is None else bias)


def with_first(dst=(0, 0, 8), kernel=3, stride=1, pad=1, size=(8, 8), map_size=(8, 8)):
    def add(_):
        net = _core.Net(*size, 1)
        net.add_map(*map_size, 8)
        net.add_first(dst, weights_of(8, 1, kernel, kernel), one(), stride, pad)

    return add


def with_up(src, dst, weights=(8, 8, 2, 2)):
    return lambda net: net.add_up(src, dst, weights_of(*weights), one())


def with_head(src=(0, 0, 8), weights=(8, 1, 1, 1)):
    return lambda net: net.add_head(src, weights_of(*weights), weights_of(1))


def after_head(act):
    def both(net):
        with_head()(net)
        act(net)

    return both


def read_only(array):
    array.flags.writeable = False
    return array


def misaligned(*shape):
    count = int(np.prod(shape))
    return np.frombuffer(bytearray(4 * count + 1), np.uint8)[1:].view(np.float32).reshape(shape)


def with_run(src=None, dst=None, wanted=None):
    slices = weights_of(2, 1, 8, 8)
    return after_head(
        lambda net: net.run(slices if src is None else src, slices if dst is None else dst, wanted)
    )


MOST = 2**31 - 1
REFUSED = {
    "net": [
        lambda _, s=s: _core.Net(*s) for s in [(0, 8, 1), (8, -1, 1), (8, 8, 0), (MOST, 8, 1), (8, 8, MOST)]
    ],
    "map": [
        lambda net, s=s: net.add_map(*s)
        for s in [
            (3, 4, 8),
            (4, 3, 8),
            (MOST, 4, 8),
            (4, -MOST, 8),
            (4, 4, 0),
            (4, 4, 12),
            (4, 4, -8),
            (4, 4, MOST - 7),
        ]
    ],
    "src": [
        *(with_conv((number, 0, 8)) for number in (-1, 5, MOST)),
        *(with_conv((0, at, 8)) for at in (-8, 4, 16, MOST - 7)),
        with_conv((1, 0, 8), (2, 0, 8)),  # nobody has made it
        with_conv((3, 8, 8), (2, 0, 8)),  # nor this half
        with_up((2, 0, 8), (1, 0, 8)),
        with_head((1, 0, 8)),
        with_head((3, 0, 8)),  # half the size
        with_head(weights=(8, 1, 2, 2)),  # and twice
        with_run(weights_of(2, 1, 8, 9)),
        with_run(weights_of(1, 2, 1, 8, 8)),
        with_run(misaligned(2, 1, 8, 8)),
    ],
    "dst": [
        with_conv(dst=(0, 8, 8)),  # beside the source
        with_conv(dst=(2, 0, 8)),
        with_conv(dst=(1, 8, 16), weights=weights_of(16, 8, 3, 3), bias=weights_of(16)),
        with_up((0, 0, 8), (1, 0, 8)),
        with_up((3, 0, 8), (2, 0, 8)),
        with_conv(dst=(4, 0, 8)),  # a layer has made it
        with_up((3, 0, 8), (0, 8, 8)),
        with_first(stride=2),
        with_first(pad=0),
        with_first(stride=0),
        with_first(stride=MOST),
        with_first(kernel=11, size=(4, 4)),
        with_first(map_size=(8, 9)),
        with_run(dst=weights_of(1, 1, 8, 8)),
        with_run(dst=read_only(weights_of(2, 1, 8, 8))),
        with_run(dst=misaligned(2, 1, 8, 8)),
        with_run(),  # in the memory of src
        with_run((three := weights_of(3, 1, 8, 8))[1:], three[:2]),
        with_run(dst=(mine := weights_of(2, 1, 8, 8)), wanted=mine.view(bool).ravel()[:128].reshape(2, 8, 8)),
    ],
    "pad": [
        with_first(pad=-1),
        with_first(pad=3, map_size=(12, 12)),  # rows that see zeros only
        with_first(pad=2**30),
        with_first(pad=MOST),
    ],
    "pool": [
        with_conv(pool=(1, 8, 8)),
        with_conv(pool=(2, 0, 16)),
        with_conv(pool=(9, 0, 8)),
        with_conv(pool=(2, 0, -8)),
        with_conv(pool=(3, 0, 8)),  # a layer has made it
    ],
    "weights": [
        with_conv(weights=weights_of(8, 8, 3, 2)),
        with_conv((0, 0, 0)),
        with_conv((0, 0, -8)),
        with_conv(weights=misaligned(8, 8, 3, 3)),
        with_up((3, 0, 8), (1, 0, 8), (8, 8, 2, 1)),
        with_head(weights=(8, 2, 1, 1)),
        with_head(weights=(8, 1, 1)),
    ],
    "bias": [with_conv(bias=weights_of(7)), with_conv(bias=misaligned(8))],
    "wanted": [with_run(wanted=np.ones((2, 1, 8, 8), bool)), with_run(wanted=np.ones((1, 8, 8), bool))],
    "net: got": [
        after_head(with_conv()),
        after_head(with_head()),
        lambda net: net.add_first((1, 0, 8), weights_of(8, 1, 3, 3), one(), 1, 1),
        lambda net: net.run(weights_of(2, 1, 8, 8), weights_of(2, 1, 8, 8)),
    ],
}


@pytest.mark.parametrize(
    ("name", "act"),
    [pytest.param(n, act, id=f"{n}-{i}") for n in REFUSED for i, act in enumerate(REFUSED[n])],
)
def test_refusals(name, act):
    with pytest.raises(ArgumentError, match=f"^{name}"):
        act(small())


@pytest.mark.parametrize(
    "act",
    [
        with_run(np.ones((2, 1, 8, 8))),
        with_run(dst=np.ones((2, 1, 8, 8))),
        with_run(weights_of(2, 1, 8, 16)[..., ::2]),
        with_run(dst=weights_of(2, 1, 8, 16)[..., ::2]),
        with_run([[[[1.0] * 8] * 8]] * 2),
        with_run(weights_of(2, 1, 8, 8).astype(">f4")),
        with_run(wanted=np.ones((2, 8, 8), np.uint8)),
        with_run(wanted=np.ones((2, 8, 16), bool)[..., ::2]),
        with_conv(weights=np.ones((8, 8, 3, 3))),
        with_conv(weights=weights_of(8, 8, 3, 3).transpose(1, 0, 2, 3)),
        with_conv(bias=np.ones(8, np.float16)),
        with_conv((0, 0, 2**31)),
        with_conv((0, 0)),
        lambda _: _core.Net(2**31, 8, 1),
        lambda net: net.add_map(4.5, 4, 8),
    ],
)
def test_nothing_is_converted(act):
    with pytest.raises(TypeError):
        act(small())


@pytest.mark.parametrize("act", [lambda net: net.add_map(64, 64, 8), lambda net: net.reserve(500, 500)])
@pytest.mark.parametrize("other", ["run", "reserve"])
def test_one_call_at_a_time(act, other):
    """Memory of slices on their way is not given back while they are; and other threads go on meanwhile."""
    net = _core.Net(64, 64, 1)
    for _ in range(2):
        net.add_map(64, 64, 8)
    net.add_first((0, 0, 8), weights_of(8, 1, 3, 3), one(), 1, 1)
    net.add_conv((0, 0, 8), (1, 0, 8), None, weights_of(8, 8, 3, 3), one())
    net.add_head((1, 0, 8), weights_of(8, 1, 1, 1), weights_of(1))
    x = weights_of(3000, 1, 64, 64)
    said = []

    def attempt(act, *arguments):
        try:
            act(*arguments)
        except ArgumentError as error:
            said.append(str(error))

    work = (net.run, x, np.empty_like(x), None, 2) if other == "run" else (net.reserve, 500, 500)
    thread = threading.Thread(target=attempt, args=work)
    thread.start()
    while thread.is_alive() and not said:  # whichever of the two comes second
        attempt(act, net)
        time.sleep(0.001)
    thread.join()
    assert said == ["net: got a call during another one, expected one at a time"]


def test_a_negative_number_of_threads_is_refused():
    net = small()
    with_head()(net)
    x = weights_of(1, 1, 8, 8)
    for call in (lambda: net.run(x, np.empty_like(x), threads=-1), lambda: net.reserve(1, -1)):
        with pytest.raises(ArgumentError, match=r"^threads: got -1, expected 0 \(.*\) or more"):
            call()
    net.reserve(1, 0)  # all


def test_any_number_of_threads():
    net = small()
    with_head()(net)
    x, dst = weights_of(1, 1, 8, 8), weights_of(1, 1, 8, 8)
    net.run(x, dst, threads=1)
    many = np.empty_like(dst)
    net.run(x, many, threads=MOST)
    assert (many == dst).all()
