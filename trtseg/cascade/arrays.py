"""Check slices and labels that a caller gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtseg.cascade.base import Cascade
from trtseg.cascade.cpu import CpuCascade
from trtseg.cuda import dlpack
from trtseg.cuda.arrays import CudaArray
from trtseg.errors import ArgumentError


def checked(array: Any, name: str, dtype: Any, cascade: Cascade) -> Any:
    """Check an array ``[Z, Y, X]`` for a cascade; an array on a GPU comes back as a view of it.

    Raises
    ------
    ArgumentError
        If the array has another type or layout, or lies where the cascade cannot use it.
    """
    if hasattr(array, "__cuda_array_interface__") or dlpack.on_gpu(array):
        return cascade.view(array, name, dtype)
    return checked_on_host(array, name, dtype, cascade)


def checked_on_host(array: Any, name: str, dtype: Any, cascade: Cascade) -> NDArray[Any]:
    """Check a NumPy array ``[Z, Y, X]``; see `checked`."""
    if not isinstance(array, np.ndarray):
        kinds = "a NumPy array" if isinstance(cascade, CpuCascade) else "a NumPy array or one on the GPU"
        raise ArgumentError(f"{name}: got {type(array).__name__}; expected {kinds}")
    if np.ma.is_masked(array):
        raise ArgumentError(
            f"{name}: got a masked array, and voxels of it are masked; expected HU everywhere: {name}.filled(-1000) "
            "makes them air"
        )
    if array.ndim != 3 or array.dtype != dtype or not (array.flags.c_contiguous and array.flags.aligned):
        raise ArgumentError(
            f"{name}: got {array.dtype} of shape {array.shape}, strides {array.strides}; "
            f"expected {np.dtype(dtype)} [Z, Y, X], C-contiguous and aligned: use {name}.copy()"
        )
    return array


def checked_out(out: Any, hu: Any, cascade: Cascade) -> Any:
    """Check labels ``[Z, Y, X]`` for the slices ``hu``, which are checked; see `checked`.

    Raises
    ------
    ArgumentError
        As `checked`; or ``out`` is read-only, has another shape, or labels of the first slices would overwrite others.
    """
    labels = checked(out, "out", np.uint8, cascade)
    if labels.read_only if isinstance(labels, CudaArray) else not labels.flags.writeable:
        raise ArgumentError("out: got a read-only array; expected one that may be overwritten")
    if labels.shape != hu.shape:
        raise ArgumentError(f"out: got shape {labels.shape}; expected that of hu, {hu.shape}")
    (first, end), (other_first, other_end) = _place(labels), _place(hu)
    if max(first, other_first) < min(end, other_end):
        raise ArgumentError(
            "out: got an array in the memory of hu; expected memory of its own: allocate it anew"
        )
    return labels


def _place(array: NDArray[Any] | CudaArray) -> tuple[int, int]:
    """Addresses of the begin and of the end of a C-contiguous array."""
    first = array.address if isinstance(array, CudaArray) else array.ctypes.data
    return first, first + array.nbytes
