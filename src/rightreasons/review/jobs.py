"""Long work that a page starts: a command of this package in a process of its own, whose words are kept in a file that the page reads on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rightreasons.common.files import make_private_folder
from rightreasons.common.text import clean_text
from rightreasons.errors import ConfigError
from rightreasons.lvlm.wire.privacy import redact
from rightreasons.runs.appended import now

# How long a command has to stop in order before it is ended.
PATIENCE = 10.0
# The most characters of a log that one answer carries.
MOST_WORDS = 20_000


@dataclass(frozen=True)
class Progress:
    """How far a job is: its name, its state, and what it wrote from some position on, up to ``end``."""

    name: str
    state: Literal["none", "running", "finished", "stopped", "failed"]
    words: str
    end: int


class Jobs:
    """At most one command at a time. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None
        self._name, self._stopped = "", False

    @property
    def running(self) -> bool:
        """Whether a command is at work."""
        return self._process is not None and self._process.poll() is None

    def start(self, name: str, arguments: Sequence[str], by: str) -> None:
        """Starts ``rightreasons ARGUMENTS``. Raises ConfigError if a command is at work already."""
        with self._lock:
            if self.running:
                raise ConfigError(f"{self._name} is still at work: wait for it, or stop it")
            make_private_folder(self._folder, "folder of the logs")
            at = now()
            log = self._folder / f"{at.replace(':', '').partition('+')[0]}-{arguments[0]}.log"
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "ab") as words:
                words.write(f"{name}, started by {by} at {at}\n".encode())
                words.flush()
                command = [sys.executable, "-m", "rightreasons", *arguments]
                # In a session of its own, so that Ctrl-C in the terminal reaches it through stop() alone, in order.
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True)
            self._log, self._name, self._stopped = log, name, False

    def stop(self) -> None:
        """Asks the command to stop, as Ctrl-C does, and ends it if it does not. What it has finished is kept."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        self._stopped = True
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def look(self, start: int = 0) -> Progress:
        """How the command is doing, and what it wrote from byte ``start`` on. Keys that it might show are taken out."""
        process, log = self._process, self._log
        if process is None or log is None:
            return Progress("", "none", "", 0)
        code = process.poll()
        state = "running" if code is None else "stopped" if self._stopped else "finished" if code == 0 else "failed"
        with log.open("rb") as file:
            file.seek(max(0, start))
            added = file.read(MOST_WORDS)
        # Whole lines alone, so that no key is cut in two before it is taken out; but for the end of a finished log, and a line without an end.
        lines = added[: added.rfind(b"\n") + 1]
        whole = lines if (state == "running" and len(added) < MOST_WORDS) or (lines and len(added) == MOST_WORDS) else added
        words = clean_text(redact(whole.decode("utf-8", "replace")))
        return Progress(self._name, state, words, max(0, start) + len(whole))
