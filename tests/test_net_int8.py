"""Quantised layers of `_core.Net` against sums of Python's integers, with each instruction set of this processor."""

from __future__ import annotations

import ctypes
import platform

import numpy as np
import pytest

from trtseg import _core
from trtseg.errors import ArgumentError

pytestmark = pytest.mark.skipif(not _core.Net.is_supported(), reason="this processor has no AVX2 and FMA")

EACH = _core.Net.int8_instructions()
SIZES = [(5, 7), (6, 10), (16, 12), (4, 4), (9, 33)]
CHANNELS = [(8, 24), (16, 8), (24, 48), (32, 40), (40, 16), (48, 72)]
ZEROS = [(0, 0), (128, 0), (0, 128), (128, 128)]


def integers(rng, *shape):
    return rng.integers(-128, 128, shape).astype(np.int8)


def factors(rng, out, fan):
    """Scales by which sums of so many products come to some 100, and biases."""
    return rng.uniform(0.5, 1.5, out).astype(np.float32) / np.float32(60 * fan**0.5), rng.normal(
        0, 20, out
    ).astype(np.float32)


def rounded(sums, scale, bias, zero, relu=True):
    """Integers that stand for values; ``zero``: of the bytes that hold them."""
    values = sums.astype(np.float32) * scale[:, None, None] + bias[:, None, None]
    return np.clip(np.rint(values), 0 if relu else -zero, 255 - zero).astype(np.int64)


def convolved(x, weights):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("ncyxij,ocij->noyx", windows, weights.astype(np.int64))


def pooled(x):
    n, channels, rows, columns = x.shape
    return x.reshape(n, channels, rows // 2, 2, columns // 2, 2).max((3, 5))


def enlarged(x, weights):
    n, _, rows, columns = x.shape
    _, out, size, _ = weights.shape
    return np.einsum("ncyx,coij->noyixj", x, weights.astype(np.int64)).reshape(
        n, out, rows * size, columns * size
    )


def slices(rng, n, size):
    return rng.integers(0, 256, (n, 1, *size)).astype(np.float32)


def first(net, size, channels, zero, weights):
    """Make a map of which each channel is the slice times a number, and rounded; return its part and its integers."""
    part = (net.add_map(*size, channels, zero), 0, channels)
    net.add_first(part, weights[:, None, None, None].copy(), np.zeros(channels, np.float32), 1, 0)
    one = np.ones(channels, np.float32)
    return part, lambda x: rounded(x * weights[:, None, None], one, 0 * one, zero)


def show(net, part):
    """Make integers of a map the logits."""
    one = np.ones(part[2], np.float32)
    net.add_head(part, np.eye(part[2], dtype=np.int8)[:, :, None, None], one, 0 * one)


def run(net, classes, src, threads=1, wanted=None):
    dst = np.full((len(src), classes, *src.shape[2:]), np.nan, np.float32)
    net.run(src, dst, wanted, threads)
    return dst


@pytest.mark.parametrize("instructions", EACH)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_convolution(instructions, size, channels):
    """Each pair of zeros meets each size and each pair of channels, but no loop depends on all three."""
    rng = np.random.default_rng(sum(size) + sum(channels))
    into, out = channels
    zeros = ZEROS[(SIZES.index(size) + CHANNELS.index(channels)) % len(ZEROS)]
    net = _core.Net(*size, out, instructions)
    src, before = first(net, size, into, zeros[0], rng.uniform(0.1, 1.2, into).astype(np.float32))
    dst = (net.add_map(*size, out, zeros[1]), 0, out)
    weights, (scale, bias) = integers(rng, out, into, 3, 3), factors(rng, out, 9 * into)
    net.add_conv(src, dst, None, weights, scale, bias)
    show(net, dst)
    x = slices(rng, 2, size)
    expected = rounded(convolved(before(x), weights), scale, bias, zeros[1])
    assert 0 < (expected > 0).mean() < 1
    assert (run(net, out, x) == expected).all()


@pytest.mark.parametrize("instructions", EACH)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("zero", [0, 128])
def test_a_convolution_leaves_the_zeros_around_its_result_to_the_next(instructions, size, zero):
    """Its inner loop computes more rows and columns than an odd size has."""
    rng = np.random.default_rng(sum(size))
    net = _core.Net(*size, 8, instructions)
    part, values = first(net, size, 8, zero, rng.uniform(0.1, 1.2, 8).astype(np.float32))
    x = slices(rng, 3, size)
    expected = values(x)
    for _ in range(2):
        dst = (net.add_map(*size, 8, zero), 0, 8)
        weights, (scale, bias) = integers(rng, 8, 8, 3, 3), factors(rng, 8, 72)
        net.add_conv(part, dst, None, weights, scale, bias)
        part, expected = dst, rounded(convolved(expected, weights), scale, bias, zero)
    show(net, part)
    assert 0 < (expected > 0).mean() < 1
    assert (run(net, 8, x) == expected).all()


@pytest.mark.parametrize("instructions", EACH)
@pytest.mark.parametrize("size", [(16, 12), (8, 8), (10, 22), (14, 8)])
@pytest.mark.parametrize("channels", [8, 24, 40])
@pytest.mark.parametrize("zero", [0, 128])
def test_maxima(instructions, size, channels, zero):
    rng = np.random.default_rng(channels)
    half = (size[0] // 2, size[1] // 2)
    net = _core.Net(*size, channels, instructions)
    src, before = first(net, size, 8, 0, rng.uniform(0.1, 1, 8).astype(np.float32))
    dst, pool = ((net.add_map(*shape, channels + 8, zero), 8, channels) for shape in (size, half))
    weights, (scale, bias) = integers(rng, channels, 8, 3, 3), factors(rng, channels, 72)
    net.add_conv(src, dst, pool, weights, scale, bias)
    one = np.ones(channels, np.float32)
    head = np.eye(channels, dtype=np.int8)[:, :, None, None].repeat(2, 2).repeat(2, 3).copy()
    net.add_head(pool, head, one, 0 * one)
    x = slices(rng, 2, size)
    expected = pooled(rounded(convolved(before(x), weights), scale, bias, zero))
    assert (run(net, channels, x) == expected.repeat(2, 2).repeat(2, 3)).all()


@pytest.mark.parametrize("instructions", EACH)
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (8, 6)])
@pytest.mark.parametrize("channels", [(8, 8), (16, 24), (48, 32)])
@pytest.mark.parametrize("zeros", [(0, 128), (128, 0), (128, 128)])
def test_up(instructions, size, channels, zeros):
    """Enlarged values may be negative: there is no ReLU."""
    rng = np.random.default_rng(sum(channels))
    into, out = channels
    double = (2 * size[0], 2 * size[1])
    net = _core.Net(*double, out, instructions)
    src = (net.add_map(*size, into, zeros[0]), 0, into)
    kernel = np.zeros((into, 1, 2, 2), np.float32)
    kernel[:, 0, 0, 0] = rng.uniform(0.1, 1, into)
    net.add_first(src, kernel, np.zeros(into, np.float32), 2, 0)
    dst = (net.add_map(*double, out + 16, zeros[1]), 16, out)
    weights, (scale, bias) = integers(rng, into, out, 2, 2), factors(rng, out, into)
    net.add_up(src, dst, weights, scale, bias)
    show(net, dst)
    x = slices(rng, 2, double)
    one = np.ones(into, np.float32)
    before = rounded(x[:, :, ::2, ::2] * kernel[:, 0, :1, :1], one, 0 * one, zeros[0])
    expected = rounded(enlarged(before, weights), scale, bias, zeros[1], relu=False)
    assert (expected.min() < 0) == (zeros[1] == 128)
    assert (run(net, out, x) == expected).all()


@pytest.mark.parametrize("instructions", EACH)
@pytest.mark.parametrize("enlarge", [1, 2, 4])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("zero", [0, 128])
def test_head(instructions, enlarge, classes, zero):
    rng = np.random.default_rng(enlarge)
    size = (5 * enlarge, 6 * enlarge)
    net = _core.Net(*size, classes, instructions)
    src = (net.add_map(5, 6, 24, zero), 0, 24)
    kernel = np.zeros((24, 1, enlarge, enlarge), np.float32)
    kernel[:, 0, 0, 0] = rng.uniform(0.1, 1, 24)
    net.add_first(src, kernel, np.zeros(24, np.float32), enlarge, 0)
    weights, (scale, bias) = integers(rng, 24, classes, enlarge, enlarge), factors(rng, classes, 24)
    net.add_head(src, weights, scale, bias)
    x = slices(rng, 3, size)
    one = np.ones(24, np.float32)
    before = rounded(x[:, :, ::enlarge, ::enlarge] * kernel[:, 0, :1, :1], one, 0 * one, zero)
    sums = enlarged(before, weights).astype(np.float32)
    assert (run(net, classes, x) == sums * scale[:, None, None] + bias[:, None, None]).all()


@pytest.mark.parametrize("instructions", EACH)
@pytest.mark.parametrize("zero", [0, 128])
def test_bytes_end_where_they_end(instructions, zero):
    """Ties go to the even integer, and what no byte holds to the nearest one."""
    net = _core.Net(4, 8, 8, instructions)
    part = (net.add_map(4, 8, 8, zero), 0, 8)
    net.add_first(part, np.ones((8, 1, 1, 1), np.float32), np.zeros(8, np.float32), 1, 0)
    show(net, part)
    values = [-1, -0.5, 0.5, 1.5, 2.5, 126.5, 127.5, 128.5, 254.5, 255.4, 1e9, np.inf, -np.inf, 0.0, 3e38, 7]
    expected = [0, 0, 0, 2, 2, 126, 128, 128, 254, 255, 255, 255, 0, 0, 255, 7]
    x = np.resize(np.array(values, np.float32), (1, 1, 4, 8))
    assert (run(net, 8, x) == np.minimum(np.resize(expected, (4, 8)), 255 - zero)).all()


def test_a_head_of_more_weights_than_a_file_holds_is_refused():
    """From 16 GiB of them on, their number would not be an int; the memory of these is never touched."""
    net = _core.Net(16384, 16384, 17)
    net.add_map(4, 4, 8, 0)
    net.add_first((0, 0, 8), np.ones((8, 1, 1, 1), np.float32), np.zeros(8, np.float32), 4096, 0)
    weights = np.zeros((8, 17, 4096, 4096), np.int8)
    with pytest.raises(
        ArgumentError, match="weights: got 285212672 logits of a pixel, expected up to 268435456"
    ):
        net.add_head((0, 0, 8), weights, np.ones(17, np.float32), np.zeros(17, np.float32))


@pytest.mark.parametrize("instructions", EACH)
def test_rounding_mode_of_the_process_is_ignored(instructions):
    x = slices(np.random.default_rng(0), 5, (24, 20))
    expected, net, libm = run(unet(instructions), 3, x), unet(instructions), ctypes.CDLL("libm.so.6")
    upward = {"x86_64": 0x800, "aarch64": 0x400000}[platform.machine()]  # FE_UPWARD
    try:
        assert libm.fesetround(upward) == 0
        found = [run(net, 3, x, threads) for threads in (1, 2)]
        assert libm.fegetround() == upward  # and it is left as it was
    finally:
        libm.fesetround(0)
    assert all((one == expected).all() for one in found)


def unet(instructions=None, classes=3, size=(24, 20)):
    """A net with a joined map of signed bytes, some channels of which are read alone."""
    rng = np.random.default_rng(5)
    half = (size[0] // 2, size[1] // 2)
    net = _core.Net(*size, classes, instructions)
    src, _ = first(net, size, 8, 0, rng.uniform(20, 90, 8).astype(np.float32))
    joined, low, last = net.add_map(*size, 24, 128), net.add_map(*half, 24, 128), net.add_map(*size, 16, 0)
    low2 = (net.add_map(*half, 8, 0), 0, 8)

    def conv(src, dst, pool=None):
        fan = 9 * src[2]
        net.add_conv(src, dst, pool, integers(rng, dst[2], src[2], 3, 3), *factors(rng, dst[2], fan))

    conv(src, (joined, 0, 16), (low, 8, 16))
    conv((low, 8, 16), low2)
    net.add_up(low2, (joined, 16, 8), integers(rng, 8, 8, 2, 2), *factors(rng, 8, 8))
    conv((joined, 0, 24), (last, 0, 8))
    conv((joined, 8, 16), (last, 8, 8))
    net.add_head((last, 0, 16), integers(rng, 16, classes, 1, 1), *factors(rng, classes, 16))
    return net


@pytest.mark.parametrize(
    ("size", "sets"), [((24, 20), EACH), ((14, 18), EACH), ((40, 36), EACH[:1]), ((64, 72), EACH[:1])]
)
def test_instructions_threads_and_neighbours_change_no_bit(size, sets):
    """Nor what is known of empty slices, of which -0 is none, nor what is wanted, nor what slices before have left.

    Which tiles are computed, and which thread does, is decided alike for all sets of instructions: one goes through
    all numbers of threads and all sizes, the others through whole slices and shared ones, with and without odd maps.
    """
    rng = np.random.default_rng(4)
    x = np.zeros((12, 1, *size), np.float32)
    for number, plane in enumerate(x[2:, 0]):
        y, z = rng.integers(0, size)
        height, width = (1, 1) if number < 3 else rng.integers(1, size)
        plane[y : y + height, z : z + width] = rng.normal(size=plane[y : y + height, z : z + width].shape)
    signed = np.where(x == 0, np.float32(-0.0), x)
    whole = np.concatenate([run(unet("portable", size=size), 3, signed[i : i + 1]) for i in range(12)])
    assert len(np.unique(whole)) > 100
    wanted = rng.random((12, *size)) < 0.02
    where = np.broadcast_to(wanted[:, None], whole.shape)
    for instructions in sets:
        net = unet(instructions, size=size)
        for threads in (1, 2, 3, 7) if instructions == EACH[0] else (1, 7):
            for order in (np.arange(12), rng.permutation(12), rng.permutation(12)[:5]):
                assert (run(net, 3, x[order], threads) == whole[order]).all()
                found = run(net, 3, x[order], threads, wanted[order])
                same = found == whole[order]
                assert same[where[order]].all()
                assert (same | (found == -65504)).all()
                run(net, 3, slices(rng, 3, size), threads)


def net_of(*maps):
    net = _core.Net(8, 8, 1)
    for length, zero in maps:
        net.add_map(length, length, 8, zero)
    net.add_first((0, 0, 8), np.ones((8, 1, 3, 3), np.float32), np.zeros(8, np.float32), 1, 1)
    return net


ONE = np.ones(8, np.float32)
WEIGHTS = np.ones((8, 8, 3, 3), np.int8)


@pytest.mark.parametrize(
    ("message", "act"),
    [
        ("int8: got 'mmx', expected one of int8_instructions", lambda: _core.Net(8, 8, 1, "mmx")),
        ("fp32: got 'mmx', expected one of fp32_instructions", lambda: _core.Net(8, 8, 1, None, "mmx")),
        ("zero: got 256, expected from 0 to 255", lambda: net_of((8, 256))),
        ("zero: got -1, expected", lambda: net_of((8, -1))),
        (
            "map: got one of floats, expected one of bytes",
            lambda: net_of((8, 0), (8, None)).add_conv((0, 0, 8), (1, 0, 8), None, WEIGHTS, ONE, ONE),
        ),
        (
            "map: got one of bytes, expected one of floats",
            lambda: net_of((8, None), (8, 0)).add_conv(
                (0, 0, 8), (1, 0, 8), None, WEIGHTS.astype(np.float32), ONE
            ),
        ),
        (
            "map: got one of floats, expected one of bytes",
            lambda: net_of((8, None)).add_head((0, 0, 8), WEIGHTS[:, :1, :1, :1].copy(), ONE[:1], ONE[:1]),
        ),
        (
            "pool: got 4 x 4, expected half of dst, with as many channels and the same zero",
            lambda: net_of((8, 0), (8, 0), (4, 128)).add_conv(
                (0, 0, 8), (1, 0, 8), (2, 0, 8), WEIGHTS, ONE, ONE
            ),
        ),
        (
            r"scale: got shape \(7,\), expected \[8\]",
            lambda: net_of((8, 0), (8, 0)).add_conv((0, 0, 8), (1, 0, 8), None, WEIGHTS, ONE[:7], ONE),
        ),
    ],
)
def test_refusals(message, act):
    with pytest.raises(ArgumentError, match=f"^{message}"):
        act()


def test_sums_that_32_bits_do_not_hold_are_refused():
    net = _core.Net(4, 4, 1)
    for _ in range(2):
        net.add_map(4, 4, 7312, 0)
    net.add_first((0, 0, 7312), np.ones((7312, 1, 1, 1), np.float32), np.zeros(7312, np.float32), 1, 0)
    with pytest.raises(ArgumentError, match="src: got 7312 channels, expected so few that 32 bits hold"):
        net.add_conv((0, 0, 7312), (1, 0, 8), None, np.zeros((8, 7312, 3, 3), np.int8), ONE, ONE)


def test_nothing_is_converted():
    with pytest.raises(TypeError):
        net_of((8, 0), (8, 0)).add_conv((0, 0, 8), (1, 0, 8), None, WEIGHTS.astype(np.uint8), ONE, ONE)
