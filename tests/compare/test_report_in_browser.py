"""The page as a browser shows it: what its script does, and that it asks for nothing."""

import shutil

import numpy as np
import pytest

from dml.compare.report import write_html
from tests.compare.drawn import drawn

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    file = tmp_path_factory.mktemp("report") / "report.html"
    logs, comparison = drawn(12, 2)
    rows = comparison.rows.assign(p_holm=[np.nan, *np.linspace(0.5, 0.01, 11)])
    write_html(logs, [comparison._replace(rows=rows)], file)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto(file.as_uri())
        yield page
        browser.close()


def values(page, column):
    cells = page.locator(f"table.sortable tbody tr > *:nth-child({column})")
    return cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")


def test_asks_for_nothing_and_has_no_errors(page):
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    assert page.said == []


def test_a_click_on_a_header_sorts(page):
    header = page.locator("table.sortable thead th", has_text="test/AP").first
    before = values(page, 3)
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert values(page, 3) == sorted(before, key=float, reverse=True)
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert values(page, 3) == sorted(before, key=float)


def test_names_are_sorted_as_words_and_what_is_missing_is_last(page):
    headers = page.locator("table.sortable thead th")
    headers.nth(0).get_by_role("button").click()
    names = values(page, 1)
    assert names == sorted(names, key=str.lower, reverse=True)
    for _ in range(2):
        headers.nth(4).get_by_role("button").click()
        assert values(page, 5)[-1] == ""
    assert headers.nth(0).get_attribute("aria-sort") is None


def test_pointing_at_a_name_brings_out_its_curve(page):
    page.locator(".legend li").nth(10).hover()
    opacities = page.locator("g.curve").evaluate_all(
        "curves => Object.fromEntries(curves.map(c => [c.classList[2], getComputedStyle(c).opacity]))"
    )
    assert opacities.pop("row10") == "1"
    assert set(opacities.values()) == {"0.15"}


@pytest.mark.parametrize("width", [420, 1400])
def test_only_tables_and_pictures_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
