"""Every kind of failure against a server that fails on purpose: how many requests, how much money, and what state they end in."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from PIL import Image

from rightreasons.errors import LVLMBusy, LVLMProtocolError, LVLMRejected, LVLMTimeout, LVLMTooBig, LVLMUnclear
from rightreasons.lvlm.backends.openai import OpenAICompatible
from rightreasons.lvlm.ledger.ledger import MOST_IN_A_ROW, Ledger, Patience
from rightreasons.lvlm.ledger.prices import Price
from rightreasons.lvlm.protocol import Request, get_reply
from tests.support.fault_server import (
    ANSWER_USD,
    INPUT_TOKENS,
    INPUT_USD,
    OUTPUT_TOKENS,
    OUTPUT_USD,
    Fault,
    FaultServer,
    always,
    completion,
    error,
    first,
    html,
    on_the_wire,
    rejects,
    says,
)  # fmt: skip

PRICE = Price(INPUT_USD, OUTPUT_USD)
QUESTION = Request("judge", ("What is S1?",), schema={"type": "object"}, max_tokens=200)


@pytest.fixture
def world(tmp_path):
    """Makes a server that fails as told, the real backend with a short deadline, and a ledger that knows the price."""
    with contextlib.ExitStack() as stack:

        def make(misbehave, timeout=1.0, **options):
            stub = stack.enter_context(FaultServer(misbehave=misbehave, answer=lambda seen: "fine"))
            lvlm = OpenAICompatible("stub", base_url=stub.base_url, timeout=timeout)
            lvlm.address = None  # no process of its own, which takes a second to start; test_kill_* has that
            ledger = Ledger(tmp_path / "lvlm.sqlite", price=PRICE, patience=Patience(first_wait=0.01), **options)
            stack.callback(lvlm.close)
            stack.callback(ledger.close)
            return stub, lvlm, ledger

        yield make


def tries(path):
    with contextlib.closing(sqlite3.connect(path / "lvlm.sqlite")) as connection:
        return connection.execute("SELECT state, outcome, cost_usd, reserved_usd FROM attempts ORDER BY id").fetchall()


def outcomes(path):
    return [outcome for _, outcome, *_ in tries(path)]


TOO_MANY = b"<html><head><title>429 Too Many Requests</title></head><body><h1>429 Too Many Requests</h1>too many concurrent requests</body></html>"
ROUTED = b'{"error": {"message": "Provider returned error", "code": 502}}'

# What comes first, and the outcomes of all attempts. Only the last one is an answer, and only that one costs anything.
RECOVERS_FREE = {
    "429 with Retry-After": (first(1, 429, headers={"retry-after": "0.05"}), ["rate", "answered"]),
    "429 without Retry-After": (first(2, 429), ["rate", "rate", "answered"]),
    "500": (first(2, 500), ["transient", "transient", "answered"]),
    "503 with Retry-After": (first(1, 503, headers={"retry-after": "0.05"}), ["transient", "answered"]),
    "408": (first(1, 408), ["transient", "answered"]),
    "409": (first(1, 409), ["transient", "answered"]),
    "four times 502": (first(4, 502), ["transient"] * 4 + ["answered"]),
    "a proxy's page for 429": (lambda seen: (429, {"content-type": "text/html"}, TOO_MANY) if seen.number == 1 else None, ["rate", "answered"]),
    "400 that names response_format": (rejects("response_format"), ["parameter", "parameter", "answered"]),
    "400 that names max_completion_tokens": (rejects("max_completion_tokens"), ["parameter", "answered"]),
}


@pytest.mark.parametrize("fault", RECOVERS_FREE)
def test_what_passes_costs_nothing(world, tmp_path, fault):
    misbehave, expected = RECOVERS_FREE[fault]
    stub, lvlm, ledger = world(misbehave)
    answer = ledger.ask(lvlm, QUESTION)
    assert (answer.text, answer.problem, answer.usage.input_tokens) == ("fine", None, 1000)
    assert outcomes(tmp_path) == expected and stub.requests == ledger.sent == len(expected)
    assert ledger.cost_usd() == pytest.approx(ANSWER_USD) == pytest.approx(stub.money)
    assert ledger.ask(lvlm, QUESTION).cached and stub.requests == len(expected)


AMBIGUOUS = ["hang", "drop", "half", "half-closed", "drip"]


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_may_have_been_paid_for_is_tried_once_more(world, tmp_path, kind):
    """The provider charges for the lost answer too; the ledger never counts less than that."""
    stub, lvlm, ledger = world(on_the_wire(kind, 1))
    assert ledger.ask(lvlm, QUESTION).text == "fine"
    stub.wait_for(2, over=True)
    (_, lost, cost, reserved), (_, answered, paid, _) = tries(tmp_path)
    assert (lost, answered, stub.requests, stub.paid) == ("ambiguous", "answered", 2, 2)
    assert cost == reserved and paid == pytest.approx(ANSWER_USD)
    assert ledger.cost_usd() == pytest.approx(reserved + ANSWER_USD)


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_may_have_been_paid_for_twice_is_unknown(world, tmp_path, kind):
    stub, lvlm, ledger = world(on_the_wire(kind, 9))
    with pytest.raises(
        LVLMTimeout, match="no complete answer|dropped the connection|half an answer"
    ):  # nothing else was answered meanwhile: the server is at fault
        ledger.ask(lvlm, QUESTION)
    assert [(state, outcome) for state, outcome, *_ in tries(tmp_path)] == [("failed", "ambiguous"), ("unknown", "ambiguous")]
    stub.wait_for(2)
    assert stub.requests == 2 and ledger.cost_usd() == pytest.approx(sum(reserved for *_, reserved in tries(tmp_path)))
    ledger.close()
    stub.misbehave = None
    for retry, requests in ((False, 2), (True, 3)):
        again = Ledger(tmp_path / "lvlm.sqlite", price=PRICE, retry_unknown=retry)
        answer = again.ask(lvlm, QUESTION)
        assert stub.requests == requests and (answer.outcome == "answered") == retry and ("--retry-unknown" in (answer.problem or "")) != retry
        again.close()


def _broken(reason: str, **choice: object) -> bytes:
    whole = json.loads(completion("S1: The segment covers", finish_reason=reason))
    whole["choices"][0] |= choice
    return json.dumps(whole).encode()


BROKEN_OFF = {
    "OpenRouter, with the failure in the choice": _broken("error", error={"code": 502, "message": "Provider disconnected"}),
    "Mistral": _broken("error"),
    "SGLang and vLLM": _broken("abort"),
    "DeepSeek": _broken("insufficient_system_resource"),
    "OpenRouter, whose heartbeat alone came": b"\n         \n\n         \n",
    "nothing at all": b"",
}


@pytest.mark.parametrize("case", BROKEN_OFF)
def test_a_200_that_breaks_off_is_no_answer_and_no_other_protocol(world, tmp_path, case):
    """Half a critique is not judged, and one such answer does not end the run."""
    _, lvlm, ledger = world(lambda seen: (200, {}, BROKEN_OFF[case]) if seen.number == 1 else None, timeout=30.0)
    assert ledger.ask(lvlm, QUESTION).text == "fine" and outcomes(tmp_path) == ["ambiguous", "answered"]
    (_, _, cost, reserved), _ = tries(tmp_path)
    assert cost == reserved, "it may have been paid for"


def test_what_failed_behind_a_router_is_no_answer(world, tmp_path):
    _, lvlm, ledger = world(lambda seen: (200, {}, ROUTED) if seen.number == 1 else None)
    assert ledger.ask(lvlm, QUESTION).text == "fine" and outcomes(tmp_path) == ["transient", "answered"]


@pytest.mark.parametrize("status", [504, 524])
def test_what_a_proxy_gave_up_waiting_for_may_have_been_paid_for(world, tmp_path, status):
    stub, lvlm, ledger = world(first(1, status))
    assert ledger.ask(lvlm, QUESTION).text == "fine"
    (_, lost, cost, reserved), _ = tries(tmp_path)
    assert lost == "ambiguous" and cost == reserved > 0 and stub.requests == 2


@pytest.mark.parametrize("body", [b'{"error": {"message": "bad \\ud83d request"}}', b'{"choices": [{"message": {"refusal": "I cannot \\ud83d"}}]}'])
def test_half_of_a_surrogate_pair_is_written_down_like_any_text(world, tmp_path, body):
    stub, lvlm, ledger = world(lambda seen: (400 if b"error" in body else 200, {}, body))
    with contextlib.suppress(LVLMRejected):
        assert ledger.ask(lvlm, QUESTION).outcome == "refused"
    assert outcomes(tmp_path) in (["unclear"] * 2, ["refused"])


def test_a_drip_ends_at_the_deadline_of_the_whole_request(world):
    """No two bytes are further apart than 0.02 seconds: a read timeout alone would wait for all of them."""
    _, lvlm, _ = world(lambda seen: Fault("drip"), timeout=0.5)
    started = time.monotonic()
    with pytest.raises(LVLMTimeout, match="0.5 seconds"):
        get_reply(lvlm, QUESTION)
    assert time.monotonic() - started < 4, "all of it would have taken longer"


REFUSED = {
    "field": (says(None, refusal="I will not look at that."), ANSWER_USD),
    "content filter": (says("S1: a", finish_reason="content_filter"), ANSWER_USD),
    "400 of a content filter": (always(400, "The response was filtered due to the prompt triggering content management policy"), None),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_refusal_is_recorded_and_not_asked_again(world, tmp_path, fault):
    misbehave, cost = REFUSED[fault]
    stub, lvlm, ledger = world(misbehave)
    first, second = (ledger.ask(lvlm, QUESTION) for _ in range(2))
    for answer in (first, second):
        assert (answer.outcome, answer.text) == ("refused", "") and answer.problem.startswith("refused: ") and not answer.cached
    assert first.problem == second.problem, "in the same words from the ledger"
    ((state, outcome, counted, reserved),) = tries(tmp_path)
    assert (state, outcome, stub.requests) == ("failed", "refused", 1)
    assert counted == pytest.approx(reserved if cost is None else cost)
    ledger.close()
    again = Ledger(tmp_path / "lvlm.sqlite", retry_unknown=True)
    assert again.ask(lvlm, QUESTION).outcome == "refused" and stub.requests == 1, "--retry-unknown does not touch it"
    again.close()


@pytest.mark.parametrize(
    "cut",
    [
        says("", finish_reason="length"),
        says('{"S1": "spu', finish_reason="length"),
        says('{"S1": "spu', finish_reason="model_length"),  # Mistral, for a full context
        says(""),
    ],
)
def test_a_truncated_answer_gets_twice_the_cap_once(world, tmp_path, cut):
    stub, lvlm, ledger = world(lambda seen: cut(seen) if seen.number == 1 else None)
    assert ledger.ask(lvlm, QUESTION).text == "fine"
    assert [seen.body["max_completion_tokens"] for seen in stub.seen] == [200, 400] and outcomes(tmp_path) == ["truncated", "answered"]
    assert ledger.cost_usd() == pytest.approx(2 * ANSWER_USD) == pytest.approx(stub.money), "both were paid for"
    assert ledger.ask(lvlm, QUESTION).cached and stub.requests == 2, "the longer answer is the answer to the question"


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_says_when_to_come_again_is_not_asked_before(world, status):
    stub, lvlm, ledger = world(first(1, status, headers={"retry-after": "0.5"}))
    started = time.monotonic()
    assert ledger.ask(lvlm, QUESTION).text == "fine" and stub.requests == 2
    assert time.monotonic() - started >= 0.5


@pytest.mark.parametrize(("misbehave", "outcome"), [(on_the_wire("drop", 9), "ambiguous"), (says("S1: it", finish_reason="length"), "truncated")])
def test_what_was_paid_for_before_a_crash_still_counts(world, tmp_path, misbehave, outcome):
    """The crash came after the first of two attempts: one more is made, and none after it."""
    stub, lvlm, ledger = world(misbehave)
    with contextlib.suppress(LVLMTimeout):
        ledger.ask(lvlm, QUESTION)
    ledger.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "lvlm.sqlite", isolation_level=None)) as connection:
        connection.execute("DELETE FROM attempts WHERE id = 2")
    again = Ledger(tmp_path / "lvlm.sqlite", price=PRICE, patience=Patience(first_wait=0.01))
    with contextlib.suppress(LVLMTimeout):
        again.ask(lvlm, QUESTION)
    again.close()
    assert outcomes(tmp_path) == [outcome] * 2 and stub.requests == 3
    assert stub.seen[-1].body["max_completion_tokens"] == (400 if outcome == "truncated" else 200)


def test_an_attempt_is_kept_with_its_tokens_and_what_was_wrong(world, tmp_path):
    """An answer has no problem; a refusal has the model's words."""
    stub, lvlm, ledger = world(lambda seen: says(None, refusal="I will not look at that.")(seen) if seen.number == 1 else None)
    for words in ("One", "Another"):
        ledger.ask(lvlm, replace(QUESTION, parts=(words,)))
    with contextlib.closing(sqlite3.connect(tmp_path / "lvlm.sqlite")) as connection:
        refused, answered = connection.execute("SELECT error, input_tokens, output_tokens FROM attempts ORDER BY id").fetchall()
    assert answered == (None, INPUT_TOKENS, OUTPUT_TOKENS) and refused[1:] == (INPUT_TOKENS, OUTPUT_TOKENS)
    assert "I will not look at that." in refused[0]


def test_truncated_twice_goes_to_a_person(world, tmp_path):
    stub, lvlm, ledger = world(says("S1: it", finish_reason="length"))
    for _ in range(2):
        answer = ledger.ask(lvlm, QUESTION)
        assert (answer.outcome, answer.text) == ("truncated", "S1: it") and answer.problem.startswith("truncated")
    assert stub.requests == 2 and outcomes(tmp_path) == ["truncated"] * 2
    assert ledger.cost_usd() == pytest.approx(stub.money)


STOPS = {
    "quota": (lambda seen: error(429, "You exceeded your current quota", code="insufficient_quota"), LVLMRejected, "no quota is left"),
    "402": (always(402, "Payment required"), LVLMRejected, "no quota is left"),
    "401": (always(401), LVLMRejected, "OPENAI_API_KEY"),
    "403": (always(403), LVLMRejected, "may not use"),
    "404": (always(404), LVLMRejected, "name of a model"),
    "413 on text alone": (always(413, "Payload too large"), LVLMTooBig, "smaller images"),
}


@pytest.mark.parametrize("fault", STOPS)
def test_what_will_not_pass_stops_the_run(world, tmp_path, fault):
    misbehave, kind, words = STOPS[fault]
    stub, lvlm, ledger = world(misbehave)
    with pytest.raises(kind, match=words):
        ledger.ask(lvlm, QUESTION)
    with pytest.raises(kind):  # nothing new is sent, whatever it is
        ledger.ask(lvlm, Request("judge", ("Another",)))
    assert stub.requests == 1 and ledger.cost_usd() == 0
    ledger.close()
    stub.misbehave = None
    again = Ledger(tmp_path / "lvlm.sqlite", price=PRICE)
    assert again.ask(lvlm, QUESTION).text == "fine", "the run can be resumed"
    again.close()


def test_gives_up_after_five_where_nobody_is_answered(world, tmp_path):
    stub, lvlm, ledger = world(always(500))
    with pytest.raises(LVLMBusy, match="500"):
        ledger.ask(lvlm, QUESTION)
    assert stub.requests == 5 and outcomes(tmp_path) == ["transient"] * 5 and ledger.cost_usd() == 0


@pytest.mark.parametrize(("misbehave", "requests"), [(always(500), 5), (on_the_wire("drop", 9), 2)])
def test_gives_one_request_up_while_others_are_answered(world, misbehave, requests):
    """One picture that a server chokes on is a person's; it does not stop the other hundred."""
    stub, lvlm, ledger = world(lambda seen: misbehave(seen) if "Bad" in seen.text else None)
    bad = Request("judge", ("Bad",))
    counter = count()
    inner = lvlm.send

    def send(body):  # between two attempts at the bad one, another question is answered
        if body == lvlm.body(bad):
            ledger.ask(lvlm, Request("judge", (f"Good {next(counter)}",)))
        return inner(body)

    lvlm.concurrency = (2, 2)
    lvlm.send = send
    answer = ledger.ask(lvlm, bad)
    assert (answer.outcome, answer.text) == ("unknown", "") and f"after {requests} attempts" in answer.problem
    assert sum("Bad" in seen.text for seen in stub.seen) == requests


def test_a_connection_that_nobody_takes(tmp_path):
    lvlm = OpenAICompatible("stub", base_url="http://127.0.0.1:9/v1")
    lvlm.address = None
    with contextlib.closing(lvlm), Ledger(tmp_path / "lvlm.sqlite", price=PRICE, patience=Patience(first_wait=0.01)) as ledger:
        with pytest.raises(LVLMBusy, match="no connection"):
            ledger.ask(lvlm, QUESTION)
        assert outcomes(tmp_path) == ["transient"] * 5 and ledger.cost_usd() == 0, "nothing was sent"


def test_another_protocol_is_kept_and_stops_the_run(world, tmp_path):
    stub, lvlm, ledger = world(html)
    with pytest.raises(LVLMProtocolError, match="base_url"):
        ledger.ask(lvlm, QUESTION)
    ((state, outcome, cost, reserved),) = tries(tmp_path)
    assert (state, outcome, cost) == ("failed", "malformed", reserved) and stub.requests == 1


def picture(shade):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(shade).integers(0, 256, (520, 512, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = Request("critic", ("Look.", "The image as it is:", picture(1), "With outlines:", picture(2), "Alone:", picture(3)))
TOO_BIG = {
    "413": (413, "Payload Too Large"),
    "429": (429, "Request too large for gpt-x on tokens per min (TPM): Limit 30000, Requested 90000"),
    "400": (400, "At most 1 image(s) may be provided in one request."),
    "context": (400, "This model's maximum context length is 4096 tokens. However, your messages resulted in 4390 tokens."),
}


@pytest.mark.parametrize("fault", TOO_BIG)
def test_too_big_becomes_one_picture(world, tmp_path, fault):
    """A picture of the same pixels helps against a bound on their number alone; bytes and tokens get less with a smaller one."""
    status, words = TOO_BIG[fault]
    stub, lvlm, ledger = world(lambda seen: error(status, words) if len(seen.pictures) > 1 else None, timeout=30.0)
    assert ledger.ask(lvlm, PICTURES).text == "fine"
    assert ledger.ask(lvlm, Request("critic", (*PICTURES.parts, "again"))).text == "fine"
    assert outcomes(tmp_path) == ["too big", "answered", "answered"], "learnt once"
    assert ledger.ask(lvlm, PICTURES).cached, "it is the answer to the question with three pictures"
    (note,) = ledger.notes
    assert words in note and "one " in note, "and told once"
    joined = np.asarray(stub.seen[1].pictures[0])
    if fault == "400":
        for place, part in enumerate(part for part in PICTURES.parts if isinstance(part, bytes)):
            left = place * (512 + 16)
            assert (joined[:, left : left + 512] == np.asarray(Image.open(io.BytesIO(part)))).all(), "no pixel is changed"
    else:
        assert joined.shape[1] == 1024
    assert stub.seen[1].text.split("\n") == [
        "Look.", "The image as it is:", "(picture 1 of 3, counted from the left)", "With outlines:", "(picture 2 of 3, counted from the left)",
        "Alone:", "(picture 3 of 3, counted from the left)", "The pictures, side by side:",
    ]  # fmt: skip


def test_too_big_even_so_stops_a_run_in_which_nothing_was_answered(world):
    stub, lvlm, ledger = world(always(413, "Payload Too Large"), timeout=30.0)
    with pytest.raises(LVLMTooBig, match="smaller images"):
        ledger.ask(lvlm, PICTURES)
    assert [len(seen.pictures) for seen in stub.seen] == [3, 1] and ledger.cost_usd() == 0


NOT_THIS_ONE = {
    "a 400 in words that nobody knows": (error(400, "your prompt is rude"), "unclear", 2),
    "a status that nobody knows": (error(418, "a teapot"), "unclear", 2),
    "too long": (error(500, "Context size has been exceeded."), "too big", 1),
}


@pytest.mark.parametrize("fault", NOT_THIS_ONE)
def test_a_request_that_is_refused_alone_is_a_persons_and_stays_so(world, tmp_path, fault):
    """Others are answered before and after it; another command does not ask again, and does where somebody says so."""
    refusal, outcome, requests = NOT_THIS_ONE[fault]
    stub, lvlm, ledger = world(lambda seen: refusal if "Bad" in seen.text else None)
    bad = Request("judge", ("Bad",))
    assert ledger.ask(lvlm, QUESTION).text == "fine"
    answer = ledger.ask(lvlm, bad)
    assert (answer.outcome, answer.text) == ("unknown", "") and answer.problem.startswith(outcome)
    assert stub.requests == 1 + requests and outcomes(tmp_path)[1:] == [outcome] * requests
    assert ledger.ask(lvlm, Request("judge", ("Another",))).text == "fine"
    ledger.close()
    for retry in (False, True):
        again = Ledger(tmp_path / "lvlm.sqlite", price=PRICE, patience=Patience(first_wait=0.01), retry_unknown=retry)
        answer = again.ask(lvlm, bad)
        assert answer.outcome == "unknown" and ("--retry-unknown" in answer.problem) != retry and "paid" not in answer.problem
        again.close()
    assert stub.requests == 2 + 2 * requests and all(cost == 0 for _, kind, cost, _ in tries(tmp_path) if kind != "answered")


def test_several_in_a_row_that_nobody_can_place_stop_the_run(world):
    stub, lvlm, ledger = world(lambda seen: error(400, "no") if "Bad" in seen.text else None)
    ledger.ask(lvlm, QUESTION)
    for i in range(MOST_IN_A_ROW - 1):
        assert ledger.ask(lvlm, Request("judge", (f"Bad {i}",))).outcome == "unknown"
    assert ledger.ask(lvlm, Request("judge", ("Good",))).text == "fine", "which begins the count anew"
    for i in range(MOST_IN_A_ROW - 1):
        assert ledger.ask(lvlm, Request("judge", (f"Bad again {i}",))).outcome == "unknown"
    with pytest.raises(LVLMUnclear, match="the run can be resumed"):
        ledger.ask(lvlm, Request("judge", ("Bad at last",)))


def test_a_request_refused_first_waits_for_those_under_way(world):
    """The first answer is slower than the first refusal, and tells that the server is a good one."""
    stub, lvlm, ledger = world(lambda seen: error(400, "no") if "Bad" in seen.text else time.sleep(0.3))
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(ledger.ask, lvlm, QUESTION)
        stub.wait_for(1)
        assert ledger.ask(lvlm, Request("judge", ("Bad",))).outcome == "unknown" and good.result().text == "fine"


def test_an_answer_beyond_its_cap_is_noted_once(world):
    _, lvlm, ledger = world(None)
    for words in "ab":
        assert ledger.ask(lvlm, Request("judge", (words,), max_tokens=OUTPUT_TOKENS // 2)).text == "fine"
    (note,) = ledger.notes
    assert "does not keep to the cap" in note and "max_usd" in note


def test_a_pause_that_a_server_asks_for_holds_for_all(world):
    """After the refusal nothing is sent until the time has passed, whoever wants to."""
    stamps = []

    def misbehave(seen):
        stamps.append(time.monotonic())
        return error(429, "slow", {"retry-after": "0.4"}) if seen.number == 1 else None

    _, lvlm, ledger = world(misbehave)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(ledger.ask, lvlm, QUESTION)
        while not ledger._throttle(lvlm)._paused_until > 0:
            assert not early.done()
        with ThreadPoolExecutor(8) as others:
            list(others.map(lambda i: ledger.ask(lvlm, Request("judge", (f"Other {i}",))), range(8)))
        early.result()
    assert len(stamps) == 10 and min(stamps[1:]) - stamps[0] >= 0.4
