"""study.json and study.jsonl: the segments of a blind study as they were drawn, and what people answered. Neither changes a verdict of the run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rightreasons.common.files import write_text
from rightreasons.errors import ConfigError
from rightreasons.records import Value
from rightreasons.runs.appended import append_lines, now, people_held, read_lines, read_name
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.verdict_lines import read_value

Opinion = Literal["agree", "disagree", "cannot tell"]
OPINIONS: tuple[Opinion, ...] = ("agree", "disagree", "cannot tell")


@dataclass(frozen=True)
class Question:
    """One segment of a study: the LVLM's ``value``, "spurious" or "relevant", and the ``words`` of its critique, "" if it has none."""

    index: int
    segment: int
    label: str
    value: Value
    words: str

    @property
    def place(self) -> tuple[int, int]:
        """The image's number and the segment's, counted from 0."""
        return self.index, self.segment


@dataclass(frozen=True)
class Sample:
    """The segments of a study, frozen when it was drawn by ``seed``: judging again does not change it.

    ``judged`` counts the run's segments by the LVLM's verdict, unsure ones among them, which are not drawn. ``name`` identifies the sample in
    every answer.
    """

    name: str
    seed: int
    critic: str
    simulated: bool
    judged: Mapping[str, int]
    questions: tuple[Question, ...]

    def count(self, value: Value) -> int:
        """How many segments with this verdict of the LVLM are in the sample."""
        return sum(question.value == value for question in self.questions)


@dataclass(frozen=True)
class Reply:
    """What one person said on one segment: blind, and then on the critique's argument (None if that was not asked or not yet answered)."""

    index: int
    segment: int
    by: str
    value: Value
    at: str
    opinion: Opinion | None = None

    @property
    def place(self) -> tuple[int, int]:
        """The image's number and the segment's, counted from 0."""
        return self.index, self.segment


def keep_sample(folder: RunFolder, sample: Sample) -> Sample:
    """Writes study.json unless there is one by now; the sample that is kept."""
    with people_held(folder.path):
        kept = load_sample(folder)
        if kept is None:
            write_text(folder.path / "study.json", json.dumps(asdict(sample), indent=2, ensure_ascii=False) + "\n")
    return kept or sample


def load_sample(folder: RunFolder) -> Sample | None:
    """The sample in study.json; None before one was drawn. Raises ConfigError if the file is none."""
    path = folder.path / "study.json"
    if not path.exists():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return Sample(**said | {"questions": tuple(Question(**question) for question in said["questions"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no sample of a study ({error}): restore it; answers to another sample cannot be used") from error


def add_verdict(folder: RunFolder, sample: Sample, question: Question, value: Value, by: str) -> None:
    """Appends a blind verdict with name and time; it is on the disk when this returns."""
    _append(folder, sample, question, {"value": value, "by": read_name(by)})


def read_opinion(said: str) -> Opinion:
    """One of the three opinions on an argument. Raises ValueError for other words."""
    for opinion in OPINIONS:
        if said == opinion:
            return opinion
    raise ValueError(f"{said!r} is not an opinion on an argument; expected {', '.join(OPINIONS)}")


def add_opinion(folder: RunFolder, sample: Sample, question: Question, opinion: Opinion, by: str) -> None:
    """Appends what a person thinks of the critique's argument, with name and time; it is on the disk when this returns."""
    _append(folder, sample, question, {"opinion": opinion, "by": read_name(by)})


def _append(folder: RunFolder, sample: Sample, question: Question, said: Mapping[str, str]) -> None:
    append_lines(_answers(folder), [{"study": sample.name, "index": question.index, "segment": question.segment, **said, "at": now()}])


def load_replies(folder: RunFolder, sample: Sample) -> list[Reply]:
    """Every reply in the order in which people gave their verdicts; none before anybody did.

    The first answer of a person to a question counts, since whoever has seen the critique is no longer blind. Raises ConfigError naming a line
    that is no answer to this sample.
    """
    return _settle(read_lines(_answers(folder), lambda said: _read(said, sample)))


@dataclass(frozen=True)
class _Line:
    """A line of study.jsonl: a verdict or an opinion."""

    place: tuple[int, int]
    by: str
    at: str
    value: Value | None
    opinion: Opinion | None


def _settle(lines: Iterable[_Line]) -> list[Reply]:
    """One reply for each person and segment. Names that differ in case alone are one person."""
    given: dict[tuple[tuple[int, int], str], Reply] = {}
    spelled: dict[str, str] = {}
    for line in lines:
        by = spelled.setdefault(line.by.casefold(), line.by)
        known = given.get((line.place, by))
        if known is None and line.value is not None:
            given[line.place, by] = Reply(*line.place, by, line.value, line.at)
        elif known is not None and known.opinion is None and line.opinion is not None:
            given[line.place, by] = replace(known, opinion=line.opinion)
    return list(given.values())


def _answers(folder: RunFolder) -> Path:
    return folder.path / "study.jsonl"


def _read(said: dict[str, Any], sample: Sample) -> _Line:
    """A line of study.jsonl. Raises ValueError for one that is no answer to this sample."""
    if said["study"] != sample.name:
        raise ValueError(f"study = {said['study']!r}; expected {sample.name!r}, the sample in study.json")
    place = said["index"], said["segment"]
    if place not in {question.place for question in sample.questions}:
        raise ValueError(f"image {place[0]!r}, segment {place[1]!r} is not in the sample")
    value = read_value(str(said["value"])) if "value" in said else None
    opinion = read_opinion(str(said["opinion"])) if "opinion" in said else None
    if (value is None) == (opinion is None):
        raise ValueError("expected either a value or an opinion")
    return _Line(place, read_name(str(said["by"])), str(said["at"]), value, opinion)
