from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from trtseg.fit import Fit

# Number of a map, first channel, channels.
_Part = tuple[int, int, int]
_Floats = NDArray[np.float32]
# A NumPy array, or any object with __cuda_array_interface__.
_Array = Any

class _BuildInfo(TypedDict):
    cuda: bool
    cuda_version: str | None
    cuda_archs: str | None
    compiler: str

def frame(hu: _Array, box: _Array, stream: int = 0, threads: int = 0) -> None: ...
def thick(
    hu: _Array,
    frame: tuple[int, int, int, int],
    rows: tuple[int, int],
    columns: tuple[int, int],
    mask: _Array,
    stream: int = 0,
    threads: int = 0,
) -> None: ...
def prepare(
    hu: _Array,
    fit: Fit,
    window: tuple[float, float],
    hu_net: _Array,
    x1: _Array,
    stream: int = 0,
    threads: int = 0,
) -> None: ...
def gate(
    l1: _Array,
    hu_net: _Array,
    logit_threshold: float,
    window: tuple[float, float],
    x2: _Array,
    liver_voxels: _Array,
    stream: int = 0,
    threads: int = 0,
) -> None: ...
def label(
    l1: _Array,
    l2: _Array,
    logit_thresholds: tuple[float, float],
    fit: Fit,
    labels: _Array,
    counts: _Array,
    stream: int = 0,
    threads: int = 0,
) -> None: ...
def label3(
    logits: _Array,
    fit: Fit,
    labels: _Array,
    counts: _Array,
    stream: int = 0,
    threads: int = 0,
) -> None: ...
def copy(dst: NDArray[Any], src: NDArray[Any], threads: int = 0) -> None: ...
def to_half(dst: NDArray[Any], src: NDArray[Any], threads: int = 0) -> None: ...
def clear(dst: NDArray[Any], threads: int = 0) -> None: ...

class Graph:
    @staticmethod
    def capture(stream: int, enqueue: Callable[[], None]) -> Graph: ...
    def launch(self, stream: int) -> None: ...
    @property
    def nodes(self) -> int: ...

class Event:
    def __init__(self) -> None: ...
    def wait_for(self, stream: int, other: int) -> None: ...

class Chunk:
    def __init__(
        self,
        stream: int,
        hu: NDArray[Any],
        first: Graph,
        pixels: NDArray[Any] | None,
        rest: Graph,
        labels: NDArray[Any],
        threads: int = 0,
    ) -> None: ...
    def run(self, hu: NDArray[Any], out: NDArray[Any]) -> None: ...

def build_info() -> _BuildInfo: ...

class Net:
    def __init__(
        self, rows: int, columns: int, classes: int, int8: str | None = None, fp32: str | None = None
    ) -> None: ...
    @staticmethod
    def is_supported() -> bool: ...
    @staticmethod
    def int8_instructions() -> list[str]: ...
    @staticmethod
    def fp32_instructions() -> list[str]: ...
    def add_map(self, rows: int, columns: int, channels: int, zero: int | None = None) -> int: ...
    def add_first(self, dst: _Part, weights: _Floats, bias: _Floats, stride: int, pad: int) -> None: ...
    # In FP32 `weights, bias`; in INT8 `weights, scale, bias`.
    def add_conv(self, src: _Part, dst: _Part, pool: _Part | None, *numbers: NDArray[Any]) -> None: ...
    def add_up(self, src: _Part, dst: _Part, *numbers: NDArray[Any]) -> None: ...
    def add_head(self, src: _Part, *numbers: NDArray[Any]) -> None: ...
    def reserve(self, slices: int, threads: int) -> None: ...
    def run(
        self, src: _Floats, dst: _Floats, wanted: NDArray[np.bool_] | None = None, threads: int = 0
    ) -> None: ...
