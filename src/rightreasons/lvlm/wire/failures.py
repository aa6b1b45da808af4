"""The kind of failure that an HTTP response is: the error table of docs/critic.md, for every backend that uses HTTP.

Fields are read first (status, code, type, n_ctx, retryDelay, Retry-After, rate-limit headers), since they change less often than a server's words.
Words come second, and a response that neither explains is LVLMUnclear, which concerns one request and not the run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rightreasons.errors import (
    LVLMBusy,
    LVLMError,
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

# If a server asks to wait for more seconds than this, the run stops, and can be resumed.
LONGEST_PAUSE = 300.0
# A proxy gave up waiting. The server behind it may have finished the answer, which is then paid for.
_GATEWAY_TIMEOUTS = (504, 524)

# Codes, types and reasons, compared in lower case and without punctuation: exceed_context_size_error is exceedcontextsizeerror.
_BIG_KIND = re.compile(r"context(length|size|window)|too(large|long|big)|toomany(image|token|picture)|lengthexceeded|exceeds?max|abovemax")
_SPENT_KIND = re.compile(r"insufficient(user)?(quota|balance|credit|fund)|billing|balance|arrear|paymentrequired|budgetexceeded")
_RATE_KIND = re.compile(r"ratelimit|ratequota|throttl|toomanyrequest|limitrequests|concurren")
_KEY = re.compile(r"(invalid|incorrect) api[ _]?key|api[ _]?key[ _](not valid|invalid)", re.IGNORECASE)

_FILTER = re.compile(r"content_filter|content_policy|content management policy|responsibleai|safety system|moderation", re.IGNORECASE)
_MANY = re.compile(
    r"(at most|up to|more than|maximum( of)?|limited to|limit of|only( supports?)?) (\d+|one|a single|single) (image|picture|media)"
    r"|too many (image|picture|media)|(image|picture)s?\b[^.\n]{0,40}\btoo many|(number of|multiple) (image|picture)",
    re.IGNORECASE,
)
# A context that is too small, in the words of llama.cpp, vLLM, SGLang, TGI, Ollama, LM Studio, transformers and the hosted ones.
_LONG = re.compile(
    r"context[ _-]?(length|window|size)|\bn(um)?_ctx\b|context\W+(\w+\W+)?overflow|kv cache|out of memory|too large to process"
    r"|max(imum)?[ _-]?(model|seq(uence)?|input|prompt|token)s?[ _-]?(len|limit|count)|range of input length"
    r"|(prompt|input|inputs|sequence|conversation|tokens?|token count|message)\b[^\n]{0,120}"
    r"(\btoo (long|large|many)|\bexceed|\b(long|larg|great)er than|must (be|have) (<|less|at most|fewer))",
    re.IGNORECASE,
)
_LARGE = re.compile(
    r"(request|payload|body|entity|image|picture|prompt|input|message)s?\b[^.\n]{0,60}\b(too (large|long|big)|exceeds?)\b|too (large|long|big) for",
    re.IGNORECASE,
)
# A 429 is about tokens or requests per minute, so only words as strong as these mean that this very request can never pass.
_NEVER_FITS = re.compile(r"(request|payload|body|prompt|input|message|image|picture)s?\b[^.\n]{0,40}\btoo (large|long|big)", re.IGNORECASE)
# Money or a quota that waiting does not bring back. A limit of 0 means a model that this plan does not include.
_SPENT = re.compile(
    r"insufficient (quota|balance|credit|fund)|out of credit|no credit|credit balance"
    r"|(credit|balance|prepay)[^.\n]{0,40}(deplet|exhaust|too low|used up)"
    r"|budget has been exceeded|specified api usage limits|key limit exceeded"
    r"|spend(ing)? (limit|cap)|billing (hard )?limit|payment required|\blimit: 0\b",
    re.IGNORECASE,
)
_DAILY = re.compile(r"per[ _-]?(day|week|month)|\b(daily|weekly|monthly|rpd|tpd)\b", re.IGNORECASE)
_RATE = re.compile(
    r"per[ _-]?(s|sec|second|m|min|minute|hour)\b|per[_-](minute|second)|/ ?(s|min)\b|\b[rt]pm\b"
    r"|rate.?limit|too many|try again|slow|has been exhausted",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"quota|billing|credit", re.IGNORECASE)
# The words of a validation error in a 500, which some servers give because they validate the request inside their own code.
_VALIDATION = re.compile(
    r"input should be|validation|invalid|unsupported|not (supported|permitted|allowed|implemented)"
    r"|unexpected|unknown|unrecogni[sz]ed|must be|expected",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """A response that is not a success: its status, its text and its headers, in any case."""

    status: int
    text: str
    headers: Mapping[str, str]

    @cached_property
    def error(self) -> dict[str, Any]:
        """The error object of the answer, empty if there is none."""
        try:
            said = json.loads(self.text)
        except (ValueError, RecursionError):
            return {}
        if isinstance(said, list) and said:  # Google's OpenAI-compatible endpoint wraps the object in a list
            said = said[0]
        inner = said.get("error") or said.get("detail") or said if isinstance(said, dict) else {}
        return inner if isinstance(inner, dict) else {"message": inner if isinstance(inner, str) else json.dumps(inner)}

    @property
    def words(self) -> str:
        """All of its text that is written for people."""
        behind = [value for key, value in fields(self.error) if key == "raw" and isinstance(value, str)]  # the message of a server behind a router
        return " ".join([str(self.error.get("message") or self.text), *behind])

    @property
    def message(self) -> str:
        """The first 300 characters of ``words``."""
        return self.words[:300]

    @cached_property
    def kinds(self) -> str:
        """Every code, type, status and reason in the response, in lower case and without punctuation."""
        named = [value for key, value in fields(self.error) if key in ("code", "type", "status", "reason", "error_type", "error_code")]
        return " ".join(re.sub(r"[^a-z0-9]", "", str(value).lower()) for value in named)

    @property
    def delay(self) -> float | None:
        """Seconds to wait according to a header, a field, the words, or the renewal of a used-up limit; None if nothing says so."""
        named = [read_duration(value) for key, value in fields(self.error) if key.lower() in ("retrydelay", "retry_after", "retry_after_seconds")]
        headers = {name.lower(): value for name, value in self.headers.items()}
        stated = (retry_after(headers), *named, stated_delay(self.words), depleted_reset(headers))
        return next((seconds for seconds in stated if seconds is not None), None)

    @property
    def daily(self) -> bool:
        """Whether the quota that is used up is counted by the day or longer."""
        quotas = [str(value) for key, value in fields(self.error) if key == "quotaId"]
        if quotas:
            return any(_DAILY.search(quota) for quota in quotas)
        return bool(_DAILY.search(self.words)) and not re.search(r"per[ _-]?min", self.words, re.IGNORECASE)

    def names(self, parameter: str) -> bool:
        """Whether this refuses that parameter. A 500 counts if its words are those of a validation error."""
        if self.status not in (400, 422) and not (self.status in (500, 501) and _VALIDATION.search(self.words)):
            return False
        return self.error.get("param") == parameter or re.search(rf"(?<![a-z_]){parameter}(?![a-z_])", self.text) is not None

    @property
    def too_big(self) -> bool:
        """Whether there are too many pictures, or the pictures or the text are too large for the model or the server."""
        if self.status == 413 or "n_ctx" in self.error or (_BIG_KIND.search(self.kinds) and not _RATE_KIND.search(self.kinds)):
            return True
        if self.status == 429:
            return bool(_NEVER_FITS.search(self.words))
        if self.status in (400, 422):
            return any(pattern.search(self.words) for pattern in (_MANY, _LONG, _LARGE))
        return self.status >= 500 and self.status not in _GATEWAY_TIMEOUTS and bool(_LONG.search(self.words))

    @property
    def spent(self) -> bool:
        """Whether money or a quota is used up that waiting does not bring back."""
        if self.status == 402 or _SPENT_KIND.search(self.kinds) or (self.status < 500 and _SPENT.search(self.words)):
            return True
        slow = self.delay is not None or _RATE_KIND.search(self.kinds) or _RATE.search(self.words)
        return self.status == 429 and not slow and bool(_QUOTA.search(self.words))


def classify(failure: Failure, *, server: str, model: str, key: str) -> LVLMError:
    """The error to raise for a response that is not a success. ``key`` is the environment variable of the API key."""
    status, words = failure.status, f"{server} answers {failure.status}: {failure.message}"
    nowhere = f"is {model!r} the name of a model there, and does base_url end as the server expects, often in /v1?"
    hints = {401: f"set {key}", 403: "this key may not use this model", 404: nowhere}
    limited = status == 429 or (status == 403 and _RATE_KIND.search(failure.kinds) is not None)
    if status in (400, 403, 422) and _FILTER.search(failure.text):
        return LVLMRefused(words)
    if failure.too_big:
        kind = LVLMTooMany if _MANY.search(failure.words) else LVLMTooBig
        return kind(f"{words} (the pictures are too many or too large for this model: choose another one, a longer context, or smaller images)")
    if limited and failure.daily:
        return LVLMUnavailable(f"{words} (the quota of this period is used up: run the same command again tomorrow, or once it is renewed)")
    if failure.spent:
        what = "credit" if "credit" in failure.words else "quota"
        return LVLMRejected(f"{words} (no {what} is left: raise it at the provider and run the same command again)")
    if status in _GATEWAY_TIMEOUTS:
        return LVLMTimeout(words, failure.delay)
    if limited or status in (408, 409) or status >= 500:
        wait = failure.delay
        if wait is not None and wait > LONGEST_PAUSE:
            return LVLMUnavailable(f"{words} (it asks to wait {wait:.0f} seconds: run the same command again after that)")
        return LVLMRateLimited(words, wait) if limited else LVLMBusy(words, wait)
    if status == 400 and _KEY.search(failure.text):
        return LVLMRejected(f"{words} (set {key})")
    if status in hints:
        return LVLMRejected(f"{words} ({hints[status]})")
    return LVLMUnclear(f"{words} (the run can be resumed)")


def fields(value: object) -> Iterator[tuple[str, Any]]:
    """Every field of a JSON value with its name, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from fields(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner)
