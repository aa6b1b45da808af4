"""Whether checkpoints keep to a budget: one finding for each bound, and what scripts read of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from rightreasons.common.progress import Reporter
from rightreasons.errors import ConfigError
from rightreasons.pipeline.gate.bounds import MEASURES, Budget, Measure
from rightreasons.pipeline.gate.measure import Measured, Number, Yardstick, measure_checkpoint
from rightreasons.scoring.metrics import Interval

Status = Literal["within", "past", "not measured"]
ALL = "all images"


@dataclass(frozen=True)
class Finding:
    """One number of one checkpoint beside its bound; ``scope`` is a class, or None for all images together."""

    checkpoint: str
    measure: str
    scope: str | None
    value: float | None
    bound: float
    count: int
    interval: Interval | None
    status: Status

    @property
    def name(self) -> str:
        """What is bounded, in words."""
        return f"{MEASURES[self.measure].words}, {ALL if self.scope is None else f'class {self.scope}'}"

    @property
    def message(self) -> str:
        """The finding as a sentence."""
        limit = f"at {'most' if MEASURES[self.measure].ceiling else 'least'} {self.bound:g}"
        if self.value is None:
            return f"{self.checkpoint}: {self.name} could not be measured, {limit} was asked for"
        spread = "" if self.interval is None else f", 95 % interval {self.interval[0]:.4f} to {self.interval[1]:.4f}"
        return f"{self.checkpoint}: {self.name} is {self.value:.4f} over {self.count} images{spread}; {limit} was asked for"


@dataclass(frozen=True)
class Report:
    """A check: what was measured of each checkpoint, the findings in the same order, and how long each took in seconds."""

    yardstick: Yardstick
    measured: Sequence[Measured]
    findings: Sequence[Sequence[Finding]]
    seconds: Sequence[float]

    @property
    def past(self) -> list[Finding]:
        """The findings that are past their bound."""
        return [finding for findings in self.findings for finding in findings if finding.status == "past"]


def check_models(models: Sequence[tuple[str, nn.Module]], budget: Budget, yardstick: Yardstick, reporter: Reporter) -> Report:
    """Measures each named model and compares it with the budget. Raises ConfigError if a bound on all images cannot be measured."""
    measured, findings, seconds = [], [], []
    for name, model in models:
        before = sum(reporter.seconds.values())
        with reporter.stage(f"check {name}"):
            numbers = measure_checkpoint(model, name, yardstick)
        found = judge_numbers(numbers, budget, yardstick.names)
        if yardstick.donors is not None:
            _refuse_unmeasured(found)
        measured.append(numbers)
        findings.append(found)
        seconds.append(sum(reporter.seconds.values()) - before)
    return Report(yardstick, measured, findings, seconds)


def judge_numbers(measured: Measured, budget: Budget, names: Sequence[str]) -> list[Finding]:
    """A finding for each bound: those on all images first, then class by class."""
    findings = []
    for scope in (None, *names):
        for key, measure in MEASURES.items():
            bound, number = budget.bound(measure, scope), measured.numbers[key][scope]
            if bound is not None:
                status = _judge(measure, number, bound)
                findings.append(Finding(measured.checkpoint, key, scope, number.value, bound, number.count, number.interval, status))
    return findings


def _judge(measure: Measure, number: Number, bound: float) -> Status:
    if number.value is None:
        return "not measured"
    return "past" if measure.is_past(number.value, bound) else "within"


def _refuse_unmeasured(findings: Sequence[Finding]) -> None:
    """A bound that nobody could measure is not kept, and a gate that passed for it would say that it is."""
    for finding in findings:
        if finding.scope is None and finding.status == "not measured":
            raise ConfigError(
                f"{finding.message}, since no held-out image is of another class than the images with what was judged spurious. Leave that bound "
                "out, or add held-out images of other classes"
            )


def describe_report(report: Report) -> dict[str, Any]:
    """The check as JSON has it."""
    yardstick = report.yardstick
    return {
        "passed": not report.past,
        "split": yardstick.split,
        "images": len(yardstick.hosts),
        "spurious_share_of": None if yardstick.explained is None else yardstick.explained.told,
        "checkpoints": [
            {
                "checkpoint": measured.checkpoint,
                "weights": measured.weights,
                "all": {key: asdict(numbers[None]) for key, numbers in measured.numbers.items()},
                "classes": {name: {key: asdict(numbers[name]) for key, numbers in measured.numbers.items()} for name in yardstick.names},
                "findings": [{**asdict(finding), "message": finding.message} for finding in findings],
            }
            for measured, findings in zip(report.measured, report.findings, strict=True)
        ],
    }
