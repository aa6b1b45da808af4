"""Whether a classifier is fit for use as far as shortcuts go, class by class, by what is measured without any label but the class.

The rule is in docs/method.md (section 8), and its bounds are here and nowhere else. Every measure comes with an interval, and what an interval
leaves open is said to be open: few images give "cannot tell", and never "fit for use".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rightreasons.records import ClassScore
from rightreasons.scoring.metrics import Interval, wilson_interval

Verdict = Literal["fit for use", "not fit", "cannot tell"]


@dataclass(frozen=True)
class Bounds:
    """Up to where a class is fit for use.

    ``most_changed``: the share of the answers on its held-out images that change when what was judged spurious is pasted in.
    ``most_evidence``: the mean share of the evidence in its inspected images on what was judged spurious.
    ``least_judged``: the share of the segments of its inspected images that have a verdict. ``fewest_inspected``: how many such images there are.
    """

    most_changed: float = 0.10
    most_evidence: float = 0.10
    least_judged: float = 0.8
    fewest_inspected: int = 5


BOUNDS = Bounds()


@dataclass(frozen=True)
class Fitness:
    """A verdict and its reasons, as sentences; ``name`` is the class, or "" for the classifier as a whole."""

    name: str
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Judged:
    """How many of the segments of a class's inspected images there are, and how many are judged."""

    segments: int
    judged: int


def judge_class(name: str, score: ClassScore, judged: Judged, classes: int, *, found: bool, doubts: Sequence[str] = ()) -> Fitness:
    """The verdict on one of ``classes`` classes. ``found`` says whether anything was judged spurious; ``doubts`` stand against any "fit for use".

    A measure beyond its bound makes a class not fit; a measure that may lie on either side, or is missing, makes it "cannot tell".
    """
    bad, open_ = [], [*doubts]
    for side, words in (_weigh_accuracy(score, classes), _weigh_changes(score, found=found), _weigh_evidence(score), _weigh_coverage(score, judged)):
        (bad if side == "bad" else open_ if side == "open" else []).append(words)
    if bad:
        return Fitness(name, "not fit", tuple(bad))
    if open_:
        return Fitness(name, "cannot tell", tuple(open_))
    return Fitness(name, "fit for use", (_praise(score, found=found),))


def judge_whole(classes: Sequence[Fitness]) -> Fitness:
    """The verdict on the classifier: the worst of its classes."""
    for verdict in ("not fit", "cannot tell"):
        named = [item for item in classes if item.verdict == verdict]
        if named:
            alike = len({item.reasons for item in named}) == 1
            which = "every class" if len(named) == len(classes) else _enumerate([item.name for item in named])
            return Fitness("", verdict, (f"{which}: {named[0].reasons[0]}" if alike or len(named) == 1 else f"{which}, for the reasons below",))
    return Fitness("", "fit for use", ("every class keeps within the bounds",))


def describe_bounds() -> dict[str, Any]:
    """The bounds, for metrics.json."""
    return asdict(BOUNDS)


def interval_of(part: int, whole: int) -> Interval | None:
    """The 95 % interval of a rate; None if nothing was counted."""
    return wilson_interval(part, whole) if whole else None


_Side = Literal["good", "bad", "open"]


def _weigh_accuracy(score: ClassScore, classes: int) -> tuple[_Side, str]:
    ends, chance = interval_of(score.right, score.count), 1 / classes
    if ends is None:
        return "open", "no image of the class was scored"
    told = f"{score.right} of {score.count} scored images are right, and guessing gets {chance:.0%}"
    if ends[1] <= chance:
        return "bad", f"it is no better than guessing: {told}"
    return ("good", told) if ends[0] > chance else ("open", f"it may be no better than guessing: {told}")


def _weigh_changes(score: ClassScore, *, found: bool) -> tuple[_Side, str]:
    if not found:
        return "good", "nothing was judged spurious"
    ends, bound = interval_of(score.changed, score.pasted), BOUNDS.most_changed
    if ends is None:  # the shortcut is its own class's alone, or it has no held-out image; the evidence and the accuracy decide
        return "good", ""
    told = f"pasting the shortcut into {score.pasted} held-out images changes {score.changed} answers ({_range(ends)})"
    if ends[0] > bound:
        return "bad", f"{told}, and at most {bound:.0%} may change"
    return ("good", told) if ends[1] <= bound else ("open", f"{told}; the bound is {bound:.0%}")


def _weigh_evidence(score: ClassScore) -> tuple[_Side, str]:
    share, ends, bound = score.evidence, score.evidence_interval, BOUNDS.most_evidence
    if share is None or ends is None:
        return "open", "the evidence in its images was not measured"
    told = f"{share:.0%} of the evidence in its {score.inspected} inspected images is spurious ({_range(ends)})"
    if ends[0] > bound:
        return "bad", f"{told}, and at most {bound:.0%} may be"
    return ("good", told) if ends[1] <= bound else ("open", f"{told}; the bound is {bound:.0%}")


def _weigh_coverage(score: ClassScore, judged: Judged) -> tuple[_Side, str]:
    if score.inspected < BOUNDS.fewest_inspected:
        return "open", f"{score.inspected} of its images were inspected; at least {BOUNDS.fewest_inspected} are needed"
    if judged.judged < BOUNDS.least_judged * judged.segments or not judged.segments:
        return "open", f"{judged.judged} of the {judged.segments} segments in its images are judged; at least {BOUNDS.least_judged:.0%} are needed"
    return "good", ""


def _praise(score: ClassScore, *, found: bool) -> str:
    if not found:
        return f"nothing in its {score.inspected} inspected images, or in those of other classes, was judged spurious"
    changes = f"pasting the shortcut into {score.pasted} held-out images changes {score.changed} answers, and " if score.pasted else ""
    return f"{changes}{score.evidence or 0:.0%} of the evidence in {score.inspected} inspected images is spurious"


def _range(ends: Interval) -> str:
    return f"{ends[0]:.0%} to {ends[1]:.0%}"


def _enumerate(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} others" if len(names) > most else shown


def explain_doubts(outcome: str, alignment: Mapping[str, Any] | None, problems: Sequence[str], failed_controls: Sequence[str]) -> tuple[str, ...]:
    """What stands against "fit for use" in every class, whatever is measured."""
    doubts = []
    if outcome in ("not judged yet", "could not be examined"):
        doubts.append("too little is judged" if outcome == "not judged yet" else "it could not be examined")
    if problems:
        doubts.append("the classifier's answers do not fit the data; see the notice above")
    if failed_controls:
        doubts.append(f"the critic fails the control {_enumerate(list(failed_controls))}, so that its verdicts are not to be trusted unseen")
    if alignment is not None and alignment["outcome"] == "accepted":
        doubts.append(f"a person accepted this repair although the harm guard had rejected it: {alignment['reason']}")
    return tuple(doubts)
