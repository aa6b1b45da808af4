"""EM for the Gaussian mixtures of many images at once, with leaps (docs/method.md, eq. 5 and 5a).

A step is two matrix products over a fixed basis, 1, the coordinates and their products, with the exponentials between them: arrays have pixels last
and are worked on in blocks that stay in the processor's cache. EM crawls where components overlap, so every third step starts where two earlier ones
point (SQUAREM, Varadhan and Roland 2008), in coordinates in which every point is a mixture: logarithms of shares and pivots, means, and the factor of
each covariance. A leap that lowers the objective is not taken.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Floats of a block's responsibilities: they stay in a core's cache, where memory would otherwise set the pace.
BLOCK = 250_000
# The longest leap, in steps of EM. Longer ones are mostly refused.
LONGEST_LEAP = 8.0
# Less than this below the likeliest component a logarithm counts as this, since exponentials close to zero are slow.
LEAST_LOGARITHM = -60.0
# An objective may fall by so many roundings of the pixels' precision before a leap counts as one downwards.
ROUNDINGS = 10
SMALLEST_PIVOT = 1e-14

Parameters = Float[Tensor, "parameter image start component"]


@dataclass(frozen=True)
class Cloud:
    """Each image's weighted points. Points of weight zero are left out, and where an image has fewer than others, its last ones have none."""

    weights: Float[Tensor, "image point"]
    basis: Float[Tensor, "image feature point"]

    def __getitem__(self, images: Tensor) -> Cloud:
        return Cloud(self.weights[images], self.basis[images])


def gather_points(weights: Float[Tensor, "image pixel"], points: Float[Tensor, "*each pixel coordinate"]) -> Cloud:
    """The points with weight, in the basis 1, coordinates, products."""
    used = weights > 0
    place = used.cumsum(1) - 1
    index = torch.zeros(len(weights), int(place.max()) + 1, dtype=torch.int64, device=weights.device)
    rows, columns = used.nonzero(as_tuple=True)
    index[rows, place[used]] = columns
    missing = torch.arange(index.shape[1], device=weights.device) >= used.sum(1)[:, None]
    chosen = points[index] if points.ndim == 2 else points.gather(1, index[:, :, None].expand(-1, -1, points.shape[2]))
    return Cloud(weights.gather(1, index).masked_fill_(missing, 0), expand_points(chosen).mT.contiguous())


def expand_points(points: Float[Tensor, "*each pixel coordinate"]) -> Float[Tensor, "*each pixel feature"]:
    """1, the coordinates, and the products of every two of them: [1, x, y, xx, xy, yy] of a place."""
    one, other = torch.triu_indices(points.shape[-1], points.shape[-1])
    return torch.cat([torch.ones_like(points[..., :1]), points, points[..., one] * points[..., other]], -1)


def pack(
    shares: Float[Tensor, "*each component"], means: Float[Tensor, "coordinate *each component"], covariances: Mapping[tuple[int, int], Tensor]
) -> Float[Tensor, "parameter *each component"]:
    """log pi, the mean, and of the covariance U D U' the logarithms of D and the entries of U below its diagonal of ones, row by row.

    ``covariances`` has the entries in and below the diagonal, by row and column.
    """
    left, size = dict(covariances), len(means)
    for k in range(size):
        # Rounding may leave a pivot slightly below zero.
        left[k, k] = left[k, k].clamp_min(SMALLEST_PIVOT)
        scaled = {i: left[i, k] / left[k, k] for i in range(k + 1, size)}
        for i, j in itertools.combinations_with_replacement(range(k + 1, size), 2):
            left[j, i] = left[j, i] - scaled[j] * left[i, k]
        left.update({(i, k): entry for i, entry in scaled.items()})
    pivots = torch.stack([left[k, k] for k in range(size)])
    return torch.cat([shares[None].log(), means, pivots.log(), *(left[place][None] for place in _below(size))])


def unpack(parameters: Float[Tensor, "parameter *each component"]) -> tuple[Tensor, Tensor, Tensor]:
    """Shares, means (coordinate, ...) and covariances (coordinate, coordinate, ...) of what ``pack`` gave."""
    size = _size(parameters)
    unit = torch.zeros(size, size, *parameters.shape[1:], dtype=parameters.dtype, device=parameters.device)
    for k in range(size):
        unit[k, k] = 1
    for (i, j), entry in zip(_below(size), parameters[2 * size + 1 :], strict=True):
        unit[i, j] = entry
    covariances = (unit[:, None] * unit[None] * parameters[size + 1 : 2 * size + 1].exp()).sum(2)
    return parameters[0].exp(), parameters[1 : size + 1], covariances


def log_density(parameters: Float[Tensor, "parameter *each component"]) -> Float[Tensor, "feature *each component"]:
    """log pi_j + log N(z | mu_j, Sigma_j) as coefficients of what ``expand_points`` gives."""
    size = _size(parameters)
    means, pivots = parameters[1 : size + 1], parameters[size + 1 : 2 * size + 1]
    # D^-1/2 U^-1, which makes a component's points round, row by row.
    scales = (pivots / -2).exp()
    unit = dict(zip(_below(size), parameters[2 * size + 1 :], strict=True))
    inverse: dict[tuple[int, int], Tensor] = {}
    for i, j in _below(size):
        inverse[i, j] = -_sum([unit[i, j], *(unit[i, k] * inverse[k, j] for k in range(j + 1, i))])
    whitener = {(i, i): scales[i] for i in range(size)} | {(i, j): entry * scales[i] for (i, j), entry in inverse.items()}
    centre = [_sum([whitener[i, j] * means[j] for j in range(i + 1)]) for i in range(size)]
    linear = [_sum([whitener[i, j] * centre[i] for i in range(j, size)]) for j in range(size)]
    constant = parameters[0] - size / 2 * math.log(2 * math.pi) - _sum([*pivots, *(entry.square() for entry in centre)]) / 2
    square = []
    for i, j in itertools.combinations_with_replacement(range(size), 2):
        entry = _sum([whitener[k, i] * whitener[k, j] for k in range(j, size)])
        # A product of two different coordinates stands for two entries of the matrix.
        square.append(entry / -2 if i == j else -entry)
    return torch.stack([constant, *linear, *square])


def _size(parameters: Tensor) -> int:
    """The number of coordinates: of D of them there are 1 + D + D (D + 1) / 2 parameters."""
    return math.isqrt(2 * len(parameters)) - 1


def _below(size: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(size) for j in range(i)]


def _sum(terms: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


def expect(parameters: Parameters, cloud: Cloud) -> tuple[Float[Tensor, "feature image start component"], Float[Tensor, "image start"]]:
    """Each component's moments, sum_i p_i r_ij phi(z_i), and the objective, sum_i p_i log sum_j pi_j N(z_i)."""
    images, starts, components = parameters.shape[1:]
    coefficients = log_density(parameters).flatten(2).permute(1, 2, 0).to(cloud.basis.dtype)
    moments = torch.empty(coefficients.shape, dtype=parameters.dtype, device=parameters.device)
    objective = torch.empty(images, starts, dtype=parameters.dtype, device=parameters.device)
    at_once = max(1, BLOCK // (starts * components * cloud.weights.shape[1]))
    for first in range(0, images, at_once):
        part = slice(first, first + at_once)
        joint = torch.bmm(coefficients[part], cloud.basis[part])
        each = joint.unflatten(1, (starts, components))
        most = each.amax(2, keepdim=True)
        total = each.sub_(most).clamp_min_(LEAST_LOGARITHM).exp_().sum(2, keepdim=True)
        weights = cloud.weights[part, None, None]
        each.mul_(weights / total)
        moments[part] = torch.bmm(joint, cloud.basis[part].mT).to(moments.dtype)
        objective[part] = ((total.log_() + most) * weights).sum((2, 3)).to(objective.dtype)
    return moments.permute(2, 0, 1).unflatten(2, (starts, components)), objective


def maximise(moments: Float[Tensor, "feature *each component"], floor: Sequence[float]) -> Float[Tensor, "parameter *each component"]:
    """The parameters with the given moments. ``floor`` is added to each covariance's diagonal."""
    size = len(floor)
    scaled = moments[1:] / moments[0]
    means, covariances = scaled[:size], {}
    for (i, j), product in zip(itertools.combinations_with_replacement(range(size), 2), scaled[size:], strict=True):
        entry = product - means[i] * means[j]
        # Rounding may leave a variance slightly below zero.
        covariances[j, i] = entry.clamp_min_(0).add_(floor[i]) if i == j else entry
    return pack(moments[0], means, covariances)


def climb(
    parameters: Parameters, cloud: Cloud, floor: Sequence[float], *, iterations: int, tolerance: float
) -> tuple[Parameters, Float[Tensor, "image start"]]:
    """The mixtures after at most ``iterations`` steps, three a leap, and their objectives one step earlier.

    A mixture stops when a step moves no share or mean by more than ``tolerance``. An image leaves the batch when its mixtures have stopped: its
    result does not depend on the others.
    """
    reached = torch.full(parameters.shape[1:3], -math.inf, dtype=parameters.dtype, device=parameters.device)
    found = parameters.clone()
    images = torch.arange(parameters.shape[1], device=parameters.device)
    going = torch.ones_like(reached, dtype=torch.bool)
    for _ in range(math.ceil(iterations / 3)):
        landed, objective, moved = _leap(parameters, cloud, floor)
        parameters = torch.where(going[..., None], landed, parameters)
        reached[images] = torch.where(going, objective, reached[images])
        found[:, images] = parameters
        going = going & (moved >= tolerance)
        left = going.any(1)
        if not left.any():
            break
        if not left.all():
            images, going, parameters, cloud = images[left], going[left], parameters[:, left], cloud[left]
    return found, reached


def _leap(parameters: Parameters, cloud: Cloud, floor: Sequence[float]) -> tuple[Parameters, Tensor, Tensor]:
    """Three steps of EM with a leap before the last, the objective one step before the end, and by how much the first step moved shares and means."""
    size = len(floor)
    first = maximise(expect(parameters, cloud)[0], floor)
    moments, before = expect(first, cloud)
    second = maximise(moments, floor)
    step = first - parameters
    bend = second - first - step
    length = (_norm(step) / _norm(bend).clamp_min(1e-30)).clamp(1, LONGEST_LEAP)
    leapt = parameters + 2 * length * step + length.square() * bend
    leapt[0] -= leapt[0].logsumexp(2, keepdim=True)
    moments, ahead = expect(leapt, cloud)
    rose = _rises(before, ahead, cloud.weights.dtype)
    landed = torch.where(rose[..., None], maximise(moments, floor), second)
    shares = (first[0].exp() - parameters[0].exp()).abs().amax(2)
    means = step[1 : size + 1].abs().amax((0, 3))
    return landed, torch.where(rose, ahead, before), torch.maximum(shares, means)


def _norm(step: Parameters) -> Float[Tensor, "image start 1"]:
    return step.square().sum((0, 3)).sqrt()[..., None]


def _rises(before: Float[Tensor, "image start"], ahead: Float[Tensor, "image start"], dtype: torch.dtype) -> Bool[Tensor, "image start"]:
    """Whether a leap was upwards, but for rounding. One to where nothing is a number was not."""
    return ahead >= before - ROUNDINGS * torch.finfo(dtype).eps
