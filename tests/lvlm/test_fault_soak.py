"""A few hundred images with a fault in 30 % of the requests; benchmarks/soak.py has 2,000."""

from __future__ import annotations

import pytest

from tests.support.soak import soak


def test_nothing_is_lost_repeated_or_judged_otherwise(tmp_path):
    # Answers come in milliseconds: the deadline is so long that a busy machine does not let one come after it.
    calm = soak(tmp_path / "calm.sqlite", 150, share=0.0, timeout=10.0)
    rough = soak(tmp_path / "rough.sqlite", 150, share=0.3, timeout=10.0)
    assert calm.requests == 300 and calm.counted_usd == pytest.approx(calm.charged_usd)
    assert rough.requests > 330, "there were faults"
    assert rough.most_delivered == 1, "an answer that had come was asked for again"
    assert rough.counted_usd >= rough.charged_usd - 1e-9, "money was spent that the ledger does not know of"
    # A verdict that is unsure, for whatever reason, is a person's to decide.
    answered = [pair for pair in zip(calm.verdicts, rough.verdicts, strict=True) if all(verdict.value != "unsure" for verdict in pair[1])]
    assert [[v.value for v in before] for before, _ in answered] == [[v.value for v in after] for _, after in answered]
    assert 75 < len(answered) < 150, "most are answered, and what was refused is not"
