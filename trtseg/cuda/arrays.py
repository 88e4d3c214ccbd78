"""Arrays in GPU memory that somebody else owns, by their ``__cuda_array_interface__``."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from trtseg.errors import ArgumentError


class CudaArray:
    """A C-contiguous array in GPU memory that somebody else owns; ops and other libraries read its interface.

    Attributes
    ----------
    address : int
        Address of the first element.
    shape : tuple of int
        Extent of each axis.
    dtype : numpy.dtype
        Type of the elements.
    owner : object
        Keeps the memory alive.
    stream : int or None
        A user of the array waits for this stream, on which another library may still be writing it.
    read_only : bool
        Whether nobody may write into the array.
    """

    def __init__(
        self,
        address: int,
        shape: Sequence[int],
        dtype: DTypeLike,
        owner: Any = None,
        *,
        stream: int | None = None,
        read_only: bool = False,
    ) -> None:
        self.address, self.shape, self.dtype, self.owner = address, tuple(shape), np.dtype(dtype), owner
        self.stream, self.read_only = stream, read_only

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, self.read_only),
            "version": 3,
            "strides": None,
            "stream": self.stream,
        }

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> CudaArray:
        """A range of neighbours along the first axis, without a copy."""
        first, last, step = rows.indices(len(self))
        if step != 1:
            raise ArgumentError(f"step: got {step}; only neighbours can be taken from a CudaArray, use 1")
        stride = self.nbytes // max(len(self), 1)
        return CudaArray(
            self.address + first * stride,
            (max(last - first, 0), *self.shape[1:]),
            self.dtype,
            self.owner,
            stream=self.stream,
            read_only=self.read_only,
        )

    @classmethod
    def of(cls, array: Any, name: str, dtype: DTypeLike, ndim: int) -> CudaArray:
        """View another library's array: no copy, no conversion.

        Parameters
        ----------
        array : object with ``__cuda_array_interface__``
            PyTorch, CuPy, PyCUDA, JAX, ...; kept alive by the result.
        name : str
            Name of the argument, for messages.
        dtype, ndim : dtype, int
            Element type and number of axes that the array must have. It must also be C-contiguous.
        """
        try:
            interface = array.__cuda_array_interface__
            got, shape = str(np.dtype(interface["typestr"])), tuple(map(operator.index, interface["shape"]))
            address, read_only = operator.index(interface["data"][0]), bool(interface["data"][1])
            strides, stream = interface.get("strides"), interface.get("stream")
            if strides is not None:
                strides = tuple(operator.index(stride) for stride, _ in zip(strides, shape, strict=True))
            if stream is not None:
                stream = operator.index(stream)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"{name}: got a malformed __cuda_array_interface__ ({error!r}); expected version 2 or 3 of it, "
                "update the library that made the array"
            ) from error
        check_layout(name, got, address, shape, strides, dtype, ndim)
        return cls(address, shape, dtype, array, stream=stream, read_only=read_only)


def check_layout(
    name: str,
    got: str,
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    dtype: DTypeLike,
    ndim: int,
) -> None:
    """Raise an ArgumentError unless the array is C-contiguous, has ``ndim`` axes, and ``got`` names ``dtype``.

    ``strides`` are in bytes, or None for a C-contiguous array.
    """
    expected = np.dtype(dtype)
    if got != str(expected) or len(shape) != ndim or min(shape, default=0) < 0:
        raise ArgumentError(f"{name}: got {got} of shape {shape}; expected {expected} with {ndim} axes")
    if 0 in shape:
        return
    if address == 0:
        raise ArgumentError(f"{name}: got a null pointer; expected the address of GPU memory, allocate it")
    wanted = [math.prod(shape[axis + 1 :]) * expected.itemsize for axis in range(ndim)]
    # along an axis of one element any stride will do
    if strides is not None and any(n > 1 and a != b for n, a, b in zip(shape, strides, wanted, strict=True)):
        raise ArgumentError(
            f"{name}: got an array that is not C-contiguous, expected one that is; make it contiguous "
            "(PyTorch: .contiguous(), CuPy: cupy.ascontiguousarray)"
        )
