"""AFR (Qiu et al. 2023): the last layer is trained on, with more weight where the shortcut model is unsure of the right class. Labels used: none.

The paper trains on four fifths of the training images and weighs the last fifth, which the network has not seen. A checkpoint has seen all of them,
so that the held-out images take the place of that fifth, and cross-validation on them the place of the paper's labelled selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rightreasons.common.seeds import seeded
from rightreasons.data.loading import read_batches
from rightreasons.networks.classifier import model_device
from rightreasons.networks.head import Features, find_head, read_features, read_head, replace_head
from rightreasons.studies.methods.dfr import Head
from rightreasons.studies.methods.environments import infer_environments
from rightreasons.studies.methods.labels import NoLabels
from rightreasons.studies.methods.method import Bench, Method

GAMMAS = (0.5, 1.44, 4.0, 10.0, 20.0)
PULLS = (0.0, 1e-3, 1e-2, 0.1)
FOLDS = 5
# The paper's settings on Waterbirds: full batches, SGD, gradients no longer than 1.
STEPS, LEARNING_RATE, LONGEST_GRADIENT = 500, 1e-2, 1.0
# So many steps in a smoke test.
SMOKE_STEPS = 50


@dataclass(frozen=True)
class Setting:
    """How steeply the weight falls with the chance of the right class, and how strongly the head is pulled back to the trained one (lambda)."""

    gamma: float
    pull: float


def train(bench: Bench, _: NoLabels) -> nn.Module:
    """The shortcut model with its head trained on. Raises ModelError if it has no linear head.

    The groups for selection are those of XRM; where XRM finds none, each class is a group.
    """
    run, steps = bench.run, SMOKE_STEPS if bench.smoke else STEPS
    groups = infer_environments(bench)
    held_out = read_features(run.model, read_batches(run.validation))
    name = find_head(run.model, next(iter(read_batches(run.validation))).images[:2].to(model_device(run.model)))
    start = Head(*(part.double() for part in read_head(run.model, name)))
    members = held_out.labels if groups is None else groups.validation[held_out.indices]
    setting = choose_setting(held_out, members, start, seeded(run.config.run.seed, "afr folds"), steps=steps)
    bench.reporter.note(f"afr: gamma = {setting.gamma:g}, lambda = {setting.pull:g}")
    (head,) = train_heads(held_out, start, [setting], steps=steps)
    return replace_head(run.model, name, head.weight, head.bias)


def choose_setting(held_out: Features, groups: Int[Tensor, " image"], start: Head, generator: torch.Generator, *, steps: int = STEPS) -> Setting:
    """The setting with the best worst group in cross-validation, where no image is answered by a head that it trained; the first of equals."""
    folds = draw_folds(groups, generator)
    settings = [Setting(gamma, pull) for gamma, pull in product(GAMMAS, PULLS)]
    correct = torch.zeros(len(settings), len(groups), dtype=torch.float64)
    for fold in folds.unique():
        inside, outside = (_take(held_out, rows) for rows in (folds != fold, folds == fold))
        answers = [head.logits(outside.values).argmax(1) for head in train_heads(inside, start, settings, steps=steps)]
        correct[:, folds == fold] = (torch.stack(answers) == outside.labels).double()
    worst = torch.stack([correct[:, groups == group].mean(1) for group in groups.unique()]).amin(0).tolist()
    return settings[worst.index(max(worst))]


def draw_folds(groups: Int[Tensor, " image"], generator: torch.Generator) -> Int[Tensor, " image"]:
    """A fold for each image, so that no group has two more images in one fold than in another."""
    folds = torch.empty_like(groups)
    for group in groups.unique():
        rows = (groups == group).nonzero()[:, 0]
        folds[rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows)) % FOLDS
    return folds


def weigh_images(logits: Float[Tensor, "image class"], labels: Int[Tensor, " image"], gamma: float) -> Float[Tensor, " image"]:
    """Equation 22: weights that sum to 1, from the shortcut model's chance of the right class and the inverse size of the class."""
    right = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    weights = torch.exp(-gamma * right) / labels.bincount()[labels]
    return weights / weights.sum()


def objective(
    weight: Float[Tensor, "setting class_ feature"],
    bias: Float[Tensor, "setting class_"],
    images: Features,
    weights: Float[Tensor, "setting image"],
    start: Head,
    pulls: Float[Tensor, " setting"],
) -> Float[Tensor, " setting"]:
    """Equation 23 for several heads: the weighted cross-entropy, and ``pulls`` times the squared distance from the trained head."""
    logits = images.values.to(weight) @ weight.mT + bias[:, None]
    losses = -logits.log_softmax(2)[:, torch.arange(len(images.labels)), images.labels]
    distance = (weight - start.weight).square().sum((1, 2)) + (bias - start.bias).square().sum(1)
    return (weights * losses).sum(1) + pulls * distance


def train_heads(images: Features, start: Head, settings: Sequence[Setting], *, steps: int = STEPS) -> list[Head]:
    """The head of each setting after ``steps`` steps on all of the images from ``start``, by whose answers they are weighed."""
    logits, pulls = start.logits(images.values), torch.tensor([setting.pull for setting in settings]).to(start.weight)
    weights = torch.stack([weigh_images(logits, images.labels, setting.gamma) for setting in settings])
    weight, bias = (part.expand(len(settings), *part.shape).clone().requires_grad_() for part in (start.weight, start.bias))
    for _ in range(steps):
        gradients = torch.autograd.grad(objective(weight, bias, images, weights, start, pulls).sum(), [weight, bias])
        lengths = torch.cat([gradient.flatten(1) for gradient in gradients], 1).norm(dim=1)
        rates = LEARNING_RATE * (LONGEST_GRADIENT / lengths).clamp(max=1.0)
        with torch.no_grad():
            for part, gradient in zip([weight, bias], gradients, strict=True):
                part -= rates.view(-1, *[1] * (part.ndim - 1)) * gradient
    return [Head(*rows) for rows in zip(weight.detach(), bias.detach(), strict=True)]


def _take(images: Features, rows: Tensor) -> Features:
    return Features(images.indices[rows], images.labels[rows], images.values[rows])


METHOD = Method(train, NoLabels, "gamma and lambda of 20, by accuracy of the worst inferred group in cross-validation on held-out images")
