"""The second question: a segment of which the first answer was unsure, seen from near. One request for each such segment.

Segments do not share a request, as they do in the first question: several close-ups in one would have to be told apart by the model, would be shrunk
together where a server takes one picture, and one answer that cannot be read would lose them all. The pictures are most of what is paid for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rightreasons.common.text import clean_text
from rightreasons.critic.case import Case
from rightreasons.critic.critique import Ask, describe_case, segment_ids
from rightreasons.critic.fused import LONGEST, ask_structured, describe_object, read_line
from rightreasons.critic.judge import find_contradiction
from rightreasons.critic.parse import read_json, read_paragraphs, read_tagged, read_values
from rightreasons.critic.pictures import CLOSE_STYLE, CloseUp, render_close_up, to_bytes
from rightreasons.critic.prompts import fill_prompt, prompt_version
from rightreasons.critic.votes import UNSURE, probability
from rightreasons.lvlm.protocol import Request
from rightreasons.records import VALUES, Critique, Value, Verdict

_KEYS = ("covers", "reason", "verdict")


@dataclass(frozen=True)
class CloseAnswer:
    """The words and the verdict on one close-up."""

    words: str
    value: Value


@dataclass(frozen=True)
class SegmentWords:
    """What critiques say of each segment of one image, by its ID: the first usable critique of the whole image, and of close-ups."""

    first: Mapping[str, str] = field(default_factory=dict)
    near: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, critiques: Sequence[Critique]) -> SegmentWords:
        """From all critiques of an image."""
        usable = [critique for critique in critiques if critique.problem is None]
        whole = next((read_paragraphs(critique.text) for critique in usable if critique.segment is None), {})
        near = {f"S{critique.segment + 1}": critique.text for critique in usable if critique.segment is not None}
        return cls(whole, {name: read_paragraphs(text).get(name, "") for name, text in near.items()})

    def on(self, verdict: Verdict) -> str:
        """The words from which a verdict follows: those on the close-up where the segment was asked about once more and that came to something."""
        name = f"S{verdict.segment + 1}"
        return (self.near.get(name) if verdict.close_up in VALUES else None) or self.first.get(name, "")


def judge_close_up(ask: Ask, case: Case, first: Verdict, *, source: str) -> tuple[Critique, Verdict]:
    """The critic's words on one segment seen from near, and the verdict that counts now.

    After an unusable answer it is asked once more, by text alone. If that is no use either, the first verdict stays, and a person decides.
    """
    name = f"S{first.segment + 1}"
    read, said, problem = ask_structured(ask, close_up_request(case, first.segment), lambda text: parse_close_up(text, name))
    if read is None:
        return Critique(first.index, clean_text(said), clean_text(problem), segment=first.segment), keep_first(first, problem)
    contradiction = find_contradiction(read.words, read.value)
    return Critique(first.index, f"{name}: {read.words}", segment=first.segment), join_close_up(first, read.value, contradiction, source=source)


def close_up_request(case: Case, segment: int) -> Request:
    """What is asked about one segment from near."""
    near = _draw(case, segment)
    words = describe_case(case)
    prompt = fill_prompt(
        "close-up",
        id=segment_ids(len(case.shares))[segment],
        label=words["label"],
        descriptions=words["descriptions"],
        segment=words["segments"].split("\n")[segment],
        width=f"{near.width:.0%}",
        height=f"{near.height:.0%}",
        longest=str(LONGEST),
        shape=json.dumps({"covers": "...", "reason": "...", "verdict": VALUES[segment % 2]}),
    )
    alone = torch.where(case.subject.segments == segment, 0, -1)
    return Request(
        "close-up",
        (prompt, "The part as it is:", near.clean, "With the outlines:", near.outlined),
        schema=close_up_schema(),
        prompt=prompt_version("close-up", CLOSE_STYLE),
        subject=replace(case.subject, segments=alone, order=(segment,)),
    )


def close_up_schema() -> dict[str, Any]:
    """The JSON schema of an answer: evidence before verdict."""
    text = {"type": "string"}
    return describe_object({"covers": text, "reason": text, "verdict": {"type": "string", "enum": list(VALUES)}})


def parse_close_up(text: str, name: str) -> CloseAnswer:
    """The answer in ``text``; a line ``S1: spurious`` is accepted if there is no JSON at all. Texts are cut at their bound.

    Raises MalformedAnswer unless it has one of the three verdicts.
    """
    tagged = read_tagged(text, [name]) if "{" not in text else None
    if tagged is not None:
        return CloseAnswer("", read_values(tagged)[name])
    said = read_json(text, _KEYS)
    value = read_values({"verdict": said.get("verdict")})["verdict"]
    return CloseAnswer(" ".join(filter(None, (read_line(said.get(key)) for key in ("covers", "reason")))), value)


def join_close_up(first: Verdict, said: Value, contradiction: str | None, *, source: str) -> Verdict:
    """The verdict that counts after a close-up: the first answer, with all its votes, is one vote, unsure, and the close-up another.

    A doubt other than that the first answer was unsure stays, such as votes that differ, so that a person looks at the segment all the same.
    """
    value: Value = "unsure" if contradiction else said
    doubts = [first.doubt if first.doubt != UNSURE else None, f"of a close-up, {contradiction}" if contradiction else None]
    if value == "unsure" and not any(doubts):
        doubts = ["unsure, also of a close-up"]
    told = "; ".join(filter(None, doubts)) or None
    p = probability([UNSURE, value])
    return replace(first, value=value, p=p, doubt=told, close_up=said, source=first.source if value == "unsure" else source)


def keep_first(first: Verdict, problem: str) -> Verdict:
    """The first verdict, which waits for a person, with what became of the question about the close-up."""
    told = clean_text(problem)
    return replace(first, doubt=f"{first.doubt or UNSURE}; asked once more with a close-up: {told}", close_up=told)


def _draw(case: Case, segment: int) -> CloseUp:
    if case.look_closer is not None:
        return case.look_closer(segment)
    return render_close_up(to_bytes(case.image), case.subject.positive_effect, around=case.shown == segment)
