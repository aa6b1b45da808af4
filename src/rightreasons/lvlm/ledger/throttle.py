"""How many requests may run at one server at the same time: more while it answers, fewer after a rate limit."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rightreasons.lvlm import LVLM

# A rate limit multiplies the number of slots by this.
DECREASE = 0.8


class Throttle:
    """Slots for requests, ``start`` of them at first and at most ``most``. Threads share it.

    Until the first rate limit every answer adds a slot, so the number doubles with each round; afterwards a round of answers adds one.
    """

    def __init__(self, start: int, most: int) -> None:
        self._limit, self._most = float(start), most
        self._under_way = 0
        self._paused_until = -math.inf
        self._slowed_at = -math.inf
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """How many requests may run now."""
        return int(self._limit)

    @contextmanager
    def slot(self) -> Iterator[float]:
        """Waits for a free slot and for the end of a pause; yields the time at which the slot was taken."""
        with self._changed:
            while (pause := self._paused_until - time.monotonic()) > 0 or self._under_way >= self.limit:
                self._changed.wait(pause if pause > 0 else None)
            self._under_way += 1
        try:
            yield time.monotonic()
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def speed_up(self) -> None:
        """Adds a slot, or part of one, after an answer."""
        with self._changed:
            step = 1.0 if self._slowed_at == -math.inf else 1.0 / self._limit
            self._limit = min(float(self._most), self._limit + step)
            self._changed.notify_all()

    def slow_down(self, started: float, wait: float | None) -> None:
        """Takes slots away after a rate limit on a request that got its slot at ``started``. If the server says how many seconds to ``wait``, all do.

        Rate limits on several requests of one round count once.
        """
        with self._changed:
            now = time.monotonic()
            if started > self._slowed_at:
                self._limit, self._slowed_at = max(1.0, self._limit * DECREASE), now
            if wait is not None:
                self._paused_until = max(self._paused_until, now + wait)

    def end_pause(self) -> None:
        """Ends a pause for all, since the run is stopping."""
        with self._changed:
            self._paused_until = -math.inf
            self._changed.notify_all()


def count_workers(*lvlms: LVLM) -> int:
    """How many threads to work on images with: twice the largest concurrency, since a thread that waits to retry has no request under way."""
    most = max(lvlm.concurrency[1] for lvlm in lvlms)
    return most if most == 1 else 2 * most
