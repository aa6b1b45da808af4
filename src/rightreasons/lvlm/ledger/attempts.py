"""The table of attempts in lvlm.sqlite, which the ledger and its couriers write. Free of torch.

An attempt goes from pending to answered or failed. One that a crash left pending becomes unknown: it may have been paid for.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import astuple, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from rightreasons.errors import ConfigError, LVLMError

T = TypeVar("T")
SCHEMA = 2
_TABLE = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('pending', 'answered', 'failed', 'unknown')), outcome TEXT,
    role TEXT NOT NULL, model TEXT NOT NULL, request TEXT NOT NULL, raw TEXT, error TEXT, reserved_usd REAL, cost_usd REAL,
    input_tokens INTEGER, output_tokens INTEGER, started REAL NOT NULL, ended REAL);
CREATE UNIQUE INDEX IF NOT EXISTS one_flight ON attempts (key) WHERE state IN ('pending', 'answered');
CREATE INDEX IF NOT EXISTS by_key ON attempts (key);
PRAGMA user_version = {SCHEMA};
COMMIT;
"""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a request, as recorded before it is sent: ``request`` without pictures, and its highest possible cost."""

    key: str
    role: str
    model: str
    request: str
    reserved_usd: float | None


def open_attempts(path: Path, *, durable: bool) -> sqlite3.Connection:
    """A connection that threads may share if they hold a lock of their own. Commits survive any kill, and with ``durable`` a power cut too.

    Raises ConfigError for a ledger of another version.
    """
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=60)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        made = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'attempts'").fetchone()[0]
        if made and version != SCHEMA:
            other = "an older" if version < SCHEMA else "a newer"
            raise ConfigError(
                f"{path} was written by {other} version of rightreasons (schema {version}, expected {SCHEMA}), and its answers would be paid for "
                f"again: continue with that version, or choose another --out"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        if not made:
            connection.executescript(_TABLE)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ConfigError(f"{path} cannot be used as a ledger ({error}): choose another --out, or restore a copy of that file") from error
    except ConfigError:
        connection.close()
        raise
    return connection


class Writer:
    """One thread that writes for many: it commits all waiting writes together, so 32 requests wait for the disk once instead of 32 times."""

    def __init__(self, path: Path) -> None:
        self._connection = open_attempts(path, durable=True)
        self._waiting: SimpleQueue[tuple[Callable[[sqlite3.Connection], object], Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Runs ``operation`` and returns its result once it is on the disk. Raises sqlite3.Error if it could not be written."""
        done: Future[T] = Future()
        self._waiting.put((operation, done))
        return done.result()

    def close(self) -> None:
        """Ends the thread once everything that waits is written."""
        self._waiting.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            # ``close`` puts None last, so a batch that ends with it is the last batch.
            batch = [first, *(self._waiting.get() for _ in range(self._waiting.qsize()))]
            last = batch[-1] is None
            batch = [entry for entry in batch if entry is not None]
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                results = [_attempt(self._connection, operation) for operation, _ in batch]
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                results = [(None, error)] * len(batch)
            for (_, done), (result, error) in zip(batch, results, strict=True):
                done.set_result(result) if error is None else done.set_exception(error)
            if last:
                return


def _attempt(connection: sqlite3.Connection, operation: Callable[[sqlite3.Connection], object]) -> tuple[object, Exception | None]:
    """One write of a batch: if it fails, the others stay. An error of the disk itself fails them all."""
    connection.execute("SAVEPOINT one")
    try:
        result = operation(connection)
    except sqlite3.OperationalError:
        raise
    except Exception as error:  # whatever it is, it is raised in the thread that asked for this write
        connection.execute("ROLLBACK TO one")
        return None, error
    finally:
        if connection.in_transaction:
            connection.execute("RELEASE one")
    return result, None


def storable(text: str) -> str:
    """Text that a database can store: half of a surrogate pair, which JSON can carry, becomes a question mark."""
    return text.encode(errors="replace").decode()


def begin(connection: sqlite3.Connection, attempt: Attempt) -> int:
    """Records that a request is about to be sent. Returns the row's id."""
    columns = "key, role, model, request, reserved_usd, state, started"
    values = (*astuple(attempt), "pending", time.time())
    return int(connection.execute(f"INSERT INTO attempts ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", values).lastrowid or 0)


def keep_answer(connection: sqlite3.Connection, row: int, raw: str) -> None:
    """Stores a raw answer before it is parsed. Until then it counts with the cost that was reserved for it."""
    connection.execute("UPDATE attempts SET state = 'answered', raw = ?, ended = ? WHERE id = ?", (storable(raw), time.time(), row))


def keep_failure(connection: sqlite3.Connection, row: int, error: LVLMError) -> None:
    """Records why no answer came. An attempt that may have been paid for counts with the cost that was reserved for it."""
    connection.execute(
        "UPDATE attempts SET state = 'failed', outcome = ?, error = ?, cost_usd = CASE WHEN ? THEN reserved_usd ELSE 0 END, ended = ? WHERE id = ?",
        (error.outcome, storable(str(error)), error.may_be_paid, time.time(), row),
    )


def recover(connection: sqlite3.Connection, *, retry_unknown: bool) -> None:
    """Marks the attempts whose fate a crash left unknown: pending ones, and requests whose one retry ended as ambiguously as the first attempt.

    A local model's pending attempt ended with the process, cost nothing, and can be made again. With ``retry_unknown`` all the others may be made
    again too, and what they may have cost still counts.
    """
    connection.execute("UPDATE attempts SET state = 'failed', outcome = 'interrupted', cost_usd = 0 WHERE state = 'pending' AND model LIKE 'local:%'")
    connection.execute(
        "UPDATE attempts SET state = 'unknown', outcome = 'unknown', error = 'the run stopped before an answer came' WHERE state = 'pending'"
    )
    twice = "SELECT max(id) FROM attempts WHERE outcome = 'ambiguous' GROUP BY key HAVING count(*) > 1"
    connection.execute(f"UPDATE attempts SET state = 'unknown' WHERE id IN ({twice})")
    if retry_unknown:
        connection.execute("UPDATE attempts SET state = 'failed', outcome = 'asked again' WHERE state = 'unknown' OR outcome = 'ambiguous'")
