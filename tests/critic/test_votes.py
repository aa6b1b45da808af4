"""Votes under permuted names: mapped back, counted by their formula, and queued for a person where they differ."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import torch

from rightreasons.critic.case import Case
from rightreasons.critic.judge import Example
from rightreasons.critic.panel import Panel, consult_case
from rightreasons.critic.pictures import render_pictures
from rightreasons.critic.votes import count_votes, draw_permutation, permute_segments, probability, queue_verdicts, renumber, restore_vote
from rightreasons.lvlm.backends.scripted import Scripted
from rightreasons.lvlm.protocol import get_reply
from rightreasons.records import ClassDescription, Critique, Segmentation, Selection, Subject, Verdict, settle_verdicts

SEGMENTS = torch.tensor([[0, 0, 1], [2, -1, 1], [2, 2, 1]]).repeat_interleave(8, 0).repeat_interleave(8, 1)
WORDS = (ClassDescription("cat", "Ears."),)
EXAMPLES = (Example("S1: a tag.\nS2: a bird.", {"S1": "spurious", "S2": "relevant"}),)
PLACES = {"top": "spurious", "right": "relevant", "bottom left": "unsure"}


def reply(request):
    """Judges by where a segment lies, so that only a vote that is mapped back agrees with the others."""
    text = request.parts[0]
    if request.role == "judge":
        said = re.findall(r"^(S\d): at (.*)\.$", text.rsplit("<critique>", 1)[1], re.MULTILINE)
        return json.dumps({name: PLACES[place] for name, place in said})
    places = re.findall(r"^(S\d): (.*), \d+%$", text, re.MULTILINE)
    if request.role == "critic":
        return "\n".join(f"{name}: at {place}." for name, place in places)
    return json.dumps({"segments": {name: {"covers": place, "reason": "", "verdict": PLACES[place]} for name, place in places}})


def case(index=5) -> Case:
    image = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    subject = Subject(index, SEGMENTS, torch.ones(24, 24))
    return Case(image, SEGMENTS, render_pictures(image, SEGMENTS), subject, 0, WORDS, (0.5, 0.3, 0.2))


def consult(votes, mode="two-call", lvlm=None, index=5):
    lvlm = lvlm or Scripted(reply)
    panel = Panel(lvlm, lvlm, EXAMPLES, mode, votes, seed=3)
    critiques, verdicts = consult_case(case(index), panel, lambda model, request: model.parse(get_reply(model, request)))
    return critiques, verdicts, lvlm.history


@pytest.mark.parametrize(("spurious", "unsure", "relevant"), [c for c in itertools.product(range(4), repeat=3) if sum(c) <= 5])
def test_p_by_its_formula(spurious, unsure, relevant):
    values = ["spurious"] * spurious + ["unsure"] * unsure + ["relevant"] * relevant
    assert probability(values) == pytest.approx((spurious + unsure / 2 + 1 / 2) / (len(values) + 1))


@pytest.mark.parametrize("mode", ["two-call", "fused"])
def test_one_vote_asks_as_ever(mode):
    critiques, verdicts, history = consult(1, mode)
    assert [request.role for request in history] == (["fused"] if mode == "fused" else ["critic", "judge"])
    assert all((request.vote, request.permutation) == (0, 0) for request in history) and len(critiques) == 1
    assert [(v.value, v.p, v.doubt) for v in verdicts] == [("spurious", 0.75, None), ("relevant", 0.25, None), ("unsure", 0.5, "unsure")]


@pytest.mark.parametrize("mode", ["two-call", "fused"])
def test_votes_are_permuted_and_mapped_back(mode):
    critiques, verdicts, history = consult(5, mode)
    assert [verdict.value for verdict in verdicts] == ["spurious", "relevant", "unsure"] and verdicts[0].p == 5.5 / 6
    asked = [request for request in history if request.role != "judge"]
    assert [request.vote for request in asked] == [0, 1, 2, 3, 4] and len({request.permutation for request in asked}) == 5
    orders = [tuple(re.findall(r"^S\d: (.*), (\d+)%$", request.parts[0], re.MULTILINE)) for request in asked]
    assert len(set(orders)) > 1 and len({frozenset(order) for order in orders}) == 1, "the same segments in other orders, with their own shares"
    assert len({request.parts[4] for request in asked}) == len(set(orders)), "IDs and colours in the pictures follow"
    for critique in critiques:
        assert re.search(r"^S1: (at )?top\b", critique.text, re.MULTILINE), "words are kept under the segments' own names"


def test_the_first_of_three_votes_is_the_single_one():
    (single, *_), (first, *_) = consult(1)[2], consult(3)[2]
    assert single.parts == first.parts and (single.vote, single.permutation, single.prompt) == (first.vote, first.permutation, first.prompt)


def test_permutations_are_seeded_by_image_and_vote():
    drawn = [draw_permutation(seed, index, vote) for seed in (0, 1) for index in (0, 1) for vote in (1, 2)]
    assert len(set(drawn)) == 8 and drawn[0] == draw_permutation(0, 0, 1) and draw_permutation(0, 0, 0) == 0
    assert permute_segments(4, 0) == (0, 1, 2, 3)
    for permutation in drawn:
        order = permute_segments(3, permutation)
        assert sorted(order) == [0, 1, 2]
        shown = renumber(SEGMENTS, order)
        assert ((shown == -1) == (SEGMENTS == -1)).all() and all(((shown == i) == (SEGMENTS == order[i])).all() for i in range(3))


def test_restoring_swaps_names_at_once_and_leaves_fake_ones():
    verdicts = [Verdict(1, 0, "spurious", "m"), Verdict(1, 1, "relevant", "m"), Verdict(1, 2, "unsure", "m")]
    critique, mapped = restore_vote(Critique(1, "S1 and S2, not S9 or S12.\nS3: x"), verdicts, (2, 0, 1))
    assert critique.text == "S3 and S1, not S9 or S12.\nS2: x"
    assert [(verdict.segment, verdict.value) for verdict in mapped] == [(0, "relevant"), (1, "unsure"), (2, "spurious")]


def ballots(*values, doubts=(), problems=()):
    return [
        [Verdict(1, 0, value, "m", problem="refused" if i in problems else None, doubt="the critique concludes ..." if i in doubts else None)]
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("votes", "value", "p", "doubt"),
    [
        (ballots("spurious", "spurious", "relevant"), "spurious", 2.5 / 4, "votes differ: 2 spurious, 1 relevant"),
        (ballots("spurious", "relevant", "unsure"), "unsure", 2 / 4, "votes differ: 1 spurious, 1 relevant, 1 unsure"),
        (ballots("unsure", "unsure", "unsure"), "unsure", 1 / 2, "unsure"),
        (ballots("spurious", "unsure", "unsure", problems=(1, 2)), "spurious", 3 / 4, None),
        (ballots("spurious", doubts=(0,)), "unsure", 1 / 2, "the critique concludes ..."),
        (ballots("relevant", "relevant", "relevant", doubts=(1,)), "relevant", 1 / 4, "the critique concludes ..."),
    ],
)
def test_counting(votes, value, p, doubt):
    (counted,) = count_votes(votes)
    assert (counted.value, counted.p, counted.doubt, counted.problem) == (value, p, doubt, None)


def test_no_readable_vote_is_a_problem():
    (counted,) = count_votes(ballots("unsure", "unsure", "unsure", problems=(0, 1, 2)))
    assert (counted.value, counted.p, counted.problem) == ("unsure", 0.5, "refused")


def test_all_votes_are_asked_for_when_one_fails():
    def fail_once(request):
        return "nothing" if request.vote == 1 else reply(request)

    critiques, verdicts, history = consult(3, lvlm=Scripted(fail_once))
    assert [critique.problem is None for critique in critiques] == [True, False, True]
    assert verdicts[0].value == "spurious" and verdicts[0].p == 2.5 / 3, "a malformed answer is no vote"
    assert {request.vote for request in history if request.role == "judge"} == {0, 2}


def test_the_queue_goes_by_effect_share_times_uncertainty():
    selection = Selection("random", torch.tensor([7, 9]), torch.tensor([0, 0]), torch.zeros(2))
    segmentation = Segmentation(
        torch.zeros(2, 2, 2, dtype=torch.int64), torch.ones(2, 2, 2, dtype=torch.bool), torch.tensor([[0.75, 0.25], [0.5, 0.5]]), ("segmented",) * 2
    )
    verdicts = [
        Verdict(7, 0, "spurious", "m", p=0.625, doubt="votes differ"),  # 0.75 x 0.75
        Verdict(7, 1, "unsure", "m", problem="refused", p=0.5),  # 0.25 x 1
        Verdict(9, 0, "unsure", "m", p=0.5, doubt="unsure"),  # decided by a person below
        Verdict(9, 1, "unsure", "m", p=0.5, doubt="the critique concludes ..."),  # 0.5 x 1
        Verdict(9, 0, "relevant", "human"),
        Verdict(7, 1, "relevant", "m", p=0.25),  # a later one without a doubt
    ]
    queue = queue_verdicts(verdicts, selection, segmentation)
    assert [(entry.index, entry.segment) for entry in queue] == [(7, 0), (9, 1)]
    assert [entry.weight for entry in queue] == [0.75 * 0.75, 0.5]
    assert settle_verdicts(verdicts)[9, 0].value == "relevant"
    assert settle_verdicts(reversed(verdicts))[9, 0].value == "relevant", "a person's, whenever it was given"


def test_permutations_stay_what_they_were():
    """The ledger keeps answers by what was asked, so that other permutations would ask, and pay for, every later vote of an old run again."""
    assert [draw_permutation(seed, index, vote) for seed, index, vote in ((0, 0, 1), (0, 7, 1), (3, 7, 2))] == [610428213, 331598385, 2126303656]
    assert permute_segments(6, 331598385) == (3, 1, 4, 2, 5, 0) and permute_segments(6, 2126303656) == (0, 3, 4, 2, 5, 1)


def test_renumbering_keeps_one_byte_a_pixel():
    segments = torch.tensor([[-1, 0], [1, 2]], dtype=torch.int8)
    shown = renumber(segments, (2, 0, 1))
    assert shown.tolist() == [[-1, 1], [2, 0]] and shown.dtype == torch.int8


def test_votes_on_other_segments_are_no_votes_on_one_image():
    one = Verdict(0, 0, "spurious", "m")
    with pytest.raises(ValueError, match="zip"):
        count_votes([[one], [one, Verdict(0, 1, "relevant", "m")]])


def test_what_nobody_could_read_keeps_the_first_problem():
    first, second = (Verdict(0, 0, "unsure", "m", problem=problem) for problem in ("refused", "malformed"))
    assert count_votes([[first], [second]])[0].problem == "refused"


def test_the_queue_has_no_verdict_of_a_person_and_takes_a_missing_p_for_a_half():
    selection = Selection("random", torch.tensor([7]), torch.tensor([0]), torch.zeros(1))
    segments = torch.zeros(1, 2, 2, dtype=torch.int64)
    segmentation = Segmentation(segments, segments == 0, torch.tensor([[0.75, 0.25]]), ("segmented",))
    verdicts = [Verdict(7, 0, "unsure", "human", doubt="not sure"), Verdict(7, 1, "unsure", "m", problem="refused")]
    (waiting,) = queue_verdicts(verdicts, selection, segmentation)
    assert (waiting.segment, waiting.p, waiting.uncertainty) == (1, 0.5, 1.0)
