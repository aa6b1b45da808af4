"""AttnLRP (Achtibat et al. 2024) for the studies' small transformer, as input times a gradient of a rewritten forward pass.

With relevance R = x * g the paper's rules say what the gradient g has to be: a nonlinearity without weights passes relevance on unchanged, so that
its quotient y / x is a constant; a layer norm's deviation is a constant; a softmax keeps its gradient; and a product of two tensors that both
depend on the image shares its relevance evenly, which halves both gradients. Linear layers follow the epsilon rule (their own gradient), or the
gamma rule, which favours positive weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rightreasons.networks.small_vit import HEADS, SmallViT, _positions

STABLE = 1e-9


class Gammas(NamedTuple):
    """By how much positive weights are favoured: at the patches, and in linear layers. At 0 both follow the epsilon rule."""

    patches: float = 0.0
    linear: float = 0.0


def relevance(network: SmallViT, inputs: Tensor, targets: Tensor, gammas: Gammas) -> Tensor:
    """The relevance of each input for its target's logit, of the inputs' shape."""
    leaf = inputs.detach().clone().requires_grad_()
    score = rewritten(network, leaf, gammas).gather(1, targets[:, None]).sum()
    return leaf.detach() * torch.autograd.grad(score, leaf)[0]


def rewritten(network: SmallViT, images: Tensor, gammas: Gammas) -> Tensor:
    """The network's own logits, with gradients by the rules."""
    patches = network.patches
    maps = apply_gamma(lambda x, w, b: F.conv2d(x, w, b, patches.stride), images, patches.weight, patches.bias, gammas.patches)
    tokens = maps.flatten(2).mT + _positions(maps.shape[2], maps.shape[3]).to(maps)
    tokens = torch.cat([network.class_token.expand(len(images), -1, -1), tokens], 1)
    for block in network.blocks:
        assert isinstance(block, nn.TransformerEncoderLayer)
        tokens = tokens + _attend(block.self_attn, _norm(block.norm1, tokens), gammas.linear)
        hidden = _linear(_norm(block.norm2, tokens), block.linear1.weight, block.linear1.bias, gammas.linear)
        tokens = tokens + _linear(_as_constant_quotient(hidden), block.linear2.weight, block.linear2.bias, gammas.linear)
    return _linear(_norm(network.norm, tokens[:, 0]), network.head.weight, network.head.bias, gammas.linear)


def _attend(attention: nn.MultiheadAttention, tokens: Tensor, gamma: float) -> Tensor:
    weight, bias, projection = attention.in_proj_weight, attention.in_proj_bias, attention.out_proj
    assert weight is not None
    joined = _linear(tokens, weight, bias, gamma)
    queries, keys, values = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in joined.chunk(3, 2))
    shares = (_half(queries) @ _half(keys).mT / queries.shape[-1] ** 0.5).softmax(-1)
    return _linear((_half(shares) @ _half(values)).transpose(1, 2).flatten(2), projection.weight, projection.bias, gamma)


def _half(values: Tensor) -> Tensor:
    """The same values with half of the gradient."""
    return values / 2 + values.detach() / 2


def _as_constant_quotient(values: Tensor) -> Tensor:
    """GELU as a factor that the gradient takes for a constant: the normal distribution's share below the value."""
    return values * torch.special.ndtr(values).detach()


def _norm(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    centred = tokens - tokens.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return centred / deviation.detach() * norm.weight + norm.bias


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None, gamma: float) -> Tensor:
    return apply_gamma(F.linear, inputs, weight, bias, gamma)


def apply_gamma(apply, inputs: Tensor, weight: Tensor, bias: Tensor | None, gamma: float) -> Tensor:
    """The layer's own output. Its relevance goes to inputs in proportion to their contributions, those of the output's sign counting 1 + gamma."""
    output = apply(inputs, weight, bias)
    if gamma == 0:
        return output

    def favour(sign: int) -> Tensor:
        """The output with contributions of this sign enlarged."""
        more, less = (weight + gamma * (side * weight).clamp_min(0) * side for side in (sign, -sign))
        raised = None if bias is None else bias + gamma * (sign * bias).clamp_min(0) * sign
        return apply(inputs.clamp_min(0), more, raised) + apply(inputs.clamp_max(0), less, None)

    enlarged = torch.where(output.detach() >= 0, favour(1), favour(-1))
    return output.detach() * enlarged / (enlarged.detach() + torch.where(output.detach() >= 0, STABLE, -STABLE))
