"""Groups without group labels, by the first phase of XRM (Pezeshki et al. 2024): two networks, each trained on its half of the images, disagree.

The twins are linear heads without bias on frozen features. The features are those of the network before its training where it starts from pretrained
weights, as in the paper; of a network that starts from random weights, or was given trained, they are the shortcut model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightreasons.common.seeds import seeded
from rightreasons.data.loading import count_images, read_batches
from rightreasons.networks.head import Features, read_features
from rightreasons.networks.optimizers import open_optimizer
from rightreasons.project.project import Project, fresh_model
from rightreasons.studies.methods.method import Bench

# The packaged network that starts from ImageNet weights whatever the configuration says.
STARTS_TRAINED = "packaged:efficientnet-lite0"
# How many settings are tried: the paper's most.
SETTINGS = 10


@dataclass(frozen=True)
class Setting:
    """How the twins are trained, by SGD. ``batch_size`` is None where every step sees all images."""

    learning_rate: float
    steps: int
    batch_size: int | None = None
    weight_decay: float = 0.0
    momentum: float = 0.0


# In a smoke test so many settings are tried, for so many steps each.
SMOKE_SETTINGS, SMOKE_STEPS = 2, 100
# The quick form for linear heads. It is tried first; the others are drawn from the paper's ranges.
QUICK = Setting(1e-2, 3000)


@dataclass(frozen=True)
class Twins:
    """The weights of both heads, and the share of training images whose running label ended as another than their own."""

    weights: Float[Tensor, "twin class feature"]
    flip_rate: float

    def environments(self, features: Features) -> Int[Tensor, " image"]:
        """Equation 20: 1 for the images that either twin gets wrong, else 0."""
        answers = torch.einsum("tcf,if->tic", self.weights, features.values).argmax(2)
        return (answers != features.labels).any(0).long()


@dataclass(frozen=True)
class Environments:
    """The inferred group of each image by dataset index: twice its class, plus 1 for an image that a twin gets wrong."""

    train: Int[Tensor, " train_image"]
    validation: Int[Tensor, " held_out_image"]


def infer_environments(bench: Bench) -> Environments | None:
    """The groups of the setting with the largest flip rate; None, with a note, if no setting finds two environments of every class in both splits.

    Raises ModelError if the model has no linear head.
    """
    run = bench.run
    seed, classes = run.config.run.seed, len(run.project.task.classes)
    model = fresh_model(run.project) if starts_trained(run.project) else run.model
    train, validation = (_read(model, dataset) for dataset in (run.train, run.validation))
    own = torch.rand(len(train.labels), generator=seeded(seed, "xrm halves")) < 0.5
    settings = draw_settings(seed)
    if bench.smoke:
        settings = [replace(setting, steps=SMOKE_STEPS) for setting in settings[:SMOKE_SETTINGS]]
    best: tuple[float, Twins] | None = None
    with bench.reporter.stage("environments") as advance:
        for number, setting in enumerate(settings):
            twins = train_twins(train, own, classes, setting, seeded(seed, "xrm twins", number))
            found = [(features.labels, twins.environments(features)) for features in (train, validation)]
            value = rate_setting(twins.flip_rate, found, classes)
            if value > (best[0] if best else 0.0):
                best = value, twins
            advance(number + 1, len(settings))
    if best is None:
        bench.reporter.note(
            f"xrm: it cannot work here: in none of {len(settings)} settings do the twins get some images of every class wrong, and others right, "
            "in both splits, so that no groups are inferred"
        )
        return None
    twins = best[1]
    groups = Environments(_number(train, twins, run.train), _number(validation, twins, run.validation))
    counts = twins.environments(train).sum(), twins.environments(validation).sum()
    bench.reporter.note(
        f"xrm: the twins get {counts[0]} of {len(train.labels)} training and {counts[1]} of {len(validation.labels)} validation images wrong "
        f"(flip rate {best[0]:.3f})"
    )
    return groups


def starts_trained(project: Project) -> bool:
    """Whether a fresh model of the project has pretrained weights that have not seen its training images."""
    config = project.config.model
    return not project.is_trained and (bool(config.pretrained) or config.source == STARTS_TRAINED)


def draw_settings(seed: int) -> list[Setting]:
    """The quick form, and settings from the paper's ranges."""
    generator = seeded(seed, "xrm settings")

    def power(base: float, low: float, high: float) -> float:
        return base ** (low + (high - low) * torch.rand((), generator=generator).item())

    return [QUICK] + [Setting(power(10.0, -5.0, -3.0), 5000, round(power(2.0, 5.0, 7.0)), power(10.0, -6.0, -3.0), 0.9) for _ in range(SETTINGS - 1)]


def train_twins(train: Features, own: Bool[Tensor, " image"], classes: int, setting: Setting, generator: torch.Generator) -> Twins:
    """Both heads, trained together without early stopping. ``own`` marks the images of the second twin; the others are the first one's."""
    count = len(train.labels)
    heads = nn.Parameter(torch.zeros(2, classes, train.values.shape[1]))
    optimizer = open_optimizer(torch.optim.SGD, [heads], lr=setting.learning_rate, momentum=setting.momentum, weight_decay=setting.weight_decay)
    running, everything = train.labels.clone(), torch.arange(count)
    for _ in range(setting.steps):
        rows = everything if setting.batch_size is None else torch.randint(count, (setting.batch_size,), generator=generator)
        logits = torch.einsum("tcf,if->tic", heads, train.values[rows])
        inside, outside = own[rows].long(), torch.arange(len(rows))
        optimizer.zero_grad(set_to_none=True)
        sum_over_classes(logits[inside, outside], running[rows]).backward()
        optimizer.step()
        held_out = logits.detach()[1 - inside, outside]
        flipped = torch.rand(len(rows), generator=generator) < flip_chance(held_out)
        running[rows] = torch.where(flipped, held_out.argmax(1), running[rows])
    return Twins(heads.detach(), (running != train.labels).double().mean().item())


def sum_over_classes(logits: Float[Tensor, "image class_"], targets: Int[Tensor, " image"]) -> Tensor:
    """Equation 18: the mean cross-entropy of the images of each class, summed over the classes that have any."""
    losses = F.cross_entropy(logits, targets, reduction="none")
    members = F.one_hot(targets, logits.shape[1]).to(losses)
    return (losses @ members / members.sum(0).clamp(min=1)).sum()


def flip_chance(logits: Float[Tensor, "image class_"]) -> Float[Tensor, " image"]:
    """Equation 19: how likely an image takes the held-out twin's answer, from 0 for a twin that guesses to 1 for one that is sure."""
    classes = logits.shape[1]
    return (logits.softmax(1).amax(1) - 1 / classes) * classes / (classes - 1)


def rate_setting(flip_rate: float, found: Sequence[tuple[Tensor, Tensor]], classes: int) -> float:
    """The flip rate, or 0 if in any split a class has fewer than two environments. ``found`` has the labels and environments of each split."""
    complete = all(len(environments[labels == label].unique()) == 2 for labels, environments in found for label in range(classes))
    return flip_rate if complete else 0.0


def _read(model: nn.Module, dataset: Dataset) -> Features:
    return read_features(model, read_batches(dataset))


def _number(features: Features, twins: Twins, dataset: Dataset) -> Int[Tensor, " image"]:
    """The groups by dataset index. An image that cannot be read never comes up in a batch, so that its number is of no account."""
    groups = torch.zeros(count_images(dataset), dtype=torch.long)
    groups[features.indices] = 2 * features.labels + twins.environments(features)
    return groups
