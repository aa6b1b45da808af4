"""What servers say when they will not answer, in their own bodies and headers, and what follows from it.

The bodies are written after the wording of the servers' errors in 2026: llama.cpp, llama-cpp-python 0.3.36, vLLM, SGLang, TGI, Ollama, LM Studio,
OpenAI, Azure, Anthropic, Google's Gemini (its own address and the OpenAI-compatible one), Groq, OpenRouter.
"""

from __future__ import annotations

import json
import time

import pytest

from rightreasons.errors import (
    LVLMBusy,
    LVLMRateLimited,
    LVLMRefused,
    LVLMRejected,
    LVLMTimeout,
    LVLMTooBig,
    LVLMTooMany,
    LVLMUnavailable,
    LVLMUnclear,
)
from rightreasons.lvlm.wire.delays import depleted_reset, read_duration, retry_after, stated_delay
from rightreasons.lvlm.wire.failures import Failure, classify


def kind(status: int, body: object, headers: dict | None = None) -> Exception:
    text = body if isinstance(body, str) else json.dumps(body)
    return classify(Failure(status, text, headers or {}), server="S", model="M", key="K")


def said(message: str, **fields: object) -> dict:
    return {"error": {"message": message, **fields}}


TOO_BIG = {
    "llama.cpp": (400, said("request (4390 tokens) exceeds the available context size (4096 tokens)", type="exceed_context_size_error", n_ctx=4096)),
    "llama.cpp, by its field alone": (400, said("nein", n_prompt_tokens=4390, n_ctx=4096)),
    "llama.cpp, 500": (500, said("Context size has been exceeded.", code=500, type="server_error")),
    "llama.cpp, batch": (500, said("input is too large to process. increase the physical batch size")),
    "llama-cpp-python": (400, said("Requested tokens (5012) exceed context window of 4096", code="context_length_exceeded")),
    "vLLM": (400, {"object": "error", "message": "The decoder prompt (length 5012) is longer than the maximum model length of 4096.", "code": 400}),
    "vLLM, with the cap": (400, said("'max_completion_tokens' is too large: 2048. This model's maximum context length is 4096 tokens")),
    "TGI": (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000", "error_type": "validation"}),
    "SGLang": (400, said("The input (5012 tokens) is longer than the model's context length (4096 tokens).", type="BadRequestError")),
    "Ollama": (400, said("input length exceeds maximum context length", type="api_error")),
    "LM Studio": (400, {"error": "Trying to keep the first 4507 tokens when context the overflows. The model is loaded with only 4096 tokens"}),
    "a local server without memory": (500, {"detail": "CUDA out of memory. Tried to allocate 2.00 GiB."}),
    "OpenAI": (400, said("...", code="context_length_exceeded", type="invalid_request_error")),
    "Anthropic": (400, said("messages.0.content.1.image.source.base64: image exceeds 5 MB maximum: 6000000 bytes > 5242880 bytes")),
    "Gemini": (400, [said("The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", status="INVALID_ARGUMENT")]),
    "a router, by what is behind it": (400, said("Provider returned error", metadata={"raw": "maximum context length is 4096 tokens"})),
    "429": (429, said("Request too large for gpt-x on tokens per min (TPM): Limit 30000, Requested 90000", code="rate_limit_exceeded")),
    "413": (413, "<html>413 Request Entity Too Large</html>"),
}


@pytest.mark.parametrize("case", TOO_BIG)
def test_more_than_a_context_or_a_server_takes(case):
    assert type(kind(*TOO_BIG[case])) is LVLMTooBig


@pytest.mark.parametrize(
    "words",
    [
        "At most 1 image(s) may be provided in one request.",
        "Too many images in request",
        "This model supports up to 1 image.",
        "only one image is supported",
        "multiple images are not supported by this model",
    ],
)
def test_too_many_pictures_are_told_from_too_large_ones(words):
    assert type(kind(400, said(words))) is LVLMTooMany


DETAILS = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "22s"}]
MINUTE = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "GenerateRequestsPerMinutePerProject"}]}
DAY = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}
PLAN = "You exceeded your current quota, please check your plan and billing details."
RATES = {
    "Gemini, by RetryInfo": (said(PLAN, status="RESOURCE_EXHAUSTED", details=DETAILS), {}, 22.0),
    "Gemini, in a list, by its words": ([said(f"{PLAN} Please retry in 22.3s.", code=429)], {}, 22.3),
    "Gemini, minute's quota": (said(PLAN, details=[MINUTE, *DETAILS]), {}, 22.0),
    "Vertex": (said("Quota exceeded for generate_content_requests_per_minute_per_project_per_base_model."), {}, None),
    "Vertex, busy": (said("Resource has been exhausted (e.g. check quota).", status="RESOURCE_EXHAUSTED"), {}, None),
    "Azure": (
        said("Requests have exceeded the token rate limit of your pricing tier. Please retry after 7 seconds. Request a quota increase."),
        {},
        7.0,
    ),
    "OpenAI": (said("Rate limit reached for requests. Please try again in 1m2s.", code="rate_limit_exceeded", type="requests"), {}, 62.0),
    "Anthropic": (said("This request would exceed your organization's rate limit of 30,000 input tokens per minute"), {"Retry-After": "9"}, 9.0),
    "Bedrock": (said("Too many tokens, please wait before trying again."), {}, None),
    "by the headers": (said("quota"), {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, None),
    "by its code": (said("quota", code="rate_limit_exceeded"), {}, None),
}


@pytest.mark.parametrize("case", RATES)
def test_a_limit_per_minute_is_waited_for_whatever_it_says_of_quota(case):
    body, headers, wait = RATES[case]
    error = kind(429, body, headers)
    if case == "by the headers":  # more than anybody waits for: stopped, and resumable, but not for want of quota
        assert type(error) is LVLMUnavailable and "360 seconds" in str(error)
    else:
        assert type(error) is LVLMRateLimited and error.wait == wait


SPENT = {
    "OpenAI": (429, said(PLAN, code="insufficient_quota", type="insufficient_quota"), {}),
    "its words alone": (429, said(PLAN), {}),
    "Anthropic": (400, said("Your credit balance is too low to access the API."), {}),
    "Google": (429, said("Your prepayment credits are depleted.", status="RESOURCE_EXHAUSTED"), {}),
    "a model that the plan does not have": (429, said(f"{PLAN} Quota exceeded for metric: requests, limit: 0. Please retry in 22s"), {}),
    "402": (402, "Payment required", {}),
    "LiteLLM": (429, said("Budget has been exceeded! Current cost: 0.2, Max budget: 0.1", type="budget_exceeded"), {}),
    "Anthropic, by the limit of a workspace": (
        400,
        said("You have reached your specified API usage limits. You will regain access on 2026-12-01."),
        {},
    ),
    "OpenRouter, by the limit of a key": (403, said("Key limit exceeded (total limit)."), {}),
}


@pytest.mark.parametrize("case", SPENT)
def test_what_no_waiting_brings_back_stops_the_run(case):
    error = kind(*SPENT[case])
    assert type(error) is LVLMRejected and "is left: raise it at the provider" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        said(PLAN, details=[DAY, *DETAILS]),
        said("Rate limit exceeded: free-models-per-day", metadata={"headers": {"X-RateLimit-Remaining": "0"}}),
        said("Rate limit reached on tokens per day (TPD): Limit 100000, Used 99950. Please try again in 2m10s.", code="rate_limit_exceeded"),
    ],
)
def test_a_days_quota_stops_the_run_however_soon_it_says_to_come_back(body):
    assert type(error := kind(429, body)) is LVLMUnavailable and "tomorrow" in str(error)


OTHERS = [
    (401, said("no"), LVLMRejected),
    (404, said("no model"), LVLMRejected),
    (400, [said("API key not valid.", details=[{"reason": "API_KEY_INVALID"}])], LVLMRejected),
    (400, said("The response was filtered", code="content_filter"), LVLMRefused),
    (400, said("your prompt is rude"), LVLMUnclear),
    (400, "", LVLMUnclear),
    (418, "a teapot", LVLMUnclear),
    (422, {"detail": [{"loc": ["body", "x"], "msg": "Field required"}]}, LVLMUnclear),
    (403, said("slow down", errors=[{"reason": "rateLimitExceeded"}]), LVLMRateLimited),
    (500, said("oops"), LVLMBusy),
    (503, said("The request queue is too long, try again later"), LVLMBusy),
    (504, said("upstream took too long"), LVLMTimeout),
    (500, "[" * 5000, LVLMBusy),
]


@pytest.mark.parametrize(("status", "body", "expected"), OTHERS)
def test_the_rest(status, body, expected):
    assert type(kind(status, body)) is expected


def test_a_500_names_a_parameter_where_it_is_a_check_of_the_request():
    """llama-cpp-python validates a request inside of its own code, and answers 500."""
    check = Failure(500, json.dumps(said("[{'type': 'literal_error', 'msg': \"Input should be 'text' or 'json_object'\"}]")), {})
    crash = Failure(500, json.dumps(said("Traceback: KeyError in sampler, request was {'response_format': {'type': 'json_schema'}}")), {})
    assert check.names("json_object") and not crash.names("json_schema")
    assert Failure(400, json.dumps(said("no", param="store")), {}).names("store")


def test_how_long_to_wait_in_every_form():
    assert [read_duration(value) for value in ("22s", "1m30s", "500ms", 3, "2 minutes", "0s", "soon", True)] == [
        22,
        90,
        0.5,
        3,
        120,
        None,
        None,
        None,
    ]
    assert (
        stated_delay("Rate limit resets in: 3 hours") == 10800 and stated_delay("wait 30 seconds") == 30 and stated_delay("try again later") is None
    )
    assert retry_after({"retry-after-ms": "250"}) == 0.25 and retry_after({"retry-after": "soon"}) is None
    now = time.time()
    for reset in (f"{now + 20:.0f}", f"{1000 * (now + 20):.0f}", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + 20)), "20", "20s"):
        found = depleted_reset({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset})
        assert found is not None and abs(found - 20) < 2
    assert depleted_reset({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "9s"}) is None, "something remains"
