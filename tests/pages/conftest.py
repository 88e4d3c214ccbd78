"""A browser, and the page of a made-up case in it."""

from __future__ import annotations

import shutil

import pytest
from viewing import make_result, opened, settle

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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


@pytest.fixture(scope="module")
def result():
    return make_result()


@pytest.fixture(scope="module")
def saved(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    result.save(folder / "seg.nii.gz", html=folder / "seg.html")
    return folder / "seg.html"


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
