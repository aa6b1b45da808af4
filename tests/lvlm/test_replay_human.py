"""Answers that do not come from a model that is there: recorded ones, and a person's."""

from __future__ import annotations

import base64
import io
import json
import stat

import pytest
import torch
from PIL import Image

from rightreasons.errors import ConfigError, LVLMUnavailable
from rightreasons.lvlm import LVLM, open_lvlm
from rightreasons.lvlm.backends.anthropic import Anthropic
from rightreasons.lvlm.backends.gemini import Gemini
from rightreasons.lvlm.backends.openai import OpenAICompatible
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.protocol import Request, get_reply
from rightreasons.lvlm.wire.chat import chat_message
from rightreasons.lvlm.wire.composite import join_pictures
from rightreasons.lvlm.wire.request_key import request_key
from rightreasons.records import Subject
from tests.lvlm.test_backends import answers
from tests.support.helpers import edit, invoke, png, read_lines, write_scripted
from tests.support.wire_server import WireServer

SUBJECT = Subject(17, torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 2))
FIRST = Request("critic", ("look:", png(1), "and:", png(2)), subject=SUBJECT)
OTHER = Request("critic", ("look:", png(1), "and:", png(3)), subject=SUBJECT)


def completion(text: str) -> dict:
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}


def replay_once(file, request: Request):
    lvlm = open_lvlm(f"replay:{file}")
    lvlm.check()
    assert isinstance(lvlm, LVLM)
    return lvlm.parse(get_reply(lvlm, request))


@pytest.mark.parametrize("kind", ["openai", "anthropic", "gemini"])
def test_a_ledger_is_replayed_whichever_model_answered(kind, tmp_path):
    backend = {"openai": OpenAICompatible, "anthropic": Anthropic, "gemini": Gemini}[kind]
    ledger = Ledger(tmp_path / "lvlm.sqlite")
    with WireServer(lambda seen: (200, {}, completion("S1: a tag") if kind == "openai" else answers(kind, "S1: a tag"))) as wire:
        lvlm = backend("m", base_url=wire.base_url)
        lvlm.address = None
        said = ledger.ask(lvlm, FIRST)
        lvlm.close()
    ledger.close()
    again = replay_once(tmp_path / "lvlm.sqlite", FIRST)
    assert (again.text, again.usage) == (said.text, said.usage) == ("S1: a tag", said.usage)
    with pytest.raises(LVLMUnavailable, match="image 17"):
        replay_once(tmp_path / "lvlm.sqlite", OTHER)
    with pytest.raises(LVLMUnavailable, match="that ends 'Judge this.'"):
        replay_once(tmp_path / "lvlm.sqlite", Request("judge", ("Judge this.",)))


def test_a_kind_of_backend_that_replay_cannot_read(tmp_path):
    """Its raw answer is no text, and is not taken for one."""
    file = tmp_path / "lines.jsonl"
    asked = {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "?"}]}}
    file.write_text(
        "".join(json.dumps(line) + "\n" for line in (asked, {"custom_id": "a", "response": {"status_code": 200, "body": completion("!")}}))
    )
    lvlm = open_lvlm(f"replay:{file}")
    with pytest.raises(LVLMUnavailable, match="'ghost', which replay cannot read; it reads those of anthropic, gemini"):
        lvlm.parse(json.dumps({"backend": "ghost", "raw": "{}"}))
    inner = json.dumps({"backend": "openai", "raw": json.dumps(completion("said twice"))})
    assert lvlm.parse(json.dumps({"backend": "replay", "raw": inner})).text == "said twice"


def test_votes_and_refusals_are_replayed(tmp_path):
    ledger = Ledger(tmp_path / "lvlm.sqlite")
    with WireServer(lambda seen: (200, {}, answers("anthropic", f"no {len(wire.seen)}", "refusal"))) as wire:
        lvlm = Anthropic("m", base_url=wire.base_url)
        lvlm.address = None
        votes = [Request("critic", ("look:", png(1)), vote=vote) for vote in range(3)]
        said = [ledger.ask(lvlm, request).problem for request in votes]
        lvlm.close()
    ledger.close()
    assert [replay_once(tmp_path / "lvlm.sqlite", request).problem for request in votes] == said and len(set(said)) == 3


def test_exported_lines_are_replayed_in_any_order(tmp_path):
    """OpenAI's form a line each, Anthropic's requests as one object; also where a server took one picture alone."""
    body = {"model": "m", "messages": [chat_message(FIRST)]}
    joined = {"model": "m", "messages": [chat_message(join_pictures(OTHER))]}
    lines = [
        {"custom_id": "a", "response": {"status_code": 200, "body": completion("first")}, "error": None},
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": joined},
        {"custom_id": "b", "response": {"status_code": 200, "body": completion("joined")}, "error": None},
        {"requests": [{"custom_id": "c", "params": Anthropic("m", base_url="http://127.0.0.1:9").body(Request("judge", ("Judge.",)))}]},
        {"custom_id": "c", "result": {"type": "succeeded", "message": answers("anthropic", "judged")}},
        {"custom_id": "d", "result": {"type": "errored", "error": {}}},
    ]
    file = tmp_path / "carried.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    assert [replay_once(file, request).text for request in (FIRST, OTHER, Request("judge", ("Judge.",)))] == ["first", "joined", "judged"]


@pytest.mark.parametrize("content", ["", "not JSON", "[]", '{"custom_id": 1', '{"custom_id": "a", "body": {"messages": []}}'])
def test_a_file_without_answers(tmp_path, content):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=r"x\.jsonl"):
        open_lvlm(f"replay:{tmp_path / 'x.jsonl'}")
    with pytest.raises(ConfigError, match="absent"):
        open_lvlm("replay:absent.jsonl")


def test_a_person_is_asked_in_a_file_and_answers_there(tmp_path):
    file = tmp_path / "queue.jsonl"
    lvlm, ledger = open_lvlm(f"human:{file}"), Ledger(tmp_path / "lvlm.sqlite")
    lvlm.check()
    assert isinstance(lvlm, LVLM)
    judge = Request("judge", ("Judge S1.",), schema={"type": "object"})
    for _ in range(2):  # a question that waits is there once, however often it is asked
        for request in (FIRST, judge):
            waiting = ledger.ask(lvlm, request)
            assert waiting.outcome == "unknown" and "waiting for a person" in waiting.problem and str(file) in waiting.problem
    critic, judged = read_lines(file)
    assert critic["question"] == "look:\n[picture 1]\nand:\n[picture 2]" and critic["custom_id"] == ledger.key(lvlm, FIRST)
    shown = [(tmp_path / name).read_bytes() for name in critic["pictures"]]
    assert shown == [FIRST.parts[1], FIRST.parts[3]] and all(Image.open(io.BytesIO(png)).size == (16, 16) for png in shown)
    assert judged["schema"] == {"type": "object"} and judged["pictures"] == []
    private = [file, *(tmp_path / name for name in critic["pictures"])]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert stat.S_IMODE((tmp_path / "queue-pictures").stat().st_mode) == 0o700
    assert base64.b64encode(FIRST.parts[1])[:60] not in file.read_bytes(), "a person looks at files, not at base64"

    file.write_text("\n".join(json.dumps(entry | {"answer": answer}) for entry, answer in ((critic, "S1: a tag"), (judged, {"S1": "spurious"}))))
    assert ledger.ask(lvlm, FIRST).text == "S1: a tag" and json.loads(ledger.ask(lvlm, judge).text) == {"S1": "spurious"}
    ledger.ask(lvlm, OTHER)
    assert len(read_lines(file)) == 3, "a last line without its newline is not written into"
    file.unlink()
    assert ledger.ask(lvlm, FIRST).cached, "in the ledger for good"
    ledger.close()


def test_files_start_from_the_folder_of_the_configuration(tmp_path, monkeypatch):
    """As every other path there does, wherever the command is called; and the request's key does not depend on either."""
    (tmp_path / "site").mkdir()
    config = write_scripted(tmp_path / "site", changes={"size = 12": "size = 2"})
    edit(config, f"scripted:{tmp_path / 'site' / 'script.json'}", "human:questions.jsonl")
    monkeypatch.chdir(tmp_path)
    assert invoke("find", config, "--out", tmp_path / "run").exit_code == 3
    assert len(read_lines(tmp_path / "site" / "questions.jsonl")) == 2 and not (tmp_path / "questions.jsonl").exists()
    first, moved = open_lvlm("human:q.jsonl", root=tmp_path), open_lvlm("human:q.jsonl", root=tmp_path / "site")
    assert request_key(first, FIRST) == request_key(moved, FIRST)
    edit(config, "human:questions.jsonl", "scripted:script.json")
    done = invoke("find", config, "--out", tmp_path / "other")
    assert done.exit_code == 0 and "(scripted critic)" in " ".join(done.stdout.split()) and "simulated" not in done.stdout
    assert "simulated" not in (tmp_path / "other" / "report.html").read_text()


def test_a_damaged_queue_names_its_line(tmp_path):
    (tmp_path / "queue.jsonl").write_text('{"custom_id": "a", "answer": ""}\n{"custom_id": "b", "answer": "S1\n')
    with pytest.raises(ConfigError, match="line 2"):
        open_lvlm(f"human:{tmp_path / 'queue.jsonl'}").check()
    with pytest.raises(ConfigError, match="no folder"):
        open_lvlm(f"human:{tmp_path / 'absent' / 'queue.jsonl'}")


def test_a_run_waits_for_its_person_and_goes_on(tmp_path):
    """Critiques first, then verdicts, each time the same command."""
    config, queue = write_scripted(tmp_path, changes={"size = 12": "size = 2"}), tmp_path / "queue.jsonl"
    edit(config, f"scripted:{tmp_path / 'script.json'}", f"human:{queue}")

    def fill(role: str, answer: object) -> None:
        lines = [entry | {"answer": answer} if entry["role"] == role else entry for entry in read_lines(queue)]
        queue.write_text("".join(json.dumps(line) + "\n" for line in lines))

    waiting = invoke("find", config, "--out", tmp_path / "run")
    assert waiting.exit_code == 3 and f"2 questions without an answer in {queue}" in waiting.stderr and "error" not in waiting.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["critic"]["waiting"] == 6
    fill("critic", "S1: A tag.\nS2: A part.\nS3: A part.")
    assert invoke("find", config, "--out", tmp_path / "run").exit_code == 3, "the judge's questions are there now"
    fill("judge", {"S1": "spurious", "S2": "relevant", "S3": "relevant"})
    done = invoke("find", config, "--out", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    verdicts = read_lines(tmp_path / "run" / "verdicts.jsonl")
    assert {verdict["value"] for verdict in verdicts} == {"spurious", "relevant"} and not any(verdict["problem"] for verdict in verdicts)

    # And all of it once more from what was recorded, with nobody to ask.
    queue.unlink()
    edit(config, f"human:{queue}", f"replay:{tmp_path / 'run' / 'lvlm.sqlite'}")
    again = invoke("find", config, "--out", tmp_path / "again")
    assert again.exit_code == 0, again.stderr
    first, second = (
        [(v["index"], v["segment"], v["value"]) for v in lines] for lines in (verdicts, read_lines(tmp_path / "again" / "verdicts.jsonl"))
    )
    assert first == second
