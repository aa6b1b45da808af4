"""How far a model's verdicts can be believed, by the verdicts that people gave on the same segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from rightreasons.records import HUMAN, Verdict

# With fewer segments that both a model and a person decided, the model's own votes say how uncertain it is.
FEWEST = 20


@dataclass(frozen=True)
class Level:
    """The segments to which the votes gave one probability ``p``: how many people decided, and how many of those they called spurious."""

    p: float
    count: int
    spurious: int

    @property
    def share(self) -> float:
        """The share that is spurious, drawn towards ``p`` as by one person's verdict more, so that a single one does not settle it."""
        return (self.spurious + self.p) / (self.count + 1)


@dataclass(frozen=True)
class Calibration:
    """What people said where a model had said something, by the model's probability; and how that pays.

    ``curve`` has points (share of the segments that a person sees, share of right verdicts then), most uncertain segments first. It is about the
    segments that people decided: those who see the uncertain ones first make the model look worse than it is.
    """

    levels: tuple[Level, ...] = ()
    _pairs: tuple[tuple[Verdict, str], ...] = field(default=(), repr=False)

    @cached_property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """What share of the verdicts is right if a person, who is taken to be right, sees the most uncertain segments first."""
        # A model that is unsure has not told; a coin would be right half the time.
        right = [(self._sureness(model), 0.5 if model.answer == "unsure" else float(model.answer == value)) for model, value in self._pairs]
        return _draw_curve(sorted(right, key=lambda pair: pair[0]))

    @cached_property
    def _shares(self) -> dict[float, float]:
        return {level.p: level.share for level in self.levels}

    def _sureness(self, verdict: Verdict) -> float:
        return 0.0 if verdict.contradicted else abs(2 * self._shares[float(verdict.p or 0.0)] - 1)

    @cached_property
    def count(self) -> int:
        """How many segments it rests on."""
        return sum(level.count for level in self.levels)

    def probability(self, verdict: Verdict) -> float:
        """The probability that a segment is spurious, calibrated where at least ``FEWEST`` segments allow it."""
        p = 0.5 if verdict.p is None else verdict.p
        return self._shares.get(p, p) if self.count >= FEWEST else p

    def uncertainty(self, verdict: Verdict) -> float:
        """From 0, certain, to 1: as uncertain as a coin, or contradicted by like segments."""
        return 1.0 if verdict.contradicted else 1 - abs(2 * self.probability(verdict) - 1)


def calibrate(said: Mapping[tuple[int, int], Verdict], settled: Mapping[tuple[int, int], Verdict]) -> Calibration:
    """Compares a model's votes with the verdicts of people, by image and segment. Segments that people left unsure tell nothing, nor does no vote."""
    pairs = [
        (said[place], verdict.value)
        for place, verdict in settled.items()
        if verdict.source == HUMAN and verdict.value != "unsure" and place in said and said[place].is_vote and said[place].p is not None
    ]
    counts: dict[float, list[int]] = {}
    for model, value in pairs:
        level = counts.setdefault(float(model.p or 0.0), [0, 0])
        level[0] += 1
        level[1] += value == "spurious"
    levels = tuple(Level(p, count, spurious) for p, (count, spurious) in sorted(counts.items()))
    return Calibration(levels, tuple(pairs))


def _draw_curve(right: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """What share of the verdicts is right if a person, who is taken to be right, sees the first k segments, for at most 101 values of k."""
    if not right:
        return ()
    count, left, points = len(right), sum(value for _, value in right), []
    for k in range(count + 1):
        points.append((k / count, (k + left) / count))
        left -= right[k][1] if k < count else 0.0
    step = max(1, count // 100)
    return tuple(points[::step] + ([points[-1]] if (len(points) - 1) % step else []))
