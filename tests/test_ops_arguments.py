"""Arguments of the fused ops that are wrong: refused by name, before anything is written."""

import itertools
import types
from dataclasses import replace

import numpy as np
import pytest
from op_cases import WINDOW, NumpyBackend

from trtseg import _core
from trtseg.errors import ArgumentError, DeviceError
from trtseg.fit import Fit


def good_calls():
    """Per op, arguments that are right: {op: {argument: value}}."""
    fit = Fit.whole_field_of_view((6, 8), (1.0, 1.0), (3, 4))
    net, native, f32 = (2, 3, 4), (2, 6, 8), np.float32
    l1, labels = np.zeros((2, 1, 3, 4), f32), {"labels": np.zeros(native, np.uint8)}
    labels["counts"] = np.zeros((2, 2), np.int32)
    return {
        "frame": {"hu": np.zeros(native, np.int16), "box": np.zeros(4, np.int32)},
        "thick": {
            "hu": np.zeros(native, np.int16),
            "frame": (0, 6, 1, 8),
            "rows": (2, 1),
            "columns": (3, 2),
            "mask": np.zeros((3, 2), np.uint8),
        },
        "prepare": {
            "hu": np.zeros(native, np.int16),
            "fit": fit,
            "window": WINDOW,
            "hu_net": np.zeros(net, np.int16),
            "x1": np.zeros_like(l1),
        },
        "gate": {
            "l1": l1,
            "hu_net": np.zeros(net, np.int16),
            "logit_threshold": 0.0,
            "window": WINDOW,
            "x2": np.zeros_like(l1),
            "liver_voxels": np.zeros(2, np.int32),
        },
        "label": {"l1": l1, "l2": l1.copy(), "logit_thresholds": (0.0, 0.0), "fit": fit, **labels},
        "label3": {"logits": np.zeros((2, 3, 3, 4), f32), "fit": fit, **labels},
    }


OUTPUTS = {"frame": ["box"], "thick": ["mask"], "prepare": ["hu_net", "x1"], "gate": ["x2", "liver_voxels"]}
OUTPUTS["label"] = OUTPUTS["label3"] = ["labels", "counts"]
ARRAYS = [(op, a) for op, args in good_calls().items() for a in args if isinstance(args[a], np.ndarray)]


def call_with(op, **changes):
    args = good_calls()[op] | changes
    before = {name: args[name].tobytes() for name in OUTPUTS[op] if isinstance(args[name], np.ndarray)}
    try:
        getattr(_core, op)(**args)
    except Exception:
        assert all(args[name].tobytes() == old for name, old in before.items()), "wrote before checking"
        raise


def test_every_op_is_here():
    functions = {name: one for name, one in vars(_core).items() if isinstance(one, types.BuiltinFunctionType)}
    assert good_calls().keys() == {name for name, one in functions.items() if "stream: " in one.__doc__}


@pytest.mark.parametrize(("op", "name"), ARRAYS)
def test_wrong_arrays_are_refused_by_name(op, name):
    good = good_calls()[op][name]
    wide = np.zeros((*good.shape[:-1], 2 * good.shape[-1]), good.dtype)
    refusals = [
        (good.astype(np.float64), "got dtype float64, expected .*astype"),
        (wide[..., ::2], "got an array that is not C-contiguous"),
        (good.tolist(), "got list, expected a NumPy array"),
        (None, "got NoneType"),
        (good[None, None, None], r"got shape \(1, 1, 1, \d.*expected"),
    ]
    if good.itemsize > 1:
        buffer = np.zeros(good.nbytes + 1, np.uint8)
        odd = buffer[1:].view(good.dtype).reshape(good.shape)
        refusals.append((odd, "got an array that is not C-contiguous and aligned"))
        refusals.append((good.astype(good.dtype.newbyteorder()), "got dtype >"))
    if name in OUTPUTS[op]:
        refusals.append((NumpyBackend().put(good.copy()), "got a read-only array"))
    for bad, message in refusals:
        with pytest.raises(ArgumentError, match=f"^{name}: {message}"):
            call_with(op, **{name: bad})


@pytest.mark.parametrize(("op", "name"), [a for a in ARRAYS if a not in (("frame", "hu"), ("thick", "hu"))])
def test_wrong_shapes_are_refused(op, name):
    good = good_calls()[op][name]
    # gate takes its sizes from hu_net, the others the number of slices from their first array: where that one
    # is wrong, it is another that differs from it.
    blamed = "l1" if (op, name) == ("gate", "hu_net") else name
    wide = np.zeros((*good.shape[:-1], 77), good.dtype)
    with pytest.raises(ArgumentError, match=rf"^{blamed}: got shape \(.*expected \(.*of that shape$"):
        call_with(op, **{name: wide})
    first = next(iter(good_calls()[op])) if op != "gate" else "hu_net"
    with pytest.raises(ArgumentError, match=rf"{'' if name == first else name}: got shape \(.*expected \("):
        call_with(op, **{name: np.zeros((7, *good.shape[1:]), good.dtype)})


def in_one_buffer(first, second, at):
    """Two arrays like these, the second of which begins ``at`` bytes behind the begin of the first."""
    buffer = np.zeros(at + first.nbytes + second.nbytes, np.uint8)
    places = (0, first), (at, second)
    return [buffer[begin : begin + a.nbytes].view(a.dtype).reshape(a.shape) for begin, a in places]


@pytest.mark.parametrize(
    ("op", "name", "other"), [(*a, b) for a in ARRAYS for b in OUTPUTS[a[0]] if a[1] != b]
)
def test_outputs_have_memory_of_their_own(op, name, other):
    first, second = good_calls()[op][name], good_calls()[op][other]
    last = (first.nbytes - 1) // 4 * 4  # where both are aligned
    for at in (0, last):
        arrays = in_one_buffer(first, second, at)
        with pytest.raises(
            ArgumentError, match=f"^({other}|{name}): got an array in the memory of ({other}|{name}),"
        ):
            call_with(op, **dict(zip((name, other), arrays, strict=True)))
    beside = in_one_buffer(first, second, last + 4)
    call_with(op, **dict(zip((name, other), beside, strict=True)))


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        ("prepare", {"window": (400, -100)}, r"window: got \(400, -100\), expected two finite numbers"),
        ("prepare", {"window": (5, 5)}, "window: .*the lower one first"),
        ("prepare", {"window": (float("nan"), 5)}, "window: "),
        ("gate", {"window": (0, float("inf"))}, "window: "),
        ("gate", {"window": (0, 1e39)}, "window: "),
        ("gate", {"window": (-3e38, 3e38)}, "window: "),
        ("gate", {"window": (1e9, 1e9 + 1)}, "window: "),  # equal in float32
        ("gate", {"window": 5}, r"window: got 5, expected \(lower, upper\)"),
        ("gate", {"window": "ab"}, "window: got 'ab'"),
        ("gate", {"window": (1, 2, 3)}, "window: "),
        ("gate", {"logit_threshold": float("nan")}, "logit_threshold: got nan, expected a finite logit"),
        ("gate", {"logit_threshold": 1e39}, "logit_threshold: "),
        ("label", {"logit_thresholds": (0, float("inf"))}, r"logit_thresholds\[1\]: got inf"),
        ("label", {"logit_thresholds": 0.5}, "logit_thresholds: got 0.5"),
        ("label", {"fit": None}, "fit: got NoneType, expected a trtseg.fit.Fit"),
        ("prepare", {"threads": -1}, "threads: got -1"),
        (
            "thick",
            {"frame": (0, 7, 1, 8)},
            "frame: got 0 to 7 along y, expected a part of the slice's 6 pixels",
        ),
        ("thick", {"frame": (0, 6, 8, 8)}, "frame: got 8 to 8 along x"),
        ("thick", {"frame": (-1, 6, 1, 8)}, "frame: got -1 to 6 along y"),
        ("thick", {"frame": (0, 6)}, r"frame: got \(0, 6\), expected begin and end of the rows"),
        ("thick", {"rows": (2, 4)}, "rows: got 4 samples of every 2 pixels"),
        ("thick", {"rows": (0, 1)}, "rows: got 1 samples of every 0 pixels"),
        ("thick", {"columns": (3, 0)}, "columns: got 0 samples of every 3 pixels"),
        ("thick", {"columns": (2**31, 1)}, "columns: got "),
        ("thick", {"columns": 3}, "columns: got 3, expected"),
        ("frame", {"threads": -1}, "threads: got -1"),
        ("frame", {"hu": np.zeros((2, 0, 8), np.int16)}, "hu: got slices of 0x8, expected 1 to 32767 rows"),
    ],
)
def test_wrong_numbers_are_refused(op, changes, message):
    with pytest.raises(ArgumentError, match=message):
        call_with(op, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": (2.0, 0.0)}, "fit: got step 0 along x"),
        ({"step": (float("nan"), 2.0)}, "fit: got step nan along y"),
        ({"step": (float("inf"), 2.0)}, "fit: got step inf along y"),
        ({"offset": (-1, 0)}, "fit: got offset -1"),
        ({"offset": (1, 0)}, "fit: got offset 1 and extent 3 along y"),
        ({"extent": (3, 0)}, "fit: got offset 0 and extent 0 along x"),
        ({"extent": (2**31 - 1, 4)}, "fit: "),
        ({"origin": (0, 2**25)}, "fit: got origin 33554432 and 4 net pixels of 2 native ones along x"),
        ({"origin": (-(2**25), 0)}, "fit: got origin -33554432 and 3 net pixels of 2 native ones along y"),
        ({"step": (2.0, 1e9)}, "fit: got origin 0 and 4 net pixels of 1e\\+09 native ones along x"),
        ({"origin": (0.5, 0)}, "fit.origin: "),
        ({"net": (0, 4)}, "fit: got 6 native and 0 net pixels along y"),
        ({"native": (40000, 8)}, "fit: got 40000 native"),
        ({"native": (6, 7)}, r"got shape \(2, 6, 8\), expected \(n, 6, 7\)"),
        ({"native": (6.5, 7)}, "fit.native: "),
        ({"native": 6}, "fit.native: got 6"),
    ],
)
def test_wrong_fits_are_refused(changes, message):
    fit = good_calls()["prepare"]["fit"]
    with pytest.raises(ArgumentError, match=message):
        call_with("prepare", fit=replace(fit, **changes))


# ---- Arrays of another kind. -------------------------------------------------------------------------------


class OnGpu:
    """Something that says that it is a CUDA array, in memory of its own."""

    _addresses = itertools.count(1 << 20, 1 << 20)

    def __init__(self, array, **changes):
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (next(self._addresses), False),
            "version": 3,
            "strides": None,
        } | changes


def test_arrays_on_two_devices_are_refused():
    hu_net = OnGpu(good_calls()["prepare"]["hu_net"])
    with pytest.raises(ArgumentError, match="hu_net: got a CUDA array, but hu is a CPU array"):
        call_with("prepare", hu_net=hu_net)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"typestr": "<f8"}, "x1: got dtype '<f8', expected float32 or float16"),
        ({"typestr": ">f4"}, "x1: got dtype '>f4'"),
        ({"strides": (48, 48, 4, 12)}, "x1: .*C-contiguous"),
        ({"data": (1 << 20, True)}, "x1: got a read-only array"),
        ({"data": ((1 << 20) + 2, False)}, "x1: .*aligned"),
        ({"data": None}, "x1: got a malformed __cuda_array_interface__"),
        ({"shape": (1,) * 5}, "x1: got shape .*at most 4"),
    ],
)
def test_wrong_cuda_arrays_are_refused(changes, message):
    x1 = OnGpu(good_calls()["prepare"]["x1"], **changes)
    with pytest.raises(ArgumentError, match=message):
        call_with("prepare", **cuda_call() | {"x1": x1})


def cuda_call():
    args = good_calls()["prepare"]
    return {name: OnGpu(args[name]) for name in ("hu", "hu_net", "x1")}


@pytest.mark.skipif(_core.build_info()["cuda"], reason="built with CUDA")
def test_cuda_arrays_need_a_build_with_cuda():
    with pytest.raises(DeviceError, match="rebuild it with nvcc"):
        call_with("prepare", **cuda_call())


@pytest.mark.skipif(not _core.build_info()["cuda"], reason="built without CUDA")
def test_an_address_that_is_not_on_a_gpu_is_refused():
    with pytest.raises((ArgumentError, DeviceError), match=r"GPU|driver"):
        call_with("prepare", **cuda_call())
