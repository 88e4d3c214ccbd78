"""Engines of TensorRT and TensorRT-RTX on a GPU, and all of trtseg on top of them."""

import numpy as np
import pytest

import trtseg
from trtseg import models
from trtseg.cuda import Resources, open_device
from trtseg.engines.acceptance import calibration
from trtseg.engines.nvidia import check_gpu, choose_runtime, on_host, open_nets
from trtseg.engines.probe import installed
from trtseg.engines.runtime import MODULES, NAMES
from trtseg.errors import DeviceError
from trtseg.phantom import abdomen

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("pycuda")]

INSTALLED = [name for name in NAMES if installed(MODULES[name])]
SPACING = (5.0, 0.8, 0.8)


@pytest.fixture(scope="module", autouse=True)
def cache(pycuda, tmp_path_factory):
    """A cache of this test's own: engines are built, judged, and found again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=INSTALLED or [pytest.param("", marks=pytest.mark.skip("no runtime"))])
def runtime(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def ct() -> np.ndarray:
    return abdomen(shape=(40, 512, 512), spacing=SPACING).ct


@pytest.fixture(scope="module")
def on_cpu(ct):
    return trtseg.segment(ct, spacing=SPACING, device="cpu", precision="fp32").canonical


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("batch", [1, 16])
def test_engines_are_accepted(runtime, precision, batch):
    nets = open_nets(models.find("default"), open_device(0), batch, precision=precision, runtime=runtime)
    for told in nets.provenance["engines"].values():
        assert told["precision"] == precision
        assert told["refused"] == []


def test_logits_are_those_of_the_reference(runtime):
    files, device = models.find("default"), open_device(0)
    wanted = calibration(files)
    nets = open_nets(files, device, 1, precision="fp32", runtime=runtime)
    with device:
        for engine in nets.contexts():
            own = Resources(device)
            run = on_host(engine, own)
            images, logits = wanted[engine.spec.role]
            got = np.concatenate([run(images[i : i + 1]) for i in range(len(images))])
            assert np.abs(got - logits).max() < 1e-2  # another order of sums
            own.free()


@pytest.mark.parametrize("batch", [1, 16])
def test_segmentation_agrees_with_the_cpu(runtime, batch, ct, on_cpu):
    segmenter = trtseg.Segmenter(device="cuda", runtime=runtime, batch=batch)
    first = segmenter.segment(ct, spacing=SPACING)
    assert dice(first.canonical > 0, on_cpu > 0) > 0.995
    assert (segmenter.segment(ct, spacing=SPACING).canonical == first.canonical).all()
    assert first.provenance["device"] == "cuda:0"
    assert first.provenance["batch"] == batch


def test_slices_of_torch_are_labelled_on_the_gpu(runtime, ct):
    import torch

    segmenter = trtseg.Segmenter(device="cuda", runtime=runtime, batch=1)
    expected = segmenter.label(ct, spacing=SPACING[1:])
    hu = torch.from_numpy(ct).cuda()
    labels = torch.empty(ct.shape, dtype=torch.uint8, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = segmenter.label(hu, spacing=SPACING[1:], out=labels, stream=stream.cuda_stream)
        assert got is labels
        assert (labels.cpu().numpy() == expected).all()


def test_a_second_start_finds_the_engines(runtime, caplog):
    trtseg.Segmenter(device="cuda", runtime=runtime)
    said: list[str] = []
    trtseg.Segmenter(device="cuda", runtime=runtime, progress=lambda what, fraction: said.append(what))
    assert said == []


def test_a_gpu_that_is_not_there():
    with pytest.raises(DeviceError, match="device: got 'cuda:99', but there"):
        trtseg.Segmenter(device="cuda:99")


def test_what_runs_here_is_chosen():
    gpu, _ = check_gpu(0)
    if not INSTALLED:
        pytest.skip("no runtime is installed")
    assert choose_runtime("auto", gpu).name in INSTALLED
