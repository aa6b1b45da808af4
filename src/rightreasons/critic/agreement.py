"""Weighs a critic's verdicts against each other: how often is it wrong, and where do its other verdicts say so?

A shortcut looks alike to the classifier wherever it occurs. A logistic regression on the classifier's own features of a segment, trained on the
verdicts on other images, therefore ranks segments well even where many of those verdicts are wrong, as long as the errors have no such pattern.
How often the critic calls a segment spurious rises along that rank from its rate of false alarms to its rate of hits; both are read off, and Bayes'
rule gives the probability of each segment (docs/method.md, eq. 28). Nobody is asked anything.

Rates of errors from the ends of such a curve: Liu and Tao 2016 (arXiv 1411.7718); pruning what a held-out model contradicts: Northcutt et al. 2021
(arXiv 1911.00068).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rightreasons.networks.logistic import fit_logistic

FOLDS = 5
# The weights of standardised features are expected to be about this large, in all a few hundred features.
WEIGHT_SCALE = 0.1
# With fewer verdicts of either kind there is nothing to compare.
FEWEST = 20
# The rates of error that are tried, and the slopes of the curve in standard deviations of the score. A flatter curve would explain errors as doubt.
RATES = torch.linspace(0, 0.5, 26)
SLOPES = (4.0, 8.0, 16.0)
# How many positions of the curve are tried, and into how many groups of like scores the segments are put for that.
POSITIONS = 31
GROUPS = 100
# A critic is taken to be right as if that had been seen this often on segments of either kind.
TRUST = 4.0
# By how much the logarithm of the verdicts' likelihood must rise against a critic whose verdicts have nothing to do with the features.
LEAST_EVIDENCE = 9.0
# With more errors than this of both kinds together a critic tells nearly nothing, and its rates cannot be told apart from it.
MOST_ERRORS = 0.75


@dataclass(frozen=True)
class Agreement:
    """The probability that each segment is spurious, and the estimated rates at which the critic is right on spurious and on relevant segments."""

    probability: Float[Tensor, " segment"]
    sensitivity: float
    specificity: float


def weigh_verdicts(features: Float[Tensor, "segment feature"], said: Bool[Tensor, " segment"], images: Int[Tensor, " segment"]) -> Agreement | None:
    """What the verdicts make of each other. ``said`` is true where the critic said spurious, ``images`` numbers the image of each segment.

    None where they cannot be compared: too few of a kind, no pattern in them, or a critic that is wrong too often.
    """
    if min(int(said.sum()), int((~said).sum())) < FEWEST:
        return None
    scores = _score_others(features.double(), said.double(), images)
    curve = _fit_curve(scores, said)
    if curve is None or 2 - curve.sensitivity - curve.specificity > MOST_ERRORS:
        return None
    spurious = curve.prior * torch.where(said, curve.sensitivity, 1 - curve.sensitivity)
    relevant = (1 - curve.prior) * torch.where(said, 1 - curve.specificity, curve.specificity)
    return Agreement((spurious / (spurious + relevant).clamp_min(1e-12)).float(), curve.sensitivity, curve.specificity)


def _score_others(
    features: Float[Tensor, "segment feature"], said: Float[Tensor, " segment"], images: Int[Tensor, " segment"]
) -> Float[Tensor, " segment"]:
    """The log odds that the critic calls a segment spurious, by a regression on the verdicts on other images."""
    scores = torch.zeros(len(features), dtype=features.dtype)
    fold = images.unique(return_inverse=True)[1] % FOLDS
    for held_out in range(FOLDS):
        test = fold == held_out
        known = features[~test]
        mean, deviation = known.mean(0), known.std(0) + 1e-6
        count = len(known)
        weight, offset = fit_logistic((known - mean) / deviation, said[~test], known.new_full((count,), 1 / count), 1 / (2 * WEIGHT_SCALE**2 * count))
        scores[test] = ((features[test] - mean) / deviation) @ weight + offset
    return scores


@dataclass(frozen=True)
class _Curve:
    """The probability that a segment is spurious by its score alone, and the critic's rates."""

    prior: Float[Tensor, " segment"]
    sensitivity: float
    specificity: float


def _fit_curve(scores: Float[Tensor, " segment"], said: Bool[Tensor, " segment"]) -> _Curve | None:
    """P(said spurious) = a + (1 - a - b) s(k (z - t)) of standardised scores z, by the best of a grid; None if verdicts do not follow scores."""
    z = ((scores - scores.mean()) / scores.std().clamp_min(1e-12)).float()
    groups = torch.argsort(z).tensor_split(min(len(z), GROUPS))  # of like scores, so that a grid of curves costs little
    middles = torch.stack([z[group].mean() for group in groups])
    spurious, relevant = (torch.stack([kind[group].sum() for group in groups]).float() for kind in (said, ~said))
    alarms, misses = RATES[:, None, None], RATES[None, :, None]
    trust = TRUST * (torch.log1p(-alarms) + torch.log1p(-misses))[..., 0]
    best, curve = -math.inf, None
    low, high = z.quantile(torch.tensor([0.02, 0.98])).tolist()
    for position in torch.linspace(low, high, POSITIONS):
        for slope in SLOPES:
            rate = (alarms + (1 - alarms - misses) * torch.sigmoid(slope * (middles - position))).clamp(1e-6, 1 - 1e-6)
            likelihood = rate.log() @ spurious + torch.log1p(-rate) @ relevant + trust
            if likelihood.max() > best:
                best, place = float(likelihood.max()), int(likelihood.argmax())
                prior = torch.sigmoid(slope * (z - position))
                curve = _Curve(prior, 1 - float(RATES[place % len(RATES)]), 1 - float(RATES[place // len(RATES)]))
    share = said.double().mean()
    constant = float(torch.where(said, share.log(), torch.log1p(-share)).sum())
    return curve if best - constant >= LEAST_EVIDENCE else None


def describe_looks(
    images: Float[Tensor, "image channel height width"], masks: Bool[Tensor, "image mask height width"]
) -> Float[Tensor, "image mask feature"]:
    """Colour, its deviation, place and size of the pixels in several masks of each image. An empty mask has zeros for colour and place."""
    marks = masks.float()
    area = marks.sum((2, 3)).clamp_min(1)
    colour, square = (torch.einsum("ichw,imhw->imc", values, marks) / area[..., None] for values in (images, images.square()))
    deviation = (square - colour.square()).clamp_min(0).sqrt()
    down, across = (torch.linspace(-1, 1, side) for side in marks.shape[2:])
    row, column = (marks.sum(3) * down).sum(2) / area, (marks.sum(2) * across).sum(2) / area
    outwards = (marks * torch.maximum(down.abs()[:, None], across.abs())).sum((2, 3)) / area
    places = torch.stack([row, column, row.abs(), column.abs(), outwards, area.log()], 2)
    return torch.cat([colour - images.mean((2, 3))[:, None], deviation, places], 2)
