"""`_core.Net`, layer by layer, against float64: a head that leaves each channel as it is shows a map as logits."""

from __future__ import annotations

import numpy as np
import pytest

from trtseg import _core
from trtseg.errors import ArgumentError

pytestmark = pytest.mark.skipif(not _core.Net.is_supported(), reason="this processor has no AVX2 and FMA")

GUARD = 12345.0
# Largest differences from float64 of values up to about 8; measured: 7.5e-6, and without Winograd 1.2e-6.
WINOGRAD, DIRECT = 5e-5, 1e-5
SIZES = [(5, 7), (6, 10), (16, 12), (4, 4), (9, 33)]
EACH = _core.Net.fp32_instructions()


def normal(rng, *shape, fan=1):
    return rng.normal(0, fan**-0.5, shape).astype(np.float32)


def convolved(x, weights, bias, stride=1, pad=1):
    """Convolution and ReLU of ``x`` ``[n, in, rows, columns]``."""
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weights.shape[2:], axis=(2, 3))
    sums = np.einsum("ncyxij,ocij->noyx", windows[:, :, ::stride, ::stride], weights.astype(np.float64))
    return np.maximum(sums + bias[:, None, None], 0)


def pooled(x):
    n, channels, rows, columns = x.shape
    return x.reshape(n, channels, rows // 2, 2, columns // 2, 2).max((3, 5))


def enlarged(x, weights, bias):
    """Transposed convolution whose stride is its size."""
    n, _, rows, columns = x.shape
    _, out, scale, _ = weights.shape
    sums = np.einsum("ncyx,coij->noyixj", np.asarray(x, np.float64), weights.astype(np.float64))
    return sums.reshape(n, out, rows * scale, columns * scale) + bias[:, None, None]


def show(net, part):
    """Make channels of a map the logits: products with 1 and 0 are exact."""
    net.add_head(part, np.eye(part[2], dtype=np.float32)[:, :, None, None], np.zeros(part[2], np.float32))


def run(net, classes, src, threads=1, wanted=None):
    """Logits, of which every element was written, and nothing around them."""
    whole = np.full((len(src) + 2, classes, *src.shape[2:]), GUARD, np.float32)
    dst = whole[1:-1]
    net.run(src, dst, wanted, threads)
    assert (whole[[0, -1]] == GUARD).all()
    assert not (dst == GUARD).any()
    return dst


def differs(found, expected):
    assert found.shape == expected.shape
    return np.abs(found - expected).max()


def first(net, rng, size, channels, shape=(3, 1, 1)):
    """Add a map that a convolution of the slice makes; return its part, and the layer in float64."""
    kernel, stride, pad = shape
    part = (net.add_map(*size, channels), 0, channels)
    weights, bias = normal(rng, channels, 1, kernel, kernel, fan=kernel), normal(rng, channels)
    net.add_first(part, weights, bias, stride, pad)
    return part, lambda x: convolved(x, weights, bias, stride, pad)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "channels", [(8, 24), (16, 8), (24, 48), (32, 40), (40, 16), (48, 32), (8, 56), (16, 120)]
)
def test_convolution(size, channels):
    """All instruction sets give the same bits."""
    rng = np.random.default_rng(sum(size) + sum(channels))
    into, out = channels
    weights, bias = normal(rng, out, into, 3, 3, fan=9 * into), normal(rng, out)
    x = rng.random((2, 1, *size), np.float32)
    found = []
    for instructions in EACH:
        net = _core.Net(*size, out, fp32=instructions)
        src, before = first(net, np.random.default_rng(0), size, into)
        dst = (net.add_map(*size, out), 0, out)
        net.add_conv(src, dst, None, weights, bias)
        show(net, dst)
        found.append(run(net, out, x))
    assert differs(found[0], convolved(before(x), weights, bias)) < WINOGRAD
    assert all((logits == found[0]).all() for logits in found)


@pytest.mark.parametrize("size", [(16, 12), (8, 8), (10, 22), (14, 8)])
@pytest.mark.parametrize("channels", [8, 24, 40])
def test_maxima(size, channels):
    rng = np.random.default_rng(channels)
    half = (size[0] // 2, size[1] // 2)
    weights, bias = normal(rng, channels, 8, 3, 3, fan=72), normal(rng, channels)
    x = rng.random((2, 1, *size), np.float32)
    found = []
    for shows_pool in (False, True):
        net = _core.Net(*size, channels)
        src, before = first(net, np.random.default_rng(0), size, 8)
        dst, pool = ((net.add_map(*shape, channels + 8), 8, channels) for shape in (size, half))
        net.add_conv(src, dst, pool, weights, bias)
        if shows_pool:  # each pixel four times
            head = np.eye(channels, dtype=np.float32)[:, :, None, None].repeat(2, 2).repeat(2, 3).copy()
            net.add_head(pool, head, np.zeros(channels, np.float32))
        else:
            show(net, dst)
        found.append(run(net, channels, x))
    assert differs(found[0], convolved(before(x), weights, bias)) < WINOGRAD
    assert (found[1] == pooled(found[0]).repeat(2, 2).repeat(2, 3)).all()


@pytest.mark.parametrize("shape", [(3, 1, 1), (4, 2, 1), (1, 1, 0), (5, 3, 2), (2, 2, 0), (5, 3, 1)])
@pytest.mark.parametrize("channels", [8, 24])
def test_first_convolution(shape, channels):
    kernel, stride, pad = shape
    rng = np.random.default_rng(kernel)
    size = tuple(4 * stride + kernel - 2 * pad + more * stride for more in (0, 3))
    out = tuple((length + 2 * pad - kernel) // stride + 1 for length in size)
    net = _core.Net(*size, channels)
    src, before = first(net, rng, out, channels, shape)
    weights = np.zeros((channels, channels, stride, stride), np.float32)
    weights[np.arange(channels), np.arange(channels)] = 1
    x = rng.random((2, 1, *size), np.float32)
    if out[0] * stride != size[0]:
        with pytest.raises(ArgumentError, match="src: got"):
            net.add_head(src, weights, np.zeros(channels, np.float32))
        return
    net.add_head(src, weights, np.zeros(channels, np.float32))
    assert differs(run(net, channels, x), before(x).repeat(stride, 2).repeat(stride, 3)) < DIRECT
    # Each pixel alone: all tiles that it reaches are computed, the others are those of an empty slice.
    x = np.eye(size[0] * size[1], dtype=np.float32).reshape(-1, 1, *size)
    assert differs(run(net, channels, x), before(x).repeat(stride, 2).repeat(stride, 3)) < DIRECT


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (8, 6)])
@pytest.mark.parametrize("channels", [(8, 8), (16, 24), (48, 32), (24, 72), (8, 104)])
def test_up(size, channels):
    """All instruction sets give the same bits."""
    rng = np.random.default_rng(sum(channels))
    into, out = channels
    double = (2 * size[0], 2 * size[1])
    weights, bias = normal(rng, into, out, 2, 2, fan=into), normal(rng, out)
    x = rng.random((2, 1, *double), np.float32)
    found = []
    for instructions in EACH:
        net = _core.Net(*double, out, fp32=instructions)
        src, before = first(net, np.random.default_rng(0), size, into, (4, 2, 1))
        dst = (net.add_map(*double, out + 16), 16, out)
        net.add_up(src, dst, weights, bias)
        show(net, dst)
        found.append(run(net, out, x))
    assert differs(found[0], enlarged(before(x), weights, bias)) < DIRECT
    assert all((logits == found[0]).all() for logits in found)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("classes", [1, 3])
def test_head(scale, classes):
    rng = np.random.default_rng(scale)
    size = (5 * scale, 6 * scale)
    net = _core.Net(*size, classes)
    src, before = first(net, rng, (5, 6), 24, (scale, scale, 0))
    weights, bias = normal(rng, 24, classes, scale, scale, fan=24), normal(rng, classes)
    net.add_head(src, weights, bias)
    x = rng.random((3, 1, *size), np.float32)
    assert differs(run(net, classes, x), enlarged(before(x), weights, bias)) < DIRECT


def unet(classes=3, size=(24, 20)):
    """A net with a joined map, some channels of which are read alone, and what it computes in float64."""
    rng = np.random.default_rng(5)
    half = (size[0] // 2, size[1] // 2)
    net = _core.Net(*size, classes)
    src, before = first(net, rng, size, 8)
    joined, low, last = net.add_map(*size, 24), net.add_map(*half, 24), net.add_map(*size, 16)
    w1, w2, w3, w4 = (normal(rng, o, i, 3, 3, fan=9 * i) for o, i in ((16, 8), (8, 16), (8, 24), (8, 16)))
    b1, b2, b3, b4 = (normal(rng, len(w)) for w in (w1, w2, w3, w4))
    up, head = normal(rng, 8, 8, 2, 2, fan=8), normal(rng, 16, classes, 1, 1, fan=16)
    net.add_conv(src, (joined, 0, 16), (low, 8, 16), w1, b1)
    net.add_conv((low, 8, 16), (low2 := net.add_map(*half, 8), 0, 8), None, w2, b2)
    net.add_up((low2, 0, 8), (joined, 16, 8), up, b2)
    net.add_conv((joined, 0, 24), (last, 0, 8), None, w3, b3)
    net.add_conv((joined, 8, 16), (last, 8, 8), None, w4, b4)
    net.add_head((last, 0, 16), head, np.zeros(classes, np.float32))

    def compute(x):
        skip = convolved(before(x), w1, b1)
        both = np.concatenate([skip, enlarged(convolved(pooled(skip), w2, b2), up, b2)], 1)
        ends = [convolved(both, w3, b3), convolved(both[:, 8:], w4, b4)]
        return enlarged(np.concatenate(ends, 1), head, np.zeros(classes))

    return net, compute


def test_joined_maps():
    net, compute = unet()
    x = np.random.default_rng(0).random((2, 1, 24, 20), np.float32)
    assert differs(run(net, 3, x), compute(x)) < WINOGRAD


def test_threads_and_neighbours_change_no_bit():
    net, _ = unet()
    x = np.random.default_rng(1).normal(size=(5, 1, 24, 20)).astype(np.float32)
    alone = np.concatenate([run(net, 3, x[i : i + 1]) for i in range(5)])
    for n in (0, 1, 2, 5):
        for threads in (1, 2, 3, 7, 0):
            assert (run(net, 3, x[:n], threads) == alone[:n]).all()
    assert (run(net, 3, x[::-1].copy(), 3) == alone[::-1]).all()


@pytest.mark.parametrize("size", [(24, 20), (14, 18), (40, 36)])
def test_wanted_logits_are_the_same(size):
    """Whatever slices before have left in the maps."""
    net, _ = unet(size=size)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(12, 1, *size)).astype(np.float32)
    whole = run(net, 3, x)
    wanted = rng.random((12, *size)) < 0.01
    wanted[0], wanted[1], wanted[2] = False, True, False
    wanted[(2, *rng.integers(size))] = True
    wanted[3:5] = False
    wanted[3, :, -1] = wanted[4, -1, :3] = True
    where = np.broadcast_to(wanted[:, None], whole.shape)
    for n in (1, 5, 12):
        for threads in (1, 2, 3, 7):
            run(net, 3, np.full((7, 1, *size), np.nan, np.float32), threads)
            found = run(net, 3, x[:n], threads, wanted[:n])
            same = found == whole[:n]
            assert same[where[:n]].all()
            assert (same | (found == -65504)).all()
    assert (found[0] == -65504).all()
    assert (found[2] == -65504).any()


@pytest.mark.parametrize("size", [(24, 20), (14, 18), (40, 36), (64, 72)])
def test_zeros_around_a_picture_change_no_logit(size):
    """What an empty slice gives is known; -0 is no 0, so of slices around which it lies all is computed."""
    rng = np.random.default_rng(4)
    x = np.zeros((16, 1, *size), np.float32)
    for number, plane in enumerate(x[2:, 0]):
        y, z = rng.integers(0, size)
        height, width = (1, 1) if number < 4 else rng.integers(1, size)
        plane[y : y + height, z : z + width] = rng.normal(size=plane[y : y + height, z : z + width].shape)
    whole = run(unet(size=size)[0], 3, np.where(x == 0, np.float32(-0.0), x))
    wanted = rng.random((16, *size)) < 0.02
    where = np.broadcast_to(wanted[:, None], whole.shape)
    net, _ = unet(size=size)
    for threads in (1, 2, 3):
        for order in (np.arange(16), rng.permutation(16), rng.permutation(16)[:5]):
            assert (run(net, 3, x[order], threads) == whole[order]).all()
            found = run(net, 3, x[order], threads, wanted[order])
            same = found == whole[order]
            assert same[where[order]].all()
            assert (same | (found == -65504)).all()
            run(net, 3, np.full((3, 1, *size), np.nan, np.float32), threads)


def test_a_narrow_tile_leaves_its_neighbour_as_it_is():
    """A map of 6 columns is enlarged; the tile before the last is that of an empty slice."""
    rng = np.random.default_rng(5)
    net = _core.Net(8, 12, 8)
    small, _ = first(net, rng, (4, 6), 8, (2, 2, 0))
    large = (net.add_map(8, 12, 8), 0, 8)
    net.add_up(small, large, normal(rng, 8, 8, 2, 2, fan=8), normal(rng, 8))
    last = (net.add_map(8, 12, 8), 0, 8)
    net.add_conv(large, last, None, normal(rng, 8, 8, 3, 3, fan=72), normal(rng, 8))
    show(net, last)
    x = rng.normal(size=(2, 1, 8, 12)).astype(np.float32)
    x[1, ..., :8] = 0
    apart = [run(net, 8, np.where(x == 0, np.float32(-0.0), x)[i : i + 1]) for i in (0, 1)]
    assert (run(net, 8, x) == np.concatenate(apart)).all()


def test_a_narrow_tile_changes_nothing_that_is_known_of_its_neighbour():
    """A map of 7 columns is enlarged; the tile before the last is not wanted once."""
    rng = np.random.default_rng(6)
    net = _core.Net(16, 14, 8)
    small, _ = first(net, rng, (8, 7), 8, (2, 2, 0))
    large, last = ((net.add_map(16, 14, 8), 0, 8) for _ in range(2))
    net.add_up(small, large, normal(rng, 8, 8, 2, 2, fan=8), normal(rng, 8))
    net.add_conv(large, last, None, normal(rng, 8, 8, 3, 3, fan=72), normal(rng, 8))
    show(net, last)
    x = rng.normal(size=(2, 1, 16, 14)).astype(np.float32)
    x[0, :, 8:] = 0
    wanted = np.ones((2, 16, 14), bool)
    expected = run(net, 8, np.where(x == 0, np.float32(-0.0), x))
    assert (run(net, 8, x[:1]) == expected[0]).all()
    wanted[1] = False
    wanted[1, 13, 13] = True
    assert (run(net, 8, x[1:], 1, wanted[1:])[..., 13, 13] == expected[1, :, 13, 13]).all()
    assert (run(net, 8, x[:1]) == expected[0]).all()


def test_nan_stays_in_its_slice():
    net, _ = unet()
    x = np.random.default_rng(2).random((3, 1, 24, 20), np.float32)
    clean = run(net, 3, x)
    for pixel in [(11, 9), (11, 10), (10, 9), (10, 10), (0, 0), (23, 19)]:
        bad = x.copy()
        bad[(1, 0, *pixel)] = np.nan
        for threads in (1, 2, 3):
            found = run(net, 3, bad, threads)
            assert np.isnan(found[(1, slice(None), *pixel)]).all()
            assert (found[[0, 2]] == clean[[0, 2]]).all()
    assert (run(net, 3, x) == clean).all()
