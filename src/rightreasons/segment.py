"""PPEPS-WGM: cut a heatmap's positive effect into segments with a weighted Gaussian mixture.

Each pixel is a point z in [0, 1]^2 with the weight w = M p, p its share of the positive effect (docs/method.md, eq. 4-6).
log N(z) is linear in [1, x, y, xx, xy, yy], so that one EM step over a batch of images is two matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rightreasons.progress import Advance
from rightreasons.records import Outcome, Segmentation

# Added to each covariance's diagonal, in pixels squared: a segment is never narrower than about half a pixel.
SMALLEST_VARIANCE = 0.25
# A component with less of the positive effect than this is dropped: its pixels go to the others.
SMALLEST_SHARE = 1e-3
# The mixture is fitted on a heatmap pooled to at most this many pixels a side: as good, and the time no longer grows with the image.
FITTED_SIDE = 64
# What `components = "auto"` chooses from, by BIC.
AUTO_COMPONENTS = range(1, 7)


@dataclass(frozen=True)
class Mixture:
    """One Gaussian mixture per image, on coordinates (x, y) in [0, 1]^2."""

    weights: Float[Tensor, "image component"]
    means: Float[Tensor, "image component 2"]
    covariances: Float[Tensor, "image component 2 2"]
    objective: Float[Tensor, " image"]


def segment_heatmaps(
    heatmaps: Float[Tensor, "image height width"],
    *,
    components: int | str = 5,
    smooth: float = 0.0,
    peak_share: float = 0.0,
    restarts: int = 3,
    generator: torch.Generator,
    chunk: int = 64,
    progress: Advance | None = None,
) -> Segmentation:
    """Segments of the positive effect, largest share first.

    ``smooth`` is the width (sigma) of a Gaussian as a share of the side, applied to the signed heatmap so that noise cancels;
    ``peak_share`` limits a segment's ``effect`` to pixels above that share of its peak (0: every pixel with positive effect).
    ``components`` is their greatest number, or "auto" to choose by BIC. A heatmap without a positive pixel, with equal pixels
    or with a NaN gets no segments, and its outcome says which.
    """
    heatmaps = heatmaps.float()
    smoothed = smooth_heatmaps(heatmaps, smooth)
    # Borders darken under the Gaussian, so a constant map is one before it.
    outcomes: tuple[Outcome, ...] = tuple(
        "constant" if _outcome(raw) == "constant" else _outcome(soft) for raw, soft in zip(heatmaps, smoothed, strict=True)
    )
    size = max(AUTO_COMPONENTS) if components == "auto" else int(components)
    segments = torch.full(heatmaps.shape, -1, dtype=torch.int64)
    effect = torch.zeros(heatmaps.shape, dtype=torch.bool)
    shares = torch.zeros(len(heatmaps), size)
    usable = [i for i, outcome in enumerate(outcomes) if outcome == "segmented"]
    for start in range(0, len(usable), chunk):
        part = torch.tensor(usable[start : start + chunk])
        positive = smoothed[part].clamp_min(0)
        weights = positive.flatten(1) / positive.sum((1, 2))[:, None]
        responsible = _assign(smoothed[part], components, restarts, generator)
        segments[part], shares[part] = _order_by_share(responsible, weights, size, heatmaps.shape[1:])
        effect[part] = _above_peak_share(positive, segments[part], size, peak_share)
        if progress is not None:
            progress(min(start + chunk, len(usable)), len(usable))
    return Segmentation(segments, effect, shares, outcomes)


def smooth_heatmaps(heatmaps: Float[Tensor, "image height width"], smooth: float) -> Float[Tensor, "image height width"]:
    """The signed heatmaps under a Gaussian whose sigma is ``smooth`` times the shorter side; unchanged at 0."""
    sigma = smooth * min(heatmaps.shape[1:])
    if sigma == 0:
        return heatmaps
    radius = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-torch.arange(-radius, radius + 1, dtype=heatmaps.dtype).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(heatmaps.device)
    maps = heatmaps[:, None]
    maps = F.conv2d(maps, kernel[None, None, :, None], padding=(radius, 0))
    return F.conv2d(maps, kernel[None, None, None, :], padding=(0, radius))[:, 0]


def fit_mixture(
    weights: Float[Tensor, "image pixel"],
    points: Float[Tensor, "pixel 2"],
    means: Float[Tensor, "image component 2"],
    *,
    smallest_variance: float,
    iterations: int = 100,
    tolerance: float = 1e-5,
) -> Mixture:
    """EM from given means, for all images at once, until no component's share or mean moves by more than ``tolerance``.

    ``weights`` sum to one per image. Component covariances start isotropic: the data's mean variance, divided by their number.
    """
    features = _features(points)
    count = means.shape[1]
    spread = (weights @ points.square() - (weights @ points).square()).mean(1) / count + smallest_variance
    means = means.clone()
    covariances = spread[:, None, None, None] * torch.eye(2, dtype=points.dtype, device=points.device).expand(len(weights), count, 2, 2)
    shares = torch.full(means.shape[:2], 1 / count, dtype=points.dtype, device=points.device)
    objective = torch.zeros(len(weights), dtype=points.dtype, device=points.device)
    active = torch.arange(len(weights), device=points.device)
    for _ in range(iterations):
        share = weights[active]
        joint = features @ _log_density(shares[active], means[active], covariances[active])
        density = joint.logsumexp(2, keepdim=True)
        moments = features.T @ (share[:, :, None] * (joint - density).exp())
        moved = (moments[:, 0] - shares[active]).abs().amax(1)
        objective[active] = (share * density[:, :, 0]).sum(1)
        earlier = means[active]
        shares[active], means[active], covariances[active] = _maximise(moments, smallest_variance)
        moved = torch.maximum(moved, (means[active] - earlier).abs().amax((1, 2)))
        # An image that has settled drops out, so that its result does not depend on the others in the batch.
        active = active[moved >= tolerance]
        if len(active) == 0:
            break
    return Mixture(shares, means, covariances, objective)


def responsibilities(mixture: Mixture, points: Float[Tensor, "pixel 2"]) -> Float[Tensor, "image pixel component"]:
    """r_ij: how far pixel i belongs to component j; sums to one over the components."""
    features = _features(points)
    return (features @ _log_density(mixture.weights, mixture.means, mixture.covariances)).softmax(2)


def _features(points: Float[Tensor, "pixel 2"]) -> Float[Tensor, "pixel 6"]:
    x, y = points.unbind(1)
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], 1)


def _log_density(
    shares: Float[Tensor, "image component"], means: Float[Tensor, "image component 2"], covariances: Float[Tensor, "image component 2 2"]
) -> Float[Tensor, "image 6 component"]:
    """log pi_j + log N(z | mu_j, Sigma_j) as coefficients of [1, x, y, xx, xy, yy]."""
    a, b, d = covariances[..., 0, 0], covariances[..., 0, 1], covariances[..., 1, 1]
    determinant = a * d - b * b
    p, q, s = d / determinant, -b / determinant, a / determinant
    x, y = means[..., 0], means[..., 1]
    constant = shares.clamp_min(torch.finfo(shares.dtype).tiny).log() - math.log(2 * math.pi) - determinant.log() / 2
    constant = constant - (p * x * x + 2 * q * x * y + s * y * y) / 2
    return torch.stack([constant, p * x + q * y, q * x + s * y, -p / 2, -q, -s / 2], 1)


def _maximise(moments: Float[Tensor, "image 6 component"], smallest_variance: float) -> tuple[Tensor, Tensor, Tensor]:
    shares = moments[:, 0]
    scale = shares.clamp_min(1e-12)
    means = moments[:, 1:3] / scale[:, None]
    second = moments[:, 3:6] / scale[:, None]
    variance_x = (second[:, 0] - means[:, 0] ** 2).clamp_min(0) + smallest_variance
    variance_y = (second[:, 2] - means[:, 1] ** 2).clamp_min(0) + smallest_variance
    covariance = second[:, 1] - means[:, 0] * means[:, 1]
    matrix = torch.stack([torch.stack([variance_x, covariance], -1), torch.stack([covariance, variance_y], -1)], -1)
    return shares, means.transpose(1, 2), matrix


def _assign(
    smoothed: Float[Tensor, "image height width"], components: int | str, restarts: int, generator: torch.Generator
) -> Float[Tensor, "image pixel component"]:
    """Responsibilities of every pixel, under a mixture fitted on the signed heatmap pooled to a side of at most ``FITTED_SIDE``."""
    pooled = _pool(smoothed).clamp_min(0)
    # What little was positive may cancel out under the pool: then such an image is fitted on its finer map's pooled positive part.
    flat = pooled.sum((1, 2)) <= 0
    pooled[flat] = _pool(smoothed[flat].clamp_min(0))
    weights = pooled.flatten(1) / pooled.sum((1, 2))[:, None]
    points = _grid(smoothed.shape[1:])
    coarse = _pool(points.T.view(2, *smoothed.shape[1:])).flatten(1).T
    if components != "auto":
        return responsibilities(_fit_best(weights, coarse, int(components), restarts, generator), points)
    size = max(AUTO_COMPONENTS)
    chosen = torch.zeros(len(weights), len(points), size, dtype=weights.dtype, device=weights.device)
    lowest = torch.full((len(weights),), math.inf, dtype=weights.dtype, device=weights.device)
    pixels = weights.shape[1]
    for count in AUTO_COMPONENTS:
        mixture = _fit_best(weights, coarse, count, restarts, generator)
        # w_i = M p_i: a heatmap counts as M observations, with 6 free numbers a component less the shares' sum.
        criterion = (6 * count - 1) * math.log(pixels) - 2 * pixels * mixture.objective
        better = criterion < lowest
        lowest = torch.where(better, criterion, lowest)
        chosen[better] = F.pad(responsibilities(mixture, points), (0, size - count))[better]
    return chosen


def _pool(heatmaps: Float[Tensor, "image height width"]) -> Float[Tensor, "image pooled_height pooled_width"]:
    """Means over square blocks, so that the shorter side has at most ``FITTED_SIDE`` pixels; unchanged where it has not more."""
    factor = math.ceil(min(heatmaps.shape[1:]) / FITTED_SIDE)
    return heatmaps if factor == 1 else F.avg_pool2d(heatmaps[:, None], factor, ceil_mode=True, count_include_pad=False)[:, 0]


def _fit_best(
    weights: Float[Tensor, "image pixel"], points: Float[Tensor, "pixel 2"], components: int, restarts: int, generator: torch.Generator
) -> Mixture:
    """The best of several seeded starts, image by image."""
    smallest = SMALLEST_VARIANCE / len(points)
    repeated = weights.repeat_interleave(restarts, 0)
    fitted = fit_mixture(repeated, points, _seed_means(repeated, points, components, generator), smallest_variance=smallest)
    best = fitted.objective.view(-1, restarts).argmax(1) + torch.arange(len(weights), device=weights.device) * restarts
    return Mixture(*(getattr(fitted, name)[best] for name in ("weights", "means", "covariances", "objective")))


def _seed_means(
    weights: Float[Tensor, "image pixel"], points: Float[Tensor, "pixel 2"], components: int, generator: torch.Generator
) -> Float[Tensor, "image component 2"]:
    """k-means++ (Arthur and Vassilvitskii 2007) on weighted pixels: the next mean is drawn by weight times squared distance to the nearest."""
    means: list[Tensor] = []
    distance = torch.ones_like(weights)
    for _ in range(components):
        chances = weights * distance
        # All positive pixels may be taken already; then any of them again.
        chances = torch.where(chances.sum(1, keepdim=True) > 0, chances, weights)
        drawn = torch.multinomial(chances.cpu(), 1, generator=generator)[:, 0].to(points.device)
        means.append(points[drawn])
        away = torch.cdist(points[drawn][:, None], points[None].expand(len(drawn), -1, -1))[:, 0].square()
        distance = away if len(means) == 1 else torch.minimum(distance, away)
    return torch.stack(means, 1)


def _order_by_share(
    responsible: Float[Tensor, "image pixel component"], weights: Float[Tensor, "image pixel"], size: int, shape: torch.Size
) -> tuple[Int[Tensor, "image height width"], Float[Tensor, "image segment"]]:
    """Hard assignment c_i = argmax_j r_ij, segments numbered by falling share; negligible components give their pixels to the others."""
    count = responsible.shape[2]
    hard = F.one_hot(responsible.argmax(2), count).to(weights.dtype)
    negligible = torch.einsum("ip,ipc->ic", weights, hard) < SMALLEST_SHARE
    assigned = responsible.masked_fill(negligible[:, None], -1).argmax(2)
    shares = torch.einsum("ip,ipc->ic", weights, F.one_hot(assigned, count).to(weights.dtype))
    order = shares.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    segments = rank.gather(1, assigned).view(-1, *shape)
    return segments, F.pad(shares.gather(1, order), (0, size - count))


def _above_peak_share(
    positive: Float[Tensor, "image height width"], segments: Int[Tensor, "image height width"], size: int, peak_share: float
) -> Tensor:
    flat = segments.flatten(1)
    peaks = torch.zeros(len(flat), size, dtype=positive.dtype, device=positive.device).scatter_reduce(1, flat, positive.flatten(1), "amax")
    return (positive > 0) & (positive >= peak_share * peaks.gather(1, flat).view_as(positive))


def _outcome(heatmap: Float[Tensor, "height width"]) -> Outcome:
    if not heatmap.isfinite().all():
        return "not-finite"
    if heatmap.max() <= 0:
        return "no-positive-effect"
    if heatmap.numel() > 1 and heatmap.max() == heatmap.min():
        return "constant"
    return "segmented"


def _grid(shape: torch.Size) -> Float[Tensor, "pixel 2"]:
    """Pixel centres (x, y) in [0, 1]^2, row by row."""
    height, width = shape
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)
