"""A separate process that sends requests to a server and writes the answers into the ledger.

It survives ``kill -9`` on the command that started it: it finishes the requests under way, commits their answers, takes no new ones, and
exits. So an answer that was being paid for is not lost, and the next run, which waits for the courier, does not ask again.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rightreasons import errors
from rightreasons.errors import LVLMBusy, LVLMError, LVLMUnavailable
from rightreasons.lvlm.ledger.attempts import Attempt, Writer, begin, keep_answer, keep_failure
from rightreasons.lvlm.wire.privacy import redact

READY = "ready\n"
_ENDED = "the process that sends requests has ended; run the same command again, and it goes on where it stopped"


class Courier:
    """The command's side of a courier: hands requests over and waits for their results. Threads may share it."""

    def __init__(self, ledger: Path, address: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "rightreasons.lvlm.ledger.courier"]
        # In a session of its own, so that closing the terminal does not end requests that are being paid for.
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "encoding": "utf-8"}
        self._process = subprocess.Popen(command, **pipes, start_new_session=True)
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._numbers = itertools.count()
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._reader: threading.Thread | None = None
        assert self._process.stdout is not None  # a pipe was asked for
        self._write({"ledger": str(ledger), "address": address})
        # A ready courier holds its lock: a command started after a kill of this one waits for every request handed over from here on.
        if self._process.stdout.readline() != READY:
            self.close()
            raise LVLMUnavailable("the process that sends requests did not start; its own message is above")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id of the courier."""
        return self._process.pid

    def send(self, attempt: Attempt, body: dict[str, Any]) -> tuple[int, str]:
        """The row in the ledger and the raw answer, which is stored there already. Raises the LVLMError that the backend raised."""
        word: Future[dict[str, Any]] = Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = word
        self._write({"number": number, "attempt": asdict(attempt), "body": body})
        said = word.result()
        if "raw" in said:
            return said["row"], said["raw"]
        kind = getattr(errors, said["kind"])
        raise kind(said["message"], said["wait"]) if issubclass(kind, LVLMBusy) else kind(said["message"])

    def leave(self) -> None:
        """Sends no more requests, and does not wait: the courier finishes and records those under way."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def close(self) -> None:
        """Sends no more requests, and waits for those under way."""
        self.leave()
        self._process.wait()
        if self._reader is not None:
            self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None  # a pipe was asked for
        try:
            with self._writing:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:  # a closed pipe is a ValueError
            raise LVLMUnavailable(_ENDED) from error

    def _read(self) -> None:
        assert self._process.stdout is not None  # a pipe was asked for
        for line in self._process.stdout:
            said = json.loads(line)
            with self._lock:
                word = self._waiting.pop(said["number"])
            word.set_result(said)
        with self._lock:
            lost, self._waiting = self._waiting, {}
        for word in lost.values():
            word.set_exception(LVLMUnavailable(_ENDED))


def wait_for_courier(ledger: Path, timeout: float) -> None:
    """Waits until an earlier command's courier has recorded the requests under way, at most ``timeout`` seconds."""
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
    """The courier's main loop. For each line in: record an attempt, send the request, record its answer, write one line back."""
    from rightreasons.lvlm import open_lvlm
    from rightreasons.lvlm.protocol import Sender

    # Signals are ignored: the courier ends when the command closes the pipe, and finishes the requests under way first.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    start = json.loads(sys.stdin.readline())
    ledger = Path(start["ledger"])
    address: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in start["address"].items()}
    lvlm = open_lvlm(**address)
    if not isinstance(lvlm, Sender):
        raise TypeError(f"{lvlm.name} answers in its own process, and no courier can ask it")
    writer = Writer(ledger)
    mutex = threading.Lock()

    def carry(job: dict[str, Any]) -> None:
        row = writer.write(lambda connection: begin(connection, Attempt(**job["attempt"])))
        word: dict[str, Any] = {"number": job["number"], "row": row}
        try:
            raw = redact(lvlm.send(job["body"]))  # an answer can repeat the API key, and the ledger stores answers verbatim
        except Exception as error:  # whatever it is, the command must be told
            failure = error if isinstance(error, LVLMError) else LVLMError(redact(repr(error)))
            word |= {"kind": type(failure).__name__, "message": str(failure), "wait": getattr(failure, "wait", None)}
            writer.write(lambda connection: keep_failure(connection, row, failure))
        else:
            word["raw"] = raw
            writer.write(lambda connection: keep_answer(connection, row, raw))
        say(word)

    def say(word: dict[str, Any]) -> None:
        # If the command is gone nobody reads this; what matters is in the ledger.
        with mutex, contextlib.suppress(BrokenPipeError):
            print(json.dumps(word), flush=True)

    def take(line: str) -> None:
        try:
            carry(json.loads(line))
        except sqlite3.Error as error:
            message = f"cannot write {ledger} ({error}): free some disk space, and run the same command again"
            say({"number": json.loads(line)["number"], "kind": "LVLMUnavailable", "message": message, "wait": None})

    with _lock_file(ledger).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # shared, since several couriers may serve one ledger; wait_for_courier asks for the exclusive lock
        print(READY, end="", flush=True)
        with ThreadPoolExecutor(lvlm.concurrency[1]) as pool:
            for line in sys.stdin:
                if line.endswith("\n"):  # a kill of the command can cut the last line short
                    pool.submit(take, line)
        writer.close()
    # At exit Python flushes standard output, which the command may no longer read.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.close()


if __name__ == "__main__":
    _serve()
