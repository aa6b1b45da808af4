"""A run in memory: what it works on, what was found and judged, and how fine-tuning ended."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.common.cards import show_card
from rightreasons.common.seeds import seeded
from rightreasons.config import Config
from rightreasons.critic.outcome import Coverage, RunOutcome, count_coverage, decide_outcome, explain_outcome
from rightreasons.critic.votes import Waiting, queue_verdicts
from rightreasons.data.loading import StoredImages, count_images, read_batches
from rightreasons.errors import ConfigError
from rightreasons.networks.answers import Answers, check_chance
from rightreasons.networks.classifier import copy_model, hash_weights, load_checkpoint
from rightreasons.project.project import Project, fresh_model, project_of_run
from rightreasons.records import (
    Attribution,
    ClassDescription,
    Control,
    Criticism,
    Critique,
    Drawing,
    Segmentation,
    Selection,
    Verdict,
)
from rightreasons.repair.masks import apply_drawings, build_masks
from rightreasons.repair.swap import Pasted, join_pasted, paste_into
from rightreasons.runs.drawings import load_drawings
from rightreasons.runs.folder import RunFolder

# At most this many held-out images get a judged-spurious segment pasted in, to measure how often that changes the answer.
SWAP_HOSTS = 1000


@dataclass
class Run:
    """A run in memory: what it works on, what was found, and the verdicts on it."""

    project: Project
    folder: RunFolder
    model: nn.Module
    selection: Selection
    attribution: Attribution
    segmentation: Segmentation
    critiques: list[Critique]
    verdicts: list[Verdict]
    controls: list[Control]
    criticism: Criticism
    aligned: nn.Module | None = None
    rejected: nn.Module | None = None
    alignment: Alignment | None = None
    drawings: list[Drawing] = field(default_factory=list)
    _pasted: dict[str, Pasted] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> Config:
        """The settings."""
        return self.project.config

    @property
    def descriptions(self) -> tuple[ClassDescription, ...]:
        """The expert's words on each class, in the order of the labels."""
        return self.project.descriptions

    @property
    def train(self) -> Dataset:
        """The training images."""
        return self.project.train

    @property
    def validation(self) -> Dataset:
        """The held-out images."""
        return self.project.validation

    @property
    def models(self) -> tuple[nn.Module, nn.Module | None, nn.Module | None]:
        """The original model, the repaired one, and a repair that was rejected."""
        return self.model, self.aligned, self.rejected

    @property
    def masks(self) -> Tensor:
        """The corrective masks, (image, height, width); a person's verdict overrules a model's, and what a person drew both."""
        masks = build_masks(self.segmentation, self.selection, self.verdicts, kind=self.config.align.mask)
        return apply_drawings(masks, self.selection, self.drawings)

    @property
    def protected(self) -> Tensor:
        """What was judged relevant, (image, height, width), without what a person painted as spurious."""
        relevant = build_masks(self.segmentation, self.selection, self.verdicts, kind="effect", value="relevant")
        return apply_drawings(relevant, self.selection, self.drawings, value="relevant")

    @property
    def clear(self) -> Tensor:
        """The images, (image), with segments that were all judged relevant, or erased by a person who painted nothing."""
        relevant = build_masks(self.segmentation, self.selection, self.verdicts, kind="effect", value="relevant")
        open_ = self.segmentation.effect & (self.segmentation.segments >= 0) & ~relevant
        return (self.segmentation.shares > 0).any(1) & ~apply_drawings(open_, self.selection, self.drawings).flatten(1).any(1)

    @property
    def queue(self) -> list[Waiting]:
        """The segments that wait for a person, the most important first."""
        return queue_verdicts(self.verdicts, self.selection, self.segmentation)

    @property
    def found(self) -> bool:
        """Whether any segment was judged spurious; ``outcome`` also says whether that has an effect."""
        return bool(self.masks.any())

    @property
    def coverage(self) -> Coverage:
        """How much of the inspected images was judged."""
        drawn = {drawing.index: bool(drawing.painted.any()) for drawing in self.drawings}
        return replace(count_coverage(self.segmentation, self.verdicts), drawn_images=sum(drawn.values()))

    @property
    def outcome(self) -> RunOutcome:
        """The outcome of the run, in one of four phrases."""
        return decide_outcome(self.coverage, self.flip_rate(self.model), self.chance)

    @property
    def explanation(self) -> str:
        """The reason for the outcome, in a few sentences."""
        return explain_outcome(self.coverage, self.flip_rate(self.model), self.chance)

    def _repr_html_(self) -> str:
        """The run as a notebook shows it. Nothing is computed: the outcome and the scores are those of the last command."""
        metrics = self.folder.load_metrics() or {}
        before, after = metrics.get("before") or {}, metrics.get("after") or {}
        coverage = self.coverage
        simulated = " (simulated)" if self.criticism.simulated else ""
        rows = [
            ("inspected", f"{coverage.images} images, {coverage.segments} segments"),
            ("judged", f"{coverage.judged}, spurious {coverage.spurious} on {coverage.spurious_images} images, by {self.criticism.lvlm}{simulated}"),
            ("waiting for a person", str(len(self.queue))),
        ]
        for key in ("accuracy", "worst_group_accuracy", "spurious_share", "swap_flip_rate"):
            told = [f"{scores[key]:.3f}" for scores in (before, after) if scores.get(key) is not None]
            rows += [(key, " before, ".join(told) + " after" if len(told) == 2 else told[0])] if told else []
        rows += [("repair", self.alignment.outcome)] if self.alignment else []
        return show_card(f"Run {self.folder.path.resolve().name}: {metrics.get('outcome', 'not scored yet')}", rows, metrics.get("explanation", ""))

    @property
    def chance(self) -> str | None:
        """A sentence if the classifier is no better than guessing on the training images; None if it is better, or if an older run did not count."""
        counts, _ = self.folder.load_answers()
        return check_chance(Answers(counts["train"])) if "train" in counts else None

    def flip_rate(self, model: nn.Module) -> float | None:
        """How often pasting what was judged spurious changes an answer of ``model``."""
        pasted = self.paste(model, self.masks)
        return None if pasted is None else pasted.flip_rate

    def paste(self, model: nn.Module, masks: Tensor, most: int = SWAP_HOSTS) -> Pasted | None:
        """The answers of ``model`` on at most ``most`` held-out images, as they are and with the pixels in ``masks`` of the inspected ones pasted in.

        None if no pixel is marked. Computed once for the same weights and masks.
        """
        marked = masks.flatten(1).any(1)
        if not marked.any():
            return None
        digest = hashlib.sha256(f"{hash_weights(model)} {most}".encode())
        digest.update(masks.numpy().data)
        key, masks = digest.hexdigest(), masks[marked]
        if key not in self._pasted:
            donors, labels, seed = StoredImages(self.train, self.selection.indices[marked]), self.selection.labels[marked], self.config.run.seed
            drawn, generator = torch.randperm(count_images(self.validation), generator=seeded(seed, "swap hosts")), seeded(seed, "swap donors")
            hosts = read_batches(self.validation, indices=drawn[:most])
            self._pasted[key] = join_pasted([paste_into(model, batch, donors, labels, masks, generator) for batch in hosts])
        return self._pasted[key]


@dataclass(frozen=True)
class Alignment:
    """What ``fix_shortcuts`` did: "aligned", "nothing to change", "original kept", or "accepted" by a person although it was rejected.

    It holds the accuracy on the validation images before and after, as they are and with the shortcut made useless (``neutral``), and the
    ``reason`` for a rejection. ``spread`` says in how many training images the probe finds what was judged spurious, in all and by class; None if
    the verdicts could not be spread.
    """

    outcome: str
    validation_before: float
    validation_after: float
    neutral_before: float | None = None
    neutral_after: float | None = None
    reason: str | None = None
    spread: Mapping[str, Any] | None = None


def load_run(folder: RunFolder, *, file: Path | None = None, changes: Mapping[str, Any] | None = None) -> Run:
    """A run that ``find`` has finished. Raises ConfigError if it is not finished."""
    project = project_of_run(folder, file=file, changes=changes)
    selection, attribution, segmentation = folder.load_selection(), folder.load_attribution(), folder.load_segmentation()
    critiques, verdicts = folder.load_critiques(), folder.load_verdicts()
    if selection is None or attribution is None or segmentation is None or critiques is None or verdicts is None:
        raise ConfigError(f"{folder.path} is not finished: run `rightreasons find` with the same --out again, and it goes on where it stopped")
    model = fresh_model(project)
    if not project.is_trained:
        load_checkpoint(model, folder.trained_model)
    criticism = folder.load_criticism() or _read_old_criticism(folder)
    run = Run(project, folder, model, selection, attribution, segmentation, critiques, verdicts, folder.load_controls(), criticism)
    run.drawings = load_drawings(folder)
    recall_repair(run)
    return run


def recall_repair(run: Run) -> None:
    """Gives the run the models that an earlier ``fix`` has left in its folder."""
    run.aligned, run.rejected = (_read_weights(run.model, run.folder.path / f"{name}.safetensors") for name in ("aligned", "rejected"))


def _read_weights(model: nn.Module, path: Path) -> nn.Module | None:
    """A copy of the model with the weights of a file, or None if there is no such file."""
    if not path.exists():
        return None
    other = copy_model(model)
    load_checkpoint(other, path)
    return other


def _read_old_criticism(folder: RunFolder) -> Criticism:
    """Who judged in a run made before there was a criticism.json: as metrics.json says, or else the configuration."""
    spec = folder.config().critic.lvlm
    critic: dict[str, Any] = (folder.load_metrics() or {}).get("critic") or {"simulated": spec.startswith("simulated:")}
    name = f"{critic['backend']}:{critic['model']}" if "backend" in critic else spec
    known = {key: critic[key] for key in ("simulated", "prompts", "calls", "cached", "cost_usd") if key in critic}
    return Criticism(name, **known)
