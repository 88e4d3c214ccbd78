"""Engines of TensorRT, TensorRT-RTX and PyTorch on a GPU, and all of trtseg on top of them.

Where TensorRT-RTX says that its engines are invalid on this GPU, its tests are expected failures with that reason.
"""

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtseg
from trtseg import models
from trtseg.cascade.cpu import CpuCascade
from trtseg.cascade.volumes import label_volume
from trtseg.cuda.device import open_device
from trtseg.engines import acceptance, open_engine
from trtseg.engines.nvidia.cache import adopt
from trtseg.engines.nvidia.machine import RTX_CAPABILITIES, check_gpu, choose_runtime, installed
from trtseg.engines.nvidia.nets import open_nets
from trtseg.engines.nvidia.runtime import MODULES, NAMES, TITLES, load_runtime
from trtseg.errors import DeviceError
from trtseg.labels.lesions import lesions
from trtseg.phantom import abdomen

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("pycuda")]

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = [name for name in NAMES if installed(MODULES[name])]
SPACING = (5.0, 0.8, 0.8)


def unlisted(name: str) -> bool:
    """Whether a runtime need not run here."""
    return name == "tensorrt-rtx" and check_gpu(0)[0].sm not in RTX_CAPABILITIES


def tried(test: Callable[..., None]) -> Callable[..., None]:
    """Let a test of a runtime find out whether it runs here."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        try:
            test(**given)
        except DeviceError as error:
            if not unlisted(given["runtime"]) or "is invalid on" not in str(error):
                raise
            pytest.xfail(str(error))

    return run


@pytest.fixture(scope="module", autouse=True)
def cache(pycuda, tmp_path_factory):
    """A cache of this test's own: engines are built, checked, and found again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=NAMES)
def runtime(request, cache, cpu_path, leave_out) -> str:
    name = request.param
    if not INSTALLED:
        leave_out(f"neither {' nor '.join(TITLES.values())} is installed")
    if name not in INSTALLED:
        leave_out(f"{TITLES[name]} is not installed", optional=True)
    load_runtime(name)
    return name


@pytest.fixture(scope="module")
def ct() -> np.ndarray:
    return abdomen(shape=(40, 512, 512), spacing=SPACING).ct


@pytest.fixture(scope="module")
def reference(ct):
    """Labels of the CPU in FP32, without postprocessing, and its tumour logits."""
    files = models.find("default")
    engines = [open_engine(files, net, precision="fp32") for net in files.spec.nets]
    return label_volume(CpuCascade(*engines), trtseg.load(ct, spacing=SPACING), None)[:2]


@pytest.fixture(scope="module")
def on_cpu(reference):
    return reference[0]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("batch", [1, 16])
@tried
def test_engines_are_accepted(runtime, precision, batch):
    nets = open_nets(models.find("default"), open_device(0), batch, precision=precision, runtime=runtime)
    for told in nets.provenance["engines"].values():
        assert told["precision"] == precision
        assert told["refused"] == []


@pytest.mark.parametrize("batch", [1, 16])
@tried
def test_engines_are_launched_as_graphs(runtime, batch, ct):
    """A context says that it can be captured, and all graphs are there before the first slice."""
    segmenter = trtseg.Segmenter(device="cuda", runtime=runtime, batch=batch)
    segmenter.warm_up(ct.shape[1:], SPACING[1:])
    assert segmenter.segment(ct, spacing=SPACING).provenance["cuda_graphs"] is True


@pytest.mark.parametrize("batch", [1, 16])
@tried
def test_segmentation_agrees_with_the_cpu(runtime, batch, ct, on_cpu):
    segmenter = trtseg.Segmenter(device="cuda", runtime=runtime, batch=batch)
    labels = segmenter.label(ct, spacing=SPACING[1:])
    assert dice(labels > 0, on_cpu > 0) > 0.995
    assert dice(labels == 2, on_cpu == 2) > 0.99
    first = segmenter.segment(ct, spacing=SPACING)
    assert (segmenter.segment(ct, spacing=SPACING).canonical == first.canonical).all()
    assert first.provenance["device"] == "cuda:0"
    assert first.provenance["batch"] == batch


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("batch", [1, 16])
@tried
def test_probabilities_agree_with_the_cpu(runtime, batch, precision, ct, reference):
    """FP16 moves a lesion of 200 voxels by 0.0014 at most where the same nets run on a CPU, and smaller ones more."""
    labels, wanted = reference
    volume = trtseg.load(ct, spacing=SPACING)
    segmenter = trtseg.Segmenter(device="cuda", runtime=runtime, batch=batch, precision=precision)
    _, logits, *_ = label_volume(segmenter._cascade, volume, None)
    assert logits.fit == wanted.fit
    assert len(logits.planes.keys() ^ wanted.planes.keys()) <= 1  # a slice with a pixel of liver, or none
    assert {(plane.dtype, plane.shape) for plane in logits.planes.values()} == {
        (np.dtype(np.float16), logits.fit.net)
    }
    pairs = [
        (one.probability, other.probability)
        for one, other in zip(*(lesions(labels, volume.affine, of) for of in (logits, wanted)), strict=True)
        if one.voxels >= 200
    ]
    assert len(pairs) > 3
    assert max(abs(one - other) for one, other in pairs) < 0.01, pairs


@pytest.mark.usefixtures("nibabel")
@pytest.mark.parametrize("batch", [1, 16])
@tried
def test_a_stream_tells_the_same_lesions(runtime, batch, ct):
    segmenter = trtseg.Segmenter(device="cuda", runtime=runtime, batch=batch)
    whole = segmenter.segment(ct, spacing=SPACING)
    assert all(0 < lesion.probability < 1 for lesion in whole.lesions)
    with segmenter.stream(ct.shape[1:], spacing=SPACING[1:]) as stream:
        for z, hu in enumerate(ct):
            stream.push(hu, SPACING[0] * z)
        assert stream.finish().lesions == whole.lesions


@tried
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


@tried
def test_a_second_start_finds_the_engines(runtime, monkeypatch):
    trtseg.Segmenter(device="cuda", runtime=runtime)
    said: list[str] = []
    monkeypatch.setattr(acceptance, "check", lambda *_, **__: pytest.fail("an engine is checked again"))
    trtseg.Segmenter(device="cuda", runtime=runtime, progress=lambda what, fraction: said.append(what))
    assert said == []


@tried
def test_engines_that_were_built_elsewhere(runtime, tmp_path, monkeypatch, ct, leave_out):
    """Built into a folder, portable where the GPU takes that, imported into an empty cache, and used from there."""
    if runtime == "torch" and installed("triton") is None:
        leave_out("Triton is not installed", optional=True)
    gpu, _ = check_gpu(0)
    target = "portable" if runtime == "tensorrt-rtx" and int(gpu.sm[3:]) >= 80 else "native"
    with open_device(0):  # TensorRT builds in the context that is current
        built = trtseg.build_engines(runtime=runtime, target=target, batch=2, output=tmp_path / "built")
    monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path / "another"))
    adopt(tmp_path / "built", allow_foreign=True)
    segmenter = trtseg.Segmenter(device="cuda", runtime=runtime, batch=2)
    engines = segmenter.segment(ct, spacing=SPACING).provenance["engines"]
    assert {told["sha256"] for told in engines.values()} == {entry.sidecar.sha256 for entry in built}


@tried
def test_a_process_ends_quietly(runtime):
    trtseg.Segmenter(device="cuda", runtime=runtime, batch=1)  # building and checking may be told of
    code = """
import sys
import trtseg
one = trtseg.Segmenter(device="cuda", runtime=sys.argv[1], batch=1)
one.warm_up((512, 512), (0.8, 0.8))
"""
    command = [sys.executable, "-c", code, runtime]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_runs_here_is_chosen():
    gpu, _ = check_gpu(0)
    made_for_it = [name for name in INSTALLED if not unlisted(name)]
    assert choose_runtime("auto", gpu)[0] == made_for_it[0]
    segmenter = trtseg.Segmenter(device="cuda", batch=1)
    provenance = segmenter.segment(
        abdomen((2, 64, 64), (5.0, 6.0, 6.0)).ct, spacing=(5.0, 6.0, 6.0)
    ).provenance
    assert provenance["runtime"].startswith(TITLES[made_for_it[0]])
    assert provenance["runtime_chosen"]
