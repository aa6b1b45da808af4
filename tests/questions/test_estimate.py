"""Calls, tokens and money before anything is sent: against what a run really sends."""

from __future__ import annotations

import json

import pytest

from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.ledger.prices import price_of
from tests.support.fault_server import FaultServer
from tests.support.helpers import edit, invoke, the_error, write_project, write_scripted


def estimate(config, out, *more):
    result = invoke("lvlm", "estimate", config, "--out", out, "--json", *more)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_without_a_server_a_run_folder_or_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = write_project(tmp_path, "https://api.openai.com/v1", changes={"openai:stub": "openai:gpt-4o"})
    found = estimate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing is left behind"
    assert found["images"] == 12 and {role: part["requests"] for role, part in found["roles"].items()} == {"critic": 12, "judge": 14, "control": 2}
    total, price = found["total"], price_of("openai:gpt-4o")
    assert total["usd_at_most"] == pytest.approx(
        (total["input_tokens_at_most"] * price.input_usd + total["output_tokens_at_most"] * price.output_usd) / 1e6
    )
    assert 0 < total["usd_likely"] < total["usd_at_most"] and total["seconds_likely"] > 0
    assert "no image has been inspected yet" in found["counted"]


def test_the_bound_holds_for_the_requests_that_are_sent(tmp_path):
    """Before the run: no fewer calls and tokens than it comes to. After the earlier stages: the very requests. After it: nothing is left."""
    with FaultServer(hostile=False) as stub:
        config = write_project(tmp_path, stub.base_url)
        before = estimate(config, tmp_path / "run")
        assert invoke("find", config, "--out", tmp_path / "run", "--dry-run").exit_code == 0
        inspected = estimate(config, tmp_path / "run")
        assert stub.requests == 0, "nothing was sent for any of these"
        assert invoke("find", config, "--out", tmp_path / "run").exit_code == 0
        edit(config, "[align]", "max_usd = 5\n[align]")  # a setting with which `find` goes on: what was answered stays so
        after = estimate(config, tmp_path / "run")
        sent = {role: [seen for seen in stub.seen if seen.role == role] for role in ("critic", "judge")}
    # A server cannot tell a control from an image; two controls with the same critique are one question to the judge.
    for role, parts in (("critic", ("critic", "control")), ("judge", ("judge",))):

        def count(found, key, parts=parts):
            return sum(found["roles"][part][key] for part in parts)

        assert count(before, "requests") >= count(inspected, "requests") >= len(sent[role])
        assert count(before, "input_tokens_at_most") >= count(inspected, "input_tokens_at_most")
        assert count(inspected, "input_tokens_at_most") >= sum(len(seen.text.encode()) for seen in sent[role])
        assert count(after, "requests") == 0 and count(after, "answered") == count(inspected, "requests")
    assert "exactly as they would be sent" in inspected["counted"]


def test_an_unpriced_model_has_no_money_and_says_so(tmp_path):
    config = write_project(tmp_path, "https://llm.example/v1")
    assert estimate(config, tmp_path / "run")["total"]["usd_at_most"] is None
    shown = invoke("lvlm", "estimate", config, "--out", tmp_path / "run")
    assert "no price is known" in shown.stdout and shown.exit_code == 0
    (tmp_path / "mine.toml").write_text('["openai:stub"]\ndate = 2026-11-01\ninput_usd = 3\noutput_usd = 3\n')
    config.write_text(config.read_text().replace('lvlm = "openai:stub"', 'lvlm = "openai:stub"\nprices = "mine.toml"'))
    found = estimate(config, tmp_path / "run")
    total = found["total"]
    assert total["usd_at_most"] == pytest.approx(3e-6 * (total["input_tokens_at_most"] + total["output_tokens_at_most"]))
    assert found["roles"]["critic"]["price_date"] == "2026-11-01"


def test_find_refuses_an_unpriced_remote_model_before_any_work(tmp_path):
    config = write_project(tmp_path, "https://llm.example/v1")
    error = the_error(invoke("find", config, "--out", tmp_path / "run", "--allow-remote", "llm.example"))
    assert "no price is known for 'openai:stub'" in error and "prices.toml" in error
    assert not (tmp_path / "run").exists()


def test_time_follows_what_the_user_measured(tmp_path):
    config = write_project(tmp_path)
    slow, quick = (estimate(config, tmp_path / "run", "--seconds", str(seconds))["total"]["seconds_likely"] for seconds in (20, 1))
    assert slow == pytest.approx(20 * quick)
    assert quick == pytest.approx(28 / open_lvlm("openai:stub").concurrency[0])


def test_a_critic_that_costs_nothing(tmp_path):
    found = estimate(write_scripted(tmp_path), tmp_path / "run")
    assert found["total"]["usd_at_most"] == 0 and found["total"]["seconds_likely"] == 0
