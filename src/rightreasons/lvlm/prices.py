"""What a request costs, by dated prices that users can override."""

from __future__ import annotations

from dataclasses import dataclass

from rightreasons.lvlm.protocol import Usage


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens that go in and that come out."""

    input_usd: float
    output_usd: float

    def cost(self, usage: Usage) -> float | None:
        """In US dollars; None where the provider did not count."""
        if usage.input_tokens is None or usage.output_tokens is None:
            return None
        return (usage.input_tokens * self.input_usd + usage.output_tokens * self.output_usd) / 1e6
