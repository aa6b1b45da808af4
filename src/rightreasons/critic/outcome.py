"""The outcome of a run, in one of four phrases, and its reason: how much was judged, and how much the shortcut changes the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rightreasons.records import Segmentation, Verdict, settle_verdicts

RunOutcome = Literal["shortcut found", "no shortcut found", "not judged yet", "could not be examined"]

# A shortcut changes at least this share of the answers when it is pasted into images of other classes.
SMALLEST_EFFECT = 0.01


@dataclass(frozen=True)
class Coverage:
    """How much of the inspected images was judged, and how: counts of images and of segments; ``drawn_images`` have pixels that a person painted."""

    images: int
    examined: int
    segments: int
    judged: int
    spurious: int
    spurious_images: int
    failures: tuple[tuple[str, int], ...] = ()
    drawn_images: int = 0

    @property
    def mostly_judged(self) -> bool:
        """Whether there are segments and at least half of them are judged."""
        return 0 < self.segments <= 2 * self.judged


def count_coverage(segmentation: Segmentation, verdicts: Iterable[Verdict]) -> Coverage:
    """The coverage of a run. A segment whose verdict is unsure counts as not judged."""
    settled = settle_verdicts(verdicts)
    spurious = [place for place, verdict in settled.items() if verdict.value == "spurious"]
    failures = Counter(outcome for outcome in segmentation.outcomes if outcome != "segmented")
    return Coverage(
        images=len(segmentation.outcomes),
        examined=segmentation.outcomes.count("segmented"),
        segments=int((segmentation.shares > 0).sum()),
        judged=sum(verdict.value != "unsure" for verdict in settled.values()),
        spurious=len(spurious),
        spurious_images=len({index for index, _ in spurious}),
        failures=tuple(sorted(failures.items())),
    )


def decide_outcome(coverage: Coverage, flip_rate: float | None, chance: str | None = None) -> RunOutcome:
    """A shortcut is found if something was judged spurious and pasting it changes answers. "No shortcut found" needs half of the segments judged.

    ``flip_rate`` is None if pasting could not be tried; then the verdicts alone decide. ``chance`` is a sentence if the classifier is no better
    than guessing: then the verdicts alone decide nothing, and "no shortcut found" is never said; a measured effect still counts.
    """
    if coverage.segments == 0 and not coverage.drawn_images:
        return "could not be examined"
    if (coverage.spurious or coverage.drawn_images) and (chance is None if flip_rate is None else flip_rate >= SMALLEST_EFFECT):
        return "shortcut found"
    if not coverage.mostly_judged:
        return "not judged yet"
    return "no shortcut found" if chance is None else "could not be examined"


def explain_outcome(coverage: Coverage, flip_rate: float | None, chance: str | None = None) -> str:
    """The reason for the outcome, in a few sentences."""
    told = _explain_verdicts(coverage, flip_rate, trusted=chance is None)
    if chance is None or coverage.segments == 0:
        return told
    if decide_outcome(coverage, flip_rate, chance) == "shortcut found":
        return f"{told} But {chance}: find out why before this is repaired."
    return f"{chance[0].upper()}{chance[1:]}. What such a classifier relies on says nothing about the classes. {told}"


def _explain_verdicts(coverage: Coverage, flip_rate: float | None, *, trusted: bool) -> str:
    some = coverage
    if some.segments == 0 and not some.drawn_images:
        reasons = ", ".join(f"{name}: {count}" for name, count in some.failures)
        return f"None of the {some.images} inspected images has a heatmap that could be cut into segments ({reasons})."
    judged = f"{some.judged} of {some.segments} segments on {some.examined} of {some.images} inspected images are judged"
    if not some.spurious and not some.drawn_images:
        return f"{judged}; none of them is spurious."
    images = f"{some.spurious_images} image{'s' if some.spurious_images > 1 else ''}"
    spurious = f"{judged}; {some.spurious}, on {images}, {'are' if some.spurious > 1 else 'is'} spurious"
    if some.drawn_images:
        painted = f"people painted spurious pixels on {some.drawn_images} of the images"
        spurious = f"{spurious if some.spurious else f'{judged}; none of them is spurious'}; {painted}"
    if flip_rate is None:
        return f"{spurious}. Their effect on the answers could not be measured: no held-out image is of another class than theirs."
    rate = f"{flip_rate:.1%}" if flip_rate else "none"
    told = "" if flip_rate >= SMALLEST_EFFECT or not trusted else " That is no effect: the classifier sees them but does not decide by them."
    return f"{spurious}. Pasting them into held-out images of another class changes {rate} of the answers.{told}"
