"""The fused ops on CUDA: the cases of the CPU, bit for bit against the oracle."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from op_cases import (
    GEOMETRIES,
    GUARD_BYTE,
    SEARCHES,
    WINDOW,
    WINDOW2,
    bodies,
    case_frame,
    case_from_half,
    case_gate,
    case_label,
    case_label3,
    case_prepare,
    case_skipped_slices,
    case_thick,
    case_to_half,
    check_frame,
    check_thick,
    slices,
)

from trtseg import _core, reference
from trtseg.errors import ArgumentError
from trtseg.fit import Fit

pytestmark = pytest.mark.gpu
DTYPES = [np.float32, np.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)


@dataclass
class TorchBackend:
    """CUDA: arrays are PyTorch tensors, made and read on the current stream."""

    options: dict[str, Any] = field(default_factory=dict)
    step: int = 61

    def put(self, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(np.array(array)).cuda()

    def buffer(self, nbytes: int) -> Any:
        import torch

        return torch.full((nbytes,), GUARD_BYTE, dtype=torch.uint8, device="cuda")

    def view(self, buffer: Any, dtype: np.dtype, shape: tuple[int, ...]) -> Any:
        import torch

        return buffer.view(getattr(torch, dtype.name)).reshape(shape)

    def get(self, array: Any) -> np.ndarray:
        return array.cpu().numpy()


@pytest.fixture(params=["default-stream", "own-stream"])
def backend(request):
    import torch

    if request.param == "default-stream":
        yield TorchBackend()
        return
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        yield TorchBackend({"stream": stream.cuda_stream})


@dtypes
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("geometry", GEOMETRIES)
class TestEqualsOracle:
    def test_prepare(self, backend, geometry, n, dtype):
        case_prepare(backend, geometry, n, dtype)

    @pytest.mark.parametrize("dtype_in", DTYPES, ids=lambda d: f"from-{d.__name__}")
    def test_gate(self, backend, geometry, n, dtype_in, dtype):
        case_gate(backend, geometry, n, dtype_in, dtype)

    def test_label(self, backend, geometry, n, dtype):
        case_label(backend, geometry, n, dtype)

    def test_label3(self, backend, geometry, n, dtype):
        case_label3(backend, geometry, n, dtype)


def test_frame(backend):
    case_frame(backend)


@pytest.mark.parametrize("n", [0, 1, 3, 19])
@pytest.mark.parametrize("search", SEARCHES)
def test_thick(backend, search, n):
    case_thick(backend, search, n)


def test_frame_and_thick_of_a_ct(backend):
    for seed in range(3):
        hu = bodies(60, (512, 512), seed)
        assert check_frame(backend, hu)[1] > 0
        assert check_thick(backend, hu, (0, 512, 3, 500), (8, 4), (7, 4)).any()


@dtypes
def test_skipping_the_tumour_net_is_exact(backend, dtype):
    case_skipped_slices(backend, dtype)


def test_rounding_to_half(backend):
    case_to_half(backend)


def test_widening_from_half(backend):
    case_from_half(backend)


def test_more_slices_than_a_grid_is_deep(backend):
    import torch

    fit, n = Fit.identity((1, 2)), 70_000  # a grid has at most 65535 blocks along z
    hu = np.arange(2 * n).astype(np.int16).reshape(n, 1, 2)
    l1 = torch.from_numpy(hu.astype(np.float32)).cuda().reshape(n, 1, 1, 2)
    labels = torch.empty((n, 1, 2), dtype=torch.uint8, device="cuda")
    counts = torch.empty((n, 2), dtype=torch.int32, device="cuda")
    x2, liver_voxels = torch.empty_like(l1), torch.empty(n, dtype=torch.int32, device="cuda")
    _core.gate(l1, backend.put(hu), 5.0, WINDOW2, x2, liver_voxels, **backend.options)
    _core.label(l1, l1, (5.0, 9.0), fit, labels, counts, **backend.options)
    expected_gate = reference.gate(backend.get(l1), hu, 5.0, WINDOW2)
    expected_label = reference.label(backend.get(l1), backend.get(l1), (5.0, 9.0), fit)
    box, mask = (torch.empty(s, dtype=d, device="cuda") for s, d in ((4, torch.int32), ((1, 2), torch.uint8)))
    last = np.full_like(hu, -1000)
    last[-1, 0, 1] = 7
    _core.frame(backend.put(last), box, **backend.options)
    _core.thick(backend.put(last), (0, 1, 0, 2), (1, 1), (1, 1), mask, **backend.options)
    assert (backend.get(box).tolist(), backend.get(mask).tolist()) == ([0, 1, 1, 2], [[0, 1]])
    for got, expected in zip((x2, liver_voxels, labels, counts), expected_gate + expected_label, strict=True):
        assert (backend.get(got) == expected).all()


def test_memory_of_the_host_is_refused():
    import torch

    class Host:
        def __init__(self, array):
            self.array = array  # keeps the memory
            self.__cuda_array_interface__ = {**array.__array_interface__, "version": 3}

    fit = Fit.identity((4, 4))
    hu = torch.zeros((1, 4, 4), dtype=torch.int16, device="cuda")
    with pytest.raises(ArgumentError, match="x1: got an address that is not GPU memory"):
        _core.prepare(hu, fit, WINDOW, hu.clone(), Host(np.zeros((1, 1, 4, 4), np.float32)))


def test_cupy_arrays_go_in_as_they_are(cupy):
    fit = GEOMETRIES["anisotropic-odd"]
    hu = slices(2, fit.native)
    hu_net, x1 = cupy.empty((2, *fit.net), cupy.int16), cupy.empty((2, 1, *fit.net), cupy.float16)
    _core.prepare(cupy.asarray(hu), fit, WINDOW, hu_net, x1)
    for got, expected in zip((hu_net, x1), reference.prepare(hu, fit, WINDOW, np.float16), strict=True):
        assert cupy.asnumpy(got).tobytes() == expected.tobytes()


@pytest.mark.usefixtures("second_gpu")
def test_arrays_on_two_gpus_are_refused():
    import torch

    fit = Fit.identity((4, 4))
    hu = torch.zeros((1, 4, 4), dtype=torch.int16, device="cuda:0")
    x1 = torch.zeros((1, 1, 4, 4), device="cuda:1")
    with pytest.raises(ArgumentError, match="x1: got an array on GPU 1, but hu is on GPU 0"):
        _core.prepare(hu, fit, WINDOW, hu.clone(), x1)
