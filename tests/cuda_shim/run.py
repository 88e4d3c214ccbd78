"""Run cases of op_cases.py on a module that was built with the shim: run.py MODULE CASE."""

import importlib.util
import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]  # op_cases and trtseg


def use_as_core(module: str) -> None:
    spec = importlib.util.spec_from_file_location("trtseg._core", module)
    core = sys.modules["trtseg._core"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)


use_as_core(sys.argv[1])
import op_cases  # noqa: E402

from trtseg import _core  # noqa: E402
from trtseg.fit import Fit  # noqa: E402

DTYPES = (np.float32, np.float16)
STREAM = 0x5712EA  # kStream of cuda_runtime.h


@dataclass
class GpuArray:
    """Memory of the host that passes for a GPU's."""

    array: np.ndarray

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.array.__array_interface__, "version": 3}

    def __getitem__(self, key: Any) -> "GpuArray":
        return GpuArray(self.array[key])


@dataclass
class ShimBackend:
    """Each input is an allocation of its own, so that AddressSanitizer sees what is read beside it."""

    options: dict[str, Any] = field(default_factory=lambda: {"stream": STREAM})
    step: int = 61

    def put(self, array: np.ndarray) -> GpuArray:
        return GpuArray(np.array(array, order="C"))

    def buffer(self, nbytes: int) -> GpuArray:
        return GpuArray(np.full(nbytes, op_cases.GUARD_BYTE, np.uint8))

    def view(self, buffer: GpuArray, dtype: np.dtype, shape: tuple[int, ...]) -> GpuArray:
        return GpuArray(buffer.array.view(dtype).reshape(shape))

    def get(self, array: GpuArray) -> np.ndarray:
        return np.array(array.array)


def equals_oracle(op: str) -> None:
    backend, case = ShimBackend(), getattr(op_cases, f"case_{op}")
    dtypes = list(product(DTYPES, DTYPES) if op == "gate" else product(DTYPES))
    for geometry, n, dtype in product(op_cases.GEOMETRIES, (0, 1, 3), dtypes):
        try:
            case(backend, geometry, n, *dtype)
        except AssertionError as error:
            where = f"{geometry}, {n} slices, {', '.join(d.__name__ for d in dtype)}"
            raise AssertionError(f"{where}: {error}") from error


def skipping() -> None:
    for dtype in DTYPES:
        op_cases.case_skipped_slices(ShimBackend(), dtype)


def half() -> None:
    op_cases.case_to_half(ShimBackend())
    op_cases.case_from_half(ShimBackend())


class TooShort(GpuArray):
    """15 elements that claim to be 16."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**super().__cuda_array_interface__, "shape": (1, 4, 4)}


def read_behind_the_end() -> None:
    """AddressSanitizer must end this process."""
    hu, hu_net = TooShort(np.zeros(15, np.int16)), GpuArray(np.empty((1, 4, 4), np.int16))
    x1 = GpuArray(np.empty((1, 1, 4, 4), np.float32))
    _core.prepare(hu, Fit.identity((4, 4)), op_cases.WINDOW, hu_net, x1, stream=STREAM)


OTHERS = {"skipping": skipping, "half": half, "read-behind-the-end": read_behind_the_end}
case = sys.argv[2]
OTHERS[case]() if case in OTHERS else equals_oracle(case)
