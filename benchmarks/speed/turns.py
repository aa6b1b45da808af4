"""Ours, the rival and the floor in turns, so that a busy machine slows all of them alike, and the line of JSON that is printed for a case."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rightreasons.common.memory import release_memory
from rightreasons.common.peak import measure_peak


@dataclass
class Turns:
    """What one piece of work gave, its seconds in each timed round, the most that the process held meanwhile, and by how much it grew for it."""

    result: object = None
    mib: float = 0.0
    peak_mib: float = 0.0
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def in_turns(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, Turns]:
    """Runs each work once to warm up, with its memory watched, then ``rounds`` times in turns against the clock; of none, the first run counts."""
    turns = {name: Turns() for name in works}
    for name, work in works.items():
        gc.collect()
        release_memory()
        before = _resident()
        start = time.perf_counter()
        with measure_peak() as peak:
            turns[name].result = work()
        if not rounds:
            turns[name].seconds.append(time.perf_counter() - start)
        highest = peak.resident or before
        turns[name].mib, turns[name].peak_mib = (highest - before) / 2**20, highest / 2**20
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            turns[name].seconds.append(time.perf_counter() - start)
    return turns


def _resident() -> int:
    """Bytes that the process holds now; 0 where the system does not tell."""
    try:
        return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    except OSError:
        return 0


def line(stage: str, case: str, turns: dict[str, Turns], *, rival: str, agrees: bool, **more: object) -> dict[str, object]:
    """``turns`` has "ours", and "rival" and "floor" where there are such. ``ratio`` and ``floor_ratio`` are ours over theirs: smaller is better."""
    ours, other, floor = (turns.get(name) for name in ("ours", "rival", "floor"))
    assert ours is not None
    return {
        "stage": stage, "case": case, "ours_s": ours.median, "rival_s": other and other.median, "rival": rival,
        "ratio": other and ours.median / other.median, "floor_s": floor and floor.median, "floor_ratio": floor and ours.median / floor.median,
        "ours_mib": ours.mib, "rival_mib": other and other.mib, "agrees": agrees, **more,
    }  # fmt: skip


def command_line(description: str | None, cases: Iterable[str]) -> argparse.ArgumentParser:
    """The options that every script here has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if names := list(cases):
        parser.add_argument("--cases", nargs="+", default=names, choices=names, help="default: all")
        parser.add_argument("--rounds", type=int, default=3, help="timed rounds, of which the median counts")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each case")
    return parser


def show(result: dict[str, object], as_json: bool) -> None:
    print(json.dumps(result) if as_json else "\n".join(f"{key:12} {value}" for key, value in result.items()) + "\n", flush=True)
