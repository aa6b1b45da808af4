"""The list that a reviewer works through: segments chosen by filters, the uncertain first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from urllib.parse import urlencode

from rightreasons.records import HUMAN, VALUES
from rightreasons.review.snapshot import Item, Place, Snapshot

PAGE_SIZE = 50
SOURCES = ("model", "person")
WAITING = ("yes", "no")


@dataclass(frozen=True)
class Filters:
    """Which segments are listed; an empty field lets all through."""

    label: str = ""
    verdict: str = ""
    waiting: str = ""
    source: str = ""
    reviewer: str = ""

    @classmethod
    def read(cls, given: Mapping[str, str]) -> Filters:
        """The filters in a query or form; a value that is none lets all through."""
        verdict, waiting, source = (given.get(key, "") for key in ("verdict", "waiting", "source"))
        return cls(
            given.get("label", ""),
            verdict if verdict in VALUES else "",
            waiting if waiting in WAITING else "",
            source if source in SOURCES else "",
            given.get("reviewer", ""),
        )

    def query(self, **more: object) -> str:
        """The filters as the query of an address, with further keys; "" if there are none."""
        pairs = {key: value for key, value in {**asdict(self), **more}.items() if value not in ("", None)}
        return f"?{urlencode(pairs)}" if pairs else ""

    def lets_through(self, item: Item) -> bool:
        """Whether a segment is listed."""
        return (
            self.label in ("", item.label)
            and self.verdict in ("", item.verdict.value)
            and (not self.waiting or (self.waiting == "yes") == (item.waiting is not None))
            and (not self.source or (self.source == "person") == (item.verdict.source == HUMAN))
            and (not self.reviewer or self.reviewer in item.people)
        )

    @property
    def fields(self) -> dict[str, str]:
        """The filters as the hidden fields of a form."""
        return {key: value for key, value in asdict(self).items() if value}


def list_items(snapshot: Snapshot, filters: Filters) -> list[Item]:
    """The segments that the filters let through, the most important first."""
    return snapshot.items if filters == Filters() else [item for item in snapshot.items if filters.lets_through(item)]


def find_next(items: list[Item], place: Place) -> Item | None:
    """The segment that follows ``place`` in the list, or the first one if ``place`` is not in it; None if nothing else is left."""
    position = _find(items, place)
    following = 0 if position is None else position + 1
    return items[following] if following < len(items) else None


def find_previous(items: list[Item], place: Place) -> Item | None:
    """The segment before ``place`` in the list, or None."""
    position = _find(items, place)
    return items[position - 1] if position else None


def _find(items: list[Item], place: Place) -> int | None:
    return next((position for position, item in enumerate(items) if item.segment == place[1] and item.index == place[0]), None)
