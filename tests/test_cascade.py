"""The pipeline against the NumPy oracle, on nets that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from trtseg import reference
from trtseg.cascade.cpu import CHUNK, Cascade
from trtseg.engines.base import Net
from trtseg.engines.openvino import OpenVinoEngine
from trtseg.engines.precision import FP32
from trtseg.io import load
from trtseg.phantom import abdomen


@pytest.fixture(scope="module")
def volume():
    """Not square, not a multiple of the chunk, with slices that hold no liver."""
    ct = abdomen(shape=(CHUNK + 5, 100, 130), spacing=(16.0, 3.0, 3.0)).ct
    return load(ct, spacing=(16.0, 3.0, 3.0))


def engine(spec, onnx):
    return OpenVinoEngine(Net(spec, FP32, onnx))


def logits(net, x):
    out = np.empty((len(x), net.spec.channels, *net.spec.size), np.float32)
    net.run(x, out)
    return out


def everywhere(volume, liver, tumour):
    """The cascade with the tumour net on every slice, in NumPy; labels and liver pixels a slice."""
    fit = liver.spec.fit_slice(volume.array.shape[1:], volume.spacing[1:])
    t1, t2 = liver.spec.logit_threshold, tumour.spec.logit_threshold
    hu_net, x1 = reference.prepare(volume.array, fit, liver.spec.window)
    l1 = logits(liver, x1)
    x2, pixels = reference.gate(l1, hu_net, t1, tumour.spec.window)
    labels, _ = reference.label(l1, logits(tumour, x2), (t1, t2), fit)
    return labels, pixels


def test_equals_the_oracle(volume):
    liver, tumour = tiny.spec("liver", threshold=0.6), tiny.spec("tumour", threshold=0.4)
    nets = (
        engine(liver, tiny.threshold_at(90, liver)),
        engine(tumour, tiny.threshold_at(120, tumour, steepness=-40.0)),
    )
    labels, _ = Cascade(*nets).run(volume.array, volume.spacing[1:])
    expected, _ = everywhere(volume, *nets)
    assert set(np.unique(expected)) == {0, 1, 2}
    assert (labels == expected).all()


def test_skipping_slices_without_liver_changes_nothing(volume):
    # The liver net looks for what is far brighter than soft tissue, so that most slices have none; the tumour net
    # finds tumour in everything, empty slices most of all: wherever its answer were used, labels would show it.
    liver, tumour = tiny.spec("liver"), tiny.spec("tumour")
    nets = (
        engine(liver, tiny.threshold_at(150, liver)),
        engine(tumour, tiny.convolution(np.full((1, 1, 3, 3), -0.1), np.array([50.0]), tumour)),
    )
    bright = volume.array.copy()
    bright[3:6] = -1000
    bright[CHUNK - 1 :] = -1000
    bright = load(bright, spacing=volume.spacing)
    cascade = Cascade(*nets)
    cascade._l2[:] = np.nan  # what a skipped slice would find in the buffer
    expected, pixels = everywhere(bright, *nets)
    assert 0 < np.count_nonzero(pixels) < len(pixels)
    labels, _ = cascade.run(bright.array, bright.spacing[1:])
    assert (labels == expected).all()
    assert (labels[pixels == 0] == 0).all()


def test_one_step(volume):
    spec = tiny.spec("one-step")
    weight = np.array([0.0, 40, 80]).reshape(3, 1, 1, 1)
    net = engine(spec, tiny.convolution(weight, np.array([0.0, -22, -52]), spec))
    labels, timings = Cascade(net).run(volume.array, volume.spacing[1:])
    fit = spec.fit_slice(volume.array.shape[1:], volume.spacing[1:])
    _, x1 = reference.prepare(volume.array, fit, spec.window)
    expected, _ = reference.label3(logits(net, x1), fit)
    assert set(np.unique(expected)) == {0, 1, 2}
    assert (labels == expected).all()
    assert set(timings) == {"prepare", "one-step net", "label"}


def test_buffers_carry_nothing_over(volume):
    liver, tumour = tiny.spec("liver"), tiny.spec("tumour")
    nets = (engine(liver, tiny.threshold_at(60, liver)), engine(tumour, tiny.threshold_at(90, tumour)))
    cascade = Cascade(*nets)
    first, _ = cascade.run(volume.array, volume.spacing[1:])
    other = load(np.ascontiguousarray(volume.array[::-1, ::-1, :90]), spacing=(1.0, 2.0, 2.5))
    cascade.run(other.array, other.spacing[1:])
    again, _ = cascade.run(volume.array, volume.spacing[1:])
    assert (first == again).all()


def test_progress_and_timings(volume):
    liver, tumour = tiny.spec("liver"), tiny.spec("tumour")
    told: list[float] = []
    nets = (engine(liver, tiny.threshold_at(60, liver)), engine(tumour, tiny.threshold_at(90, tumour)))
    _, timings = Cascade(*nets).run(volume.array, volume.spacing[1:], progress=told.append)
    assert told == [CHUNK / len(volume.array), 1.0]
    assert list(timings) == ["prepare", "liver net", "gate", "tumour net", "label"]
    assert min(timings.values()) >= 0
