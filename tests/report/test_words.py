"""The sentences that open the page, for every state that a run can be in."""

import pytest

from rightreasons.report.facts import shorten, tell_critic
from rightreasons.report.words import percent, tell_headline, tell_repair, tell_shortcut, tell_spread


def fitness(verdict, reason):
    return {"verdict": verdict, "reasons": [reason], "classes": {"a": {"verdict": verdict}, "b": {"verdict": "fit for use"}}}


SCORES = {"accuracy": 0.9, "swap_flip_rate": 0.4, "spurious_share": 0.3}
METRICS = {
    "outcome": "shortcut found",
    "classifier": {"problems": []},
    "critic": {"waiting": 0, "controls": []},
    "alignment": None,
    "fitness": fitness("not fit", "every class: it leans on a tag"),
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
        ({"alignment": REPAIRED}, "The repaired classifier is", "Keep the classifier out of use for now: class a is not fit for use"),
        ({"alignment": REPAIRED, "fitness": fitness("cannot tell", "a: few")}, "cannot be told", "More images would tell"),
    ],
)
def test_the_headline_and_what_to_do_next(changes, words, next_step):
    headline = tell_headline(state(**changes))
    assert words in headline.sentence and next_step in headline.next_step


FIT, UNFIT, UNKNOWN = "fit for use", "not fit", "cannot tell"
NO_REPAIR = {"alignment": None, "outcome": "no shortcut found"}
KEPT, ACCEPTED = ({"alignment": {**REPAIRED, "outcome": outcome}} for outcome in ("original kept", "accepted"))
NOT_TAKEN = {"alignment": {**REPAIRED, "effect": "did not take"}}


@pytest.mark.parametrize(
    ("changes", "verdict", "expected"),
    [
        ({}, FIT, "keeps within the bounds; a repair can lower it further. Let an expert look"),
        ({}, UNFIT, "Let an expert look at the verdicts"),
        ({}, UNKNOWN, "Let an expert look at the verdicts"),
        (NO_REPAIR, FIT, "Keep this page with the model"),
        (NO_REPAIR, UNFIT, "repair it (rightreasons fix RUN)."),
        (NO_REPAIR, UNKNOWN, "More images would tell"),
        ({**NO_REPAIR, "shortcuts": []}, UNFIT, "train it anew or on more data"),
        ({"alignment": REPAIRED}, FIT, "Keep this page with the model"),
        ({"alignment": REPAIRED}, UNFIT, "inspect more images ([sample] size); repair it for more epochs ([align] epochs)."),
        (
            {"alignment": REPAIRED, "critic": {"waiting": 6, "controls": []}},
            UNFIT,
            "What may help: decide the 6 segments that wait (rightreasons review RUN);",
        ),
        ({"alignment": REPAIRED, "critic": {"waiting": 6, "controls": []}}, UNKNOWN, "6 segments wait"),
        ({"alignment": REPAIRED, "critic": {"waiting": 6, "controls": []}}, FIT, "6 segments wait"),
        ({"alignment": REPAIRED, "critic": {"waiting": 1, "controls": []}}, FIT, "1 segment waits for"),
        ({"alignment": REPAIRED, "critic": {"waiting": 1, "controls": []}}, UNFIT, "decide the segment that waits (rightreasons review RUN);"),
        ({"alignment": REPAIRED}, UNKNOWN, "More images would tell"),
        ({"alignment": REPAIRED, "critic": {"waiting": 0, "controls": [{"passed": False}]}}, UNKNOWN, "let people judge"),
        (NOT_TAKEN, FIT, "did not take: below it says what to try. The classifier keeps within the bounds as it is."),
        (NOT_TAKEN, UNFIT, "Until then keep the classifier out of use: class a is not fit for use."),
        (NOT_TAKEN, UNKNOWN, "do not rely on it until then."),
        (KEPT, FIT, "--accept. The original classifier, which is kept, keeps within the bounds as it is."),
        (KEPT, UNFIT, "--accept. Until then keep the classifier out of use: class a is not fit for use."),
        (KEPT, UNKNOWN, "do not rely on it until then."),
        (ACCEPTED, UNFIT, "Keep the classifier out of use for now: class a is not fit for use."),
        (ACCEPTED, UNKNOWN, "More images do not settle that."),
    ],
)
def test_every_verdict_after_every_repair_has_a_next_step(changes, verdict, expected):
    """An accepted repair is never fit for use, by the doubts of ``scoring.fitness``."""
    told = tell_headline(state(**changes, fitness=fitness(verdict, "a: a reason"))).next_step
    assert expected in told
    assert verdict != UNFIT or "Keep this page" not in told


@pytest.mark.parametrize(
    ("bad", "count", "expected"),
    [
        (1, 3, "class 0 is not fit"),
        (2, 3, "class 0 and class 1 are not fit"),
        (3, 3, "no class is fit"),
        (6, 9, "class 3 and 2 other classes are not fit"),
    ],
)
def test_the_classes_that_are_not_fit_are_named(bad, count, expected):
    classes = {str(number): {"verdict": UNFIT if number < bad else FIT} for number in range(count)}
    told = tell_headline(state(alignment=REPAIRED, fitness={**fitness(UNFIT, "x"), "classes": classes}))
    assert expected in told.next_step


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


def test_a_shortcut_that_the_repair_made_worse_is_said_to_be_worse():
    effect = {"pasted": 200, "changed": 50, "changed_interval": [0.2, 0.3], "right_before": 190, "right_pasted": 130}
    shortcut = {
        "images": 14,
        "classes": {"a": [12, 12]},
        "evidence_before": 0.31,
        "evidence_interval": [0.25, 0.38],
        "evidence_after": 0.37,
        "effect_before": effect,
        "effect_after": {**effect, "changed": 60},
    }
    assert "worse" not in tell_shortcut(shortcut, METRICS)[-1], "within both intervals"
    assert tell_shortcut({**shortcut, "effect_after": {**effect, "changed": 61}}, METRICS)[-1] == (
        "The repair made this one worse: pasting it changes more answers than before, beyond the 95 % interval."
    )
    assert "it carries more of the evidence than before, beyond" in tell_shortcut({**shortcut, "evidence_after": 0.39}, METRICS)[-1]


@pytest.mark.parametrize(("unsure", "words"), [(0, "people, every segment"), (6, "people, who decided 54 of 60 segments")])
def test_who_judged_counts_what_people_decided(unsure, words):
    critic = {"backend": "scripted", "model": "x", "simulated": False, "overruled": 60, "segments": 60, "unsure": unsure}
    assert tell_critic(critic) == words


def test_how_many_of_all_images_is_said_or_why_not():
    assert "is counted by rightreasons fix" in tell_spread(METRICS) and tell_spread(state(shortcuts=[])) == ""
    assert "could not be counted" in tell_spread(state(alignment=REPAIRED))
    counted = {"found": 30, "images": 120, "recall": 0.9, "classes": {"a": [30, 60], "b": [0, 60]}}
    told = tell_spread(state(alignment={**REPAIRED, "spread": counted}))
    assert told.startswith("The probe, which looks for them by the classifier's own features, finds something that looks like them in 30 of all 120")
    assert "(25%): 30 of the 60 of class a. Cross-validated on the inspected images, it finds 90% of what" in told and "look at every image" in told
    assert "have it" not in told, "an older run has no precision"
    assert "and 75% of the inspected images in which" in tell_spread(state(alignment={**REPAIRED, "spread": {**counted, "precision": 0.75}}))


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
