"""Arrays on a GPU that other libraries offer through DLPack, used without a copy.

https://dmlc.github.io/dlpack/latest/python_spec.html: the producer gives a capsule with a managed tensor. The consumer
takes the tensor out, renames the capsule, and calls the tensor's deleter when it needs the tensor no more.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from trtseg.cuda.arrays import CudaArray, check_layout
from trtseg.errors import ArgumentError

_CUDA = 2  # kDLCUDA
_READ_ONLY, _COPIED = 1, 2  # bits of flags
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device", c_int32 * 2),  # kind and number
        ("ndim", c_int32),
        ("kind", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),  # in elements; may be null for a C-contiguous array
        ("byte_offset", c_uint64),
    )


class _Unversioned(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p))
    version, flags = (0, 0), 0


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("version", c_uint32 * 2),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),  # here as long as the major version is 1
    )


_CAPSULES = {b"dltensor_versioned": _Versioned, b"dltensor": _Unversioned}  # by their names
_USED = {name: b"used_" + name for name in _CAPSULES}  # the names when the tensor has been taken out
_capsule = ctypes.PYFUNCTYPE(c_int, ctypes.py_object, c_char_p)
_is_valid = _capsule(("PyCapsule_IsValid", ctypes.pythonapi))
_rename = _capsule(("PyCapsule_SetName", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(c_void_p, ctypes.py_object, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_deleter = ctypes.CFUNCTYPE(None, c_void_p)  # called without the GIL, as DLPack has it


def on_gpu(array: Any) -> bool:
    """Whether an object is on an NVIDIA GPU by its DLPack methods."""
    try:
        return int(array.__dlpack_device__()[0]) == _CUDA
    except Exception:  # an object without a working method is not on a GPU
        return False


def view(array: Any, name: str, dtype: DTypeLike, ndim: int, *, device: int, stream: int) -> CudaArray:
    """View another library's array that is `on_gpu`; its memory lives as long as the view and the view's parts.

    The array must be C-contiguous, of ``dtype`` and ``ndim``, on the GPU with number ``device``; ``name`` is for
    messages. The producer makes ``stream`` wait for the work that writes the array; users of the view wait for
    ``stream``.
    """
    _check_device(name, array.__dlpack_device__(), device)
    try:
        try:
            capsule = array.__dlpack__(stream=stream, max_version=(1, 0), copy=False)
        except TypeError:  # from before DLPack 1.0
            capsule = array.__dlpack__(stream=stream)
    except (AttributeError, BufferError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"{name}: got an array that its library keeps to itself ({error}); expected one to use where it is"
        ) from error
    managed = _take(capsule, name)
    tensor, itemsize = managed.tensor, np.dtype(dtype).itemsize
    _check_device(name, tensor.device, device)
    got = f"{_KINDS.get(tensor.kind, f'DLPack type {tensor.kind}, ')}{tensor.bits}"
    got += f"x{tensor.lanes}" if tensor.lanes != 1 else ""
    address, shape = (tensor.data or 0) + tensor.byte_offset, tuple(tensor.shape[: tensor.ndim])
    strides = tuple(n * itemsize for n in tensor.strides[: tensor.ndim]) if tensor.strides else None
    check_layout(name, got, address, shape, strides, dtype, ndim)
    read_only = bool(
        managed.flags & (_READ_ONLY | _COPIED)
    )  # nobody would read labels that are written into a copy
    return CudaArray(address, shape, dtype, managed, stream=stream, read_only=read_only)


def _check_device(name: str, where: Any, device: int) -> None:
    kind, index = map(int, where)
    if (kind, index) != (_CUDA, device):
        got = f"GPU {index}" if kind == _CUDA else f"device {index} of DLPack's kind {kind}"
        raise ArgumentError(f"{name}: got an array on {got}; expected one on GPU {device}, copy it there")


def _take(capsule: Any, name: str) -> Any:
    """The managed tensor in a capsule; its deleter is called when nobody refers to the tensor any more."""
    for label, kind in _CAPSULES.items():
        if _is_valid(capsule, label):
            address = _pointer(capsule, label)
            _rename(capsule, _USED[label])  # keeps no copy of it
            managed = kind.from_address(address)
            if managed.deleter:
                weakref.finalize(managed, _deleter(managed.deleter), address)
            if managed.version[0] <= 1:
                return managed
    raise ArgumentError(f"{name}: got no tensor of DLPack 0 or 1 from __dlpack__; update its library")
