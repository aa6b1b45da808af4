"""Convolutions and batch norms with fixed weights, whose backward pass needs no activation: autograd would keep the input of each.

A batch norm right after a convolution joins its backward pass, as a factor for each output channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
# The number of axes that each slides over.
AXES = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


@dataclass(frozen=True)
class Convolution:
    """The backward pass of a convolution whose output is then multiplied by ``scale``, channel by channel; ``bias`` is that of both together."""

    shape: torch.Size
    layout: torch.memory_format
    weight: Tensor
    geometry: list[list[int]]  # stride, padding, dilation
    groups: int
    bias: Tensor | None = None
    scale: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Tensor:
        """What the input is handed back for a gradient of the output."""
        weight = self.weight
        if self.scale is not None and gradient.numel() < weight.numel():  # whichever is smaller is multiplied
            gradient = gradient * per_channel(self.scale, 1, gradient.ndim)
        elif self.scale is not None:
            weight = weight * per_channel(self.scale, 0, weight.ndim)
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
        return self._normalize(dict(zip(_NORM_ARGUMENTS, args, strict=False)) | kwargs) if name == "batch_norm" else None

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

    def _normalize(self, given: dict) -> Tensor | None:
        source, mean, variance = given["input"], given["running_mean"], given["running_var"]
        if not source.requires_grad or given.get("training", False) or mean is None or variance is None:
            return None
        out = F.batch_norm(source.detach(), mean, variance, given.get("weight"), given.get("bias"), eps=given.get("eps", 1e-5))
        scale = (variance + given.get("eps", 1e-5)).rsqrt()
        if given.get("weight") is not None:
            scale = scale * given["weight"]
        if self._latest is not None and source.grad_fn is self._latest[0]:  # in-place arithmetic in between would have changed it
            _, origin, convolution = self._latest
            shift = F.batch_norm(torch.zeros_like(mean)[None], mean, variance, given.get("weight"), given.get("bias"), eps=given.get("eps", 1e-5))[0]
            bias = shift if convolution.bias is None else shift + scale * convolution.bias
            return Computed.apply(origin, out, self.hand_back(replace(convolution, scale=scale, bias=bias), origin, out))
        return Computed.apply(source, out, lambda gradient: gradient * per_channel(scale, 1, gradient.ndim))


def per_channel(values: Tensor, axis: int, ndim: int) -> Tensor:
    """A vector in a form that broadcasts along one axis."""
    return values.view(*[1] * axis, -1, *[1] * (ndim - axis - 1))
