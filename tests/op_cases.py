"""The test bodies of the fused ops, for every device: ``==`` with trtseg.reference, and guard bytes.

A backend says where arrays live: `NumpyBackend` here, the CUDA one in tests/gpu/test_ops_cuda.py.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtseg import _core, reference
from trtseg.fit import Fit

GUARD = 64  # bytes before and after every output
GUARD_BYTE = 0xA5

#: The whole field of view: name -> native shape, spacing (sy, sx), net shape.
_WHOLE = {
    "one-pixel": ((1, 1), (1.0, 1.0), (1, 1)),
    "halve": ((128, 128), (0.7, 0.7), (64, 64)),
    "anisotropic-odd": ((117, 83), (1.3, 0.7), (32, 32)),
    "identity": ((65, 63), (1.0, 1.0), (65, 63)),
    "double": ((24, 24), (1.0, 1.0), (48, 48)),
    "enlarge-odd": ((30, 41), (1.0, 1.0), (64, 96)),
    "shrink-odd": ((100, 37), (0.9, 0.9), (7, 5)),
    "shrink-and-pad": ((24, 128), (1.0, 1.0), (32, 32)),
    "to-one-pixel": ((33, 57), (1.0, 1.0), (1, 1)),
    "from-one-pixel": ((1, 1), (1.0, 1.0), (9, 8)),
    "one-row": ((1, 300), (1.0, 1.0), (31, 100)),
}
GEOMETRIES = {name: Fit.whole_field_of_view(*sizes) for name, sizes in _WHOLE.items()}


def _placed(native: tuple, net: tuple, step: tuple, origin: tuple) -> Fit:
    return Fit(native, net, step, (0, 0), net, origin)


# Nets' grids that do not show the slice as a whole, or show it anywhere.
GEOMETRIES |= {
    "crop": _placed((90, 111), (32, 48), (2.3, 1.7), (7, 16)),
    "crop-and-pad": _placed((60, 60), (32, 32), (1.9, 2.1), (-11, 25)),
    "crop-halved": _placed((90, 111), (32, 48), (2.0, 2.0), (3, 5)),
    "crop-identity": _placed((40, 50), (16, 32), (1.0, 1.0), (11, -6)),
    "crop-enlarged": _placed((30, 20), (32, 48), (0.37, 0.8), (9, -7)),
    "inside": _placed((30, 20), (64, 96), (1.4, 1.4), (-17, -50)),
    "pixels-outside": _placed((5, 3), (40, 8), (0.25, 30.0), (-3, -100)),
    "beside": _placed((30, 20), (16, 16), (1.5, 1.5), (30, 0)),
    "far-beside": _placed((30, 20), (16, 16), (0.5, 0.5), (0, -5000)),
    "edges-on-centres-of-pixels": Fit((9, 8), (4, 4), (1.5, 1.5), (1, 1), (3, 3), (3, 3)),
    "part-of-the-grid": Fit((50, 60), (32, 32), (1.3, 1.3), (4, 7), (20, 9), (10, -4)),
}
#: What `thick` looks at: name -> shape of a slice, frame, and along each axis: pixels from sample to sample, samples.
SEARCHES = {
    "one-pixel": ((1, 1), (0, 1, 0, 1), (1, 1), (1, 1)),
    "as-of-a-ct": ((128, 96), (0, 128, 0, 96), (8, 4), (7, 3)),
    "odd-frame": ((67, 83), (5, 66, 3, 80), (3, 4), (2, 5)),
    "every-pixel": ((33, 40), (0, 33, 0, 40), (1, 3), (1, 6)),
    "single-samples": ((40, 50), (1, 40, 0, 49), (5, 1), (4, 1)),
    "narrower-than-thick": ((30, 50), (10, 13, 4, 48), (4, 1), (4, 11)),
    "all-of-it": ((12, 13), (0, 12, 0, 13), (1, 12), (1, 13)),
    "one-column": ((90, 1), (0, 90, 0, 1), (2, 3), (9, 1)),
    "one-row": ((1, 300), (0, 1, 20, 300), (30, 1), (3, 4)),
    "stride-beyond": ((20, 20), (0, 20, 0, 20), (2**31 - 1, 1), (100, 1)),
}
WINDOW = (-100.0, 400.0)
WINDOW2 = (-37.5, 187.25)


@dataclass
class NumpyBackend:
    """CPU: inputs are read-only NumPy arrays."""

    options: dict[str, Any] = field(default_factory=dict)  # of each call
    step: int = 1  # case_from_half looks at each step-th FP16 number

    def put(self, array: np.ndarray) -> Any:
        array = np.ascontiguousarray(array)
        array.flags.writeable = False
        return array

    def buffer(self, nbytes: int) -> Any:
        return np.full(nbytes, GUARD_BYTE, np.uint8)

    def view(self, buffer: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
        return buffer.view(dtype).reshape(shape)

    def get(self, array: Any) -> np.ndarray:
        return np.array(array)


class Output:
    """An output of an op between guard bytes, filled with rubbish."""

    def __init__(self, backend: Any, shape: tuple[int, ...], dtype: Any) -> None:
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        self.backend, self.end = backend, GUARD + nbytes
        self.buffer = backend.buffer(nbytes + 2 * GUARD)
        self.array = backend.view(self.buffer[GUARD : self.end], np.dtype(dtype), shape)

    def check(self, expected: np.ndarray) -> np.ndarray:
        """Compare every byte and the guards; return the array."""
        all_bytes, got = self.backend.get(self.buffer), self.backend.get(self.array)
        assert (all_bytes[:GUARD] == GUARD_BYTE).all(), "wrote before the output"
        assert (all_bytes[self.end :] == GUARD_BYTE).all(), "wrote behind the output"
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        if got.tobytes() != expected.tobytes():
            wrong = np.argwhere(got != expected)
            first = tuple(wrong[0]) if len(wrong) else "only in the sign of zeros or in NaN"
            raise AssertionError(f"{len(wrong)} of {got.size} elements differ, the first at {first}")
        return got


def slices(n: int, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """CT-like noise, with slices over the whole int16 range in between: int16 [n, Y, X]."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(40, 200, (n, *shape)).astype(np.int16)
    hu[1::2] = rng.integers(-32768, 32768, hu[1::2].shape)
    if n > 2:
        hu[2] = 32767
    return hu


def bodies(n: int, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Boxes of body in air with voxels at both thresholds, beside slices of air: int16 [n, Y, X]."""
    rng = np.random.default_rng(seed)
    hu = np.full((n, *shape), -1000, np.int16)
    for plane in hu[:: 1 + seed % 2]:
        y, x = np.sort(rng.integers(0, np.array(shape)[:, None] + 1, (2, 2)), axis=1)
        plane[y[0] : y[1], x[0] : x[1]] = rng.choice([-399, -399, 40, 32767], (y[1] - y[0], x[1] - x[0]))
        plane.flat[rng.integers(0, plane.size, 1 + plane.size // 300)] = rng.choice(
            [-400, -999, -1000, -32768]
        )
    return hu


def logits(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    """Noisy blobs of positive logits, with NaN, infinities and large numbers; the last slice has no liver."""
    rng = np.random.default_rng(seed)
    n, c, h, w = shape
    y, x = np.mgrid[:h, :w]
    centre = rng.uniform(0.2, 0.8, (n, c, 2, 1, 1)) * np.array([h, w])[:, None, None]
    distance = np.hypot(y - centre[:, :, 0], x - centre[:, :, 1]) / max(h, w)
    array = (2 - 8 * distance + rng.normal(0, 0.5, shape)).astype(dtype)
    if n:
        odd = np.array([np.nan, np.inf, -np.inf, 65504, -65504, 6e-8, -6e-8, 0, -0.0, 1e30, -1e30])
        with np.errstate(over="ignore"):
            odd = odd.astype(dtype)
        where = rng.integers(0, array.size, max(1, array.size // 50))
        array.reshape(-1)[where] = rng.choice(odd, len(where))
    if n > 1:
        array[-1] = -np.abs(array[-1])
    return array


def check_prepare(backend: Any, hu: np.ndarray, fit: Fit, window: tuple[float, float], dtype: Any) -> tuple:
    expected = reference.prepare(hu, fit, window, dtype)
    hu_net = Output(backend, (len(hu), *fit.net), np.int16)
    x1 = Output(backend, (len(hu), 1, *fit.net), dtype)
    _core.prepare(backend.put(hu), fit, window, hu_net.array, x1.array, **backend.options)
    return hu_net.check(expected[0]), x1.check(expected[1])


def check_frame(backend: Any, hu: np.ndarray) -> np.ndarray:
    box = Output(backend, (4,), np.int32)
    _core.frame(backend.put(hu), box.array, **backend.options)
    return box.check(reference.frame(hu))


def check_thick(backend: Any, hu: np.ndarray, *of: Any) -> np.ndarray:
    expected = reference.thick(hu, *of)
    mask = Output(backend, expected.shape, np.uint8)
    _core.thick(backend.put(hu), *of, mask.array, **backend.options)
    return mask.check(expected)


def check_gate(
    backend: Any,
    l1: np.ndarray,
    hu_net: np.ndarray,
    threshold: float,
    window: tuple[float, float],
    dtype: Any,
) -> tuple:
    expected = reference.gate(l1, hu_net, threshold, window, dtype)
    x2, liver_voxels = Output(backend, l1.shape, dtype), Output(backend, l1.shape[:1], np.int32)
    _core.gate(
        backend.put(l1),
        backend.put(hu_net),
        threshold,
        window,
        x2.array,
        liver_voxels.array,
        **backend.options,
    )
    return x2.check(expected[0]), liver_voxels.check(expected[1])


def check_label(
    backend: Any, l1: np.ndarray, l2: np.ndarray, thresholds: tuple[float, float], fit: Fit
) -> tuple:
    call = functools.partial(_core.label, backend.put(l1), backend.put(l2), thresholds)
    return _check_labels(backend, call, reference.label(l1, l2, thresholds, fit), fit)


def check_label3(backend: Any, array: np.ndarray, fit: Fit) -> tuple:
    call = functools.partial(_core.label3, backend.put(array))
    return _check_labels(backend, call, reference.label3(array, fit), fit)


def _check_labels(backend: Any, call: Callable[..., None], expected: tuple, fit: Fit) -> tuple:
    n = len(expected[0])
    labels, counts = Output(backend, (n, *fit.native), np.uint8), Output(backend, (n, 2), np.int32)
    call(fit, labels.array, counts.array, **backend.options)
    return labels.check(expected[0]), counts.check(expected[1])


# ---- The cases that every device must pass. ---------------------------------------------------------------


def case_frame(backend: Any) -> None:
    """Nothing, one voxel anywhere, boxes and noise, in few and in many slices."""
    for shape in ((1, 1), (1, 300), (70, 1), (33, 65), (64, 96)):
        for n in (0, 1, 2, 9, 35):
            hu = np.full((n, *shape), -1000, np.int16)
            assert check_frame(backend, hu.copy()).tolist() == [shape[0], 0, shape[1], 0]
            for z, y, x in ((0, 0, 0), (-1, -1, -1), (n // 2, shape[0] // 3, shape[1] // 2)) if n else ():
                hu[z, y, x] = -999
                check_frame(backend, hu.copy())
        for seed in range(3):
            check_frame(backend, bodies(20, shape, seed))
        check_frame(backend, slices(3, shape))


def case_thick(backend: Any, search: str, n: int) -> None:
    shape, *of = SEARCHES[search]
    for seed in range(4):
        check_thick(backend, bodies(n, shape, seed), *of)
    assert check_thick(backend, np.full((n, *shape), -399, np.int16), *of).all() == (n > 0)
    assert not check_thick(backend, np.full((n, *shape), -400, np.int16), *of).any()


def case_prepare(backend: Any, geometry: str, n: int, dtype: Any) -> None:
    fit = GEOMETRIES[geometry]
    check_prepare(backend, slices(n, fit.native), fit, WINDOW, dtype)


def case_gate(backend: Any, geometry: str, n: int, dtype_in: Any, dtype_out: Any) -> None:
    h, w = GEOMETRIES[geometry].net
    l1 = logits((n, 1, h, w), dtype_in)
    for threshold in (0.0, -1.3862944):
        check_gate(backend, l1, slices(n, (h, w)), threshold, WINDOW2, dtype_out)


def case_label(backend: Any, geometry: str, n: int, dtype: Any) -> None:
    fit = GEOMETRIES[geometry]
    l1, l2 = (logits((n, 1, *fit.net), dtype, seed) for seed in (1, 2))
    _, counts = check_label(backend, l1, l2, (0.0, 0.25), fit)
    if n > 1:
        assert (counts[-1] == 0).all()  # this slice has no liver
    check_label(backend, l1, l2, (-3.0, -2.5), fit)


def case_label3(backend: Any, geometry: str, n: int, dtype: Any) -> None:
    fit = GEOMETRIES[geometry]
    check_label3(backend, logits((n, 3, *fit.net), dtype), fit)


def case_skipped_slices(backend: Any, dtype: Any) -> None:
    """Tumour logits of a slice without a liver pixel change nothing: not running the tumour net is exact."""
    fit = GEOMETRIES["anisotropic-odd"]
    l1 = logits((4, 1, *fit.net), dtype)
    l1[1] = -np.abs(np.nan_to_num(l1[1]))
    l1[2] = np.nan
    _, liver_voxels = check_gate(backend, l1, slices(4, fit.net), 0.0, WINDOW2, dtype)
    assert list(liver_voxels > 0) == [True, False, False, False]
    results = []
    for stale in (np.nan, np.inf, -1.0):
        l2 = logits((4, 1, *fit.net), dtype, seed=3)
        l2[liver_voxels == 0] = stale
        results.append(check_label(backend, l1, l2, (0.0, 0.0), fit))
    labels, counts = results[0]
    assert counts[0].all()
    assert not counts[1:].any()
    for other_labels, other_counts in results[1:]:
        assert (other_labels == labels).all()
        assert (other_counts == counts).all()


def case_to_half(backend: Any) -> None:
    """A dense sample of [0, 1] as FP16, with subnormals and ties, through the window."""
    hu = np.arange(-32768, 32768).astype(np.int16).reshape(1, 256, 256)
    fit = Fit.identity((256, 256))
    # 1 / 2**26 is a tie below 2**-24.
    for hi in (2**9, 2**12 + 1, 2**15, 1e5, 2**24, 2**26, 3e9, 2**38, 2**41):
        for lo in (0.0, 0.5, -1.0):
            check_prepare(backend, hu, fit, (lo, lo + hi), np.float16)


def case_from_half(backend: Any) -> None:
    """Each of the 65536 FP16 numbers lies above the next smaller float32, and not above itself."""
    half = np.arange(65536, dtype=np.uint16).view(np.float16)
    number = half[np.isfinite(half)].astype(np.float32)
    below = np.nextafter(number, np.float32(-np.inf))
    n = len(number)
    l1 = backend.put(half[np.isfinite(half)].reshape(n, 1, 1, 1))
    hu = backend.put(np.zeros((n, 1, 1), np.int16))
    x2, count = Output(backend, (1, 1, 1, 1), np.float32), Output(backend, (1,), np.int32)
    for i in range(0, n, backend.step):
        for threshold, expected in ((number[i], 0), (below[i], 1)):
            _core.gate(
                l1[i : i + 1],
                hu[i : i + 1],
                float(threshold),
                (0, 1),
                x2.array,
                count.array,
                **backend.options,
            )
            assert backend.get(count.array)[0] == expected, (number[i], threshold)
    rest = half[~np.isfinite(half)].reshape(1, 1, 1, -1)  # infinities and all NaN
    check_gate(backend, rest, np.zeros((1, 1, rest.size), np.int16), 65504.0, (-1, 1), np.float32)
