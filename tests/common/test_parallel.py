"""How ``find`` hands images out: results in order, the first error ends what has not started, and a wait holds nobody up."""

from __future__ import annotations

import threading

import pytest

from rightreasons.common.parallel import map_in_order
from rightreasons.errors import LVLMRejected, LVLMUnavailable
from rightreasons.lvlm.backends.openai import OpenAICompatible
from rightreasons.lvlm.backends.scripted import Scripted
from rightreasons.lvlm.ledger.throttle import count_workers


def test_results_are_in_order_whatever_ends_first():
    second_done, steps = threading.Event(), []

    def work(row):
        if row == 0:
            assert second_done.wait(10)
        else:
            second_done.set()
        return row

    assert map_in_order(work, [0, 1, 2], workers=2, advance=lambda done, total: steps.append((done, total))) == [0, 1, 2]
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_the_first_error_in_time_ends_the_rest_and_is_the_one_that_is_raised():
    """Row 0 takes as long as it likes; the error of row 1 stops the run all the same."""
    stopped, begun, told = threading.Event(), [], []

    def work(row):
        begun.append(row)
        if row == 1:
            raise LVLMRejected("a bad key")
        assert stopped.wait(10), "what has started was not told to stop"
        return row

    def stop(error):
        told.append(error)
        stopped.set()

    with pytest.raises(LVLMRejected, match="a bad key"):
        map_in_order(work, list(range(50)), workers=2, advance=lambda done, total: None, stop=stop)
    assert len(told) == 1 and isinstance(told[0], LVLMUnavailable) and len(begun) < 10


def test_more_threads_than_slots_so_that_a_wait_holds_nobody_up():
    server = OpenAICompatible("m", base_url="http://127.0.0.1:9/v1")
    here = Scripted(lambda request: "")
    assert count_workers(server, server) == 64 and count_workers(here, here) == 1 and count_workers(here, server) == 64
