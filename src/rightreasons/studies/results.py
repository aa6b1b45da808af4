"""A study's result files, and whether the settings that made them are those that the study has now."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rightreasons.studies.definition import Study

# The key of a result file that holds ``Study.settings_key``.
KEY = "settings_key"


@dataclass(frozen=True)
class ResultFile:
    """What the result file of a row and seed has (``stored``), and the key of the settings that the study has ``now``."""

    row: str
    seed: int
    stored: dict[str, Any]
    now: str

    @property
    def has_key(self) -> bool:
        """Whether it tells its settings: older versions wrote files that do not."""
        return KEY in self.stored

    @property
    def counts(self) -> bool:
        """Whether it is a result of the study as it is now; one that does not tell its settings is taken for one."""
        return self.stored.get(KEY, self.now) == self.now


def read_results(study: Study, names: Iterable[str], seeds: Sequence[int], out: Path) -> list[ResultFile]:
    """The result files that there are of these rows and seeds, those of other settings too."""
    found = []
    for name in names:
        for seed in seeds:
            path = study.result_path(name, seed, out)
            if path.exists():
                found.append(ResultFile(name, seed, json.loads(path.read_text(encoding="utf-8")), study.settings_key(study.row(name), seed)))
    return found


def is_finished(study: Study, name: str, seed: int, out: Path) -> bool:
    """Whether a row and seed has a result of the study as it is now."""
    return any(file.counts for file in read_results(study, [name], [seed], out))


@runtime_checkable
class _Result(Protocol):
    """What names a row and seed, whether it has a result or failed."""

    @property
    def row(self) -> str: ...

    @property
    def seed(self) -> int: ...


def list_results(files: Iterable[_Result]) -> str:
    """Rows and seeds in words: "before (seed 0), ours (seeds 0, 1)"."""
    seeds: dict[str, list[int]] = {}
    for file in files:
        seeds.setdefault(file.row, []).append(file.seed)
    return ", ".join(f"{row} ({'seed' if len(of) == 1 else 'seeds'} {', '.join(map(str, of))})" for row, of in seeds.items())
