"""Ctrl-C, as a real signal to a real process: it ends at once with one line and 130, and what was being paid for is kept."""

from __future__ import annotations

import signal
import subprocess
import time

from tests.support.fault_server import FaultServer, look_for_plates
from tests.support.helpers import command, environment, invoke, write_project, write_scripted

# The line, and the longest that anybody waits (seconds, on a busy machine): less than an answer takes.
STOPPING = "stopping: answers under way are kept; the same command goes on"
LONGEST = 7.5


def begin(*arguments: object, log) -> subprocess.Popen:
    """The courier outlives the command and has its standard error, so that a file stands for it and no pipe."""
    with log.open("w") as errors:
        return subprocess.Popen(command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=errors)


def interrupt(process: subprocess.Popen, log) -> None:
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=60)
    assert time.monotonic() - began < LONGEST and code == 130
    said = log.read_text()
    assert said.count(STOPPING) == 1 and "Traceback" not in said and "Aborted" not in said


def test_find_while_answers_are_under_way(tmp_path):
    """Answers take longer than anybody would wait; every one that was begun is in the ledger when the same command goes on."""
    with FaultServer(tag="top left", delay=8.0, critic=look_for_plates) as stub:
        config, log = write_project(tmp_path, stub.base_url, changes={"size = 12": "size = 6"}), tmp_path / "log"
        process = begin("find", config, "--out", tmp_path / "run", log=log)
        stub.wait_for(2, alive=lambda: process.poll() is None)
        interrupt(process, log)
        stub.delay = 0.0
        done = invoke("find", config, "--out", tmp_path / "run")
        assert done.exit_code == 0, done.stderr
        assert stub.repeated == 0, "nothing was paid for twice"


def test_fix_within_its_training(tmp_path):
    config = write_scripted(tmp_path, changes={"epochs = 3": "epochs = 100000"})
    assert invoke("find", config, "--out", tmp_path / "run").exit_code == 0
    log = tmp_path / "log"
    process = begin("fix", tmp_path / "run", log=log)
    while not list((tmp_path / "run").glob("aligning-*")):  # an epoch was saved
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    interrupt(process, log)
