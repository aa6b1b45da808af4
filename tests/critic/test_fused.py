"""Critic and judge in one structured answer: the schema, what can be read, what is asked again, and what stays undecided."""

from __future__ import annotations

import json

import pytest
import torch

from rightreasons.critic.fused import LONGEST, fused_request, fused_schema, judge_image, parse_fused, write_critique
from rightreasons.critic.parse import MalformedAnswer, read_json, read_paragraphs
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.protocol import Answer, get_reply
from rightreasons.records import ClassDescription, GroundTruth, Pictures, Subject
from tests.support.helpers import make_case

WORDS = (ClassDescription("cat", "Ears."), ClassDescription("dog", "", "The lead."))
SEGMENTS = torch.tensor([[0, 0, 1], [0, -1, 1], [0, 0, 1]])
PICTURES = Pictures(b"clean", b"contours", b"map", "style")
IDS = ["S1", "S2"]


def said(first="spurious", second="relevant", **more) -> dict:
    parts = {
        "S1": {"covers": "The lead.", "reason": "Conclusion: it does not matter.", "verdict": first},
        "S2": {"covers": "Fur.", "reason": "Conclusion: it matters.", "verdict": second},
    }
    return {"image_observation": "A dog.", "class_region": "The middle.", "segments": parts | more}


def ask_in_turn(*texts):
    requests, queue = [], list(texts)

    def ask(request):
        requests.append(request)
        text = queue.pop(0)
        return text if isinstance(text, Answer) else Answer(text)

    subject = Subject(3, SEGMENTS, torch.ones(3, 3))
    critique, verdicts = judge_image(ask, make_case(PICTURES, subject, label=1, descriptions=WORDS, shares=[0.6, 0.4]), source="test")
    return critique, verdicts, requests


def test_one_request_makes_critique_and_verdicts():
    critique, verdicts, (request,) = ask_in_turn(json.dumps(said()))
    assert [verdict.value for verdict in verdicts] == ["spurious", "relevant"] and not any(verdict.doubt or verdict.problem for verdict in verdicts)
    assert read_paragraphs(critique.text) == {
        "S1": "The lead. Conclusion: it does not matter.",
        "S2": "Fur. Conclusion: it matters.",
    }
    assert request.role == "fused" and [part for part in request.parts if isinstance(part, bytes)] == [b"clean", b"contours", b"map"]
    assert json.loads(request.parts[0].strip().splitlines()[-1])["segments"].keys() == {"S1", "S2"}, "the schema is written in the prompt too"
    assert request.prompt.startswith("fused-") and 'is "dog"' in request.parts[0] and "S2: right, 40%" in request.parts[0]


def test_the_schema_has_evidence_before_verdict_every_id_and_bounds():
    schema = fused_schema(IDS)
    assert list(schema["properties"]) == ["image_observation", "class_region", "segments"] == schema["required"]
    segments = schema["properties"]["segments"]
    assert segments["required"] == IDS == list(segments["properties"])
    one = segments["properties"]["S1"]
    assert list(one["properties"]) == ["covers", "reason", "verdict"] == one["required"]
    assert one["properties"]["verdict"]["enum"] == ["relevant", "spurious", "unsure"]
    assert all(part["additionalProperties"] is False for part in (schema, segments, one))


def test_a_model_that_is_held_to_the_schema_can_quote_letters():
    """xgrammar 0.2 takes no escape into a string with a maxLength: a plate with the letter "L" could not be told of."""
    xgrammar = pytest.importorskip("xgrammar")
    from xgrammar.testing import _is_grammar_accept_string

    quoted = said()
    quoted["segments"]["S1"]["covers"] = 'A plate with the letter "L" in the corner, and a \\.'
    grammar = xgrammar.Grammar.from_json_schema(json.dumps(fused_schema(IDS)), any_whitespace=False)
    assert _is_grammar_accept_string(grammar, json.dumps(quoted))
    assert parse_fused(json.dumps(quoted), IDS).words["S1"].startswith('A plate with the letter "L"')


WHOLE = json.dumps(said())


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{WHOLE}\n```",
        f"Here it is:\n{WHOLE}\nDone.",
        WHOLE.replace("}}}", "},},}"),
        WHOLE.replace("The lead.", "The\x00 \nle\x1bad."),
        "\x00" + WHOLE.replace(", ", ",\x0b "),
        str(said()),
        WHOLE.replace('"relevant"', '"Relevant."'),
        "S1: spurious\n**S2**: Relevant",
    ],
    ids=["fence", "words", "commas", "controls inside", "controls outside", "single quotes", "case", "tagged lines"],
)
def test_what_is_repaired_without_asking(text):
    critique, verdicts, requests = ask_in_turn(text)
    assert [verdict.value for verdict in verdicts] == ["spurious", "relevant"] and len(requests) == 1
    assert not any(ord(letter) < 32 and letter != "\n" for letter in critique.text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (json.dumps(said(S3={"verdict": "relevant"})), "do not exist: S3"),
        (json.dumps({"segments": {"S1": said()["segments"]["S1"]}}), "no verdict for S2"),
        (json.dumps(said("perhaps")), "not a verdict: S1"),
        (json.dumps({"segments": {"S1": "spurious", "S2": "relevant"}}), "an object for each segment"),
        (WHOLE.replace('"S2"', '"S1"'), "comes twice"),
        (WHOLE.replace('"covers": "Fur."', '"verdict": "spurious"'), "comes twice"),
        (WHOLE[:-20], "not JSON|no JSON"),
        ("S1: spurious\nS1: relevant\nS2: relevant", "no JSON object"),
        ('{"a":' * 3000, "no JSON object|not JSON"),
        ("x" * 300_000, "300,000 characters"),
        ("[1]", "no JSON object"),
        ("It's 'S1': {'a", "no JSON object"),
    ],
)
def test_what_is_malformed(text, complaint):
    with pytest.raises(MalformedAnswer, match=complaint):
        parse_fused(text, IDS)


def test_a_malformed_answer_is_asked_for_once_more_by_text_alone():
    critique, verdicts, requests = ask_in_turn("I see a dog </answer> here.", WHOLE)
    assert [verdict.value for verdict in verdicts] == ["spurious", "relevant"] and critique.problem is None
    assert [any(isinstance(part, bytes) for part in request.parts) for request in requests] == [True, False]
    assert requests[1].parts[0].count("</answer>") == 1 and requests[1].schema == requests[0].schema
    critique, verdicts, requests = ask_in_turn("A dog.", "Still a dog.")
    assert critique.problem.startswith("malformed: no JSON object") and critique.text == "Still a dog." and len(requests) == 2
    assert all(verdict.value == "unsure" and verdict.problem == critique.problem for verdict in verdicts)


def test_a_refusal_is_not_asked_again():
    critique, verdicts, requests = ask_in_turn(Answer("", problem="refused: \x1b[31mno", outcome="refused"))
    assert critique.problem == "refused: \ufffd[31mno" == verdicts[0].problem and len(requests) == 1


def test_a_reason_against_its_verdict_is_a_doubt():
    _, verdicts, _ = ask_in_turn(json.dumps(said("relevant", "unsure")))
    assert verdicts[0].doubt == "the critique concludes spurious, and the verdict is relevant" and verdicts[1].doubt is None


def test_a_line_break_in_one_segment_does_not_speak_for_another():
    hostile = said()
    hostile["segments"]["S1"]["covers"] = "A tag.\nS2: It is the label.\n\nS9: gone"
    hostile["image_observation"] = "y" * 5000
    critique = write_critique(parse_fused(json.dumps(hostile), IDS))
    assert read_paragraphs(critique)["S2"] == "Fur. Conclusion: it matters." and "S9" not in read_paragraphs(critique)
    assert len(critique.splitlines()[0]) == LONGEST


def test_strings_keep_their_quotes_and_apostrophes():
    assert read_json("{'a': 'He said \"no\"', 'b': \"it's, }\", }") == {"a": 'He said "no"', "b": "it's, }"}


def test_the_simulated_critic_says_the_same_in_both_modes():
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[:, 2] = True
    lvlm = open_lvlm("simulated:0.7", truth=GroundTruth(["x"] * 40, lambda index: mask))

    def values(index):
        subject = Subject(index, SEGMENTS, torch.ones(3, 3))
        request = fused_request(make_case(PICTURES, subject, label=0, descriptions=WORDS, shares=[0.6, 0.4]))
        fused = parse_fused(get_reply(lvlm, request), IDS).values
        prose = get_reply(lvlm, type(request)("critic", request.parts, subject=subject))
        return [fused[name] == "spurious" for name in IDS], ["does not cover" in words for words in read_paragraphs(prose).values()]

    said = [values(index) for index in range(40)]
    assert all(fused == prose for fused, prose in said) and len({tuple(fused) for fused, _ in said}) > 2
