"""Parses what a model wrote: JSON with the usual mistakes repaired, lines of verdicts, paragraphs of a critique.

Nothing is guessed: an answer that names a segment twice, names one that does not exist, or has none of the three verdicts is malformed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rightreasons.common.text import clean_text, drop_thoughts
from rightreasons.records import VALUES, Value

# The most characters of an answer that is parsed. The cap on tokens is far below this.
LONGEST_ANSWER = 200_000
# These patterns take linear time, so a model that repeats itself to its cap, or a hostile one, cannot hold up a run. Everything after a quote that is
# never closed is one token.
_STRING_OR_SLIP = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|["'].*|,(?=\s*[}\]])""", re.DOTALL)
_NOISE = r"(?:[^\w\n]|_)"
_BRACE_OR_STRING = re.compile(r'[{}]|"(?:[^"\\]|\\.)*(?:"|\Z)', re.DOTALL)
_LIKE_AN_OBJECT = re.compile(r"\{\s*[\"']")
# The most braces in an answer that is parsed. A model that thinks aloud uses some.
MOST_BRACES = 500
# An ID ends where no Latin letter and no digit follows: Chinese and Japanese put no space between words.
_ENDS = "(?![A-Za-z0-9])"
SEGMENT_NAME = re.compile(rf"(?<![A-Za-z0-9])S\d+{_ENDS}")
# An ID at the start of a line, with Markdown around it, in a numbered list or as "Segment S1".
_ID = rf"{_NOISE}*(?:\d+[.)]{_NOISE}*)?(?:(?i:segment){_NOISE}+)?(S\d+){_ENDS}"
_STARTS_WITH_ID = re.compile(_ID)
# A sign that denies or doubts is no decoration: "S1: !relevant" and "S1: spurious?" are no verdicts.
_BETWEEN, _AFTER = r"(?:[^\w\n!?\u00ac\u2260]|_)", r"(?:[^\w\n?]|_)"
_VERDICT_LINE = re.compile(rf"^{_ID}{_BETWEEN}+({'|'.join(VALUES)}){_AFTER}*$", re.MULTILINE | re.IGNORECASE)
_CONCLUSION = re.compile(r"conclusion\W{1,6}(?:it )?(matters|does not matter|doesn['\u2019]t matter|is unclear|unclear)\b", re.IGNORECASE)
_MARKS = " \t*_#>|:.,;)-\u2013\u2014"
# What declines in prose: an apology perhaps, and then that the writer cannot or will not do what was asked. Not that it cannot see a picture.
_SORRY = r"(?:(?:i['\u2019]?m|i am|we['\u2019]?re|we are) (?:\w+ )?sorry|sorry|i apologi[sz]e|my apologies|unfortunately)\b"
_APOLOGY = rf"(?:{_SORRY}[^.!?\n]{{0,60}}?[\W_]+(?:but )?)?"
_UNABLE = r"(?:(?:['\u2019]?m|am|['\u2019]?re|are) )?(?:unable|not able|not allowed|not permitted) to"
_CANNOT = rf"(?:can['\u2019]?t|cannot|can not|won['\u2019]?t|will not|{_UNABLE})"
_DO = r"(?:help|assist|comply|support|provide|analy[sz]e|answer|fulfil+|interpret|diagnose|discuss|do th(?:at|is)|give|offer|evaluate|respond|engage)"
_DECLINES = re.compile(rf"\W*{_APOLOGY}(?:as an ai\b[^.!?\n]{{0,60}}?, )?(?:i|we) ?{_CANNOT} (?:\w+ ){{0,2}}{_DO}\b", re.IGNORECASE)
# A refusal is short, and so much of it is shown.
LONGEST_REFUSAL = 600
SHOWN_REFUSAL = 160
_CONCLUSIONS: Mapping[str, Value] = {"matters": "relevant", "does not matter": "spurious", "doesn't matter": "spurious"}


class MalformedAnswer(ValueError):
    """An answer that does not have the form that was asked for."""


def read_json(text: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object in ``text``, which may come after thoughts, in a code fence or between words, and may have raw control characters.

    If there are several, those with one of ``keys`` count, and all of them must be equal: an answer may be written twice, but a draft that a later
    object overrules cannot be told from an answer. Commas before a bracket and single quotes are repaired.
    Raises MalformedAnswer if there is no such object, if several differ, or if one has a key twice.
    """
    if len(text) > LONGEST_ANSWER:
        raise MalformedAnswer(f"an answer of {len(text):,} characters")
    # A control character between tokens is noise; inside a string json.loads accepts it, and clean_text replaces it later.
    written = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufeff]", "", drop_thoughts(text))
    found, problem = _find_objects(written)
    if problem is not None and (found or "}" in written):
        raise MalformedAnswer(f"not JSON: {problem}")
    if not found:
        raise MalformedAnswer(f"no JSON object in {clean_text(text[:80])!r}")
    meant = [said for said in found if said.keys() & set(keys)] or found
    if any(said != meant[0] for said in meant):
        raise MalformedAnswer(f"{len(meant)} JSON objects that do not say the same")
    return meant[0]


def read_tagged(text: str, ids: Sequence[str]) -> dict[str, Any] | None:
    """Verdicts as lines ``S1: spurious``, from a model that writes no JSON; None unless every one of ``ids``, and no other, has just one."""
    lines = _VERDICT_LINE.findall(text)
    return dict(lines) if sorted(name for name, _ in lines) == sorted(ids) else None


def check_ids(said: Mapping[str, Any], ids: Sequence[str]) -> None:
    """Raises MalformedAnswer unless the keys of ``said`` are exactly ``ids``."""
    unknown, missing = [clean_text(key)[:20] for key in said if key not in ids], [key for key in ids if key not in said]
    if unknown or missing:
        detail = f"segments that do not exist: {', '.join(unknown[:10])}" if unknown else f"no verdict for {', '.join(missing)}"
        raise MalformedAnswer(f"{detail}; expected {', '.join(ids)}")


def read_values(said: Mapping[str, Any]) -> dict[str, Value]:
    """Verdicts written in upper or lower case. Raises MalformedAnswer for anything but the three verdicts."""
    spelled: dict[str, Value] = {value: value for value in VALUES}
    plain = {key: str(value).strip(" \t\r\n.\x00").lower() for key, value in said.items()}
    wrong = [f"{key}: {clean_text(value)!r}" for key, value in plain.items() if value not in spelled]
    if wrong:
        raise MalformedAnswer(f"not a verdict: {', '.join(wrong)[:120]}; expected {', '.join(VALUES)}")
    return {key: spelled[value] for key, value in plain.items()}


def read_paragraphs(critique: str) -> dict[str, str]:
    """A critique's words on each segment that it names: the last paragraph that starts with its ID.

    If the ID is a heading, the paragraph below it counts; a conclusion in a paragraph of its own belongs to the segment before it.
    """
    paragraphs: dict[str, list[str]] = {}
    words: list[str] = []
    within = False
    for line in critique.split("\n"):
        if found := _STARTS_WITH_ID.match(line):
            first = line[found.end() :].lstrip(_MARKS)
            words = paragraphs[found[1]] = [first] if first else []
            within = True
        elif not line.strip():
            within = within and not words
        elif within or _CONCLUSION.match(line.lstrip(_MARKS)):
            words.append(line if words else line.lstrip(_MARKS))
        else:
            words = []
    return {name: "\n".join(lines).strip() for name, lines in paragraphs.items()}


def read_conclusion(words: str) -> Value | None:
    """The conclusion of a paragraph, in the sentence that the prompt asks for; None if it has none, or two that differ."""
    said: set[Value] = {_CONCLUSIONS.get(word.lower().replace("\u2019", "'"), "unsure") for word in _CONCLUSION.findall(words)}
    return said.pop() if len(said) == 1 else None


def describe_unusable(text: str, problem: str) -> str:
    """Why an answer is none: "refused: " and its own words where it plainly declines in a few sentences, else "malformed: " and ``problem``."""
    said = " ".join(drop_thoughts(text).split())
    if len(said) <= LONGEST_REFUSAL and _DECLINES.match(said) and not SEGMENT_NAME.search(said):
        return f"refused: {clean_text(said)[:SHOWN_REFUSAL]}"
    return f"malformed: {problem}"


def _find_objects(written: str) -> tuple[list[dict[str, Any]], str | None]:
    """Every outermost JSON object, and what is wrong with the first text that looks like one after the last that can be parsed."""
    found: list[dict[str, Any]] = []
    problem, at = None, 0
    ends, repairable = _match_braces(written), 2 * LONGEST_ANSWER
    for _ in range(MOST_BRACES):
        at = written.find("{", at)
        if at < 0:
            return found, problem
        try:
            said, at = _DECODER.raw_decode(written, at)
        except MalformedAnswer:
            raise
        except (ValueError, RecursionError) as error:
            if not _LIKE_AN_OBJECT.match(written, at):
                at += 1
                continue
            end = ends.get(at, at)
            repairable -= end - at  # bounds the work: nested braces would otherwise be repaired again and again
            repaired = _repair_object(written[at:end]) if repairable > 0 else None
            if repaired is None:
                problem = problem or clean_text(str(error))
                at += 1
            else:
                found.append(repaired)
                problem, at = None, end
        else:
            found.append(said)
            problem = None
    return found, f"more than {MOST_BRACES} braces"


def _match_braces(written: str) -> dict[int, int]:
    """Maps the position of an opening brace to the position after its closing brace; strings in double quotes are skipped."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for token in _BRACE_OR_STRING.finditer(written):
        if token.group() == "{":
            opened.append(token.start())
        elif token.group() == "}" and opened:
            ends[opened.pop()] = token.end()
    return ends


def _repair_object(written: str) -> dict[str, Any] | None:
    """The object in a text with the usual mistakes; None if there is none."""
    try:
        said = _DECODER.decode(_STRING_OR_SLIP.sub(_repair, written))
    except MalformedAnswer:
        raise
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise MalformedAnswer(f"a key comes twice: {clean_text(', '.join(keys))[:80]}")
    return dict(pairs)


def _repair(found: re.Match[str]) -> str:
    """Rewrites a string in the form of JSON, and removes a superfluous comma."""
    token = found.group()
    if token.startswith("'"):
        return '"' + re.sub(r'(?<!\\)"', r'\\"', token[1:-1].replace("\\'", "'")) + '"'
    return token if token.startswith('"') else ""


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_unique)
