"""One thread writes for many: what waits is committed together, and a write that fails takes no other with it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rightreasons.lvlm.ledger.attempts import Attempt, Writer, begin, keep_answer


@pytest.fixture
def writer(tmp_path):
    writer = Writer(tmp_path / "lvlm.sqlite")
    yield writer
    writer.close()


def attempt(number: int) -> Attempt:
    return Attempt(f"key {number}", "judge", "openai:stub", "{}", 0.5)


def keys(folder) -> list[str]:
    """What another process sees."""
    with contextlib.closing(sqlite3.connect(folder / "lvlm.sqlite")) as connection:
        return [key for (key,) in connection.execute("SELECT key FROM attempts ORDER BY id")]


def write_together(writer: Writer, operations: list) -> tuple[list, list[str]]:
    """Lets all of them wait while one write goes on; gives the result or error of each, and the statements that were run for them."""
    busy, go_on, statements = threading.Event(), threading.Event(), []

    def hold(connection):
        busy.set()
        assert go_on.wait(10)
        # From the next transaction on.
        connection.set_trace_callback(statements.append)

    with ThreadPoolExecutor(1 + len(operations)) as pool:
        first = pool.submit(writer.write, hold)
        assert busy.wait(10)
        waiting = [pool.submit(writer.write, operation) for operation in operations]
        while writer._waiting.qsize() < len(operations):
            assert not any(one.done() for one in waiting)
        go_on.set()
        first.result(10)
        results = [one.exception(10) or one.result() for one in waiting]
    return results, statements[statements.index("BEGIN IMMEDIATE") :]


def test_a_write_is_on_the_disk_when_its_result_is_there(writer, tmp_path):
    assert [writer.write(lambda connection, number=number: begin(connection, attempt(number))) for number in range(3)] == [1, 2, 3]
    assert keys(tmp_path) == ["key 0", "key 1", "key 2"]
    assert writer._connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: a power cut takes nothing that was committed"


def test_what_waits_is_committed_together(writer, tmp_path):
    operations = [lambda connection, number=number: begin(connection, attempt(number)) for number in range(5)]
    rows, statements = write_together(writer, operations)
    assert sorted(rows) == [1, 2, 3, 4, 5] and len(keys(tmp_path)) == 5
    assert statements.count("BEGIN IMMEDIATE") == statements.count("COMMIT") == 1


def test_a_write_that_fails_takes_no_other_with_it(writer, tmp_path):
    """What it had already written is undone, and whoever asked for it gets the error."""

    def fail(connection):
        begin(connection, attempt(9))
        raise ZeroDivisionError("on purpose")

    results, statements = write_together(
        writer, [lambda connection: begin(connection, attempt(1)), fail, lambda connection: begin(connection, attempt(2))]
    )
    assert [type(result) for result in results] == [int, ZeroDivisionError, int] and sorted(keys(tmp_path)) == ["key 1", "key 2"]
    assert statements.count("COMMIT") == 1 and statements.count("ROLLBACK") == 0


def test_an_error_of_the_disk_fails_all_that_wait(writer, tmp_path):
    def full(connection):
        raise sqlite3.OperationalError("database or disk is full")

    one, two = (lambda connection, number=number: begin(connection, attempt(number)) for number in (1, 2))
    results, _ = write_together(writer, [one, full, two])
    assert [str(result) for result in results] == ["database or disk is full"] * 3 and keys(tmp_path) == []
    assert not writer._connection.in_transaction
    assert writer.write(lambda connection: begin(connection, attempt(3))) == 1, "it writes on"
    assert keys(tmp_path) == ["key 3"]


def test_a_question_has_one_answer_or_one_flight(writer):
    row = writer.write(lambda connection: begin(connection, attempt(1)))
    for _ in range(2):
        with pytest.raises(sqlite3.IntegrityError):
            writer.write(lambda connection: begin(connection, attempt(1)))
        writer.write(lambda connection: keep_answer(connection, row, "said"))


def test_what_waits_is_written_before_the_end(tmp_path):
    writer, busy, go_on = Writer(tmp_path / "lvlm.sqlite"), threading.Event(), threading.Event()

    def hold(connection):
        busy.set()
        assert go_on.wait(10)

    with ThreadPoolExecutor(3) as pool:
        pool.submit(writer.write, hold)
        assert busy.wait(10)
        late = pool.submit(writer.write, lambda connection: begin(connection, attempt(1)))
        while not writer._waiting.qsize():
            assert not late.done()
        closing = pool.submit(writer.close)
        while writer._waiting.qsize() < 2:
            assert not closing.done()
        go_on.set()
        assert late.result(10) == 1
        closing.result(10)
    assert keys(tmp_path) == ["key 1"] and not writer._thread.is_alive()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        writer._connection.execute("SELECT 1")
