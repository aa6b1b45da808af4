"""The critic made of ground-truth masks: as sensitive and specific as it was told, errors fixed per segment, and a judge that really reads."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from rightreasons.common.seeds import seeded
from rightreasons.critic.close_up import close_up_request
from rightreasons.critic.critique import critique_image
from rightreasons.critic.judge import judge_critique, read_examples
from rightreasons.critic.panel import Panel, consult_case, consult_closer
from rightreasons.critic.pictures import CloseUp
from rightreasons.errors import ConfigError, LVLMUnavailable
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.protocol import get_reply
from rightreasons.records import ClassDescription, Critique, GroundTruth, Pictures, Subject
from tests.support.helpers import make_case

IMAGES, SEGMENTS = 500, 4
MASK = torch.zeros(4, 4, dtype=torch.bool)
MASK[:2] = True  # segments 0 and 1 lie in it
PIECES = torch.arange(4)[:, None].expand(4, 4).contiguous()
TRUTH = GroundTruth(["all"] * IMAGES, lambda index: MASK)
SPURIOUS = [True, True, False, False]
WORDS = [ClassDescription("a", "The lower half.")]
PICTURES = Pictures(b"1", b"2", b"3")
NEAR = CloseUp(b"4", b"5", 0.5, 0.5)


def verdicts(lvlm, index: int, edit=lambda text: text) -> list[str]:
    """Critic and judge on one image, as the pipeline asks them; ``edit`` changes the critique between the two."""

    def ask(request):
        return lvlm.parse(get_reply(lvlm, request))

    critique = critique_image(ask, make_case(PICTURES, Subject(index, PIECES, torch.ones(4, 4)), label=0, descriptions=WORDS, shares=[0.25] * 4))
    edited = Critique(critique.index, edit(critique.text), critique.problem)
    judged = judge_critique(ask, edited, segments=SEGMENTS, examples=read_examples(None, seeded(0)), source=lvlm.name)
    assert not any(verdict.problem for verdict in judged)
    return [verdict.value for verdict in judged]


def test_a_perfect_one_is_right_everywhere():
    lvlm = open_lvlm("simulated:", truth=TRUTH)
    assert all(verdicts(lvlm, index) == ["spurious", "spurious", "relevant", "relevant"] for index in range(20))
    assert lvlm.simulated and lvlm.name == "simulated:sensitivity=1,specificity=1"


@pytest.mark.parametrize(
    ("options", "sensitivity", "specificity"),
    [("0.87", 0.87, 0.87), ("sensitivity=0.9,specificity=0.6", 0.9, 0.6), ("specificity=0.5", 1.0, 0.5), ("0", 0, 0)],
)
def test_measured_rates_are_those_that_were_set(options, sensitivity, specificity):
    lvlm = open_lvlm(f"simulated:{options}", truth=TRUTH)
    said = torch.tensor([[value == "spurious" for value in verdicts(lvlm, index)] for index in range(IMAGES)]).double()
    rates = said[:, :2].mean().item(), 1 - said[:, 2:].mean().item()
    for measured, wanted in zip(rates, (sensitivity, specificity), strict=True):
        assert measured == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / (2 * IMAGES)) ** 0.5 + 1e-9), "within four standard errors"


def test_errors_are_fixed_per_segment_and_seeded():
    first, again, other = (open_lvlm("simulated:0.6", truth=TRUTH, seed=seed) for seed in (0, 0, 1))
    said = [verdicts(first, index) for index in range(30)]
    assert said == [verdicts(first, index) for index in range(30)] == [verdicts(again, index) for index in range(30)]
    assert said != [verdicts(other, index) for index in range(30)]
    assert len({tuple(values) for values in said}) > 5, "errors differ from image to image"


def test_the_judge_reads_the_critique_and_nothing_else():
    lvlm = open_lvlm("simulated:", truth=TRUTH)
    flip = str.maketrans({})

    def exchange(text: str) -> str:
        first, second = (line.split(": ", 1)[1] for line in text.splitlines() if line.startswith(("S1:", "S3:")))
        return "\n".join(
            f"S1: {second}" if line.startswith("S1:") else f"S3: {first}" if line.startswith("S3:") else line
            for line in text.translate(flip).splitlines()
        )

    assert verdicts(lvlm, 3) == ["spurious", "spurious", "relevant", "relevant"]
    assert verdicts(lvlm, 3, exchange) == ["relevant", "spurious", "spurious", "relevant"], "editing the words flips the verdicts"
    assert verdicts(lvlm, 3, lambda text: text.replace(text[text.index("S2: ") : text.index("S3: ")], "S2: I cannot tell.\n"))[1] == "unsure"


def test_the_truth_is_where_more_than_half_of_the_effect_lies():
    lvlm, effect = open_lvlm("simulated:", truth=TRUTH), torch.ones(4, 4)
    halves = torch.tensor([[0] * 4, [1] * 4, [0] * 4, [1] * 4])
    effect[0] = 3.0  # of segment 0, three quarters lie in the mask; of segment 1 exactly half
    request_text = []

    def ask(request):
        answer = lvlm.parse(get_reply(lvlm, request))
        request_text.append(answer.text)
        return answer

    critique_image(ask, make_case(PICTURES, Subject(0, halves, effect), label=0, descriptions=WORDS, shares=[0.6, 0.4]))
    assert "S1: This segment covers a region that is not part of the class" in request_text[0]
    assert "S2: This segment covers a part of what the description names" in request_text[0]


def test_an_image_without_a_mask_has_nothing_spurious():
    lvlm = open_lvlm("simulated:", truth=GroundTruth(["x"], lambda index: None))
    assert verdicts(lvlm, 0) == ["relevant"] * 4


def test_the_ledger_files_seeds_and_rates_apart(tmp_path):
    ledger = Ledger(tmp_path / "lvlm.sqlite")
    texts = []
    for options, seed in (("0.5", 0), ("0.5", 1), ("0.6", 0), ("0.5", 0)):
        lvlm = open_lvlm(f"simulated:{options}", truth=TRUTH, seed=seed)

        def ask(request, lvlm=lvlm):
            return ledger.ask(lvlm, request)

        texts.append(
            critique_image(ask, make_case(PICTURES, Subject(4, PIECES, torch.ones(4, 4)), label=0, descriptions=WORDS, shares=[0.25] * 4)).text
        )
    assert ledger.count("answered") == 3 and ledger.cached == 1 and texts[0] == texts[3]
    ledger.close()


def test_it_can_be_unsure_of_what_is_mixed_and_decides_from_near():
    """Shares of 0, 0.4, 0.6 and 1: with unsure=0.2 the middle two are unsure, and the close-up gives what it would have said at once."""
    columns = torch.arange(10)[None, :].expand(4, 10)
    mask = columns < torch.tensor([0, 4, 6, 10])[:, None]
    subject = Subject(0, torch.arange(4)[:, None].expand(4, 10).contiguous(), torch.ones(4, 10))
    case = make_case(PICTURES, subject, label=0, descriptions=WORDS, shares=[0.25] * 4)
    case = replace(case, image=torch.zeros(3, 4, 10))
    said = {}
    for options in ("", "unsure=0.2", "unsure=0.2,unsure_close=0.15"):
        lvlm = open_lvlm(f"simulated:{options}", truth=GroundTruth(["x"], lambda index: mask))
        for mode in ("two-call", "fused"):
            panel = Panel(lvlm, lvlm, read_examples(None, seeded(0)), mode, close_up=True)

            def ask(model, request):
                return model.parse(get_reply(model, request))

            _, first = consult_case(case, panel, ask)
            critiques, settled = consult_closer(case, panel, ask, first)
            said[options, mode] = [verdict.value for verdict in first], [verdict.value for verdict in settled]
            assert len(critiques) == [verdict.value for verdict in first].count("unsure")
    right = ["relevant", "relevant", "spurious", "spurious"]
    middle = ["relevant", "unsure", "unsure", "spurious"]
    for mode in ("two-call", "fused"):
        assert said["", mode] == (right, right) and said["unsure=0.2", mode] == (middle, right)
        assert said["unsure=0.2,unsure_close=0.15", mode] == (middle, middle)
    assert open_lvlm("simulated:unsure=0.2", truth=TRUTH).name == "simulated:sensitivity=1,specificity=1,unsure=0.2"


def test_from_near_it_errs_as_often_and_not_on_the_same_segments():
    lvlm = open_lvlm("simulated:sensitivity=0.8,specificity=0.8", truth=TRUTH)
    case = make_case(PICTURES, Subject(0, PIECES, torch.ones(4, 4)), label=0, descriptions=WORDS, shares=[0.25] * 4)
    first, near = [], []
    for index in range(150):
        case = replace(case, image=torch.zeros(3, 4, 4), subject=replace(case.subject, index=index), look_closer=lambda segment: NEAR)
        first += [value == "spurious" for value in verdicts(lvlm, index)]
        near += [json.loads(lvlm.answer(close_up_request(case, segment)))["verdict"] == "spurious" for segment in range(SEGMENTS)]
    right = torch.tensor([[said == truth for said, truth in zip(part, SPURIOUS * 150, strict=True)] for part in (first, near)]).double()
    assert right.mean(1).tolist() == pytest.approx([0.8, 0.8], abs=4 * (0.16 / 600) ** 0.5)
    assert abs(torch.corrcoef(right)[0, 1]) < 0.2


def test_it_needs_ground_truth_and_rates_that_make_sense():
    with pytest.raises(LVLMUnavailable, match="ground-truth"):
        open_lvlm("simulated:")
    for options in ("1.5", "-0.1", "high", "sensitivity=0.9,speed=2", "sensitivity=", "=", "nan", "unsure=0.6", "unsure_close=-1"):
        with pytest.raises(ConfigError, match="expected simulated"):
            open_lvlm(f"simulated:{options}", truth=TRUTH)
