"""profile.jsonl: what every stage of a run took, in seconds and memory; and with the ledger's calls and money, what the run took in all."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rightreasons.common.peak import Peak, measure_peak
from rightreasons.common.progress import Advance, Reporter
from rightreasons.errors import ConfigError
from rightreasons.runs.appended import append_lines, now
from rightreasons.runs.folder import RunFolder

PROFILE = "profile.jsonl"
# The stage in which a request of each role is asked.
STAGE_OF_ROLE = {"control": "controls", "critic": "judge", "judge": "judge", "fused": "judge"}


class Recorded(Reporter):
    """A reporter that also writes each stage into the run folder's profile.jsonl as the stage ends, whether it was finished or stopped."""

    def __init__(self, reporter: Reporter, folder: RunFolder) -> None:
        self._reporter, self._file = reporter, folder.path / PROFILE
        self.seconds = reporter.seconds

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Shows the stage by the reporter within, and writes its line."""
        start, peak, finished = time.perf_counter(), Peak(), False
        try:
            with self._reporter.stage(name) as advance, measure_peak() as peak:
                yield advance
            finished = True
        finally:
            seconds = round(time.perf_counter() - start, 3)
            line = {"stage": name, "seconds": seconds, "peak_bytes": peak.resident, "gpu_bytes": peak.gpu, "finished": finished, "at": now()}
            append_lines(self._file, [line])

    def note(self, text: str) -> None:
        """Reports the note."""
        self._reporter.note(text)


@dataclass(frozen=True)
class StageCost:
    """What one stage took over all commands on the folder so far.

    ``times`` is how often it ran, ``stopped`` how often it did not reach its end. Peaks are in bytes, the highest of all times, None where nobody
    measured. Of a stage that asks: ``calls`` that were answered, ``failed`` attempts, ``tokens`` in and out, US dollars (None where a price is not
    known), and ``waited``, the seconds of all attempts together, which overlap.
    """

    stage: str
    times: int = 0
    stopped: int = 0
    seconds: float = 0.0
    peak_bytes: int | None = None
    gpu_bytes: int | None = None
    calls: int = 0
    failed: int = 0
    tokens: int = 0
    cost_usd: float | None = 0.0
    waited: float = 0.0


def read_profile(folder: RunFolder) -> list[StageCost]:
    """The stages in the order in which they first ran; empty for a run from before profiles were kept. Raises ConfigError for a damaged line."""
    lines = _read_lines(folder.path / PROFILE)
    asked = _read_ledger(folder.ledger) if lines else {}
    stages = []
    for name in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == name]
        stages.append(
            StageCost(
                name,
                len(own),
                sum(not line["finished"] for line in own),
                sum(line["seconds"] for line in own),
                max((line["peak_bytes"] for line in own if line["peak_bytes"] is not None), default=None),
                max((line["gpu_bytes"] for line in own if line["gpu_bytes"] is not None), default=None),
                **asked.get(name, {}),
            )
        )
    return stages


def _read_lines(path: Path) -> list[dict]:
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            lines.append({"stage": str(line["stage"]), "seconds": float(line["seconds"])} | {key: line[key] for key in ("finished", *_PEAKS)})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}, line {number} is not a stage of a profile ({error!r}): delete that line, or the file") from error
    return lines


_PEAKS = ("peak_bytes", "gpu_bytes")


def _read_ledger(path: Path) -> dict[str, dict[str, Any]]:
    """What was asked in each stage, from the ledger, which is only read. A person who has not answered yet is no call that failed."""
    if not path.exists():
        return {}
    query = """SELECT role, sum(state = 'answered'), sum(state != 'answered'), sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)),
        sum(coalesce(cost_usd, reserved_usd)), sum(coalesce(cost_usd, reserved_usd) IS NULL), sum(coalesce(ended - started, 0))
        FROM attempts WHERE NOT (model LIKE 'human:%' AND state != 'answered') GROUP BY role"""
    stages: dict[str, dict[str, Any]] = {}
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as connection:
        rows = connection.execute(query).fetchall()
    for role, answered, failed, tokens, cost, unpriced, waited in rows:
        stage = stages.setdefault(STAGE_OF_ROLE.get(role) or role, {"calls": 0, "failed": 0, "tokens": 0, "cost_usd": 0.0, "waited": 0.0})
        for key, value in (("calls", answered), ("failed", failed), ("tokens", tokens), ("waited", waited)):
            stage[key] += value
        stage["cost_usd"] = None if unpriced or stage["cost_usd"] is None else stage["cost_usd"] + cost
    return stages
