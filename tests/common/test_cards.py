"""Cards for notebooks: what they say, that they are small and without colours of their own, and that nothing in them is run."""

import re

from rightreasons.common.cards import LONGEST_CELL, show_card
from rightreasons.records import HUMAN, GroupScore, Scores, Verdict

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def words(page: str) -> str:
    return re.sub(r"<[^>]*>", "|", page)


def test_a_verdict_says_who_gave_it_and_what_is_doubtful():
    model = Verdict(3, 0, "spurious", "openai:stub", p=0.75, doubt="votes differ")._repr_html_()
    assert "image 3, S1: spurious" in model and "openai:stub" in model and "0.75" in model and "votes differ" in model
    person = Verdict(3, 1, "relevant", HUMAN, by="Dr Ann", at="2026-01-01T00:00:00+00:00", withdraws=True)._repr_html_()
    assert "S2: took back relevant" in person and "Dr Ann, 2026-01-01" in person and "p(spurious)" not in person


def test_scores_show_what_exists():
    page = Scores(0.5, 0.25, worst_group_accuracy=0.125, groups={"bolt": GroupScore(0.75, 8)}, intervals={"accuracy": (0.4, 0.6)})._repr_html_()
    assert "0.500 (95 %: 0.400 to 0.600)" in page and "worst_group_accuracy" in page and "0.750 of 8" in page and "mu_align" not in page


def test_a_card_has_no_colours_of_its_own():
    page = show_card("title", [("name", "value")], "note")
    colours = re.findall(r"(?<!-)(?:color|background):([^;\"]*)", page)
    assert set(colours) == {"none", "inherit"} and "#" not in page and len(page) < 1500


def test_injection_of_script_into_cards():
    pages = [
        show_card(EVIL, [(EVIL, EVIL)], EVIL),
        Verdict(3, 0, "spurious", EVIL, problem=EVIL, doubt=EVIL, by=EVIL, at=EVIL)._repr_html_(),
        Verdict(3, 0, "spurious", HUMAN, by=EVIL)._repr_html_(),
        Scores(0.5, 0.25, groups={EVIL: GroupScore(0.75, 8)})._repr_html_(),
    ]
    for page in pages:
        assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert "\u202e" not in show_card("\u202e", [])
    assert len(words(show_card("t", [("n", "x" * 10_000)]))) < LONGEST_CELL + 100
