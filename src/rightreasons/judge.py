"""The judge: reads a critique, never a picture, and gives a verdict per segment."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rightreasons.errors import ConfigError
from rightreasons.lvlm.protocol import Answer, Request
from rightreasons.prompts import fill_prompt, read_prompt
from rightreasons.records import Critique, Value, Verdict

Ask = Callable[[Request], Answer]
VALUES: tuple[Value, ...] = ("relevant", "spurious", "unsure")


@dataclass(frozen=True)
class Example:
    """A critique and what a person concluded from it."""

    critique: str
    verdicts: Mapping[str, str]


class MalformedVerdicts(ValueError):
    """An answer that cannot be read as one verdict per segment."""


def judge_critique(ask: Ask, critique: Critique, *, segments: int, examples: Sequence[Example], source: str) -> list[Verdict]:
    """One verdict per segment. What cannot be read is asked for once more, and is unsure after that, with the reason.

    An unsure verdict counts as not spurious until a person decides.
    """
    if critique.problem is not None:
        return _all_unsure(critique.index, segments, source, critique.problem)
    ids = [f"S{segment + 1}" for segment in range(segments)]
    prompt = fill_prompt(
        "judge",
        examples="\n\n".join(f"<critique>\n{_contain(e.critique)}\n</critique>\n{json.dumps(dict(e.verdicts))}" for e in examples),
        critique=_contain(critique.text),
        ids=", ".join(ids),
        shape=json.dumps({name: VALUES[i % 2] for i, name in enumerate(ids)}),
    )
    schema = {
        "type": "object",
        "properties": {name: {"type": "string", "enum": list(VALUES)} for name in ids},
        "required": ids,
        "additionalProperties": False,
    }
    problem = ""
    for attempt in range(2):
        reminder = f"\nAn earlier answer could not be used ({problem}). Answer with the JSON object alone." if attempt else ""
        answer = ask(Request("judge", (prompt + reminder,), schema=schema, max_tokens=512))
        if answer.problem is not None:
            return _all_unsure(critique.index, segments, source, answer.problem)
        try:
            values = parse_verdicts(answer.text, ids)
        except MalformedVerdicts as error:
            problem = str(error)
        else:
            return [Verdict(critique.index, segment, values[name], source) for segment, name in enumerate(ids)]
    return _all_unsure(critique.index, segments, source, f"malformed: {problem}")


def parse_verdicts(text: str, ids: Sequence[str]) -> dict[str, Value]:
    """The JSON object in ``text``, which may stand in a code fence or between words.

    Raises MalformedVerdicts unless its keys are exactly ``ids``, each once, and its values verdicts.
    """
    found = re.search(r"\{.*\}", text, re.DOTALL)
    if found is None:
        raise MalformedVerdicts(f"no JSON object in {text[:80]!r}")
    try:
        pairs = json.loads(found.group(), strict=False, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise MalformedVerdicts(f"not JSON: {error}") from error
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise MalformedVerdicts(f"a segment is named twice: {', '.join(keys)}")
    unknown, missing = [key for key in keys if key not in ids], [key for key in ids if key not in keys]
    if unknown or missing:
        detail = f"segments that do not exist: {', '.join(unknown)}" if unknown else f"no verdict for {', '.join(missing)}"
        raise MalformedVerdicts(f"{detail}; expected {', '.join(ids)}")
    spelled: dict[str, Value] = {value: value for value in VALUES}
    said = {key: str(value).strip().lower() for key, value in pairs}
    wrong = [f"{key}: {value!r}" for key, value in said.items() if value not in spelled]
    if wrong:
        raise MalformedVerdicts(f"not a verdict: {', '.join(wrong)[:120]}; expected {', '.join(VALUES)}")
    return {key: spelled[value] for key, value in said.items()}


def read_examples(path: Path | None, generator: torch.Generator) -> tuple[Example, ...]:
    """The few-shot pairs of a TOML file (default: the packaged one), in a seeded order.

    Raises ConfigError for a file that does not hold pairs, or holds only one kind of verdict.
    """
    name = "the packaged examples" if path is None else str(path)
    try:
        tables = tomllib.loads(read_prompt("judge_examples.toml") if path is None else path.read_text(encoding="utf-8"))
        examples = [Example(table["critique"].strip(), dict(table["verdicts"])) for table in tables["example"]]
    except (OSError, tomllib.TOMLDecodeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name}: {error!r}; expected tables [[example]] with a critique and verdicts = {{ S1 = 'spurious' }}") from error
    values = [value for example in examples for value in example.verdicts.values()]
    if not {"spurious", "relevant"} <= set(values) <= set(VALUES):
        raise ConfigError(
            f"{name}: the verdicts are {sorted(set(values))}; both spurious and relevant are needed, and nothing but {', '.join(VALUES)}"
        )
    order = torch.randperm(len(examples), generator=generator).tolist()
    return tuple(examples[i] for i in order)


class _Pairs(list):
    """A JSON object as its pairs, so that a key that comes twice is seen."""


def _contain(critique: str) -> str:
    """The critique cannot close its own delimiter."""
    return re.sub(r"<(/?)critique", r"<\1 critique", critique, flags=re.IGNORECASE)


def _all_unsure(index: int, segments: int, source: str, problem: str) -> list[Verdict]:
    return [Verdict(index, segment, "unsure", source, problem) for segment in range(segments)]
