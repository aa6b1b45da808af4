"""PPEPS-WGM: cuts a heatmap's positive effect into segments with a weighted Gaussian mixture.

Each pixel is a point with the weight w = M p, p its share of the positive effect (docs/method.md, eq. 4-6): its place in [0, 1]^2, and its colour
beside it if images are given. So a thin word is told apart from the object that it lies on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from rightreasons.common.memory import WORKING_BYTES, how_many
from rightreasons.common.progress import Advance
from rightreasons.data.loading import StoredImages
from rightreasons.explain.em import BLOCK, expand_points
from rightreasons.explain.mixture import Mixture, coefficients, fit_mixture
from rightreasons.records import Outcome, Segmentation

# Added to each covariance's diagonal, in pixels squared: a segment is never narrower than about half a pixel.
SMALLEST_VARIANCE = 0.25
# A standard deviation of an image's colours counts as much as this share of its side: about the deviation of its pixels' places.
COLOUR_WEIGHT = 0.25
# Added to each covariance's diagonal for colours: a segment is never of a purer colour than a seventh of the image's deviation.
SMALLEST_COLOUR_VARIANCE = 0.02 * COLOUR_WEIGHT**2
# Of an image with more channels, the principal axes of its colours are used.
MOST_COLOURS = 3
# A component with a smaller share of the positive effect than this is dropped, and its pixels go to the others.
SMALLEST_SHARE = 1e-3
# The mixture is fitted on a heatmap pooled to at most this many pixels on the shorter side. The result is as good, and larger images take no longer.
FITTED_SIDE = 64
# A mixture has converged when a step of EM moves no share of the effect and no mean, in sides of the image, by more than this.
STILL = 1e-4
# The numbers of components that `components = "auto"` chooses from, by BIC.
AUTO_COMPONENTS = range(1, 7)
# The most heatmaps that are fitted together. They take about as many steps as the slowest of them.
LARGEST_CHUNK = 64
# Bytes of temporary arrays per pixel: for smoothing a heatmap, for an image's colours, and in a fit for the products of all coordinates with colours
# among them and all components.
SMOOTHING_BYTES, COLOUR_BYTES, FITTED_BYTES = 32, 48, 400


def segment_heatmaps(
    heatmaps: Float[Tensor, "image height width"],
    *,
    images: StoredImages | Float[Tensor, "image channel height width"] | None = None,
    components: int | str = 5,
    smooth: float = 0.0,
    peak_share: float = 0.0,
    restarts: int = 3,
    generator: torch.Generator,
    chunk: int = LARGEST_CHUNK,
    progress: Advance | None = None,
) -> Segmentation:
    """Segments of the positive effect, largest share first.

    With ``images``, pixels are told apart by place and colour, without by place alone.
    ``smooth`` is the width (sigma) of a Gaussian as a share of the side, applied to the signed heatmap so that noise cancels;
    ``peak_share`` limits a segment's ``effect`` to pixels above that share of its peak (0: every pixel with positive effect).
    ``components`` is their greatest number, or "auto" to choose by BIC. A heatmap without a positive pixel, with equal pixels
    or with a NaN gets no segments, and its outcome says which.
    At most ``chunk`` heatmaps are processed at once, fewer if they are large: besides the result, two bytes a pixel, memory is bounded.
    """
    size = max(AUTO_COMPONENTS) if components == "auto" else int(components)
    segments = torch.full(heatmaps.shape, -1, dtype=torch.int8)
    effect = torch.zeros(heatmaps.shape, dtype=torch.bool)
    shares = torch.zeros(len(heatmaps), size)
    outcomes: list[Outcome] = []
    each = heatmaps.shape[1:].numel() * SMOOTHING_BYTES
    if images is not None:
        each = heatmaps.shape[1:].numel() * (SMOOTHING_BYTES + COLOUR_BYTES) + restarts * FITTED_SIDE**2 * FITTED_BYTES
    at_once = how_many(each, WORKING_BYTES, chunk)
    for start in range(0, len(heatmaps), at_once):
        raw = heatmaps[start : start + at_once].float()
        smoothed = smooth_heatmaps(raw, smooth)
        outcomes += _outcomes(raw, smoothed)
        usable = torch.tensor([row for row in range(len(raw)) if outcomes[start + row] == "segmented"], dtype=torch.int64)
        if len(usable):
            positive = smoothed[usable].clamp_min(0)
            colours = None if images is None else scale_colours(images[start : start + at_once][usable])
            mixtures = _fit(smoothed[usable], colours, components, restarts, generator)
            cut, shares[start + usable] = _order_by_share(mixtures, positive, colours, size)
            segments[start + usable] = cut
            effect[start + usable] = _above_peak_share(positive, cut, size, peak_share)
        if progress is not None:
            progress(min(start + at_once, len(heatmaps)), len(heatmaps))
    return Segmentation(segments, effect, shares, tuple(outcomes))


def segment_regions(
    heatmaps: Float[Tensor, "image height width"],
    regions: Iterable[Int[Tensor, "height width"]],
    *,
    components: int,
    smooth: float = 0.0,
    peak_share: float = 0.0,
    progress: Advance | None = None,
) -> Segmentation:
    """The ``components`` regions of each image with the largest shares of its positive effect, as its segments.

    ``regions`` has for each image the number of the region that a pixel belongs to, from 0 on. Pixels of the other regions have no segment (-1), so
    that an image's shares may sum to less than one. The other arguments are those of ``segment_heatmaps``.
    """
    segments = torch.full(heatmaps.shape, -1, dtype=torch.int8)
    effect = torch.zeros(heatmaps.shape, dtype=torch.bool)
    shares = torch.zeros(len(heatmaps), components)
    outcomes: list[Outcome] = []
    for row, numbers in enumerate(regions):
        raw = heatmaps[row : row + 1].float()
        smoothed = smooth_heatmaps(raw, smooth)
        outcomes += _outcomes(raw, smoothed)
        if outcomes[row] == "segmented":
            positive = smoothed.clamp_min(0)
            segments[row], shares[row] = _keep_largest(positive[0], numbers, components)
            marked = _above_peak_share(positive, segments[row : row + 1], components, peak_share)[0]
            effect[row] = marked & (segments[row] >= 0)
        if progress is not None:
            progress(row + 1, len(heatmaps))
    return Segmentation(segments, effect, shares, tuple(outcomes))


def _keep_largest(
    positive: Float[Tensor, "height width"], regions: Int[Tensor, "height width"], most: int
) -> tuple[Int8[Tensor, "height width"], Float[Tensor, " segment"]]:
    """Regions renumbered by falling share of the positive effect, at most ``most`` of them, and their shares, 0 where there are fewer."""
    sums = torch.bincount(regions.flatten(), weights=positive.flatten().double())
    order = sums.argsort(descending=True, stable=True)[:most]
    order = order[sums[order] > 0]
    number = torch.full((len(sums),), -1, dtype=torch.int8)
    number[order] = torch.arange(len(order), dtype=torch.int8)
    return number[regions], F.pad((sums[order] / sums.sum()).float(), (0, most - len(order)))


def smooth_heatmaps(heatmaps: Float[Tensor, "image height width"], smooth: float) -> Float[Tensor, "image height width"]:
    """The signed heatmaps under a Gaussian whose sigma is ``smooth`` times the shorter side; unchanged at 0."""
    sigma = smooth * min(heatmaps.shape[1:])
    if sigma == 0:
        return heatmaps
    down, across = (_gaussian(side, sigma).to(heatmaps) for side in heatmaps.shape[1:])
    return down @ heatmaps @ across


def scale_colours(images: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image height width colour"]:
    """Each image's colours about their mean, so that their deviation counts as ``COLOUR_WEIGHT``. Zero for an image of one colour."""
    central = (images.float() - images.float().mean((2, 3), keepdim=True)).movedim(1, -1)
    if central.shape[-1] > MOST_COLOURS:
        flat = central.flatten(1, 2)
        axes = torch.linalg.eigh(flat.mT @ flat).eigenvectors[:, None, :, -MOST_COLOURS:]
        central = central @ axes
    deviation = central.square().mean((1, 2, 3), keepdim=True).sqrt()
    return COLOUR_WEIGHT * central / torch.where(deviation > 0, deviation, 1.0)


def _gaussian(side: int, sigma: float) -> Float[Tensor, "side side"]:
    """A Gaussian cut off at three sigma, as a symmetric matrix. A product with it is many times faster than a convolution with so wide a kernel."""
    radius = max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-torch.arange(-radius, radius + 1, dtype=torch.float64).square() / (2 * sigma**2))
    kernel /= kernel.sum()
    distance = (torch.arange(side)[:, None] - torch.arange(side)).abs()
    return torch.where(distance <= radius, kernel[(distance + radius).clamp_max(2 * radius)], 0.0)


def _fit(
    smoothed: Float[Tensor, "image height width"],
    colours: Float[Tensor, "image height width colour"] | None,
    components: int | str,
    restarts: int,
    generator: torch.Generator,
) -> Mixture:
    """A mixture per image, fitted on the pooled signed heatmap. Mixtures of "auto" are padded with empty components."""
    pooled = _pool(smoothed).clamp_min(0)
    # Pooling may cancel the little that was positive. Such an image is fitted on the pooled positive part of its full map instead.
    flat = pooled.sum((1, 2)) <= 0
    pooled[flat] = _pool(smoothed[flat].clamp_min(0))
    weights = pooled.flatten(1) / pooled.sum((1, 2))[:, None]
    points = _beside(_pooled_grid(smoothed.shape[1:]), None if colours is None else _thin_out(colours))
    if components != "auto":
        return _fit_best(weights, points, int(components), restarts, generator)
    chosen = None
    lowest = torch.full((len(weights),), math.inf, dtype=weights.dtype, device=weights.device)
    pixels = weights.shape[1]
    for count in AUTO_COMPONENTS:
        mixture = _fit_best(weights, points, count, restarts, generator)
        # w_i = M p_i: a heatmap counts as M observations. A component has as many free numbers as a point has products: 6 for a place.
        # The sum of the shares takes one away.
        free = expand_points(points[..., :1, :]).shape[-1]
        criterion = (free * count - 1) * math.log(pixels) - 2 * pixels * mixture.objective
        better = criterion < lowest
        lowest = torch.where(better, criterion, lowest)
        padded = _pad(mixture, max(AUTO_COMPONENTS))
        chosen = padded if chosen is None else _choose(better, padded, chosen)
    assert chosen is not None  # AUTO_COMPONENTS is not empty
    return chosen


def _pad(mixture: Mixture, size: int) -> Mixture:
    """The mixture with components of weight 0, to which no pixel belongs, added up to ``size``."""
    more = size - mixture.weights.shape[1]
    means = torch.cat([mixture.means, mixture.means[:, :1].expand(-1, more, -1)], 1)
    covariances = torch.cat([mixture.covariances, mixture.covariances[:, :1].expand(-1, more, -1, -1)], 1)
    return Mixture(F.pad(mixture.weights, (0, more)), means, covariances, mixture.objective)


def _choose(first: Bool[Tensor, " image"], one: Mixture, other: Mixture) -> Mixture:
    def pick(name: str) -> Tensor:
        a, b = getattr(one, name), getattr(other, name)
        return torch.where(first.view(-1, *[1] * (a.ndim - 1)), a, b)

    return Mixture(*(pick(name) for name in ("weights", "means", "covariances", "objective")))


def _pool(heatmaps: Float[Tensor, "image height width"]) -> Float[Tensor, "image pooled_height pooled_width"]:
    """Means over square blocks, so that the shorter side has at most ``FITTED_SIDE`` pixels; unchanged if it has no more already."""
    factor = _pool_factor(heatmaps.shape[1:])
    return heatmaps if factor == 1 else F.avg_pool2d(heatmaps[:, None], factor, ceil_mode=True, count_include_pad=False)[:, 0]


def _pool_factor(shape: torch.Size) -> int:
    return math.ceil(min(shape) / FITTED_SIDE)


def _fit_best(
    weights: Float[Tensor, "image pixel"], points: Float[Tensor, "*each pixel coordinate"], components: int, restarts: int, generator: torch.Generator
) -> Mixture:
    """The best of several seeded starts, image by image."""
    smallest = torch.full((points.shape[-1],), SMALLEST_COLOUR_VARIANCE)
    smallest[:2] = SMALLEST_VARIANCE / points.shape[-2]
    repeated = weights.repeat_interleave(restarts, 0)
    each = points if points.ndim == 2 else points.repeat_interleave(restarts, 0)
    means = _seed_means(repeated, each, components, generator).unflatten(0, (-1, restarts))
    return fit_mixture(weights, points, means, smallest_variance=smallest, tolerance=STILL)


def _seed_means(
    weights: Float[Tensor, "image pixel"], points: Float[Tensor, "*each pixel coordinate"], components: int, generator: torch.Generator
) -> Float[Tensor, "image component coordinate"]:
    """k-means++ (Arthur and Vassilvitskii 2007) on weighted pixels: the next mean is drawn by weight times squared distance to the nearest."""
    each = points.expand(len(weights), -1, -1)
    images = torch.arange(len(weights), device=points.device)
    means: list[Tensor] = []
    distance = torch.ones_like(weights)
    for _ in range(components):
        chances = weights * distance
        # If all positive pixels are taken already, any of them may be drawn again.
        chances = torch.where(chances.sum(1, keepdim=True) > 0, chances, weights)
        drawn = torch.multinomial(chances.cpu(), 1, generator=generator)[:, 0].to(points.device)
        means.append(each[images, drawn])
        away = torch.stack([(each[..., axis] - means[-1][:, axis, None]).square() for axis in range(each.shape[-1])]).sum(0)
        distance = away if len(means) == 1 else torch.minimum(distance, away)
    return torch.stack(means, 1)


def _order_by_share(
    mixtures: Mixture, positive: Float[Tensor, "image height width"], colours: Float[Tensor, "image height width colour"] | None, size: int
) -> tuple[Int8[Tensor, "image height width"], Float[Tensor, "image segment"]]:
    """Hard assignment c_i = argmax_j r_ij, segments numbered by falling share. The pixels of negligible components go to the others."""
    total = positive.sum((1, 2))[:, None]
    # The first assignment uses all components, the second leaves out the negligible ones.
    negligible = torch.zeros_like(mixtures.weights, dtype=torch.bool)
    assigned = _assign(mixtures, negligible, positive.shape, colours)
    shares = _sum_by_segment(positive, assigned, negligible.shape[1]) / total
    negligible = shares < SMALLEST_SHARE
    again = negligible.any(1)
    if again.any():
        some = Mixture(*(getattr(mixtures, name)[again] for name in ("weights", "means", "covariances", "objective")))
        assigned[again] = _assign(some, negligible[again], positive[again].shape, None if colours is None else colours[again])
        shares[again] = _sum_by_segment(positive[again], assigned[again], negligible.shape[1]) / total[again]
    order = shares.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1).to(torch.int8)
    segments = rank.gather(1, assigned.flatten(1).long()).view_as(assigned)
    return segments, F.pad(shares.gather(1, order), (0, size - shares.shape[1]))


def _assign(
    mixtures: Mixture, left_out: Bool[Tensor, "image component"], shape: torch.Size, colours: Float[Tensor, "image height width colour"] | None
) -> Int8[Tensor, "image height width"]:
    """The component that each pixel belongs to, a strip of rows at a time."""
    count, height, width = shape
    densities = coefficients(mixtures)
    assigned = torch.zeros(shape, dtype=torch.int8)
    rows = max(1, BLOCK // (count * width * left_out.shape[1]))
    for top in range(0, height, rows):
        part = slice(top, min(top + rows, height))
        # r_ij grows with log pi_j + log N(z_i), so the largest is found without dividing by the sum.
        points = _beside(_grid(shape[1:], part), None if colours is None else colours[:, part])
        joint = (densities @ expand_points(points).mT).masked_fill_(left_out[:, :, None], -math.inf).unflatten(2, (-1, width))
        highest = joint[:, 0]
        for component in range(1, joint.shape[1]):
            assigned[:, part].masked_fill_(joint[:, component] > highest, component)
            highest = torch.maximum(highest, joint[:, component])
    return assigned


def _sum_by_segment(
    positive: Float[Tensor, "image height width"], assigned: Int8[Tensor, "image height width"], count: int
) -> Float[Tensor, "image segment"]:
    sums = torch.zeros(len(positive), count, dtype=torch.float64)
    return sums.scatter_add_(1, assigned.flatten(1).long(), positive.flatten(1).double()).to(positive.dtype)


def _above_peak_share(
    positive: Float[Tensor, "image height width"], segments: Int8[Tensor, "image height width"], size: int, peak_share: float
) -> Bool[Tensor, "image height width"]:
    # The first peak is that of the pixels of no segment.
    numbers, values = (segments + 1).flatten(1).long(), positive.flatten(1)
    peaks = torch.zeros(len(positive), size + 1).scatter_reduce_(1, numbers, values, "amax")
    return ((values > 0) & (values >= (peak_share * peaks).gather(1, numbers))).view_as(positive)


def _outcomes(raw: Float[Tensor, "image height width"], smoothed: Float[Tensor, "image height width"]) -> list[Outcome]:
    """Each heatmap's outcome. A constant map is recognised before smoothing, since the Gaussian darkens its borders."""
    return ["constant" if _outcome(before) == "constant" else _outcome(after) for before, after in zip(raw, smoothed, strict=True)]


def _outcome(heatmap: Float[Tensor, "height width"]) -> Outcome:
    if not heatmap.isfinite().all():
        return "not-finite"
    if heatmap.max() <= 0:
        return "no-positive-effect"
    if heatmap.numel() > 1 and heatmap.max() == heatmap.min():
        return "constant"
    return "segmented"


def _grid(shape: torch.Size, rows: slice = slice(None)) -> Float[Tensor, "pixel 2"]:
    """Pixel centres (x, y) in [0, 1]^2, row by row."""
    height, width = shape
    y, x = torch.meshgrid(((torch.arange(height) + 0.5) / height)[rows], (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def _beside(places: Float[Tensor, "pixel 2"], colours: Float[Tensor, "image row column colour"] | None) -> Float[Tensor, "*each pixel coordinate"]:
    """Points of places alone, which all images share, or of places and each image's own colours."""
    return places if colours is None else torch.cat([places.expand(len(colours), -1, -1), colours.flatten(1, 2)], -1)


def _thin_out(colours: Float[Tensor, "image height width colour"]) -> Float[Tensor, "image pooled_height pooled_width colour"]:
    """The colour in the middle of each of ``_pool``'s blocks: a mean would mix thin lines with what is beside them."""
    factor = _pool_factor(colours.shape[1:3])
    rows, columns = ((torch.arange(math.ceil(side / factor)) * factor + factor // 2).clamp_max(side - 1) for side in colours.shape[1:3])
    return colours[:, rows][:, :, columns]


def _pooled_grid(shape: torch.Size) -> Float[Tensor, "pixel 2"]:
    """The centres of ``_pool``'s blocks, row by row."""
    y, x = (_pool_line((torch.arange(side) + 0.5) / side, _pool_factor(shape)) for side in shape)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def _pool_line(line: Float[Tensor, " pixel"], factor: int) -> Float[Tensor, " block"]:
    return F.avg_pool1d(line[None], factor, ceil_mode=True, count_include_pad=False)[0]
