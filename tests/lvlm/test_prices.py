"""Prices with their dates, and the bound on what a request can come to."""

from __future__ import annotations

import base64
import datetime
import tomllib

import pytest

from rightreasons.errors import ConfigError
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.ledger.prices import Price, likely_input_tokens, picture_tokens, price_of, required_price, worst_case_tokens
from rightreasons.lvlm.pictures import picture_size, replace_pictures
from rightreasons.lvlm.protocol import Request, Usage
from tests.support.helpers import png

HOSTED = {"base_url": "https://api.openai.com/v1", "allow_remote": ("api.openai.com",)}


def body(*parts: str | bytes, model: str = "gpt-4o") -> dict:
    return open_lvlm(f"openai:{model}", **HOSTED).body(Request("critic", parts, max_tokens=100))


@pytest.mark.parametrize("name", ["openai:gpt-4o", "openai:gpt-5", "openai:gpt-4o-mini"])
def test_the_models_of_the_paper_have_a_dated_price(name):
    price = price_of(name, base_url="https://api.openai.com/v1")
    assert price is not None and price.input_usd > 0 and price.output_usd > price.input_usd and isinstance(price.date, datetime.date)
    assert price_of(name) == price


def test_cost_is_per_million_tokens_and_unknown_without_a_count():
    assert Price(2.5, 10.0).cost(Usage(1_000_000, 100_000)) == pytest.approx(3.5)
    assert Price(2.5, 10.0).cost(Usage(None, 5)) is None


@pytest.mark.parametrize("name", ["local:some/model", "simulated:0.9", "scripted:file", "replay:file", "human:file"])
def test_what_asks_nobody_for_money_is_free(name):
    assert price_of(name) == Price(0.0, 0.0)


def test_a_server_on_this_machine_is_free_unless_a_price_is_declared(tmp_path):
    assert price_of("openai:gpt-4o", base_url="http://127.0.0.1:8000/v1") == Price(0.0, 0.0)
    declared = tmp_path / "prices.toml"
    declared.write_text('["openai:gpt-4o"]\ndate = 2026-11-01\ninput_usd = 1\noutput_usd = 2.5\n')
    price = Price(1.0, 2.5, datetime.date(2026, 11, 1))
    assert price_of("openai:gpt-4o", base_url="http://127.0.0.1:8000/v1", overrides=declared) == price, "a proxy on loopback may pass the bill on"
    assert price_of("openai:gpt-4o", base_url="https://api.openai.com/v1", overrides=declared) == price


def test_a_price_holds_for_the_providers_own_host_alone():
    assert price_of("openai:gpt-4o", base_url="https://resold.example/v1") is None
    assert price_of("openai:gpt-4o", base_url="http://127.0.0.1.example.com/v1") is None
    assert price_of("openai:nobody-knows") is None


def test_an_unpriced_remote_model_is_refused_with_the_lines_that_declare_one(tmp_path):
    lvlm = open_lvlm("openai:new-model", **HOSTED)
    with pytest.raises(ConfigError, match="no price is known for 'openai:new-model' at https://api.openai.com") as refused:
        required_price(lvlm)
    snippet = str(refused.value).split(":\n\n", 1)[1]
    assert tomllib.loads(snippet)["openai:new-model"]["date"] == datetime.date.today()
    declared = tmp_path / "prices.toml"
    declared.write_text(snippet)
    assert required_price(lvlm, declared) == Price(0.0, 0.0, datetime.date.today()), "the lines can be used as they stand"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["openai:m"]\ninput_usd = 1\noutput_usd = 1\n', "date = None"),
        ('["openai:m"]\ndate = 2026-01-01\ninput_usd = -1\noutput_usd = 1\n', "input_usd = -1"),
        ('["openai:m"]\ndate = 2026-01-01\ninput_usd = true\noutput_usd = 1\n', "input_usd = True"),
        ('["openai:m"]\ndate = 2026-01-01\ninput_usd = inf\noutput_usd = 1\n', "input_usd = inf"),
        ('["openai:m"]\ndate = "soon"\ninput_usd = 1\noutput_usd = 1\n', "date = 'soon'"),
        ('"openai:m" = 3\n', "date = None"),
        ("[", "not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, words):
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        price_of("openai:m", overrides=tmp_path / "prices.toml")
    with pytest.raises(ConfigError, match="cannot read the prices"):
        price_of("openai:m", overrides=tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("rule", "size", "tokens"),
    [
        ({"tile": [85, 170]}, (1024, 1024), 765),  # OpenAI's own example: 768 x 768, four tiles
        ({"tile": [85, 170]}, (2048, 4096), 1105 + 2 * 170),  # its other one has six tiles at 768 x 1536; never fewer here
        ({"tile": [2833, 5667]}, (512, 512), 2833 + 4 * 5667),
        ({"patch": [32, 1.62]}, (512, 600), 493),
        ({"patch": [28, 1.0]}, (1092, 1092), 1521),
        ({"fixed": 2240}, (20, 9000), 2240),
    ],
)
def test_a_picture_by_the_published_rules(rule, size, tokens):
    assert tokens - 2 * 170 <= picture_tokens(*size, rule) <= tokens
    assert picture_tokens(*size, rule) == picture_tokens(*reversed(size), rule)


def test_a_larger_picture_never_counts_for_less_and_an_unknown_model_counts_by_the_dearest_rule():
    sizes = [(512, 512), (600, 600), (768, 768), (1200, 900), (4000, 3000)]
    for model in ("gpt-4o", "gpt-5", "gpt-4o-mini", "claude-sonnet-4-5", "what-is-this"):
        counts = [worst_case_tokens(body(png(size=size), model=model), 0).input_tokens for size in sizes[:4]]
        assert counts == sorted(counts)
    assert (
        worst_case_tokens(body(png(size=(512, 512)), model="what-is-this"), 0).input_tokens
        >= worst_case_tokens(body(png(size=(512, 512)), model="gpt-4o"), 0).input_tokens
    )
    small, large = worst_case_tokens(body(png(size=(512, 512))), 0), worst_case_tokens(body(png(size=(512, 512)), model="gpt-4o-mini-2024-07-18"), 0)
    assert large.input_tokens > small.input_tokens + 20_000, "a snapshot counts as its model does: OpenAI bills gpt-4o-mini's pictures 33-fold"


@pytest.mark.parametrize("text", ["plain words " * 50, "損傷そのもの" * 50, "🩺" * 99, "\x00\x07" * 99, 'a\\b"c\n' * 99, ""])
def test_no_more_tokens_than_bytes(text):
    """Bytes are the most that a tokenizer of bytes can come to: one token each, with nothing merged."""
    usage = worst_case_tokens(body(text), 77)
    assert usage.input_tokens >= len(text.encode()) and usage.output_tokens == 77
    assert likely_input_tokens(body(text)) <= usage.input_tokens


def test_a_schema_counts_too():
    lvlm = open_lvlm("openai:gpt-4o", **HOSTED)
    schema = {"type": "object", "properties": {f"S{i}": {"type": "string"} for i in range(50)}}
    plain, with_schema = (lvlm.body(Request("judge", ("x",), schema=given)) for given in (None, schema))
    assert worst_case_tokens(with_schema, 0).input_tokens - worst_case_tokens(plain, 0).input_tokens >= len(str(schema)) * 0.8


def test_pictures_are_found_in_every_providers_shape():
    picture = png(size=(30, 20))
    encoded = base64.b64encode(picture).decode()
    shapes = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded}},
        {"inline_data": {"mime_type": "image/png", "data": encoded}},
    ]
    for shape in shapes:
        found = []
        replaced = replace_pictures({"messages": [shape, "iVBORw is no picture"]}, lambda text, found=found: found.append(text) or "gone")
        assert found == [encoded] and "gone" in str(replaced) and encoded not in str(replaced)
    assert picture_size(encoded) == (30, 20)
