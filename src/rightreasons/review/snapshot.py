"""The verdicts of a run at one moment. What was read is kept: a line that is added costs no more than itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rightreasons.critic.calibration import Calibration, calibrate
from rightreasons.critic.votes import Waiting, find_waiting
from rightreasons.records import HUMAN, Value, Verdict, find_disputes, find_votes, settle_verdicts
from rightreasons.runs.verdict_lines import drop_withdrawn, parse_lines

# An image's number and a segment's, counted from 0.
Place = tuple[int, int]


@dataclass(frozen=True)
class Item:
    """One segment as the queue lists it. ``said`` is a model's vote if there is one, ``verdict`` what counts; ``people`` have decided on it."""

    index: int
    segment: int
    label: str
    share: float
    verdict: Verdict
    said: Verdict | None
    waiting: Waiting | None
    people: tuple[str, ...]

    @property
    def name(self) -> str:
        """S1 for segment 0."""
        return f"S{self.segment + 1}"


@dataclass(frozen=True)
class Snapshot:
    """All verdicts at one moment: every line of the file, by place too, and the segment of each place."""

    history: tuple[Verdict, ...]
    lines: Mapping[Place, tuple[Verdict, ...]]
    by_place: Mapping[Place, Item]
    disputes: Mapping[Place, list[Verdict]]

    @cached_property
    def calibration(self) -> Calibration:
        """How far the model can be believed, by what people said."""
        decided = {place: item for place, item in self.by_place.items() if item.verdict.source == HUMAN and item.said is not None}
        said = {place: item.said for place, item in decided.items() if item.said is not None}
        return calibrate(said, {place: item.verdict for place, item in decided.items()})

    @cached_property
    def items(self) -> list[Item]:
        """All segments: first what waits, then what no person decided; and of these the most uncertain and important first."""
        uncertain: dict[tuple[float | None, Value | None] | None, float] = {}

        def weight(item: Item) -> float:
            kind = None if item.said is None else (item.said.p, item.said.contradicted)
            if kind not in uncertain:
                uncertain[kind] = 1.0 if item.said is None else self.calibration.uncertainty(item.said)
            return -item.share * uncertain[kind]

        keyed = [
            (item.waiting is None, item.verdict.source == HUMAN, weight(item), item.index, item.segment, item) for item in self.by_place.values()
        ]
        return [key[-1] for key in sorted(keyed)]

    @cached_property
    def standing(self) -> list[Verdict]:
        """The verdicts that nobody took back, in the order in which they were given."""
        return drop_withdrawn(self.history)

    def items_of(self, index: int) -> list[Item]:
        """The segments of an image, in their order."""
        found, segment = [], 0
        while (index, segment) in self.by_place:
            found.append(self.by_place[index, segment])
            segment += 1
        return found

    @cached_property
    def reviewers(self) -> dict[str, int]:
        """How many segments each person has a standing verdict on, by name."""
        counts: dict[str, int] = {}
        for item in self.by_place.values():
            for name in item.people:
                counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items()))

    @cached_property
    def waiting(self) -> int:
        """How many segments wait for a person."""
        return sum(item.waiting is not None for item in self.by_place.values())

    @cached_property
    def spurious(self) -> int:
        """How many segments count as spurious."""
        return sum(item.verdict.value == "spurious" for item in self.by_place.values())

    @cached_property
    def decided(self) -> int:
        """How many segments a person has decided on."""
        return sum(item.verdict.source == HUMAN for item in self.by_place.values())

    @property
    def all_decided(self) -> bool:
        """Whether a person has decided on every segment."""
        return 0 < len(self.by_place) == self.decided


class VerdictLog:
    """verdicts.jsonl, read on where it was read before; anew where a command has written it anew. One thread at a time."""

    def __init__(self, path: Path, counts: Mapping[int, int], describe: Callable[[Place], tuple[str, float]]) -> None:
        self._path, self._counts, self._describe = path, counts, describe
        self._file, self._end, self._number = 0, 0, 0
        self._snapshot: Snapshot | None = None

    def read(self) -> Snapshot:
        """The verdicts as they are on the disk at this moment. Raises ConfigError naming a line that is none."""
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file or status.st_size < self._end:
                self._file, self._end, self._number, self._snapshot = status.st_ino, 0, 0, None
            file.seek(self._end)
            added = file.read()
        # A line that another process is still writing is read the next time; a file that an editor left without a last line end is read whole.
        whole = added[: added.rfind(b"\n") + 1] if self._snapshot is not None else added
        if whole or self._snapshot is None:
            news = parse_lines(whole.decode("utf-8"), self._path, self._counts, first=self._number + 1)
            self._snapshot = self._add(self._snapshot or Snapshot((), {}, {}, {}), news)
            self._end, self._number = self._end + len(whole), self._number + whole.count(b"\n")
        return self._snapshot

    def _add(self, before: Snapshot, news: list[Verdict]) -> Snapshot:
        """The snapshot with some more lines; only the places that they are about are looked at anew."""
        lines, by_place, disputes = dict(before.lines), dict(before.by_place), dict(before.disputes)
        touched: dict[Place, list[Verdict]] = {}
        for verdict in news:
            touched.setdefault((verdict.index, verdict.segment), []).append(verdict)
        for place, more in touched.items():
            lines[place] = (*lines.get(place, ()), *more)
            standing = drop_withdrawn(lines[place])
            disputes.pop(place, None)
            disputes.update(find_disputes(standing))
            settled = settle_verdicts(standing).get(place)
            if settled is not None:
                by_place[place] = self._item(place, settled, standing)
            else:
                by_place.pop(place, None)
        return Snapshot((*before.history, *news), lines, by_place, disputes)

    def _item(self, place: Place, settled: Verdict, standing: list[Verdict]) -> Item:
        people = dict.fromkeys(verdict.by or "unnamed" for verdict in standing if verdict.source == HUMAN)
        label, share = self._describe(place)
        return Item(*place, label, share, settled, find_votes(standing).get(place), find_waiting(settled, share), tuple(people))
