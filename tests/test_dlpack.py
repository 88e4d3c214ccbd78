"""Arrays of other libraries on a GPU, through ``__cuda_array_interface__`` and DLPack: what is read out of them.

Nobody looks at the memory, so no GPU is needed. What is done with such arrays is in cascade_cases.py.
"""

import gc
import types

import numpy as np
import pytest
import tiny
from cuda_shim.producer import COPIED, READ_ONLY, OldProducer, Producer

import trtseg
from trtseg.cuda import dlpack
from trtseg.cuda.arrays import CudaArray
from trtseg.errors import ArgumentError

ADDRESS, STREAM = 1 << 20, 77
SHAPE = (3, 4, 5)


def taken(producer, name="hu", dtype=np.int16, ndim=3, device=0) -> CudaArray:
    return dlpack.view(producer, name, dtype, ndim, device=device, stream=STREAM)


# ---- DLPack. -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Producer, OldProducer])
@pytest.mark.parametrize("strides", [None, (20, 5, 1)])
def test_a_tensor_is_used_where_it_is(kind, strides):
    producer = kind(ADDRESS, SHAPE, np.int16, strides=strides, byte_offset=6)
    assert dlpack.on_gpu(producer)
    view = taken(producer)
    assert (view.address, view.shape, view.dtype) == (ADDRESS + 6, SHAPE, np.int16)
    assert not view.read_only
    assert producer.streams == [STREAM]
    assert view.stream == view[1:].stream == STREAM  # whose work on it has to be waited for
    assert '"used_dltensor' in repr(producer.capsules[0])  # nobody else may take it


@pytest.mark.parametrize("kind", [Producer, OldProducer])
def test_it_lives_as_long_as_a_part_of_it_is_used(kind):
    producer = kind(ADDRESS, SHAPE, np.int16)
    part = taken(producer)[1:][:1]
    producer.capsules.clear()
    gc.collect()
    assert producer.deleted == 0
    del part
    assert producer.deleted == 1


def test_axes_of_one_element_may_have_any_stride():
    assert taken(Producer(ADDRESS, (1, 4, 1), np.int16, strides=(1, 1, 9))).shape == (1, 4, 1)


def test_an_empty_array_has_no_address():
    assert taken(Producer(0, (0, 4, 5), np.int16, strides=(7, 7, 7))).shape == (0, 4, 5)


@pytest.mark.parametrize("flags", [READ_ONLY, COPIED, READ_ONLY | COPIED])
def test_what_must_not_be_written_into_says_so(flags):
    view = taken(Producer(ADDRESS, SHAPE, np.uint8, flags=flags), dtype=np.uint8)
    assert view.read_only
    assert view[1:].__cuda_array_interface__["data"][1]


@pytest.mark.parametrize("kind", [Producer, OldProducer])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": np.uint8}, r"hu: got uint8 of shape \(3, 4, 5\); expected int16 with 3 axes"),
        ({"dtype": np.float16}, "hu: got float16 of"),
        ({"lanes": 2}, "hu: got int16x2 of"),
        ({"shape": (4, 5)}, r"hu: got int16 of shape \(4, 5\)"),
        ({"shape": ()}, r"hu: got int16 of shape \(\)"),
        ({"shape": (-1, 4, 5)}, r"hu: got int16 of shape \(-1, 4, 5\)"),
        ({"strides": (20, 1, 4)}, "hu: got an array that is not C-contiguous"),
        ({"strides": (40, 10, 2)}, "hu: got an array that is not C-contiguous"),
        ({"address": 0}, "hu: got a null pointer"),
        ({"device": (2, 1)}, "hu: got an array on GPU 1; expected one on GPU 0, copy it there"),
        ({"tensor_device": (2, 1)}, "hu: got an array on GPU 1; expected one on GPU 0"),
        ({"tensor_device": (1, 0)}, "hu: got an array on device 0 of DLPack's kind 1; expected one on GPU 0"),
    ],
)
def test_what_does_not_fit_is_refused_and_given_back(kind, fields, message):
    producer = kind(**{"address": ADDRESS, "shape": SHAPE, "dtype": np.int16, **fields})
    with pytest.raises(ArgumentError, match=message):
        taken(producer)
    gc.collect()
    assert producer.deleted == len(producer.capsules)


def test_a_version_to_come_is_given_back_unread():
    producer = Producer(ADDRESS, SHAPE, np.int16, version=(2, 0))
    with pytest.raises(ArgumentError, match="hu: got no tensor of DLPack 0 or 1"):
        taken(producer)
    gc.collect()
    assert producer.deleted == 1


def test_a_library_that_gives_no_tensor():
    def nothing(**_):
        return None

    def not_this_one(**_):
        raise BufferError("it is sparse")

    for gives, message in (
        (nothing, "hu: got no tensor of DLPack 0 or 1"),
        (not_this_one, r"hu: got an array that its library keeps to itself \(it is sparse\)"),
    ):
        with pytest.raises(ArgumentError, match=message):
            taken(types.SimpleNamespace(__dlpack_device__=lambda: (2, 0), __dlpack__=gives))


class FromNumPy:
    """A real producer, that passes for one on a GPU."""

    def __init__(self, array: np.ndarray, **options) -> None:
        self.array, self.options = array, options

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **_):
        return self.array.__dlpack__(**self.options)


@pytest.mark.parametrize("options", [{}, {"max_version": (1, 0)}])
def test_tensors_of_numpy_are_understood(options, monkeypatch):
    monkeypatch.setattr(dlpack, "_check_device", lambda *_: None)
    whole = np.zeros((9, 4, 5), np.uint8)
    array = whole[2:5]
    view = taken(FromNumPy(array, **options), dtype=np.uint8)
    assert (view.address, view.shape, view.read_only) == (array.ctypes.data, SHAPE, False)
    with pytest.raises(ArgumentError, match="hu: got an array that is not C-contiguous"):
        taken(FromNumPy(whole[::3], **options), dtype=np.uint8)
    array.flags.writeable = False
    if options:
        assert taken(FromNumPy(array, **options), dtype=np.uint8).read_only
    else:
        with pytest.raises(ArgumentError, match="keeps to itself"):
            taken(FromNumPy(array), dtype=np.uint8)


@pytest.mark.parametrize(
    "thing", [None, [1], np.zeros(3), Producer(ADDRESS, SHAPE, np.int16, device=(1, 0)), Producer]
)
def test_what_is_not_on_a_gpu(thing):
    assert not dlpack.on_gpu(thing)


def test_a_segmenter_on_the_cpu(tmp_path):
    segmenter = trtseg.Segmenter(tiny.cascade_model(tmp_path), device="cpu")
    on_gpu = Producer(ADDRESS, SHAPE, np.int16)
    with pytest.raises(ArgumentError, match="hu: got an array on a GPU, but this Segmenter runs on the CPU"):
        segmenter.label(on_gpu, spacing=(1, 1))
    assert on_gpu.capsules == []
    for device in ((1, 0), (3, 0)):
        with pytest.raises(ArgumentError, match="hu: got Producer; expected a NumPy array"):
            segmenter.label(Producer(ADDRESS, SHAPE, np.int16, device=device), spacing=(1, 1))


# ---- __cuda_array_interface__. --------------------------------------------------------------------------------------


def offered(**changes):
    """An object with an interface; a change to None leaves the entry out."""
    interface = {"shape": SHAPE, "typestr": "<i2", "data": (ADDRESS, False), "version": 3, **changes}
    return types.SimpleNamespace(
        __cuda_array_interface__={key: value for key, value in interface.items() if value is not None}
    )


def test_an_interface_is_passed_on_as_it_is():
    for stream in (None, 1, STREAM):
        for read_only in (False, True):
            array = CudaArray.of(
                offered(data=(ADDRESS, read_only), stream=stream, strides=(40, 10, 2)), "hu", np.int16, 3
            )
            for part, address, shape in ((array, ADDRESS, SHAPE), (array[1:], ADDRESS + 40, (2, 4, 5))):
                assert part.__cuda_array_interface__ == {
                    "shape": shape,
                    "typestr": "<i2",
                    "data": (address, read_only),
                    "version": 3,
                    "strides": None,
                    "stream": stream,
                }
            assert CudaArray.of(array, "hu", np.int16, 3).stream == stream


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": None},
        {"shape": (3, 4.0, 5)},
        {"typestr": None},
        {"data": None},
        {"data": ADDRESS},
        {"strides": (10, 2)},
        {"stream": "default"},
    ],
)
def test_a_malformed_interface_is_refused(changes):
    with pytest.raises(ArgumentError, match=r"hu: got a malformed __cuda_array_interface__ \(.*expected"):
        CudaArray.of(offered(**changes), "hu", np.int16, 3)
    for nonsense in (None, 7, {}):
        with pytest.raises(ArgumentError, match="out: got a malformed"):
            CudaArray.of(types.SimpleNamespace(__cuda_array_interface__=nonsense), "out", np.uint8, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"typestr": ">i2"}, "hu: got >i2 of shape"),
        ({"typestr": "|u1"}, "hu: got uint8 of shape"),
        ({"shape": (4, 5)}, r"hu: got int16 of shape \(4, 5\); expected int16 with 3 axes"),
        ({"shape": (3, -4, 5)}, r"hu: got int16 of shape \(3, -4, 5\)"),
        ({"strides": (40, 2, 8)}, "hu: got an array that is not C-contiguous"),
        ({"data": (0, False)}, "hu: got a null pointer"),
    ],
)
def test_an_interface_of_something_else_is_refused(changes, message):
    with pytest.raises(ArgumentError, match=message):
        CudaArray.of(offered(**changes), "hu", np.int16, 3)
