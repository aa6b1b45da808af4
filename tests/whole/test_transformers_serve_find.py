"""A real server that nobody here wrote, and a model of noise: a whole `find` against it gives no verdict, and says what came instead."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.probe import probe
from tests.support.helpers import environment, invoke, read_lines, write_project, write_scripted
from tests.support.tiny_vlm import build_tiny_vlm


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The model's folder, which is its name there, and the server's address."""
    folder, port = build_tiny_vlm(tmp_path_factory.mktemp("tiny")), free_port()
    log = (tmp_path_factory.mktemp("log") / "serve.log").open("w+")
    command = [os.path.join(os.path.dirname(sys.executable), "transformers"), "serve", str(folder)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--default-seed", "0"]
    server = subprocess.Popen([*command, *options], stdout=log, stderr=log, env=environment(HF_HUB_OFFLINE="1", HF_HOME=str(folder / "none")))
    try:
        deadline = time.monotonic() + 120
        while not answers(port):
            assert server.poll() is None and time.monotonic() < deadline, log.seek(0) or log.read()[-3000:]
            time.sleep(0.1)
        yield folder, f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def test_noise_is_no_verdict(served, tmp_path):
    """A critic of noise: no paragraph names a segment, so that no judge is asked and nothing is concluded."""
    folder, base_url = served
    config = write_project(tmp_path, base_url, changes={"openai:stub": f"openai:{folder}", "size = 12": "size = 3"})
    assert "no usable verdict" in the_end(invoke("find", config, "--out", tmp_path / "run"))
    attempts = check_queued(tmp_path / "run", images=3)
    assert {role for role, _ in attempts} == {"critic", "control"} and len(attempts) >= 6, "each was asked once more"
    invoke("find", config, "--out", tmp_path / "run")
    assert check_queued(tmp_path / "run", images=3) == attempts, "what was answered is not asked again"


def test_noise_of_a_judge_is_no_verdict(served, tmp_path):
    """A critique of sense, and a judge of noise: malformed, and a person's to decide."""
    folder, base_url = served
    judge = f'base_url = "{base_url}"\njudge = "openai:{folder}"'
    config = write_scripted(tmp_path, base_url=base_url, changes={f'base_url = "{base_url}"': judge, "size = 12": "size = 2"})
    assert "no usable verdict" in the_end(invoke("find", config, "--out", tmp_path / "run"))
    assert {role for role, _ in check_queued(tmp_path / "run", images=2)} == {"critic", "control", "judge"}


def test_the_probe_tells_what_it_can_do(served):
    folder, base_url = served
    lvlm = open_lvlm(f"openai:{folder}", base_url=base_url)
    try:
        lvlm.check()
        found = probe(lvlm)
    finally:
        lvlm.close()
    assert found["answers"] and found["usage"] and found["seconds"] > 0 and found["max_tokens_name"] == "max_completion_tokens" and found["truncates"]
    # It takes pictures and schemas with a 200, and heeds neither.
    assert not (found["pictures"] or found["most_pictures"] or found["json_schema"] or found["json_object"])


def the_end(result) -> str:
    assert result.exit_code == 1
    return result.stderr


def check_queued(run: Path, *, images: int) -> list[tuple[str, str]]:
    """That every segment of every image is undecided, with the reason; gives role and outcome of every attempt."""
    verdicts = read_lines(run / "verdicts.jsonl")
    assert len({verdict["index"] for verdict in verdicts}) == images
    assert all(verdict["value"] == "unsure" and verdict["problem"].split(":")[0] in ("malformed", "truncated", "refused") for verdict in verdicts)
    with contextlib.closing(sqlite3.connect(run / "lvlm.sqlite")) as connection:
        rows = connection.execute("SELECT role, state, outcome, raw, input_tokens FROM attempts ORDER BY id").fetchall()
    assert all(state in ("answered", "failed") and raw is not None for _, state, _, raw, _ in rows), "nothing is pending, every word of it is kept"
    return [(role, outcome) for role, _, outcome, _, _ in rows]
