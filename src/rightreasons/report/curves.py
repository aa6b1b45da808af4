"""Curves as points of an SVG, 300 units wide and 150 high."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 300, 150


@dataclass(frozen=True)
class Curve:
    """One line: its name, its points as SVG has them, and the last value."""

    name: str
    points: str
    last: float


def draw_tuning(epochs: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Accuracy by epoch, on held-out images as they are and with spurious segments pasted in."""
    return [
        draw_curve(name, [(float(epoch["epoch"] - 1), float(epoch[key])) for epoch in epochs], last=max(1.0, len(epochs) - 1.0))
        for key, name in (("accuracy", "as they are"), ("swapped_accuracy", "with segments pasted in"))
        if epochs
    ]


def draw_curve(name: str, points: Sequence[tuple[float, float]], *, last: float = 1.0) -> Curve:
    """A line through (x, y), x from 0 to ``last`` and y from 0 to 1, upwards."""
    return Curve(name, " ".join(f"{WIDTH * x / last:.1f},{HEIGHT * (1 - y):.1f}" for x, y in points), points[-1][1])
