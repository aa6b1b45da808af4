"""Every verdict that a person gave, traced: who, when, what it overruled, and whether it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rightreasons.records import HUMAN, Verdict, settle_verdicts
from rightreasons.report.facts import shorten
from rightreasons.runs.verdict_lines import drop_withdrawn


@dataclass(frozen=True)
class Traced:
    """A person's verdict on a segment: what counted before it, and whether it ``counts``, was ``taken back`` or ``outvoted`` by a later one."""

    index: int
    segment: int
    value: str
    by: str
    at: str
    before: str
    state: str


@dataclass(frozen=True)
class Reviewer:
    """How many segments a person decided, how many of the verdicts that counted before were other ones, and when the last was given."""

    name: str
    segments: int
    overruled: int
    last: str


def trace_verdicts(history: Sequence[Verdict]) -> list[Traced]:
    """Every line of a person's, in the order of time, from every line that was ever written."""
    counting = {id(verdict) for verdict in settle_verdicts(drop_withdrawn(history)).values()}
    standing = {id(verdict) for verdict in drop_withdrawn(history)}
    said: dict[tuple[int, int], list[Verdict]] = {}
    traced = []
    for verdict in history:
        place = (verdict.index, verdict.segment)
        if verdict.source == HUMAN and not verdict.withdraws:
            earlier = settle_verdicts(drop_withdrawn(said.get(place, []))).get(place)
            state = "counts" if id(verdict) in counting else "a later verdict counts" if id(verdict) in standing else "taken back"
            traced.append(Traced(*place, verdict.value, verdict.by or "a person", verdict.at or "", _tell(earlier), state))
        said.setdefault(place, []).append(verdict)
    return traced


def list_reviewers(traced: Sequence[Traced]) -> list[Reviewer]:
    """Who decided, those who decided most first. What was taken back is left out."""
    told = []
    for name in dict.fromkeys(one.by for one in traced):
        own = [one for one in traced if one.by == name and one.state != "taken back"]
        if own:
            overruled = sum(one.before.split(" ")[0] not in (one.value, "nothing") for one in own)
            told.append(Reviewer(name, len({(one.index, one.segment) for one in own}), overruled, max(one.at for one in own)))
    return sorted(told, key=lambda reviewer: (-reviewer.segments, reviewer.name))


def _tell(verdict: Verdict | None) -> str:
    if verdict is None or verdict.problem is not None:  # nobody's verdict: there was no answer, or none that could be read
        return "nothing"
    return f"{verdict.value} by {verdict.by or 'a person'}" if verdict.source == HUMAN else f"{verdict.value} by {shorten(verdict.source)}"
