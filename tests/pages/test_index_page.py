"""The page of many cases in a real browser."""

from __future__ import annotations

import csv
import os

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
    assert page.locator("svg[role=img][aria-label]").count() == 3
    assert page.inner_text("figcaption >> nth=0") == "Liver, mL; median 1015"  # between the 15th and the 16th
    assert told == [path.as_uri()]
    page.click("text=case-1")
    page.wait_for_selector("body[data-ready]")
    page.go_back()
    page.wait_for_function("document.querySelector('#count').textContent === '2 of 30 cases'")
    assert shown() == ["case-0", "case-1"]
    page.close()


def test_the_headings_stay_in_sight(browser, saved):
    path = saved.with_name("index.html")
    path.write_bytes(index_html(make_rows(saved, 30)))
    page, _ = opened(browser, path, viewport={"width": 1200, "height": 700})
    page.mouse.wheel(0, 1500)
    page.wait_for_function("scrollY > 1000")
    assert page.locator("thead th >> nth=0").bounding_box()["y"] == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
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
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator(".failed tbody tr").all()]
    assert rows == [["b", "b.nii.gz: broken"], ["c", "c <i>.nii.gz: is no CT"]]
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
    assert write_index(pages[2:], tmp_path, failed) is None


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
