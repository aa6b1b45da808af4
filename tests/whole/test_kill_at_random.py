"""kill -9 at random moments: no paid answer is lost, and none is paid for twice. RIGHTREASONS_KILLS=50 kills more often."""

from __future__ import annotations

import os

from tests.support.asker import kill_at_random

KILLS = int(os.environ.get("RIGHTREASONS_KILLS", "6"))


def test_nothing_is_lost_and_nothing_is_paid_twice(tmp_path):
    result = kill_at_random(tmp_path, images=25 * KILLS, kills=KILLS)
    assert result["kills"] == KILLS and result["requests"] == 50 * KILLS
    assert (result["paid_twice"], result["paid_and_lost"], result["states"]) == (0, 0, {"answered": 50 * KILLS})
    assert result["same_verdicts"]
