"""Ctrl-C, as a real signal to a real process: it ends at once with one line and 130, and what was being paid for is kept."""

from __future__ import annotations

import http.client
import signal
import subprocess
import time
from urllib.parse import urlsplit

from tests.support.fault_server import FaultServer, look_for_plates
from tests.support.helpers import command, environment, invoke, write_project, write_scripted
from tests.support.review import make_run

# The lines, and the longest that anybody waits (seconds, on a busy machine): less than an answer takes.
STOPPING = "stopping: answers under way are kept; the same command goes on"
STOPPED = "stopped: every verdict that the page told of is kept; the same command opens it again"
LONGEST = 7.5


def begin(*arguments: object, log) -> subprocess.Popen:
    """The courier outlives the command and has its standard error, so that a file stands for it and no pipe."""
    with log.open("w") as errors:
        return subprocess.Popen(command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=errors)


def interrupt(process: subprocess.Popen, log, words: str = STOPPING) -> None:
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=60)
    assert time.monotonic() - began < LONGEST and code == 130
    said = log.read_text()
    assert said.count(words) == 1 and "Traceback" not in said and "Aborted" not in said


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


def test_review_with_a_browser_that_keeps_its_connection(tmp_path):
    """A server has no answers under way: it says that it has stopped, and does not wait for the browser."""
    run, log = make_run(tmp_path, size=2), tmp_path / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(command("review", run), env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        address = next(line.split()[1] for line in process.stdout or () if line.startswith("open "))
        browser = http.client.HTTPConnection(urlsplit(address).netloc)
        browser.request("GET", "/")
        browser.getresponse().read()
        interrupt(process, log, STOPPED)
        browser.close()
