"""The rows of a study in several processes. One that fails, or dies, is told of; the others finish."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, process
from pathlib import Path

import torch

from rightreasons.common.progress import Advance, Reporter, Silent
from rightreasons.errors import RightReasonsError
from rightreasons.studies.definition import Study
from rightreasons.studies.results import is_finished
from rightreasons.studies.row import find_shortcut, run_row


@dataclass(frozen=True)
class Group:
    """The rows of one seed that share a run folder, which two processes cannot work on at once."""

    seed: int
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """A row and seed without a result, and why."""

    row: str
    seed: int
    why: str


def group_rows(study: Study, names: Sequence[str], seeds: Sequence[int], out: Path) -> list[Group]:
    """What is not finished yet, seed by seed, in the order of the table."""
    groups: dict[tuple[int, Path], list[str]] = {}
    for seed in seeds:
        for name in names:
            if not is_finished(study, name, seed, out):
                groups.setdefault((seed, study.work_folder(study.row(name), seed, out)), []).append(name)
    return [Group(seed, tuple(rows)) for (seed, _), rows in groups.items()]


def run_groups(study: Study, groups: Sequence[Group], out: Path, reporter: Reporter, *, jobs: int) -> list[Failure]:
    """Runs every row of every group in ``jobs`` processes, or in this one if that is 1. Returns what failed."""
    failures: list[Failure] = []
    if jobs == 1:
        for group in groups:
            failed = _run_group(study, group, out, reporter)
            _tell(failed, reporter)
            failures += failed
        return failures
    waiting, running = list(groups), {}
    threads = max(1, torch.get_num_threads() // jobs)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                started = _Worker(study, waiting.pop(0), out, threads)
                running[started.process.sentinel] = started
            for sentinel in connection.wait(list(running)):
                ended = running.pop(sentinel)
                failed = ended.failures()
                _tell(failed, reporter)
                failures += failed
                reporter.note(f"{len(waiting) + len(running)} of {len(groups)} parts are still to do")
    finally:
        for worker in running.values():
            worker.process.terminate()
    return failures


def _tell(failures: Sequence[Failure], reporter: Reporter) -> None:
    for failure in failures:
        reporter.note(f"seed {failure.seed}, {failure.row} failed: {failure.why}")


def _run_group(study: Study, group: Group, out: Path, reporter: Reporter) -> list[Failure]:
    """Finds the shortcut once, and runs each row on it."""
    reporter.note(f"{study.name}, seed {group.seed}: finding the shortcut for {', '.join(group.rows)}")
    try:
        found = find_shortcut(study, study.row(group.rows[0]), group.seed, out, reporter)
    except RightReasonsError as error:
        return [Failure(row, group.seed, str(error)) for row in group.rows]
    failures = []
    for name in group.rows:
        reporter.note(f"{study.name}, seed {group.seed}: {name}")
        try:
            run_row(study, study.row(name), group.seed, out, found, reporter)
        except RightReasonsError as error:
            failures.append(Failure(name, group.seed, str(error)))
    return failures


class _Worker:
    """A process that runs a group, and what came of it."""

    def __init__(self, study: Study, group: Group, out: Path, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process in which torch has threads can hang
        self._study, self._group, self._out = study, group, out
        self._receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(study, group, out, threads, sender), daemon=True)
        self.process.start()
        sender.close()

    def failures(self) -> list[Failure]:
        """After the process has ended: what it says failed, and what it left without a result if it died."""
        self.process.join()
        try:
            return self._receiver.recv()
        except EOFError:
            code = self.process.exitcode or 0
            why = f"its process was killed by {signal.Signals(-code).name}" if code < 0 else f"its process ended with exit code {code}"
            left = [row for row in self._group.rows if not is_finished(self._study, row, self._group.seed, self._out)]
            return [Failure(row, self._group.seed, why) for row in left]
        finally:
            self._receiver.close()


def _work(study: Study, group: Group, out: Path, threads: int, sender: connection.Connection) -> None:
    """What a process does. It ends with the one that started it, and leaves Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    reporter = _Lines(f"{study.name}, seed {group.seed}")
    try:
        sender.send(_run_group(study, group, out, reporter))
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _end_with_parent() -> None:
    parent = process.parent_process()
    assert parent is not None  # this process was started by another
    parent.join()
    os._exit(1)


class _Lines(Silent):
    """Writes stages and notes as lines that say whose they are: bars of several processes would overwrite one another."""

    def __init__(self, whose: str) -> None:
        super().__init__()
        self._whose = whose

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Times a stage, and says how long it took."""
        start = time.perf_counter()
        with super().stage(name) as advance:
            yield advance
        print(f"[{self._whose}] {name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Writes the note."""
        print(f"[{self._whose}] {text}", file=sys.stderr, flush=True)
