"""How long a server asks to wait, read from every place and form that servers use."""

from __future__ import annotations

import datetime
import email.utils
import math
import re
import time
from collections.abc import Mapping

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = r"\d+(?:\.\d+)?\s*(?:milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|h|days?|d)?(?![a-z])"
_NUMBER_AND_UNIT = re.compile(r"([\d.]+)\s*(\w*)")
# "try again in 6m0s", "retry after 7 seconds", "wait 30 seconds", "resets in: 3 hours".
_STATED = re.compile(
    rf"(?:retry\w*|try again|wait|available again|resets?)\b[^.\n\d]{{0,30}}?(?:\bin|\bafter|\bfor|(?<=wait))\W{{1,3}}((?:{_PART}(?:,|\s|and\b)*)+)",
    re.IGNORECASE,
)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, given in milliseconds, in seconds or as a date; None without a usable one."""
    try:
        seconds = float(headers["retry-after-ms"]) / 1000 if "retry-after-ms" in headers else float(headers["retry-after"])
    except KeyError:
        return None
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time()
        except ValueError:
            return None
    return _usable(seconds)


def read_duration(value: object) -> float | None:
    """Seconds in a number, or in a text such as "22.3s", "1m30s" or "500ms"; None if there is no duration in it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _usable(float(value))
    if not isinstance(value, str):
        return None
    parts = [_NUMBER_AND_UNIT.match(part) for part in re.findall(_PART, value, re.IGNORECASE)]
    return _usable(sum(float(part[1]) * _UNITS[_unit(part[2])] for part in parts if part)) if parts else None


def stated_delay(words: str) -> float | None:
    """Seconds that a message asks to wait, such as "Please try again in 6m0s"; None if it does not ask."""
    found = _STATED.search(words)
    return None if found is None else read_duration(found[1])


def depleted_reset(headers: Mapping[str, str]) -> float | None:
    """Seconds until the rate limits that are used up, according to the headers, are renewed: the longest of several; None if none is used up."""
    plain = {name.lower(): value for name, value in headers.items() if "ratelimit" in name.lower()}
    used_up = [name.replace("remaining", "reset") for name, value in plain.items() if "remaining" in name and value.strip() == "0"]
    waits = [wait for name in used_up if (wait := _until(plain.get(name, ""))) is not None]
    return max(waits, default=None)


def _until(moment: str) -> float | None:
    """Seconds until a moment, given as a duration, a date, or the time since 1970 in seconds or milliseconds."""
    try:
        number = float(moment)
    except ValueError:
        try:
            return _usable(datetime.datetime.fromisoformat(moment).timestamp() - time.time())
        except ValueError:
            return read_duration(moment)
    if number < 1e9:
        return _usable(number)
    return _usable((number / 1000 if number > 1e11 else number) - time.time())


def _unit(word: str) -> str:
    word = word.lower()
    return "ms" if word.startswith(("ms", "milli")) else word[:1] or "s"


def _usable(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) and seconds > 0 else None
