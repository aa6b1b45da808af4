"""What the critic is asked, from the real pictures of a real segmentation, and what counts as its answer."""

from __future__ import annotations

import re

import pytest
import torch

from rightreasons.critic.critique import critique_image, describe_case, describe_positions
from rightreasons.critic.judge import judge_critique, parse_verdicts
from rightreasons.critic.parse import MalformedAnswer
from rightreasons.critic.pictures import render_pictures
from rightreasons.lvlm.backends.scripted import Scripted
from rightreasons.lvlm.protocol import Answer, get_reply
from rightreasons.records import ClassDescription, Critique, Pictures, Subject
from tests.support.helpers import make_case

SEGMENTS = torch.tensor([[0, 0, 1], [0, 2, 1], [3, 3, 3]]).repeat_interleave(6, 0).repeat_interleave(6, 1)
WORDS = (ClassDescription("cat $label", "Ears ${x}.", ""), ClassDescription("dog", "", "The </answer> lead."))
SHARES = [0.4, 0.3, 0.2, 0.1]


def criticise(*replies, label=0):
    queue = list(replies)
    lvlm = Scripted(lambda request: getattr(queue[0], "text", queue[0]))

    def ask(request):
        raw, said = get_reply(lvlm, request), queue.pop(0)
        return said if isinstance(said, Answer) else lvlm.parse(raw)

    subject = Subject(5, SEGMENTS, torch.ones(18, 18))
    pictures = render_pictures(torch.rand(3, 18, 18, generator=torch.Generator().manual_seed(0)), SEGMENTS)
    return critique_image(ask, make_case(pictures, subject, label=label, descriptions=WORDS, shares=SHARES)), lvlm.history


def test_the_prompt_has_six_steps_the_true_label_and_the_experts_words():
    _, (request,) = criticise("S1: x")
    prompt = request.parts[0]
    assert re.findall(r"^(\d)\. ", prompt, re.MULTILINE) == list("123456")
    assert 'The true class of this image is "cat $label".' in prompt, "and dollar signs in a class name stay as they are"
    assert "What matters: Ears ${x}." in prompt and "What does not matter: The </answer> lead." in prompt
    assert prompt.count("What matters:") == 1 == prompt.count("What does not matter:"), "nothing is said where the expert said nothing"
    assert 'The true class of this image is "dog".' in criticise("S1: x", label=1)[1][0].parts[0]


def test_the_prompt_names_each_segment_by_id_position_and_share_never_by_colour():
    _, (request,) = criticise("S1: x")
    prompt = request.parts[0]
    for line in ("S1: top left, 40%", "S2: right, 30%", "S3: middle, 20%", "S4: bottom, 10%"):
        assert line in prompt
    assert prompt.rstrip().endswith("S1, S2, S3, S4")
    assert not re.search(r"\b(orange|blue|green|red|pink|yellow|purple)\b", prompt)


def test_three_pictures_go_with_it_each_announced():
    _, (request,) = criticise("S1: x")
    kinds = [type(part) for part in request.parts]
    assert kinds == [str, str, bytes, str, bytes, str, bytes] and request.role == "critic" and request.schema is None


@pytest.mark.parametrize("answer", ["S1: a tag", "words\n\n**S2**: the ear", "- S3 – nothing", "  S4. grass"])
def test_a_paragraph_for_a_segment_makes_an_answer(answer):
    critique, history = criticise(answer)
    assert critique == Critique(5, answer) and len(history) == 1


def test_without_one_it_is_asked_again_without_pictures():
    critique, history = criticise("A cat sits on S1 and S2.", "S1: a tag")
    assert critique.text == "S1: a tag" and critique.problem is None
    assert [any(isinstance(part, bytes) for part in request.parts) for request in history] == [True, False]
    assert "A cat sits on S1 and S2." in history[1].parts[0]


def test_twice_without_one_is_a_problem_and_the_words_are_kept():
    critique, history = criticise("A cat.", "Just a cat.")
    assert (critique.text, critique.problem) == ("Just a cat.", "malformed: no paragraph names a segment") and len(history) == 2


def test_a_refusal_in_prose_is_told_as_a_refusal():
    critique, history = criticise("A cat.", "I'm sorry, but I can't help with that.")
    assert critique.problem == "refused: I'm sorry, but I can't help with that." and len(history) == 2


@pytest.mark.parametrize("problem", ["refused: no", "empty answer (finish reason 'length')", "unknown: the run stopped"])
def test_a_problem_is_passed_on_and_nobody_asks_again(problem):
    critique, history = criticise(Answer("", problem=problem))
    assert critique == Critique(5, "", problem) and len(history) == 1


def test_ids_that_do_not_exist_are_no_critique():
    critique, history = criticise("S7: a tag\nS77: the rest", "S2: a tag")
    assert critique.text == "S2: a tag" and critique.problem is None and len(history) == 2


def test_positions_are_of_what_the_pictures_show():
    """A segment's pixels that carry no effect are not drawn, and do not say where it lies."""
    effect = torch.zeros(18, 18)
    effect[0, 0] = 1.0
    subject = Subject(5, torch.zeros(18, 18, dtype=torch.int64), effect)
    case = make_case(Pictures(b"", b"", b""), subject, label=0, descriptions=(ClassDescription("cat", "Ears."),), shares=(1.0,))
    words = describe_case(case)
    assert words["segments"] == "S1: top left, 100%"


def test_positions_in_thirds():
    segments = torch.arange(9).view(3, 3).repeat_interleave(5, 0).repeat_interleave(5, 1)
    places = ["top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right"]
    assert describe_positions(segments) == places
    assert describe_positions(torch.where(segments == 8, 8, -1))[8] == "bottom right"


@pytest.mark.parametrize(
    "text",
    [
        '{"S1": ' + "[" * 3000 + "}",
        '{"S1":' * 3000 + "1" + "}" * 3000,
        '{"S1": ' + "9" * 5000 + "}",
        '{"S1": NaN}',
        "{}",
        "}{",
        '{"s1": "spurious"}',
        '{"S1": null}',
    ],
    ids=["brackets", "nested", "a long number", "NaN", "empty", "reversed", "small letter", "null"],
)
def test_no_answer_of_a_judge_is_worse_than_malformed(text):
    """A model that runs off into brackets until it is cut off is one as well."""
    with pytest.raises(MalformedAnswer):
        parse_verdicts(text, ["S1"])


@pytest.mark.parametrize("text", ['{"S1": "spu\nrious"}', '\ufeff{"S1": "SPURIOUS"}', '{"S1": "spurious\x00"}'])
def test_what_can_be_repaired_is_at_most_asked_again(text):
    replies = [text, '{"S1": "spurious"}']
    verdicts = judge_critique(lambda request: Answer(replies.pop(0)), Critique(1, "S1: tag"), segments=1, examples=(), source="t")
    assert verdicts[0].value == "spurious" and verdicts[0].problem is None
