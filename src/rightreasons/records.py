"""The frozen records that pass between stages, and what their axes are called.

Axes: image, channel, height, width, class_, baseline, segment. Images are float tensors in 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Value = Literal["spurious", "relevant", "unsure"]
Outcome = Literal["segmented", "no-positive-effect", "constant", "not-finite"]


@dataclass(frozen=True)
class ClassDescription:
    """An expert's words on one class: what matters, what does not; either may be empty, not both."""

    name: str
    description: str = ""
    irrelevant: str = ""


@dataclass(frozen=True)
class GroundTruth:
    """What nobody has in practice: who carries the shortcut and where. For scoring, the simulated critic and declared baselines alone.

    ``groups`` names the group of each image, by dataset index; ``mask`` gives the shortcut's pixels of one image,
    or None where it has no mask, and ``masked`` which images may have one, where that is known without a look at the masks. ``spurious`` tells
    who carries it; ``other_groups`` are further groupings, by the name of the attribute.
    ``clusters`` names what each image shows, where several show the same: an interval has to draw those together.
    """

    groups: Sequence[str]
    mask: Callable[[int], Bool[Tensor, "height width"] | None]
    spurious: Bool[Tensor, " image"] | None = None
    other_groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    masked: Sequence[int] | None = None
    clusters: Sequence[str] | None = None


@dataclass(frozen=True)
class Selection:
    """Which training images to inspect: dataset indices, their labels and output entropies in nats, most wanted first."""

    strategy: str
    indices: Int[Tensor, " image"]
    labels: Int[Tensor, " image"]
    entropy: Float[Tensor, " image"]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Attribution:
    """Signed effect of each pixel on the target logit, and how far each heatmap's sum is from the output difference."""

    heatmaps: Float[Tensor, "image height width"]
    targets: Int[Tensor, " image"]
    completeness_error: Float[Tensor, " image"]


@dataclass(frozen=True)
class Segmentation:
    """The positive effect of each heatmap, cut into segments 0, 1, ...

    ``segments`` partitions the pixels of every image whose outcome is "segmented" (-1 everywhere in the others);
    ``effect`` marks the pixels that carry a segment's effect: those above a share of the segment's peak;
    ``shares`` is each segment's part of the positive effect (0 where the image has fewer segments).
    """

    segments: Int[Tensor, "image height width"]  # int8: one byte a pixel
    effect: Bool[Tensor, "image height width"]
    shares: Float[Tensor, "image segment"]
    outcomes: tuple[Outcome, ...]

    def count(self, image: int) -> int:
        """How many segments an image has."""
        return int((self.shares[image] > 0).sum())


@dataclass(frozen=True)
class Subject:
    """What a picture shows, as tensors: for a simulated critic alone. Never part of a request's body or key.

    ``order`` has the segment that is shown as S1, S2, ... where a vote permutes them; empty where S1 is segment 0. Of a control,
    ``known`` says whether its segment is spurious.
    """

    index: int
    segments: Int[Tensor, "height width"]
    positive_effect: Float[Tensor, "height width"]
    order: tuple[int, ...] = ()
    known: bool | None = None


@dataclass(frozen=True)
class Pictures:
    """What the critic sees of one image, as PNG bytes, and the ``style`` in which they are drawn."""

    clean: bytes
    contours: bytes
    map: bytes
    style: str = ""


@dataclass(frozen=True)
class Critique:
    """The critic's reasoning on one image. ``text`` is empty where the critic gave no usable answer, and ``problem`` says why."""

    index: int
    text: str
    problem: str | None = None
    vote: int = 0


@dataclass(frozen=True)
class Verdict:
    """One segment judged. ``segment`` counts from 0; people and prompts see ``S1`` for 0.

    ``p`` is how likely it is spurious by the votes (None where nobody voted: a person's verdict), ``problem`` why there is no vote at all, and
    ``doubt`` why a person should look at a verdict that there is. Of a person's verdict, ``by`` is who gave it and ``at`` when (ISO 8601).
    """

    index: int
    segment: int
    value: Value
    source: str
    problem: str | None = None
    p: float | None = None
    doubt: str | None = None
    by: str | None = None
    at: str | None = None


@dataclass(frozen=True)
class Control:
    """A question whose answer is known, asked along with the others. ``passed`` is None where there was no answer."""

    name: str
    passed: bool | None
    said: str


@dataclass(frozen=True)
class Criticism:
    """Who judged a run, by which versions of the prompts and at what cost, and the hash of the ``weights`` that were explained.

    ``answered_by`` has the models that gave the answers by the servers' word, by who was asked; nothing where no server said so.
    """

    lvlm: str
    simulated: bool
    prompts: Mapping[str, str] = field(default_factory=dict)
    calls: int = 0
    cached: int = 0
    cost_usd: float | None = None
    weights: str | None = None
    answered_by: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupScore:
    """Accuracy over the images of one group, and how many there are."""

    accuracy: float
    count: int


@dataclass(frozen=True)
class Scores:
    """Every metric of docs/method.md, section 7; None where a label that it needs is missing.

    ``intervals`` has 95 % intervals of the accuracies, by their names, where the images come in clusters.
    """

    accuracy: float
    mean_entropy: float
    spurious_share: float | None = None
    swap_flip_rate: float | None = None
    worst_group_accuracy: float | None = None
    average_group_accuracy: float | None = None
    weighted_group_accuracy: float | None = None
    mu_align: float | None = None
    groups: Mapping[str, GroupScore] = field(default_factory=dict)
    other_groups: Mapping[str, Mapping[str, GroupScore]] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOut:
    """Accuracy on held-out images as they are and with the shortcut made useless (None without anything spurious), and the share of each answer."""

    accuracy: float
    neutral: float | None
    answers: tuple[float, ...]


def truly_spurious(
    segments: Int[Tensor, "height width"], positive_effect: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"] | None
) -> Bool[Tensor, " segment"]:
    """The truth of a verdict: more than half of a segment's positive effect lies in the ground-truth mask."""
    count = int(segments.max()) + 1
    if mask is None or count == 0:
        return torch.zeros(count, dtype=torch.bool)
    effect = torch.stack([(positive_effect * (segments == segment)).sum() for segment in range(count)])
    inside = torch.stack([(positive_effect * (segments == segment) * mask).sum() for segment in range(count)])
    return inside > effect / 2


def settle_verdicts(verdicts: Iterable[Verdict]) -> dict[tuple[int, int], Verdict]:
    """The verdict that counts on each segment, by image and segment: the last one, and a person's before any model's."""
    ordered = sorted(verdicts, key=lambda verdict: verdict.source == HUMAN)
    return {(verdict.index, verdict.segment): verdict for verdict in ordered}


# What a person's verdict has as its source.
HUMAN = "human"


VALUES: tuple[Value, ...] = ("relevant", "spurious", "unsure")
