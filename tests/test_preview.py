"""The preview picture: what is on it, and that it always comes out."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from trtseg.errors import ArgumentError
from trtseg.notice import NOTICE
from trtseg.report.pictures import LIVER, TUMOUR, _body_box, _wrapped, choose_slices, preview_png
from trtseg.volume import Geometry, Volume


def make(
    shape: tuple[int, int, int], spacing: tuple[float, float, float] = (5, 1, 1), hu: int = 40
) -> tuple[Volume, np.ndarray]:
    """A body of ``hu`` that fills the volume [Z, Y, X], and empty labels."""
    sz, sy, sx = spacing
    geometry = Geometry.from_affine(shape[::-1], np.diag([-sx, -sy, sz, 1]))
    volume = Volume(np.full(shape, hu, np.int16), geometry.canonical_affine(), geometry, "ct.nii.gz")
    return volume, np.zeros(shape, np.uint8)


def draw(volume: Volume, labels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(preview_png(volume, labels, "liver 1.0 mL"))))


def near(image: np.ndarray, colour: tuple[int, int, int], tolerance: int = 24) -> np.ndarray:
    return (np.abs(image.astype(int) - colour) <= tolerance).all(axis=-1)


def test_a_preview_shows_body_and_labels_alone() -> None:
    volume, labels = make((3, 100, 120), hu=-1000)
    assert _body_box(volume, labels, [0, 1]) == (0, 0, 100, 120), "nothing to show: all"
    labels[1, 40:60, 30:50] = 1
    assert _body_box(volume, labels, [0, 1]) == (38, 28, 62, 52), "labels, and two pixels around them"
    assert _body_box(volume, labels, [0, 2]) == (0, 0, 100, 120), "of other slices"
    volume.array[:, 20:80, 50:110] = 40
    volume.array[:, 90:95, :] = 40
    top, left, bottom, right = _body_box(volume, labels, [0, 1])
    assert 14 <= top <= 18
    assert left == 28
    assert 79 <= bottom <= 86, "to half a sample of 6 mm, and two pixels; not the table"
    assert 109 <= right <= 116


def test_outlines_lie_on_the_edges_of_known_squares() -> None:
    volume, labels = make((1, 170, 170))
    labels[0, 40:120, 40:120] = 1
    labels[0, 60:80, 60:80] = 2
    image = draw(volume, labels)
    # One tile of 340 x 340: two pixels a voxel, below the header, in the middle of a page of 680.
    tile = image[40:380, image.shape[1] // 2 - 170 :][:, :340]
    liver, tumour = near(tile, LIVER), near(tile, TUMOUR)
    for mask, low, high in ((liver, 80, 240), (tumour, 120, 160)):
        y, x = np.nonzero(mask)
        for found, expected in ((y.min(), low), (x.min(), low), (y.max(), high - 1), (x.max(), high - 1)):
            assert abs(int(found) - expected) <= 2
        middle = (low + high) // 2
        assert mask[middle, low - 2 : low + 4].any()
        assert mask[high - 4 : high + 2, middle].any()
    # Not filled: tissue stays grey inside and outside, with the window's value for 40 HU.
    for y, x in ((100, 100), (140, 140), (200, 200), (260, 260)):
        assert tile[y, x].tolist() == [127, 127, 127]  # 200 / 400 * 255


def test_page_of_a_large_noisy_ct_stays_small() -> None:
    volume, labels = make((30, 512, 512), (2.5, 0.7, 0.7))
    noisy = volume.array + np.random.default_rng(0).normal(0, 15, volume.array.shape).astype(np.int16)
    labels[:, 100:300, 100:250] = 1
    png = preview_png(Volume(noisy, volume.affine, volume.geometry), labels, "x")
    assert len(png) < 2_000_000
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.size) == ("PNG", (4 * 344 + 4, 40 + 3 * 344 + 26))


@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("hu", [-1000, 40, 3000])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (1, 9, 1), (2, 3, 4), (3, 200, 7), (40, 6, 90)])
def test_any_volume_can_be_drawn(shape: tuple[int, int, int], hu: int, label: int) -> None:
    volume, labels = make(shape, (3, 0.7, 2.1), hu)
    labels[:] = label
    image = draw(volume, labels)
    assert image.shape[2] == 3
    assert max(image.shape) < 3000


def test_pixels_are_square_in_mm() -> None:
    volume, labels = make((1, 40, 160), (5, 4, 1))  # 160 x 160 mm
    labels[0, 10:30, 40:120] = 1  # 80 x 80 mm
    y, x = np.nonzero(near(draw(volume, labels)[45:], LIVER))
    assert abs(np.ptp(y) - np.ptp(x)) <= 3


def test_a_single_voxel_is_seen() -> None:
    volume, labels = make((1, 512, 512), (5, 0.7, 0.7))
    labels[0, 100:400, 100:400] = 1
    without = near(draw(volume, labels)[45:], TUMOUR, 90).sum()
    labels[0, 250, 250] = 2
    assert near(draw(volume, labels)[45:], TUMOUR, 90).sum() > without == 0


def test_the_table_is_cropped_off() -> None:
    volume, labels = make((1, 100, 100), hu=-1000)
    hu = volume.array.copy()
    hu[0, 20:60, 10:90] = 40
    hu[0, 90:92] = 200
    image = draw(Volume(hu, volume.affine, volume.geometry), labels)
    assert image.shape[0] < 300  # 406 with the table and all the air


def test_slices_are_spread_over_the_liver_and_include_the_most_tumour() -> None:
    labels = np.zeros((100, 4, 4), np.uint8)
    assert choose_slices(labels, 12) == [87, 62, 37, 12]
    assert choose_slices(labels, 1) == [50]
    labels[20:80, 1, 1] = 1
    assert choose_slices(labels, 6) == [75, 65, 55, 45, 35, 25]
    labels[42:44, 1, 1] = 2
    labels[43, 2, 2] = 2
    assert choose_slices(labels, 6) == [75, 65, 55, 43, 35, 25]
    labels[:] = 0
    labels[7:9] = 1
    assert choose_slices(labels, 12) == [8, 7]


def test_the_footer_is_the_notice_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    original = ImageDraw.ImageDraw.text

    def text(
        self: ImageDraw.ImageDraw, at: tuple[float, float], words: str, *rest: Any, **named: Any
    ) -> None:
        written.append(words)
        original(self, at, words, *rest, **named)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    draw(*make((1, 30, 30)))
    assert NOTICE in written
    assert not [words for words in written if "model" in words]


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_measurements_and_key_have_room_beside_small_tiles(
    monkeypatch: pytest.MonkeyPatch, slices: int
) -> None:
    ends: dict[str, tuple[float, float]] = {}
    original = ImageDraw.ImageDraw.text

    def text(
        self: ImageDraw.ImageDraw, at: tuple[float, float], words: str, *rest: Any, **named: Any
    ) -> None:
        ends[words] = (at[0], self.textbbox(at, words, *rest[1:])[2] if len(rest) > 1 else at[0])
        original(self, at, words, *rest, **named)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    volume, labels = make((slices, 170, 170))
    labels[:] = 1
    summary = "liver 1519.6 mL, tumour 181.6 mL (12.4%), 120 lesions"
    preview_png(volume, labels, summary, tile=220)
    assert ends[summary][1] < ends["liver"][0] - 26


def test_labels_of_another_grid_are_refused() -> None:
    volume, _ = make((2, 3, 4))
    with pytest.raises(ArgumentError, match="labels: got shape"):
        preview_png(volume, np.zeros((4, 3, 2), np.uint8), "x")


def test_a_long_name_in_a_warning_stays_inside() -> None:
    volume, labels = make((1, 30, 30))
    name = "1.2.840.113619" * 12
    page = np.asarray(
        Image.open(io.BytesIO(preview_png(volume, labels, "x", [f"{name}.nii.gz: odd values"])))
    )
    assert (page[-120:-26, -10:] == page[-1, -1]).all()
    assert "".join(_wrapped(f"a {name} b", 300)) == f"a{name} b"


def test_long_and_foreign_names() -> None:
    volume, labels = make((1, 30, 30))
    named = Volume(volume.array, volume.affine, volume.geometry, "肝臓" * 200)
    assert draw(named, labels).shape[1] == 680
