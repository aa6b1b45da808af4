"""Whether a repair took, by the flips before and after."""

import pytest

from rightreasons.config import AlignConfig
from rightreasons.records import Scores
from rightreasons.scoring.effect import judge_effect


def flips(rate):
    return Scores(0.9, 0.1, swap_flip_rate=rate)


@pytest.mark.parametrize(
    ("outcome", "before", "after", "effect"),
    [
        ("aligned", 0.452, 0.429, "did not take"),
        ("accepted", 0.452, 0.429, "did not take"),
        ("aligned", 0.40, 0.201, "did not take"),
        ("aligned", 0.40, 0.20, "took"),
        ("aligned", 0.40, 0.0, "took"),
        ("aligned", 0.01, 0.01, "did not take"),
        ("aligned", 0.009, 0.009, None),  # what changes fewer answers than one in a hundred is no effect to begin with
        ("aligned", None, None, None),
        ("original kept", 0.40, 0.40, None),
        ("nothing to change", 0.40, 0.40, None),
    ],
)
def test_a_repair_takes_where_half_of_the_flips_are_gone(outcome, before, after, effect):
    found = judge_effect(outcome, flips(before), flips(after), AlignConfig(epochs=3))
    assert found.effect == effect and (found.advice is not None) == (effect == "did not take")


def test_the_advice_says_what_is_left_and_what_to_try():
    advice = judge_effect("aligned", flips(0.452), flips(0.429), AlignConfig(epochs=5)).advice
    assert advice is not None and "still changes 42.9% of the answers, and it was 45.2% before" in advice
    assert "--set align.epochs=20 --set align.learning_rate=0.005" in advice and "align.lambda" in advice and "[sample] size" in advice


def test_without_a_repaired_model_there_is_no_effect():
    assert judge_effect("aligned", flips(0.4), None, AlignConfig()).effect is None
