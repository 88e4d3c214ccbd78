"""The page of many cases in a real browser."""

from __future__ import annotations

import csv
import os
import re

import pytest
from viewing import make_result, opened

from trtseg.report.index import Row, index_html, read_row, write_index
from trtseg.warnings import ResultWarning


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
                "highest_probability": None if n == 3 else n / 1000,
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
    page.click("thead button:has-text('probability')")
    assert shown()[0] == "case-29"
    page.click("thead button:has-text('probability')")
    assert shown()[:2] == ["case-3", "case-0"]  # not known, then 0
    page.click("thead button:has-text('Case')")
    page.select_option("#warning", "liver-cut")
    assert shown() == [f"case-{n}" for n in range(0, 30, 3)]
    page.fill("[data-column='4'][data-least]", "3")
    page.fill("[data-column='4']:not([data-least])", "4")
    assert shown() == [f"case-{n}" for n in range(0, 30, 3) if n % 7 in (3, 4)]
    page.click("button:has-text('All')")
    page.fill("[data-column='1']:not([data-least])", "1002")
    assert shown() == ["case-0", "case-1"]
    assert page.inner_text("#count") == "2 of 30 cases"
    fit = page.locator("tbody img").first.evaluate("one => getComputedStyle(one).objectFit")
    assert fit == "contain"  # all of the picture is seen, and so its R and L
    assert page.locator("svg[role=img][aria-label]").count() == 3
    assert page.inner_text("figcaption >> nth=0") == "Liver, mL; median 1015"  # between the 15th and the 16th
    assert told == [path.as_uri()]
    page.click("text=case-1")
    page.wait_for_selector("body[data-ready]")
    page.go_back()
    page.wait_for_selector("#count:text-is('2 of 30 cases')")
    assert shown() == ["case-0", "case-1"]
    page.close()


def facts(**changes):
    """What the page of a case says at its start, for those that only count."""
    known = {"liver_ml": 600.0, "tumour_ml": 0.0, "tumour_burden": 0.0, "lesion_count": 0, "largest_mm": 0.0}
    known |= {"highest_probability": None, "warnings": [], "model": "test 1", "thumbnail": "AAAA"}
    return known | changes


def test_each_number_stands_below_its_heading_in_its_unit():
    lesions = {"tumour_ml": 60.04, "tumour_burden": 0.05, "lesion_count": 3, "largest_mm": 41.26}
    odd = facts(**lesions, highest_probability=0.875, warnings=["values-scale", "liver-cut"])
    rows = [Row("a<b", "a.html", odd), Row("c", "c&d.html", facts(warnings=["liver-cut"]))]
    page = index_html(rows).decode()
    headings = re.findall(r'<th scope="col"><button type="button">(.*?)</button></th>', page)
    assert headings == [
        "Case", "Liver, mL", "Tumour, mL", "Burden", "Lesions", "Largest, mm", "Highest probability", "Warnings",
    ]  # fmt: skip
    first, second = (re.findall('<td data-value="(.*?)">(.*?)</td>', row) for row in page.split("<tr>")[2:4])
    assert first == [
        ("600.0", "600.0"),
        ("60.04", "60.0"),
        ("0.05", "5.0%"),
        ("3", "3"),
        ("41.26", "41.3"),
        ("0.875", "0.88"),
        ("liver-cut values-scale", "liver-cut<br>values-scale"),
    ]
    assert second[5:] == [("-1", "–"), ("liver-cut", "liver-cut")]
    assert '<a href="c&amp;d.html">' in page
    assert "<span>a&lt;b</span>" in page
    assert page.count('src="data:image/jpeg;base64,AAAA"') == 2
    assert "<option>liver-cut</option><option>values-scale</option></select>" in page


def test_each_filter_and_each_heading_does_what_it_says(browser, tmp_path):
    rows = [
        Row(
            "Bob",
            "b.html",
            facts(liver_ml=1200, tumour_ml=3, lesion_count=1, warnings=["values-scale", "liver-cut"]),
        ),
        Row(
            "ann-10", "a10.html", facts(liver_ml=900, tumour_ml=12.5, lesion_count=2, warnings=["liver-cut"])
        ),
        Row("Ann-2", "a2.html", facts(liver_ml=1500)),
    ]
    path = tmp_path / "index.html"
    path.write_bytes(index_html(rows))
    page, told = opened(browser, path)

    def shown():
        assert page.locator("[aria-sort]").count() <= 1
        return page.locator("tbody tr:visible th").all_inner_texts()

    def sorted_by(heading):
        page.click(f"thead button:has-text('{heading}')")
        return shown()

    assert sorted_by("Case") == ["Ann-2", "ann-10", "Bob"]
    assert sorted_by("Warnings") == ["Ann-2", "ann-10", "Bob"]
    assert sorted_by("Warnings") == ["Bob", "ann-10", "Ann-2"]
    assert sorted_by("Liver") == ["Ann-2", "Bob", "ann-10"]
    page.fill("#name", "ANN")
    page.press("#name", "Enter")
    assert shown() == ["Ann-2", "ann-10"]
    page.click("button:has-text('All')")
    page.wait_for_selector("#count:text-is('3 cases')")
    for warning, names in (
        ("without any", ["Ann-2"]),
        ("with any", ["Bob", "ann-10"]),
        ("values-scale", ["Bob"]),
        ("liver-cut", ["Bob", "ann-10"]),
        ("all cases", ["Ann-2", "Bob", "ann-10"]),
    ):
        page.select_option("#warning", label=warning)
        assert shown() == names
    for group, least, most in (("Liver", "1000", "1200"), ("Tumour", "1", "3"), ("Lesions", "1", "1")):
        page.fill(f"[aria-label^='{group}'] >> text=from >> input", least)
        assert len(shown()) == 2
        page.fill(f"[aria-label^='{group}'] >> text=to >> input", most)
        assert shown() == ["Bob"]
        page.click("button:has-text('All')")
        page.wait_for_selector("#count:text-is('3 cases')")
    page.fill("[aria-label^='Tumour'] >> text=to >> input", "0")
    assert shown() == ["Ann-2"]
    assert page.inner_text("#count") == "1 of 3 cases"
    assert told == [path.as_uri()]
    page.close()


def test_the_histograms_count_cases():
    livers = [600.0, 1150.0, 1200.0]
    page = index_html(
        [Row("a", "a.html", facts(liver_ml=ml, lesion_count=n)) for n, ml in enumerate(livers)]
    ).decode()
    liver, tumour, lesions = re.findall("<figure>.*?</figure>", page)
    bars = re.findall(
        r'<rect x="(\d+)" y="([\d.]+)" width="18" height="([\d.]+)"><title>(.*?): (\d+)</title>', liver
    )
    heights = {6: (32.0, 28.0, "600 to 700", 1), 11: (4.0, 56.0, "1100 to 1200", 2)}
    assert [(int(x), float(y), float(high), what, int(n)) for x, y, high, what, n in bars] == [
        (20 * bar + 1, *heights.get(bar, (60.0, 0.0, f"{100 * bar} to {100 * bar + 100}", 0)))
        for bar in range(12)
    ]
    assert 'aria-label="Histogram of Liver, mL: 0 to 1200, median 1150"' in liver
    assert '<text x="1" y="74">0</text><text x="239" y="74" text-anchor="end">1200</text>' in liver
    assert "<figcaption>Liver, mL; median 1150</figcaption>" in liver
    assert "<title>0 to 0.08333: 3</title>" in tumour, "all are 0"
    assert "<figcaption>Lesions; median 1</figcaption>" in lesions


def test_the_headings_stay_in_sight(browser, saved):
    path = saved.with_name("index.html")
    path.write_bytes(index_html(make_rows(saved, 30)))
    page, _ = opened(browser, path, viewport={"width": 1200, "height": 700})
    page.mouse.wheel(0, 1500)
    for _ in range(500):  # the page's policy forbids what wait_for_function does
        page.wait_for_timeout(20)
        if page.evaluate("scrollY") > 1000:
            break
    assert page.locator("thead th >> nth=0").bounding_box()["y"] == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


@pytest.mark.parametrize(
    ("media", "width"),
    [("screen", 700), ("screen", 1000), ("screen", 1250), ("print", 703)],  # 703: A4 within its margins
)
def test_names_can_be_read_in_any_width_and_paper_shows_all_columns(browser, tmp_path, media, width):
    path = tmp_path / "index.html"
    odd = facts(highest_probability=0.875, warnings=["geometry-conflict", "liver-cut"])
    path.write_bytes(index_html([Row("study-2031/series-of-the-abdomen", "a.html", odd)]))
    page, _ = opened(browser, path, viewport={"width": width, "height": 900})
    page.emulate_media(media=media)
    box = page.locator(".cases tbody a span").bounding_box()
    assert box["height"] < 80, "a name of 32 letters takes three lines at most"
    right = max(
        cell.bounding_box()["x"] + cell.bounding_box()["width"] for cell in page.locator(".cases td").all()
    )
    assert media == "screen" or right <= width
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
    assert float(values["highest_probability"]) == max(one["probability"] for one in report["lesions"])
    assert (values["page"], values["warnings"]) == ("a_seg.html", "values-scale")
    assert lines[2].endswith("%3D_seg.html,")


def test_the_index_says_why_cases_failed(browser, tmp_path):
    pages = [tmp_path / f"{name}_seg.html" for name in "abc"]
    for path in pages[:2]:
        make_result().save(path.with_suffix(".nii.gz"), html=path)
    failed = {
        pages[1]: "b.nii.gz: broken",
        pages[2]: "c <i>.nii.gz: is no CT",
    }  # b has a page of an earlier run
    path = write_index(pages, tmp_path, failed)
    page, told = opened(browser, path)
    assert page.locator(".cases tbody th").all_inner_texts() == ["a"]
    assert page.inner_text(".failed caption") == "2 cases failed"
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator(".failed tr").all()]
    assert rows == [["Case", "Why"], ["b", "b.nii.gz: broken"], ["c", "c <i>.nii.gz: is no CT"]]
    page.click("thead button:has-text('Liver')")
    assert told == [path.as_uri()]
    page.close()
    table = list(csv.DictReader((tmp_path / "index.csv").open()))
    assert [(row["case"], row["error"]) for row in table] == [
        ("a", ""),
        ("b", "b.nii.gz: broken"),
        ("c", "c <i>.nii.gz: is no CT"),
    ]
    assert {row["liver_ml"] for row in table[1:]} == {""}
    assert [row["state"] for row in table] == ["done", "failed", "failed"]
    assert write_index([tmp_path / "new/c_seg.html"], tmp_path / "new", {}) is None
    assert (
        write_index([tmp_path / "new/c_seg.html"], tmp_path / "new", {tmp_path / "new/c_seg.html": "no CT"})
        is None
    )
    assert not (tmp_path / "new").exists(), "nothing is written where nothing was done"


def test_the_index_tells_whose_files_somebody_changed(tmp_path):
    pages = [tmp_path / f"{name}_seg.html" for name in "ab"]
    for path in pages:
        make_result(warnings=[ResultWarning("values-scale", "odd")]).save(path.with_suffix(".nii"), html=path)
    page = write_index(pages, tmp_path, changed={pages[1]}).read_text("utf-8")
    assert "1 case with files that somebody changed later (<code>files-changed</code>)" in page
    assert page.count("files-changed<br>values-scale") == 1
    assert "<option>files-changed</option>" in page
    table = list(csv.DictReader((tmp_path / "index.csv").open()))
    assert [(row["case"], row["state"]) for row in table] == [("a", "done"), ("b", "changed")]
    assert {row["warnings"] for row in table} == {"values-scale"}
    assert "files-changed" not in write_index(pages, tmp_path).read_text("utf-8")


def test_the_index_of_an_earlier_run_does_not_stay_where_all_cases_fail(browser, tmp_path):
    page = tmp_path / "a_seg.html"
    make_result().save(page.with_suffix(".nii.gz"), html=page)
    path = write_index([page], tmp_path)
    assert write_index([page], tmp_path, {page: "a.nii.gz: broken"}) == path
    shown, told = opened(browser, path)
    assert shown.locator(".cases tbody tr").count() == 0
    assert shown.inner_text("#count") == "0 cases"
    rows = [row.locator("th, td").all_inner_texts() for row in shown.locator(".failed tr").all()]
    assert rows == [["Case", "Why"], ["a", "a.nii.gz: broken"]]
    assert told == [path.as_uri()]
    shown.close()
    assert [row["error"] for row in csv.DictReader((tmp_path / "index.csv").open())] == ["a.nii.gz: broken"]


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


@pytest.mark.parametrize("name", [b"M\xfcller_seg", "Müller_seg".encode(), b"a#b?c%20d: <e>\n_seg"])
def test_the_index_leads_to_pages_of_any_name(browser, tmp_path, name):
    case = tmp_path / os.fsdecode(name + b".html")
    make_result().save(case.with_suffix(".nii.gz"), html=case)
    page, _ = opened(browser, write_index([case], tmp_path))
    page.click(".cases tbody a")
    page.wait_for_selector("body[data-ready]")
    page.close()
    assert ("Müller" in (tmp_path / "index.csv").read_text("utf-8")) == (b"\xc3" in name)
