"""A model's verdicts against those of people, by loops and at its ends."""

import random

import pytest

from rightreasons.critic.calibration import FEWEST, calibrate
from rightreasons.records import Verdict, find_votes


def model(place: int, value: str, p: float | None) -> Verdict:
    return Verdict(place, 0, value, "m", p=p)


def person(place: int, value: str) -> Verdict:
    return Verdict(place, 0, value, "human", by="Ann")


def by_place(verdicts):
    return {(verdict.index, verdict.segment): verdict for verdict in verdicts}


def test_nothing_is_known_without_people():
    said = by_place([model(0, "spurious", 0.75)])
    calibration = calibrate(said, said)
    assert calibration.count == 0 and calibration.curve == () and calibration.probability(said[0, 0]) == 0.75


def test_levels_and_curve_by_loops():
    draw = random.Random(0)
    said, settled, pairs = {}, {}, []
    for place in range(60):
        p = draw.choice([0.125, 0.375, 0.625, 0.875])
        value = "spurious" if p > 0.5 else "relevant"
        truth = draw.choice(["spurious", "relevant"]) if 0.3 < p < 0.7 else value
        said[place, 0], settled[place, 0] = model(place, value, p), person(place, truth)
        pairs.append((p, value, truth))
    calibration = calibrate(said, settled)
    for level in calibration.levels:
        there = [truth for p, _, truth in pairs if p == level.p]
        assert (level.count, level.spurious) == (len(there), there.count("spurious"))
        assert level.share == pytest.approx((there.count("spurious") + level.p) / (len(there) + 1))
        assert calibration.probability(model(0, "spurious", level.p)) == level.share
    shares = {level.p: level.share for level in calibration.levels}
    order = sorted(range(60), key=lambda i: abs(2 * shares[pairs[i][0]] - 1))
    for k, (seen, right) in enumerate(calibration.curve):
        correct = k + sum(pairs[i][1] == pairs[i][2] for i in order[k:])
        assert seen == k / 60 and right == pytest.approx(correct / 60)
    assert calibration.curve[-1] == (1.0, 1.0)


def test_few_verdicts_change_no_order():
    said = by_place(model(place, "spurious", 0.75) for place in range(FEWEST))
    wrong = [person(place, "relevant") for place in range(FEWEST)]
    few, enough = calibrate(said, by_place(wrong[:-1])), calibrate(said, by_place(wrong))
    assert few.probability(said[0, 0]) == 0.75 and enough.probability(said[0, 0]) == pytest.approx(0.75 / (FEWEST + 1))
    assert enough.uncertainty(said[0, 0]) < 0.1 < few.uncertainty(said[0, 0])


def test_what_people_leave_unsure_and_what_no_model_said_tells_nothing():
    said = by_place([model(0, "spurious", 0.75), model(1, "unsure", None)])
    settled = by_place([person(0, "unsure"), person(1, "spurious"), person(2, "spurious")])
    assert calibrate(said, settled).count == 0


def test_a_model_that_is_unsure_is_right_half_the_time():
    said = by_place([model(0, "unsure", 0.5), model(1, "unsure", 0.5)])
    assert calibrate(said, by_place([person(0, "spurious"), person(1, "relevant")])).curve == ((0.0, 0.5), (0.5, 0.75), (1.0, 1.0))


def test_a_long_curve_is_thinned_and_ends_at_its_end():
    said = by_place(model(place, "spurious", 0.75) for place in range(250))
    curve = calibrate(said, by_place(person(place, "spurious") for place in range(250))).curve
    assert len(curve) <= 127 and curve[0] == (0.0, 1.0) and curve[-1] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("source", "problem", "votes"),
    [
        ("openai:m", None, 1),
        ("openai:m", "malformed: not JSON", 0),
        ("openai:m", "refused: no", 0),
        ("human:q.jsonl", "waiting for a person: write the answer into q.jsonl", 0),
        ("human:q.jsonl", None, 0),
    ],
)
def test_only_what_a_model_really_said_is_a_vote(source, problem, votes):
    """An unsure that it said is one; an unsure that stands for no answer is none, nor is what a person wrote in a file."""
    said = Verdict(0, 0, "unsure", source, problem=problem, p=0.5)
    assert len(find_votes([said, person(0, "spurious")])) == votes
    assert calibrate(by_place([said]), by_place([person(0, "spurious")])).count == votes
    assert find_votes([model(0, "spurious", 0.75), said]) == (by_place([said]) if votes else {}), "the last answer is what the model says now"
