"""The native backends against a loopback server in their wire format: what is sent, what is made of an answer, where they refuse to send."""

from __future__ import annotations

import base64
import json

import pytest

from rightreasons.errors import (
    ConfigError,
    LVLMBusy,
    LVLMProtocolError,
    LVLMRateLimited,
    LVLMRejected,
    LVLMTimeout,
    LVLMTooBig,
    LVLMUnavailable,
    LVLMUnclear,
)
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.backends.anthropic import Anthropic
from rightreasons.lvlm.backends.gemini import Gemini
from rightreasons.lvlm.ledger.ledger import Ledger, Patience
from rightreasons.lvlm.ledger.prices import Price
from rightreasons.lvlm.protocol import LVLM, Request, Usage, get_reply
from tests.support.helpers import png
from tests.support.wire_server import WireServer

KEY = "secret-test-0123456789abcdef"
SCHEMA = {
    "type": "object",
    "properties": {"S1": {"type": "string", "enum": ["relevant", "spurious", "unsure"]}, "why": {"type": "string", "maxLength": 200}},
    "required": ["S1", "why"],
    "additionalProperties": False,
}
QUESTION = Request("judge", ("What is S1?",), schema=SCHEMA)
BACKENDS = {"anthropic": Anthropic, "gemini": Gemini}
HOSTS = {"anthropic": "api.anthropic.com", "gemini": "generativelanguage.googleapis.com"}


def answers(kind: str, text: str = "ok", reason: str | None = None, **more: object) -> dict:
    """A success, as the provider writes it."""
    if kind == "anthropic":
        usage = {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 5}
        content = [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": text}] if text else []
        return {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": content,
            "stop_reason": reason or "end_turn",
            "usage": usage,
        } | more
    parts = [{"text": "hm", "thought": True}, {"text": text}] if text else []
    usage = {"promptTokenCount": 14, "candidatesTokenCount": 3, "thoughtsTokenCount": 2, "totalTokenCount": 19}
    return {"candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": reason or "STOP"}], "usageMetadata": usage} | more


def fails(kind: str, status: int, message: str, word: str = "x", headers: dict | None = None, **details: object):
    """A failure, as the provider writes it."""
    error = {"type": word, "message": message} if kind == "anthropic" else {"code": status, "message": message, "status": word, **details}
    body = {"type": "error", "error": error} if kind == "anthropic" else {"error": error}
    return lambda seen: (status, headers or {}, body)


@pytest.fixture
def ask(monkeypatch):
    """Opens a backend on a server, asks, and closes both; gives what came back and what was seen."""
    for name in ("ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def once(kind: str, reply, request: Request = QUESTION, times: int = 1, timeout: float = 20.0):
        with WireServer(reply) as wire:
            lvlm = BACKENDS[kind]("some-model", base_url=wire.base_url, timeout=timeout)
            try:
                for _ in range(times):
                    answer = lvlm.parse(get_reply(lvlm, request))
                return answer, wire.seen
            finally:
                lvlm.close()

    return once


def test_what_anthropic_is_sent(ask, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "another")
    pictures = [png(1), png(2)]
    request = Request("critic", ("look:", pictures[0], "and:", pictures[1]), schema=SCHEMA, max_tokens=77)
    answer, (seen,) = ask("anthropic", lambda seen: (200, {}, answers("anthropic")), request)
    assert (answer.text, answer.usage) == ("ok", Usage(14, 5)), "thoughts are no answer; what a cache had is counted"
    assert (seen.method, seen.path) == ("POST", "/v1/messages")
    assert seen.headers["authorization"] == f"Bearer {KEY}" and "another" not in str(seen.headers)
    (message,) = seen.body["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image", "text", "image"]
    sources = [part["source"] for part in message["content"] if part["type"] == "image"]
    assert [base64.b64decode(source["data"]) for source in sources] == pictures and {source["media_type"] for source in sources} == {"image/png"}
    assert set(seen.body) == {"model", "max_tokens", "messages", "output_config"} and seen.body["max_tokens"] == 77, "no tools, no temperature"
    form = seen.body["output_config"]["format"]
    assert form["type"] == "json_schema" and form["schema"]["required"] == ["S1", "why"] and not form["schema"]["additionalProperties"]
    assert form["schema"]["properties"]["S1"]["enum"] == SCHEMA["properties"]["S1"]["enum"]
    assert "maxLength" not in form["schema"]["properties"]["why"], "the service refuses bounds on strings"


@pytest.mark.parametrize("variable", ["GEMINI_API_KEY", "GOOGLE_API_KEY"])
def test_what_gemini_is_sent(ask, monkeypatch, variable):
    monkeypatch.setenv(variable, KEY)
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_GENAI_USE_ENTERPRISE", "true")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "elsewhere")
    pictures = [png(1), png(251)]
    request = Request("critic", ("look:", pictures[0], "and:", pictures[1]), schema=SCHEMA, max_tokens=77)
    answer, (seen,) = ask("gemini", lambda seen: (200, {}, answers("gemini")), request)
    assert (answer.text, answer.usage) == ("ok", Usage(14, 5)), "thoughts are no answer, and are paid for"
    assert seen.method == "POST" and seen.path.endswith("/models/some-model:generateContent")
    assert seen.headers["x-goog-api-key"] == KEY and KEY not in seen.path
    (content,) = seen.body["contents"]
    assert content["role"] == "user" and [next(iter(part)) for part in content["parts"]] == ["text", "inlineData", "text", "inlineData"]
    blobs = [part["inlineData"] for part in content["parts"] if "inlineData" in part]
    assert [base64.b64decode(blob["data"], altchars=b"-_") for blob in blobs] == pictures and all("image/png" in blob.values() for blob in blobs)
    assert seen.body["generationConfig"] == {"maxOutputTokens": 77, "responseMimeType": "application/json", "responseJsonSchema": SCHEMA}
    assert set(seen.body) == {"contents", "generationConfig"}, "no tools"


@pytest.mark.parametrize("kind", BACKENDS)
def test_no_schema_no_form(ask, kind):
    _, (seen,) = ask(kind, lambda seen: (200, {}, answers(kind)), Request("critic", ("hello",)))
    assert "output_config" not in seen.body and seen.body.get("generationConfig", {"maxOutputTokens": 2048}) == {"maxOutputTokens": 2048}


@pytest.mark.parametrize(
    ("kind", "whole", "outcome", "words"),
    [
        ("anthropic", answers("anthropic", "I cannot look", "refusal"), "refused", "I cannot look"),
        ("anthropic", answers("anthropic", "", "refusal"), "refused", "no reason"),
        ("anthropic", answers("anthropic", '{"S1"', "max_tokens"), "truncated", "cut off"),
        ("anthropic", answers("anthropic", '{"S1"', "model_context_window_exceeded"), "truncated", "cut off"),
        ("anthropic", answers("anthropic", ""), "truncated", "empty"),
        ("gemini", answers("gemini", "", "SAFETY"), "refused", "SAFETY"),
        ("gemini", answers("gemini", "half of it", "PROHIBITED_CONTENT"), "refused", "PROHIBITED_CONTENT"),
        ("gemini", {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 14}}, "refused", "blocked"),
        ("gemini", answers("gemini", "", "MAX_TOKENS"), "truncated", "empty"),
        ("gemini", answers("gemini", '{"S1"', "MAX_TOKENS"), "truncated", "cut off"),
        ("gemini", {"candidates": [{"finishReason": "STOP"}]}, "truncated", "empty"),
    ],
)
def test_a_success_that_is_no_answer(ask, kind, whole, outcome, words):
    answer, _ = ask(kind, lambda seen: (200, {}, whole))
    assert answer.outcome == outcome and words in answer.problem and answer.problem.startswith(outcome)


@pytest.mark.parametrize(
    ("kind", "status", "word", "message", "error", "words"),
    [
        ("anthropic", 401, "authentication_error", "invalid x-api-key", LVLMRejected, "ANTHROPIC_API_KEY"),
        ("anthropic", 403, "permission_error", "no", LVLMRejected, "may not use"),
        ("anthropic", 404, "not_found_error", "model: some-model", LVLMRejected, "name of a model"),
        ("anthropic", 400, "invalid_request_error", "Your credit balance is too low to access the API.", LVLMRejected, "no credit is left"),
        ("anthropic", 400, "invalid_request_error", "messages: roles must alternate", LVLMUnclear, "alternate"),
        ("anthropic", 400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", LVLMTooBig, "too long"),
        ("anthropic", 400, "invalid_request_error", "messages.0.content.1.image.source.base64: image exceeds 5 MB maximum", LVLMTooBig, "5 MB"),
        ("anthropic", 402, "billing_error", "payment required", LVLMRejected, "no quota is left"),
        ("anthropic", 413, "request_too_large", "Request exceeds the maximum size", LVLMTooBig, "413"),
        ("anthropic", 429, "rate_limit_error", "too many", LVLMRateLimited, "429"),
        ("anthropic", 500, "api_error", "oops", LVLMBusy, "500"),
        ("anthropic", 529, "overloaded_error", "Overloaded", LVLMBusy, "529"),
        ("gemini", 400, "INVALID_ARGUMENT", "API key not valid. API_KEY_INVALID", LVLMRejected, "GEMINI_API_KEY"),
        ("gemini", 403, "PERMISSION_DENIED", "no", LVLMRejected, "may not use"),
        ("gemini", 404, "NOT_FOUND", "models/some-model is not found", LVLMRejected, "name of a model"),
        ("gemini", 413, "INVALID_ARGUMENT", "no", LVLMTooBig, "413"),
        (
            "gemini",
            429,
            "RESOURCE_EXHAUSTED",
            "You exceeded your current quota, please check your plan and billing",
            LVLMRejected,
            "no quota is left",
        ),
        ("gemini", 503, "UNAVAILABLE", "The model is overloaded", LVLMBusy, "503"),
        ("gemini", 504, "DEADLINE_EXCEEDED", "slow", LVLMTimeout, "504"),
    ],
)
def test_a_failure_is_said_in_our_words_and_sent_once(ask, kind, status, word, message, error, words):
    """The SDKs' own retries are off: the ledger decides, and sees each attempt."""
    count = []
    reply = fails(kind, status, message, word)
    with pytest.raises(error, match=words) as raised:
        ask(kind, lambda seen: count.append(seen) or reply(seen), Request("judge", ("?",)))
    assert type(raised.value) is error and len(count) == 1


def test_how_long_to_wait(ask):
    with pytest.raises(LVLMRateLimited) as busy:
        ask("anthropic", fails("anthropic", 429, "slow down", "rate_limit_error", {"retry-after": "3"}))
    assert busy.value.wait == 3
    info = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7.5s"}]
    with pytest.raises(LVLMRateLimited) as busy:
        ask("gemini", fails("gemini", 429, "You exceeded your current quota", "RESOURCE_EXHAUSTED", details=info))
    assert busy.value.wait == 7.5
    day = [{"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]}, *info]
    with pytest.raises(LVLMUnavailable, match="tomorrow"):
        ask("gemini", fails("gemini", 429, "You exceeded your current quota", "RESOURCE_EXHAUSTED", details=day))


@pytest.mark.parametrize(("kind", "field"), [("anthropic", "output_config"), ("gemini", "responseJsonSchema")])
def test_a_schema_that_is_refused_is_left_out_from_then_on(kind, field, tmp_path):
    message = "output_config.format: this model does not support structured outputs" if kind == "anthropic" else "response_json_schema: bad schema"

    def reply(seen):
        sent = field in seen.body or field in seen.body.get("generationConfig", {})
        return fails(kind, 400, message, "invalid")(seen) if sent else (200, {}, answers(kind))

    ledger = Ledger(tmp_path / "lvlm.sqlite", patience=Patience(first_wait=0.01))
    with WireServer(reply) as wire:
        lvlm = BACKENDS[kind]("m", base_url=wire.base_url)
        lvlm.address = None  # no courier: it takes seconds to start
        assert [ledger.ask(lvlm, Request("judge", (text,), schema=SCHEMA)).text for text in "ab"] == ["ok", "ok"]
        lvlm.close()
        assert len(wire.seen) == 3, "learnt once"
    ledger.close()


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize(("reply", "error"), [("drop", LVLMTimeout), ("half", LVLMTimeout), ("hang", LVLMTimeout)])
def test_what_may_have_been_paid_for(ask, kind, reply, error):
    with pytest.raises(error) as lost:
        ask(kind, lambda seen: reply, timeout=0.5 if reply == "hang" else 20.0)
    assert lost.value.may_be_paid


@pytest.mark.parametrize("kind", BACKENDS)
@pytest.mark.parametrize("content", [b"<html>Sign in</html>", b"[]", b"null", b"{}", b'"words"'])
def test_a_200_from_something_else(ask, kind, content):
    with pytest.raises(LVLMProtocolError, match="base_url"):
        ask(kind, lambda seen: (200, {}, content))


@pytest.mark.parametrize("kind", BACKENDS)
def test_no_connection_is_busy_and_unpaid(kind):
    lvlm = BACKENDS[kind]("m", base_url="http://127.0.0.1:9")
    try:
        with pytest.raises(LVLMBusy, match="no connection") as busy:
            get_reply(lvlm, QUESTION)
        assert not busy.value.may_be_paid
        with pytest.raises(LVLMUnavailable, match="127.0.0.1:9"):
            lvlm.check()
    finally:
        lvlm.close()


@pytest.mark.parametrize("kind", BACKENDS)
def test_the_providers_host_needs_leave_and_a_key(kind, monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("rightreasons.lvlm.wire.server.read_key", lambda name: None)  # whatever this machine's keyring has
    with pytest.raises(LVLMUnavailable, match=f"--allow-remote {HOSTS[kind]}"):
        open_lvlm(f"{kind}:m")
    lvlm = open_lvlm(f"{kind}:m", allow_remote=(HOSTS[kind],))
    address = {"spec": f"{kind}:m", "base_url": f"https://{HOSTS[kind]}", "allow_remote": [HOSTS[kind]], "timeout": 180.0}
    assert lvlm.address == address and isinstance(lvlm, LVLM)
    with pytest.raises(LVLMUnavailable, match="_API_KEY"):
        lvlm.check()
    with pytest.raises(ConfigError, match="base_url"):
        open_lvlm(f"{kind}:m", base_url="nowhere")


@pytest.mark.parametrize("kind", BACKENDS)
def test_no_redirect_and_no_proxy(kind, monkeypatch):
    """Either would carry pictures to a host that nobody allowed."""
    with WireServer(lambda seen: (200, {}, answers(kind, "gotcha"))) as elsewhere:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, elsewhere.base_url)
        with WireServer(lambda seen: (307, {"location": elsewhere.base_url + seen.path}, {})) as wire:
            lvlm = BACKENDS[kind]("m", base_url=wire.base_url)
            with pytest.raises(LVLMRejected, match="307"):
                get_reply(lvlm, QUESTION)
            lvlm.close()
        assert wire.seen and not elsewhere.seen


@pytest.mark.parametrize("kind", BACKENDS)
def test_no_error_repeats_the_key(ask, kind, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY" if kind == "anthropic" else "GEMINI_API_KEY", KEY)
    with pytest.raises(LVLMRejected) as rejected:
        ask(kind, fails(kind, 401, f"bad key {KEY}"))
    assert KEY not in str(rejected.value) and "***" in str(rejected.value)


@pytest.mark.parametrize("kind", BACKENDS)
def test_check_is_free_and_says_what_is_wrong(kind, monkeypatch):
    replies = {
        "fine": (
            lambda seen: (200, {}, {"id": "m", "type": "model", "display_name": "m", "created_at": "2026-01-01T00:00:00Z", "name": "models/m"}),
            None,
        ),
        "no such list": (lambda seen: (404, {}, b"nothing here"), None),
        "no such model": (fails(kind, 404, "no model m", "not_found_error" if kind == "anthropic" else "NOT_FOUND"), "name of a model"),
        "a bad key": (fails(kind, 401, "no"), "_API_KEY"),
    }
    for reply, words in replies.values():
        with WireServer(reply) as wire:
            lvlm = BACKENDS[kind]("m", base_url=wire.base_url)
            if words is None:
                lvlm.check()
            else:
                with pytest.raises(LVLMRejected, match=words):
                    lvlm.check()
            lvlm.close()
            assert [seen.method for seen in wire.seen] == ["GET"]


@pytest.mark.parametrize("kind", BACKENDS)
def test_through_courier_and_ledger(kind, tmp_path, monkeypatch):
    """Paid for once, with the provider's own count; nothing of the picture or the key in the ledger."""
    monkeypatch.setenv("ANTHROPIC_API_KEY" if kind == "anthropic" else "GEMINI_API_KEY", KEY)
    picture = png(7)
    request = Request("critic", ("look", picture))
    with WireServer(lambda seen: (200, {}, answers(kind, f"key {len(wire.seen)}"))) as wire:
        lvlm = open_lvlm(f"{kind}:m", base_url=wire.base_url)
        ledger = Ledger(tmp_path / "lvlm.sqlite", price=Price(1.0, 1.0), max_usd=1.0)
        first, second = ledger.ask(lvlm, request), ledger.ask(lvlm, request)
        assert (first.text, second.text, second.cached, len(wire.seen)) == ("key 1", "key 1", True, 1)
        assert ledger.cost_usd() == pytest.approx(19e-6)
        ledger.close()
        lvlm.close()
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes() and base64.b64encode(picture)[20:60] not in path.read_bytes()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "anthropic:MODEL"),
        ("gpt-4o", "openai:MODEL"),
        ("openai", "expected one of"),
        ("local:", "local:FOLDER"),
        ("gemini:", "gemini:MODEL"),
        ("human:", "human:FILE"),
    ],
)
def test_a_backend_that_is_not_known(spec, words):
    with pytest.raises(ConfigError, match=words):
        open_lvlm(spec)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_body_is_json(kind):
    """What is hashed and kept is what the server gets: JSON gives back the very same."""
    lvlm = BACKENDS[kind]("m", base_url="http://127.0.0.1:9")
    body = lvlm.body(Request("critic", ("a", png(1)), schema=SCHEMA))
    lvlm.close()
    assert body and json.loads(json.dumps(body)) == body
