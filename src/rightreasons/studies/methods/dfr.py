"""Deep Feature Reweighting (Kirichenko et al. 2023): the last layer is fitted anew on balanced images.

Labels used: groups of validation images.

Only the head is trained, as published: by L1 logistic regression on the features of the shortcut model, without augmentation. It is solved, so that
there are no epochs to share with ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rightreasons.common.seeds import seeded
from rightreasons.data.loading import read_batches
from rightreasons.errors import ConfigError, MissingExtra
from rightreasons.networks.classifier import model_device
from rightreasons.networks.head import Features, find_head, read_features, replace_head
from rightreasons.studies.methods.labels import ValidationGroups
from rightreasons.studies.methods.method import Bench, Method
from rightreasons.studies.methods.subg import subsample_groups

# The paper's inverse strengths of the L1 penalty, and the number of refits whose coefficients are averaged.
STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
REFITS = 20


@dataclass(frozen=True)
class Head:
    """A linear layer on features: one row for each class."""

    weight: Float[Tensor, "class feature"]
    bias: Float[Tensor, " class"]

    def logits(self, features: Float[Tensor, "image feature"]) -> Float[Tensor, "image class"]:
        """The decision values."""
        return features.double() @ self.weight.T + self.bias


@dataclass(frozen=True)
class Scaler:
    """The mean and standard deviation of each feature; a constant one is not divided."""

    mean: Float[Tensor, " feature"]
    deviation: Float[Tensor, " feature"]

    @classmethod
    def of(cls, features: Float[Tensor, "image feature"]) -> Scaler:
        """The scaler that standardises these."""
        values = features.double()
        deviation = values.std(0, correction=0)
        return cls(values.mean(0), torch.where(deviation > 1e-12, deviation, 1.0))

    def apply(self, features: Float[Tensor, "image feature"]) -> Float[Tensor, "image feature"]:
        """Standardised features."""
        return (features.double() - self.mean) / self.deviation

    def fold(self, head: Head) -> Head:
        """The head on raw features that is equal to ``head`` on standardised ones (equation 17)."""
        weight = head.weight / self.deviation
        return Head(weight, head.bias - weight @ self.mean)


def train(bench: Bench, labels: ValidationGroups) -> nn.Module:
    """The shortcut model with a new head. Raises ConfigError if a group is too small, ModelError if the model has no linear head."""
    model, seed = bench.run.model, bench.run.config.run.seed
    held_out = read_features(model, read_batches(labels.validation))
    groups = labels.validation_groups[held_out.indices]
    classes = len(bench.run.project.task.classes)
    _check_sizes(held_out, groups, classes)
    strength = choose_strength(held_out, groups, classes, seed)
    bench.reporter.note(f"dfr: C = {strength:g}")
    scaler = Scaler.of(read_features(model, read_batches(bench.run.train)).values)
    head = scaler.fold(average_heads(scaler.apply(held_out.values), held_out.labels, groups, classes, strength, seeded(seed, "dfr refits")))
    name = find_head(model, next(iter(read_batches(labels.validation))).images[:2].to(model_device(model)))
    return replace_head(model, name, head.weight, head.bias)


def choose_strength(held_out: Features, groups: Int[Tensor, " image"], classes: int, seed: int) -> float:
    """The C whose head, fitted on a balanced subsample of one half of the images, has the best worst group on the other; the first of equals."""
    generator = seeded(seed, "dfr halves")
    half = _draw_half(groups, generator)
    fitted = half[subsample_groups(groups[half], generator)]
    rest = torch.ones(len(groups), dtype=torch.bool)
    rest[half] = False
    scaler = Scaler.of(held_out.values[fitted])

    def worst_group(strength: float) -> float:
        head = fit_head(scaler.apply(held_out.values[fitted]), held_out.labels[fitted], classes, strength, seed)
        correct = (head.logits(scaler.apply(held_out.values[rest])).argmax(1) == held_out.labels[rest]).double()
        return min(correct[groups[rest] == group].mean().item() for group in groups.unique())

    return max(STRENGTHS, key=worst_group)


def average_heads(
    features: Float[Tensor, "image feature"],
    labels: Int[Tensor, " image"],
    groups: Int[Tensor, " image"],
    classes: int,
    strength: float,
    generator: torch.Generator,
) -> Head:
    """The mean of ``REFITS`` heads, each fitted on a fresh balanced subsample."""
    heads = []
    for refit in range(REFITS):
        kept = subsample_groups(groups, generator)
        heads.append(fit_head(features[kept], labels[kept], classes, strength, refit))
    return Head(torch.stack([head.weight for head in heads]).mean(0), torch.stack([head.bias for head in heads]).mean(0))


def fit_head(features: Float[Tensor, "image feature"], labels: Int[Tensor, " image"], classes: int, strength: float, seed: int) -> Head:
    """L1 logistic regression by liblinear. More than two classes are fitted one against the rest; for two, the logits are -z/2 and z/2."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtra("scikit-learn", "rivals") from error

    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        for label in [1] if classes == 2 else range(classes):
            solver = LogisticRegression(l1_ratio=1.0, C=strength, solver="liblinear", max_iter=1000, random_state=seed)
            with warnings.catch_warnings():
                # Features that nearly separate few images converge slowly; what the solver has then is taken, and judged as any other.
                warnings.filterwarnings("ignore", message="Liblinear failed to converge")
                solver.fit(features.double().numpy(), (labels == label).numpy())
            yield torch.from_numpy(solver.coef_[0]), torch.from_numpy(solver.intercept_)[0]

    weight, bias = (torch.stack(parts) for parts in zip(*rows(), strict=True))
    return Head(torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])) if classes == 2 else Head(weight, bias)


def _draw_half(groups: Int[Tensor, " image"], generator: torch.Generator) -> Int[Tensor, " half"]:
    """The indices of a random half of every group, the larger part where its size is odd. The paper halves without regard to groups."""
    members = [(groups == group).nonzero().flatten() for group in groups.unique()]
    return torch.cat([images[torch.randperm(len(images), generator=generator)[: (len(images) + 1) // 2]] for images in members])


def _check_sizes(held_out: Features, groups: Int[Tensor, " image"], classes: int) -> None:
    smallest, known = int(groups.unique(return_counts=True)[1].min()), len(held_out.labels.unique())
    if known < classes:
        raise ConfigError(
            f"the held-out images show {known} of {classes} classes, and a head needs all: give more of them, or leave out the method dfr"
        )
    if smallest < 2:
        raise ConfigError("a group of held-out images has a single image, and dfr needs one in each half: give more of them, or leave it out")


METHOD = Method(train, ValidationGroups, "C of 7, by accuracy of the worst group of one half of the held-out images")
