"""A process of its own that carries requests to a server and writes the answers into the ledger.

``kill -9`` on the command that started it does not reach it: it ends what is under way, commits the answers, takes nothing new, and
goes. So an answer that was being paid for is not lost, and the next run, which waits for it, does not ask again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rightreasons import errors
from rightreasons.errors import LVLMBusy, LVLMError, LVLMUnavailable

MOST_UNDER_WAY = 32


class Courier:
    """The side of the command: hands over requests and waits for word of them. Threads may share it."""

    def __init__(self, ledger: Path, address: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "rightreasons.lvlm.courier"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._write({"ledger": str(ledger), "address": address})
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, row: int, body: dict[str, Any]) -> str:
        """The raw answer, which is in the ledger already. Raises the LVLMError that the backend raised."""
        word: Future[dict[str, Any]] = Future()
        with self._lock:
            self._waiting[row] = word
        self._write({"row": row, "body": body})
        said = word.result()
        if "raw" in said:
            return said["raw"]
        kind = getattr(errors, said["kind"], LVLMError)
        raise kind(said["message"], said["wait"]) if issubclass(kind, LVLMBusy) else kind(said["message"])

    def close(self) -> None:
        """No more requests. Waits for what is under way."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None  # a pipe was asked for
        try:
            with self._lock:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
        except BrokenPipeError as error:
            raise LVLMUnavailable("the process that sends requests has ended; run the same command again, and it goes on where it stopped") from error

    def _read(self) -> None:
        assert self._process.stdout is not None  # a pipe was asked for
        for line in self._process.stdout:
            said = json.loads(line)
            with self._lock:
                word = self._waiting.pop(said["row"])
            word.set_result(said)
        with self._lock:
            lost, self._waiting = self._waiting, {}
        for word in lost.values():
            word.set_exception(
                LVLMUnavailable("the process that sends requests has ended; run the same command again, and it goes on where it stopped")
            )


def wait_for_courier(ledger: Path, timeout: float) -> None:
    """Until an earlier command's courier has written down what was under way; at most ``timeout`` seconds."""
    with _lock_file(ledger).open("a") as lock:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return
                time.sleep(0.05)


def _lock_file(ledger: Path) -> Path:
    path = ledger.with_name(f".{ledger.name}.courier")
    path.touch(mode=0o600)
    return path


def _serve() -> None:
    """The courier's own life: one line in, one request out, one row written, one line back."""
    from rightreasons.lvlm import open_lvlm

    # An interrupt from the keyboard reaches the whole group of processes; the command decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start = json.loads(sys.stdin.readline())
    ledger = Path(start["ledger"])
    lvlm = open_lvlm(start["address"]["spec"], base_url=start["address"]["base_url"], allow_remote=tuple(start["address"]["allow_remote"]))
    connection = sqlite3.connect(ledger, check_same_thread=False, isolation_level=None, timeout=60)
    connection.execute("PRAGMA synchronous = FULL")
    mutex = threading.Lock()

    def carry(job: dict[str, Any]) -> None:
        word: dict[str, Any]
        try:
            raw = lvlm.send(job["body"], None)
        except Exception as error:  # whatever it is, the command must hear of it
            kind = type(error).__name__ if isinstance(error, LVLMError) else "LVLMError"
            state, word = "failed", {"kind": kind, "message": str(error) or repr(error), "wait": getattr(error, "wait", None)}
        else:
            state, word = "answered", {"raw": raw}
        with mutex:
            values = (state, word.get("raw"), word.get("message"), time.time(), job["row"])
            connection.execute("UPDATE attempts SET state = ?, raw = ?, error = ?, ended = ? WHERE id = ?", values)
            # Where the command is gone nobody listens; what matters is in the ledger.
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps({"row": job["row"], **word}), flush=True)

    with _lock_file(ledger).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # several couriers may serve one ledger; whoever waits for them asks for it alone
        with ThreadPoolExecutor(MOST_UNDER_WAY) as pool:
            for line in sys.stdin:
                pool.submit(carry, json.loads(line))
        connection.close()
    # At exit Python writes out what is buffered for a command that may be gone.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.close()


if __name__ == "__main__":
    _serve()
