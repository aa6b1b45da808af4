"""The measures of a blind study (docs/study.md): agreement with the LVLM, kappas, and the LVLM's sensitivity and specificity by the majority."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rightreasons.common.seeds import seeded
from rightreasons.records import Value
from rightreasons.runs.blind import Question, Reply, Sample
from rightreasons.scoring.metrics import verdict_agreement
from rightreasons.scoring.people.agreement import Interval, bootstrap_interval, cohen_kappa, fleiss_kappa, fleiss_parts, measure_sums

# The two verdicts that agree or disagree; unsure does neither.
DECIDED: tuple[Value, ...] = ("spurious", "relevant")
SAME = "all answers are the same, so that chance alone would agree"
TOO_FEW = "no interval: too few images, or no differing answers"


@dataclass(frozen=True)
class Measure:
    """A rate or a kappa. ``value`` has a 95 % ``interval`` by drawing images; ``count`` says on how many answers or segments it rests.

    The value of a rate is projected to all segments that the LVLM judged, since the sample has more spurious ones than the run; ``in_sample`` is
    the rate of the answers as they are. What does not exist is None, and ``why`` says why.
    """

    value: float | None
    interval: Interval | None
    count: int
    in_sample: float | None = None
    in_sample_interval: Interval | None = None
    why: str | None = None


@dataclass(frozen=True)
class Person:
    """How far one person came, and how far this person agrees with the LVLM: rates and kappa."""

    name: str
    answered: int
    unsure: int
    agreement: Measure
    argument: Measure
    kappa: Measure


@dataclass(frozen=True)
class Pair:
    """Cohen's kappa of two people, on the segments on which both decided."""

    first: str
    second: str
    kappa: Measure


@dataclass(frozen=True)
class Majority:
    """The LVLM against the majority of the people on each segment: on how many there is one, and how many are ties, which enter no rate."""

    segments: int
    ties: int
    sensitivity: Measure
    specificity: Measure


@dataclass(frozen=True)
class StudyResult:
    """Everything that a blind study comes to; ``notes`` say in words what a reader has to know."""

    critic: str
    simulated: bool
    drawn: int
    judged: dict[str, int]
    agreement: Measure
    agreement_spurious: Measure
    agreement_argument: Measure
    fleiss: Measure
    majority: Majority
    people: tuple[Person, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]


def measure_study(sample: Sample, replies: Sequence[Reply]) -> StudyResult:
    """The measures of a sample and what people answered so far. Intervals depend on the sample's seed alone."""
    study = _Study(sample, replies)
    people = tuple(study.measure_person(name) for name in study.names)
    pairs = tuple(Pair(*pair, study.pair_kappa(*pair)) for pair in itertools.combinations(study.names, 2))
    majority = study.majority()
    return StudyResult(
        sample.critic,
        sample.simulated,
        len(sample.questions),
        dict(sample.judged),
        study.agreement(replies, DECIDED),
        study.agreement(replies, ("spurious",)),
        study.argument(replies),
        study.fleiss(),
        majority,
        people,
        pairs,
        tuple(study.notes(people, majority)),
    )


class _Study:
    """A sample and its replies, by person and by segment."""

    def __init__(self, sample: Sample, replies: Sequence[Reply]) -> None:
        self.sample, self.replies = sample, replies
        self.asked: dict[tuple[int, int], Question] = {question.place: question for question in sample.questions}
        self.names = sorted({reply.by for reply in replies})
        self.decided: dict[str, dict[tuple[int, int], Value]] = {name: {} for name in self.names}
        for reply in replies:
            if reply.value in DECIDED:
                self.decided[reply.by][reply.place] = reply.value

    def agreement(self, replies: Iterable[Reply], kinds: Sequence[Value]) -> Measure:
        """How often people gave the LVLM's verdict, over the segments to which it gave one of ``kinds``."""
        given = [(reply, self.asked[reply.place]) for reply in replies if reply.value in DECIDED]
        return self._rate([(question, reply.value == question.value) for reply, question in given if question.value in kinds], kinds)

    def argument(self, replies: Iterable[Reply]) -> Measure:
        """How often people agreed with the argument of the critique; who cannot tell enters no rate."""
        given = [(self.asked[reply.place], reply.opinion == "agree") for reply in replies if reply.opinion in ("agree", "disagree")]
        return self._rate(given, DECIDED)

    def measure_person(self, name: str) -> Person:
        """One person's progress and agreement."""
        mine = [reply for reply in self.replies if reply.by == name]
        with_lvlm = self._kappa([(place, self.asked[place].value, value) for place, value in self.decided[name].items()])
        unsure = sum(reply.value == "unsure" for reply in mine)
        return Person(name, len(mine), unsure, self.agreement(mine, DECIDED), self.argument(mine), with_lvlm)

    def pair_kappa(self, first: str, second: str) -> Measure:
        """Cohen's kappa of two people."""
        one, other = self.decided[first], self.decided[second]
        return self._kappa([(place, value, other[place]) for place, value in one.items() if place in other])

    def fleiss(self) -> Measure:
        """Fleiss' kappa of all people, on the segments on which at least two of them decided."""
        if len(self.names) < 2:
            return Measure(None, None, 0, why="a kappa among people needs at least two people")
        counts = self._count_verdicts()
        parts = fleiss_parts(torch.tensor([[said[value] for value in DECIDED] for said in counts.values()], dtype=torch.int64).view(-1, 2))
        rated = int(parts[:, 1].sum())
        if rated == 0:
            return Measure(None, None, 0, why="no segment has the verdicts of two people yet")
        return self._with_interval(parts, list(counts), fleiss_kappa, rated)

    def majority(self) -> Majority:
        """The LVLM against the majority, in the sample (Wilson's intervals) and projected to the run (Begg and Greenes 1983)."""
        sides = {place: said["spurious"] - said["relevant"] for place, said in self._count_verdicts().items()}
        settled = {place: side > 0 for place, side in sides.items() if side}
        kinds: list[Value] = [self.asked[place].value for place in settled]
        found = verdict_agreement(kinds, list(settled.values()))
        parts = self._by_kind([(self.asked[place], spurious) for place, spurious in settled.items()])
        flagged, passed = (float(self.sample.judged.get(kind, 0)) for kind in DECIDED)

        def sensitivity(sums: Tensor) -> Tensor:
            hits, misses = flagged * _share(sums, 0, flagged), passed * _share(sums, 2, passed)
            return hits / (hits + misses)

        def specificity(sums: Tensor) -> Tensor:
            alarms, rests = flagged * (1 - _share(sums, 0, flagged)), passed * (1 - _share(sums, 2, passed))
            return rests / (rests + alarms)

        measured = []
        for measure, rate, interval, truth in (
            (sensitivity, found.spurious_recall, found.spurious_recall_interval, True),
            (specificity, found.core_recall, found.core_recall_interval, False),
        ):
            count = sum(spurious is truth for spurious in settled.values())
            why = f"the majority calls no segment {'spurious' if truth else 'relevant'}" if count == 0 else "one kind of segment has no majority yet"
            told = self._with_interval(parts, list(settled), measure, count, why=why)
            measured.append(Measure(told.value, told.interval, count, rate, interval, told.why))
        return Majority(len(settled), len(sides) - len(settled), *measured)

    def notes(self, people: Sequence[Person], majority: Majority) -> list[str]:
        """What a reader has to know beside the numbers."""
        drawn, told = len(self.sample.questions), []
        if self.sample.simulated:
            told.append("the critic was simulated from ground-truth masks: this says nothing about a vision-language model")
        if not people:
            return [*told, "nobody has answered yet"]
        if len(people) == 1:
            told.append(f"{people[0].name} alone has answered: there is no kappa among people, and the majority is this person")
        late = [f"{person.name} ({person.answered} of {drawn})" for person in people if person.answered < drawn]
        if late:
            told.append(f"not finished: {', '.join(late)}; each had a random part of the sample, which counts")
        unsure = sum(person.unsure for person in people)
        if unsure:
            told.append(f"{unsure} of {len(self.replies)} answers are unsure and enter no rate and no kappa")
        if majority.ties:
            told.append(f"{majority.ties} segments have as many people on one side as on the other, or nobody decided: no majority, and in no rate")
        if self.sample.judged.get("unsure", 0):
            told.append(f"the LVLM was unsure of {self.sample.judged['unsure']} segments, which are not in the sample")
        missing = [kind for kind in DECIDED if self.sample.count(kind) == 0]
        told += [f"the LVLM called no segment {kind}: the rates over those do not exist" for kind in missing]
        silent = sum(not question.words for question in self.sample.questions)
        if silent:
            told.append(f"the critique has no words on {silent} segments of the sample, so that nobody was asked about its argument there")
        return told

    def _count_verdicts(self) -> dict[tuple[int, int], Counter[Value]]:
        """How many people gave each verdict, for every segment on which anybody answered."""
        counts: dict[tuple[int, int], Counter[Value]] = {}
        for reply in self.replies:
            counts.setdefault(reply.place, Counter())[reply.value] += 1
        return counts

    def _by_kind(self, hits: Sequence[tuple[Question, bool]]) -> Tensor:
        """For each answer (hit, 1) in the columns of the LVLM's verdict: spurious first."""
        parts = torch.zeros(len(hits), 2 * len(DECIDED), dtype=torch.float64)
        for row, (question, hit) in enumerate(hits):
            column = 2 * DECIDED.index(question.value)
            parts[row, column], parts[row, column + 1] = float(hit), 1.0
        return parts

    def _rate(self, hits: Sequence[tuple[Question, bool]], kinds: Sequence[Value]) -> Measure:
        """The share of hits, projected to the run's segments of these kinds by how many it has of each."""
        sizes = [float(self.sample.judged.get(kind, 0)) * (kind in kinds) for kind in DECIDED]

        def project(sums: Tensor) -> Tensor:
            shares = [size * _share(sums, 2 * column, size) for column, size in enumerate(sizes)]
            return torch.stack(shares).sum(0) / sum(sizes)

        if not hits:
            return Measure(None, None, 0, why="there is no answer yet that says so" if sum(sizes) else "the LVLM gave no such verdict")
        told = self._with_interval(
            self._by_kind(hits), [question.place for question, _ in hits], project, len(hits), why="no answers yet on one of the LVLM's two verdicts"
        )
        return Measure(told.value, told.interval, len(hits), sum(hit for _, hit in hits) / len(hits), why=told.why)

    def _kappa(self, said: Sequence[tuple[tuple[int, int], Value, Value]]) -> Measure:
        """Cohen's kappa of pairs of verdicts, by segment."""
        if not said:
            return Measure(None, None, 0, why="no segment on which both decided")
        counts = torch.zeros(len(said), 2, 2, dtype=torch.float64)
        for row, (_, one, other) in enumerate(said):
            counts[row, DECIDED.index(one), DECIDED.index(other)] = 1
        return self._with_interval(
            counts.flatten(1), [place for place, _, _ in said], lambda sums: cohen_kappa(sums.unflatten(-1, (2, 2))), len(said)
        )

    def _with_interval(
        self, parts: Tensor, places: Sequence[tuple[int, int]], measure: Callable[[Tensor], Tensor], count: int, why: str = SAME
    ) -> Measure:
        """A measure of sums and its interval; ``why`` says why it does not exist, if it does not."""
        value = measure_sums(parts, measure) if len(parts) else None
        if value is None:
            return Measure(None, None, count, why=why)
        images = torch.tensor([index for index, _ in places])
        interval = bootstrap_interval(parts, images, measure, seeded(self.sample.seed, "study intervals"))
        return Measure(value, interval, count, why=TOO_FEW if interval is None else None)


def _share(sums: Tensor, column: int, size: float) -> Tensor:
    """The share of hits of one kind; 0 for a kind of which the run has no segment, since it then has no weight."""
    return sums[..., column] / sums[..., column + 1] if size else torch.zeros_like(sums[..., column])
