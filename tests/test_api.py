"""`segment` and `Segmenter` as users call them."""

from __future__ import annotations

import copy
import json
import pickle
import types
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import tiny

import trtseg
from trtseg import models
from trtseg.cascade import gpu
from trtseg.errors import ArgumentError, DeviceError, InputError, ModelError
from trtseg.fit import Fit
from trtseg.phantom import abdomen

SPACING = (5.0, 2.5, 2.5)


@pytest.fixture(scope="module")
def phantom():
    return abdomen(shape=(40, 128, 160), spacing=SPACING)


@pytest.fixture(scope="module")
def segmenter(model):
    return trtseg.Segmenter(model)


def test_array_image_and_path_agree(segmenter, phantom, tmp_path):
    ijk = phantom.ct.transpose(2, 1, 0)
    image = nib.Nifti1Image(ijk, phantom.affine)
    nib.save(image, tmp_path / "ct.nii.gz")
    by_spacing = segmenter.segment(phantom.ct, spacing=SPACING)
    by_affine = segmenter.segment(ijk, affine=phantom.affine)
    assert set(np.unique(by_spacing.labels)) == {0, 1, 2}
    assert (by_affine.labels == by_spacing.labels.transpose(2, 1, 0)).all()
    assert (segmenter.segment(image).labels == by_affine.labels).all()
    assert (segmenter.segment(tmp_path / "ct.nii.gz").labels == by_affine.labels).all()
    assert (segmenter.segment(str(tmp_path / "ct.nii.gz")).labels == by_affine.labels).all()


def test_orientation_of_the_file_does_not_matter(segmenter, phantom):
    # the same patient stored in another axis order: labels must follow the voxels
    lps = nib.Nifti1Image(phantom.ct.transpose(2, 1, 0), phantom.affine)
    other = lps.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    expected = nib.Nifti1Image(segmenter.segment(lps).labels, lps.affine)
    result = segmenter.segment(other)
    assert result.labels.shape == other.shape != lps.shape
    assert np.allclose(result.affine, other.affine)
    back = nib.orientations.ornt_transform(nib.io_orientation(other.affine), nib.io_orientation(lps.affine))
    assert (nib.orientations.apply_orientation(result.labels, back) == np.asanyarray(expected.dataobj)).all()


def test_labels_are_on_the_inputs_grid(segmenter, phantom, tmp_path):
    image = nib.Nifti1Image(phantom.ct.transpose(2, 1, 0)[..., None], phantom.affine)
    image.set_sform(phantom.affine, 2)
    nib.save(image, tmp_path / "ct.nii.gz")
    segmenter.segment(tmp_path / "ct.nii.gz").save(tmp_path / "seg.nii.gz")
    seg = nib.load(tmp_path / "seg.nii.gz")
    assert seg.shape == image.shape
    assert seg.get_data_dtype() == np.uint8
    assert (seg.affine == image.affine).all()
    assert (seg.header["sform_code"], seg.header["qform_code"]) == (2, image.header["qform_code"])


def test_many_threads_one_segmenter(segmenter, phantom):
    volumes = [phantom.ct, phantom.ct[:, ::-1].copy(), phantom.ct[:17], phantom.ct[:, :, 20:]] * 2
    alone = [segmenter.segment(v, spacing=SPACING).labels for v in volumes]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda v: segmenter.segment(v, spacing=SPACING).labels, volumes))
    for a, b in zip(alone, together, strict=True):
        assert (a == b).all()


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_segmenter_that_is_sent_to_another_process_says_what_to_do(segmenter, send):
    with pytest.raises(TypeError, match=r"^Segmenter: .* this process; make one in each process"):
        send(segmenter)


def test_report_says_what_made_it(segmenter, phantom, model):
    report = json.loads(json.dumps(segmenter.segment(phantom.ct, spacing=SPACING).report()))
    made = report["provenance"]
    assert made["model"] == "tiny"
    assert made["sha256"] == json.loads((model / "model.json").read_text())["sha256"]
    assert made["thresholds"] == {"liver": 0.5, "tumour": 0.5}
    assert made["device"] == "cpu"
    assert made["precision"] == segmenter.precision
    assert made == segmenter.provenance
    assert made["versions"]["trtseg"] == trtseg.__version__
    assert {"read", "prepare", "liver net", "gate", "tumour net", "label", "postprocess"} <= set(
        report["timings_s"]
    )
    assert "not for clinical use" in report["notice"]


def test_one_step_model(tmp_path, phantom):
    spec = tiny.spec("one-step")
    weight = np.array([0.0, 40, 80]).reshape(3, 1, 1, 1)
    net = tiny.convolution(weight, np.array([0.0, -22, -52]), spec)
    folder = tiny.write_model(tmp_path / "m", {"one-step": (spec, net)})
    result = trtseg.segment(phantom.ct, spacing=SPACING, model=folder)
    assert set(np.unique(result.labels)) == {0, 1, 2}
    assert list(result.provenance["sha256"]) == ["one-step.onnx"]


def test_post_processing_is_optional_and_recorded(model, phantom):
    off = trtseg.PostProcess(median_mm=0, largest_liver=False, fill_holes=False, min_tumour_ml=0)
    raw = trtseg.segment(phantom.ct, spacing=SPACING, model=model, postprocess=off)
    clean = trtseg.segment(phantom.ct, spacing=SPACING, model=model)
    assert raw.report()["postprocess"]["largest_liver"] == "off"
    assert clean.report()["postprocess"]["largest_liver"]["removed_components"] > 0
    assert clean.liver_ml < raw.liver_ml


def test_refuses(model, phantom):
    with pytest.raises(ModelError, match="model: got 'nonesuch'; expected one of default"):
        trtseg.Segmenter("nonesuch")
    with pytest.raises(ModelError, match=r"model: got 'none\\x00such'; expected one of default"):
        trtseg.Segmenter("none\0such")
    with pytest.raises(DeviceError, match="device: got 'cuda:99'"):
        trtseg.segment(phantom.ct, spacing=SPACING, device="cuda:99")
    with pytest.raises(ArgumentError, match="precision"):
        trtseg.Segmenter(model, precision="int3")
    for wrong, message in (
        ({"model": None}, "model: got a NoneType; expected a name or the path of a folder"),
        ({"postprocess": {}}, "postprocess: got a dict; expected a PostProcess"),
        ({"threads": True}, "threads: got True; expected a whole number from 1 to 1024"),
        ({"threads": 10**12}, "threads: got 1000000000000; expected a whole number from 1 to 1024"),
    ):
        with pytest.raises(ArgumentError, match=message):
            trtseg.Segmenter(**{"model": model, **wrong})
    with pytest.raises(InputError, match=r"missing\.nii\.gz"):
        trtseg.segment("missing.nii.gz", model=model)
    with pytest.raises(ArgumentError, match="spacing"):
        trtseg.segment(phantom.ct, model=model)


def test_shipped_models_are_what_their_manifests_say():
    assert "default" in models.available()
    for name in models.available():
        files = models.find(name)
        assert files.spec.name == name
        for file in files.spec.sha256:
            files.read(file)
        for net in files.spec.nets:
            assert "not for clinical use" in net.intended_use.lower()
        assert (files.folder / "MODEL_CARD.md").is_file()


def test_label_is_the_nets_alone(segmenter, model, phantom):
    bare = trtseg.PostProcess(median_mm=0, largest_liver=False, fill_holes=False, min_tumour_ml=0.0)
    expected = trtseg.Segmenter(model, postprocess=bare).segment(phantom.ct, spacing=SPACING).canonical
    assert (segmenter.label(phantom.ct, spacing=SPACING[1:]) == expected).all()
    out = np.full(phantom.ct.shape, 9, np.uint8)
    assert segmenter.label(phantom.ct, spacing=SPACING[1:], out=out) is out
    assert (out == expected).all()
    one = segmenter.label(phantom.ct[20:21], spacing=SPACING[1:])
    assert (one == expected[20:21]).all()


def test_warm_up_and_stages(segmenter, phantom):
    segmenter.warm_up(phantom.ct.shape[1:], SPACING[1:])
    for shape in (96, (96,), (0, 96), (96, -1), (1, 96, 128), (96.0, 128.0)):
        with pytest.raises(ArgumentError, match=r"shape: got .*; expected the numbers of rows and of"):
            segmenter.warm_up(shape, SPACING[1:])
    with pytest.raises(ArgumentError, match="spacing: got"):
        segmenter.warm_up((96, 128), (0.0, 1.0))
    stages = segmenter.stages(phantom.ct[:4], spacing=SPACING[1:])
    assert list(stages) == ["prepare", "liver net", "gate", "tumour net", "label"]
    with pytest.raises(ArgumentError, match="hu: got list; expected a NumPy array"):
        segmenter.stages([1], spacing=SPACING[1:])


def test_progress_tells_a_text_and_a_fraction(model, phantom):
    told = []
    result = trtseg.segment(
        phantom.ct, spacing=SPACING, model=model, batch=1, progress=lambda *what: told.append(what)
    )
    assert result.liver_ml > 0
    assert [text for text, _ in told] == ["segmenting"] * 3  # 40 slices
    assert [fraction for _, fraction in told] == [0.4, 0.8, 1.0]


def test_threads_with_a_gpu(model, monkeypatch):
    """They are those that were asked for, else one for each processor that the process may use."""
    opened = []

    def open_cuda_cascade(*given):
        opened.append(given[5])
        return types.SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(trtseg.api, "resolve_device", lambda _: "cuda:0")
    monkeypatch.setattr(trtseg.api, "available_cpus", lambda: 5)
    monkeypatch.setattr(gpu, "open_cuda_cascade", open_cuda_cascade)
    for options in ({}, {"threads": 3}):
        trtseg.Segmenter(model, device="cuda", **options).close()
    assert opened == [5, 3]


def test_a_closed_segmenter_says_so(model, phantom):
    with trtseg.Segmenter(model) as closed:
        assert closed.label(phantom.ct[:1], spacing=SPACING[1:]).shape == (1, 128, 160)
    closed.close()
    assert closed.provenance["model"] == "tiny"
    on_gpu = types.SimpleNamespace(__cuda_array_interface__={})  # of which nothing is asked any more
    for call in (
        lambda: closed.segment(phantom.ct, spacing=SPACING),
        lambda: closed.label(phantom.ct, spacing=SPACING[1:]),
        lambda: closed.label(on_gpu, spacing=SPACING[1:]),
        lambda: closed.place(on_gpu, spacing=SPACING[1:]),
        lambda: closed.warm_up((128, 160), SPACING[1:]),
        lambda: closed.stages(phantom.ct[:1], spacing=SPACING[1:]),
    ):
        with pytest.raises(ArgumentError, match=r"Segmenter: got a call after close\(\); make another"):
            call()


def test_a_call_from_within_a_call_says_so(segmenter, phantom):
    def from_within(call):
        return segmenter.segment(phantom.ct, spacing=SPACING, progress=lambda *_: call())

    for call in (
        segmenter.close,
        lambda: segmenter.label(phantom.ct, spacing=SPACING[1:]),
        lambda: segmenter.segment(phantom.ct, spacing=SPACING),
    ):
        with pytest.raises(
            ArgumentError, match="Segmenter: got a call from within another call of this thread"
        ):
            from_within(call)
    assert segmenter.segment(phantom.ct, spacing=SPACING).liver_ml > 0


def test_label_refuses(segmenter, phantom):
    class OnGpu:
        def __init__(self) -> None:
            data = (4096, False)
            self.__cuda_array_interface__ = {"shape": (1, 2, 2), "typestr": "<i2", "data": data, "version": 3}

    hu, own = phantom.ct, phantom.ct.copy()
    read_only = np.zeros(hu.shape, np.uint8)
    read_only.flags.writeable = False
    for given, out, message in (
        (hu.astype(np.float32), None, r"hu: got float32 of shape .*; expected int16 \[Z, Y, X\]"),
        (hu[0], None, "hu: got int16 of shape"),
        (hu[:, :, ::2], None, r"hu: got .*C-contiguous and aligned: use hu\.copy\(\)"),
        (hu.tolist(), None, "hu: got list; expected a NumPy array"),
        (
            np.ma.masked_array(hu, hu > 0),
            None,
            r"hu: got a masked array.*: hu\.filled\(-1000\) makes them air",
        ),
        (unaligned(hu), None, "hu: got .*C-contiguous and aligned"),
        (OnGpu(), None, "hu: got an array on a GPU, but this Segmenter runs on the CPU"),
        (hu, np.zeros((1, 2, 2), np.uint8), r"out: got shape \(1, 2, 2\); expected that of hu"),
        (hu, read_only, "out: got a read-only array"),
        # The labels of the first slices would be read as the last ones.
        (own, own.view(np.uint8).reshape(2, *hu.shape)[1], "out: got an array in the memory of hu; expected"),
    ):
        with pytest.raises(ArgumentError, match=message):
            segmenter.label(given, spacing=SPACING[1:], out=out)
    for fit in (Fit.identity(hu.shape[1:]), "body"):  # of another model, and none
        with pytest.raises(
            ArgumentError, match=r"fit: got .*; expected a Fit on a grid of \d+x\d+ pixels, as"
        ):
            segmenter.label(hu, spacing=SPACING[1:], fit=fit)
    fit = segmenter.place(hu[:1, 1:], spacing=SPACING[1:])
    with pytest.raises(ArgumentError, match=r"spacing: got \(-1, 'x'\); expected two positive numbers"):
        segmenter.label(hu[:1, 1:], spacing=(-1, "x"), fit=fit)
    with pytest.raises(
        ArgumentError, match=r"hu: got shape .*; expected \[n, 127, 160\], slices as they were"
    ):
        segmenter.label(hu, spacing=SPACING[1:], fit=fit)


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        (
            (40000, 100),
            (1.0, 1.0),
            r"shape: got slices of \(40000, 100\) pixels and .*; expected 1 to 32767 an axis",
        ),
        ((10**10, 10**10), (1.0, 1.0), "shape: got slices of"),
        ((64, 80), (1e-9, 1e-9), r"spacing: got \(1e-09, 1e-09\); expected 0.01 to 100 mm"),
        ((64, 80), (101.0, 101.0), "spacing: got"),
        ((64, 80), (10**400, 1), "spacing: got"),
    ],
)
def test_slices_that_no_ct_has_are_refused_at_once(segmenter, shape, spacing, message):
    for begin in (segmenter.stream, segmenter.warm_up):
        with pytest.raises(ArgumentError, match=message):
            begin(shape, spacing=spacing)


def test_a_ct_that_is_not_aligned_in_memory_is_copied(segmenter):
    hu = abdomen((6, 64, 80), (5.0, 4.0, 4.0)).ct
    wanted = segmenter.segment(hu, spacing=(5.0, 4.0, 4.0)).labels
    assert (segmenter.segment(unaligned(hu), spacing=(5.0, 4.0, 4.0)).labels == wanted).all()


def unaligned(array):
    """The same values one byte beside where their type belongs, as behind the header of a file."""
    moved = np.frombuffer(b"H" + array.tobytes(), np.uint8)[1:].view(array.dtype).reshape(array.shape)
    assert moved.flags.c_contiguous
    assert not moved.flags.aligned
    return moved


def test_a_runtime_of_gpus_is_no_choice_on_the_cpu():
    with pytest.raises(
        ArgumentError, match="runtime: got 'torch', which runs nets on a GPU, and the device is the CPU"
    ):
        trtseg.Segmenter(runtime="torch")
