"""A run in memory: what it works on, what was found and judged, and what fine-tuning came to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.config import Config
from rightreasons.data.loading import StoredImages, count_images, read_batches
from rightreasons.mask import build_masks
from rightreasons.models import hash_weights
from rightreasons.outcome import Coverage, RunOutcome, count_coverage, decide_outcome
from rightreasons.records import Attribution, ClassDescription, Control, Critique, Segmentation, Selection, Verdict
from rightreasons.runs import RunFolder
from rightreasons.seeds import seeded
from rightreasons.swap import count_flips, flip_rate
from rightreasons.votes import Waiting, queue_verdicts

# Held-out images into which judged-spurious segments are pasted, to see what that does to the answers.
SWAP_HOSTS = 1000


@dataclass
class Run:
    """A run in memory: what it works on, and what ``find_shortcuts`` found."""

    folder: RunFolder
    config: Config
    model: nn.Module
    descriptions: tuple[ClassDescription, ...]
    train: Dataset
    validation: Dataset
    lvlm_name: str
    simulated: bool
    selection: Selection
    attribution: Attribution
    segmentation: Segmentation
    critiques: list[Critique]
    verdicts: list[Verdict]
    controls: list[Control] = field(default_factory=list)
    prompts: Mapping[str, str] = field(default_factory=dict)
    aligned: nn.Module | None = None
    rejected: nn.Module | None = None
    alignment: Alignment | None = None
    calls: int = 0
    cached: int = 0
    cost_usd: float | None = None
    _flip_rates: dict[str, float | None] = field(default_factory=dict, repr=False)

    @property
    def masks(self) -> Tensor:
        """The corrective masks, (image, height, width), with a person's verdicts first."""
        return build_masks(self.segmentation, self.selection, self.verdicts, kind=self.config.align.mask)

    @property
    def queue(self) -> list[Waiting]:
        """The segments that wait for a person, most worth a look first."""
        return queue_verdicts(self.verdicts, self.selection, self.segmentation)

    @property
    def found(self) -> bool:
        """Whether any segment was judged spurious; ``outcome`` tells whether that has an effect too."""
        return bool(self.masks.any())

    @property
    def coverage(self) -> Coverage:
        """How much of what was inspected was judged."""
        return count_coverage(self.segmentation, self.verdicts)

    @property
    def outcome(self) -> RunOutcome:
        """What the run came to."""
        return decide_outcome(self.coverage, self.flip_rate(self.model))

    def flip_rate(self, model: nn.Module) -> float | None:
        """How often pasting what was judged spurious changes an answer of ``model``; worked out once for the same weights and verdicts."""
        masks = self.masks
        marked = masks.flatten(1).any(1)
        if not marked.any():
            return None
        digest = hashlib.sha256(hash_weights(model).encode())
        digest.update(masks.numpy().data)
        key, masks = digest.hexdigest(), masks[marked]
        if key not in self._flip_rates:
            donors, labels, seed = StoredImages(self.train, self.selection.indices[marked]), self.selection.labels[marked], self.config.run.seed
            drawn, generator = torch.randperm(count_images(self.validation), generator=seeded(seed, "swap hosts")), seeded(seed, "swap donors")
            hosts = read_batches(self.validation, indices=drawn[:SWAP_HOSTS])
            counts = [count_flips(model, batch, donors, labels, masks, generator) for batch in hosts]
            self._flip_rates[key] = flip_rate(counts)
        return self._flip_rates[key]


@dataclass(frozen=True)
class Alignment:
    """What ``fix_shortcuts`` did: "aligned", "nothing to change", "original kept", or "accepted" by a person although it was rejected.

    With accuracy on the validation split before and after, as it is and with the shortcut made useless, and the ``reason`` for a rejection.
    """

    outcome: str
    validation_before: float
    validation_after: float
    neutral_before: float | None = None
    neutral_after: float | None = None
    reason: str | None = None
