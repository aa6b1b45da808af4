"""The rules by which a difference between an image and a baseline is handed back through one call (docs/method.md, eq. 2 to 3b).

Each rule is exact: what it gives the inputs, times their differences, adds up to what it was given times the outputs' differences.
None divides by something small. Each is an autograd function whose backward pass compares with the tape's current baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# If a curve's input and baseline differ by less than this, the quotient is mostly rounding, and the derivative half-way replaces it as its limit.
SMALLEST_DIFFERENCE = 1e-8
# Below this difference of logarithms the logarithmic mean is taken from its series, which is then exact to rounding.
SERIES = 0.3

# (g(z) - g(b)) / (z - b) in closed form, from z, b, g(z) and g(b). None of these quotients cancels.
CLOSED: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "square": lambda z, b, out, out_b: z + b,
    "reciprocal": lambda z, b, out, out_b: -out * out_b,
    "rsqrt": lambda z, b, out, out_b: -((out * out_b) ** 2) / (out + out_b),
    # Where both are zero nothing changed, and any finite number will do.
    "sqrt": lambda z, b, out, out_b: torch.where(out + out_b > 0, (out + out_b).reciprocal(), 0),
}


class Rescale(torch.autograd.Function):
    """Backward: multiply by delta_out / delta_in (docs/method.md, eq. 2).

    If a curve's input changed in less than half of its digits, the quotient has so few correct digits that the derivative is more exact.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: Any, curved: bool, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(z.clone())  # cloned here and below, since later calls may work in place
        ctx.call, ctx.curved, ctx.function = call, curved, function
        return function(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride] -- torch declares *grad_outputs
        (z,), (baseline,) = ctx.saved_tensors, ctx.call.current()
        if ctx.call.name in CLOSED:
            return gradient * CLOSED[ctx.call.name](z, baseline, ctx.function(z), ctx.function(baseline)), None, None, None
        delta_in = z - baseline
        multiplier = (ctx.function(z) - ctx.function(baseline)).div_(delta_in)
        # The quotient of a piecewise linear function is exact for any difference.
        smallest = z.abs().mul_(torch.finfo(z.dtype).eps ** 0.5).add_(SMALLEST_DIFFERENCE) if ctx.curved else torch.finfo(z.dtype).tiny
        close = delta_in.abs() < smallest
        if close.any():
            places = close.nonzero(as_tuple=True)
            with torch.enable_grad():
                middle = (z[places] - delta_in[places] / 2).requires_grad_()
                (multiplier[places],) = torch.autograd.grad(ctx.function(middle.clone()).sum(), middle)
        return multiplier.mul_(gradient), None, None, None


class RescaleProduct(torch.autograd.Function):
    """Backward: delta(ab) = (a + a')/2 delta b + (b + b')/2 delta a, the only exact rule that treats both alike (docs/method.md, eq. 2b)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, call: Any) -> Tensor:
        ctx.save_for_backward(a.clone(), b.clone())
        ctx.call = call
        return a * b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (a, b), (a_baseline, b_baseline) = ctx.saved_tensors, ctx.call.current()
        to_a = (b + b_baseline).div_(2) * gradient
        to_b = (a + a_baseline).div_(2) * gradient
        return to_a.sum_to_size(a.shape), to_b.sum_to_size(b.shape), None


class RescaleBilinear(torch.autograd.Function):
    """The product rule for any function that is linear in each of two tensors: matrix products, einsum, convolutions with weights of their own."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, call: Any, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(a.clone(), b.clone())
        ctx.call, ctx.function = call, function
        return function(a, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (a, b), (a_baseline, b_baseline) = ctx.saved_tensors, ctx.call.current()
        # Linear in each: the gradient in one of them, at the mean of the other, does not depend on where it is taken.
        with torch.enable_grad():
            middle_a, middle_b = ((z + baseline).div_(2).requires_grad_() for z, baseline in ((a, a_baseline), (b, b_baseline)))
            to_a, to_b = torch.autograd.grad(ctx.function(middle_a, middle_b), (middle_a, middle_b), gradient)
        return to_a, to_b, None, None


class RescaleSoftmax(torch.autograd.Function):
    """Softmax over one axis, or its logarithm: the Jacobian at the logarithmic means L of the two outputs (docs/method.md, eq. 3b).

    delta log p = delta z - sum(L delta z) / sum(L), and delta p = L delta log p by the definition of L, since the p sum to one.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: Any, axis: int, logarithm: bool) -> Tensor:
        ctx.save_for_backward(z.clone())
        ctx.call, ctx.axis, ctx.logarithm = call, axis, logarithm
        return z.log_softmax(axis) if logarithm else z.softmax(axis)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mean = _logarithmic_mean(ctx)
        of_logarithm = gradient if ctx.logarithm else mean * gradient
        return of_logarithm - mean * (of_logarithm.sum(ctx.axis, keepdim=True) / mean.sum(ctx.axis, keepdim=True)), None, None, None


def _logarithmic_mean(ctx: Any) -> Tensor:
    """L = (p - p') / (log p - log p') of the softmax of a call's input and baseline; it lies between the two, and is 0 where either is."""
    (z,), (baseline,) = ctx.saved_tensors, ctx.call.current()
    log_p, log_p_baseline = z.log_softmax(ctx.axis), baseline.log_softmax(ctx.axis)
    difference = log_p - log_p_baseline
    # With t the difference, L = sqrt(p p') sinh(t/2) / (t/2).
    squared = difference.square()
    series = ((log_p + log_p_baseline) / 2).exp() * (1 + squared / 24 * (1 + squared / 80))
    mean = torch.where(difference.abs() < SERIES, series, (log_p.exp() - log_p_baseline.exp()) / difference)
    # A masked place has log p = -inf in both, whose difference is no number.
    return mean.masked_fill_(log_p == -math.inf, 0)


class RescaleNorm(torch.autograd.Function):
    """(z - mean) r with r = (variance + eps)^(-1/2), over some axes: the product rule on the square and on c r, the quotient rule on r.

    The quotient of differences of r is - (r r')^2 / (r + r') exactly, so that nothing small is divided by.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: Any, axes: tuple[int, ...], eps: float) -> Tensor:
        ctx.save_for_backward(z.clone())
        ctx.call, ctx.axes, ctx.eps = call, axes, eps
        centred, scale = _centre_and_scale(z, axes, eps)
        return centred * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,), (baseline,) = ctx.saved_tensors, ctx.call.current()
        c, r = _centre_and_scale(z, ctx.axes, ctx.eps)
        c_baseline, r_baseline = _centre_and_scale(baseline, ctx.axes, ctx.eps)
        middle = (c + c_baseline).div_(2)
        to_variance = (middle * gradient).sum(ctx.axes, keepdim=True) * CLOSED["rsqrt"](z, baseline, r, r_baseline)
        size = math.prod(z.shape[axis] for axis in ctx.axes)
        to_centred = gradient * ((r + r_baseline) / 2) + middle.mul_(to_variance * (2 / size))
        return to_centred - to_centred.mean(ctx.axes, keepdim=True), None, None, None


def _centre_and_scale(z: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    centred = z - z.mean(axes, keepdim=True)
    return centred, (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


class RescaleMax(torch.autograd.Function):
    """A maximum over windows: its change goes to the value that caused it (docs/method.md, eq. 3).

    If the window's maximum rose, that is the input's maximum; if it fell, the baseline's. There |delta_in| >= |delta_out|, so that the
    multiplier is never above one; overlapping windows add up. ``find`` gives the maxima and their places in the last axes, flattened to one.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, call: Any, find: Callable[[Tensor], tuple[Tensor, Tensor]], axes: int) -> tuple[Tensor, Tensor]:
        out, argmax = find(z)
        ctx.save_for_backward(z.clone(), argmax)
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)  # argmax gets none
        ctx.call, ctx.find, ctx.axes = call, find, axes
        return out, argmax

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (z, argmax), (baseline,) = ctx.saved_tensors, ctx.call.current()
        baseline_out, baseline_argmax = ctx.find(baseline)
        places, values = argmax.flatten(-ctx.axes), z.flatten(-ctx.axes)
        delta_out = values.gather(-1, places).view_as(argmax) - baseline_out
        cause = torch.where(delta_out >= 0, argmax, baseline_argmax).flatten(-ctx.axes)
        delta_in = (z - baseline).flatten(-ctx.axes).gather(-1, cause).view_as(argmax)
        small = delta_in.abs() < torch.finfo(z.dtype).tiny
        multiplier = torch.where(small, 1, delta_out / delta_in)
        routed = torch.zeros_like(values).scatter_add(-1, cause, (gradient * multiplier).flatten(-ctx.axes))
        return routed.view_as(z), None, None, None
