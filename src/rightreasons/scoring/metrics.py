"""Scores: how often a model is right, for whom, and for which reasons (docs/method.md, section 7). One pure function per metric."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rightreasons.common.seeds import seeded
from rightreasons.networks.predictions import Predictions
from rightreasons.records import GroundTruth, GroupScore, Scores, Value

# How many samples an interval by resampling rests on.
DRAWS = 2000


@dataclass(frozen=True)
class Averages:
    """Accuracy of the worst group, the unweighted mean over groups, and the mean weighted by how frequent each group is in training."""

    worst: float
    average: float
    weighted: float | None


Interval = tuple[float, float]


@dataclass(frozen=True)
class VerdictAgreement:
    """The share of judged segments with the right verdict: of all, of the truly spurious, and of the others; None if there are none of a kind.

    ``spurious_recall`` is the critic's sensitivity, ``core_recall`` its specificity; each comes with a 95 % interval.
    ``spurious_precision`` is the share of the segments called spurious that are.
    """

    accuracy: float | None
    spurious_recall: float | None
    core_recall: float | None
    unsure: int
    accuracy_interval: Interval | None = None
    spurious_recall_interval: Interval | None = None
    core_recall_interval: Interval | None = None
    spurious_precision: float | None = None


def score_predictions(predictions: Predictions, truth: GroundTruth | None, train_counts: Mapping[str, int] | None = None) -> Scores:
    """Accuracy and entropy; with ``truth``, also every group metric."""
    accuracy, entropy = predictions.correct.double().mean().item(), predictions.entropy.double().mean().item()
    if truth is None:
        return Scores(accuracy, entropy)
    indices: list[int] = predictions.indices.tolist()
    groups = group_scores(predictions.correct, [truth.groups[index] for index in indices])
    averages = average_groups(groups, train_counts)
    others = {name: group_scores(predictions.correct, [names[index] for index in indices]) for name, names in truth.other_groups.items()}
    intervals = {}
    if truth.clusters is not None:
        clusters = [truth.clusters[index] for index in indices]
        intervals = cluster_intervals(predictions.correct, [truth.groups[index] for index in indices], clusters, seeded(0, "intervals"))
    return Scores(
        accuracy,
        entropy,
        worst_group_accuracy=averages.worst,
        average_group_accuracy=averages.average,
        weighted_group_accuracy=averages.weighted,
        groups=groups,
        other_groups=others,
        intervals=intervals,
    )


def group_scores(correct: Bool[Tensor, " image"], groups: Sequence[str]) -> dict[str, GroupScore]:
    """Accuracy and count of each group that has images, by name."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return {group: GroupScore(correct[rows].double().mean().item(), len(rows)) for group, rows in sorted(members.items())}


def average_groups(groups: Mapping[str, GroupScore], train_counts: Mapping[str, int] | None = None) -> Averages:
    """The averages over groups. A group of the training split that is empty here is left out, with a warning."""
    accuracies = [group.accuracy for group in groups.values()]
    weighted = None
    if train_counts is not None:
        empty = [group for group, count in train_counts.items() if count and group not in groups]
        if empty:
            warnings.warn(f"no images of group {', '.join(map(repr, empty))} to evaluate: left out of the averages", stacklevel=2)
        total = sum(train_counts.get(group, 0) for group in groups)
        weighted = sum(train_counts.get(group, 0) * score.accuracy for group, score in groups.items()) / total if total else None
    return Averages(min(accuracies), sum(accuracies) / len(accuracies), weighted)


def cluster_intervals(
    correct: Bool[Tensor, " image"], groups: Sequence[str], clusters: Sequence[str], generator: torch.Generator, *, draws: int = DRAWS
) -> dict[str, Interval]:
    """95 % intervals of accuracy, worst group and group average: percentiles over ``draws`` samples of whole clusters, with replacement.

    Several images of one object are not independent trials, so that an interval over images would be too narrow. A group that a sample
    happens not to contain is left out of it. The lowest of several noisy groups tends to lie below the group that is truly worst, so that the
    interval of the worst group is conservative.
    """
    names, kinds = sorted(set(clusters)), sorted(set(groups))
    row, column = ({name: place for place, name in enumerate(names)} for names in (names, kinds))
    total, right = (torch.zeros(len(names), len(kinds), dtype=torch.float64) for _ in range(2))
    for hit, group, cluster in zip(correct.tolist(), groups, clusters, strict=True):
        total[row[cluster], column[group]] += 1
        right[row[cluster], column[group]] += hit
    drawn = torch.randint(len(names), (draws, len(names)), generator=generator)
    times = torch.zeros(draws, len(names), dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
    hits, images = times @ right, times @ total
    rates = hits / images  # NaN if a sample has no images of a group
    told = {
        "accuracy": hits.sum(1) / images.sum(1),
        "worst_group_accuracy": rates.nan_to_num(nan=torch.inf).amin(1),
        "average_group_accuracy": rates.nanmean(1),
    }
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return {name: (low, high) for name, values in told.items() for low, high in [torch.quantile(values, ends).tolist()]}


@dataclass(frozen=True)
class ShortcutAttribution:
    """How much attribution lies in the shortcut, over the images that have a mask and any attribution (eq. 9, 9b).

    ``mu_align`` is the mean share outside; ``floor`` is what a map has that is the same everywhere; ``lift`` is the mean ratio of the share inside
    to the share that the shortcut has of the area. All are None if there is no such image; ``left_out`` counts the others.
    """

    mu_align: float | None
    floor: float | None
    lift: float | None
    left_out: int


def measure_shortcut(heatmaps: Float[Tensor, "image height width"], masks: Bool[Tensor, "image height width"]) -> ShortcutAttribution:
    """The share of the attribution in the shortcut, beside the share of the area that the shortcut has."""
    inside, areas = _shares_inside(heatmaps, masks, torch.abs), _areas(masks)
    known = inside.isfinite() & (areas > 0)
    left_out = len(heatmaps) - int(known.sum())
    if not known.any():
        return ShortcutAttribution(None, None, None, left_out)
    inside, areas = inside[known], areas[known]
    return ShortcutAttribution(1 - inside.mean().item(), 1 - areas.mean().item(), (inside / areas).mean().item(), left_out)


def spurious_share(heatmaps: Float[Tensor, "image height width"], masks: Bool[Tensor, "image height width"]) -> float | None:
    """The mean share of the inspected images' positive effect that lies in judged-spurious segments; it needs no labels but the verdicts."""
    shares = _shares_inside(heatmaps, masks, torch.relu)
    shares = shares[shares.isfinite()]
    return shares.mean().item() if len(shares) else None


def spurious_lift(heatmaps: Float[Tensor, "image height width"], masks: Bool[Tensor, "image height width"]) -> float | None:
    """The mean ratio of the share of positive effect in judged-spurious segments to their share of the area, over images that have any (eq. 9b)."""
    inside, areas = _shares_inside(heatmaps, masks, torch.relu), _areas(masks)
    known = inside.isfinite() & (areas > 0)
    return (inside[known] / areas[known]).mean().item() if known.any() else None


def _areas(masks: Bool[Tensor, "image height width"]) -> Float[Tensor, " image"]:
    """The share of each image that its mask has."""
    return masks.flatten(1).double().mean(1)


def _shares_inside(
    heatmaps: Float[Tensor, "image height width"], masks: Bool[Tensor, "image height width"], strength: Callable[[Tensor], Tensor]
) -> Float[Tensor, " image"]:
    """The share of each heatmap's strength that lies in its mask, NaN if it has no strength. Only one image at a time is in double precision."""
    shares = torch.full((len(heatmaps),), math.nan, dtype=torch.float64)
    for row, (heatmap, mask) in enumerate(zip(heatmaps, masks, strict=True)):
        effect = strength(heatmap.double())
        total = effect.sum()
        if total > 0:
            shares[row] = (effect * mask).sum() / total
    return shares


def verdict_agreement(values: Sequence[Value], truths: Sequence[bool]) -> VerdictAgreement:
    """Compares verdicts with the truth; unsure verdicts are counted separately and enter no rate."""
    judged = [(value == "spurious", truth) for value, truth in zip(values, truths, strict=True) if value != "unsure"]
    parts = judged, [pair for pair in judged if pair[1]], [pair for pair in judged if not pair[1]]
    right = [sum(says == is_so for says, is_so in part) for part in parts]
    rates = [count / len(part) if part else None for count, part in zip(right, parts, strict=True)]
    intervals = [wilson_interval(count, len(part)) if part else None for count, part in zip(right, parts, strict=True)]
    (accuracy, sensitivity, specificity), unsure = rates, len(values) - len(judged)
    accused = [truth for says, truth in judged if says]
    precision = sum(accused) / len(accused) if accused else None
    return VerdictAgreement(accuracy, sensitivity, specificity, unsure, *intervals, spurious_precision=precision)


def mean_interval(shares: Float[Tensor, " image"]) -> Interval:
    """The 95 % interval of the mean of at least one share: percentiles of the means of ``DRAWS`` samples with replacement.

    Nothing is assumed of how shares are distributed. It has no width if all shares are the same, so that it says little of a few images.
    """
    generator, ends = seeded(0, "intervals"), torch.tensor([0.025, 0.975], dtype=torch.float64)
    parts = [shares[torch.randint(len(shares), (DRAWS // 20, len(shares)), generator=generator)].double().mean(1) for _ in range(20)]
    low, high = torch.quantile(torch.cat(parts), ends).tolist()
    return low, high


def wilson_interval(successes: int, trials: int, z: float = 1.959963984540054) -> Interval:
    """The 95 % interval of a rate (Wilson 1927), for at least one trial; it stays within 0 and 1, and is wide if there are few trials."""
    rate, n = successes / trials, trials
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # At a rate of 0 or 1 one end is exactly the rate, which rounding would miss.
    return centre - reach if successes else 0.0, centre + reach if successes < trials else 1.0
