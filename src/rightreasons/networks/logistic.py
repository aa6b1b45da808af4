"""Logistic regression on a few hundred features, by L-BFGS from zero."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rightreasons.networks.optimizers import open_optimizer


def fit_logistic(
    x: Float[Tensor, "row feature"], y: Float[Tensor, " row"], weights: Float[Tensor, " row"], decay: float
) -> tuple[Float[Tensor, " feature"], Float[Tensor, ""]]:
    """The weight and the offset with the least weighted cross-entropy plus ``decay`` times the squared weight, at most 100 steps."""
    weight, offset = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True), torch.zeros((), dtype=x.dtype, requires_grad=True)
    optimizer = open_optimizer(torch.optim.LBFGS, [weight, offset], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (weights * F.binary_cross_entropy_with_logits(x @ weight + offset, y, reduction="none")).sum() + decay * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), offset.detach()
