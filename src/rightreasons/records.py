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

from rightreasons.common.cards import show_card
from rightreasons.errors import WAITING

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
    """Which images carry the shortcut and where, which nobody knows in practice. Only scoring, the simulated critic and declared baselines see it.

    ``groups`` names the group of each image, by dataset index. ``mask`` gives the shortcut's pixels of one image, or None if it has no mask;
    ``masked`` lists the images that may have one, if that is known without opening the masks. ``spurious`` says which images carry the shortcut.
    ``other_groups`` are further groupings, by the name of the attribute. ``clusters`` names the object that each image shows, if several images
    show the same one: a confidence interval has to draw those together.
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

    ``segments`` partitions the pixels of every image whose outcome is "segmented" (-1 everywhere in the others, and, where the picture
    rather than the heatmap was cut, at the pixels of regions with little effect);
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
    """What a picture shows, as tensors. Only a simulated critic reads it; it is never part of a request's body or key.

    ``order`` lists the segments shown as S1, S2, ... if a vote permutes them, and is empty if S1 is segment 0. For a control,
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
    """The critic's reasoning on one image. ``text`` is empty if the critic gave no usable answer, and ``problem`` says why.

    If somebody had the image judged again after ``find``, ``by`` says who and ``at`` when (ISO 8601). Words on a close-up are about one ``segment``,
    counted from 0; None for words on the whole image.
    """

    index: int
    text: str
    problem: str | None = None
    vote: int = 0
    by: str | None = None
    at: str | None = None
    segment: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether it only keeps the place of words that a person has been asked for and has not written yet."""
        return (self.problem or "").startswith(WAITING)


@dataclass(frozen=True)
class Verdict:
    """The verdict on one segment. ``segment`` counts from 0; people and prompts see ``S1`` for 0.

    ``p`` is the probability, by the votes, that the segment is spurious (None for a person's verdict, which has no votes). ``problem`` says why there
    is no vote at all, ``doubt`` why a person should check the verdict. For a person's verdict, ``by`` says who gave it and ``at`` when (ISO 8601);
    for a model's, who had it judged again, and when. If it ``withdraws``, it takes back that person's last verdict on the segment. ``origin`` names
    the program and the file from which it was imported. ``contradicted`` is what the critic said where its verdicts on like segments say otherwise,
    so that the verdict counts as unsure; None anywhere else. ``close_up`` is None unless the first answer was unsure and the segment was asked about
    once more with a close-up: then it is what was said of that, a verdict, or why there is none.
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
    withdraws: bool = False
    origin: str | None = None
    contradicted: Value | None = None
    close_up: str | None = None

    @property
    def answer(self) -> Value:
        """What was answered, whether or not other verdicts contradict it."""
        return self.contradicted or self.value

    @property
    def is_vote(self) -> bool:
        """Whether a model really said it. An answer that did not come or could not be read stands as "unsure" and is no vote; nor is a person's."""
        return self.problem is None and self.source != HUMAN and not self.source.startswith(f"{HUMAN}:")

    @property
    def is_open(self) -> bool:
        """Whether it only keeps the place of a verdict that a person has been asked for and has not given yet."""
        return (self.problem or "").startswith(WAITING)

    def _repr_html_(self) -> str:
        """The verdict as a notebook shows it."""
        who = f"{self.by or 'a person'}" if self.source == HUMAN else self.source
        rows = [("by", who if self.at is None else f"{who}, {self.at}")]
        rows += [("p(spurious)", f"{self.p:.2f}")] if self.p is not None else []
        rows += [(name, words) for name, words in (("problem", self.problem), ("doubt", self.doubt), ("of a close-up", self.close_up)) if words]
        return show_card(f"image {self.index}, S{self.segment + 1}: {'took back ' if self.withdraws else ''}{self.value}", rows)


@dataclass(frozen=True)
class Drawing:
    """What a person has marked by hand on one image: pixels that are ``painted`` are spurious, ``erased`` ones are not, whatever their segment.

    ``by`` says who, ``at`` when (ISO 8601). A later drawing on the same image takes the place of an earlier one. ``origin`` names the program and
    the file from which it was imported.
    """

    index: int
    painted: Bool[Tensor, "height width"]
    erased: Bool[Tensor, "height width"]
    by: str
    at: str
    origin: str | None = None


@dataclass(frozen=True)
class Words:
    """What an expert changed after ``find``: descriptions of classes, and few-shot pairs of the judge as TOML, or None for those of the run."""

    classes: tuple[ClassDescription, ...]
    examples: str | None
    by: str
    at: str


@dataclass(frozen=True)
class Control:
    """A question whose answer is known, asked along with the others. ``passed`` is None if there was no answer."""

    name: str
    passed: bool | None
    said: str


@dataclass(frozen=True)
class Criticism:
    """Who judged a run, by which versions of the prompts and at what cost, and the hash of the ``weights`` that were explained.

    ``answered_by`` lists, for each model that was asked, the models that the servers say gave the answers; it is empty if no server said so.
    ``agreement`` has the critic's ``sensitivity`` and ``specificity`` by the pattern of its own verdicts, and how many of them are ``contradicted``;
    None where they could not be compared.
    """

    lvlm: str
    simulated: bool
    prompts: Mapping[str, str] = field(default_factory=dict)
    calls: int = 0
    cached: int = 0
    cost_usd: float | None = None
    weights: str | None = None
    answered_by: Mapping[str, Sequence[str]] = field(default_factory=dict)
    agreement: Mapping[str, float] | None = None


@dataclass(frozen=True)
class GroupScore:
    """Accuracy over the images of one group, and how many there are."""

    accuracy: float
    count: int


@dataclass(frozen=True)
class ClassScore:
    """What is measured on the images of one class, as counts.

    ``right`` of ``count`` scored images are right. Into ``pasted`` held-out images of this class a judged-spurious segment of another class was
    pasted: that changes ``changed`` answers; ``right_before`` of them are right without it, and ``right_pasted`` with it. ``evidence`` is the mean
    share of the positive effect on judged-spurious segments over ``inspected`` images of the class, with a 95 % interval.
    """

    count: int
    right: int
    pasted: int = 0
    changed: int = 0
    right_before: int = 0
    right_pasted: int = 0
    inspected: int = 0
    evidence: float | None = None
    evidence_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class TunedEpoch:
    """What was measured after one epoch of fine-tuning, counted from 1, on held-out images: accuracy as they are, and with segments pasted in."""

    epoch: int
    learning_rate: float
    accuracy: float
    swapped_accuracy: float


@dataclass(frozen=True)
class Scores:
    """Every metric of docs/method.md, section 7; None if a label that it needs is missing.

    ``intervals`` has 95 % intervals of the accuracies, by their names, if the images come in clusters. ``classes`` has counts by class, which need
    no label but the class.
    """

    accuracy: float
    mean_entropy: float
    spurious_share: float | None = None
    swap_flip_rate: float | None = None
    worst_group_accuracy: float | None = None
    average_group_accuracy: float | None = None
    weighted_group_accuracy: float | None = None
    mu_align: float | None = None
    mu_align_floor: float | None = None
    shortcut_lift: float | None = None
    spurious_lift: float | None = None
    groups: Mapping[str, GroupScore] = field(default_factory=dict)
    other_groups: Mapping[str, Mapping[str, GroupScore]] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    classes: Mapping[str, ClassScore] = field(default_factory=dict)
    spurious_share_interval: tuple[float, float] | None = None

    def _repr_html_(self) -> str:
        """The scores as a notebook shows them: those that exist, with their intervals, and the accuracy of each group."""
        rows = []
        for key, value in vars(self).items():
            if isinstance(value, float):
                low_high = self.intervals.get(key)
                rows.append((key, f"{value:.3f}" + (f" (95 %: {low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else "")))
        rows += [(f"group {name}", f"{group.accuracy:.3f} of {group.count}") for name, group in self.groups.items()]
        return show_card("Scores", rows)


@dataclass(frozen=True)
class HeldOut:
    """Accuracy on held-out images as they are, and with the shortcut made useless (None if nothing is spurious); and the share of each answer."""

    accuracy: float
    neutral: float | None
    answers: tuple[float, ...]


def truly_spurious(
    segments: Int[Tensor, "height width"], positive_effect: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"] | None
) -> Bool[Tensor, " segment"]:
    """The truth of a verdict: more than half of a segment's positive effect lies in the ground-truth mask."""
    inside, effect = measure_effect(segments, positive_effect, mask)
    return inside > effect / 2


def measure_effect(
    segments: Int[Tensor, "height width"], positive_effect: Float[Tensor, "height width"], mask: Bool[Tensor, "height width"] | None
) -> tuple[Float[Tensor, " segment"], Float[Tensor, " segment"]]:
    """The positive effect of each segment that lies in the ground-truth mask (0 without a mask), and all of it."""
    count = int(segments.max()) + 1
    if mask is None or count == 0:
        return torch.zeros(count), torch.ones(count)
    effect = torch.stack([(positive_effect * (segments == segment)).sum() for segment in range(count)])
    inside = torch.stack([(positive_effect * (segments == segment) * mask).sum() for segment in range(count)])
    return inside, effect


def settle_verdicts(verdicts: Iterable[Verdict]) -> dict[tuple[int, int], Verdict]:
    """The verdict that counts for each segment, by image and segment: the last one, and a person's before any model's."""
    ordered = sorted(verdicts, key=lambda verdict: verdict.source == HUMAN)
    return {(verdict.index, verdict.segment): verdict for verdict in ordered}


def find_votes(verdicts: Iterable[Verdict]) -> dict[tuple[int, int], Verdict]:
    """What a model says of each segment, by image and segment: its last verdict, where that is a vote."""
    last = {(verdict.index, verdict.segment): verdict for verdict in verdicts if verdict.source != HUMAN}
    return {place: verdict for place, verdict in last.items() if verdict.is_vote}


def find_disputes(verdicts: Iterable[Verdict]) -> dict[tuple[int, int], list[Verdict]]:
    """The segments on which people disagree, by image and segment: the last verdict of each person, in the order of time; the last one counts."""
    said: dict[tuple[int, int], dict[str | None, Verdict]] = {}
    for verdict in verdicts:
        if verdict.source == HUMAN:
            people = said.setdefault((verdict.index, verdict.segment), {})
            people.pop(verdict.by, None)  # the last to speak stands last
            people[verdict.by] = verdict
    return {place: list(people.values()) for place, people in said.items() if len({verdict.value for verdict in people.values()}) > 1}


# The ``source`` of a person's verdict. A person who answers in a file is named as a backend is: "human:FILE".
HUMAN = "human"


VALUES: tuple[Value, ...] = ("relevant", "spurious", "unsure")
