"""The process that carries requests: small, free of torch, and out of reach of a kill of the command."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from rightreasons.errors import LVLMUnavailable
from rightreasons.lvlm import open_lvlm
from rightreasons.lvlm.ledger.attempts import Writer
from rightreasons.lvlm.ledger.courier import wait_for_courier
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.lvlm.protocol import Request
from tests.support.fault_server import FaultServer, says
from tests.support.helpers import children

# Torch alone has more than twice this.
MOST_MIB = 150


def test_the_courier_is_small(tmp_path):
    with FaultServer(misbehave=says("ok")) as stub, Ledger(tmp_path / "lvlm.sqlite") as ledger:
        ledger.ask(open_lvlm("openai:stub", base_url=stub.base_url), Request("judge", ("What?",)))
        (courier,) = ledger._couriers.values()
        status = Path(f"/proc/{courier.pid}/status").read_text()
        maps = Path(f"/proc/{courier.pid}/maps").read_text()
    resident = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident < MOST_MIB and "libtorch" not in maps


def states(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT state, count(*) FROM attempts GROUP BY state").fetchall())


def test_answers_on_their_way_survive_a_kill_of_the_command(tmp_path):
    """The next command waits until the courier has written down what was being paid for, and asks for none of it."""
    path, images = tmp_path / "lvlm.sqlite", 3
    with FaultServer(answer=lambda seen: f"said {seen.text}", delay=1.0) as stub:
        command = [sys.executable, "-m", "tests.support.asker", str(path), stub.base_url, str(images)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stub.wait_for(images, alive=lambda: process.poll() is None)
        process.kill()
        process.wait()
        assert states(path) == {"pending": images}, "all are on their way"
        wait_for_courier(path, 30.0)
        assert states(path) == {"answered": images}
        assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
        assert stub.requests == 2 * images and stub.repeated == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_the_end_of_a_terminal_does_not_reach_what_is_being_paid_for(tmp_path, number):
    """As a terminal does when it closes: the signal goes to the whole group of the command, and here to the courier itself as well."""
    path = tmp_path / "lvlm.sqlite"
    with FaultServer(answer=lambda seen: "said", delay=1.0) as stub:
        command = [sys.executable, "-m", "tests.support.asker", str(path), stub.base_url, "1"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        stub.wait_for(1, alive=lambda: process.poll() is None)
        (courier,) = children(process)
        assert os.getpgid(courier) != os.getpgid(process.pid)
        os.kill(courier, number)
        os.killpg(process.pid, number)
        process.wait()
        wait_for_courier(path, 30.0)
    assert states(path).keys() == {"answered"}


def test_a_courier_writes_on_after_one_write_that_failed(tmp_path):
    writer = Writer(tmp_path / "lvlm.sqlite")
    try:
        with pytest.raises(UnicodeEncodeError):
            writer.write(lambda connection: connection.execute("SELECT ?", ("\ud83d",)))
        assert writer.write(lambda connection: connection.execute("SELECT 7").fetchone()) == (7,)
    finally:
        writer.close()


def test_a_courier_that_is_killed_leaves_its_requests_unknown(tmp_path):
    path, request = tmp_path / "lvlm.sqlite", Request("judge", ("What?",))
    with FaultServer(answer=lambda seen: "ok") as stub:
        lvlm, ledger = open_lvlm("openai:stub", base_url=stub.base_url), Ledger(path)
        # As the request arrives, whoever sent it is killed.
        stub.misbehave = lambda seen: os.kill(next(iter(ledger._couriers.values())).pid, signal.SIGKILL)
        with pytest.raises(LVLMUnavailable, match="run the same command again"):
            ledger.ask(lvlm, request)
        ledger.close()
        again = Ledger(path)
        assert again.ask(lvlm, request).outcome == "unknown" and stub.requests == 1
        again.close()


def test_a_courier_that_cannot_start_says_so(tmp_path):
    from rightreasons.lvlm.ledger.courier import Courier

    with pytest.raises(LVLMUnavailable, match="did not start"):
        Courier(tmp_path / "lvlm.sqlite", {"spec": "nobody:knows", "base_url": "http://127.0.0.1:9/v1", "allow_remote": []})


def test_a_courier_carries_32_at_a_time_and_no_more(tmp_path):
    """As ``find`` dispatches images: 4, 8, 16 and then 32 under way."""
    from rightreasons.common.parallel import map_in_order
    from rightreasons.lvlm.ledger.throttle import count_workers

    with FaultServer(answer=lambda seen: seen.text, delay=1.0) as stub, Ledger(tmp_path / "lvlm.sqlite") as ledger:
        lvlm = open_lvlm("openai:stub", base_url=stub.base_url)
        ask = lambda row: ledger.ask(lvlm, Request("judge", (f"Image {row}",))).text  # noqa: E731
        answers = map_in_order(ask, range(110), workers=count_workers(lvlm), advance=lambda done, total: None, stop=ledger.stop)
    assert answers == [f"Image {row}" for row in range(110)] and stub.most_under_way == 32 and stub.repeated == 0
