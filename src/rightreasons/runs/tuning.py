"""epochs.jsonl: how fine-tuning went, epoch by epoch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rightreasons.records import TunedEpoch
from rightreasons.runs.appended import append_lines, read_lines
from rightreasons.runs.folder import RunFolder


def add_epoch(folder: RunFolder, job: str, epoch: TunedEpoch) -> None:
    """Appends an epoch of the fine-tuning ``job`` as one line."""
    append_lines(folder.path / "epochs.jsonl", [{"job": job, **asdict(epoch)}])


def load_epochs(folder: RunFolder, job: str) -> list[TunedEpoch]:
    """The epochs of a job in their order, those of the last learning rate alone. An epoch that was done again after a kill counts once."""

    def read(said: dict[str, Any]) -> tuple[str, TunedEpoch]:
        return str(said.pop("job")), TunedEpoch(**said)

    epochs = [epoch for owner, epoch in read_lines(folder.path / "epochs.jsonl", read) if owner == job]
    last = {epoch.epoch: epoch for epoch in epochs if epoch.learning_rate == epochs[-1].learning_rate}
    return [last[number] for number in sorted(last)]
