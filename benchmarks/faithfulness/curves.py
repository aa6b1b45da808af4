"""How good a heatmap is: what replacing its pixels in order does to an answer, whether it points at the mark, and how far two maps agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from rightreasons.common.seeds import seeded

# The shares of the pixels that are replaced, or put back.
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


class Areas(NamedTuple):
    """Mean areas under the two curves over the share of pixels, and the mean scores at their ends: of the whole image, and of the filling alone.

    ``deletion`` starts from the image (less is better), ``insertion`` from the filling (more is better). They are not put on a scale from filling to
    image: a filling may well get the image's own answer.
    """

    deletion: float
    insertion: float
    whole: float
    nothing: float


def measure_areas(
    score: Callable[[Float[Tensor, "image channel height width"]], Float[Tensor, " image"]],
    images: Float[Tensor, "image channel height width"],
    filling: Float[Tensor, "channel height width"],
    heatmaps: Float[Tensor, "image height width"],
    shares: Sequence[float] = SHARES,
) -> Areas:
    """The pixels with the largest values of a heatmap are replaced by the ``filling``, or put back into it, before the others."""
    rank = _ranks(heatmaps)[:, None]
    deleted, inserted = [], []
    for share in shares:
        first = rank < round(share * heatmaps[0].numel())
        deleted.append(score(torch.where(first, filling, images)).double().mean())
        inserted.append(score(torch.where(first, images, filling)).double().mean())
    deletion, insertion = (float(torch.trapezoid(torch.stack(curve), torch.tensor(shares).double())) for curve in (deleted, inserted))
    return Areas(deletion, insertion, float(deleted[0]), float(inserted[0]))


def _ranks(heatmaps: Float[Tensor, "image height width"]) -> Tensor:
    """Each pixel's place in the order of falling values. Equal values are in random order, since a corner is no better than the middle."""
    flat = heatmaps.flatten(1)
    mixed = torch.randperm(flat.shape[1], generator=seeded(0, "ties"))
    order = mixed[flat[:, mixed].argsort(dim=1, descending=True, stable=True)]
    return order.argsort(dim=1).view_as(heatmaps)


def count_hits(heatmaps: Float[Tensor, "image height width"], masks: Bool[Tensor, "image height width"]) -> float:
    """The pointing game (Zhang et al. 2018): the share of the images in which the largest value lies in the mask. A map of zeros misses."""
    flat = heatmaps.flatten(1)
    hits = masks.flatten(1).gather(1, flat.argmax(1, keepdim=True))[:, 0] & (flat.amax(1) > 0)
    return float(hits.double().mean())


def correlate_ranks(heatmaps: Float[Tensor, "image height width"], others: Float[Tensor, "image height width"]) -> float:
    """The mean over images of Spearman's rank correlation between two maps; a map of one value agrees with nothing, 0."""
    found = []
    for pair in zip(heatmaps.flatten(1), others.flatten(1), strict=True):
        ranks = rankdata(np.stack([values.numpy() for values in pair]), axis=1)
        found.append(float(np.corrcoef(ranks)[0, 1]) if ranks.std(1).all() else 0.0)
    return math.fsum(found) / len(found)
