"""The page of a case in a real browser: what it says, to whom, and what it may do."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from viewing import NAME, make_result, opened

from trtseg.report import packing
from trtseg.report.case import case_html
from trtseg.result import Segmentation
from trtseg.warnings import CODES, ResultWarning


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
        assert cells[3] == f"{lesion['probability']:.2f}"
        assert cells[4].split()[0] == str(lesion["diameter_slice"])
    one, three = (1 / (1 + math.exp(-logit)) for logit in (1, 3))
    assert [lesion["probability"] for lesion in report["lesions"]] == pytest.approx(
        [(one + three) / 6, 0.5 / 3], abs=1e-4
    )  # of six slices and of three; the net did not run on the others
    assert "not the chance that a lesion is real or malignant" in page.inner_text("main")
    assert page.locator(".lesions tbody tr td:last-child").all_inner_texts() == [
        "right, front, upper",
        "left, back, lower",
    ]


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
    digests = {f"{net}.int8.onnx": "0" * 64 for net in ("liver", "tumour")}
    made = full.provenance | {"sha256": digests, "thresholds": {"liver": 0.5, "tumour": 0.7}}
    name = "Anonymised_abdomen_" * 5
    many = Segmentation.measure(
        full.canonical,
        dataclasses.replace(full.volume, name=name),
        provenance=made,
        steps={f"step {n}": {"components": n, "removed_voxels": 30249, "removed_ml": n} for n in range(6)},
    )
    assert len(many.lesions) > 100
    many.save(tmp_path / "seg.nii.gz", html=tmp_path / "seg.html", keep_identity=True)
    page, _ = opened(
        browser, tmp_path / "seg.html", color_scheme="dark", viewport={"width": 703, "height": 900}
    )
    assert pages_of(page.pdf(prefer_css_page_size=True)) == 2
    assert "Printed" not in page.inner_text("main")
    page.emulate_media(media="print")
    page.evaluate("document.querySelector('details').open = true")
    ground = page.locator("figure").first.evaluate("one => getComputedStyle(one).backgroundColor")
    assert ground == "rgba(0, 0, 0, 0)", "the caption is dark, also where backgrounds are printed"
    assert page.locator("#progress").evaluate("one => one.closest('.no-print')") is None
    for part in ("header", "h1", ".second-page"):  # all of it is on the paper
        seen, wanted = page.evaluate(
            "(s) => { const e = document.querySelector(s); return [e.clientHeight, e.scrollHeight] }", part
        )
        assert wanted <= seen, part
    assert page.locator(".lesions tbody tr:visible").count() == 20
    assert f"Printed are the 20 largest of {len(many.lesions)}." in page.inner_text("main")
    page.close()


@pytest.mark.parametrize("width", [390, 1300])
def test_a_long_name_in_a_warning_stays_inside(browser, tmp_path, width):
    warned = make_result("x", [ResultWarning("values-scale", f"{'1.2.840.113619' * 12}.nii.gz: odd values")])
    warned.save(tmp_path / "seg.nii.gz", html=tmp_path / "seg.html")
    page, _ = opened(browser, tmp_path / "seg.html", viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


@pytest.mark.parametrize("width", [390, 800, 1250])
def test_no_column_is_cut_off(browser, saved, width):
    page, _ = opened(browser, saved, viewport={"width": width, "height": 900})
    seen, wanted = page.evaluate(
        "() => { const e = document.querySelector('.lesions').parentElement; return [e.clientWidth, e.scrollWidth] }"
    )
    assert wanted <= seen
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


def test_a_probability_that_is_not_known_is_a_dash(tmp_path):
    known = make_result("x")
    made = Segmentation.measure(known.canonical, known.volume, provenance=known.provenance)
    made.save(tmp_path / "seg.nii.gz", html=tmp_path / "seg.html")
    assert (tmp_path / "seg.html").read_text().count("<td>–</td>") == 2


def test_the_page_says_how_the_labels_were_made():
    made = {
        "model": "livers",
        "model_version": "2.1",
        "sha256": {"liver.onnx": "ab" * 32, "tumour.onnx": "cd" * 32},
        "thresholds": {"liver": 0.5, "tumour": 0.66666},
        "device": "cuda:0 <H200>",
        "precision": "fp16",
        "versions": {"trtseg": "0.9", "torch": "2.13"},
        "fingerprint": "f00d",
        "intended_use": "research",
        "search_mm": 12.5,
        "labelled_slices": 17,
    }
    known = make_result()
    result = Segmentation.measure(
        known.canonical, known.volume, provenance=made, steps={"largest_liver": {"removed_ml": 1.23456}}
    )
    report = result.report() | {"timings_s": {"read": 0.5, "liver net": 12.3456}}
    report["input"] |= {"series_number": 7}
    html = case_html(known.volume, result.canonical, result.lesions, report, keep_identity=False).decode()
    table = re.search('<table class="made">(.*?)</table>', html, re.DOTALL)[1]
    assert dict(re.findall('<th scope="row">(.*?)</th><td>(.*?)</td>', table)) == {
        "CT": "64 × 60 × 36 voxels of 3 × 3 × 4 mm",
        "SeriesNumber": "7",
        "Model": "livers 2.1",
        "SHA-256 of liver.onnx": "ab" * 32,
        "SHA-256 of tumour.onnx": "cd" * 32,
        "Thresholds": "liver 0.5, tumour 0.6667",
        "Device and precision": "cuda:0 &lt;H200&gt;, fp16",
        "Search for the liver": "on slices 12.5 mm apart, 17 slices labelled",
        "Steps after the nets": "largest liver (removed ml 1.235)",
        "Seconds": "read 0.5, liver net 12.35",
        "Versions": "trtseg 0.9, torch 2.13",
        "Fingerprint": "f00d",
        "Intended use": "research",
    }


def data_of(html, identifier):
    found = re.search(rf'<script type="application/json" id="{identifier}">(.*?)</script>', html)
    return json.loads(found[1])


def test_places_are_those_of_the_ct_where_voxels_are_shown_as_one(monkeypatch):
    monkeypatch.setattr(packing, "_BUDGET", 1)  # four voxels in each direction of a slice
    monkeypatch.setattr(packing, "_MOST_SLICES", 18)  # of 36
    made = make_result()
    html = case_html(made.volume, made.canonical, made.lesions, made.report(), keep_identity=False).decode()
    shown = data_of(html, "viewer")
    assert (shown["step"], shown["shape"], shown["size"]) == ([2, 4, 4], [18, 15, 16], [36, 60, 64])
    assert shown["spacing"] == [8, 12, 12]
    for x, y, z in ((0, 0, 0), (3, 5, 7)):  # the first of two slices, and the middle of four by four voxels
        place = made.volume.affine @ (4 * x + 1.5, 4 * y + 1.5, 2 * z, 1)
        assert np.array(shown["affine"]) @ (x, y, z, 1) == pytest.approx(place)
    for lesion, told in zip(made.lesions, shown["lesions"], strict=True):
        wanted = (np.array(lesion.axes) - 1.5) / 4
        assert np.array(told["lines"]) == pytest.approx(wanted, abs=0.006)
        assert told["focus"][0] == lesion.diameter_slice // 2


def test_the_facts_and_the_table_of_lesions_of_several_sizes():
    made = make_result()
    sizes = ((1.26, 28.548, 0.25), (1.04, 34.5, None), (0.994, 9.5, 0.75))
    lesions = tuple(
        dataclasses.replace(made.lesions[0], volume_ml=ml, diameter_mm=mm, probability=chance)
        for ml, mm, chance in sizes
    )
    made = dataclasses.replace(made, lesions=lesions)
    html = case_html(made.volume, made.canonical, lesions, made.report(), keep_identity=False).decode()
    facts = data_of(html, "facts")
    assert (facts["lesion_count"], facts["largest_mm"], facts["highest_probability"]) == (3, 34.5, 0.75)
    table = re.search('<table class="lesions">(.*?)</table>', html, re.DOTALL)[1]
    rows = [re.findall("<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("1.3", "28.5", "0.25"),
        ("1.0", "34.5", "–"),
        ("0.99", "9.5", "0.75"),
    ]


def test_notebooks_show_the_page_in_a_frame(browser, result, tmp_path):
    (tmp_path / "notebook.html").write_text(f"<body>{result.view(height=500)._repr_html_()}")
    page, told = opened(browser, tmp_path / "notebook.html")
    frame = page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    frame.locator("[aria-label='Show lesion 2']").click()
    assert frame.locator("#place").inner_text().endswith("tumour")
    assert told == [(tmp_path / "notebook.html").as_uri(), "about:srcdoc"][: len(told)]
    page.close()
