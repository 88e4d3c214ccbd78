"""Stands in for a library that offers its arrays through DLPack; the structs are those of dlpack.h."""

import ctypes
from collections.abc import Callable
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

import numpy as np

READ_ONLY, COPIED = 1, 2


class Device(ctypes.Structure):
    _fields_ = (("device_type", c_int32), ("device_id", c_int32))


class DataType(ctypes.Structure):
    _fields_ = (("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16))


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device", Device),
        ("ndim", c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(c_int64)),
        ("strides", ctypes.POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


Deleter = ctypes.CFUNCTYPE(None, c_void_p)


class Managed(ctypes.Structure):
    _fields_ = (("dl_tensor", Tensor), ("manager_ctx", c_void_p), ("deleter", Deleter))


class Version(ctypes.Structure):
    _fields_ = (("major", c_uint32), ("minor", c_uint32))


class ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("version", Version),
        ("manager_ctx", c_void_p),
        ("deleter", Deleter),
        ("flags", c_uint64),
        ("dl_tensor", Tensor),
    )


def _function(name: str, result: Any, *arguments: Any) -> Any:
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


Destructor = ctypes.PYFUNCTYPE(None, c_void_p)
_new = _function("PyCapsule_New", ctypes.py_object, c_void_p, ctypes.c_char_p, Destructor)
_is_valid = _function("PyCapsule_IsValid", ctypes.c_int, c_void_p, ctypes.c_char_p)
_pointer = _function("PyCapsule_GetPointer", c_void_p, c_void_p, ctypes.c_char_p)
_NAMES = {True: b"dltensor_versioned", False: b"dltensor"}
_alive: dict[int, tuple[Any, ...]] = {}  # what managed tensors refer to, and their producer


@Deleter
def _delete(address: int) -> None:
    _alive.pop(address)[0].deleted += 1


@Destructor
def _destroy(capsule: int) -> None:
    """Nobody has taken the tensor out."""
    for name in _NAMES.values():
        if _is_valid(capsule, name):
            _delete(_pointer(capsule, name))


class Producer:
    """An array at ``address`` that has nothing but DLPack.

    ``strides`` are in elements. ``wait`` is told the stream that is given and makes it wait.

    Attributes
    ----------
    deleted : int
        How often a tensor was given back.
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
        version: tuple[int, int] = (1, 0),
        **fields: int,
    ) -> None:
        self.address, self.shape, self.dtype, self.strides = address, shape, np.dtype(dtype), strides
        self.device, self.wait, self.version, self.fields = device, wait, version, fields
        self.deleted, self.streams, self.capsules = 0, [], []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int, max_version: Any = None, copy: bool | None = None) -> Any:
        assert copy is not True
        return self._capsule(stream, versioned=max_version is not None and max_version[0] >= 1)

    def _capsule(self, stream: int, *, versioned: bool) -> Any:
        self.streams.append(stream)
        if self.wait is not None:
            self.wait(stream)
        managed = ManagedVersioned() if versioned else Managed()
        shape = (c_int64 * len(self.shape))(*self.shape)
        strides = None if self.strides is None else (c_int64 * len(self.strides))(*self.strides)
        tensor = managed.dl_tensor
        tensor.data, tensor.ndim, tensor.byte_offset = self.address, len(shape), self.fields.get("offset", 0)
        tensor.device = Device(*self.fields.get("tensor_device", self.device))
        code = {"i": 0, "u": 1, "f": 2}[self.dtype.kind]
        tensor.dtype = DataType(code, 8 * self.dtype.itemsize, self.fields.get("lanes", 1))
        tensor.shape = ctypes.cast(shape, ctypes.POINTER(c_int64))
        tensor.strides = ctypes.cast(strides, ctypes.POINTER(c_int64))
        if versioned:
            managed.version, managed.flags = Version(*self.version), self.fields.get("flags", 0)
        managed.deleter = _delete
        address = ctypes.addressof(managed)
        _alive[address] = self, managed, shape, strides
        self.capsules.append(_new(address, _NAMES[versioned], _destroy))
        return self.capsules[-1]


class OldProducer(Producer):
    """From before version 1 of DLPack: no other arguments, no version, no flags."""

    def __dlpack__(self, stream: int) -> Any:
        return self._capsule(stream, versioned=False)
