"""Mode ``fused``: critic and judge in one structured answer, which says for each segment what it covers and why before the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rightreasons.common.text import clean_text
from rightreasons.critic.case import Case
from rightreasons.critic.critique import Ask, ask_again, describe_case, segment_ids, show_pictures
from rightreasons.critic.judge import all_unsure, find_contradiction
from rightreasons.critic.parse import MalformedAnswer, check_ids, describe_unusable, read_json, read_tagged, read_values
from rightreasons.critic.prompts import fill_prompt, prompt_version
from rightreasons.lvlm.protocol import Request
from rightreasons.records import VALUES, Critique, Value, Verdict

Read = TypeVar("Read")
# The most characters of each text in an answer.
LONGEST = 600


@dataclass(frozen=True)
class FusedAnswer:
    """A structured answer: the critic's observation, and by segment ID its words and its verdict."""

    observation: str
    region: str
    words: Mapping[str, str]
    values: Mapping[str, Value]


def judge_image(ask: Ask, case: Case, *, source: str, vote: int = 0, permutation: int = 0) -> tuple[Critique, list[Verdict]]:
    """The critic's words on one image and its verdicts. After an unusable answer it is asked once more, by text alone; then all are unsure."""
    ids = segment_ids(len(case.shares))
    read, said, problem = ask_structured(ask, fused_request(case, vote=vote, permutation=permutation), lambda text: parse_fused(text, ids))
    if read is None:
        critique = Critique(case.subject.index, clean_text(said), clean_text(problem), vote)
        return critique, all_unsure(case.subject.index, len(ids), source, problem)
    critique = Critique(case.subject.index, write_critique(read), vote=vote)
    doubts = [find_contradiction(read.words[name], read.values[name]) for name in ids]
    return critique, [Verdict(case.subject.index, i, read.values[name], source, doubt=doubts[i]) for i, name in enumerate(ids)]


def ask_structured(ask: Ask, request: Request, parse: Callable[[str], Read]) -> tuple[Read | None, str, str]:
    """What ``parse`` reads in the answer; after an unusable one the question is asked once more, by text alone.

    If there is nothing to read, None, with the answer's text and what is wrong with it. ``parse`` raises MalformedAnswer.
    """
    asked, said, problem = request, "", ""
    for _ in range(2):
        answer = ask(asked)
        if answer.problem is not None:
            return None, answer.text, answer.problem
        try:
            return parse(answer.text), answer.text, ""
        except MalformedAnswer as error:
            said, problem = answer.text, describe_unusable(answer.text, str(error))
            asked = ask_again(request, answer.text, f"{error}. Answer with the JSON object alone")
    return None, said, problem


def fused_request(case: Case, *, vote: int = 0, permutation: int = 0) -> Request:
    """What is asked about one image in one call."""
    ids = segment_ids(len(case.shares))
    shape = {
        "image_observation": "...",
        "class_region": "...",
        "segments": {name: {"covers": "...", "reason": "...", "verdict": VALUES[i % 2]} for i, name in enumerate(ids)},
    }
    words = describe_case(case)
    prompt = fill_prompt("fused", **words, shape=json.dumps(shape), longest=str(LONGEST))
    return Request(
        "fused",
        show_pictures(prompt, case.pictures),
        schema=fused_schema(ids),
        vote=vote,
        permutation=permutation,
        prompt=prompt_version("fused", case.pictures.style),
        subject=case.subject,
    )


def fused_schema(ids: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of an answer: evidence before verdict, every ID required, no others.

    Texts have no maxLength: xgrammar 0.2, which holds local models and several servers to a schema, allows no escapes in a string
    that has one, and a segment may cover quoted letters. The prompt says how long a text may be, and ``parse_fused`` cuts longer ones.
    """
    text = {"type": "string"}
    segment = describe_object({"covers": text, "reason": text, "verdict": {"type": "string", "enum": list(VALUES)}})
    return describe_object({"image_observation": text, "class_region": text, "segments": describe_object(dict.fromkeys(ids, segment))})


def parse_fused(text: str, ids: Sequence[str]) -> FusedAnswer:
    """The structured answer in ``text``; lines ``S1: spurious`` are accepted if there is no JSON at all. Texts are cut at their bound.

    Raises MalformedAnswer unless its segments are exactly ``ids``, each once, with one of the three verdicts.
    """
    tagged = read_tagged(text, ids) if "{" not in text else None
    if tagged is not None:
        return FusedAnswer("", "", dict.fromkeys(ids, ""), read_values(tagged))
    said = read_json(text, ["segments"])
    segments = said.get("segments")
    if not isinstance(segments, dict) or not all(isinstance(part, dict) for part in segments.values()):
        raise MalformedAnswer('"segments" is not an object with an object for each segment')
    check_ids(segments, ids)
    values = read_values({name: segments[name].get("verdict") for name in ids})
    words = {name: " ".join(filter(None, (read_line(segments[name].get(key)) for key in ("covers", "reason")))) for name in ids}
    return FusedAnswer(read_line(said.get("image_observation")), read_line(said.get("class_region")), words, values)


def write_critique(answer: FusedAnswer) -> str:
    """The answer in the form of a critique: prose, then a paragraph for each segment."""
    paragraphs = [f"{name}: {words}" for name, words in answer.words.items()]
    return "\n".join(filter(None, [answer.observation, answer.region, *paragraphs]))


def describe_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object with exactly these properties."""
    return {"type": "object", "properties": dict(properties), "required": list(properties), "additionalProperties": False}


def read_line(said: object) -> str:
    """One line of text, since a line break inside it could be read as another segment's paragraph."""
    return " ".join(clean_text(said).split())[:LONGEST] if isinstance(said, str) else ""
