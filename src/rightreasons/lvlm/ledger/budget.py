"""What requests may cost: the price of each model, and a limit that counts every request under way at its highest possible cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from rightreasons.errors import ConfigError, LVLMError, LVLMOverBudget
from rightreasons.lvlm.ledger.prices import Price


class Budget:
    """The money of one run folder. ``price`` is the price of every model, or prices by a model's name; ``max_usd`` bounds the sum.

    ``changed`` guards it, and is notified whenever a request has ended.
    """

    def __init__(self, price: Price | Mapping[str, Price] | None, max_usd: float | None, changed: threading.Condition) -> None:
        if max_usd is not None and price is None:
            raise ConfigError(f"a budget of {max_usd:g} US dollars needs a price: declare one, as `rightreasons lvlm estimate` shows")
        self._price, self._max_usd, self._changed = price, max_usd, changed
        # What earlier commands spent is set before the first request.
        self.committed_usd = 0.0
        self.under_way = 0

    def price_of(self, model: str) -> Price | None:
        """The price of a model. Raises LVLMOverBudget if there is a limit that could not be kept without one."""
        price = self._price.get(model) if isinstance(self._price, Mapping) else self._price
        if price is None and self._max_usd is not None:
            raise LVLMOverBudget(f"no price is known for {model!r}, so the budget cannot be kept: declare a price in [critic] prices")
        return price

    def reserve(self, usd: float, stopped_by: Callable[[], LVLMError | None]) -> None:
        """Reserves the highest possible cost of a request. If the limit does not allow it, waits for requests under way, which mostly cost less.

        Raises LVLMOverBudget, or the error that has stopped the run meanwhile.
        """
        limit = float("inf") if self._max_usd is None else self._max_usd + 1e-9
        with self._changed:
            self._changed.wait_for(lambda: stopped_by() or self.committed_usd + usd <= limit or not self.under_way)
            if (error := stopped_by()) is not None:
                raise error
            if self.committed_usd + usd > limit:
                raise LVLMOverBudget(
                    f"the next request may cost up to {usd:.4f} US dollars, and of the {self._max_usd:g} allowed {self.committed_usd:.4f} are "
                    f"spent: raise --max-usd and run the same command again, which goes on where it stopped"
                )
            self.committed_usd += usd
            self.under_way += 1

    def release(self, reserved_usd: float, cost_usd: float) -> None:
        """A request has ended, and what was reserved for it becomes what it cost."""
        with self._changed:
            self.committed_usd += cost_usd - reserved_usd
            self.under_way -= 1
            self._changed.notify_all()
