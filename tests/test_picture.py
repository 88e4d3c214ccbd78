"""Plots as files."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from training.picture import drawn
from trtseg.errors import OutputError


def test_a_picture_is_written(tmp_path):
    with drawn(tmp_path / "two.png", 1, 2, figsize=(4, 2)) as (left, right):
        left.plot([0, 1], [0, 1], color="red", linewidth=5)
        right.plot([0, 1], [1, 0], color="blue", linewidth=5)
    with Image.open(tmp_path / "two.png") as picture:
        shown = np.asarray(picture.convert("RGB"))
    assert shown.shape == (240, 480, 3)
    red, blue = ((shown == colour).all(2).nonzero()[1] for colour in ((255, 0, 0), (0, 0, 255)))
    assert 0 < red.min() < red.max() < 240 < blue.min() < blue.max()


@pytest.mark.parametrize("fails", ["drawing", "writing"])
def test_a_picture_that_fails_leaves_no_figure_and_no_file(tmp_path, fails):
    before, kind = pyplot.get_fignums(), ZeroDivisionError if fails == "drawing" else OutputError
    with pytest.raises(kind), drawn(tmp_path / ("one.png" if fails == "drawing" else "no/one.png")) as axes:
        axes.plot([0, 1 / (fails == "writing")])
    assert pyplot.get_fignums() == before
    assert not list(tmp_path.iterdir())


def test_pictures_leave_the_figures_and_the_backend_of_others_alone(tmp_path):
    pyplot.switch_backend("svg")
    try:
        own = pyplot.figure()
        with drawn(tmp_path / "one.png"):
            assert pyplot.get_fignums() == [own.number]
        assert pyplot.get_backend() == "svg"
        assert pyplot.get_fignums() == [own.number]
    finally:
        pyplot.close("all")
        pyplot.switch_backend("agg")
