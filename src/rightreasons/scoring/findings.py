"""What the page says beyond the scores: fitness by class, intervals, and how far the critic's votes can be believed. It needs no ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rightreasons.critic.calibration import FEWEST, calibrate
from rightreasons.records import Scores, find_votes, settle_verdicts
from rightreasons.run import Run
from rightreasons.scoring.fitness import Fitness, Judged, describe_bounds, explain_doubts, interval_of, judge_class, judge_whole
from rightreasons.scoring.metrics import Interval


def judge_fitness(
    run: Run, before: Scores, after: Scores | None, *, outcome: str, problems: list[str], alignment: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``fitness`` of metrics.json, of the repaired model if there is one; each class also has the verdict ``before`` the repair."""
    failed = [control.name for control in run.controls if control.passed is False]
    judged, names = _count_judged(run), [item.name for item in run.descriptions]
    found = run.found

    def judge(scores: Scores, doubts: tuple[str, ...]) -> list[Fitness]:
        return [judge_class(name, scores.classes[name], judged[label], len(names), found=found, doubts=doubts) for label, name in enumerate(names)]

    old = judge(before, explain_doubts(outcome, None, problems, failed))
    told = old if after is None else judge(after, explain_doubts(outcome, alignment, problems, failed))
    whole = judge_whole(told)
    return {
        "verdict": whole.verdict,
        "reasons": list(whole.reasons),
        "model": "before" if after is None else "after",
        "classes": {
            new.name: {"verdict": new.verdict, "reasons": list(new.reasons), "before": item.verdict} for new, item in zip(told, old, strict=True)
        },
        "bounds": describe_bounds(),
    }


def _count_judged(run: Run) -> list[Judged]:
    """By class: the segments of its inspected images, and those whose verdict is not unsure."""
    label_of = dict(zip(run.selection.indices.tolist(), run.selection.labels.tolist(), strict=True))
    segments, judged = ([0] * len(run.descriptions) for _ in range(2))
    for row, label in enumerate(run.selection.labels.tolist()):
        segments[label] += run.segmentation.count(row)
    for (index, _), verdict in settle_verdicts(run.verdicts).items():
        judged[label_of[index]] += verdict.value != "unsure"
    return [Judged(*counts) for counts in zip(segments, judged, strict=True)]


def find_intervals(scores: Scores) -> dict[str, Interval]:
    """95 % intervals of the scores that are rates of counted images, by their names; over whole objects where ``scores`` has those."""
    classes = scores.classes.values()
    told = {
        "accuracy": interval_of(sum(item.right for item in classes), sum(item.count for item in classes)),
        "swap_flip_rate": interval_of(sum(item.changed for item in classes), sum(item.pasted for item in classes)),
        "spurious_share": scores.spurious_share_interval,
    }
    if scores.groups:
        worst = min(scores.groups.values(), key=lambda group: group.accuracy)
        told["worst_group_accuracy"] = interval_of(round(worst.accuracy * worst.count), worst.count)
    known = {name: ends for name, ends in told.items() if ends is not None and getattr(scores, name) is not None}
    return {**known, **{name: ends for name, ends in scores.intervals.items() if getattr(scores, name, None) is not None}}


def tell_calibration(run: Run) -> dict[str, Any]:
    """``calibration`` of metrics.json: what people said where the critic's votes had said something, and how that pays."""
    found = calibrate(find_votes(run.verdicts), settle_verdicts(run.verdicts))
    return {
        "count": found.count,
        "fewest": FEWEST,
        "levels": [asdict(level) for level in found.levels],
        "curve": [list(point) for point in found.curve],
    }
