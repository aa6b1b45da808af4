"""The bounds of a gate: from options, and from a budget file in TOML that may have some for single classes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rightreasons.config import read_toml
from rightreasons.errors import ConfigError


@dataclass(frozen=True)
class Measure:
    """Something that is bounded: its name in words, the key of its bound, and whether that is a ``ceiling`` or a floor."""

    words: str
    key: str
    ceiling: bool

    def is_past(self, value: float, bound: float) -> bool:
        """Whether a value is on the wrong side of its bound."""
        return value > bound if self.ceiling else value < bound


MEASURES: Mapping[str, Measure] = {
    "spurious_share": Measure("spurious share", "max_spurious_share", ceiling=True),
    "swap_flip_rate": Measure("swap flip rate", "max_flip_rate", ceiling=True),
    "accuracy": Measure("accuracy", "min_accuracy", ceiling=False),
}
_KEYS = tuple(measure.key for measure in MEASURES.values())


@dataclass(frozen=True)
class Budget:
    """Bounds by the keys of ``MEASURES``: those on all images, which hold for each class as well unless it has its own in ``classes``."""

    bounds: Mapping[str, float] = field(default_factory=dict)
    classes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def bound(self, measure: Measure, scope: str | None) -> float | None:
        """The bound on a measure for a class, or for all images together (None); None if there is none."""
        own = self.classes.get(scope, {}) if scope is not None else {}
        return own.get(measure.key, self.bounds.get(measure.key))

    def origin(self, measure: str, scope: str | None) -> tuple[str, str | None]:
        """Which bound holds for a measure of ``MEASURES`` and a class: its key, and the class whose own it is (None: that on all images)."""
        key = MEASURES[measure].key
        return key, scope if scope is not None and key in self.classes.get(scope, {}) else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is bounded."""
        return not self.bounds and not any(self.classes.values())

    def override(self, bounds: Mapping[str, float | None]) -> Budget:
        """The budget with bounds on all images that come before the file's; None changes nothing. Raises ConfigError for one that is no share."""
        given = {key: _read_share(value, f"--{key.replace('_', '-')}") for key, value in bounds.items() if value is not None}
        return replace(self, bounds={**self.bounds, **given})


def read_budget(path: Path, classes: Sequence[str]) -> Budget:
    """The budget in a TOML file: bounds at its top, and tables [classes.NAME]. Raises ConfigError naming the key, the value and what was expected."""
    tables = read_toml(path)
    own = tables.pop("classes", {})
    if not isinstance(own, dict):
        raise ConfigError(f"{path}: classes = {own!r}; expected a table of bounds for each class, [classes.NAME]")
    unknown = [name for name in own if name not in classes]
    if unknown:
        raise ConfigError(f"{path}: bounds for the class {unknown[0]!r}, which the data do not have; the classes are {', '.join(classes)}")
    return Budget(_read_bounds(tables, str(path)), {name: _read_bounds(table, f"{path}: classes.{name}") for name, table in own.items()})


def _read_bounds(table: Any, place: str) -> dict[str, float]:  # noqa: ANN401 -- whatever TOML can hold
    if not isinstance(table, dict):
        raise ConfigError(f"{place} = {table!r}; expected a table with {', '.join(_KEYS)}")
    for key in table:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{place}: unknown key {key!r}; {hint}valid here: {', '.join(_KEYS)}")
    return {key: _read_share(value, f"{place}: {key}") for key, value in table.items()}


def _read_share(value: object, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{place} = {value!r}; expected a share from 0 to 1, such as 0.05 for 5 %")
    return float(value)
