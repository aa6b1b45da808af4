"""Fit for use, not fit, cannot tell: every bound from both sides, and what few images may say."""

import pytest

from rightreasons.records import ClassScore
from rightreasons.scoring.fitness import BOUNDS, Judged, explain_doubts, judge_class, judge_whole

GOOD = {
    "count": 100, "right": 95, "pasted": 100, "changed": 1, "right_before": 95, "right_pasted": 94, "inspected": 20,
    "evidence": 0.02, "evidence_interval": (0.01, 0.03),
}  # fmt: skip


def verdict(judged=Judged(60, 60), classes=2, found=True, doubts=(), **changes):  # noqa: B008 -- a frozen record
    return judge_class("a", ClassScore(**{**GOOD, **changes}), judged, classes, found=found, doubts=doubts)


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({}, "fit for use", "changes 1 answers"),
        ({"changed": 40}, "not fit", "at most 10% may change"),
        ({"changed": 8}, "cannot tell", "the bound is 10%"),
        ({"pasted": 12, "changed": 0}, "cannot tell", "pasting the shortcut into 12 held-out images changes 0 answers (0% to 24%)"),
        ({"pasted": 0, "changed": 0}, "fit for use", "2% of the evidence"),  # the shortcut is the class's own: its evidence decides
        ({"pasted": 0, "changed": 0, "evidence": 0.5, "evidence_interval": (0.4, 0.6)}, "not fit", "50% of the evidence"),
        ({"evidence": 0.12, "evidence_interval": (0.08, 0.16)}, "cannot tell", "the bound is 10%"),
        ({"evidence": None, "evidence_interval": None}, "cannot tell", "was not measured"),
        ({"right": 50}, "cannot tell", "may be no better than guessing"),
        ({"right": 5}, "not fit", "no better than guessing"),
        ({"count": 0, "right": 0}, "cannot tell", "no image of the class was scored"),
        ({"inspected": BOUNDS.fewest_inspected - 1}, "cannot tell", "at least 5 are needed"),
        ({"judged": Judged(60, 40)}, "cannot tell", "40 of the 60 segments"),
        ({"judged": Judged(0, 0)}, "cannot tell", "0 of the 0 segments"),
        ({"doubts": ("the critic fails",)}, "cannot tell", "the critic fails"),
        # What is clearly bad is said to be so, whatever else is doubtful.
        ({"changed": 40, "judged": Judged(60, 10), "doubts": ("x",)}, "not fit", "at most 10% may change"),
        ({"found": False, "pasted": 0, "changed": 0, "evidence": 0.0, "evidence_interval": (0.0, 0.0)}, "fit for use", "was judged spurious"),
    ],
)
def test_a_class_is_judged_by_each_bound(changes, expected, words):
    found = verdict(**changes)
    assert found.verdict == expected and words in "; ".join(found.reasons)


def test_the_whole_is_as_its_worst_class():
    fit, open_, bad = verdict(), verdict(changed=8), verdict(changed=40)
    assert judge_whole([fit, fit]).verdict == "fit for use"
    assert judge_whole([fit, open_]).verdict == "cannot tell" and judge_whole([fit, open_]).reasons[0].startswith("a: pasting")
    assert judge_whole([fit, open_, bad]).verdict == "not fit"
    assert judge_whole([bad, bad]).reasons[0].startswith("every class: ")


def test_what_stands_against_any_verdict():
    accepted = {"outcome": "accepted", "reason": "accuracy would fall"}
    assert explain_doubts("shortcut found", None, [], []) == ()
    assert explain_doubts("not judged yet", None, [], [])[0] == "too little is judged"
    assert "accuracy would fall" in explain_doubts("shortcut found", accepted, [], [])[0]
    assert "plain background" in explain_doubts("shortcut found", None, [], ["plain background"])[0]
    assert len(explain_doubts("could not be examined", accepted, ["x"], ["y"])) == 4
