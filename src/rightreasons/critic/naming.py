"""Asks an LVLM for the names of groups of spurious segments, from the critiques' words alone: it is shown no picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rightreasons.common.text import clean_text, contain
from rightreasons.critic.parse import MalformedAnswer, describe_unusable, read_json
from rightreasons.critic.prompts import fill_prompt, prompt_version
from rightreasons.lvlm.protocol import Request

# A name has at most so many characters.
LONGEST_GIVEN = 60
# Of each group so many critiques are told, each up to so many characters.
MOST_SAID = 8
LONGEST_SAID = 300


@dataclass(frozen=True)
class Told:
    """What is told of one group: its ID, in how many images it is, where it mostly lies ("" if here and there), and what critiques say of it."""

    key: str
    images: int
    place: str
    said: tuple[str, ...]


@dataclass(frozen=True)
class ReadNames:
    """The usable names in an answer, by ID, and for each other ID why it has none."""

    names: Mapping[str, str]
    refused: Mapping[str, str]


def naming_request(groups: Sequence[Told]) -> Request:
    """One question about all groups, as text."""
    ids = [group.key for group in groups]
    prompt = fill_prompt(
        "name",
        longest=str(LONGEST_GIVEN),
        groups="\n\n".join(map(_describe, groups)),
        ids=", ".join(ids),
        shape=json.dumps(dict.fromkeys(ids, "...")),
    )
    schema = {"type": "object", "properties": {key: {"type": "string"} for key in ids}, "required": ids, "additionalProperties": False}
    return Request("name", (prompt,), schema=schema, prompt=prompt_version("name"))


def read_names(text: str, ids: Sequence[str]) -> ReadNames:
    """The names in a JSON object from ``ids`` to strings. Unusable names, and an ID that was not asked for, are refused with the reason."""
    try:
        said = read_json(text, ids)
    except MalformedAnswer as error:
        return ReadNames({}, dict.fromkeys(ids, describe_unusable(text, str(error))))
    names: dict[str, str] = {}
    refused = {clean_text(key)[:20]: "there is no such group" for key in said if key not in ids}
    for key in ids:
        problem = _find_problem(said.get(key), names)
        if problem is None:
            names[key] = said[key].strip()
        else:
            refused[key] = problem
    return ReadNames(names, refused)


def _describe(group: Told) -> str:
    images = "1 image" if group.images == 1 else f"{group.images} images"
    lines = [f"{group.key}: in {images}{f', mostly {group.place}' if group.place else ''}"]
    lines += [f"- {contain(' '.join(words.split()), 'group')[:LONGEST_SAID]}" for words in dict.fromkeys(group.said)][:MOST_SAID]
    return "\n".join(["<group>", *lines, "</group>"])


def _find_problem(name: object, taken: Mapping[str, str]) -> str | None:
    """Why something is no name; None for a name."""
    if name is None:
        return "the answer has no name for it"
    if not isinstance(name, str):
        return f"a name is text, and the answer has a value of type {type(name).__name__}"
    name = name.strip()
    if not any(letter.isalpha() for letter in name):
        return "the name has no letter"
    if "\n" in name or clean_text(name) != name:
        return "the name has characters that cannot be shown on one line"
    if len(name) > LONGEST_GIVEN:
        return f"the name has {len(name)} characters, and {LONGEST_GIVEN} are the most"
    other = next((key for key, given in taken.items() if given.lower() == name.lower()), None)
    return None if other is None else f"the answer gives it the name of {other}"
