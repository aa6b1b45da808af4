"""The OpenAI-compatible backend against a real server: what it sends, what it makes of what comes back, and where it refuses to send at all."""

from __future__ import annotations

import base64
import email.utils
import io
import json
import sqlite3
import time

import pytest
from PIL import Image

from rightreasons.errors import ConfigError, LVLMBusy, LVLMProtocolError, LVLMRateLimited, LVLMRejected, LVLMTimeout, LVLMUnavailable, LVLMUnclear
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.backends.openai import OpenAICompatible
from rightreasons.lvlm.backends.scripted import Scripted
from rightreasons.lvlm.ledger.ledger import Ledger, Patience
from rightreasons.lvlm.pictures import MOST_BYTES, MOST_SIDE
from rightreasons.lvlm.protocol import Request, get_reply
from rightreasons.lvlm.wire.composite import SMALL_SIDE, join_pictures, shrink_pictures
from tests.support.fault_server import FaultServer, always, completion, error, first, html, on_the_wire, rejects, says
from tests.support.helpers import Direct, png

KEY = "sk-test-0123456789abcdef"
QUESTION = Request("judge", ("What is S1?",))
SCHEMA = {"type": "object", "properties": {"S1": {"type": "string"}}, "required": ["S1"], "additionalProperties": False}


@pytest.fixture
def direct():
    opener = Direct()
    yield opener
    opener.close()


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger(tmp_path / "lvlm.sqlite", patience=Patience(first_wait=0.01))
    yield opened
    opened.close()


def test_a_request_as_it_arrives(direct):
    pictures = [png(shade, (512, 520)) for shade in (1, 2)]
    request = Request("critic", ("look:", pictures[0], "and:", pictures[1]), schema=SCHEMA, max_tokens=77)
    with FaultServer(misbehave=says("ok")) as stub:
        lvlm = direct(stub, "a/model:7b")
        assert lvlm.parse(get_reply(lvlm, request)).text == "ok"
        (seen,) = stub.seen
    assert not seen.problems
    (message,) = seen.body["messages"]
    assert message["role"] == "user" and seen.body["model"] == "a/model:7b"
    assert [part["type"] for part in message["content"]] == ["text", "image_url", "text", "image_url"], "in the order in which they were given"
    sent = [base64.b64decode(part["image_url"]["url"].split(",")[1]) for part in message["content"] if part["type"] == "image_url"]
    assert sent == pictures, "byte for byte"
    assert seen.body["max_completion_tokens"] == seen.body["max_tokens"] == 77, "some servers on this machine ignore the one or the other"
    assert "temperature" not in seen.body and "tools" not in seen.body, "newer models reject the one, and none gets the other"
    assert seen.body["response_format"]["json_schema"]["schema"] == SCHEMA


def test_no_schema_no_response_format(direct):
    with FaultServer(misbehave=says("ok")) as stub:
        lvlm = direct(stub)
        get_reply(lvlm, QUESTION)
        assert "response_format" not in stub.seen[0].body


@pytest.mark.parametrize(("status", "kind"), [(500, LVLMBusy), (502, LVLMBusy), (429, LVLMBusy), (408, LVLMBusy), (409, LVLMBusy)])
def test_what_may_pass_is_busy_and_sent_once(direct, status, kind):
    """max_retries is 0: the ledger decides, and sees each attempt."""
    with FaultServer(misbehave=always(status)) as stub:
        with pytest.raises(kind, match=str(status)):
            lvlm = direct(stub)
            get_reply(lvlm, QUESTION)
        assert stub.requests == 1


@pytest.mark.parametrize(
    ("status", "words"), [(400, "too long"), (401, "OPENAI_API_KEY"), (403, "may not use"), (404, "'stub'"), (413, "413"), (422, "422")]
)
def test_what_will_not_pass_is_rejected(direct, status, words):
    with FaultServer(misbehave=always(status, "too long")) as stub:
        with pytest.raises(LVLMRejected, match=words):
            lvlm = direct(stub)
            get_reply(lvlm, QUESTION)
        assert stub.requests == 1


@pytest.mark.parametrize(
    ("header", "wait"),
    [("3", 3.0), ("0.25", 0.25), ("-5", None), ("nan", None), ("soon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", None), (None, None)],
)
def test_retry_after(direct, header, wait):
    with FaultServer(misbehave=always(429, headers={"retry-after": header} if header else {})) as stub, pytest.raises(LVLMRateLimited) as busy:
        lvlm = direct(stub)
        get_reply(lvlm, QUESTION)
    assert busy.value.wait == wait


def test_retry_after_as_a_date_and_in_milliseconds(direct):
    for header, low, high in (
        ({"retry-after": email.utils.formatdate(time.time() + 30, usegmt=True)}, 20, 31),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5, 1.5),
    ):
        with FaultServer(misbehave=always(429, headers=header)) as stub, pytest.raises(LVLMRateLimited) as busy:
            lvlm = direct(stub)
            get_reply(lvlm, QUESTION)
        assert low <= busy.value.wait <= high


def test_a_server_that_wants_a_day_stops_the_run(direct):
    with FaultServer(misbehave=always(429, headers={"retry-after": "86400"})) as stub, pytest.raises(LVLMUnavailable, match="86400 seconds"):
        lvlm = direct(stub)
        get_reply(lvlm, QUESTION)


def test_the_ladder_goes_down_once(direct, ledger):
    """A JSON schema, any JSON object, plain text: what a server refuses is not offered to it again."""

    def only_text(seen):
        kind = seen.body.get("response_format", {}).get("type")
        return error(400, f"response_format '{kind}' is not supported") if kind else (200, {}, completion("ok"))

    with FaultServer(misbehave=only_text) as stub:
        lvlm = direct(stub)
        for i in range(3):
            assert ledger.ask(lvlm, Request("judge", (f"question {i}",), schema=SCHEMA)).text == "ok"
        assert [seen.body.get("response_format", {}).get("type") for seen in stub.seen] == ["json_schema", "json_object", None, None, None]


def test_max_completion_tokens_becomes_max_tokens(direct, ledger):
    with FaultServer(misbehave=lambda seen: rejects("max_completion_tokens")(seen) or (200, {}, completion("ok"))) as stub:
        lvlm = direct(stub)
        for i in range(2):
            assert ledger.ask(lvlm, Request("judge", (f"question {i}",), max_tokens=77)).text == "ok"
        assert ["max_completion_tokens" in seen.body for seen in stub.seen] == [True, False, False], "learnt once"
        assert [seen.body["max_tokens"] for seen in stub.seen[1:]] == [77, 77]


def test_no_request_goes_without_a_cap(direct, ledger):
    """A server that takes neither name of the cap is not asked without one: no cost would be bounded."""
    with FaultServer(
        misbehave=lambda seen: error(400, "unknown parameter: " + ("max_tokens" if "max_tokens" in seen.body else "max_completion_tokens"))
    ) as stub:
        with pytest.raises(LVLMRejected, match="max_tokens"):
            ledger.ask(direct(stub), QUESTION)
        assert all({"max_tokens", "max_completion_tokens"} & seen.body.keys() for seen in stub.seen) and stub.requests == 4


def test_two_names_of_the_cap_that_do_not_go_together(direct, ledger):
    """OpenAI's words for it, as a proxy on this machine passes them on."""
    words = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."

    def wrong(seen):
        return error(400, words) if {"max_tokens", "max_completion_tokens"} <= seen.body.keys() else (200, {}, completion("ok"))

    with FaultServer(misbehave=wrong) as stub:
        assert ledger.ask(direct(stub), QUESTION).text == "ok"
        assert "max_tokens" not in stub.seen[1].body and stub.requests == 2
    elsewhere = open_lvlm("openai:m", base_url="https://model.example/v1", allow_remote=("model.example",))
    assert "max_tokens" not in elsewhere.fit(elsewhere.body(QUESTION)), "a server elsewhere is told one"


def test_a_422_that_names_several_parameters_at_once(direct, ledger):

    def wrong(seen):
        named = [key for key in ("max_completion_tokens", "response_format") if key in seen.body]
        return error(422, f"Unsupported fields in the request: {named}") if named else (200, {}, completion("ok"))

    with FaultServer(misbehave=wrong) as stub:
        assert ledger.ask(direct(stub), Request("judge", ("?",), schema=SCHEMA)).text == "ok"
        assert stub.requests == 3


def test_store_is_for_servers_elsewhere():
    body = open_lvlm("openai:m", base_url="https://model.example/v1", allow_remote=("model.example",)).body(QUESTION)
    assert body["store"] is False and "store" not in open_lvlm("openai:m").body(QUESTION)


def test_a_400_that_names_nothing_known_is_tried_once_more(direct, ledger):
    with FaultServer(misbehave=always(400, "your prompt is rude")) as stub:
        with pytest.raises(LVLMUnclear, match="rude"):
            ledger.ask(direct(stub), QUESTION)
        assert stub.requests == 2


@pytest.mark.parametrize(
    ("misbehave", "problem"),
    [
        (says(None, refusal="I will not look at that."), "refused: I will not look at that."),
        (says(""), "truncated: empty answer (finish reason 'stop')"),
        (says(" \n"), "truncated: empty answer (finish reason 'stop')"),
        (says(None, finish_reason="length"), "truncated: empty answer (finish reason 'length')"),
        (says(None, finish_reason="content_filter"), "refused: the provider's content filter stopped the answer"),
    ],
)
def test_a_200_without_an_answer_is_a_problem(direct, ledger, misbehave, problem):
    with FaultServer(misbehave=misbehave) as stub:
        answer = ledger.ask(direct(stub), QUESTION)
    assert (answer.text, answer.problem) == ("", problem)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<think>S1 is {a tag}.</think>\n\nS1: the lesion", "S1: the lesion"),
        ("S1 is a tag.\n</think>\nS1: the lesion", "S1: the lesion"),  # the prompt opened the thoughts
        ([{"type": "text", "text": "S1: "}, {"type": "text", "text": "the lesion"}], "S1: the lesion"),
        ("<think>S1 is", ""),
        ([{"type": "image_url"}], ""),
    ],
)
def test_what_is_said_and_not_what_is_thought(direct, content, text):
    with FaultServer(misbehave=says(content)) as stub:
        lvlm = direct(stub)
        answer = lvlm.parse(get_reply(lvlm, QUESTION))
    assert answer.text == text and (answer.outcome == "truncated") == (not text)


@pytest.mark.parametrize(
    "content", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}', b'{"choices": 5}', b"[]", b"null", b"\xff\xfe"]
)
def test_a_200_that_is_no_completion_is_a_protocol_error(direct, ledger, content):
    with FaultServer(misbehave=lambda seen: (200, {"content-type": "application/json"}, content)) as stub:
        with pytest.raises(LVLMProtocolError, match="not as an OpenAI-compatible server"):
            ledger.ask(direct(stub), QUESTION)
        assert stub.requests == 1


def test_a_dropped_connection_is_tried_again(direct, ledger):
    with FaultServer(answer=lambda seen: "ok", misbehave=on_the_wire("drop", 1)) as stub:
        assert ledger.ask(direct(stub), QUESTION).text == "ok"
        assert stub.requests == 2


def test_no_answer_in_time_is_a_timeout_that_says_so():
    with FaultServer(delay=0.6) as stub:
        lvlm = OpenAICompatible("stub", base_url=stub.base_url, timeout=0.2)
        try:
            with pytest.raises(LVLMTimeout, match="0.2 seconds"):
                get_reply(lvlm, QUESTION)
        finally:
            lvlm.close()


@pytest.mark.parametrize(
    "address",
    [
        "https://api.openai.com/v1",
        "http://192.168.0.7:8000/v1",
        "https://127.0.0.1.example.com/v1",
        "http://0.0.0.0:8000/v1",
    ],
)
def test_a_remote_host_needs_leave(address):
    from urllib.parse import urlsplit

    host = urlsplit(address).hostname
    with pytest.raises(LVLMUnavailable, match=f"--allow-remote {host}") as refused:
        open_lvlm("openai:m", base_url=address)
    assert "would be sent" in str(refused.value)
    with pytest.raises(LVLMUnavailable, match=f"--allow-remote {host}"):
        open_lvlm("openai:m", base_url=address, allow_remote=("another.example",))
    assert open_lvlm("openai:m", base_url=address, allow_remote=(host,)).name == "openai:m"


@pytest.mark.parametrize("address", ["http://127.0.0.1@example.com/v1", "http://me:s3cret@127.0.0.1:1/v1", "https://llm.example/v1?key=s3cret"])
def test_an_address_carries_no_secret(address):
    with pytest.raises(ConfigError, match="keyring") as refused:
        open_lvlm("openai:m", base_url=address, allow_remote=("example.com", "llm.example"))
    assert "s3cret" not in str(refused.value)


def test_an_address_without_its_v1_is_told_before_long_work():
    with FaultServer() as stub, pytest.raises(LVLMUnavailable, match=r"set \[critic\] base_url = '.*/v1'"):
        open_lvlm("openai:stub", base_url=stub.base_url.removesuffix("/v1")).check()


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000/v1", "http://127.9.9.9/v1", "http://[::1]:8000/v1", "http://localhost:11434/v1"])
def test_this_machine_needs_none(address):
    open_lvlm("openai:m", base_url=address)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(direct, status):
    with FaultServer(misbehave=says("gotcha")) as elsewhere:
        away = (status, {"location": elsewhere.base_url + "/chat/completions"}, b"")
        with FaultServer(misbehave=lambda seen: away, models=(status, {"location": elsewhere.base_url + "/models"}, b"")) as stub:
            lvlm = direct(stub)
            lvlm.check()
            with pytest.raises(LVLMRejected, match=str(status)):
                get_reply(lvlm, QUESTION)
        assert (elsewhere.requests, elsewhere.listed) == (0, 0), "pictures went to a host that nobody allowed"


def test_a_proxy_from_the_environment_sees_no_loopback_request(direct, monkeypatch):
    with FaultServer(misbehave=says("proxied")) as proxy, FaultServer(misbehave=says("direct")) as stub:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.base_url.removesuffix("/v1"))
        lvlm = direct(stub)
        assert lvlm.parse(get_reply(lvlm, QUESTION)).text == "direct"
        assert proxy.requests == 0


def test_the_key_comes_from_the_environment_and_stays_there(direct, ledger, tmp_path, monkeypatch):
    """Even a server that repeats the key in its error does not get it written down."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    echo = lambda seen: error(500, f"Incorrect API key provided: {seen.headers['authorization']}") if seen.times == 1 else (200, {}, completion("ok"))  # noqa: E731
    with FaultServer(misbehave=echo) as stub:
        assert ledger.ask(direct(stub), QUESTION).text == "ok"
        assert all(seen.headers["authorization"] == f"Bearer {KEY}" for seen in stub.seen)
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes(), path.name


def test_no_error_message_repeats_the_key(direct, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FaultServer(misbehave=lambda seen: error(401, f"Incorrect API key provided: {KEY}")) as stub, pytest.raises(LVLMRejected) as rejected:
        lvlm = direct(stub)
        get_reply(lvlm, QUESTION)
    assert KEY not in str(rejected.value) and "OPENAI_API_KEY" in str(rejected.value)


def test_without_a_key_none_is_made_up(direct, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FaultServer(misbehave=says("ok")) as stub:
        lvlm = direct(stub)
        get_reply(lvlm, QUESTION)
        assert stub.seen[0].headers["authorization"] == "Bearer none"


def test_check_is_free(direct):
    with FaultServer() as stub:
        direct(stub).check()
        assert (stub.requests, stub.listed) == (0, 1)


def test_check_takes_a_list_of_models_that_is_a_bare_array(direct):
    """Together AI lists its models so."""
    listed = (200, {"content-type": "application/json"}, b'[{"id": "stub", "object": "model", "type": "chat"}]')
    with FaultServer(models=listed) as stub:
        direct(stub).check()
        assert stub.listed == 1


def test_check_takes_a_server_without_a_list_as_being_there(direct):
    with FaultServer(models=error(404, "no list")) as stub:
        direct(stub).check()


@pytest.mark.parametrize(
    ("models", "kind", "words"),
    [
        (error(401, "no"), LVLMRejected, "OPENAI_API_KEY"),
        (error(403, "no"), LVLMRejected, "OPENAI_API_KEY"),
        (html(None), LVLMProtocolError, "OpenAI"),
    ],
)
def test_check_says_what_is_wrong(direct, models, kind, words):
    with FaultServer(models=models) as stub, pytest.raises(kind, match=words):
        direct(stub).check()


def test_check_where_nobody_listens(direct):
    with pytest.raises(LVLMUnavailable, match=r"127\.0\.0\.1:9/v1.*base_url"):
        direct("http://127.0.0.1:9/v1").check()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", r"lvlm = '' is not known; expected one of openai:MODEL"),
        ("openai", r"lvlm = 'openai' is not known; expected one of openai:MODEL"),
        ("gpt-4o", r"lvlm = 'gpt-4o' is not known"),
        ("claude:x", r"lvlm = 'claude:x' is not known; .*anthropic:MODEL"),
        ("openai:", r"lvlm = 'openai:' says nothing after the colon; expected openai:MODEL"),
        ("simulated:2", r"lvlm = 'simulated:2': rates lie between 0 and 1, .*; expected simulated:0.87"),
        ("simulated:a=1", r"lvlm = 'simulated:a=1': unknown a; expected .*sensitivity="),
        ("scripted:/absent.json", r"lvlm = 'scripted:/absent.json': .*No such file.*expected a JSON file with the lists critic and judge"),
    ],
)
def test_a_backend_that_is_not_known(spec, words):
    from rightreasons.records import GroundTruth

    with pytest.raises(ConfigError, match=words):
        open_lvlm(spec, truth=GroundTruth([], lambda index: None))


def test_scripted_plays_a_file_in_order(tmp_path):
    (tmp_path / "script.json").write_text('{"critic": ["S1: a tag"], "judge": ["first", "last"]}')
    lvlm = open_lvlm(f"scripted:{tmp_path / 'script.json'}")
    assert isinstance(lvlm, Scripted)
    said = [lvlm.answer(Request(role, ("?",))) for role in ("judge", "critic", "judge", "judge", "critic")]
    assert said == ["first", "S1: a tag", "last", "last", "S1: a tag"] and len(lvlm.history) == 5


def test_the_courier_brings_back_what_kind_of_error_it_was(tmp_path):
    """Through the process of its own that carries requests: kind, message and wait of an error, and the answer after it."""
    with (
        Ledger(tmp_path / "lvlm.sqlite", patience=Patience(first_wait=0.01)) as ledger,
        FaultServer(misbehave=lambda seen: first(1, 429, "slow down", {"retry-after": "0.1"})(seen) or (200, {}, completion("ok"))) as stub,
    ):
        lvlm = open_lvlm("openai:stub", base_url=stub.base_url)
        assert ledger.ask(lvlm, QUESTION).text == "ok"
        stub.misbehave = always(404, "gone")
        with pytest.raises(LVLMRejected, match="gone"):
            ledger.ask(lvlm, Request("judge", ("another",)))
    connection = sqlite3.connect(tmp_path / "lvlm.sqlite")
    assert [state for (state,) in connection.execute("SELECT state FROM attempts ORDER BY id")] == ["failed", "answered", "failed"]
    connection.close()


def test_a_server_that_checks_the_form_in_a_500_is_asked_for_what_it_takes(direct, ledger):
    """llama-cpp-python 0.3.36 takes any JSON object and no schema, and says so with a 500."""
    words = "[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), 'msg': \"Input should be 'text' or 'json_object'\"}]"

    def form(seen):
        return seen.body.get("response_format", {}).get("type")

    with FaultServer(misbehave=lambda seen: error(500, words) if form(seen) == "json_schema" else (200, {}, completion("ok"))) as stub:
        assert ledger.ask(direct(stub), Request("judge", ("?",), schema=SCHEMA)).text == "ok"
        assert [form(seen) for seen in stub.seen] == ["json_schema", "json_object"]


def test_every_picture_is_bounded_in_pixels_and_bytes_before_it_is_sent():
    """A large photograph, noise that PNG cannot make small, and the composite of three; what fits is sent byte for byte."""
    buffer = io.BytesIO()
    Image.effect_noise((2400, 1800), 100).convert("RGB").save(buffer, "PNG")
    noise = buffer.getvalue()
    fits = png(1, (512, 520))
    request = Request("critic", ("look:", noise, "and:", fits, noise))
    large, small, _ = (part for part in request.parts if isinstance(part, bytes))
    assert small is fits and len(noise) > MOST_BYTES
    for shaped, side in ((request, MOST_SIDE), (join_pictures(request), MOST_SIDE), (shrink_pictures(request), SMALL_SIDE)):
        for part in shaped.parts:
            if isinstance(part, bytes):
                assert len(part) <= MOST_BYTES and max(Image.open(io.BytesIO(part)).size) <= side
    width, height = Image.open(io.BytesIO(large)).size
    assert abs(width / height - 2400 / 1800) < 0.01, "its shape stays"


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        # xAI, and Gemini at its OpenAI-compatible address: thoughts are in the total alone.
        ({"prompt_tokens": 10120, "completion_tokens": 1499, "total_tokens": 14428}, (10120, 4308)),
        ({"prompt_tokens": 21, "completion_tokens": 0, "total_tokens": 81}, (21, 60)),
        # OpenAI: they are part of the answer's tokens.
        ({"prompt_tokens": 20, "completion_tokens": 90, "total_tokens": 110, "completion_tokens_details": {"reasoning_tokens": 80}}, (20, 90)),
        ({"prompt_tokens": 20, "completion_tokens": 90}, (20, 90)),
        ({"prompt_tokens": 20, "completion_tokens": 90, "total_tokens": 0}, (20, 90)),
        ({"total_tokens": 110}, (None, None)),
    ],
)
def test_thoughts_are_counted_wherever_a_server_counts_them(counted, expected):
    whole = json.loads(completion("ok")) | {"usage": counted}
    usage = open_lvlm("openai:m").parse(json.dumps(whole)).usage
    assert (usage.input_tokens, usage.output_tokens) == expected
