"""What a request costs: dated prices that users can override, and an upper bound on a request's tokens.

The bound on text, one token per byte, holds for every tokenizer whose tokens stand for at least one byte each, as byte-level and byte-fallback
ones do. Pictures are counted by the rule that the provider publishes for the model (``tile``, ``patch`` or ``fixed`` in prices.toml), or by the
most expensive of the common rules if it publishes none.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rightreasons.errors import ConfigError
from rightreasons.lvlm.backends import BACKENDS, kind_of
from rightreasons.lvlm.pictures import picture_size, replace_pictures
from rightreasons.lvlm.protocol import LVLM, Usage
from rightreasons.lvlm.wire.privacy import is_loopback

# An allowance for what a provider adds to a request before the model reads it: a chat template, and instructions for structured answers.
HIDDEN_TOKENS = 512
# The most expensive common rules, for a model without a published one: OpenAI's tiles, the smallest patches and largest factor, Gemini's maximum.
_ANY_MODEL: dict[str, Any] = {"tile": [85, 170], "patch": [28, 2.5], "fixed": 2240}


@dataclass(frozen=True)
class Price:
    """US dollars per million input and output tokens, and the date on which that was the price."""

    input_usd: float
    output_usd: float
    date: datetime.date | None = None

    def cost(self, usage: Usage) -> float | None:
        """The cost of these tokens in US dollars; None if the provider did not count them."""
        if usage.input_tokens is None or usage.output_tokens is None:
            return None
        return (usage.input_tokens * self.input_usd + usage.output_tokens * self.output_usd) / 1e6


def price_of(lvlm_name: str, *, base_url: str | None = None, overrides: Path | None = None) -> Price | None:
    """The price of a backend such as ``openai:gpt-4o``; None if none is known.

    The file ``overrides``, in the form of prices.toml, comes first. Otherwise a server on this machine is free, and a packaged price holds for the
    provider's own host alone, since others sell the same model at other prices. Raises ConfigError for a file that cannot be used.
    """
    declared = read_prices(overrides).get(lvlm_name) if overrides is not None else None
    host = urlsplit(base_url).hostname if base_url is not None else None
    if declared is not None:
        return _price(declared)
    if _is_free(lvlm_name) or (host is not None and is_loopback(host)):
        return Price(0.0, 0.0)
    packaged = _packaged().get(lvlm_name)
    return _price(packaged) if packaged is not None and host in (None, packaged["host"]) else None


def required_price(lvlm: LVLM, overrides: Path | None = None) -> Price:
    """The price of an open backend. If none is known, raises ConfigError with the lines that declare one."""
    server = None if lvlm.address is None else str(lvlm.address["base_url"])
    price = Price(0.0, 0.0) if server is None else price_of(lvlm.name, base_url=server, overrides=overrides)
    if price is None:
        raise ConfigError(
            f"no price is known for {lvlm.name!r} at {server}, so its cost cannot be bounded. Write the price into a file, in US dollars per "
            f'million tokens, and name the file with prices = "prices.toml" under [critic]:\n\n["{lvlm.name}"]\n'
            f"date = {datetime.date.today().isoformat()}\ninput_usd = 0.00\noutput_usd = 0.00"
        )
    return price


def provider_hosts() -> tuple[str, ...]:
    """The hosts of the packaged prices."""
    return tuple(sorted({table["host"] for table in _packaged().values()}))


def worst_case_tokens(body: Mapping[str, Any], max_tokens: int) -> Usage:
    """An upper bound on a request's tokens: one for each byte of its JSON, pictures by the model's rule, and an answer of ``max_tokens``."""
    text, pictures = _measure(body)
    return Usage(text + pictures + HIDDEN_TOKENS, max_tokens)


def likely_input_tokens(body: Mapping[str, Any]) -> int:
    """A rough estimate of a request's input tokens: one for four bytes of English, and pictures by the model's rule."""
    text, pictures = _measure(body)
    return math.ceil(text / 4) + pictures


def picture_tokens(width: int, height: int, rule: Mapping[str, Any]) -> int:
    """The largest number of tokens for a picture of this size under the rules in ``rule``.

    ``tile = [base, each]``: scaled to fit 2048 x 2048, then to a shorter side of 768, and cut into tiles of 512 (OpenAI). ``patch = [side, factor]``:
    ``factor`` for each patch or part of one (OpenAI's small models with 32, Claude and Qwen with 28), without a cap. ``fixed``: the same for any
    size (Gemini).
    """
    counts = [0.0]
    if "tile" in rule:
        base, each = rule["tile"]
        short, long = sorted((width, height))
        # A small picture counts as if it were enlarged, since the published rule can be read that way.
        scaled = min(2048, math.ceil(long * 768 / short))
        counts.append(base + each * 2 * math.ceil(scaled / 512))
    if "patch" in rule:
        side, factor = rule["patch"]
        counts.append(math.ceil(width / side) * math.ceil(height / side) * factor)
    counts.append(rule.get("fixed", 0))
    return math.ceil(max(counts))


def read_prices(path: Path) -> dict[str, dict[str, Any]]:
    """The tables of a file of prices, one for each backend. Raises ConfigError naming the file, the table and the key."""
    try:
        return _checked(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read the prices {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _is_free(lvlm_name: str) -> bool:
    """Whether the model or the person is here, so that nobody is paid."""
    kind = kind_of(lvlm_name)
    return kind in BACKENDS and BACKENDS[kind].free


@functools.cache
def _packaged() -> dict[str, dict[str, Any]]:
    source = files("rightreasons.lvlm.ledger").joinpath("prices.toml").read_text(encoding="utf-8")
    return _checked(tomllib.loads(source), "prices.toml")


def _checked(tables: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    expected = {"date": datetime.date, "input_usd": (int, float), "output_usd": (int, float)}
    for name, table in tables.items():
        for key, kind in expected.items():
            value = table.get(key) if isinstance(table, dict) else None
            usable = isinstance(value, kind) and not isinstance(value, bool)
            if not usable or (isinstance(value, int | float) and not (math.isfinite(value) and value >= 0)):
                form = "the date of the price, such as 2026-08-05" if key == "date" else "US dollars per million tokens"
                raise ConfigError(f'{source}: ["{name}"] {key} = {value!r}; expected {form}')
    return tables


def _price(table: Mapping[str, Any]) -> Price:
    return Price(float(table["input_usd"]), float(table["output_usd"]), table["date"])


def _rule(model: object) -> Mapping[str, Any]:
    """The picture rule of a model, by its name with or without the date of a snapshot."""
    plain = re.sub(r"-\d{4}-?\d{2}-?\d{2}$", "", str(model))
    named = [table for name, table in _packaged().items() if name.partition(":")[2] == plain]
    return named[0] if named and named[0].keys() & _ANY_MODEL.keys() else _ANY_MODEL


def _measure(body: Mapping[str, Any]) -> tuple[int, int]:
    """The bytes of a body without its pictures, and the tokens of the pictures."""
    rule = _rule(body.get("model"))
    sizes: list[tuple[int, int]] = []
    text = replace_pictures(dict(body), lambda encoded: sizes.append(picture_size(encoded)))
    return len(json.dumps(text, ensure_ascii=False).encode()), sum(picture_tokens(width, height, rule) for width, height in sizes)
