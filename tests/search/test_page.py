"""The page of ``dml browse`` in a browser, started as a user starts it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from dml.search import SearchIndex
from tests.search.conftest import draw

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def page_address(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browse")
    index = SearchIndex(built)
    queries = index.images["path"][index.images["role"] != "gallery"].tolist()
    listed = pd.DataFrame({"path": queries, "AP": [0.9 - 0.04 * place for place in range(len(queries))]})
    listed = listed.assign(first_wrong_path=queries[::-1], first_wrong_score=0.5)
    listed.to_parquet(folder / "per_query.parquet")
    words = ["--index", built, "--per_query", folder / "per_query.parquet", "--port", "0", "--max_upload_mb", "0.5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dml", "browse", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = process.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+) ", said)
        assert found, said + process.stderr.read()
        yield found[1]
        process.terminate()
        assert process.communicate(timeout=30)[1] == ""  # no error was hidden by an answer
    finally:
        process.kill()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=found,
            args=FLAGS,
            viewport={"width": 1280, "height": 860},
        )
        yield context
        context.close()


def until(page, expression):
    """Wait for it to be true. Playwright's own way evaluates it in the page, whose policy forbids that."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"never true: {expression}")


def test_drop_click_and_go_through_the_worst(page_address, browser, index, tmp_path):
    page = browser.new_page()
    problems, asked = [], []
    page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_address)
    neighbours, message = page.locator("#neighbours button"), page.locator("#message")
    assert page.locator("h1").inner_text() == "20 images"

    draw("hat", 500).save(tmp_path / "new.png")
    page.set_input_files("#file", tmp_path / "new.png")
    neighbours.first.wait_for()
    assert neighbours.count() == 20
    scores = [float(text) for text in page.locator("#neighbours .score b").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert page.locator("#query").inner_text().split() == ["query", "your", "image"]

    first = neighbours.first.get_attribute("data-row")
    neighbours.first.click()
    page.wait_for_url(f"**/#{first}")
    page.locator("#query dd").get_by_text(index.images["path"][int(first)]).wait_for()
    assert neighbours.count() == 19
    rows = [int(button.get_attribute("data-row")) for button in neighbours.all()]
    assert rows == index.neighbours(int(first), 24)[1].tolist()
    framed = [button.get_attribute("class") for button in neighbours.all()]
    assert framed == ["right" if index.is_right(int(first), row) else "wrong" for row in rows]
    until(page, "[...document.images].every(image => image.complete && image.naturalWidth > 0)")

    worst = page.locator("#queries button")
    listed = [float(text.split()[1]) for text in page.locator("#queries b").all_inner_texts()]
    assert len(listed) == 20
    assert listed == sorted(listed)
    worst.nth(0).click()
    worst.nth(0).and_(page.locator("[aria-current=true]")).wait_for()
    assert page.locator("#queries button[aria-current=true]").count() == 1
    page.screenshot(path=os.environ.get("DML_SCREENSHOT", tmp_path / "page.png"))
    page.go_back()
    page.locator("#query dd").get_by_text(index.images["path"][int(first)]).wait_for()

    (tmp_path / "no.png").write_bytes(b"hello")
    page.set_input_files("#file", tmp_path / "no.png")
    message.get_by_text("not a whole image").wait_for()
    (tmp_path / "large.png").write_bytes(bytes(600_000))
    page.set_input_files("#file", tmp_path / "large.png")
    message.get_by_text("larger than 0.5 MiB").wait_for()
    assert [text for text in problems if "400" not in text] == []  # Chromium reports the status of a refusal
    assert all(url.startswith((page_address, "data:")) for url in asked)


def test_what_is_too_large_is_told_by_the_server_too(page_address, browser):
    page = browser.new_page()
    page.goto(page_address)
    send = "fetch('search', {method: 'POST', body: new Uint8Array(2e6)}).then(async a => [a.status, await a.text()])"
    status, text = page.evaluate(send)
    assert status == 413
    assert "larger than 0.5 MiB" in text


def test_scripts_from_elsewhere_do_not_run(page_address, browser):
    page = browser.new_page()
    page.goto(page_address)
    page.evaluate(
        "() => { const script = document.createElement('script'); script.textContent = 'window.ran = true';"
        " document.body.append(script); }"
    )
    assert page.evaluate("window.ran") is None
