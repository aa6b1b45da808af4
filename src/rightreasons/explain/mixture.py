"""A weighted Gaussian mixture for each of many images at once, fitted by EM (docs/method.md, eq. 5).

A point has two coordinates of place, and further ones of colour where those are used. log N(z) is linear in 1, the coordinates and their
products, so that one EM step over a batch of images is two matrix products. Points are shared by all images, or each image has its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """One Gaussian mixture per image."""

    weights: Float[Tensor, "image component"]
    means: Float[Tensor, "image component coordinate"]
    covariances: Float[Tensor, "image component coordinate coordinate"]
    objective: Float[Tensor, " image"]


def fit_mixture(
    weights: Float[Tensor, "image pixel"],
    points: Float[Tensor, "*each pixel coordinate"],
    means: Float[Tensor, "image component coordinate"],
    *,
    smallest_variance: float | Float[Tensor, " coordinate"],
    iterations: int = 100,
    tolerance: float = 1e-5,
) -> Mixture:
    """EM from given means, for all images at once, until no component's share or mean moves by more than ``tolerance``.

    ``weights`` sum to one per image. Component covariances start isotropic: the data's mean variance, divided by their number.
    ``smallest_variance`` is added to each covariance's diagonal.
    """
    features = expand_points(points)
    count, size = means.shape[1:]
    floor = torch.diag(torch.as_tensor(smallest_variance, dtype=points.dtype, device=points.device).expand(size))
    spread = (_mean(weights, points.square()) - _mean(weights, points).square()).mean(1) / count
    means = means.clone()
    start = spread[:, None, None, None] * torch.eye(size, dtype=points.dtype, device=points.device) + floor
    covariances = start.expand(len(weights), count, size, size).contiguous()
    shares = torch.full(means.shape[:2], 1 / count, dtype=points.dtype, device=points.device)
    objective = torch.zeros(len(weights), dtype=points.dtype, device=points.device)
    active = torch.arange(len(weights), device=points.device)
    for _ in range(iterations):
        share = weights[active]
        joint = features @ log_density(shares[active], means[active], covariances[active])
        density = joint.logsumexp(2, keepdim=True)
        moments = features.mT @ (share[:, :, None] * (joint - density).exp())
        moved = (moments[:, 0] - shares[active]).abs().amax(1)
        objective[active] = (share * density[:, :, 0]).sum(1)
        earlier = means[active]
        shares[active], means[active], covariances[active] = _maximise(moments, floor)
        moved = torch.maximum(moved, (means[active] - earlier).abs().amax((1, 2)))
        # An image whose mixture has converged drops out, so its result does not depend on the others in the batch.
        left = moved >= tolerance
        if not left.any():
            break
        if not left.all():
            active = active[left]
            features = features[left] if features.ndim == 3 else features
    return Mixture(shares, means, covariances, objective)


def responsibilities(mixture: Mixture, points: Float[Tensor, "*each pixel coordinate"]) -> Float[Tensor, "image pixel component"]:
    """r_ij: how far pixel i belongs to component j; sums to one over the components."""
    return (expand_points(points) @ log_density(mixture.weights, mixture.means, mixture.covariances)).softmax(2)


def expand_points(points: Float[Tensor, "*each pixel coordinate"]) -> Float[Tensor, "*each pixel feature"]:
    """1, the coordinates, and the products of every two of them: [1, x, y, xx, xy, yy] of a place."""
    one, other = _pairs(points.shape[-1])
    return torch.cat([torch.ones_like(points[..., :1]), points, points[..., one] * points[..., other]], -1)


def log_density(
    shares: Float[Tensor, "image component"],
    means: Float[Tensor, "image component coordinate"],
    covariances: Float[Tensor, "image component coordinate coordinate"],
) -> Float[Tensor, "image feature component"]:
    """log pi_j + log N(z | mu_j, Sigma_j) as coefficients of what ``expand_points`` gives."""
    one, other = _pairs(means.shape[-1])
    precision = torch.linalg.inv(covariances)
    linear = (precision @ means[..., None])[..., 0]
    constant = shares.clamp_min(torch.finfo(shares.dtype).tiny).log() - means.shape[-1] / 2 * math.log(2 * math.pi)
    constant = constant - torch.linalg.slogdet(covariances).logabsdet / 2 - (means * linear).sum(-1) / 2
    # A product of two different coordinates stands for two entries of the matrix.
    square = -precision[..., one, other] * torch.where(one == other, 0.5, 1.0).to(precision)
    return torch.cat([constant[..., None], linear, square], -1).mT


def _maximise(moments: Float[Tensor, "image feature component"], floor: Float[Tensor, "coordinate coordinate"]) -> tuple[Tensor, Tensor, Tensor]:
    size = len(floor)
    one, other = _pairs(size)
    shares = moments[:, 0]
    scaled = (moments[:, 1:] / shares.clamp_min(1e-12)[:, None]).mT
    means = scaled[..., :size]
    central = scaled[..., size:] - means[..., one] * means[..., other]
    # Rounding may leave a variance slightly below zero.
    central = torch.where(one == other, central.clamp_min(0), central)
    covariances = torch.empty(*means.shape, size, dtype=means.dtype, device=means.device)
    covariances[..., one, other] = central
    covariances[..., other, one] = central
    return shares, means, covariances + floor


def _mean(weights: Float[Tensor, "image pixel"], values: Float[Tensor, "*each pixel coordinate"]) -> Float[Tensor, "image coordinate"]:
    return weights @ values if values.ndim == 2 else (weights[:, None] @ values)[:, 0]


def _pairs(size: int) -> tuple[Tensor, Tensor]:
    """Every two of the coordinates, each with itself too, once."""
    one, other = torch.triu_indices(size, size)
    return one, other
