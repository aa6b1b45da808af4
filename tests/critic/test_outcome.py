"""The four outcomes, and the sentence beside each."""

import pytest
import torch

from rightreasons.critic.outcome import count_coverage, decide_outcome, explain_outcome
from rightreasons.records import Segmentation, Verdict


def coverage(values, images=2, segments=4, outcomes=None):
    """Images of ``segments`` segments each, with verdicts on as many as there are ``values``."""
    outcomes = outcomes or ("segmented",) * images
    shares = torch.tensor([[1 / segments if kind == "segmented" else 0.0] * segments for kind in outcomes])
    segmentation = Segmentation(torch.zeros(images, 4, 4, dtype=torch.int64), torch.ones(images, 4, 4, dtype=torch.bool), shares, outcomes)
    verdicts = [Verdict(number // segments, number % segments, value, "scripted") for number, value in enumerate(values)]
    return count_coverage(segmentation, verdicts)


@pytest.mark.parametrize(
    ("values", "flip_rate", "outcome"),
    [
        (["spurious"] + ["relevant"] * 7, 0.4, "shortcut found"),
        (["spurious"] + ["relevant"] * 7, None, "shortcut found"),  # pasting could not be tried: the verdicts decide
        (["spurious"] + ["relevant"] * 7, 0.0, "no shortcut found"),  # the classifier does not decide by it
        (["spurious"] + ["unsure"] * 7, 0.0, "not judged yet"),
        (["relevant"] * 8, None, "no shortcut found"),
        (["relevant"] * 4 + ["unsure"] * 4, None, "no shortcut found"),
        (["relevant"] * 3 + ["unsure"] * 5, None, "not judged yet"),
        (["unsure"] * 8, None, "not judged yet"),
        ([], None, "not judged yet"),
    ],
)
def test_outcomes(values, flip_rate, outcome):
    assert decide_outcome(coverage(values), flip_rate) == outcome


CHANCE = "the classifier is at chance: mean accuracy over the classes is 33.3% on the training images, and guessing has 33.3%"


@pytest.mark.parametrize(
    ("values", "flip_rate", "outcome"),
    [
        (["relevant"] * 8, None, "could not be examined"),  # not: no shortcut found
        (["spurious"] + ["relevant"] * 7, 0.0, "could not be examined"),
        (["spurious"] + ["relevant"] * 7, 0.009, "could not be examined"),
        (["spurious"] + ["relevant"] * 7, None, "could not be examined"),  # verdicts alone do not say what it leans on
        (["spurious"] + ["relevant"] * 7, 0.4, "shortcut found"),  # that it changes the answers was measured
        (["unsure"] * 8, None, "not judged yet"),
    ],
)
def test_a_classifier_at_chance_is_never_said_to_have_no_shortcut(values, flip_rate, outcome):
    assert decide_outcome(coverage(values), flip_rate, CHANCE) == outcome
    words = explain_outcome(coverage(values), flip_rate, CHANCE)
    assert "lassifier is at chance: mean accuracy over the classes is 33.3%" in words and "does not decide by them" not in words
    assert ("before this is repaired" in words) == (outcome == "shortcut found")


def test_nothing_to_judge_is_no_finding():
    nothing = coverage([], outcomes=("constant", "not-finite"))
    assert decide_outcome(nothing, None) == "could not be examined"
    assert explain_outcome(nothing, None) == (
        "None of the 2 inspected images has a heatmap that could be cut into segments (constant: 1, not-finite: 1)."
    )


def test_a_person_is_counted_before_the_model():
    segmentation = Segmentation(torch.zeros(1, 4, 4, dtype=torch.int64), torch.ones(1, 4, 4, dtype=torch.bool), torch.ones(1, 1), ("segmented",))
    told = count_coverage(segmentation, [Verdict(0, 0, "spurious", "human"), Verdict(0, 0, "unsure", "openai:x")])
    assert (told.judged, told.spurious, told.spurious_images) == (1, 1, 1)


def test_the_sentence_says_how_much_was_judged_and_what_it_does():
    some = coverage(["spurious", "unsure"] + ["relevant"] * 6)
    assert explain_outcome(some, 0.9714) == (
        "7 of 8 segments on 2 of 2 inspected images are judged; 1, on 1 image, is spurious. "
        "Pasting them into held-out images of another class changes 97.1% of the answers."
    )
    assert explain_outcome(some, 0.0).endswith(
        "changes none of the answers. That is no effect: the classifier sees them but does not decide by them."
    )
    assert "could not be measured" in explain_outcome(some, None)
