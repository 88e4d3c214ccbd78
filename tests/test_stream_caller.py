"""What a stream keeps of its caller's, and for how long."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import tiny

import trtseg
from trtseg.phantom import abdomen

SPACING = (5.0, 4.0, 4.0)
SHAPE = (64, 80)


@pytest.fixture(scope="module")
def hu():
    return abdomen(shape=(20, *SHAPE), spacing=SPACING).ct


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    with trtseg.Segmenter(tiny.cascade_model(tmp_path_factory.mktemp("model"))) as made:
        yield made


def push_all(stream, hu):
    for z, plane in enumerate(hu):
        stream.push(plane, z * SPACING[0])


def test_a_stream_that_has_ended_gives_its_memory_back_at_once(segmenter, hu):
    """Not when Python's collector comes: that may be many CTs later."""

    def ended():
        with segmenter.stream(SHAPE, spacing=SPACING[1:], on_labels=lambda *_: stream.counts) as stream:
            push_all(stream, hu)
            stream.finish()
        return weakref.ref(stream)

    ended()  # which imports modules, and an import that fails keeps its callers until the next collection
    gc.collect()
    gc.disable()
    try:
        assert ended()() is None
    finally:
        gc.enable()


def test_a_caller_may_use_the_array_of_a_position_again(segmenter, hu):
    place, told = np.zeros(3), []
    with segmenter.stream(
        SHAPE,
        spacing=SPACING[1:],
        directions=(1, 0, 0, 0, 1, 0),
        on_labels=lambda position, _: told.append(position[2]),
    ) as stream:
        for z in range(20):
            place[2] = z * SPACING[0]
            stream.push(hu[z], place)
        result = stream.finish()
    assert (result.labels == segmenter.segment(hu, spacing=SPACING).labels).all()
    assert told == [z * SPACING[0] for z in range(20)]
