"""The rules by which a difference between an image and a baseline is handed back through one call (docs/method.md, eq. 2 to 3b).

Each rule is exact: what it gives the inputs, times their differences, adds up to what it was given times the outputs' differences.
None divides by something small. Each is an autograd function whose backward pass compares with the tape's current baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

# If a curve's input and baseline differ by less than this, the quotient is mostly rounding, and the derivative half-way replaces it as its limit.
SMALLEST_DIFFERENCE = 1e-8

# The names of torch's plain matrix products.
MATRIX_PRODUCTS = ("matmul", "bmm", "__matmul__")
# On a CPU, elementwise work is done on so many numbers at a time, for each thread: then what lies between two steps stays in the processor's cache.
BLOCK = 2**17

# (g(z) - g(b)) / (z - b) in closed form, from z, b, g(z) and g(b). None of these quotients cancels.
CLOSED: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "square": lambda z, b, out, out_b: z + b,
    "reciprocal": lambda z, b, out, out_b: -out * out_b,
    "rsqrt": lambda z, b, out, out_b: -((out * out_b) ** 2) / (out + out_b),
    # Where both are zero nothing changed, and any finite number will do.
    "sqrt": lambda z, b, out, out_b: torch.where(out + out_b > 0, (out + out_b).reciprocal(), 0),
}

# The names of what is the identity between two bounds and flat beyond.
BOUNDED = ("relu6", "hardtanh")


def _of_relu(z: Tensor, b: Tensor) -> Tensor:
    """The same of a ReLU: max(z, b) / |z - b| between 0 and 1."""
    return torch.maximum(z, b).div_((z - b).abs_().clamp_min_(torch.finfo(z.dtype).tiny)).clamp_(0, 1)


def _of_bounded(z: Tensor, b: Tensor, low: float, high: float) -> Tensor:
    """The share of the way from b to z that is between the bounds: 1 where both are one number there."""
    upper, lower, tiny = torch.maximum(z, b), torch.minimum(z, b), torch.finfo(z.dtype).tiny
    width = (upper - lower).add_(tiny)
    return upper.clamp_max_(high).sub_(lower.clamp_min_(low)).add_(tiny).div_(width).clamp_(0, 1)


def in_blocks(rule: Callable[..., None], gradient: Tensor, *others: Tensor, whole: bool = False) -> Tensor:
    """What ``rule(out, gradient, *others)`` writes, a part of the first two axes at a time, unless it mixes them; the others broadcast."""
    block, out = BLOCK * torch.get_num_threads(), torch.empty_like(gradient)
    if whole or gradient.device.type != "cpu" or gradient.numel() <= block or gradient.ndim < 2:
        rule(out, gradient, *others)
        return out
    each = math.prod(gradient.shape[2:])
    columns = min(gradient.shape[1], max(1, block // each))
    rows = max(1, block // (each * columns))
    for strip in _cut((out, gradient, *others), 0, rows):
        for part in _cut(strip, 1, columns) if columns < gradient.shape[1] else (strip,):
            rule(*part)
    return out


def _cut(tensors: tuple[Tensor, ...], axis: int, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Parts of the first tensor along an axis, each with those of the others; one that broadcasts there stays whole."""
    first, *others = tensors
    return zip(first.split(size, axis), *(repeat(tensor) if tensor.shape[axis] == 1 else tensor.split(size, axis) for tensor in others), strict=False)


class Rescale(torch.autograd.Function):
    """Backward: multiply by delta_out / delta_in (docs/method.md, eq. 2) of a piecewise linear function, which is exact for any difference."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, visit: Any, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.visit, ctx.function, ctx.closed = visit, function, None
        return function(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride] -- torch declares *grad_outputs
        name = ctx.visit.call.name
        if name == "relu":
            ctx.closed = _of_relu
        elif name in BOUNDED and ctx.closed is None:  # its bounds are the same for all baselines
            low, high = ctx.function(gradient.new_tensor([-math.inf, math.inf])).tolist()
            ctx.closed = partial(_of_bounded, low=low, high=high)
        function, closed = ctx.function, ctx.closed

        def multiply(out: Tensor, gradient: Tensor, z: Tensor, baseline: Tensor) -> None:
            if closed is not None:
                torch.mul(closed(z, baseline), gradient, out=out)
                return
            delta_in = z - baseline
            multiplier = (function(z) - function(baseline)).div_(delta_in)
            if multiplier.min().isnan():  # 0 / 0; to look for it in this way is quicker than to compare
                _take_limits(multiplier, delta_in == 0, z, baseline, function)
            torch.mul(multiplier, gradient, out=out)

        return in_blocks(multiply, gradient, *ctx.visit.own(), *ctx.visit.current()), None, None


class RescaleCurve(torch.autograd.Function):
    """The same of a curve. If its input changed in less than half of its digits, the quotient has so few that the derivative is more exact.

    The visit keeps z and g(z), so that no curve is evaluated twice.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, visit: Any, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.visit, ctx.function = visit, function
        return visit.own()[1].detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        function, closed = ctx.function, CLOSED.get(ctx.visit.call.name)

        def multiply(out: Tensor, gradient: Tensor, z: Tensor, value: Tensor, baseline: Tensor, baseline_value: Tensor) -> None:
            if closed is not None:
                torch.mul(closed(z, baseline, value, baseline_value), gradient, out=out)
                return
            delta_in = z - baseline
            multiplier = (value - baseline_value).div_(delta_in)
            distance = delta_in.abs_().sub_(z.abs(), alpha=torch.finfo(z.dtype).eps ** 0.5)
            if distance.min() < SMALLEST_DIFFERENCE:
                _take_limits(multiplier, distance < SMALLEST_DIFFERENCE, z, baseline, function)
            torch.mul(multiplier, gradient, out=out)

        return in_blocks(multiply, gradient, *ctx.visit.own(), *ctx.visit.current()), None, None


def _take_limits(multiplier: Tensor, close: Tensor, z: Tensor, baseline: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    """Puts the derivative half-way in place of the quotient where input and baseline are too close for one."""
    places = close.nonzero(as_tuple=True)
    with torch.enable_grad():
        middle = ((z[places] + baseline.expand_as(z)[places]) / 2).requires_grad_()
        (multiplier[places],) = torch.autograd.grad(function(middle.clone()).sum(), middle)


class RescaleProduct(torch.autograd.Function):
    """Backward: delta(ab) = (a + a')/2 delta b + (b + b')/2 delta a, the only exact rule that treats both alike (docs/method.md, eq. 2b)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, visit: Any) -> Tensor:
        ctx.visit = visit
        return a * b

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (a, b), (a_baseline, b_baseline) = ctx.visit.own(), ctx.visit.current()
        to_a = (b + b_baseline).div_(2) * gradient
        to_b = (a + a_baseline).div_(2) * gradient
        return to_a.sum_to_size(a.shape), to_b.sum_to_size(b.shape), None


class RescaleBilinear(torch.autograd.Function):
    """The product rule for any function that is linear in each of two tensors: matrix products, einsum, convolutions with weights of their own."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, visit: Any, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.visit, ctx.function = visit, function
        return function(a, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (a, b), (a_baseline, b_baseline) = ctx.visit.own(), ctx.visit.current()
        if ctx.visit.call.name in MATRIX_PRODUCTS and a.ndim == b.ndim > 2 and a.shape[:-2] == b.shape[:-2]:  # without computing the product again
            middle_a, middle_b = ((z + baseline).div_(2) for z, baseline in ((a, a_baseline), (b, b_baseline)))
            return gradient @ middle_b.transpose(-2, -1), middle_a.transpose(-2, -1) @ gradient, None, None
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
    def forward(ctx: Any, z: Tensor, visit: Any, axis: int, logarithm: bool) -> Tensor:
        ctx.visit, ctx.axis, ctx.logarithm = visit, axis % z.ndim, logarithm
        return visit.own()[0 if logarithm else 1].detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        def multiply(out: Tensor, gradient: Tensor, *outputs: Tensor) -> None:
            mean = _logarithmic_mean(*outputs)
            of_logarithm = gradient if ctx.logarithm else mean * gradient
            share = of_logarithm.sum(ctx.axis, keepdim=True) / mean.sum(ctx.axis, keepdim=True)
            torch.sub(of_logarithm, mean.mul_(share), out=out)

        return in_blocks(multiply, gradient, *ctx.visit.own(), *ctx.visit.current(), whole=ctx.axis < 2), None, None, None


def _logarithmic_mean(log_p: Tensor, p: Tensor, log_p_baseline: Tensor, p_baseline: Tensor) -> Tensor:
    """L = (p - p') / (log p - log p') of two softmax outputs; it lies between the two, and is 0 where either is."""
    # With t = |log p - log p'| it is max(p, p') (1 - exp(-t)) / t, in which nothing cancels or overflows.
    apart = (log_p - log_p_baseline).abs_().clamp_min_(torch.finfo(p.dtype).tiny)
    mean = apart.neg().expm1_().div_(apart).mul_(torch.maximum(p, p_baseline)).neg_()
    # A masked place has log p = -inf in both, whose difference is no number.
    return mean.nan_to_num_(0)


class RescaleNorm(torch.autograd.Function):
    """(z - mean) r with r = (variance + eps)^(-1/2), over some axes: the product rule on the square and on c r, the quotient rule on r.

    The quotient of differences of r is - (r r')^2 / (r + r') exactly, so that nothing small is divided by. The visit keeps c = z - mean and r.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, visit: Any, axes: tuple[int, ...]) -> Tensor:
        ctx.visit, ctx.axes = visit, tuple(axis % z.ndim for axis in axes)
        centred, scale = visit.own()
        return centred * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        axes = ctx.axes
        size = math.prod(gradient.shape[axis] for axis in axes)

        def multiply(out: Tensor, gradient: Tensor, c: Tensor, r: Tensor, c_baseline: Tensor, r_baseline: Tensor) -> None:
            middle = (c + c_baseline).div_(2)
            to_variance = (middle * gradient).sum(axes, keepdim=True) * CLOSED["rsqrt"](c, c_baseline, r, r_baseline)
            to_centred = torch.addcmul(middle.mul_(to_variance * (2 / size)), gradient, (r + r_baseline) / 2)
            torch.sub(to_centred, to_centred.mean(axes, keepdim=True), out=out)

        return in_blocks(multiply, gradient, *ctx.visit.own(), *ctx.visit.current(), whole=min(axes) < 2), None, None


def centre_and_scale(z: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """z less its mean over some axes, and the reciprocal root of its variance there."""
    centred = z - z.mean(axes, keepdim=True)
    return centred, (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


class RescaleMax(torch.autograd.Function):
    """A maximum over windows: its change goes to the value that caused it (docs/method.md, eq. 3).

    If the window's maximum rose, that is the input's maximum; if it fell, the baseline's. There |delta_in| >= |delta_out|, so that the
    multiplier is never above one; overlapping windows add up. ``find`` gives the maxima and their places in the last axes, flattened to one.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, visit: Any, find: Callable[[Tensor], tuple[Tensor, Tensor]], axes: int) -> tuple[Tensor, Tensor]:
        out, argmax = find(z)
        ctx.save_for_backward(argmax)
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)  # argmax gets none
        ctx.visit, ctx.find, ctx.axes = visit, find, axes
        return out, argmax

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (argmax,), (z,), (baseline,) = ctx.saved_tensors, ctx.visit.own(), ctx.visit.current()
        baseline_out, baseline_argmax = ctx.find(baseline)
        places, values = argmax.flatten(-ctx.axes), z.flatten(-ctx.axes)
        delta_out = values.gather(-1, places).view_as(argmax) - baseline_out
        cause = torch.where(delta_out >= 0, argmax, baseline_argmax).flatten(-ctx.axes)
        delta_in = (z - baseline).flatten(-ctx.axes).gather(-1, cause).view_as(argmax)
        small = delta_in.abs() < torch.finfo(z.dtype).tiny
        multiplier = torch.where(small, 1, delta_out / delta_in)
        routed = torch.zeros_like(values).scatter_add(-1, cause, (gradient * multiplier).flatten(-ctx.axes))
        return routed.view_as(z), None, None, None
