"""What kind of failure an HTTP status and the words with it are: the error table of docs/critic.md, for every backend that speaks HTTP."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rightreasons.errors import LVLMBusy, LVLMError, LVLMRateLimited, LVLMRefused, LVLMRejected, LVLMTimeout, LVLMTooBig, LVLMUnavailable

# A server that asks for more patience than this (seconds) has the run stopped; it can be resumed.
LONGEST_PAUSE = 300.0
_QUOTA = re.compile(r"quota|billing|credit|spend(ing)? limit", re.IGNORECASE)
_FILTER = re.compile(r"content_filter|content_policy|content management policy|responsibleai|safety system|moderation", re.IGNORECASE)
_TOO_BIG = re.compile(
    r"(request|payload|body|entity|image|picture|prompt|input|message)s?\b[^.]{0,40}\btoo (large|long|big)|too many (image|picture)"
    r"|(image|picture)s?\b[^.]{0,40}\btoo many|at most \d+ (image|picture)|context (length|window)",
    re.IGNORECASE,
)
# A proxy's patience ended; what lies behind it may have gone on, and be paid for.
_GATEWAY_TIMEOUTS = (504, 524)


@dataclass(frozen=True)
class Failure:
    """A response that is not a success: its status, its text and its headers (by any case)."""

    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def error(self) -> dict[str, Any]:
        """The error object of the answer, empty where there is none."""
        try:
            said = json.loads(self.text)
        except (ValueError, RecursionError):
            return {}
        inner = said.get("error", said) if isinstance(said, dict) else {}
        return inner if isinstance(inner, dict) else {"message": str(inner)}

    @property
    def message(self) -> str:
        """Its words, at most 300 characters."""
        return str(self.error.get("message") or self.text)[:300]

    def names(self, parameter: str) -> bool:
        """Whether this is a refusal of that parameter."""
        return self.status in (400, 422) and re.search(rf"(?<![a-z_]){parameter}(?![a-z_])", self.text) is not None


def classify(failure: Failure, *, server: str, model: str, key: str) -> LVLMError:
    """The error to raise for a response that is not a success. ``key`` is the variable that the API key comes from."""
    status, kinds = failure.status, f"{failure.error.get('code')} {failure.error.get('type')}"
    nowhere = f"is {model!r} the name of a model there, and does base_url end as the server wants it, often in /v1?"
    hints = {401: f"set {key}", 403: "this key may not use this model", 404: nowhere}
    words = f"{server} answers {status}: {failure.message}"
    wait = retry_after(failure.headers)
    if "insufficient_quota" in kinds or status == 402 or (status == 429 and wait is None and _QUOTA.search(failure.message)):
        return LVLMRejected(f"{words} (no quota is left: raise it at the provider and run the same command again)")
    if status in (400, 403, 422) and _FILTER.search(failure.text):
        return LVLMRefused(words)
    if status == 413 or (status in (400, 422, 429) and _TOO_BIG.search(failure.message)):
        return LVLMTooBig(f"{words} (the pictures are too many or too large for this model: choose another one, or smaller images)")
    if status in _GATEWAY_TIMEOUTS:
        return LVLMTimeout(words, wait)
    if status == 429 or status in (408, 409) or status >= 500:
        if wait is not None and wait > LONGEST_PAUSE:
            return LVLMUnavailable(f"{words} (it asks to wait {wait:.0f} seconds: run the same command again after that)")
        return LVLMRateLimited(words, wait) if status == 429 else LVLMBusy(words, wait)
    return LVLMRejected(f"{words} ({hints.get(status, 'the run can be resumed')})")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, given in milliseconds, in seconds or as a date; None where it says nothing of use."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        else:
            seconds = float(headers["retry-after"])
    except KeyError:
        return None
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time()
        except ValueError:
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
