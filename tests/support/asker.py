"""A command that asks about images and can be killed: ``python -m tests.support.asker LEDGER BASE_URL IMAGES``. It starts quickly, without torch.

Two calls an image, critic and judge, through the ledger and a courier; the verdicts are printed when all are there. ``find`` itself is killed in
test_whole_run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.fault_server import FaultServer, Seen


def ask_all(ledger_path: Path, base_url: str, images: int) -> dict[str, str]:
    from rightreasons.lvlm import open_lvlm
    from rightreasons.lvlm.ledger.ledger import Ledger
    from rightreasons.lvlm.protocol import Request

    lvlm = open_lvlm("openai:stub", base_url=base_url)

    def consult(image: int) -> str:
        critique = ledger.ask(lvlm, Request("critic", (f"Look at image {image}.",)))
        assert critique.problem is None, critique.problem
        verdict = ledger.ask(lvlm, Request("judge", (f"Judge: {critique.text}",)))
        assert verdict.problem is None, verdict.problem
        return verdict.text

    with Ledger(ledger_path) as ledger, ThreadPoolExecutor(64) as pool:
        return dict(zip(map(str, range(images)), pool.map(consult, range(images)), strict=True))


def answer(seen: Seen) -> str:
    """Words that depend on the question alone."""
    return hashlib.sha256(seen.text.encode()).hexdigest()[:12]


def kill_at_random(folder: Path, images: int, kills: int, seed: int = 0) -> dict[str, object]:
    """Asks about so many images, kills the command at so many random moments, lets it end, and says what was lost or came twice."""
    dice = random.Random(seed)
    ledger = folder / "lvlm.sqlite"
    with FaultServer(answer=answer, delay=0.15, remember=False) as stub:
        command = [sys.executable, "-m", "tests.support.asker", str(ledger), stub.base_url, str(images)]
        killed, started = 0, time.monotonic()
        while killed < kills:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
            # The moments are spread over what is left of the run, some of them before anything is sent.
            goal = stub.requests + dice.randrange(max(1, 2 * (2 * images - stub.requests) // (kills - killed + 1)))
            with contextlib.suppress(AssertionError):
                stub.wait_for(goal, alive=lambda: process.poll() is None)  # noqa: B023 -- used before the loop goes on
            time.sleep(dice.uniform(0, 0.3))
            assert process.poll() is None, "the run ended before it was killed often enough: give it more images"
            process.kill()
            process.wait()
            killed += 1
        last = subprocess.run(command, capture_output=True, text=True, check=False)
        assert last.returncode == 0, last.stderr
        verdicts = json.loads(last.stdout)
        expected = {str(i): _twice(f"Look at image {i}.") for i in range(images)}
        with contextlib.closing(sqlite3.connect(ledger)) as connection:
            states = dict(connection.execute("SELECT state, count(*) FROM attempts GROUP BY state").fetchall())
        return {
            "images": images,
            "kills": killed,
            "requests": stub.requests,
            "paid_twice": sum(times - 1 for times in stub.bodies.values()),
            "paid_and_lost": stub.paid - states.get("answered", 0),
            "states": states,
            "same_verdicts": verdicts == expected,
            "seconds": time.monotonic() - started,
        }


def _twice(text: str) -> str:
    words = hashlib.sha256(text.encode()).hexdigest()[:12]
    return hashlib.sha256(f"Judge: {words}".encode()).hexdigest()[:12]


if __name__ == "__main__":
    print(json.dumps(ask_all(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
