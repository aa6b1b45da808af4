"""verdicts.jsonl: reads and checks every line, and adds a person's verdicts so that none is lost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rightreasons.errors import ConfigError
from rightreasons.records import HUMAN, VALUES, Value, Verdict
from rightreasons.runs.appended import append_lines

_FIELDS = {field.name for field in fields(Verdict)}
# So many numbers of images are named in full.
MOST_NAMED = 20
_NEEDED = ("index", "segment", "value", "source")


def read_verdicts(path: Path, counts: Mapping[int, int] | None) -> list[Verdict]:
    """The verdicts that stand, in the order of the file: those that nobody took back.

    ``counts`` has the number of segments of each inspected image, if that is known. Raises ConfigError naming a line that is not a verdict on a
    segment of this run.
    """
    return drop_withdrawn(read_history(path, counts))


def read_history(path: Path, counts: Mapping[int, int] | None) -> list[Verdict]:
    """Every line in the order of the file, verdicts that were taken back and the lines that took them back among them."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 ({error}): save it in that encoding") from error
    return parse_lines(text, path, counts)


def parse_lines(text: str, path: Path, counts: Mapping[int, int] | None, first: int = 1) -> list[Verdict]:
    """The verdicts in some lines of the file at ``path``, whose numbers start at ``first``."""
    verdicts = []
    for number, line in enumerate(text.split("\n"), start=first):
        if line.strip():
            try:
                verdicts.append(_read_line(line, counts))
            except ValueError as error:
                raise ConfigError(
                    f"{path}, line {number}: {error}. Correct or delete that line; `rightreasons verdict {path.parent} IMAGE SEGMENT VALUE --by "
                    f"NAME` writes a valid one"
                ) from error
    return verdicts


def drop_withdrawn(history: Iterable[Verdict]) -> list[Verdict]:
    """The verdicts that stand. A line that withdraws takes back the last verdict of the same person on the same segment that still stands."""
    standing: dict[int, Verdict] = {}
    given: dict[tuple[int, int, str | None], list[int]] = {}
    for number, verdict in enumerate(history):
        mine = given.setdefault((verdict.index, verdict.segment, verdict.by), [])
        if not verdict.withdraws:
            standing[number] = verdict
            if verdict.source == HUMAN:
                mine.append(number)
        elif mine:
            del standing[mine.pop()]
    return list(standing.values())


def append_verdicts(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Appends verdicts in one write, and waits until they are on the disk."""
    append_lines(path, [write_line(verdict) for verdict in verdicts])


def write_line(verdict: Verdict) -> dict[str, Any]:
    """A verdict as its line has it; a line says that it withdraws, where it came from, of a close-up, or what contradicts it, only if that is so."""
    line = asdict(verdict)
    if not verdict.withdraws:
        del line["withdraws"]
    for key in ("origin", "close_up", "contradicted"):
        if line[key] is None:
            del line[key]
    return line


def check_segment(index: int, segment: int, counts: Mapping[int, int]) -> None:
    """Raises ValueError unless the run has segment ``segment``, counted from 0, of image ``index``."""
    if index not in counts:
        few = len(counts) <= MOST_NAMED
        named = sorted(counts) if few else sorted(counts, key=lambda known: (abs(known - index), known))[:5]
        they = f"{'they are' if few else 'numbers near it are'} {', '.join(map(str, named))}"
        raise ValueError(f"image {index} is not one of the {len(counts)} inspected images; {they}")
    if not 0 <= segment < counts[index]:
        has = f"the segments S1 to S{counts[index]}" if counts[index] > 1 else "the segment S1 alone" if counts[index] else "no segments"
        raise ValueError(f"image {index} has no S{segment + 1} (segment {segment}); it has {has}")


def read_value(said: str) -> Value:
    """One of the three verdicts, in any case. Raises ValueError for another word."""
    plain = said.strip().lower()
    for value in VALUES:
        if plain == value:
            return value
    raise ValueError(f"{said!r} is not a verdict; expected {', '.join(VALUES)}")


def read_segment(said: str) -> int:
    """The number, counted from 0, of a segment that is shown as S1, S2, ...: S1 is 0. Raises ValueError for another form."""
    plain = said.strip().upper()
    if not (plain[:1] == "S" and plain[1:].isascii() and plain[1:].isdigit() and int(plain[1:])):
        raise ValueError(f"{said!r} is not a segment; expected S1, S2, ... as in the report")
    return int(plain[1:]) - 1


def _read_line(line: str, counts: Mapping[int, int] | None) -> Verdict:
    """The verdict in a line. Raises ValueError saying what is wrong with it."""
    try:
        said: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(said, dict):
        raise ValueError(f"a JSON {type(said).__name__}; expected an object")
    missing, unknown = [key for key in _NEEDED if key not in said], [str(key)[:40] for key in said if key not in _FIELDS]
    if missing or unknown:
        what = f"no {', '.join(map(repr, missing))}" if missing else f"the unknown key {unknown[0]!r}"
        raise ValueError(f"{what}; expected {', '.join(_NEEDED)}, and by and at if a person is named")
    for key in ("index", "segment"):
        if type(said[key]) is not int or said[key] < 0:
            form = "the image's number" if key == "index" else "a number from 0, where 0 is S1"
            raise ValueError(f"{key} = {said[key]!r}; expected {form}")
    if said["value"] not in VALUES:
        raise ValueError(f"value = {said['value']!r}; expected {', '.join(VALUES)}")
    _check_words(said)
    if counts is not None:
        check_segment(said["index"], said["segment"], counts)
    return Verdict(**said)


def _check_words(said: Mapping[str, Any]) -> None:
    source = said["source"]
    if not isinstance(source, str) or not source.strip() or (source != HUMAN and source.strip().lower() == HUMAN):
        raise ValueError(f'source = {source!r}; expected "{HUMAN}" for a person, or the name of a model')
    for key in ("problem", "doubt", "by", "at", "origin", "close_up"):
        if not isinstance(said.get(key), str | None):
            raise ValueError(f"{key} = {said[key]!r}; expected text, or null")
    if said.get("contradicted") not in (None, *VALUES):
        raise ValueError(f"contradicted = {said['contradicted']!r}; expected one of {', '.join(VALUES)}, or null")
    if not isinstance(said.get("withdraws", False), bool) or (said.get("withdraws") and source != HUMAN):
        raise ValueError(f'withdraws = {said["withdraws"]!r} by {source!r}; expected true or false, and true only where the source is "{HUMAN}"')
    p = said.get("p")
    if p is not None and (isinstance(p, bool) or not isinstance(p, int | float) or not math.isfinite(p) or not 0 <= p <= 1):
        raise ValueError(f"p = {p!r}; expected a number from 0 to 1, or null")
