"""One request as it would be sent: byte for byte what a server then gets, and not one byte before."""

from __future__ import annotations

import base64
import json

from rightreasons.lvlm.pictures import replace_pictures
from tests.support.fault_server import FaultServer
from tests.support.helpers import edit, invoke, write_project, write_scripted


def test_what_is_shown_is_what_is_sent(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FaultServer() as stub:
        config = write_project(tmp_path, stub.base_url)
        shown = json.loads(invoke("find", config, "--out", tmp_path / "run", "--dry-run", "--json").stdout)
        assert (stub.requests, stub.listed) == (0, 0), "not even asked whether it is there"
        assert shown["goes_to"] == stub.base_url and shown["model"] == "openai:stub" and shown["role"] == "critic"
        assert len(shown["pictures"]) == 3 and len(list((tmp_path / "run" / "dry-run").iterdir())) == 4
        for path in (tmp_path / "run" / "dry-run").rglob("*"):
            assert path.stat().st_mode & 0o077 == 0
        assert invoke("find", config, "--out", tmp_path / "run").exit_code == 0
        sent = [seen.body for seen in stub.seen]
    files = {f"<picture-{number}.png>": picture["file"] for number, picture in enumerate(shown["pictures"], start=1)}
    rebuilt = json.loads(json.dumps(shown["request"]), object_hook=lambda entry: {key: _restored(value, files) for key, value in entry.items()})
    assert rebuilt in sent, "the request on the screen, with the files in their places, is one that was sent"
    assert json.loads((tmp_path / "run" / "dry-run" / "request.json").read_text()) == shown["request"]


def _restored(value, files):
    if isinstance(value, str) and value in files:
        with open(files[value], "rb") as file:
            return f"data:image/png;base64,{base64.b64encode(file.read()).decode()}"
    return value


def test_for_people(tmp_path):
    config = write_project(tmp_path, "https://llm.example/v1")
    result = invoke("find", config, "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 0, "neither leave nor a price is needed where nothing is sent"
    for words in ("would go to: https://llm.example/v1", "Nothing was sent", "not in it: file names", "512 x 512 pixels", "tokens in"):
        assert words in result.stdout
    assert "base64" not in result.stdout and len(result.stdout) < 10_000


def test_nothing_left_to_send(tmp_path):
    config = write_scripted(tmp_path)
    assert "nowhere: the model runs in this process" in invoke("find", config, "--out", tmp_path / "run", "--dry-run").stdout
    assert invoke("find", config, "--out", tmp_path / "run").exit_code == 0
    assert "nothing would be sent" in invoke("find", config, "--out", tmp_path / "run", "--dry-run").stdout


def test_a_critic_that_is_none_is_told_of_before_a_model_is_trained(tmp_path):
    config = write_scripted(tmp_path)
    edit(config, "scripted:", "humam:")
    result = invoke("find", config, "--out", tmp_path / "run", "--dry-run")
    assert result.exit_code == 1 and "humam" in result.stderr and not (tmp_path / "run").exists()


def test_the_run_goes_on_from_a_dry_run(tmp_path):
    """What a dry run did is not done again, and changes nothing."""
    config = write_scripted(tmp_path)
    assert invoke("find", config, "--out", tmp_path / "a").exit_code == 0
    assert invoke("find", config, "--out", tmp_path / "b", "--dry-run").exit_code == 0
    result = invoke("find", config, "--out", tmp_path / "b")
    assert result.exit_code == 0 and "attribute" not in result.stderr
    assert (tmp_path / "a" / "verdicts.jsonl").read_text() == (tmp_path / "b" / "verdicts.jsonl").read_text()


def test_a_body_without_pictures_stays_as_it_is():
    body = {"model": "m", "messages": [{"content": ["text", 3, None, True]}]}
    assert replace_pictures(body, lambda encoded: "gone") == body
