"""Convolutions and batch norms with fixed weights, whose backward pass needs no activation: autograd would keep the input of each.

A batch norm right after a convolution joins its backward pass, as a factor for each output channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_TORCH_NORM_ARGUMENTS = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")  # torch.batch_norm's own order
# The number of axes that each slides over.
AXES = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


@dataclass(frozen=True)
class Scale:
    """A batch norm as a factor and a shift of each channel; a pass that only records never asks for them."""

    mean: Tensor
    variance: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    @cached_property
    def values(self) -> Tensor:
        """The factors."""
        values = (self.variance + self.eps).rsqrt()
        return values if self.weight is None else values * self.weight

    @property
    def shift(self) -> Tensor:
        """What is added after the factors."""
        return -self.mean * self.values if self.bias is None else self.bias - self.mean * self.values

    def __call__(self, gradient: Tensor) -> Tensor:
        """What the input is handed back for a gradient of the output."""
        return gradient * _per_channel(self.values, 1, gradient.ndim)


@dataclass(frozen=True)
class Convolution:
    """The backward pass of a convolution whose output a batch norm then multiplies by ``scale``, channel by channel, and shifts."""

    shape: torch.Size
    layout: torch.memory_format
    weight: Tensor
    geometry: list[list[int]]  # stride, padding, dilation
    groups: int
    bias: Tensor | None = None
    scale: Scale | None = None

    @property
    def merged(self) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias of both together."""
        if self.scale is None:
            return self.weight, self.bias
        shift, values = self.scale.shift, self.scale.values
        return self.weight * _per_channel(values, 0, self.weight.ndim), shift if self.bias is None else shift + values * self.bias

    def __call__(self, gradient: Tensor) -> Tensor:
        """What the input is handed back for a gradient of the output."""
        weight = self.weight
        if self.scale is not None and gradient.numel() < weight.numel():  # whichever is smaller is multiplied
            gradient = self.scale(gradient)
        elif self.scale is not None:
            weight = weight * _per_channel(self.scale.values, 0, weight.ndim)
        source = torch.empty(self.shape, dtype=gradient.dtype, device=gradient.device, memory_format=self.layout)  # asked for its form alone
        options = (None, *self.geometry, False, [0] * len(self.geometry[0]), self.groups, [True, False, False])
        return torch.ops.aten.convolution_backward(gradient, source, weight, *options)[0]

    def forward(self, source: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution itself with another bias, and without ``scale``."""
        return torch.ops.aten.convolution(source, self.weight, bias, *self.geometry, False, [0] * len(self.geometry[0]), self.groups)


class Computed(torch.autograd.Function):
    """A function of ``source`` whose value is known, with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor, to_source: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401
        """The value, which torch takes for a function of ``source`` alone."""
        ctx.to_source = to_source
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride] -- torch declares *grad_outputs
        """What ``to_source`` makes of the gradient."""
        return ctx.to_source(gradient), None, None


class Affine:
    """Calls convolutions and batch norms, and remembers the latest convolution, in case a batch norm comes next."""

    def __init__(self) -> None:
        self._latest: tuple[Any, Tensor, Convolution] | None = None

    def __call__(self, name: str, func: Callable, args: tuple, kwargs: dict) -> Tensor | None:
        """What ``func`` gives for a batch of images; None if it is no such function, or one of an unusual form."""
        if name in AXES:
            return self._convolve(func, dict(zip(_CONVOLUTION_ARGUMENTS, args, strict=False)) | kwargs)
        names = _TORCH_NORM_ARGUMENTS if func is torch.batch_norm else _NORM_ARGUMENTS
        return self.normalize(dict(zip(names, args, strict=False)) | kwargs) if name == "batch_norm" else None

    def hand_back(self, convolution: Convolution, source: Tensor, value: Tensor) -> Callable[[Tensor], Tensor]:
        """The backward pass of a convolution of ``source`` with this ``value``: its own."""
        return convolution

    def _convolve(self, func: Callable, given: dict) -> Tensor | None:
        source, weight, axes = given["input"], given["weight"], AXES[func.__name__]
        stride, padding, dilation = (given.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)))
        if not source.requires_grad or source.ndim != axes + 2 or isinstance(padding, str):
            return None
        geometry = [[value] * axes if isinstance(value, int) else list(value) * (axes // len(value)) for value in (stride, padding, dilation)]
        layout = torch.contiguous_format
        if axes == 2 and source.is_contiguous(memory_format=torch.channels_last):
            layout = torch.channels_last
        convolution = Convolution(source.shape, layout, weight, geometry, given.get("groups", 1), given.get("bias"))
        value = func(source.detach(), **{name: given[name] for name in _CONVOLUTION_ARGUMENTS[1:] if name in given})
        out = Computed.apply(source, value, self.hand_back(convolution, source, value))
        self._latest = out.grad_fn, source, convolution
        return out

    def normalize(self, given: dict) -> Tensor | None:
        """A batch norm by running statistics, from its arguments by name; None if it is no such norm."""
        source, mean, variance = given["input"], given["running_mean"], given["running_var"]
        if not source.requires_grad or given.get("training", False) or mean is None or variance is None:
            return None
        out = F.batch_norm(source.detach(), mean, variance, given.get("weight"), given.get("bias"), eps=given.get("eps", 1e-5))
        scale = Scale(mean, variance, given.get("weight"), given.get("bias"), given.get("eps", 1e-5))
        if self._latest is not None and source.grad_fn is self._latest[0]:  # in-place arithmetic in between would have changed it
            _, origin, convolution = self._latest
            return Computed.apply(origin, out, self.hand_back(replace(convolution, scale=scale), origin, out))
        return Computed.apply(source, out, scale)


def _per_channel(values: Tensor, axis: int, ndim: int) -> Tensor:
    """A vector in a form that broadcasts along one axis."""
    return values.view(*[1] * axis, -1, *[1] * (ndim - axis - 1))
