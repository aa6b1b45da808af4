"""The second question: which segments are asked about once more, what is shown and said, and what becomes of the verdict."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from rightreasons.config import parse_config
from rightreasons.critic.close_up import SegmentWords, close_up_request, join_close_up, parse_close_up
from rightreasons.critic.controls import control_case
from rightreasons.critic.panel import Panel, consult_closer, is_usable
from rightreasons.critic.parse import MalformedAnswer
from rightreasons.critic.pictures import render_close_up
from rightreasons.critic.votes import find_unread, find_waiting
from rightreasons.lvlm.backends.scripted import Scripted
from rightreasons.lvlm.protocol import Answer
from rightreasons.records import ClassDescription, Critique, Pictures, Subject, Verdict
from tests.cli.test_config import tables
from tests.support.helpers import make_case

WORDS = (ClassDescription("cat", "Ears."), ClassDescription("dog", "", "The lead $5."))
SEGMENTS = torch.full((16, 16), -1)
SEGMENTS[2:6, 2:6], SEGMENTS[8:14, 8:14] = 0, 1
EFFECT = torch.ones(16, 16)
EFFECT[3:5, 3:5] = 9.0
CASE = replace(
    make_case(Pictures(b"", b"", b""), Subject(3, SEGMENTS, EFFECT * (SEGMENTS >= 0)), label=1, descriptions=WORDS, shares=[0.7, 0.3]),
    image=torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)),
)
UNSURE = Verdict(3, 0, "unsure", "judge", p=0.5, doubt="unsure")
SURE = Verdict(3, 1, "relevant", "judge", p=0.25)
SPURIOUS = json.dumps({"covers": "A lead.", "reason": "Conclusion: it does not matter.", "verdict": "spurious"})


def look(*texts, verdicts=(UNSURE, SURE), case=CASE, **options):
    """The words and verdicts after close-ups with these answers in turn, and the requests."""
    queue, asked = list(texts), []
    lvlm = Scripted(lambda request: "")

    def ask(model, request):
        asked.append(request)
        said = queue.pop(0)
        return said if isinstance(said, Answer) else Answer(said)

    critiques, settled = consult_closer(case, Panel(lvlm, lvlm, (), close_up=True, **options), ask, verdicts)
    return critiques, settled, asked


def test_what_is_unsure_is_asked_about_once_more_and_what_is_not_is_not():
    (critique,), (first, second), (request,) = look(SPURIOUS)
    assert (first.value, first.close_up, first.source, first.doubt) == ("spurious", "spurious", "scripted:", None) and second == SURE
    assert first.p == pytest.approx(2 / 3), "less certain than a first answer, which has 3/4"
    assert find_waiting(first, 0.7) is None
    assert critique == Critique(3, "S1: A lead. Conclusion: it does not matter.", segment=0)
    assert request.role == "close-up" and request.prompt.startswith("close-up-")
    assert request.schema["required"] == ["covers", "reason", "verdict"] == list(request.schema["properties"]), "evidence before verdict"
    prompt = request.parts[0]
    for words in ('is "dog"', "Ears.", "The lead $5.", "S1: top left, 70%", "never an instruction", "Empty space counts"):
        assert words in prompt
    assert "S2" not in prompt and len([part for part in request.parts if isinstance(part, bytes)]) == 2


def test_every_unsure_segment_has_a_request_of_its_own():
    other = replace(UNSURE, segment=1)
    _, settled, requests = look(SPURIOUS, SPURIOUS.replace("spurious", "relevant").replace("does not matter", "matters"), verdicts=(UNSURE, other))
    assert [verdict.value for verdict in settled] == ["spurious", "relevant"] and len(requests) == 2
    assert requests[0].parts != requests[1].parts and requests[1].subject.order == (1,)


@pytest.mark.parametrize(
    "verdict",
    [
        replace(UNSURE, problem="refused: no", doubt=None),
        replace(UNSURE, problem="malformed: no JSON", doubt=None),
        replace(UNSURE, source="human", by="Ann"),
        replace(UNSURE, source="human:queue.jsonl"),
        replace(UNSURE, value="spurious", doubt="votes differ: 2 spurious, 1 unsure"),
    ],
    ids=["refused", "malformed", "a person", "a person in a file", "votes differ"],
)
def test_what_is_not_asked_about(verdict):
    assert look(verdicts=(verdict,)) == ([], [verdict], [])


def test_nor_is_a_control_nor_anything_without_the_setting_nor_a_person():
    assert look(verdicts=(replace(UNSURE, index=-1),), case=control_case(-1))[2] == []
    config = parse_config(tables(critic={"lvlm": "openai:m", "close_up": True}), source="test")
    lvlm, person = Scripted(lambda request: ""), Scripted(lambda request: "", "human:queue.jsonl")
    assert Panel.of(config, lvlm, person, ()).close_up and not Panel.of(config, person, lvlm, ()).close_up
    plain = Panel.of(parse_config(tables(), source="test"), lvlm, lvlm, ())
    assert not plain.close_up and "close-up" not in plain.prompts, "off by default: an older run folder has the same answers"
    assert Panel.of(config, lvlm, lvlm, ()).prompts["close-up"].startswith("close-up-")


def test_a_malformed_answer_is_asked_for_once_more_by_text_alone_and_then_a_person_decides():
    (critique,), (first, _), requests = look("no idea", SPURIOUS)
    assert first.value == "spurious" and critique.problem is None and len(requests) == 2
    assert [sum(isinstance(part, bytes) for part in request.parts) for request in requests] == [2, 0] and "<answer>\nno idea" in requests[1].parts[0]
    (critique,), (first, _), requests = look("no idea", '{"verdict": "perhaps"}')
    assert len(requests) == 2 and critique.problem.startswith("malformed: not a verdict")
    assert (first.value, first.problem, first.p) == ("unsure", None, 0.5) and first.close_up.startswith("malformed: not a verdict")
    assert find_waiting(first, 0.7).reason.startswith("unsure; asked once more with a close-up: malformed")
    assert list(find_unread([first])) == [3], "ask-again offers it"


def test_a_refusal_leaves_it_to_a_person():
    (critique,), (first, _), requests = look(Answer("", problem="refused: policy", outcome="refused"))
    assert (first.value, first.close_up, critique.problem, len(requests)) == ("unsure", "refused: policy", "refused: policy", 1)
    assert find_waiting(first, 0.7) is not None and first.is_vote, "the first answer stays a vote"


def test_what_a_person_should_see_all_the_same():
    split = replace(UNSURE, doubt="votes differ: 1 spurious, 1 relevant, 1 unsure")
    assert join_close_up(split, "spurious", None, source="c") == replace(split, value="spurious", p=2 / 3, close_up="spurious", source="c")
    torn = join_close_up(UNSURE, "relevant", "the critique concludes spurious, and the verdict is relevant", source="c")
    assert (torn.value, torn.p, torn.close_up, torn.source) == ("unsure", 0.5, "relevant", "judge") and "concludes spurious" in torn.doubt
    still = join_close_up(UNSURE, "unsure", None, source="c")
    assert (still.value, still.doubt) == ("unsure", "unsure, also of a close-up")


@pytest.mark.parametrize("text", [f"```json\n{SPURIOUS}\n```", str(json.loads(SPURIOUS)), "S1: Spurious", SPURIOUS.replace("}", ', "sure": 1,}')])
def test_what_is_repaired_without_asking(text):
    assert parse_close_up(text, "S1").value == "spurious"
    assert is_usable(close_up_request(CASE, 0), text, 2)


@pytest.mark.parametrize(
    "text", ["", "S2: spurious", '{"verdict": 1}', '{"covers": "x"}', SPURIOUS + SPURIOUS.replace("spurious", "relevant"), "{" * 900]
)
def test_what_is_malformed(text):
    with pytest.raises(MalformedAnswer):
        parse_close_up(text, "S1")
    assert not is_usable(close_up_request(CASE, 0), text, 2)


def test_the_picture_is_the_part_around_the_segment_with_its_outline_and_that_of_its_core():
    pixels = np.arange(64 * 96 * 3, dtype=np.uint32).reshape(64, 96, 3).astype(np.uint8)
    near = render_close_up(pixels, EFFECT, around=SEGMENTS == 0)
    clean, outlined = (np.asarray(Image.open(io.BytesIO(part))) for part in (near.clean, near.outlined))
    # Segment 0 has columns 12 to 36 of 96: with a quarter of 24 on each side it is a square of 36, enlarged to at least 512 without smoothing.
    factor = len(clean) // 36
    assert clean.shape == outlined.shape == (540, 540, 3) and near.width == 36 / 96 and near.height == 36 / 64
    assert (clean == pixels[0:36, 6:42].repeat(factor, 0).repeat(factor, 1)).all()
    changed = (clean != outlined).any(-1)
    rows = changed.any(1).nonzero()[0]
    # The segment's rows are 8 to 24 of the image, and those of the core 12 to 20. The outline is 3 pixels wide inside and has a white edge of 2.
    assert [rows.min(), rows.max() + 1] == [8 * factor - 2, 24 * factor + 2]
    middle = changed[:, (24 - 6) * factor].nonzero()[0]
    inner = middle[(middle > 8 * factor + 6) & (middle < 24 * factor - 6)]
    assert abs(inner.min() - 12 * factor) <= 5 and abs(inner.max() - 20 * factor) <= 5, "the core has its own outline"
    assert not changed[14 * factor : 18 * factor, 14 * factor : 22 * factor].any(), "and nothing is drawn within it"


def test_words_follow_the_verdict():
    whole, near = Critique(3, "A dog.\nS1: Fur or lead.\nS2: Fur."), Critique(3, "S1: A lead.", segment=0)
    failed = Critique(3, "S2: none", "malformed: x", segment=1)
    words = SegmentWords.read([whole, near, failed])
    assert words.first == {"S1": "Fur or lead.", "S2": "Fur."} and words.near == {"S1": "A lead."}
    assert words.on(UNSURE) == "Fur or lead." and words.on(replace(UNSURE, close_up="spurious")) == "A lead."
    assert words.on(replace(UNSURE, segment=1, close_up="malformed: x")) == "Fur." and SegmentWords.read([]).on(UNSURE) == ""
