"""The fused ops on the CPU against the NumPy oracle, and the oracle against numbers worked out by hand."""

import ctypes
import platform
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import (
    GEOMETRIES,
    SEARCHES,
    WINDOW,
    WINDOW2,
    NumpyBackend,
    bodies,
    case_frame,
    case_from_half,
    case_gate,
    case_label,
    case_label3,
    case_prepare,
    case_skipped_slices,
    case_thick,
    case_to_half,
    check_frame,
    check_gate,
    check_label,
    check_label3,
    check_prepare,
    check_thick,
    logits,
    slices,
)

from trtseg import _core, reference
from trtseg.fit import Fit

DTYPES = [np.float32, np.float16]
CPU = NumpyBackend()
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)


# ---- The oracle, pinned. -----------------------------------------------------------------------------------


def line_fit(
    native: int, net: int, step: float, offset: int = 0, extent: int | None = None, origin: int = 0
) -> Fit:
    """One row of pixels."""
    return Fit((1, native), (1, net), (1.0, step), (0, offset), (1, extent or net), (0, origin))


def prepare_line(row: list[int], fit: Fit) -> list[int]:
    return reference.prepare(np.array([[row]], np.int16), fit, (0, 1))[0][0, 0].tolist()


@pytest.mark.parametrize(
    ("square", "mean"),
    [
        ([[0, 2], [4, 8]], 4),  # 3.5, half to even
        ([[1, 2], [3, 4]], 2),  # 2.5
        ([[-1, -2], [-3, -4]], -2),  # -2.5
        ([[10, 20], [30, 41]], 25),  # 25.25
        ([[32767, 32767], [32767, 32767]], 32767),
        ([[-32768, -32768], [-32768, -32768]], -32768),
    ],
)
def test_two_by_two_becomes_its_mean(square, mean):
    fit = Fit((2, 2), (1, 1), (2.0, 2.0), (0, 0), (1, 1))
    hu_net, _ = reference.prepare(np.array([square], np.int16), fit, (0, 1))
    assert hu_net.tolist() == [[[mean]]]
    assert hu_net.dtype == np.int16


def test_shrinking_weighs_pixels_by_the_part_that_is_covered():
    assert prepare_line([0, 30, 60], line_fit(3, 2, 1.5)) == [10, 50]


def test_enlarging_interpolates_between_centres():
    assert prepare_line([0, 100], line_fit(2, 4, 0.5)) == [0, 25, 75, 100]


def test_outside_the_field_of_view_is_air():
    assert prepare_line([7, 8], line_fit(2, 5, 1.0, offset=2, extent=2)) == [-1000, -1000, 7, 8, -1000]


def test_a_grid_begins_anywhere_beside_or_inside_the_slice():
    row = [10, 20, 30, 40, 50, 60]
    assert prepare_line(row, line_fit(6, 2, 2.0, origin=1)) == [25, 45]
    assert prepare_line(row, line_fit(6, 3, 1.5, origin=-2)) == [-1000, 10, 23]  # (20 + 30 / 2) / 1.5 = 23.3
    assert prepare_line(row, line_fit(6, 3, 2.5, origin=3)) == [
        48,
        60,
        -1000,
    ]  # (40 + 50 + 60 / 2) / 2.5 = 48
    assert prepare_line(row, line_fit(6, 4, 0.5, origin=2)) == [28, 32, 38, 42]  # 27.5 and 37.5: half to even
    assert prepare_line(row, line_fit(6, 4, 0.5, origin=-1)) == [-1000, -1000, 10, 12]  # 12.5
    assert prepare_line(row, line_fit(6, 2, 2.0, origin=6)) == [-1000, -1000]
    assert prepare_line(row, line_fit(6, 2, 2.0, origin=-4)) == [-1000, -1000]


def test_outside_the_grid_is_background():
    fit = line_fit(8, 2, 2.0, origin=2)
    assert label_line([1, 1], [-1, 1], (0, 0), fit) == (
        [0, 0, 1, 1, 2, 2, 0, 0],
        [[2, 2]],
    )  # l2: -1 -0.5 0.5 1
    three = np.array([[-9, -9], [5, 5], [5, 7]], np.float32).reshape(1, 3, 1, 2)
    assert reference.label3(three, fit)[0].tolist() == [[[0, 0, 1, 2, 2, 2, 0, 0]]]


def test_a_pixel_whose_centre_is_the_first_edge_of_the_grid_is_inside_and_one_at_the_last_edge_is_not():
    fit = line_fit(9, 4, 1.5, offset=1, extent=3, origin=3)  # from 1.5 to 7.5
    assert label_line([1] * 4, [-1] * 4, (0, 0), fit)[0] == [0, 1, 1, 1, 1, 1, 1, 0, 0]


def test_window_clamps():
    hu = np.array([[[-32768, -1, 0, 100, 400, 401]]], np.int16)
    _, x1 = reference.prepare(hu, Fit.identity((1, 6)), (0, 400))
    assert x1.tolist() == [[[[0, 0, 0, 0.25, 1, 1]]]]
    assert x1.dtype == np.float32


def test_a_logit_at_the_threshold_is_not_liver():
    t = np.float32(0.3)
    l1 = np.array([t, np.nextafter(t, np.float32(1)), -9, np.nan, np.inf, -np.inf], np.float32)
    hu = np.full((1, 1, 6), 50, np.int16)
    x2, liver_voxels = reference.gate(l1.reshape(1, 1, 1, 6), hu, float(t), (0, 100), np.float16)
    assert x2.tolist() == [[[[0, 0.5, 0, 0, 0.5, 0]]]]
    assert x2.dtype == np.float16
    assert liver_voxels.tolist() == [2]


def label_line(l1: list[float], l2: list[float], thresholds: tuple[float, float], fit: Fit) -> tuple:
    arrays = [np.array([[[row]]], np.float32) for row in (l1, l2)]
    labels, counts = reference.label(*arrays, thresholds, fit)
    return labels[0, 0].tolist(), counts.tolist()


def test_two_logits_become_four_labels():
    fit = line_fit(4, 2, 2.0)
    assert label_line([-1, 2], [9, 9], (0, 0), fit) == ([0, 0, 2, 2], [[0, 2]])  # -1 -0.25 1.25 2
    assert label_line([-1, 3], [9, 9], (0, 0), fit) == ([0, 0, 2, 2], [[0, 2]])  # -1 0 2 3: 0 is not liver
    assert label_line([-1, 4], [-3, 1], (0, 0), fit) == ([0, 1, 1, 2], [[2, 1]])  # -3 -2 0 1
    assert label_line([0, 5], [0, 2], (1, 1), fit) == ([0, 1, 2, 2], [[1, 2]])  # margins -1 4 and -1 1


def test_nan_and_infinities_do_not_spread():
    fit = line_fit(6, 3, 2.0)
    # Margins -65504, 65504, -65504: the pixels beside the middle one are at -32752 and 32752.
    assert label_line([np.nan, np.inf, np.nan], [1, 1, 1], (0, 0), fit)[0] == [0, 0, 2, 2, 0, 0]


def test_the_largest_of_three_wins_and_the_lowest_class_on_ties():
    rows = np.array([[1, 0, 0, 5, np.nan], [1, 2, 0, 5, -9], [0, 2, 7, 5, np.nan]], np.float32)
    labels, counts = reference.label3(rows.reshape(1, 3, 1, 5), Fit.identity((1, 5)))
    assert labels.tolist() == [[[0, 1, 2, 0, 1]]]
    assert counts.tolist() == [[2, 1]]


def test_the_frame_begins_above_air():
    hu = np.full((2, 5, 6), -1000, np.int16)
    assert reference.frame(hu).tolist() == [5, 0, 6, 0]
    hu[0, 1, 4] = hu[1, 3, 2] = -999
    assert reference.frame(hu).tolist() == [1, 4, 2, 5]
    assert reference.frame(hu[:0]).tolist() == [5, 0, 6, 0]


def test_thick_is_what_holds_enough_samples_in_one_slice():
    row = np.array([9, -400, 9, 9, -399, 9, 9, 9], np.int16)  # every second: 9, 9, -399, 9
    hu = np.stack([np.stack([row, row]), np.full((2, 8), -400, np.int16)])
    assert reference.thick(hu, (0, 2, 0, 8), (1, 2), (2, 3)).tolist() == [[1, 1]]
    assert reference.thick(hu, (0, 2, 0, 8), (1, 2), (1, 3)).tolist() == [[0, 0, 1, 1, 1, 1]]
    assert reference.thick(hu, (0, 2, 1, 8), (1, 1), (2, 2)).tolist() == [[0, 1, 1]] * 2  # -400, 9, 9, 9
    hu[1, 1], hu[0, 1] = row, -400  # a row in each slice is not two rows
    assert not reference.thick(hu, (0, 2, 0, 8), (1, 2), (2, 3)).any()


# ---- The extension equals the oracle. ----------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("geometry", GEOMETRIES)
class TestEqualsOracle:
    def test_prepare(self, geometry, n, dtype):
        case_prepare(CPU, geometry, n, dtype)

    @pytest.mark.parametrize("dtype_in", DTYPES, ids=lambda d: f"from-{d.__name__}")
    def test_gate(self, geometry, n, dtype_in, dtype):
        case_gate(CPU, geometry, n, dtype_in, dtype)

    def test_label(self, geometry, n, dtype):
        case_label(CPU, geometry, n, dtype)

    def test_label3(self, geometry, n, dtype):
        case_label3(CPU, geometry, n, dtype)


def test_frame():
    case_frame(CPU)


@pytest.mark.parametrize("n", [0, 1, 3, 19])
@pytest.mark.parametrize("search", SEARCHES)
def test_thick(search, n):
    case_thick(CPU, search, n)


@dtypes
def test_skipping_the_tumour_net_is_exact(dtype):
    case_skipped_slices(CPU, dtype)


def test_rounding_to_half_and_back():
    case_to_half(CPU)
    case_from_half(CPU)


sides = st.integers(1, 40)
steps, origins = st.floats(0.2, 9), st.integers(-60, 60)


@given(
    native=st.tuples(sides, sides),
    net=st.tuples(sides, sides),
    step=st.tuples(steps, steps),
    origin=st.tuples(origins, origins),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=120, deadline=None)
def test_any_placement(native, net, step, origin, seed, dtype):
    fit = Fit(native, net, step, (0, 0), net, origin)
    hu_net, _ = check_prepare(CPU, slices(2, native, seed), fit, WINDOW, dtype)
    l1, l2 = (logits((2, 1, *net), dtype, seed + i) for i in (0, 1))
    check_gate(CPU, l1, hu_net, 0.1, WINDOW2, dtype)
    check_label(CPU, l1, l2, (0.1, -0.2), fit)
    check_label3(CPU, logits((2, 3, *net), dtype, seed), fit)


@pytest.mark.parametrize("threads", [1, 4])
def test_any_number_of_threads(threads):
    backend, n = NumpyBackend({"threads": threads}), 32  # enough work that four threads do start
    fit = Fit.whole_field_of_view((512, 512), (0.7, 0.7), (256, 256))
    check_prepare(backend, slices(n, fit.native), fit, WINDOW, np.float32)
    l1, l2 = (logits((n, 1, *fit.net), np.float32, seed) for seed in (0, 1))
    check_gate(backend, l1, slices(n, fit.net), 0.0, WINDOW2, np.float32)
    check_label(backend, l1, l2, (0.0, 0.0), fit)
    check_label3(backend, logits((n, 3, *fit.net), np.float32), fit)
    hu = np.concatenate([np.full_like(slices(20, fit.native), -1000), bodies(n, fit.native, 1)])
    assert check_frame(backend, hu)[1] > 0
    assert check_thick(backend, hu, (0, 512, 3, 500), (8, 4), (7, 4)).any()


def test_mixed_precisions_of_the_two_nets():
    fit = GEOMETRIES["anisotropic-odd"]
    l1, l2 = logits((2, 1, *fit.net), np.float32), logits((2, 1, *fit.net), np.float16)
    check_label(CPU, l1, l2, (0.0, 0.0), fit)
    check_label(CPU, l2, l1, (0.0, 0.0), fit)


def test_the_rounding_mode_of_the_process_does_not_matter():
    libm = ctypes.CDLL("libm.so.6")
    fit = GEOMETRIES["anisotropic-odd"]
    hu = slices(2, fit.native)
    l1, l2 = (logits((2, 1, *fit.net), np.float32, seed) for seed in (0, 1))
    l3 = logits((2, 3, *fit.net), np.float32)
    hu_net, x1 = reference.prepare(hu, fit, WINDOW, np.float16)
    gated = reference.gate(l1, hu_net, 0.3, WINDOW2, np.float16)
    labels = reference.label(l1, l2, (0.3, 0.7), fit), reference.label3(l3, fit)
    expected = [(hu_net, x1), gated, *labels]
    found = [tuple(np.empty(one.shape, one.dtype) for one in op) for op in expected]
    upward = {"x86_64": 0x800, "aarch64": 0x400000}[platform.machine()]  # FE_UPWARD
    try:
        assert libm.fesetround(upward) == 0
        _core.prepare(hu, fit, WINDOW, *found[0])
        _core.gate(l1, hu_net, 0.3, WINDOW2, *found[1])
        _core.label(l1, l2, (0.3, 0.7), fit, *found[2])
        _core.label3(l3, fit, *found[3])
        assert libm.fegetround() == upward  # and it is left as it was
    finally:
        libm.fesetround(0)
    for op, here in zip(expected, found, strict=True):
        assert [one.tobytes() for one in here] == [one.tobytes() for one in op]


def test_works_in_a_forked_process():
    script = """
import os, numpy as np
from trtseg import _core
from trtseg.fit import Fit
def run():
    hu, net = np.zeros((32, 256, 256), np.int16), np.empty((32, 256, 256), np.int16)
    x1 = np.empty((32, 1, 256, 256), np.float32)
    _core.prepare(hu, Fit.identity((256, 256)), (0, 1), net, x1, threads=4)
    return not net.any()
assert run()
child = os.fork()
if child == 0:
    os._exit(0 if run() else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
