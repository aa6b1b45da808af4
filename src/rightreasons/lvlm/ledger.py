"""The ledger: every attempt at a request is written down before it is sent, every answer before it is read, and none is asked for twice.

pending -> answered, or pending -> failed. Requests to a server go through a courier, which outlives a kill of the command; what is left
pending even so becomes unknown: it may have been paid for, so it is not sent again unless somebody says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rightreasons.errors import LVLMBusy, LVLMError, LVLMOverBudget, LVLMProtocolError, LVLMTimeout, LVLMUnavailable
from rightreasons.lvlm import LVLM
from rightreasons.lvlm.courier import Courier, wait_for_courier
from rightreasons.lvlm.prices import Price
from rightreasons.lvlm.protocol import Answer, Request

ADAPTER_VERSION = 1
MOST_ATTEMPTS = 5
# Seconds to wait for the courier of an earlier command: a little longer than a request may take.
LONGEST_WAIT = 200.0
_TABLE = """
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('pending', 'answered', 'failed', 'unknown')),
    role TEXT NOT NULL, model TEXT NOT NULL, request TEXT NOT NULL, raw TEXT, error TEXT, started REAL NOT NULL, ended REAL);
CREATE UNIQUE INDEX IF NOT EXISTS one_flight ON attempts (key) WHERE state IN ('pending', 'answered');
CREATE INDEX IF NOT EXISTS by_key ON attempts (key);
"""


class Ledger:
    """The attempts of one run folder. Threads may share it; a second process must not (``runs`` holds a lock)."""

    def __init__(
        self, path: Path, *, retry_unknown: bool = False, first_wait: float = 1.0, price: Price | None = None, max_usd: float | None = None
    ) -> None:
        if max_usd is not None and (price is None or price != Price(0.0, 0.0)):
            raise LVLMOverBudget(f"this ledger cannot keep to max_usd = {max_usd:g} yet: nothing is sent")
        path.touch(mode=0o600)
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=60)
        self._lock = threading.Lock()
        self._first_wait = first_wait
        self._jitter = random.Random(os.getpid())  # spreads out waiting; no result depends on it
        self._couriers: dict[str, Courier] = {}
        self._flights: dict[str, threading.Lock] = {}
        self._path, self._closing = path, False
        self.sent = self.cached = 0
        wait_for_courier(path, LONGEST_WAIT)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(_TABLE)
        self._connection.execute("UPDATE attempts SET state = 'unknown', error = 'the run stopped before an answer came' WHERE state = 'pending'")
        if retry_unknown:
            self._connection.execute("UPDATE attempts SET state = 'failed' WHERE state = 'unknown'")

    def close(self) -> None:
        """Wait for what is under way, write everything out and let go of the file."""
        self._closing = True
        for courier in self._couriers.values():
            courier.close()
        self._connection.close()

    def count(self, state: str) -> int:
        """How many attempts are in a state."""
        with self._lock:
            return self._connection.execute("SELECT count(*) FROM attempts WHERE state = ?", (state,)).fetchone()[0]

    def ask(self, lvlm: LVLM, request: Request) -> Answer:
        """The answer to ``request``, sent only where there is none yet. Raises LVLMError where asking again will not help."""
        body = lvlm.body(request)
        described, key = self._describe(lvlm, body)
        with self._lock:
            flight = self._flights.setdefault(key, threading.Lock())
        # One flight per key: whoever asks the same meanwhile waits for this answer.
        with flight:
            stored = self._find(key)
            if stored is not None:
                return stored if stored.problem else replace(lvlm.parse(stored.text), cached=True)
            return self._send(lvlm, key, described, body, request)

    def key(self, lvlm: LVLM, request: Request) -> str:
        """What identifies a request: the SHA-256 of everything in it, with pictures by their hashes."""
        return self._describe(lvlm, lvlm.body(request))[1]

    def missing(self, lvlm: LVLM, requests: list[Request]) -> list[Request]:
        """Those that ``ask`` would send."""
        with self._lock:
            return [request for request in requests if self._stored(self.key(lvlm, request)) is None]

    def record(self, lvlm: LVLM, request: Request, raw: str) -> Answer:
        """Stores an answer that came another way."""
        described, key = self._describe(lvlm, lvlm.body(request))
        self._end(self._begin(key, request.role, lvlm.name, described), "answered", raw=raw)
        return lvlm.parse(raw)

    def _describe(self, lvlm: LVLM, body: dict[str, Any]) -> tuple[str, str]:
        server = lvlm.address["base_url"] if lvlm.address is not None else None
        described = canonical({"adapter": ADAPTER_VERSION, "backend": lvlm.name, "server": server, "body": _without_pictures(body)})
        return described, hashlib.sha256(described.encode()).hexdigest()

    def _stored(self, key: str) -> tuple[str, str | None, str | None] | None:
        return self._connection.execute(
            "SELECT state, raw, error FROM attempts WHERE key = ? AND state IN ('answered', 'unknown') ORDER BY state LIMIT 1", (key,)
        ).fetchone()

    def _send(self, lvlm: LVLM, key: str, described: str, body: dict[str, Any], request: Request) -> Answer:
        """The answer, after as many attempts as the kind of error allows."""
        timeouts = 0
        for attempt in range(1, MOST_ATTEMPTS + 1):
            if self._closing:
                raise LVLMUnavailable("the run is stopping")
            row = self._begin(key, request.role, lvlm.name, described)
            try:
                raw = self._deliver(lvlm, row, body, request)
            except LVLMError as error:
                timeouts += isinstance(error, LVLMTimeout)
                # A timeout may have been paid for, so it is tried again once only.
                if not isinstance(error, LVLMBusy) or attempt == MOST_ATTEMPTS or timeouts > 1:
                    raise
                time.sleep(error.wait if error.wait is not None else self._first_wait * 2 ** (attempt - 1) * self._jitter.uniform(0.5, 1))
                continue
            try:
                return lvlm.parse(raw)
            except LVLMProtocolError as error:  # not from a model at all: kept to be looked at, and no answer
                self._end(row, "failed", raw=raw, error=str(error))
                raise
        raise AssertionError("the last attempt returns or raises")

    def _deliver(self, lvlm: LVLM, row: int, body: dict[str, Any], request: Request) -> str:
        """The raw answer, written down before it is given back."""
        if lvlm.address is not None:
            with self._lock:
                name = canonical(lvlm.address)
                courier = self._couriers[name] = self._couriers.get(name) or Courier(self._path, lvlm.address)
            return courier.send(row, body)
        try:
            raw = lvlm.send(body, request)
        except LVLMError as error:
            self._end(row, "failed", error=str(error))
            raise
        self._end(row, "answered", raw=raw)
        return raw

    def _find(self, key: str) -> Answer | None:
        with self._lock:
            row = self._stored(key)
            if row is None:
                return None
            self.cached += row[0] == "answered"
        if row[0] == "unknown":
            return Answer("", problem=f"unknown: {row[2]}; it may have been paid for, and is asked again only with --retry-unknown")
        return Answer(row[1] or "")

    def _begin(self, key: str, role: str, model: str, described: str) -> int:
        with self._lock:
            self.sent += 1
            cursor = self._connection.execute(
                "INSERT INTO attempts (key, state, role, model, request, started) VALUES (?, 'pending', ?, ?, ?, ?)",
                (key, role, model, described, time.time()),
            )
            return int(cursor.lastrowid or 0)

    def _end(self, row: int, state: str, *, raw: str | None = None, error: str | None = None) -> None:
        with self._lock:
            self._connection.execute(
                "UPDATE attempts SET state = ?, raw = ?, error = ?, ended = ? WHERE id = ?", (state, raw, error, time.time(), row)
            )


def canonical(value: object) -> str:
    """JSON with one spelling for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _without_pictures(value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    """The same JSON, with every picture replaced by its length and SHA-256."""
    if isinstance(value, dict):
        return {key: _without_pictures(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_pictures(inner) for inner in value]
    if isinstance(value, str) and value.startswith("data:image/"):
        return {"sha256": hashlib.sha256(value.encode()).hexdigest(), "length": len(value)}
    return value
