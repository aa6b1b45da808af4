"""Nothing is paid for twice: the ledger, the OpenAI backend and the courier, against a real server on loopback."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rightreasons.errors import LVLMProtocolError, LVLMRejected, LVLMUnavailable
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.backends.scripted import Scripted
from rightreasons.lvlm.ledger.ledger import Ledger, Patience
from rightreasons.lvlm.protocol import Request
from tests.support.fault_server import FaultServer, says
from tests.support.helpers import png

JUDGE = Request("judge", ('<critique>\nS1: over the plate\n</critique> "S1"',), schema={"type": "object"})


PNG = png(1)


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "lvlm.sqlite", patience=Patience(first_wait=0.01)) as ledger:
        yield ledger


def rows(path, columns="state, raw, error, request"):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT {columns} FROM attempts ORDER BY id").fetchall()


def test_ledger_asks_once(ledger, tmp_path):
    lvlm = Scripted(lambda request: "said")
    assert ledger.ask(lvlm, JUDGE).text == "said"
    assert ledger.ask(lvlm, JUDGE).cached and len(lvlm.history) == 1
    assert (tmp_path / "lvlm.sqlite").stat().st_mode & 0o777 == 0o600


def test_ledger_commits_before_it_parses(ledger, tmp_path):
    class Unreadable(Scripted):
        def parse(self, raw):
            raise RuntimeError("a bug in parsing")

    with pytest.raises(RuntimeError, match="a bug in parsing"):
        ledger.ask(Unreadable(lambda request: "paid for"), JUDGE)
    assert [(state, raw) for state, raw, *_ in rows(tmp_path / "lvlm.sqlite")] == [("answered", "paid for")]


def test_ledger_parses_again_for_nothing(ledger):
    class Better(Scripted):
        def parse(self, raw):
            return super().parse(raw.upper())

    ledger.ask(Scripted(lambda request: "said"), JUDGE)
    assert ledger.ask(Better(lambda request: pytest.fail("asked again")), JUDGE).text == "SAID"


def test_ledger_has_one_flight_per_question(ledger):
    def slow(request):
        threading.Event().wait(0.1)
        return "said"

    lvlm = Scripted(slow)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ledger.ask(lvlm, JUDGE).text, range(4)))
    assert answers == ["said"] * 4 and len(lvlm.history) == 1


def test_ledger_key_is_what_is_asked_and_of_whom(ledger, tmp_path):
    with FaultServer(misbehave=says("ok")) as first, FaultServer(misbehave=says("ok")) as second:
        for stub in (first, second):
            ledger.ask(open_lvlm("openai:a", base_url=stub.base_url), JUDGE)
        ledger.ask(open_lvlm("openai:b", base_url=first.base_url), JUDGE)
        ledger.ask(open_lvlm("openai:a", base_url=first.base_url), Request("judge", (JUDGE.parts[0] + " ",)))
        ledger.ask(open_lvlm("openai:a", base_url=first.base_url), JUDGE)
        assert (first.requests, second.requests) == (3, 1)


def test_ledger_holds_no_picture_and_no_key(ledger, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with FaultServer(misbehave=says("S1: fine")) as stub:
        ledger.ask(open_lvlm("openai:a", base_url=stub.base_url), Request("critic", ("look", PNG)))
        assert stub.seen[0].headers["authorization"] == "Bearer sk-very-secret"
    content = (tmp_path / "lvlm.sqlite").read_bytes() + (tmp_path / "lvlm.sqlite-wal").read_bytes()
    assert b"sk-very-secret" not in content and b"base64" not in content
    assert json.loads(rows(tmp_path / "lvlm.sqlite")[0][3])["body"]["messages"][0]["content"][1]["image_url"]["url"]["sha256"]


def test_ledger_does_not_follow_a_redirect(ledger):
    with FaultServer(misbehave=says("ok")) as elsewhere:
        redirect = (307, {"location": f"{elsewhere.base_url}/chat/completions"}, b"")
        with FaultServer(misbehave=lambda seen: redirect) as stub, pytest.raises(LVLMRejected, match="307"):
            ledger.ask(open_lvlm("openai:a", base_url=stub.base_url), JUDGE)
        assert elsewhere.requests == 0


def test_ledger_does_not_take_another_protocol_for_an_answer(tmp_path):
    with FaultServer(misbehave=lambda seen: (200, {"content-type": "application/json"}, b'{"hello": 1}')) as stub:
        for _ in range(2):
            with Ledger(tmp_path / "lvlm.sqlite") as ledger, pytest.raises(LVLMProtocolError, match="base_url"):
                ledger.ask(open_lvlm("openai:a", base_url=stub.base_url), JUDGE)
    assert rows(tmp_path / "lvlm.sqlite", "state, outcome, raw") == [("failed", "malformed", '{"hello": 1}')] * 2


def test_the_wait_doubles_up_to_the_longest(tmp_path):
    """Each is drawn between half and all of it, so that requests that failed together do not come again together."""
    with Ledger(tmp_path / "lvlm.sqlite", patience=Patience(first_wait=1.0, longest_wait=6.0)) as ledger:
        for times, longest in enumerate((1.0, 2.0, 4.0, 6.0, 6.0), start=1):
            waits = [ledger._backoff(times) for _ in range(200)]
            assert longest / 2 <= min(waits) < 0.6 * longest and 0.9 * longest < max(waits) <= longest


def test_ledger_leaves_unknown_what_a_crash_left_pending(tmp_path):
    path = tmp_path / "lvlm.sqlite"
    lvlm = Scripted(lambda request: "said")
    with Ledger(path) as ledger:
        ledger.ask(lvlm, JUDGE)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE attempts SET state = 'pending', raw = NULL")
    with Ledger(path) as ledger:
        assert ledger.ask(lvlm, JUDGE).problem.startswith("unknown") and len(lvlm.history) == 1
    with Ledger(path, retry_unknown=True) as ledger:
        assert ledger.ask(lvlm, JUDGE).text == "said" and len(lvlm.history) == 2


def test_a_ledger_is_closed_at_the_end_of_its_context(tmp_path):
    with pytest.raises(ZeroDivisionError), Ledger(tmp_path / "lvlm.sqlite") as ledger:
        raise ZeroDivisionError
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        ledger.count("answered")


def test_ctrl_c_leaves_a_ledger_without_waiting_for_couriers(tmp_path, monkeypatch):
    left = []
    monkeypatch.setattr(Ledger, "leave", lambda self: left.append(self))
    with pytest.raises(KeyboardInterrupt), Ledger(tmp_path / "lvlm.sqlite") as ledger:
        raise KeyboardInterrupt
    assert left == [ledger]


def test_a_ledger_that_was_left_lets_its_courier_finish(tmp_path):
    """Nothing new is sent; what is under way is answered and written down after the command has gone on to its end."""
    path, other = tmp_path / "lvlm.sqlite", Request("judge", ("Another",))
    ledger = Ledger(path)
    with FaultServer(misbehave=says("ok"), delay=0.5) as stub, ThreadPoolExecutor(1) as pool:
        lvlm = open_lvlm("openai:a", base_url=stub.base_url)
        under_way = pool.submit(ledger.ask, lvlm, JUDGE)
        stub.wait_for(1)
        ledger.leave()
        with pytest.raises(LVLMUnavailable, match="^the run is stopping$"):
            ledger.ask(Scripted(lambda request: pytest.fail("asked")), other)
        ledger.close()
        assert ledger.count("pending") == 1, "close has waited for nothing, and has not closed the file that threads still use"
        assert under_way.result(10).text == "ok"
        (courier,) = ledger._couriers.values()
        courier.close()
    assert [(state, raw is not None) for state, raw, *_ in rows(path)] == [("answered", True)] and stub.requests == 1


@pytest.mark.parametrize("host", ["api.openai.com", "10.0.0.7", "127.0.0.1.evil.example", "localhost.evil.example"])
def test_a_remote_host_needs_leave(host):
    with pytest.raises(LVLMUnavailable, match=f"--allow-remote {host}"):
        open_lvlm("openai:a", base_url=f"https://{host}/v1")
    assert open_lvlm("openai:a", base_url=f"https://{host}/v1", allow_remote=(host,)).name == "openai:a"
