"""Whether the model that answers is the one that was asked, by the names that providers give them. Free of torch."""

from __future__ import annotations

import re

# What follows a model's name and leaves it the same model: a day, a release in three or four digits, an alias for the newest one, a price class.
_DATE = re.compile(r"[-@:_.](\d{4}-\d{2}-\d{2}|\d{2}-\d{2}|\d{8}|\d{6}|\d{3,4})$")
_ALIAS = re.compile(r"[-@:_.](latest|preview|exp|experimental|stable|beta|free|nitro|floor|0)$")
_FILE = re.compile(r"\.(gguf|ggml|bin)$")


def is_same_model(asked: str, answering: str) -> bool:
    """Whether two names mean one model: they are equal but for folders or a provider before them, case, and a date or version behind them.

    Two dates that differ are two models, since whoever names a date wants that one.
    """
    (one, its_dates), (other, other_dates) = _part(asked), _part(answering)
    return one == other and (not its_dates or not other_dates or its_dates == other_dates)


def _part(name: str) -> tuple[str, tuple[str, ...]]:
    """A model's name without what stands before and behind it, and the dates and releases that were behind it."""
    plain, dates = _FILE.sub("", name.strip().rstrip("/").lower().rpartition("/")[2]), []
    while True:
        if found := _DATE.search(plain):
            dates.append(found[1].replace("-", ""))
        elif not (found := _ALIAS.search(plain)):
            return plain, tuple(dates)
        plain = plain[: found.start()]
