"""Layer-wise relevance propagation (Bach et al. 2015): the z-plus rule for convolutions, the epsilon rule for all else (docs/method.md, eq. 3c).

A tensor's relevance is R = z * g, with a gradient g that each layer hands back by its rule. Then whatever is linear without weights (sums, mean and
max pooling) and a linear layer under the epsilon rule hand back their own gradient, an activation its quotient f(z) / z, and only convolutions need
a backward pass of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rightreasons.explain.affine import AXES, Affine, Computed, Convolution
from rightreasons.explain.rescale import Rescaled, out_of_place, own_network
from rightreasons.explain.tape import Tape


def propagate_relevance(
    model: nn.Module, images: Float[Tensor, "image channel height width"], targets: Int[Tensor, " image"] | None
) -> tuple[Float[Tensor, "image height width"], Float[Tensor, "image class_"]]:
    """The relevance of each pixel for its target's logit (None: the predicted class), summed over channels, and the logits.

    Parameters must be frozen. Pixels are those that the network gets, after its classifier has normalised them.
    Raises UnsupportedLayer if no rule covers a function.
    """
    tape, seen = Tape(method="LRP"), []

    def keep(_: nn.Module, given: tuple) -> tuple:
        seen.append(given[0])
        return (given[0].clone(), *given[1:])  # the network may write into its input

    network = own_network(model)
    hook = network.register_forward_pre_hook(keep)
    try:
        with torch.enable_grad(), tape.running(network, len(images), recording=True), _Relevant(tape):
            logits = model(images.detach().clone().requires_grad_().clone())
        chosen = logits.argmax(1) if targets is None else targets.to(logits.device)
        (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), seen[0])
    finally:
        hook.remove()
    return (seen[0].detach() * gradient).sum(1), logits.detach()


class _Relevant(Rescaled):
    """Intercepts the same functions as DeepLIFT does, with the rules of relevance."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape)
        self.affine = _Favouring(tape)

    def _elementwise(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        """An activation is a factor f(z) / z, which has to be 0 at 0 to be one."""
        source, function = args[0], out_of_place(func, args, kwargs)
        with torch.no_grad():
            if function(source.new_zeros(1)).item() != 0:
                self.tape.refuse(name)
            value = function(source)
            factor = torch.where(source == 0, 0, value / source)
        return Computed.apply(source, value, lambda gradient: gradient * factor)

    def _max_pool(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Any:  # noqa: ANN401 -- a tensor, or a pair
        return func(*args, **kwargs)

    def _largest(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Any:  # noqa: ANN401 -- a tensor, or torch's named pair
        return func(*args, **kwargs)

    def _product(self, name: str, left: Tensor, other: Tensor) -> Tensor:
        self.tape.refuse(name)

    def _bilinear(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        self.tape.refuse(name)

    def _softmax(self, name: str, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        self.tape.refuse(name)

    def _norm(self, name: str, given: dict) -> Tensor:
        self.tape.refuse(name)


class _Favouring(Affine):
    """Convolutions hand relevance to what contributed positively, in proportion; a batch norm that follows is a part of its convolution."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __call__(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Tensor | None:
        """What ``func`` gives for a batch of images; None if it is neither convolution nor batch norm.

        Raises UnsupportedLayer for a convolution of an unusual form, which would get another rule.
        """
        out = super().__call__(name, func, args, kwargs)
        if out is None and name in AXES:
            self.tape.refuse(f"{name} of an unusual form")
        return out

    def hand_back(self, convolution: Convolution, source: Tensor, value: Tensor) -> Callable[[Tensor], Tensor]:
        """The z-plus rule: g_i is the sum of w_ij g_j z_j / Z_j over those j with a positive contribution z_i w_ij.

        Z_j is the sum of all positive contributions to j, and of its bias where that is positive.
        """
        kept, result = self.tape.keep(source), self.tape.keep(value)

        def to_source(gradient: Tensor) -> Tensor:
            z, (weight, bias) = kept.tensor, convolution.merged
            over, under = (replace(convolution, weight=part, scale=None) for part in (weight.clamp_min(0), weight.clamp_max(0)))
            negative = bool(z.min() < 0)  # what follows a ReLU has nothing negative, and needs half of the work
            total = over.forward(z.clamp_min(0), None if bias is None else bias.clamp_min(0))
            total = total + under.forward(z.clamp_max(0), None) if negative else total
            carried = torch.where(total > 0, gradient * result.tensor / total, 0)
            to_positive = over(carried)
            return torch.where(z > 0, to_positive, under(carried)) if negative else to_positive

        return to_source
