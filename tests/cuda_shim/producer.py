"""Stands in for a library that offers its arrays through DLPack: NumPy makes the tensor, and its fields are changed."""

import ctypes
import weakref
from collections.abc import Callable
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

import numpy as np

READ_ONLY, COPIED = 1, 2


class Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("data", c_void_p),
        ("device", c_int32 * 2),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", ctypes.POINTER(c_int64)),
        ("strides", ctypes.POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class Head(ctypes.Structure):
    """What comes before the tensor from version 1 on."""

    _fields_ = (("version", c_uint32 * 2), ("context", c_void_p), ("deleter", c_void_p), ("flags", c_uint64))


_pointer = ctypes.PYFUNCTYPE(c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class Producer:
    """An array at ``address`` that has nothing but DLPack.

    ``strides`` are in elements; ``wait`` is told the stream that is given and makes it wait. Other fields replace those
    of the tensor, as do ``version`` and ``flags``.

    Attributes
    ----------
    streams, capsules : list
        That were given, and made.
    """

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: Any,
        *,
        strides: tuple[int, ...] | None = None,
        device: tuple[int, int] = (2, 0),
        wait: Callable[[int], None] | None = None,
        **fields: Any,
    ) -> None:
        self.device, self.wait = device, wait
        self.version, self.flags = fields.pop("version", (1, 0)), fields.pop("flags", 0)
        self.ndim, self.dtype = len(shape), dtype
        self.fields = {
            "data": address,
            "device": (c_int32 * 2)(*fields.pop("tensor_device", device)),
            "shape": (c_int64 * len(shape))(*shape),
            "strides": None if strides is None else (c_int64 * len(strides))(*strides),
            **fields,
        }
        self.streams, self.capsules, self._arrays = [], [], []

    @property
    def deleted(self) -> int:
        """How many tensors were given back: NumPy's deleter lets go of the array."""
        return sum(array() is None for array in self._arrays)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int, max_version: Any = None, copy: bool | None = None) -> Any:
        assert copy is not True
        return self._capsule(stream, versioned=max_version is not None)

    def _capsule(self, stream: int, *, versioned: bool) -> Any:
        self.streams.append(stream)
        if self.wait is not None:
            self.wait(stream)
        array = np.empty((1,) * self.ndim, self.dtype)
        self._arrays.append(weakref.ref(array))
        self.capsules.append(array.__dlpack__(max_version=(1, 0) if versioned else None))
        address = _pointer(self.capsules[-1], b"dltensor_versioned" if versioned else b"dltensor")
        if versioned:
            head = Head.from_address(address)
            head.version, head.flags = self.version, self.flags
            address += ctypes.sizeof(Head)
        tensor = Tensor.from_address(address)
        for name, value in self.fields.items():
            pointer = name in ("shape", "strides") and value is not None
            setattr(tensor, name, ctypes.cast(value, ctypes.POINTER(c_int64)) if pointer else value)
        return self.capsules[-1]


class OldProducer(Producer):
    """From before version 1 of DLPack: no other arguments, no version, no flags."""

    def __dlpack__(self, stream: int) -> Any:
        return self._capsule(stream, versioned=False)
