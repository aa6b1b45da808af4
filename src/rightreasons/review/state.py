"""What the pages show of a run: read once and kept, and read on where people or commands have added lines."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rightreasons.config import Config
from rightreasons.data import open_data
from rightreasons.errors import ConfigError
from rightreasons.lvlm.backends import kind_of
from rightreasons.records import HUMAN, ClassDescription, Critique, Drawing, Segmentation, Selection, Words
from rightreasons.review.snapshot import Place, Snapshot, VerdictLog
from rightreasons.runs.drawings import load_drawings
from rightreasons.runs.folder import RunFolder
from rightreasons.runs.words import load_words


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
        self._log = VerdictLog(self.path / "verdicts.jsonl", self.folder.segment_counts() or {}, self.describe_place)
        with safetensors.safe_open(self.path / "heatmaps.safetensors", "pt") as tensors:
            self._answers: list[int] = tensors.get_tensor("targets").tolist()
        self._lock = threading.Lock()
        self._critiques: tuple[float, dict[int, list[Critique]]] = (-1.0, {})

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def asks_model(self) -> bool:
        """Whether judging an image again asks anything but a person, who may as well decide on the page."""
        critic = self.config.critic
        return any(kind_of(spec) != HUMAN for spec in (critic.lvlm, critic.judge or critic.lvlm))

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

    def answer_of(self, index: int) -> str:
        """The class that the classifier gives an inspected image, which its heatmap explains."""
        return self.classes[self._answers[self.row_of[index]]]

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
        row, kept = self.row_of[index], self.snapshot().items_of(index)
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
        with self._lock:
            return self._log.read()

    def describe_place(self, place: Place) -> tuple[str, float]:
        """The class of a segment's image, and the segment's share of the positive effect."""
        row = self.row_of[place[0]]
        return self.classes[self._labels[row]], self._shares[row][place[1]]
