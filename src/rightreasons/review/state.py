"""What the pages show of a run: read once and kept, and read on where people or commands have added lines."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rightreasons.config import Config
from rightreasons.critic.calibration import Calibration, calibrate
from rightreasons.critic.votes import Waiting, queue_verdicts
from rightreasons.data import open_data
from rightreasons.errors import ConfigError
from rightreasons.records import (
    HUMAN,
    ClassDescription,
    Critique,
    Drawing,
    Segmentation,
    Selection,
    Verdict,
    Words,
    find_disputes,
    settle_verdicts,
)
from rightreasons.runs.drawings import load_drawings
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.verdict_lines import drop_withdrawn, parse_lines
from rightreasons.runs.words import load_words

Place = tuple[int, int]


@dataclass(frozen=True)
class Item:
    """One segment as the queue lists it. ``said`` is the model's verdict, ``verdict`` the one that counts; ``people`` have decided on it."""

    index: int
    segment: int
    label: str
    share: float
    verdict: Verdict
    said: Verdict | None
    waiting: Waiting | None
    uncertainty: float
    people: tuple[str, ...]

    @property
    def name(self) -> str:
        """S1 for segment 0."""
        return f"S{self.segment + 1}"


@dataclass(frozen=True)
class Snapshot:
    """All verdicts of a run at one moment; ``items`` are all segments, the most uncertain and important first."""

    history: list[Verdict]
    standing: list[Verdict]
    items: list[Item]
    disputes: dict[Place, list[Verdict]]
    calibration: Calibration

    @cached_property
    def by_place(self) -> dict[Place, Item]:
        """The items by image and segment."""
        return {(item.index, item.segment): item for item in self.items}

    @cached_property
    def by_image(self) -> dict[int, list[Item]]:
        """The items of each image, in the order of their segments."""
        images: dict[int, list[Item]] = {}
        for item in sorted(self.items, key=lambda item: item.segment):
            images.setdefault(item.index, []).append(item)
        return images

    @cached_property
    def reviewers(self) -> dict[str, int]:
        """How many segments each person has a standing verdict on, by name."""
        counts: dict[str, int] = {}
        for item in self.items:
            for name in item.people:
                counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items()))

    @property
    def waiting(self) -> int:
        """How many segments wait for a person."""
        return sum(item.waiting is not None for item in self.items)

    @property
    def decided(self) -> int:
        """How many segments a person has decided on."""
        return sum(item.verdict.source == HUMAN for item in self.items)


@dataclass
class ReviewState:
    """A run as the pages need it. Large arrays stay on the disk and are read by row. Threads may share it."""

    folder: RunFolder
    config: Config = field(init=False)
    selection: Selection = field(init=False)
    segmentation: Segmentation = field(init=False)

    def __post_init__(self) -> None:
        """Raises ConfigError for a run that ``find`` has not finished."""
        self.config = self.folder.config()
        selection, segmentation = self.folder.load_selection(), self.folder.load_segmentation()
        if selection is None or segmentation is None or not (self.folder.path / "verdicts.jsonl").exists():
            raise ConfigError(f"{self.folder.path} has nothing to review yet: run `rightreasons find` with the same --out to its end first")
        self.selection, self.segmentation = selection, segmentation
        self.row_of = {int(index): row for row, index in enumerate(selection.indices.tolist())}
        self.size: tuple[int, int] = (segmentation.segments.shape[1], segmentation.segments.shape[2])
        self._labels, self._shares = selection.labels.tolist(), segmentation.shares.tolist()
        self._counts = self.folder.segment_counts()
        self._lock = threading.Lock()
        self._history: list[Verdict] = []
        self._read_to, self._file, self._lines = 0, 0, 0
        self._snapshot: Snapshot | None = None
        self._critiques: tuple[float, dict[int, list[Critique]]] = (-1.0, {})

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels. They are in metrics.json; a run without it has its data opened."""
        stored = self.metrics().get("classifier", {}).get("train", {}).get("classes")
        if stored:
            return tuple(stored)
        return open_data(self.config.data, root=self.folder.root(), seed=self.config.run.seed).classes

    def describe(self, index: int) -> ClassDescription:
        """The expert's words on the class of an image, as they are now."""
        return self.descriptions()[self.label_of(index)]

    def descriptions(self) -> dict[str, ClassDescription]:
        """The expert's words on every class, as they are now."""
        changes = self.words()
        last = {item.name: item for item in changes[-1].classes} if changes else {}
        return {name: last.get(name, self.original(name)) for name in self.classes}

    def original(self, name: str) -> ClassDescription:
        """The expert's words on a class with which ``find`` ran."""
        words = self.config.classes[name]
        return ClassDescription(name, words.description, words.irrelevant)

    def words(self) -> list[Words]:
        """What experts changed after ``find``."""
        return load_words(self.folder)

    def drawings(self) -> dict[int, Drawing]:
        """The last drawing on each image."""
        return {drawing.index: drawing for drawing in load_drawings(self.folder)}

    def label_of(self, index: int) -> str:
        """The true class of an inspected image."""
        return self.classes[self._labels[self.row_of[index]]]

    def critiques(self, index: int) -> list[Critique]:
        """The critic's words on an image."""
        path = self.path / "critiques.jsonl"
        changed = path.stat().st_mtime if path.exists() else 0.0
        with self._lock:
            if self._critiques[0] != changed:
                by_image: dict[int, list[Critique]] = {}
                for critique in self.folder.load_critiques() or []:
                    by_image.setdefault(critique.index, []).append(critique)
                self._critiques = (changed, by_image)
            return self._critiques[1].get(index, [])

    def shown_segments(self, index: int) -> Int[Tensor, "height width"]:
        """The number of a segment at the pixels that carry its effect, -1 elsewhere: what the critic was shown."""
        row = self.row_of[index]
        return self.segmentation.segments[row].masked_fill(~self.segmentation.effect[row], -1)

    def heatmap(self, index: int, *, after: bool = False) -> Float[Tensor, "height width"] | None:
        """An image's heatmap under the original model, or the repaired one; None where there is none."""
        path = self.path / ("heatmaps-after.safetensors" if after else "heatmaps.safetensors")
        if not path.exists():
            return None
        with safetensors.safe_open(path, "pt") as tensors:
            return tensors.get_slice("heatmaps")[self.row_of[index]]

    def mask(self, index: int) -> Bool[Tensor, "height width"]:
        """The corrective mask of an image, as ``fix`` would use it now."""
        row, kept = self.row_of[index], self.snapshot().by_image.get(index, [])
        segments = self.segmentation.segments[row]
        mask = torch.zeros(self.size, dtype=torch.bool)
        for item in kept:
            if item.verdict.value == "spurious":
                mask |= segments == item.segment
        if self.config.align.mask == "effect":
            mask = mask & self.segmentation.effect[row]
        drawing = self.drawings().get(index)
        return mask if drawing is None else (mask | drawing.painted) & ~drawing.erased

    def metrics(self) -> dict[str, Any]:
        """metrics.json as it is now; empty before there is one."""
        return self.folder.load_metrics() or {}

    def snapshot(self) -> Snapshot:
        """The verdicts as they are on the disk at this moment. Raises ConfigError naming a line that is none."""
        path = self.path / "verdicts.jsonl"
        with self._lock:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file or status.st_size < self._read_to:
                    self._history, self._read_to, self._lines, self._snapshot = [], 0, 0, None
                self._file = status.st_ino
                file.seek(self._read_to)
                added = file.read()
            # A line that another process is still writing is read the next time.
            whole = added[: added.rfind(b"\n") + 1] if self._read_to or added.endswith(b"\n") else added
            if whole or self._snapshot is None:
                self._history += parse_lines(whole.decode("utf-8"), path, self._counts, first=self._lines + 1)
                self._read_to, self._lines = self._read_to + len(whole), self._lines + whole.count(b"\n")
                self._snapshot = self._take(self._history)
            return self._snapshot

    def _take(self, history: Iterable[Verdict]) -> Snapshot:
        history = list(history)
        standing = drop_withdrawn(history)
        said = settle_verdicts(verdict for verdict in standing if verdict.source != HUMAN)
        settled = settle_verdicts(standing)
        people: dict[Place, dict[str, None]] = {}
        for verdict in standing:
            if verdict.source == HUMAN:
                people.setdefault((verdict.index, verdict.segment), {})[verdict.by or "unnamed"] = None
        calibration = calibrate(said, settled)
        waiting = {(entry.index, entry.segment): entry for entry in queue_verdicts(standing, self.selection, self.segmentation)}
        items = []
        for (index, segment), verdict in settled.items():
            row, model = self.row_of[index], said.get((index, segment))
            uncertainty = 1.0 if model is None else calibration.uncertainty(model)
            names = tuple(people.get((index, segment), ()))
            label, share = self.classes[self._labels[row]], self._shares[row][segment]
            items.append(Item(index, segment, label, share, verdict, model, waiting.get((index, segment)), uncertainty, names))
        items.sort(key=lambda item: (item.waiting is None, item.verdict.source == HUMAN, -item.share * item.uncertainty, item.index, item.segment))
        return Snapshot(history, standing, items, find_disputes(standing), calibration)
