"""How many requests may be under way: more with every answer, fewer after a rate limit, none during a pause."""

from __future__ import annotations

import threading
import time

import pytest

from rightreasons.lvlm.backends.openai import OpenAICompatible
from rightreasons.lvlm.backends.scripted import Scripted
from rightreasons.lvlm.ledger.throttle import DECREASE, Throttle, count_workers


def one_round(throttle):
    """Every request that may be under way is answered."""
    for _ in range(throttle.limit):
        throttle.speed_up()


def test_the_number_doubles_until_the_first_rate_limit():
    throttle, limits = Throttle(4, 32), []
    for _ in range(5):
        limits.append(throttle.limit)
        one_round(throttle)
    assert limits == [4, 8, 16, 32, 32]


def test_after_a_rate_limit_a_round_adds_one():
    throttle = Throttle(20, 32)
    throttle.slow_down(time.monotonic(), None)
    assert throttle.limit == round(20 * DECREASE)
    one_round(throttle)
    one_round(throttle)
    assert throttle.limit in (17, 18)


def test_requests_of_one_round_slow_down_once():
    throttle = Throttle(32, 32)
    started = time.monotonic()
    for _ in range(32):
        throttle.slow_down(started, None)
    assert throttle.limit == int(32 * DECREASE)
    throttle.slow_down(time.monotonic() + 1, None)
    assert throttle.limit == int(32 * DECREASE * DECREASE)


def test_one_is_always_left():
    throttle = Throttle(1, 8)
    for second in range(9):
        throttle.slow_down(time.monotonic() + second, None)
    assert throttle.limit == 1


@pytest.mark.parametrize("limit", [1, 4])
def test_no_more_slots_than_the_limit(limit):
    throttle, under_way, most = Throttle(limit, limit), [], []
    gathered = threading.Barrier(limit)

    def work():
        with throttle.slot():
            under_way.append(1)
            most.append(len(under_way))
            gathered.wait(10)
            under_way.pop()

    threads = [threading.Thread(target=work) for _ in range(3 * limit)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert max(most) == limit and not under_way


def test_nobody_gets_a_slot_during_a_pause():
    throttle = Throttle(4, 4)
    asked = time.monotonic()
    throttle.slow_down(asked, 0.2)
    with throttle.slot() as started:
        assert started - asked >= 0.2


def test_a_pause_ends_when_the_run_stops():
    throttle, had = Throttle(4, 4), threading.Event()
    throttle.slow_down(time.monotonic(), 60.0)

    def work():
        with throttle.slot():
            had.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    throttle.end_pause()
    assert had.wait(10)
    thread.join()


@pytest.mark.parametrize(("most", "threads"), [(1, 1), (2, 4), (32, 64)])
def test_twice_as_many_threads_as_requests_since_some_wait(most, threads):
    """A model in this process takes one at a time, and needs one thread; with another beside it the larger number counts."""
    server, here = OpenAICompatible("m", base_url="http://127.0.0.1:9/v1"), Scripted(lambda request: "")
    server.concurrency = (1, most)
    assert count_workers(server) == count_workers(here, server) == count_workers(server, here) == threads
    server.close()
