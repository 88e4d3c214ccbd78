"""The CUDA cascade on a GPU with nets that PyTorch runs: everything but the engines."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from cascade_cases import CASES
from cascade_nets import BATCH, NETS, SPACING, ct, expected, in_threads, opened

from trtseg.cuda.arrays import CudaArray
from trtseg.cuda.device import Resources, open_device
from trtseg.errors import OutOfMemoryError
from trtseg.spec import ModelSpec

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("pycuda")]


@dataclass
class TorchEngine:
    """An elementwise net. It writes into what it is given and so allocates nothing, which a capture would refuse."""

    spec: ModelSpec
    batch: int
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.float16))
    device: str = "cuda:0"
    precision: str = "fp16"

    def capturable(self, stream: int) -> bool:
        return True

    def run(self, src: CudaArray, dst: CudaArray, stream: int = 0) -> None:
        import torch

        x, logits = torch.as_tensor(src, device="cuda"), torch.as_tensor(dst, device="cuda")
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            for channel, (a, b) in enumerate(NETS[self.spec.role]):
                torch.mul(x[:, 0], a, out=logits[:, channel])
                logits[:, channel].add_(b)


@dataclass
class OnlyDlpack:
    """A tensor without ``__cuda_array_interface__``, of a library that works on a stream of its own."""

    tensor: Any
    stream: Any

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        import torch

        with torch.cuda.stream(self.stream):
            return self.tensor.__dlpack__(**options)


@dataclass
class TorchStream:
    """A caller's stream."""

    stream: Any

    @property
    def handle(self) -> int:
        return self.stream.cuda_stream

    def made_late(self, array: np.ndarray) -> CudaArray:
        return CudaArray.of(self._made_late(array), "array", array.dtype, array.ndim)

    def offered(self, array: np.ndarray) -> OnlyDlpack:
        return OnlyDlpack(self._made_late(array), self.stream)

    def _made_late(self, array: np.ndarray) -> Any:
        import torch

        made = torch.empty(array.shape, dtype=getattr(torch, array.dtype.name), device="cuda")
        source = torch.from_numpy(array).pin_memory()
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(20_000_000)  # some ms
            made.copy_(source, non_blocking=True)
        return made

    def fill(self, array: CudaArray, value: int) -> None:
        import torch

        with torch.cuda.stream(self.stream):
            torch.as_tensor(array, device="cuda").fill_(value)

    def read(self, array: CudaArray) -> np.ndarray:
        import torch

        with torch.cuda.stream(self.stream):
            return torch.as_tensor(array, device="cuda").cpu().numpy()


class TorchBackend:
    """Runs the nets in PyTorch, see cascade_cases.py."""

    dtype = np.float16

    def engine(self, spec: ModelSpec, batch: int) -> TorchEngine:
        return TorchEngine(spec, batch)

    def orders(self) -> list[str]:
        return ["as the GPU has it"] * 5

    @contextmanager
    def stream(self) -> Iterator[TorchStream]:
        import torch

        yield TorchStream(torch.cuda.Stream())


@pytest.mark.parametrize("case", CASES)
def test_cascade(case):
    CASES[case](TorchBackend())


def test_repeated_runs_are_identical():
    hu = ct(7 * BATCH)
    with opened(TorchBackend()) as one:
        first, _ = one.run(hu, SPACING)
        for _ in range(50):
            assert (one.run(hu, SPACING)[0] == first).all()


def test_graphs_do_the_same_as_plain_launches():
    """A lane without graphs, a lane with them, and a chunk in one call."""
    from trtseg.cascade.lane import Lane

    hu, wanted = ct(BATCH), expected(ct(BATCH))
    device, backend = open_device(0), TorchBackend()
    with opened(backend) as one, device:
        one.run(hu, SPACING)
        engines = one._contexts[0]
        lane = Lane(device, engines, engines[0].spec.fit_slice(hu.shape[1:], SPACING), BATCH)
        lane.warm_up()
        for graphs in (False, True):
            assert not graphs or lane.record()
            for _ in range(3):
                out = np.full(hu.shape, 9, np.uint8)
                lane.take(hu, out, 0, ())
                lane.start()
                lane.go_on()
                ((_, labels),) = lane.finish()
                assert labels is out
                assert (out == wanted).all()
                out[:] = 9
                assert lane.run(hu, out) == graphs
                assert (out == (wanted if graphs else 9)).all()
        lane.close()


def test_too_little_memory_halves_the_batch_and_then_is_an_error(caplog):
    import torch

    hu = ct(9)
    free, _ = torch.cuda.mem_get_info()
    # 32 slices in two lanes are too much, 16 are not
    with opened(TorchBackend(), 16, context_bytes=free // 20) as one:
        assert (one.run(hu, SPACING)[0] == expected(hu)).all()
        assert one.provenance == {"batch": 8, "cuda_graphs": True}
    assert "going on with 8 slices a run instead of 16" in caplog.text
    with pytest.raises(OutOfMemoryError, match="too little free memory"):
        opened(TorchBackend(), 2, context_bytes=free)


def test_memory_is_given_back():
    """Also by another thread than the one that took it."""
    import torch

    def run() -> None:
        with opened(TorchBackend()) as one:
            one.run(ct(3), SPACING)

    run()  # loads kernels
    before, _ = torch.cuda.mem_get_info()
    for _ in range(5):
        run()
        in_threads(run)
    assert torch.cuda.mem_get_info()[0] >= before - 2**21  # the driver keeps pages of 2 MiB
    made: list[Resources] = []

    def make() -> None:
        with open_device(0) as device:
            made.append(Resources(device))
            made[0].stream()
            made[0].array((1 << 26,), np.uint8)

    in_threads(make)
    made[0].close()
    assert torch.cuda.mem_get_info()[0] >= before - 2**21
