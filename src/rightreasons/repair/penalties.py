"""The penalties: the finite effect (docs/method.md, eq. 10), and gradients inside the mask (eq. 8 and 11), which take gradients of gradients.

For a grouped convolution, torch differentiates the gradient in a loop over the groups, and a depthwise convolution has hundreds. Here the gradient
is written as another convolution, whose own gradient is quick: the same values, and EfficientNet-Lite0 takes well under half the time (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from rightreasons.networks.team import by_rows

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
# Keeps the root differentiable where a swap changes nothing.
SMALLEST_EFFECT = 1e-6


def effect_penalty(
    before: Float[Tensor, "image class_"], after: Float[Tensor, "image class_"], all_logits: Float[Tensor, "any_image class_"]
) -> Tensor:
    """E |f(x) - f(x')| / (sqrt(2) sigma), x' being x with spurious segments exchanged and sigma^2 the variance of f (eq. 10).

    The square inside the mean would be the total Sobol index of those pixels (Jansen 1999): 0 where the model does not use them, near 1 where it
    uses nothing else. The root keeps pulling as the effect gets small, and so takes it to zero, as a lasso does. Sigma, over all logits of the
    batch, has a gradient too: a model cannot lower the ratio by making its outputs small.
    """
    variance = all_logits.var(0, correction=0).sum().clamp_min(SMALLEST_EFFECT)
    index = (before - after).square().sum(1) / (2 * variance)
    return (index + SMALLEST_EFFECT).sqrt().mean()


def jacobian_penalty(
    model: nn.Module, images: Float[Tensor, "image channel height width"], masks: Bool[Tensor, "image height width"], generator: torch.Generator
) -> Tensor:
    """An unbiased estimate of the squared Jacobian inside the mask, by one random projection of the logits (Hoffman et al. 2019; eq. 11)."""

    def projected(logits: Tensor, rows: slice, count: int) -> Tensor:
        return (logits * torch.randn(count, logits.shape[1], generator=generator)[rows].to(logits)).sum()

    return _squared_gradient(model, images, masks, projected)


def log_prob_sum_penalty(
    model: nn.Module, images: Float[Tensor, "image channel height width"], masks: Bool[Tensor, "image height width"], generator: torch.Generator
) -> Tensor:
    """The published right-reasons loss: the squared gradient, inside the mask, of the sum of log-probabilities (eq. 8)."""
    return _squared_gradient(model, images, masks, lambda logits, *_: logits.log_softmax(1).sum())


def _squared_gradient(model: nn.Module, images: Tensor, masks: Tensor, scalar: Callable[[Tensor, slice, int], Tensor]) -> Tensor:
    """The penalty, summed over the masked pixels of an image and averaged over the images that have a mask.

    ``scalar`` makes a number of the logits of some rows, given which of how many they are.
    """
    masked = masks.any(2).any(1)
    if not masked.any():
        return images.new_zeros(())
    images, masks = images[masked], masks[masked]

    def by_image(rows: slice) -> Tensor:
        leaf = images[rows].detach().requires_grad_()
        # Torch's fused attention has no gradient of its gradient.
        with _GroupedConvolutions(), sdpa_kernel(SDPBackend.MATH):
            logits = model(leaf)
        (gradient,) = torch.autograd.grad(scalar(logits, rows, len(images)), leaf, create_graph=True)
        return (gradient * masks[rows][:, None]).square().sum((1, 2, 3))

    return by_rows(by_image, len(images)).mean()


class _GroupedConvolutions(TorchFunctionMode):
    """Gives grouped 2-d convolutions a gradient that is quick to differentiate."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:  # noqa: ANN401 -- torch's own signature
        given = dict(zip(_CONVOLUTION, args, strict=False)) | (kwargs or {})
        if func is not torch.conv2d or given.get("groups", 1) == 1 or isinstance(given.get("padding"), str) or given["input"].ndim != 4:
            return func(*args, **(kwargs or {}))
        stride, padding, dilation = (_pair(given.get(name, default)) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)))
        out = _GroupedConvolution.apply(given["input"], given["weight"], stride, padding, dilation, given["groups"])
        return out if given.get("bias") is None else out + given["bias"].view(-1, 1, 1)


class _GroupedConvolution(torch.autograd.Function):
    """conv2d without a bias, whose gradient towards the image is a transposed convolution.

    The weights get a gradient only if it will not be differentiated again: the penalties first ask for the image's gradient alone.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: tuple, padding: tuple, dilation: tuple, groups: int) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(images, weight)
        ctx.settings = stride, padding, dilation, groups
        return F.conv2d(images, weight, None, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        images, weight = (tensor.to(gradient.dtype) for tensor in ctx.saved_tensors)
        stride, padding, dilation, groups = ctx.settings
        to_images = to_weight = None
        if ctx.needs_input_grad[0]:
            sizes = zip(images.shape[2:], gradient.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
            left_over = [whole - ((out - 1) * step - 2 * edge + gap * (side - 1) + 1) for whole, out, side, step, edge, gap in sizes]
            to_images = F.conv_transpose2d(gradient, weight, None, stride, padding, left_over, groups, dilation)
        if ctx.needs_input_grad[1] and not torch.is_grad_enabled():
            options = (None, stride, padding, dilation, False, (0, 0), groups, (False, True, False))
            to_weight = torch.ops.aten.convolution_backward(gradient, images, weight, *options)[1]
        return to_images, to_weight, None, None, None, None


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


GRADIENT_PENALTIES = {"jacobian": jacobian_penalty, "log_prob_sum": log_prob_sum_penalty}
