"""How far people agree beyond chance: Cohen's and Fleiss' kappa, and intervals of whatever is made of sums over images (docs/study.md)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Interval = tuple[float, float]
# Samples of images that an interval is made of, and of how many the measure has to exist.
DRAWS = 2000
FEWEST_DRAWS = 1000


def cohen_kappa(counts: Float[Tensor, "*draw category category"]) -> Float[Tensor, "*draw"]:
    """Cohen's kappa (1960) of two raters: (p_o - p_e) / (1 - p_e), with p_e from the margins of each rater.

    ``counts`` has how often the first gave the category of the row and the second that of the column. NaN where both always gave the same one.
    """
    total = counts.sum((-2, -1))
    observed = counts.diagonal(dim1=-2, dim2=-1).sum(-1) / total
    chance = (counts.sum(-1) * counts.sum(-2)).sum(-1) / total**2
    return _beyond_chance(observed, chance)


def fleiss_parts(ratings: Int[Tensor, "segment category"]) -> Float[Tensor, "segment part"]:
    """What Fleiss' kappa needs of each segment, by how many raters gave each category: the share of pairs of raters who agree, 1, and the counts.

    Zeros where fewer than two rated, of whom no pair can be made.
    """
    counts = ratings.double()
    raters = counts.sum(1, keepdim=True)
    agree = (counts * (counts - 1)).sum(1, keepdim=True) / (raters * (raters - 1)).clamp(min=1)
    return torch.cat([agree, torch.ones_like(agree), counts], 1) * (raters >= 2)


def fleiss_kappa(parts: Float[Tensor, "*draw part"]) -> Float[Tensor, "*draw"]:
    """Fleiss' kappa (1971) of sums over ``fleiss_parts``; NaN where every rating is the same.

    With as many raters on every segment it is Fleiss' own. Where their number differs, each segment's pairs count as one segment, and the categories'
    shares are over all ratings.
    """
    agree, segments, counts = parts[..., 0], parts[..., 1], parts[..., 2:]
    shares = counts / counts.sum(-1, keepdim=True)
    return _beyond_chance(agree / segments, (shares**2).sum(-1))


def _beyond_chance(observed: Float[Tensor, "*draw"], chance: Float[Tensor, "*draw"]) -> Float[Tensor, "*draw"]:
    # Rounding leaves a chance of 1 a little below it, where the quotient means nothing.
    return torch.where(chance < 1 - 1e-12, (observed - chance) / (1 - chance), torch.nan)


def measure_sums(parts: Float[Tensor, "row part"], measure: Callable[[Tensor], Tensor]) -> float | None:
    """A measure of the sums over all rows; None where it does not exist."""
    value = float(measure(parts.sum(0)[None])[0])
    return None if value != value else value


def bootstrap_interval(
    parts: Float[Tensor, "row part"], images: Int[Tensor, " row"], measure: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Interval | None:
    """The 95 % interval of a measure of sums: percentiles over samples of whole images with replacement (Efron 1979; clusters: Field and Welsh 2007).

    Segments of one image are not independent, so that images are drawn. ``parts`` are summed over rows, ``images`` has the image of each row, and
    ``measure`` maps (draw, part) to (draw), NaN where it does not exist. None if it exists in fewer than half of the samples, or if all of them give
    the same value, as where nobody disagreed: that no sample differs does not mean that the value is certain.
    """
    if len(parts) == 0:
        return None
    names, row = images.unique(return_inverse=True)
    sums = torch.zeros(len(names), parts.shape[1], dtype=torch.float64).index_add_(0, row, parts.double())
    drawn = torch.randint(len(names), (DRAWS, len(names)), generator=generator)
    times = torch.zeros(DRAWS, len(names), dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
    values = measure(times @ sums)
    values = values[values.isfinite()]
    if len(values) < FEWEST_DRAWS or float(values.max() - values.min()) < 1e-9:
        return None
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
