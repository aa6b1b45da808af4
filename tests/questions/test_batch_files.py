"""Requests carried to a provider by hand and answers brought back: a whole run without a connection, and every way in which a file can be wrong."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3

import pytest

from rightreasons.errors import ConfigError, LVLMTooBig
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.protocol import Request
from rightreasons.pipeline.questions.batch_files import Imported, Limits, export_requests, read_answers
from rightreasons.pipeline.questions.open_questions import Question
from tests.support.fault_server import FaultServer
from tests.support.helpers import invoke, read_lines, the_error, write_project, write_scripted


def reply(body: dict) -> str:
    """As the stub server's model says: what lies at the top left is a tag, and a judge reads that."""
    text = "\n".join(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")
    if "Now the critique to judge" in text:
        said = re.findall(r"^(S\d+): (.*)$", text.split("Now the critique to judge")[1], re.MULTILINE)
        return json.dumps({name: "spurious" if "tag" in words else "relevant" for name, words in said})
    places = re.findall(r"^(S\d+): ([a-z ]+), \d+%$", text, re.MULTILINE)
    # No two images get the same words, so that no two judgements are the same question.
    photograph = hashlib.sha256(json.dumps(body).encode()).hexdigest()[:12]
    return f"1. Photograph {photograph}.\n" + "\n".join(f"{name}: {'A tag.' if place == 'top left' else 'The part.'}" for name, place in places)


def provide(requests, to):
    """A batch service: reads a file of requests as OpenAI's does, and answers each."""
    lines = []
    for number, entry in enumerate(read_lines(requests)):
        assert entry.keys() == {"custom_id", "method", "url", "body"} and (entry["method"], entry["url"]) == ("POST", "/v1/chat/completions")
        body = {
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply(entry["body"])}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        }
        response = {"status_code": 200, "request_id": f"req_{number}", "body": body}
        lines.append(json.dumps({"id": f"batch_req_{number}", "custom_id": entry["custom_id"], "response": response, "error": None}))
    to.write_text("\n".join(reversed(lines)) + "\n")  # results come in any order
    return to


def command(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


@pytest.fixture
def inspected(tmp_path):
    """A run folder up to its segments, for a server that is not there."""
    config = write_project(tmp_path)
    command("find", config, "--out", tmp_path / "run", "--dry-run")
    return tmp_path


def test_a_run_without_a_connection(inspected):
    """Critic out and in, judge out and in, and then find asks nobody: its verdicts are those of a run with a connection."""
    run = inspected / "run"
    wrote = command("lvlm", "export", run, "--to", inspected / "critic.jsonl", "--json")["files"]
    assert wrote == [str(inspected / "critic.jsonl")] and (inspected / "critic.jsonl").stat().st_mode & 0o777 == 0o600
    answers = provide(inspected / "critic.jsonl", inspected / "critic-out.jsonl")
    first = command("lvlm", "import", run, answers, "--json")
    assert first == {"recorded": 14, "no_answer": 0, "already": 0, "duplicate": [], "failed": [], "malformed": [], "unknown": [], "open": 14}, (
        "twelve images and two controls"
    )
    again = command("lvlm", "import", run, answers, "--json")
    assert (again["recorded"], again["already"], again["open"]) == (0, 14, 14), "the same file again changes nothing"

    command("lvlm", "export", run, "--to", inspected / "judge.jsonl")
    judged = read_lines(inspected / "judge.jsonl")
    assert all("Now the critique to judge" in entry["body"]["messages"][0]["content"][0]["text"] for entry in judged) and len(judged) == 14
    assert command("lvlm", "import", run, provide(inspected / "judge.jsonl", inspected / "judge-out.jsonl"), "--json")["open"] == 0
    assert "every question has its answer" in command("lvlm", "export", run, "--to", inspected / "none.jsonl")
    assert not (inspected / "none.jsonl").exists()

    with FaultServer(hostile=False) as stub:
        (inspected / "online").mkdir()
        command("find", write_project(inspected / "online", stub.base_url), "--out", inspected / "online" / "run", "--json")
    # There is no server for the carried run, and none is looked for.
    assert command("find", inspected / "parts.toml", "--out", run, "--json")["critic"]["cached"] == 28
    values = [
        [(v["index"], v["segment"], v["value"]) for v in read_lines(folder / "verdicts.jsonl")] for folder in (run, inspected / "online" / "run")
    ]
    assert values[0] == values[1]


def test_an_answer_settles_what_a_crash_left_unknown(inspected):
    run = inspected / "run"
    command("lvlm", "export", run, "--to", inspected / "critic.jsonl")
    answers = provide(inspected / "critic.jsonl", inspected / "out.jsonl")
    answers.write_bytes(b"\xef\xbb\xbf" + answers.read_bytes())  # as an editor saved it
    lost = read_lines(inspected / "critic.jsonl")[0]["custom_id"]
    stored = sqlite3.connect(run / "lvlm.sqlite")
    with stored:
        columns = "key, state, outcome, role, model, request, started"
        stored.execute(f"INSERT INTO attempts ({columns}) VALUES (?, 'unknown', 'unknown', 'critic', 'openai:stub', '{{}}', 0)", (lost,))
    stored.close()
    assert command("lvlm", "import", run, answers, "--json")["recorded"] == 14


def test_an_answer_that_was_cut_off_counts_once_and_is_asked_for_with_twice_the_cap(inspected):
    run = inspected / "run"
    command("lvlm", "export", run, "--to", inspected / "first.jsonl")
    first = read_lines(inspected / "first.jsonl")
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "S1: it is"}}
    line = {"custom_id": first[0]["custom_id"], "response": {"status_code": 200, "body": {"choices": [choice]}}}
    (inspected / "cut.jsonl").write_text(json.dumps(line))
    counts = command("lvlm", "import", run, inspected / "cut.jsonl", "--json")
    assert (counts["recorded"], counts["no_answer"], counts["open"]) == (1, 1, 14)
    again = command("lvlm", "import", run, inspected / "cut.jsonl", "--json")
    assert (again["recorded"], again["already"], again["open"]) == (0, 1, 14), "the same file again changes nothing"
    command("lvlm", "export", run, "--to", inspected / "second.jsonl")
    caps = {entry["custom_id"]: entry["body"]["max_completion_tokens"] for entry in read_lines(inspected / "second.jsonl")}
    assert caps[first[0]["custom_id"]] == 2 * first[0]["body"]["max_completion_tokens"] and sorted(caps.values())[-2] == caps[first[1]["custom_id"]]


def test_a_carried_run_to_a_remote_model_needs_neither_leave_nor_price_nor_key(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config, run = write_project(tmp_path, "https://llm.example/v1"), tmp_path / "run"
    command("find", config, "--out", run, "--dry-run")
    for role in ("critic", "judge"):
        assert "not this machine" in the_error(invoke("find", config, "--out", run)), "not before every answer is there"
        command("lvlm", "export", run, "--to", tmp_path / f"{role}.jsonl")
        command("lvlm", "import", run, provide(tmp_path / f"{role}.jsonl", tmp_path / f"{role}-out.jsonl"))
    assert command("find", config, "--out", run, "--json")["critic"]["cached"] == 28


def test_custom_ids_are_the_ledgers_keys_and_nothing_else(inspected):
    command("lvlm", "export", inspected / "run", "--to", inspected / "requests.jsonl")
    ids = [entry["custom_id"] for entry in read_lines(inspected / "requests.jsonl")]
    assert len(set(ids)) == 14 and all(re.fullmatch("[0-9a-f]{64}", key) for key in ids), "both providers allow 64 characters of these"
    command("lvlm", "import", inspected / "run", provide(inspected / "requests.jsonl", inspected / "out.jsonl"))
    stored = sqlite3.connect(inspected / "run" / "lvlm.sqlite")
    assert {key for (key,) in stored.execute("SELECT key FROM attempts WHERE state = 'answered'")} == set(ids)
    stored.close()


def test_another_persons_run_is_replayed(inspected, tmp_path_factory):
    """All answers of one run as a file, critic's and judge's; imported into a fresh run in one go."""
    run = inspected / "run"
    for role in ("critic", "judge"):
        command("lvlm", "export", run, "--to", inspected / f"{role}.jsonl")
        command("lvlm", "import", run, provide(inspected / f"{role}.jsonl", inspected / f"{role}-out.jsonl"))
    assert command("lvlm", "export", run, "--answers", "--to", inspected / "all.jsonl", "--json")["answers"] == 28
    other = tmp_path_factory.mktemp("other")
    command("find", write_project(other), "--out", other / "run", "--dry-run")
    found = command("lvlm", "import", other / "run", inspected / "all.jsonl", "--json")
    assert (found["recorded"], found["unknown"], found["open"]) == (28, [], 0)


def test_what_is_wrong_with_a_file_is_said_and_the_rest_is_taken(inspected):
    run = inspected / "run"
    command("lvlm", "export", run, "--to", inspected / "requests.jsonl")
    good = read_lines(provide(inspected / "requests.jsonl", inspected / "out.jsonl"))
    refusal = {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": None, "refusal": "No."}}]}
    lines = [
        json.dumps(good[0]),
        json.dumps(good[0]),
        json.dumps({**good[1], "custom_id": "f" * 64}),
        "{ not json",
        "[1, 2]",
        json.dumps({"custom_id": good[2]["custom_id"]}),
        json.dumps({**good[3], "response": {"status_code": 429, "body": {"error": "slow down"}}}),
        json.dumps({**good[4], "response": None, "error": {"code": "batch_expired"}}),
        json.dumps({**good[5], "response": {"status_code": 200, "body": {"choices": []}}}),
        json.dumps({**good[6], "response": {"status_code": 200, "body": refusal}}),
        "",
    ]
    (inspected / "mixed.jsonl").write_text("\n".join(lines))
    found = command("lvlm", "import", run, inspected / "mixed.jsonl", "--json")
    assert (found["recorded"], found["no_answer"], found["already"]) == (2, 1, 0), "one answer, one refusal"
    assert len(found["duplicate"]) == 1 and found["unknown"] == ["f" * 64] and len(found["failed"]) == 2
    assert len(found["malformed"]) == 4, "no JSON, no object, no result, no completion"
    shown = invoke("lvlm", "import", run, inspected / "mixed.jsonl")
    assert "belong to no question of this run, such as ffff" in shown.stderr and shown.exit_code == 0


def test_a_file_with_nothing_for_this_run_is_an_error(inspected):
    (inspected / "foreign.jsonl").write_text(json.dumps({"custom_id": "a" * 64, "answer": "hello"}))
    result = invoke("lvlm", "import", inspected / "run", inspected / "foreign.jsonl")
    assert result.exit_code == 1 and "has no answer to any question" in result.stderr
    assert "cannot read the answers" in the_error(invoke("lvlm", "import", inspected / "run", inspected / "absent.jsonl"))


def test_a_run_that_has_no_segments_yet(tmp_path):
    assert "is not a run folder" in the_error(invoke("lvlm", "export", tmp_path / "nothing", "--to", tmp_path / "x.jsonl"))


def test_nothing_is_overwritten_and_nothing_is_left_of_a_failure(inspected):
    (inspected / "taken.jsonl").write_text("mine")
    assert "exists already" in the_error(invoke("lvlm", "export", inspected / "run", "--to", inspected / "taken.jsonl"))
    assert (inspected / "taken.jsonl").read_text() == "mine"


def test_a_backend_without_a_batch_service(tmp_path):
    config = write_scripted(tmp_path)
    command("find", config, "--out", tmp_path / "run", "--dry-run")
    assert "has no batch service" in the_error(invoke("lvlm", "export", tmp_path / "run", "--to", tmp_path / "x.jsonl"))


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "lvlm.sqlite") as opened:
        yield opened


def questions(count, model="stub"):
    lvlm = open_lvlm(f"openai:{model}")
    return [Question(lvlm, Request("judge", (f"question {number} " + "x" * 200,))) for number in range(count)]


@pytest.mark.parametrize("limits", [Limits(3, 10**9), Limits(10**9, 1500)])
def test_files_keep_within_a_providers_limits(tmp_path, ledger, limits):
    asked = questions(10)
    paths = export_requests(asked, ledger, tmp_path / "r.jsonl", limits={"openai": limits})
    assert len(paths) > 1 and [path.name for path in paths] == [f"r-{number:03d}.jsonl" for number in range(1, len(paths) + 1)]
    for path in paths:
        assert len(read_lines(path)) <= limits.requests and path.stat().st_size <= limits.bytes
    written = [entry["custom_id"] for path in paths for entry in read_lines(path)]
    assert written == [ledger.key(question.lvlm, question.request) for question in asked]
    with pytest.raises(ConfigError, match="exists already"):
        export_requests(asked, ledger, tmp_path / "r.jsonl")


def test_a_request_that_no_file_can_take(tmp_path, ledger):
    with pytest.raises(LVLMTooBig, match="a single request"):
        export_requests(questions(2), ledger, tmp_path / "r.jsonl", limits={"openai": Limits(9, 100)})
    assert not list(tmp_path.glob("*r.jsonl*")), "nothing is left behind"


def test_each_model_has_a_file_of_its_own_and_a_question_comes_once(tmp_path, ledger):
    paths = export_requests([*questions(2), *questions(2, "judge"), *questions(2)], ledger, tmp_path / "r.jsonl")
    assert [{entry["body"]["model"] for entry in read_lines(path)} for path in paths] == [{"stub"}, {"judge"}]
    assert [len(read_lines(path)) for path in paths] == [2, 2]


def test_anthropics_form(tmp_path, ledger):
    """The file is the body of a request to make a batch."""
    claude = open_lvlm("anthropic:claude", base_url="http://127.0.0.1:9")
    asked = [Question(claude, question.request) for question in questions(3)]
    (path,) = export_requests(asked, ledger, tmp_path / "r.json")
    entries = json.loads(path.read_text())["requests"]
    assert [entry.keys() for entry in entries] == [{"custom_id", "params"}] * 3
    assert entries[1]["params"]["messages"][0]["content"][0]["text"].startswith("question 1") and "stream" not in entries[1]["params"]
    many = export_requests(asked, ledger, tmp_path / "s.json", limits={"anthropic": Limits(2, 10**9)})
    assert [len(json.loads(path.read_text())["requests"]) for path in many] == [2, 1]


def test_answers_of_every_form(tmp_path):
    message = {"id": "msg", "content": [{"type": "text", "text": "S1: a tag"}], "usage": {"input_tokens": 1, "output_tokens": 1}}
    lines = [
        {"custom_id": "a", "result": {"type": "succeeded", "message": message}},
        {"custom_id": "b", "result": {"type": "errored", "error": {"type": "invalid_request"}}},
        {"custom_id": "c", "result": {"type": "expired"}},
        {"custom_id": "d", "answer": "S1: a tag"},
        {"custom_id": "e", "answer": {"S1": "spurious"}},
        {"custom_id": "f", "answer": ""},
        {"custom_id": "g", "response": {"status_code": 200, "body": "plain text"}},
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    counts = Imported()
    answers = dict(read_answers(tmp_path / "answers.jsonl", counts))
    assert json.loads(answers["a"]) == message and answers["d"] == "S1: a tag" and answers["g"] == "plain text"
    assert json.loads(answers["e"]) == {"S1": "spurious"} and set(answers) == {"a", "d", "e", "g"}
    assert [entry[0] for entry in counts.failed] == ["b", "c", "f"] and not counts.malformed
