"""The pages in a real browser: a headless Chromium that is driven by Playwright."""

from __future__ import annotations

import base64
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from trtseg.followup import Comparison, Finding, Side
from trtseg.report.comparison import comparison_html
from trtseg.report.index import Row, index_html, read_row, write_index
from trtseg.result import Segmentation
from trtseg.volume import Geometry, Volume
from trtseg.warnings import CODES, ResultWarning

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

LIVER, TUMOUR, MARK = 100, 20, 1200  # HU
NAME = "DOE^JANE <script>alert(1)</script>.nii.gz"
BOX = (slice(8, 28), slice(12, 44), slice(8, 48))  # of the liver [z, y, x]
LESIONS = (  # two blocks: each is a lesion of its own
    (slice(20, 26), slice(20, 30), slice(14, 24)),
    (slice(10, 13), slice(34, 40), slice(38, 44)),
)


@pytest.fixture(scope="module")
def browser():
    """One process for all tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: no chromium, chromium-browser or google-chrome on the path")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def make_result(name=NAME, warnings=()):
    """A block of a liver with two blocks of lesions in a body, and something bright at its right, front and top."""
    hu = np.full((36, 60, 64), -1000, np.int16)
    hu[:, 4:56, 4:60] = -50
    hu[BOX] = LIVER
    labels = np.zeros(hu.shape, np.uint8)
    labels[BOX] = 1
    for box in LESIONS:
        hu[box], labels[box] = TUMOUR, 2
    hu[32:, 4:10, 4:12] = MARK
    geometry = Geometry.from_affine(hu.shape[::-1], np.diag([-3.0, -3.0, 4.0, 1.0]))
    volume = Volume(hu, geometry.canonical_affine(), geometry, name, tuple(warnings))
    made_by = {"model": "test", "model_version": "1", "sha256": {"liver.onnx": "0" * 64}, "device": "cpu"}
    return Segmentation.measure(labels, volume, timings={"read": 0.5}, provenance=made_by)


@pytest.fixture(scope="module")
def result():
    return make_result()


@pytest.fixture(scope="module")
def saved(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    result.save(folder / "seg.nii.gz", html=folder / "seg.html")
    return folder / "seg.html"


class Told(list):
    """What the browser complained of and asked for."""

    def follow(self, page):
        page.on("console", lambda message: self.append(message.text))
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("dialog", lambda dialog: self.append(dialog.message))
        page.on("request", lambda request: request.url.startswith("data:") or self.append(request.url))


def opened(browser, path, **options):
    told = Told()
    page = browser.new_page(**{"viewport": {"width": 1300, "height": 900}, **options})
    told.follow(page)
    page.goto(path.as_uri())
    if path.stem == "seg":
        page.wait_for_selector("body[data-ready]")
    return page, told


@pytest.fixture(scope="module")
def watched(browser, saved):
    """One page for the tests that only look around, and what it told."""
    page, told = opened(browser, saved)
    yield page, told
    page.close()


@pytest.fixture
def page(watched, saved):
    page, told = watched
    page.evaluate("""Object.assign(state,
        { at: data.start, width: 400, level: 40, outlines: true, near: false, yaw: 0.4, pitch: 0.25 }), show()""")
    settle(page)
    yield page
    settle(page)
    assert told == [saved.as_uri()]  # no error, no request but the page itself


def settle(page):
    """Wait until what was asked for is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def at(page):
    settle(page)
    return [int(n) for n in page.get_attribute("body", "data-at").split(",")]


def pixels(page, figure):
    """RGB [rows, columns, 3] of what a canvas shows."""
    settle(page)
    url = page.evaluate("(figure) => document.querySelector(`${figure} canvas`).toDataURL()", figure)
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return np.asarray(image.convert("RGB")).astype(int)


def coloured(image, colour):
    return (abs(image - colour) < 60).all(axis=-1)


def extent(mask, least=1):
    """First and last row and column with so many pixels of a mask."""
    ends = []
    for axis in (1, 0):
        found = np.flatnonzero(mask.sum(axis) >= least)
        ends += [found[0], found[-1] + 1]
    return np.array(ends)


TEAL, PINK = (60, 230, 200), (255, 70, 120)
AXES = {"axial": (1, 2), "coronal": (0, 2), "sagittal": (0, 1)}  # along rows, along columns
MM = (4.0, 3.0, 3.0)


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


def test_numbers_are_those_of_the_report(page, result):
    report = result.report()
    shown = page.locator(".figures dd").all_inner_texts()
    assert shown == [
        f"{report['liver_ml']:.1f} mL",
        f"{report['tumour_ml']:.1f} mL",
        f"{report['tumour_burden']:.1%}",
        "2",
    ]
    for row, lesion in zip(page.locator(".lesions tbody tr").all(), report["lesions"], strict=True):
        cells = row.locator("td").all_inner_texts()
        assert cells[0] == f"{lesion['volume_ml']:.1f}"
        assert cells[1:3] == [f"{lesion[key]:.1f}" for key in ("diameter_mm", "short_mm")]
        assert cells[3].split()[0] == str(lesion["diameter_slice"])
    assert page.locator(".lesions tbody tr td:last-child").all_inner_texts() == [
        "right, front, upper",
        "left, back, lower",
    ]


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
    page.keyboard.press("ArrowRight")
    assert (pixels(page, "#solid") != before).any()


def test_nothing_can_be_fetched(browser, saved):
    page, told = opened(browser, saved)
    for attempt in (
        "fetch('https://example.org')",
        "fetch('data:text/plain,x')",
        "import('data:text/javascript,1')",
    ):
        assert page.evaluate(f"{attempt}.then(() => 'fetched', () => 'refused')") == "refused"
    assert any("Content Security Policy" in line for line in told)
    assert not [line for line in told if line.startswith("https://")]
    page.close()


def test_the_name_is_shown_only_if_asked_for_and_is_no_code(browser, saved, result, tmp_path):
    warning = ResultWarning("geometry-unknown", f"{NAME}: no geometry")
    named = make_result(warnings=[warning])
    for keep in (False, True):
        named.save(tmp_path / "seg.nii.gz", html=tmp_path / "seg.html", keep_identity=keep)
        page, told = opened(browser, tmp_path / "seg.html")
        text = (tmp_path / "seg.html").read_text()
        assert ("JANE" in text) == keep
        assert "<script>alert" not in text
        assert (NAME in page.inner_text("h1")) == keep
        assert page.inner_text(".warnings li").startswith(NAME if keep else "the CT")
        assert told == [(tmp_path / "seg.html").as_uri()]
        page.close()


@pytest.mark.parametrize("name", ["CT", "1"])
def test_a_folders_short_name_changes_no_sentence(tmp_path, name):
    text = "The CT has 1 slice of 1 x 1 x 1 mm."
    warnings = [ResultWarning("slices-blank", text), ResultWarning("slices-jump", f"{name}: jumps")]
    make_result(name, warnings).save(tmp_path / "seg.nii.gz", html=tmp_path / "seg.html")
    page = (tmp_path / "seg.html").read_text()
    assert f"<li>{text} " in page
    assert "<li>the CT: jumps " in page


def pages_of(pdf):
    return max(int(n) for n in re.findall(rb"/Count (\d+)", pdf))


def test_print_is_two_pages_whatever_there_is_to_say(browser, saved, tmp_path):
    page, _ = opened(browser, saved)
    assert pages_of(page.pdf(prefer_css_page_size=True)) == 2
    page.close()
    sentence = (
        "The header says one thing and the picture another, so that nobody knows which of the two is right. "
    )
    full = make_result("x", [ResultWarning(code, sentence * 2) for code in CODES])
    full.canonical[8:28:2, 12:44:3, 8:48:4] = 2
    many = Segmentation.measure(full.canonical, full.volume, provenance=full.provenance)
    assert len(many.lesions) > 100
    many.save(tmp_path / "seg.nii.gz", html=tmp_path / "seg.html")
    page, _ = opened(browser, tmp_path / "seg.html", color_scheme="dark")
    assert pages_of(page.pdf(prefer_css_page_size=True)) == 2
    page.close()


def test_what_a_screen_reader_gets(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, canvas, img, table, select")].filter((e) =>
        !(e.getAttribute("aria-label") || e.labels?.[0]?.innerText.trim() || e.innerText?.trim() || e.alt
        || e.caption?.textContent)).length"""
    )
    assert unnamed == 0
    assert page.locator("thead th:not([scope=col]), tbody th:not([scope=row])").count() == 0
    assert page.get_attribute("html", "lang") == "en"
    assert "tumour" in page.get_attribute("[data-plane=axial] canvas", "aria-label")
    # warnings come before all numbers, and these before the pictures
    order = page.evaluate(
        """[".warnings, .no-warning", ".figures", ".planes", ".lesions"].map((s) => document.querySelector(s))
        .every((e, n, all) => !n || all[n - 1].compareDocumentPosition(e) & 4)"""
    )
    assert order
    assert "Not for clinical use" in page.inner_text("header")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_mode_and_contrast(browser, saved, scheme):
    page, _ = opened(browser, saved, color_scheme=scheme)
    colours = page.evaluate(
        """[".figures dd", ".figures dt", ".notice", ".note"].map((s) => document.querySelector(s))
        .map((e) => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor])"""
    )

    def luminance(text):
        rgb = [int(n) / 255 for n in re.findall(r"\d+", text)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for text, paper in colours:
        high, low = sorted((luminance(text), luminance(paper)), reverse=True)
        assert (high + 0.05) / (low + 0.05) > 4.5
        assert (luminance(paper) < 0.1) == (scheme == "dark")
    page.close()


def test_a_ct_without_a_liver_has_a_page(browser, tmp_path):
    empty = make_result("x")
    nothing = Segmentation.measure(np.zeros_like(empty.canonical), empty.volume, provenance=empty.provenance)
    nothing.save(tmp_path / "seg.nii.gz", html=tmp_path / "seg.html")
    page, told = opened(browser, tmp_path / "seg.html")
    assert "No lesions were found" in page.inner_text("main")
    assert page.inner_text(".warnings h2") == "1 warning"
    assert told == [(tmp_path / "seg.html").as_uri()]
    page.close()


def test_notebooks_show_the_page_in_a_frame(browser, result, tmp_path):
    (tmp_path / "notebook.html").write_text(f"<body>{result.view(height=500)._repr_html_()}")
    page, told = opened(browser, tmp_path / "notebook.html")
    frame = page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    frame.locator("[aria-label='Show lesion 2']").click()
    assert frame.locator("#place").inner_text().endswith("tumour")
    assert told == [(tmp_path / "notebook.html").as_uri(), "about:srcdoc"][: len(told)]
    page.close()


# --- the page of many cases


def make_rows(saved, count):
    row = read_row(saved, saved.parent)
    return [
        Row(
            f"case-{n}",
            "seg.html",
            {
                **row.facts,
                "liver_ml": 1000.5 + n,
                "lesion_count": n % 7,
                "warnings": ["liver-cut"] * (n % 3 == 0),
            },
        )
        for n in range(count)
    ]


def test_the_index_sorts_and_filters(browser, saved):
    path = saved.with_name("index.html")
    path.write_bytes(index_html(make_rows(saved, 30)))
    page, told = opened(browser, path)

    def shown():
        return page.locator("tbody tr:visible th").all_inner_texts()

    assert len(shown()) == 30
    page.click("text=Liver, mL >> visible=true >> nth=-1")
    assert shown()[:2] == ["case-29", "case-28"]
    page.click("thead button:has-text('Liver')")
    assert shown()[:2] == ["case-0", "case-1"]
    page.select_option("#warning", "liver-cut")
    assert shown() == [f"case-{n}" for n in range(0, 30, 3)]
    page.fill("[data-column='4'][data-least]", "3")
    page.fill("[data-column='4']:not([data-least])", "4")
    assert shown() == [f"case-{n}" for n in range(0, 30, 3) if n % 7 in (3, 4)]
    page.click("button:has-text('All')")
    page.fill("[data-column='1']:not([data-least])", "1002")
    assert shown() == ["case-0", "case-1"]
    assert page.inner_text("#count") == "2 of 30 cases"
    assert page.locator("svg[role=img][aria-label]").count() == 3
    assert told == [path.as_uri()]
    page.click("text=case-1")
    page.wait_for_selector("body[data-ready]")
    page.close()


def test_the_index_is_made_from_the_pages_that_are_there(tmp_path):
    result = make_result(warnings=[ResultWarning("values-scale", "odd values")])
    cases = [tmp_path / f"{name}_seg.html" for name in "ab=c"]
    assert write_index(cases, tmp_path) is None
    for path in (cases[0], cases[2]):
        result.save(path.with_suffix(".nii.gz"), html=path)
    cases[1].write_text("another page")
    assert write_index(cases, tmp_path) == tmp_path / "index.html"
    lines = (tmp_path / "index.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["case", "a", "'="]
    values = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    report = result.report()
    for key in ("liver_ml", "tumour_ml", "tumour_burden", "lesion_count"):
        assert float(values[key]) == report[key]
    assert (values["page"], values["warnings"]) == ("a_seg.html", "values-scale")
    assert lines[2].endswith("%3D_seg.html")


@pytest.mark.slow
def test_a_thousand_cases_open_in_two_seconds(browser, saved):
    """Seconds of the processor, whatever else the machine does."""
    path = saved.with_name("index.html")
    path.write_bytes(index_html(make_rows(saved, 1000)))
    page = browser.new_page()
    meter = page.context.new_cdp_session(page)
    meter.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri())
    page.click("thead button:has-text('Liver')")
    assert page.inner_text("tbody th >> nth=0") == "case-999"
    seconds = {metric["name"]: metric["value"] for metric in meter.send("Performance.getMetrics")["metrics"]}
    assert 0.01 < seconds["TaskDuration"] < 2
    page.close()


def test_the_page_of_a_comparison(browser, tmp_path):
    old, new = Side((1,), 2.0, 20.0, 10.0, 5), Side((1, 2), 3.0, 22.0, 12.0, 6)
    findings = (Finding("grown", old, new), Finding("gone", old, None), Finding("new", None, new))
    made = Comparison(
        ("a<b.nii", "b"), (1500.0, 1400.0), (4.0, 6.0), (1, 2, 3), 0.9, findings, ("livers <agree> poorly",)
    )
    path = tmp_path / "compare.html"
    path.write_bytes(comparison_html(made.report()))
    page, told = opened(browser, path)
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator("tbody tr").all()]
    assert rows[0] == ["1", "grown (+50%)", "2.00", "3.00", "20.0", "22.0", "10.0", "12.0", "5", "6"]
    assert rows[1][1:4] == ["gone", "2.00", "–"]
    assert rows[2][1:4] == ["new", "–", "3.00"]
    assert "livers <agree> poorly" in page.inner_text(".warnings")
    assert "a<b" not in page.inner_text("body")
    assert "progression" in page.inner_text(".figures")
    assert told == [path.as_uri()]
    page.close()
