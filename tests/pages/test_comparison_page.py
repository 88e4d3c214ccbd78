"""The page of two scans of one patient in a real browser."""

from __future__ import annotations

from viewing import opened

from trtseg.followup import Comparison, Finding, Side
from trtseg.report.comparison import comparison_html


def test_the_chart_says_which_lesions_it_shows():
    one = Finding("new", None, Side((1,), 2.0, 20.0, 10.0, 20.0, (20.0,), 5))
    for count, said in (
        (30, "Volume of each lesion: before"),
        (31, "Volume of lesions 1 to 30 of 31: before"),
    ):
        made = Comparison(("a", "b"), (1500.0, 1400.0), (0.0, 4.0), (0, 0, 0), 0.9, (one,) * count, ())
        page = comparison_html(made.report()).decode()
        assert said in page
        assert page.count('<rect class="after"') == 30


def test_a_lesion_whose_volume_is_rounded_to_nothing_has_a_row():
    tiny = Side((1,), 0.00004, 0.0, 0.0, 0.0, (0.0,), 5)
    found = (Finding("unchanged", tiny, tiny),)
    made = Comparison(("a", "b"), (1500.0, 1400.0), (0.00004, 0.00004), (0, 0, 0), 0.9, found, ())
    assert '<span class="unchanged">unchanged</span>' in comparison_html(made.report()).decode()


def test_a_change_that_is_rounded_to_nothing_has_no_minus():
    made = Comparison(("a", "b"), (1500.0, 1499.0), (4.0, 4.0), (0, 0, 0), 0.9, (), ())
    assert "1500.0 → 1499.0 (+0%)" in comparison_html(made.report()).decode()


def test_the_page_of_a_comparison(browser, tmp_path):
    old, new = (
        Side((1,), 2.0, 20.0, 10.0, 20.0, (20.0,), 5),
        Side((1, 2), 3.0, 22.0, 12.0, 30.0, (22.0, 8.0), 6),
    )
    findings = (Finding("grown", old, new), Finding("gone", old, None), Finding("new", None, new))
    made = Comparison(
        ("a<b.nii", "b"), (1500.0, 1400.0), (4.0, 6.0), (1, 2, 3), 0.9, findings, ("livers <agree> poorly",)
    )
    path = tmp_path / "compare.html"
    path.write_bytes(comparison_html(made.report()))
    page, told = opened(browser, path)
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator("tbody tr").all()]
    assert "|".join(rows[0]) == "1|grown (+50%)|1|1, 2|2.00|3.00|20.0|22.0|10.0|12.0|5|6"
    assert rows[1][1:6] == ["gone", "1", "–", "2.00", "–"]
    assert rows[2][1:6] == ["new", "–", "1, 2", "–", "3.00"]
    assert "livers <agree> poorly" in page.inner_text(".warnings")
    assert "a<b" not in page.inner_text("body")
    assert "progression" in page.inner_text(".figures")
    assert told == [path.as_uri()]
    page.close()


def test_paper_shows_all_columns(browser, tmp_path):
    side = Side((1, 2), 166.87, 173.2, 147.3, 173.2, (173.2, 8.0), 463)
    made = Comparison(
        ("a", "b"),
        (1500.0, 1400.0),
        (166.87, 166.87),
        (0, 0, 0),
        0.9,
        (Finding("unchanged", side, side),),
        (),
    )
    path = tmp_path / "compare.html"
    path.write_bytes(comparison_html(made.report()))
    page, _ = opened(browser, path, viewport={"width": 703, "height": 900})  # A4 within its margins
    page.emulate_media(media="print")
    for last in page.locator("tr > :last-child").all():
        box = last.bounding_box()
        assert box["x"] + box["width"] <= 703
    page.close()
