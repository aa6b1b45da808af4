"""The judge reads a critique, never a picture, and gives a verdict per segment."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rightreasons.common.text import clean_text, contain
from rightreasons.critic.parse import (
    MalformedAnswer,
    check_ids,
    describe_unusable,
    read_conclusion,
    read_json,
    read_paragraphs,
    read_tagged,
    read_values,
)
from rightreasons.critic.prompts import fill_prompt, prompt_version, read_prompt
from rightreasons.errors import ConfigError
from rightreasons.lvlm.protocol import Answer, Request
from rightreasons.records import VALUES, Critique, Value, Verdict

Ask = Callable[[Request], Answer]
# The largest share of one kind of verdict in a file of examples, since judges tend to repeat the verdict that they are shown most.
MOST_OF_ONE_KIND = 2 / 3
_PAIRS = "expected tables [[example]] with a critique and verdicts = { S1 = 'spurious' }"


@dataclass(frozen=True)
class Example:
    """A critique and a person's verdicts on it."""

    critique: str
    verdicts: Mapping[str, str]


def judge_critique(ask: Ask, critique: Critique, *, segments: int, examples: Sequence[Example], source: str, permutation: int = 0) -> list[Verdict]:
    """One verdict per segment. After an unusable answer the judge is asked once more; then all verdicts are unsure, with the reason.

    A verdict that contradicts the critique's own conclusion on its segment is kept, with a doubt.
    """
    if critique.problem is not None:
        return all_unsure(critique.index, segments, source, critique.problem)
    ids = [f"S{segment + 1}" for segment in range(segments)]
    request = judge_request(critique, segments=segments, examples=examples, permutation=permutation)
    prompt, problem, said = request.parts[0], "", ""
    for attempt in range(2):
        reminder = f"\nAn earlier answer could not be used ({contain(problem, 'critique')}). Answer with the JSON object alone." if attempt else ""
        answer = ask(replace(request, parts=(f"{prompt}{reminder}",)))
        if answer.problem is not None:
            return all_unsure(critique.index, segments, source, answer.problem)
        try:
            values = parse_verdicts(answer.text, ids)
        except MalformedAnswer as error:
            problem, said = str(error), answer.text
        else:
            words = read_paragraphs(critique.text)
            doubts = [find_contradiction(words.get(name, ""), values[name]) for name in ids]
            return [Verdict(critique.index, i, values[name], source, doubt=doubts[i]) for i, name in enumerate(ids)]
    return all_unsure(critique.index, segments, source, describe_unusable(said, problem))


def judge_request(critique: Critique, *, segments: int, examples: Sequence[Example], permutation: int = 0) -> Request:
    """What the judge is asked about one critique."""
    ids = [f"S{segment + 1}" for segment in range(segments)]
    prompt = fill_prompt(
        "judge",
        examples="\n\n".join(f"<critique>\n{words}\n</critique>\n{verdicts}" for words, verdicts in _pairs(examples)),
        critique=contain(critique.text, "critique"),
        ids=", ".join(ids),
        shape=json.dumps({name: VALUES[i % 2] for i, name in enumerate(ids)}),
    )
    schema = {
        "type": "object",
        "properties": {name: {"type": "string", "enum": list(VALUES)} for name in ids},
        "required": ids,
        "additionalProperties": False,
    }
    version = judge_version(examples)
    return Request("judge", (prompt,), schema=schema, max_tokens=512, vote=critique.vote, permutation=permutation, prompt=version)


def judge_version(examples: Sequence[Example]) -> str:
    """The version of the judge's prompt, few-shot pairs included."""
    return prompt_version("judge", *_pairs(examples))


def parse_verdicts(text: str, ids: Sequence[str]) -> dict[str, Value]:
    """The verdicts in an answer, by ``ids`` and in their order: a JSON object, with mistakes repaired, or else lines such as ``S1: spurious``.

    Raises MalformedAnswer unless it names exactly ``ids``, each once, with one of the three verdicts.
    """
    said = (read_tagged(text, ids) if "{" not in text else None) or read_json(text, ids)
    check_ids(said, ids)
    return read_values({name: said[name] for name in ids})


def find_contradiction(words: str, verdict: Value) -> str | None:
    """A sentence for a person if the words conclude the opposite of the verdict, else None. Unsure contradicts nothing."""
    concluded = read_conclusion(words)
    if concluded is None or "unsure" in (concluded, verdict) or concluded == verdict:
        return None
    return f"the critique concludes {concluded}, and the verdict is {verdict}"


def all_unsure(index: int, segments: int, source: str, problem: str) -> list[Verdict]:
    """Verdicts "unsure" on all segments, with the problem."""
    return [Verdict(index, segment, "unsure", source, clean_text(problem)) for segment in range(segments)]


def read_examples(path: Path | None, generator: torch.Generator) -> tuple[Example, ...]:
    """The few-shot pairs of a TOML file (default: the packaged one), in a seeded order, without those that must go for balance.

    Raises ConfigError for a file that does not have pairs, or whose verdicts cannot be balanced.
    """
    name = "the packaged examples" if path is None else str(path)
    try:
        text = read_prompt("judge_examples.toml") if path is None else path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: {error!r}; {_PAIRS}") from error
    return parse_examples(text, name, generator)


def parse_examples(text: str, name: str, generator: torch.Generator) -> tuple[Example, ...]:
    """The few-shot pairs in TOML, as ``read_examples`` reads them from the file ``name``."""
    try:
        examples = [Example(table["critique"].strip(), dict(table["verdicts"])) for table in tomllib.loads(text)["example"]]
    except (tomllib.TOMLDecodeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name}: {error!r}; {_PAIRS}") from error
    values = [value for example in examples for value in example.verdicts.values()]
    if not {"spurious", "relevant"} <= set(values) <= set(VALUES):
        raise ConfigError(
            f"{name}: the verdicts are {sorted(set(map(str, values)))}; both spurious and relevant are needed, and nothing but {', '.join(VALUES)}"
        )
    order = torch.randperm(len(examples), generator=generator).tolist()
    drawn = _balance([examples[i] for i in order])
    lean, settled = _lean(drawn), sum(value != "unsure" for example in drawn for value in example.verdicts.values())
    if (settled + abs(lean)) / 2 > MOST_OF_ONE_KIND * settled:
        counts = ", ".join(f"{values.count(value)} {value}" for value in VALUES)
        raise ConfigError(f"{name}: the verdicts are {counts}, and leaving out examples does not balance them: write as many spurious as relevant")
    return tuple(drawn)


def _pairs(examples: Sequence[Example]) -> list[tuple[str, str]]:
    return [(contain(example.critique, "critique"), json.dumps(dict(example.verdicts))) for example in examples]


def _balance(examples: Sequence[Example]) -> list[Example]:
    """The examples without the last ones that upset the balance; both kinds of verdict stay."""
    kept = list(examples)
    while _lean(kept):
        tipping = [i for i, example in enumerate(kept) if abs(_lean(kept) - _lean([example])) < abs(_lean(kept))]
        if not tipping or len(kept) == 1:
            return kept
        del kept[tipping[-1]]
    return kept


def _lean(examples: Sequence[Example]) -> int:
    """How many more verdicts are spurious than relevant."""
    return sum({"spurious": 1, "relevant": -1}.get(value, 0) for example in examples for value in example.verdicts.values())
