"""The pictures of a case in a real browser: what they show, and how they react."""

from __future__ import annotations

import re

import numpy as np
import pytest
from viewing import AXES, BOX, LESIONS, LIVER, MM, PINK, TEAL, at, coloured, extent, opened, pixels, settle

from trtseg.report import packing
from trtseg.result import Segmentation
from trtseg.volume import Geometry, Volume


def test_the_labels_arrive_unchanged(page, result):
    values, first, size = page.evaluate("[[...labels.flat], labels.first, labels.size]")
    assert first == [axis.start for axis in BOX]
    assert np.array_equal(np.array(values).reshape(size), result.canonical[BOX])


def test_greys_are_those_of_the_ct(page, result):
    for place in ((24, 25, 20), (15, 30, 20), (5, 50, 50), (2, 2, 2), (34, 6, 8)):
        z, y, x = place
        page.evaluate("(place) => go(place)", list(place))
        settle(page)
        found = int(re.search(r"about (-?\d+) HU", page.inner_text("#place"))[1])
        hu = int(result.volume.array[place])
        assert abs(found - hu) <= (120 if hu < -200 or hu > 300 else 6)  # a coarse curve, and JPEG at an edge
        mm = result.volume.affine @ (x, y, z, 1)
        assert f"RAS {mm[0]:.1f}, {mm[1]:.1f}, {mm[2]:.1f} mm" in page.inner_text("#place")


def test_a_click_on_a_lesion_moves_all_planes_to_it(page):
    for number, box in ((2, LESIONS[1]), (1, LESIONS[0])):
        page.click(f"[aria-label='Show lesion {number}']")
        place = at(page)
        assert all(axis.start <= n < axis.stop for n, axis in zip(place, box, strict=True))
        assert page.inner_text("#place").endswith("tumour")
        slices = [page.input_value(f"[data-plane={plane}] input") for plane in AXES]
        assert slices == [str(n) for n in place]
        for plane in AXES:
            assert coloured(pixels(page, f"[data-plane={plane}]"), PINK).sum() > 30
        assert page.locator("tr[aria-current] button").inner_text() == str(number)


@pytest.mark.parametrize("plane", AXES)
def test_outlines_fall_on_organs(page, plane):
    """The outline encloses what is as bright as the liver when no outline is drawn."""
    page.evaluate("go([11, 37, 41])")
    with_lines = pixels(page, f"[data-plane={plane}]")
    page.keyboard.press("l")
    without = pixels(page, f"[data-plane={plane}]")
    assert not coloured(without, TEAL).any()
    grey = without[..., 0]
    middle = (LIVER - 50 + 2 * 160) / 2 / 400 * 255  # between liver and body
    bright = (grey > middle) & (grey < 200)
    organ = extent(bright & (without.std(axis=-1) == 0), 20)  # not the edges of letters
    line = extent(coloured(with_lines, TEAL))
    assert abs(line - organ).max() <= 2
    rows, columns = AXES[plane]
    height, width = ((BOX[a].stop - BOX[a].start) * MM[a] for a in (rows, columns))
    assert (organ[1] - organ[0]) / (organ[3] - organ[2]) == pytest.approx(height / width, rel=0.03)
    lesion = extent(coloured(with_lines, PINK))
    box = LESIONS[1]
    scale = (organ[3] - organ[2]) / width
    assert (lesion[3] - lesion[2]) / scale == pytest.approx(
        (box[columns].stop - box[columns].start) * MM[columns], abs=4
    )
    from_right = (box[columns].start - BOX[columns].start) * MM[columns]
    assert (lesion[2] - organ[2]) / scale == pytest.approx(from_right, abs=4)


def test_the_slice_of_a_lesion_is_named_also_where_slices_are_shown_as_one(
    browser, tmp_path, monkeypatch, result
):
    monkeypatch.setattr(packing, "_MOST_SLICES", 8)  # of 36: 5 are shown as one
    result.save(tmp_path / "seg.nii.gz", html=tmp_path / "seg.html")
    page, _ = opened(browser, tmp_path / "seg.html")
    assert "One voxel shown is 1 × 1 × 5 of the CT" in page.inner_text("main")
    for number, lesion in enumerate(result.lesions, 1):
        page.click(f"[aria-label='Show lesion {number}']")
        settle(page)
        first, last = map(int, re.findall(r"\d+", page.inner_text("[data-plane=axial] figcaption")))
        assert first <= lesion.diameter_slice <= last == first + 4
    page.evaluate("go([7, 0, 0])")
    settle(page)
    assert page.inner_text("[data-plane=axial] figcaption") == "Axial slice 35"
    page.close()


def test_no_small_lesion_lies_in_a_gap_of_the_dashes(browser, tmp_path):
    geometry = Geometry.from_spacing((1, 256, 256), (3.0, 1.0, 1.0))
    volume = Volume(np.full((1, 256, 256), LIVER, np.int16), geometry.canonical_affine(), geometry, "x")
    labels = np.zeros(volume.array.shape, np.uint8)
    labels[0, 8:248, 8:248] = 1
    tumours = [(y, x) for y in range(24, 240, 24) for x in range(24, 240, 25)]
    labels[(0, *np.transpose(tumours))] = 2
    Segmentation.measure(labels, volume).save(tmp_path / "seg.nii.gz", html=tmp_path / "seg.html")
    page, _ = opened(browser, tmp_path / "seg.html", viewport={"width": 390, "height": 844})
    page.evaluate("go([0, 20, 20])")
    image = pixels(page, "[data-plane=axial]")
    corners = page.evaluate(
        """(tumours) => { const p = layout(PLANES.axial, document.querySelector("[data-plane=axial] canvas"));
        return tumours.map(([y, x]) => [p.y(y), p.x(x)]); }""",
        tumours,
    )
    red = image[..., 0] - image[..., 1]  # grey: 0; the line, if not alone on a pixel: less than its colour
    for y, x in np.rint(corners).astype(int):
        assert red[y - 1 : y + 3, x - 1 : x + 3].max() > 60
    page.close()


def test_right_is_at_the_left_and_heads_are_up(page):
    page.evaluate("go([34, 6, 8])")
    for plane, (up, left) in {
        "axial": (True, True),
        "coronal": (True, True),
        "sagittal": (True, True),
    }.items():
        image = pixels(page, f"[data-plane={plane}]")
        marked = (image.min(axis=-1) > 250) & (
            np.indices(image.shape[:2])[0] < image.shape[0] - 40
        )  # no scale
        rows, columns = np.nonzero(marked)
        assert (np.median(rows) < image.shape[0] / 2) == up, plane
        assert (np.median(columns) < image.shape[1] / 2) == left, plane
    letters = page.evaluate("Object.values(PLANES).map((plane) => plane.letters)")
    assert letters == ["RLAP", "RLHF", "APHF"]


def test_windows_react(page):
    page.evaluate("go([15, 30, 30])")

    def grey():
        image = pixels(page, "[data-plane=axial]")
        x, y = page.evaluate(
            """() => { const c = document.querySelector("[data-plane=axial] canvas");
            const p = layout(PLANES.axial, c); return [p.x(33.5), p.y(26.5)].map(Math.round); }"""
        )
        return image[y, x, 0]

    assert grey() == pytest.approx((LIVER + 160) / 400 * 255, abs=4)
    page.click("text=Bone")
    assert grey() == pytest.approx((LIVER + 500) / 1800 * 255, abs=4)
    assert page.get_attribute("text=Bone", "aria-pressed") == "true"
    page.click("button:has-text('Liver')")
    assert page.input_value("#level") == str(LIVER)  # the level is that of this liver
    assert grey() == pytest.approx(127, abs=8)
    page.fill("#width", "1000")
    page.fill("#level", "0")
    page.keyboard.press("Tab")
    assert grey() == pytest.approx((LIVER + 500) / 1000 * 255, abs=4)


def test_wheel_keys_slider_and_mouse(page):
    page.evaluate("go([15, 30, 30])")
    canvas = page.locator("[data-plane=axial] canvas")
    canvas.hover()
    page.mouse.wheel(0, 120)
    assert at(page) == [14, 30, 30]
    page.mouse.wheel(0, -120)
    assert at(page) == [15, 30, 30]
    canvas.focus()
    for key, z in (("ArrowUp", 16), ("PageUp", 26), ("End", 35), ("Home", 0), ("ArrowDown", 0)):
        page.keyboard.press(key)
        assert at(page)[0] == z, key
    page.locator("[data-plane=coronal] input").fill("7")
    assert at(page) == [0, 7, 30]
    x, y = page.evaluate(
        """() => { const c = document.querySelector("[data-plane=axial] canvas"), b = c.getBoundingClientRect();
        const p = layout(PLANES.axial, c); return [b.x + p.x(40.5), b.y + p.y(20.5)]; }"""
    )
    page.mouse.click(x, y)
    assert at(page) == [0, 20, 40]


def test_fingers(browser, saved):
    page, told = opened(browser, saved, has_touch=True, viewport={"width": 390, "height": 844})
    page.evaluate("go([15, 30, 30])")
    canvas = page.locator("[data-plane=axial] canvas")
    canvas.scroll_into_view_if_needed()
    canvas.tap(position={"x": 150, "y": 150})
    tapped = at(page)
    assert tapped[0] == 15
    assert tapped != [15, 30, 30]
    box = canvas.bounding_box()
    x, y = box["x"] + 150, box["y"] + 200
    touch = page.context.new_cdp_session(page)
    for kind, points in (("Start", [y]), ("Move", [y - 24]), ("Move", [y - 40]), ("End", [])):
        touch.send(
            "Input.dispatchTouchEvent",
            {"type": f"touch{kind}", "touchPoints": [{"x": x, "y": level} for level in points]},
        )
    assert at(page) == [20, *tapped[1:]]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing is cut off
    assert told == [saved.as_uri()]
    page.close()


def test_the_solid_view_shows_lesions_and_turns(page):
    before = pixels(page, "#solid")
    assert (before[..., 1] > before[..., 0] + 20).sum() > 5000  # the liver
    assert (before[..., 0] > before[..., 1] + 60).sum() > 200  # a lesion
    page.locator("#solid canvas").focus()
    page.keyboard.press("Control+ArrowRight")  # the browser's own keys
    assert (pixels(page, "#solid") == before).all()
    page.keyboard.press("ArrowRight")
    assert (pixels(page, "#solid") != before).any()


def test_the_solid_view_is_sharp_again_however_a_drag_ends(browser, saved):
    page, _ = opened(browser, saved, has_touch=True)
    box = page.locator("#solid canvas").bounding_box()
    touch = page.context.new_cdp_session(page)
    for kind, points in (("Start", [0]), ("Move", [30]), ("Move", [60]), ("Cancel", [])):
        touch.send(
            "Input.dispatchTouchEvent",
            {
                "type": f"touch{kind}",
                "touchPoints": [{"x": box["x"] + 50 + n, "y": box["y"] + 50} for n in points],
            },
        )
    settle(page)
    assert page.evaluate("state.turning") is False
    page.close()
