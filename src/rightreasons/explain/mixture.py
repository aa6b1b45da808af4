"""A weighted Gaussian mixture for each of many images at once (docs/method.md, eq. 5). EM itself is in em.py.

A point has two coordinates of place, and further ones of colour where those are used. Points are shared by all images, or each image has its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rightreasons.explain.em import climb, gather_points, log_density, pack, unpack

# Of several starts, the best after so many steps goes on alone.
TRIAL = 42


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
    means: Float[Tensor, "image start component coordinate"],
    *,
    smallest_variance: float | Float[Tensor, " coordinate"],
    iterations: int = 100,
    tolerance: float = 1e-5,
) -> Mixture:
    """EM from given means, for all images at once, until no component's share or mean moves by more than ``tolerance`` in a step.

    Of several starts the one with the best objective after ``TRIAL`` steps goes on alone. ``weights`` sum to one per image. Component covariances
    start isotropic: the data's mean variance, divided by their number. ``smallest_variance`` is added to each covariance's diagonal.
    """
    count, size = means.shape[2:]
    floor = torch.as_tensor(smallest_variance).expand(size).tolist()
    spread = ((_mean(weights, points.square()) - _mean(weights, points).square()).mean(1) / count).double()
    round_ = spread[:, None, None].expand(means.shape[:3])
    covariances = {(i, j): round_ + floor[i] if i == j else torch.zeros_like(round_) for i in range(size) for j in range(i + 1)}
    parameters = pack(torch.full_like(round_, 1 / count), means.movedim(-1, 0).double(), covariances)
    cloud = gather_points(weights, points)
    if means.shape[1] > 1:
        parameters, objective = climb(parameters, cloud, floor, iterations=min(TRIAL, iterations), tolerance=tolerance)
        best = objective.argmax(1)
        parameters = parameters[:, torch.arange(len(best), device=best.device), best][:, :, None]
        iterations = max(3, iterations - TRIAL)
    parameters, objective = climb(parameters, cloud, floor, iterations=iterations, tolerance=tolerance)
    shares, centres, covariance = unpack(parameters[:, :, 0])
    found = shares, centres.movedim(0, -1), covariance.movedim((0, 1), (-2, -1)), objective[:, 0]
    return Mixture(*(part.to(points.dtype) for part in found))


def coefficients(mixture: Mixture) -> Float[Tensor, "image component feature"]:
    """log pi_j + log N(z | mu_j, Sigma_j) as coefficients of what ``expand_points`` gives."""
    shares, means = mixture.weights.clamp_min(torch.finfo(mixture.weights.dtype).tiny), mixture.means.movedim(-1, 0)
    lower = {(i, j): mixture.covariances[..., i, j] for i in range(len(means)) for j in range(i + 1)}
    return log_density(pack(shares, means, lower)).movedim(0, -1)


def _mean(weights: Float[Tensor, "image pixel"], values: Float[Tensor, "*each pixel coordinate"]) -> Float[Tensor, "image coordinate"]:
    return weights @ values if values.ndim == 2 else (weights[:, None] @ values)[:, 0]
