"""The page in a real browser: light, dark, on a phone and on paper, filtered without any script, and what axe finds in it.

Needs Debian's chromium, or another one that CHROMIUM names; without it these tests are skipped.
"""

from __future__ import annotations

import os
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the extra dev is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
    # Playwright leaves the loop of its driver to the collector of garbage.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SEEN = "[...document.querySelectorAll('.card')].filter(card => getComputedStyle(card).display !== 'none').length"


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def opened(chromium, reviewed):
    """The page, 1200 pixels wide. A fault, or something that the policy blocks, fails the tests."""
    context, faults = chromium.new_context(viewport={"width": 1200, "height": 900}), []
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("console", lambda message: faults.append(message.text))
    tab.goto((reviewed.path / "report.html").as_uri())
    yield tab
    context.close()
    assert faults == []


def test_filters_without_a_script(opened):
    assert opened.evaluate(SEEN) == 24
    opened.select_option("#by-class", "c0")
    of_class = opened.evaluate(SEEN)
    assert 0 < of_class < 24
    opened.select_option("#by-verdict", "v-person")
    assert 0 < opened.evaluate(SEEN) <= of_class
    opened.select_option("#by-class", "")
    assert opened.evaluate(SEEN) == 20, "Ann decided on twenty images"
    opened.select_option("#by-verdict", "")


def test_pictures_can_be_hidden(opened):
    shown = "[...document.querySelectorAll('img')].filter(image => image.getClientRects().length).length"
    assert opened.evaluate(shown) > 24
    opened.check("#hide")
    assert opened.evaluate(shown) == 0
    opened.uncheck("#hide")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_nothing_runs_out_of_the_page_and_axe_finds_no_serious_fault(opened, scheme, width):
    opened.set_viewport_size({"width": width, "height": 900})
    opened.emulate_media(color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    paper = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra dev is not installed")
    found = axe.Axe().run(opened).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found if fault["impact"] in ("serious", "critical")] == []


def test_on_paper_it_has_few_images_and_no_controls(opened):
    opened.emulate_media(media="print")
    assert opened.evaluate(SEEN) == 6
    assert opened.evaluate("getComputedStyle(document.querySelector('.filters')).display") == "none"
    opened.check("#all", force=True) if opened.is_visible("#all") else opened.evaluate("document.getElementById('all').checked = true")
    assert opened.evaluate(SEEN) == 24
    assert opened.pdf(format="A4").startswith(b"%PDF")
    opened.emulate_media(media="screen")
