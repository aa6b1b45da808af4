"""Judges whether a repair worked, by how much it lowered the share of answers that the shortcut changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rightreasons.config import AlignConfig
from rightreasons.critic.outcome import SMALLEST_EFFECT
from rightreasons.records import Scores

# A repair did not take if pasting the shortcut still changes more than this share of the answers that it changed before.
MOST_LEFT = 0.5


@dataclass(frozen=True)
class Effect:
    """Whether fine-tuning "took" or "did not take", and advice on what to try; both None if nothing was tuned or there was no effect to lower."""

    effect: Literal["took", "did not take"] | None = None
    advice: str | None = None


def judge_effect(outcome: str, before: Scores, after: Scores | None, config: AlignConfig) -> Effect:
    """Judges a repair by the swap flip rates before and after; ``outcome`` is that of fine-tuning."""
    old, new = before.swap_flip_rate, after.swap_flip_rate if after else None
    if outcome not in ("aligned", "accepted") or old is None or new is None or old < SMALLEST_EFFECT:
        return Effect()
    if new <= MOST_LEFT * old:
        return Effect("took")
    return Effect(
        "did not take",
        f"the repair did not take: pasting what was judged spurious into held-out images of another class still changes {new:.1%} of the answers, "
        f"and it was {old:.1%} before. Try more epochs with a larger learning rate (--set align.epochs={4 * config.epochs} --set "
        f"align.learning_rate={10 * config.learning_rate:g}), a larger weight (--set align.lambda=...; now {config.lambda_}), or more inspected "
        "images ([sample] size, in a new run); and look at the verdicts in report.html: what shows the class cannot be unlearnt",
    )
