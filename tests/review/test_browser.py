"""The whole way in a real browser, by keyboard alone: from the queue to the repair, and a blind study; and what axe finds on every page.

Needs Debian's chromium, or another one that CHROMIUM names; without it these tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys

import pytest

from rightreasons.records import settle_verdicts
from rightreasons.runs.blind import load_replies, load_sample
from rightreasons.runs.drawings import load_drawings
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.words import load_words
from tests.support.helpers import environment

playwright = pytest.importorskip("playwright.sync_api", reason="the extra dev is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
    # Playwright leaves the loop of its driver to the collector of garbage.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextlib.contextmanager
def served(*arguments: object):
    """The address that a command prints, while it runs."""
    command = [sys.executable, "-m", "rightreasons", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as server:
        try:
            yield next(line.split()[1] for line in server.stdout if line.startswith("open "))
        finally:
            server.terminate()


@pytest.fixture
def address(run):
    """The address of the review."""
    with served("review", run) as printed:
        yield printed


@contextlib.contextmanager
def let_in(chromium, address, **options):
    """A page that was let in. A fault of a script, or something that the policy blocks, fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, **options)
    opened, faults = context.new_page(), []
    opened.set_default_timeout(60_000)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    opened.goto(address)
    opened.wait_for_url(re.compile("/name$"))
    yield opened
    context.close()
    assert faults == []


@pytest.fixture
def page(chromium, address):
    """A page of the review."""
    with let_in(chromium, address) as opened:
        yield opened


def sign_in(page, name: str = "Dr Ann") -> None:
    page.keyboard.type(name)  # the field has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector("table.queue")


def tab_to(page, selector: str) -> None:
    """Moves the focus by the Tab key alone."""
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"the Tab key does not reach {selector}")


def tell(page, words: str) -> None:
    """Waits until the page says so, where a screen reader hears it."""
    page.wait_for_function("words => document.getElementById('said').textContent.includes(words)", arg=words)


def test_the_whole_way_by_keyboard_alone(page, run):
    sign_in(page)
    tab_to(page, "a.button")
    page.keyboard.press("Enter")
    page.wait_for_selector(".segment[aria-current]")
    first = int(re.search(r"/image/(\d+)", page.url).group(1))
    page.wait_for_function("() => document.activeElement.closest('.segment')?.id === 'S3'")  # the one that waits

    page.keyboard.press("h")
    assert page.eval_on_selector("#heat", "heat => getComputedStyle(heat).opacity") == "0.8"
    page.keyboard.press("h")
    assert page.eval_on_selector("#heat", "heat => getComputedStyle(heat).opacity") == "0"
    page.keyboard.press("k")
    assert page.evaluate("document.querySelector('.segment[aria-current]').id") == "S2"
    assert page.eval_on_selector(".outline.lit", "outline => outline.dataset.segment") == "1", "its outline lights up"
    page.keyboard.press("f")  # flip: relevant becomes spurious
    tell(page, f"image {first}, S2 is spurious, by Dr Ann")
    page.keyboard.press("z")
    tell(page, f"Taken back: image {first}, S2")
    page.goto(re.sub(r"/image.*", f"/image/{first}?segment=2", page.url))
    page.keyboard.press("s")
    tell(page, f"image {first}, S3 is spurious")
    settled = settle_verdicts(RunFolder(run).load_verdicts())
    assert (settled[first, 2].value, settled[first, 2].by, settled[first, 1].source[:8]) == ("spurious", "Dr Ann", "scripted")

    page.goto(re.sub(r"/image.*", f"/image/{first}", page.url))
    page.keyboard.press("d")
    page.wait_for_selector("#canvas")
    tab_to(page, "#canvas")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("2")
    page.keyboard.press("Space")
    tab_to(page, "#drawing button")
    page.keyboard.press("Enter")
    tell(page, f"Saved: image {first}")
    (drawing,) = load_drawings(RunFolder(run))
    assert drawing.painted[8, 8] and drawing.erased[8, 0] and not (drawing.painted & drawing.erased).any()

    page.goto(re.sub(r"/image.*", "/work", page.url))
    tab_to(page, "form[action='/work/fix'] button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#state[data-state=finished]", timeout=240_000)
    assert "fine-tuning:" in page.text_content("#log")
    page.click("text=Before and after >> nth=0")
    page.wait_for_selector("figure >> nth=1")
    assert (run / "aligned.safetensors").exists()
    shown = page.evaluate("[...document.querySelectorAll('img')].slice(0, 4).map(image => image.complete ? image.naturalWidth : -1)")
    assert len(shown) == 4 and all(width > 0 for width in shown)


def test_pointer_words_and_the_small_screen(page, run):
    """Outlines answer to the pointer, words are kept, and nothing is wider than a telephone."""
    sign_in(page)
    home = page.url
    page.click("table.queue a >> nth=0")
    page.wait_for_selector(".segment")
    page.dispatch_event(".outline[data-segment='0'] .fill", "click")
    assert page.evaluate("document.querySelector('.segment[aria-current]').id") == "S1"
    page.hover("#S2")
    assert page.eval_on_selector(".outline[data-segment='1']", "outline => outline.classList.contains('lit')")
    page.click("details.keys summary")
    page.uncheck("#keys")
    before = (run / "verdicts.jsonl").read_bytes()
    page.keyboard.press("a")
    page.click("#S1 button[value=relevant]")
    tell(page, "S1 is relevant, by Dr Ann")
    assert (run / "verdicts.jsonl").read_bytes().count(b"\n") == before.count(b"\n") + 1, "keys that are switched off do nothing"

    page.goto(home + "words")
    page.fill("#description-0", "The bar, and nothing else.")
    page.click("text=Save the words")
    tell(page, "Saved by Dr Ann")
    assert load_words(RunFolder(run))[-1].classes[0].description == "The bar, and nothing else."

    page.set_viewport_size({"width": 390, "height": 800})
    image = next(iter(RunFolder(run).segment_counts()))
    for address in ("", "name", f"image/{image}", f"image/{image}/draw", "words", "work", "compare", "people", "absent"):
        page.goto(home + "name") if address == "absent" else page.goto(home + address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, address


def test_axe_finds_no_serious_fault(chromium, address, run):
    """Every page, in light and dark."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra dev is not installed").Axe()
    image = next(iter(RunFolder(run).segment_counts()))
    for theme in ("light", "dark"):
        # Axe is put into the page as an inline script, which the policy of the pages forbids.
        context = chromium.new_context(color_scheme=theme, bypass_csp=True)
        page = context.new_page()
        page.goto(address)
        page.wait_for_url(re.compile("/name$"))
        pages = ["name"]
        found = {"name": axe.run(page).response["violations"]}
        sign_in(page, "Ann")
        home = page.url
        page.goto(f"{home}image/{image}")
        page.wait_for_function("() => document.activeElement.closest('.segment')")
        page.keyboard.press("u")
        tell(page, "Saved")
        for place in ("", f"image/{image}", f"image/{image}/draw", "words", "work", "compare", "people", "image/99999"):
            page.goto(home + place)
            pages.append(place)
            found[place] = axe.run(page).response["violations"]
        context.close()
        serious = {
            place: [(fault["id"], [node["html"][:120] for node in fault["nodes"]]) for fault in faults if fault["impact"] in SERIOUS]
            for place, faults in found.items()
        }
        assert not any(serious.values()), (theme, {place: faults for place, faults in serious.items() if faults})


def test_two_people_judge_blind_by_keyboard_alone(chromium, run):
    """Both see the same segments in an order of their own, one of them on a dark telephone; axe finds nothing on any page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra dev is not installed").Axe()
    folder, serious = RunFolder(run), {}

    def look(page, where: str) -> None:
        for fault in axe.run(page).response["violations"]:
            if fault["impact"] in SERIOUS:
                serious[where, fault["id"]] = [node["html"][:120] for node in fault["nodes"]]

    with (
        served("study", run, "--size", 4) as address,
        let_in(chromium, address, bypass_csp=True) as ann,
        let_in(chromium, address, color_scheme="dark", bypass_csp=True) as bob,
    ):
        bob.set_viewport_size({"width": 390, "height": 800})
        for page, name in ((ann, "Ann"), (bob, "Bob")):
            look(page, f"name, {name}")
            page.keyboard.type(name)
            page.keyboard.press("Enter")
            page.wait_for_function("() => document.activeElement.closest('.segment')")
            look(page, f"verdict, {name}")
            assert page.locator(".outline").count() == 1 and "The language model said" not in page.content()
        ann.keyboard.press("h")
        assert ann.eval_on_selector("#heat", "heat => getComputedStyle(heat).opacity") == "0.8"
        for number in range(4):
            for page, name, verdict, opinion in ((ann, "Ann", "s", "a"), (bob, "Bob", "r", "d")):
                page.keyboard.press(verdict)
                tell(page, f"is {'spurious' if verdict == 's' else 'relevant'}, by {name}")
                page.wait_for_function("() => document.activeElement.closest('.segment')")
                assert "The language model said" in page.text_content("main")
                if number == 0:
                    look(page, f"argument, {name}")
                    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
                if number == 1 and page is ann:  # without a single key: by Tab and Enter
                    tab_to(page, "button[value='agree']")
                    page.keyboard.press("Enter")
                else:
                    page.keyboard.press(opinion)
                tell(page, "on the argument about image")
        for page, name in ((ann, "Ann"), (bob, "Bob")):
            assert "All 4 segments are answered" in page.text_content("h1")
            look(page, f"end, {name}")
    assert not serious
    replies = load_replies(folder, load_sample(folder))
    orders = {name: [reply.place for reply in replies if reply.by == name] for name in ("Ann", "Bob")}
    assert sorted(orders["Ann"]) == sorted(orders["Bob"]) and orders["Ann"] != orders["Bob"]
    assert {(reply.by, reply.value, reply.opinion) for reply in replies} == {("Ann", "spurious", "agree"), ("Bob", "relevant", "disagree")}
