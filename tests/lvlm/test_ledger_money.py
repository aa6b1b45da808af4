"""What is set aside, what is spent, and where a budget ends a run; and answers that came another way."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rightreasons.errors import ConfigError, LVLMOverBudget, LVLMProtocolError
from rightreasons.lvlm.backends.openai import OpenAICompatible
from rightreasons.lvlm.backends.scripted import Scripted
from rightreasons.lvlm.ledger.ledger import Ledger, Patience
from rightreasons.lvlm.ledger.prices import Price, worst_case_tokens
from rightreasons.lvlm.protocol import Request
from tests.support.fault_server import ANSWER_USD, INPUT_USD, OUTPUT_USD, FaultServer, completion, error
from tests.support.helpers import Direct

PRICE = Price(INPUT_USD, OUTPUT_USD)


def question(number):
    return Request("judge", (f"Question {number:04d}",), max_tokens=400)


@pytest.fixture
def place(tmp_path):
    """A server that answers at once, the real backend without a courier, and a way to open the same ledger again."""
    direct = Direct()
    with contextlib.ExitStack() as stack, FaultServer(answer=lambda seen: f"said {seen.text}") as stub:
        lvlm = direct(stub)

        def open_ledger(**options):
            ledger = Ledger(tmp_path / "lvlm.sqlite", **{"patience": Patience(first_wait=0.01)} | options)
            stack.callback(ledger.close)
            return ledger

        stack.callback(direct.close)
        yield stub, lvlm, open_ledger


def most(lvlm):
    return PRICE.cost(worst_case_tokens(lvlm.body(question(0)), question(0).max_tokens))


def test_the_most_is_set_aside_before_a_request_is_sent(place, tmp_path):
    stub, lvlm, open_ledger = place
    ledger, seen = open_ledger(price=PRICE), []

    def look(request):
        with contextlib.closing(sqlite3.connect(tmp_path / "lvlm.sqlite")) as connection:
            seen.extend(connection.execute("SELECT state, reserved_usd, cost_usd FROM attempts").fetchall())

    stub.misbehave = look
    ledger.ask(lvlm, question(0))
    assert seen == [("pending", pytest.approx(most(lvlm)), None)] and most(lvlm) > ANSWER_USD
    assert ledger.cost_usd() == pytest.approx(ANSWER_USD), "what the provider counted takes its place"


def test_a_budget_is_never_passed(place):
    """One at a time: questions are asked as long as the most that the next may cost still fits."""
    stub, lvlm, open_ledger = place
    budget = 5 * ANSWER_USD + most(lvlm) + 1e-6
    ledger = open_ledger(price=PRICE, max_usd=budget)
    for number in range(6):
        ledger.ask(lvlm, question(number))
    with pytest.raises(LVLMOverBudget, match="--max-usd"):
        ledger.ask(lvlm, question(6))
    assert stub.requests == 6 and ledger.cost_usd() == pytest.approx(stub.money) and stub.money <= budget


def test_a_budget_counts_what_is_under_way(place):
    """Eight at a time against a budget for a few: the most of all under way is set aside together, what is under way ends, nothing more starts."""
    stub, lvlm, open_ledger = place
    budget = 2.5 * most(lvlm)
    lvlm.concurrency = (8, 8)
    ledger = open_ledger(price=PRICE, max_usd=budget)

    def ask(number):
        try:
            return ledger.ask(lvlm, question(number)).text
        except LVLMOverBudget:
            return None

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    assert stub.money <= budget and ledger.cost_usd() == pytest.approx(stub.money)
    assert stub.most_under_way <= 2, "two fit at a time"
    answered = [answer for answer in answers if answer is not None]
    assert len(answered) == stub.requests == ledger.count("answered") and most(lvlm) + ledger.cost_usd() > budget, "all of it was used"
    ledger.close()
    again = open_ledger(price=PRICE, max_usd=100.0)
    assert all(again.ask(lvlm, question(number)).text == f"said Question {number:04d}" for number in range(40))
    assert stub.requests == 40 and stub.repeated == 0, "a larger budget goes on where the smaller one ended"


def test_a_budget_holds_over_commands(place):
    stub, lvlm, open_ledger = place
    first = open_ledger(price=PRICE)
    first.ask(lvlm, question(0))
    first.close()
    second = open_ledger(price=PRICE, max_usd=most(lvlm))
    assert second.ask(lvlm, question(0)).cached, "what is there costs nothing"
    with pytest.raises(LVLMOverBudget, match="raise --max-usd"):
        second.ask(lvlm, question(1))
    assert stub.requests == 1


def test_a_budget_without_a_price_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="needs a price"):
        Ledger(tmp_path / "lvlm.sqlite", max_usd=1.0)


def test_cost_is_unknown_without_a_price(place):
    _, lvlm, open_ledger = place
    ledger = open_ledger()
    assert ledger.cost_usd() == 0, "nothing was asked"
    ledger.ask(lvlm, question(0))
    assert ledger.cost_usd() is None


def test_each_model_has_its_own_price(place):
    _, lvlm, open_ledger = place
    other = Scripted(lambda request: "said", "scripted:free")
    ledger = open_ledger(price={lvlm.name: PRICE, other.name: Price(0.0, 0.0)})
    ledger.ask(lvlm, question(0))
    ledger.ask(other, question(1))
    assert ledger.cost_usd() == pytest.approx(ANSWER_USD)
    ledger.close()
    with pytest.raises(LVLMOverBudget, match="no price is known for"):
        open_ledger(price={other.name: Price(0.0, 0.0)}, max_usd=9.0).ask(lvlm, question(2))


def test_a_provider_that_does_not_count_is_taken_at_the_most(place):
    stub, lvlm, open_ledger = place
    bare = json.loads(completion("said"))
    del bare["usage"]
    stub.misbehave = lambda seen: (200, {}, json.dumps(bare).encode())
    ledger = open_ledger(price=PRICE)
    ledger.ask(lvlm, question(0))
    assert ledger.cost_usd() == pytest.approx(most(lvlm))


def test_a_crash_after_an_answer_and_before_it_was_read(place, tmp_path):
    """Until it is read it counts with the most; then with what it cost, and it is not asked for again."""
    stub, lvlm, open_ledger = place
    ledger = open_ledger(price=PRICE)
    ledger.ask(lvlm, question(0))
    ledger.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "lvlm.sqlite")) as connection, connection:
        connection.execute("UPDATE attempts SET outcome = NULL, cost_usd = NULL, input_tokens = NULL")
    again = open_ledger(price=PRICE)
    assert again.cost_usd() == pytest.approx(most(lvlm))
    assert again.ask(lvlm, question(0)).text == "said Question 0000" and again.cost_usd() == pytest.approx(ANSWER_USD) and stub.requests == 1


def test_an_answer_that_came_another_way(place):
    stub, lvlm, open_ledger = place
    ledger = open_ledger(price=PRICE)
    questions = [question(number) for number in range(3)]
    assert ledger.missing(lvlm, questions) == questions
    assert ledger.record(lvlm, questions[1], completion("by post").decode()).text == "by post"
    assert ledger.missing(lvlm, questions) == [questions[0], questions[2]]
    assert ledger.cost_usd() == pytest.approx(ANSWER_USD), "its usage says what it cost"
    assert ledger.record(lvlm, questions[1], completion("once more").decode()).text == "by post", "the first one stays"
    assert ledger.ask(lvlm, questions[1]).text == "by post" and stub.requests == 0
    with pytest.raises(LVLMProtocolError, match="OpenAI-compatible"):
        ledger.record(lvlm, questions[2], '{"hello": 1}')
    assert ledger.missing(lvlm, [questions[2]]) == [questions[2]], "what is no answer leaves no trace"


def test_an_answer_of_unknown_usage_that_came_another_way_costs_nothing(place):
    """Whoever got it elsewhere has paid there, if at all."""
    _, lvlm, open_ledger = place
    ledger, bare = open_ledger(price=PRICE), json.loads(completion("by post"))
    del bare["usage"]
    assert ledger.record(lvlm, question(0), json.dumps(bare)).text == "by post" and ledger.cost_usd() == 0.0


def test_whether_this_very_answer_is_stored(place):
    """The same words to another question, and other words to this one, are not."""
    _, lvlm, open_ledger = place
    ledger, raw = open_ledger(), completion("by post", finish_reason="length").decode()
    ledger.record(lvlm, question(0), raw)
    first, other = (ledger.key(lvlm, question(number)) for number in range(2))
    assert ledger.holds(first, raw) is True, "though it was cut off"
    assert ledger.holds(other, raw) is False and ledger.holds(first, completion("other words").decode()) is False
    ledger.record(lvlm, question(1), '{"choices": [{"message": {"content": "half \ud83d"}}]}')
    assert ledger.holds(other, '{"choices": [{"message": {"content": "half \ud83d"}}]}') is True, "half of a surrogate pair is stored as it can be"


def test_who_answers_is_kept_and_another_model_than_was_asked_is_told_once(place):
    """Of a recorded or scripted model, which has no address, nothing is told: that was done when it was made."""
    stub, _, open_ledger = place
    ledger, nameless = open_ledger(), json.loads(completion("by post"))
    del nameless["model"]
    asked, same, here = (OpenAICompatible(name, base_url=stub.base_url) for name in ("big-model", "stub", "recorded"))
    here.address = None
    for lvlm, number, raw in ((asked, 0, completion("a")), (asked, 1, completion("b")), (same, 0, completion("c")), (here, 0, completion("d"))):
        ledger.record(lvlm, question(number), raw.decode())
        assert ledger.ask(lvlm, question(number)).model == "stub"
    ledger.record(OpenAICompatible("nameless", base_url=stub.base_url), question(0), json.dumps(nameless))
    assert ledger.ask(OpenAICompatible("nameless", base_url=stub.base_url), question(0)).model is None
    assert ledger.answered_by == {"openai:big-model": {"stub"}, "openai:stub": {"stub"}, "openai:recorded": {"stub"}}
    (note,) = ledger.notes
    assert note == "openai:big-model was asked, and 'stub' answers by the server's word: what it says is that model's and not the other's"


def test_a_question_whose_answer_was_cut_off_is_sent_with_twice_the_cap(place):
    _, lvlm, open_ledger = place
    ledger = open_ledger()
    ledger.record(lvlm, question(0), completion("half of", finish_reason="length").decode())
    ledger.record(lvlm, question(1), completion("all of it").decode())
    caps = [ledger.shape(ledger.key(lvlm, question(number)), question(number)) for number in range(3)]
    assert caps == [replace(question(0), max_tokens=800), question(1), question(2)]


def test_a_person_can_answer_what_is_unknown(place, tmp_path):
    stub, lvlm, open_ledger = place
    ledger = open_ledger(price=PRICE)
    ledger.ask(lvlm, question(0))
    ledger.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "lvlm.sqlite")) as connection, connection:
        connection.execute("UPDATE attempts SET state = 'pending', raw = NULL, outcome = NULL, cost_usd = NULL")
    again = open_ledger(price=PRICE)
    assert again.count("unknown") == 1 and again.ask(lvlm, question(0)).outcome == "unknown" and again.cost_usd() == pytest.approx(most(lvlm))
    again.record(lvlm, question(0), completion("found").decode())
    assert again.ask(lvlm, question(0)).text == "found" and stub.requests == 1


def test_the_key_has_what_changes_an_answer_and_nothing_else(place, tmp_path):
    stub, lvlm, open_ledger = place
    ledger = open_ledger()
    plain = question(0)
    different = [
        replace(plain, vote=1), replace(plain, permutation=5), replace(plain, prompt="critic-2"), replace(plain, max_tokens=401),
        replace(plain, schema={"type": "object"}), replace(plain, parts=("Question 0000 ",)),
    ]  # fmt: skip
    assert len({ledger.key(lvlm, request) for request in [plain, *different]}) == 1 + len(different)
    patient = OpenAICompatible("stub", base_url=stub.base_url + "/", timeout=5.0)
    hasty = OpenAICompatible("stub", base_url=stub.base_url, timeout=0.1)
    hasty.concurrency = (1, 2)
    assert ledger.key(patient, plain) == ledger.key(hasty, plain) != ledger.key(OpenAICompatible("other", base_url=stub.base_url), plain)


def test_a_ledger_of_an_older_version_is_named(tmp_path):
    path = tmp_path / "lvlm.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE attempts (id INTEGER PRIMARY KEY, key TEXT, state TEXT, raw TEXT)")
        connection.execute("INSERT INTO attempts (key, state, raw) VALUES ('a', 'answered', 'paid for')")
    with pytest.raises(ConfigError, match="an older version.*choose another --out"):
        Ledger(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT raw FROM attempts").fetchall() == [("paid for",)], "it is left as it is"


def test_a_file_that_is_no_ledger(tmp_path):
    (tmp_path / "lvlm.sqlite").write_bytes(b"not a database at all" * 99)
    with pytest.raises(ConfigError, match="cannot be used as a ledger"):
        Ledger(tmp_path / "lvlm.sqlite")


def test_what_waits_for_another_try_ends_when_the_run_stops(place):
    """A backoff of a minute does not hold up a run that somebody else's error has stopped."""
    stub, lvlm, open_ledger = place
    ledger, waiting = open_ledger(patience=Patience(first_wait=60.0)), threading.Event()

    def misbehave(seen):
        if "0000" in seen.text:
            waiting.set()
            return error(500, "oh")
        return error(401, "no")

    stub.misbehave = misbehave
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ledger.ask, lvlm, question(0))
        assert waiting.wait(10)
        with pytest.raises(Exception, match="401"):
            ledger.ask(lvlm, question(1))
        with pytest.raises(Exception, match="401"):
            slow.result(timeout=10)
    assert stub.requests == 2


@pytest.mark.parametrize("counts", [(-5, 100), (10, -100_000), (10**30, 3), (True, 3), ("10", 3), (1.5, 3)])
def test_a_count_that_cannot_be_true_is_not_believed(place, counts):
    stub, lvlm, open_ledger = place
    whole = json.loads(completion("ok")) | {"usage": dict(zip(("prompt_tokens", "completion_tokens"), counts, strict=True))}
    stub.misbehave = lambda seen: (200, {"content-type": "application/json"}, json.dumps(whole).encode())
    ledger = open_ledger(price=PRICE)
    assert ledger.ask(lvlm, question(0)).text == "ok"
    assert ledger.cost_usd() == pytest.approx(most(lvlm)), "what was set aside counts"
