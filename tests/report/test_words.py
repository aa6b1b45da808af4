"""The sentences that open the page, for every state that a run can be in."""

import pytest

from rightreasons.report.facts import shorten
from rightreasons.report.words import percent, tell_headline, tell_repair, tell_shortcut, tell_spread

SCORES = {"accuracy": 0.9, "swap_flip_rate": 0.4, "spurious_share": 0.3}
METRICS = {
    "outcome": "shortcut found",
    "classifier": {"problems": []},
    "critic": {"waiting": 0},
    "alignment": None,
    "fitness": {"verdict": "not fit", "reasons": ["every class: it leans on a tag"]},
    "before": SCORES,
    "after": None,
    "rejected": None,
    "data": {"images": {"train": 10, "test": 5}},
    "selection": {"size": 24},
    "shortcuts": [{}],
}
REPAIRED = {"outcome": "aligned", "reason": None, "spread": None, "effect": "took"}


def state(**changes):
    return {**METRICS, **changes}


@pytest.mark.parametrize(
    ("changes", "words", "next_step"),
    [
        ({}, "The classifier is not fit for use, as far as shortcuts go. Every class: it leans on a tag.", "rightreasons fix RUN"),
        ({"outcome": "not judged yet"}, "", "Somebody has to judge the segments"),
        ({"outcome": "could not be examined"}, "", "can be examined"),
        ({"classifier": {"problems": ["x"]}}, "", "First find out why"),
        ({"alignment": {**REPAIRED, "outcome": "original kept"}}, "The classifier is", "--accept"),
        ({"alignment": REPAIRED}, "The repaired classifier is", "Keep this page"),
        ({"alignment": {**REPAIRED, "effect": "did not take"}}, "", "did not take"),
        ({"alignment": REPAIRED, "critic": {"waiting": 3}}, "", "3 segments wait"),
        ({"alignment": REPAIRED, "fitness": {"verdict": "cannot tell", "reasons": ["a: few"]}}, "cannot be told", "More images would tell"),
    ],
)
def test_the_headline_and_what_to_do_next(changes, words, next_step):
    headline = tell_headline(state(**changes))
    assert words in headline.sentence and next_step in headline.next_step


def test_a_repair_is_told_by_what_it_changed():
    after = {"accuracy": 0.8, "swap_flip_rate": 0.02, "spurious_share": 0.0}
    told = tell_repair(state(alignment=REPAIRED, after=after))
    assert told.endswith(
        "Accuracy on the test images went from 90% to 80%, the answers that pasting changes from 40% to 2.0%, "
        "the spurious share of the evidence from 30% to 0%."
    )
    kept = tell_repair(state(alignment={**REPAIRED, "outcome": "original kept", "reason": "it forgets"}, after=SCORES, rejected=after))
    assert "put aside, since it did harm: it forgets" in kept and "from 90% to 80%" in kept, "the scores of the repair that was put aside"
    assert tell_repair(METRICS) == "" == tell_repair(state(alignment={**REPAIRED, "outcome": "nothing to change"}))


def test_a_shortcut_is_told_by_class_evidence_and_effect():
    effect = {"pasted": 200, "changed": 50, "changed_interval": [0.2, 0.3], "right_before": 190, "right_pasted": 130}
    shortcut = {
        "images": 14, "classes": {"a": [12, 12], "b": [1, 12], "c": [0, 5], **{f"z{i}": [1, 3] for i in range(4)}},
        "evidence_before": 0.31, "evidence_after": 0.0001, "effect_before": effect, "effect_after": {**effect, "changed": 0},
    }  # fmt: skip
    told = tell_shortcut(shortcut, METRICS)
    assert told[0].startswith("Seen in 14 of 24 inspected images: all 12 of class a, 1 of the 12 of class b") and "2 other classes" in told[0]
    assert told[1] == "It carries 31% of all the evidence, and less than 0.1% after the repair."
    assert "changes 25% of the answers (20% to 30%), and accuracy on them goes from 95% to 65%." in told[2]
    assert told[3].startswith("After the repair it changes 0%")


def test_how_many_of_all_images_is_said_or_why_not():
    assert "is counted by rightreasons fix" in tell_spread(METRICS) and tell_spread(state(shortcuts=[])) == ""
    assert "could not be counted" in tell_spread(state(alignment=REPAIRED))
    counted = {"found": 30, "images": 120, "recall": 0.9, "classes": {"a": [30, 60], "b": [0, 60]}}
    assert tell_spread(state(alignment={**REPAIRED, "spread": counted})) == (
        "30 of all 120 training images (25%) have something that looks like them: 30 of the 60 of class a."
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (0.0, "0%"), (0.0001, "less than 0.1%"), (0.004, "0.4%"), (0.0994, "9.9%"), (0.0996, "10%"), (0.5, "50%"), (1.0, "100%")],
)
def test_little_is_not_called_nothing(value, expected):
    assert percent(value) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scripted:/home/ann/script.json", "scripted:script.json"), ("human:../q.jsonl", "human:q.jsonl"), ("/srv/models/net.pt", "net.pt"),
        ("openai:Qwen/Qwen2-VL", "openai:Qwen/Qwen2-VL"), ("torchvision:resnet50", "torchvision:resnet50"), ("~/x/y", "y"),
    ],
)  # fmt: skip
def test_a_path_is_shown_by_its_last_part(name, expected):
    assert shorten(name) == expected
